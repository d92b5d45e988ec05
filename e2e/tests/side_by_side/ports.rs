//! Anyone in the cluster can connect to the agents' ports: what is no protocol is turned away.

use icbd_e2e::{Cluster, Outcome, Scenario};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

/// Memory that belongs to the process alone, KiB.
async fn rss_anon(cluster: &Cluster, node: &str, process: &str) -> Outcome<u64> {
    let ask = format!("awk '/^RssAnon/ {{ print $2 }}' /proc/{process}/status");
    Ok(cluster
        .node(node)
        .sh(&ask)
        .await?
        .trim()
        .parse()
        .unwrap_or(u64::MAX))
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .and_then(|all| all.first())
        .map_or(0, |container| container.restart_count)
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn garbage_on_both_ports_of_an_agent_harms_nothing() -> Outcome {
    Scenario::run("garbage", async |s| {
        let agent = s.cluster.agent("node-2").await?;
        let process = s.cluster.process(&agent).await?;
        let address = agent
            .status
            .as_ref()
            .and_then(|status| status.pod_ip.clone());
        let address = address.unwrap_or_default();
        let before = rss_anon(&s.cluster, "node-2", &process).await?;
        // Noise, a length of four billion, a request of another protocol, silence; many at once.
        // An agent that hangs up while it is written to is an agent that refuses.
        let hostile = format!(
            "trap '' PIPE
             send() {{ exec 3<>/dev/tcp/{address}/$1; cat >&3 2>/dev/null || true; exec 3>&-; }}
             for port in 7440 7441; do
                 for n in $(seq 40); do
                     (head -c 2M /dev/urandom | send $port) &
                     (printf '\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff' | send $port) &
                     (printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n' | send $port) &
                     (printf '' | send $port) &
                 done
                 wait
             done"
        );
        s.node("node-1").sh(&hostile).await?;

        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        let agent_now = s.cluster.agent("node-2").await?;
        assert_eq!(agent_now.metadata.uid, agent.metadata.uid);
        assert_eq!(
            restarts(&agent_now),
            restarts(&agent),
            "the agent was started anew"
        );
        let after = rss_anon(&s.cluster, "node-2", &process).await?;
        println!("agent's own memory: {before} KiB before, {after} KiB after");
        assert!(after < before + 64 * 1024, "from {before} to {after} KiB");
        Ok(())
    })
    .await
}
