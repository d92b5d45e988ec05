//! Anyone in the cluster can connect to the agents' ports, unless NetworkPolicies are enforced, which
//! the test cluster's network plug-in does not: what is no protocol is turned away. Who
//! speaks it and is nobody of the installation: `strangers.rs`.

use std::collections::BTreeSet;

use icbd_crds::names::{CONTROL_PORT, DATA_PORT, ENROLMENT_PORT, HEALTH_PORT};
use icbd_e2e::{
    Cluster, Component, Outcome, SYSTEM_NAMESPACE, Scenario, address_of, node_of, restarts,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::Api;
use serde_json::json;

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn garbage_on_both_ports_of_an_agent_harms_nothing() -> Outcome {
    Scenario::run("garbage", async |s| {
        let agent = s.cluster.agent("node-2").await?;
        let address = address_of(&agent, CONTROL_PORT)?.ip();
        let before = s.cluster.rss_anon(&agent).await?;
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
        let after = s.cluster.rss_anon(&agent_now).await?;
        println!("agent's own memory: {before} KiB before, {after} KiB after");
        assert!(after < before + 64 * 1024, "from {before} to {after} KiB");
        Ok(())
    })
    .await
}

/// The ports on which anything in a pod listens.
async fn listening(cluster: &Cluster, pod: &Pod) -> Outcome<BTreeSet<u16>> {
    let node = node_of(pod);
    let process = cluster.process(pod).await?;
    // 0A is a TCP socket that listens; its port is in hexadecimal.
    let ask = format!(
        "cat /proc/{process}/net/tcp* | awk '$4 == \"0A\" {{ sub(\".*:\", \"\", $2); print $2 }}'"
    );
    let ports = cluster.node(node.unwrap_or_default()).sh(&ask).await?;
    Ok(ports
        .lines()
        .filter_map(|port| u16::from_str_radix(port, 16).ok())
        .collect())
}

/// The ports that a component's NetworkPolicy has rules for.
async fn with_a_rule(cluster: &Cluster, component: Component) -> Outcome<BTreeSet<u16>> {
    let policies: Api<NetworkPolicy> = Api::namespaced(cluster.client.clone(), SYSTEM_NAMESPACE);
    let policy = policies.get(component.name()).await?;
    let rules = policy
        .spec
        .and_then(|spec| spec.ingress)
        .unwrap_or_default();
    Ok(rules
        .into_iter()
        .flat_map(|rule| rule.ports.unwrap_or_default())
        .filter_map(|port| match port.port? {
            IntOrString::Int(port) => u16::try_from(port).ok(),
            IntOrString::String(_) => None,
        })
        .collect())
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn programs_listen_on_the_ports_that_their_network_policies_name_and_on_no_other() -> Outcome
{
    let cluster = Cluster::connect().await?;
    cluster.product_is_ready().await?;
    for (component, ports) in [
        (Component::Operator, &[ENROLMENT_PORT, HEALTH_PORT][..]),
        (
            Component::Agent,
            &[CONTROL_PORT, DATA_PORT, HEALTH_PORT][..],
        ),
    ] {
        let expected: BTreeSet<u16> = ports.iter().copied().collect();
        let with_a_rule = with_a_rule(&cluster, component).await?;
        assert_eq!(with_a_rule, expected, "rules for {}", component.name());
        for pod in cluster.pods(component).await? {
            let name = &pod.metadata.name;
            assert_eq!(listening(&cluster, &pod).await?, expected, "{name:?}");
        }
    }
    Ok(())
}
