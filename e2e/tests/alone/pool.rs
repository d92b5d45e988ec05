//! The pool's disk comes late, goes away, is another one: the reason shows, nothing is written to
//! the wrong file system, and all is right again by itself.

use icbd_crds::{Reason, ReplicaState, Snapshot, TransferMode};
use icbd_e2e::{Component, Outcome, POOL, Scenario, replica, selecting};
use serde_json::json;

use crate::{alone, mount_own_disk};

const UMOUNT: &str = "umount /var/lib/icbd/pool";

/// Asserts that the directory under the mount is as empty as it was made.
async fn nothing_is_written_without_a_pool(s: &Scenario) -> Outcome {
    let found = s.node("node-3").sh(&format!("ls -A {POOL}")).await?;
    assert_eq!(found, "", "written to the file system under the mount");
    Ok(())
}

async fn one_snapshot_on_node_3(s: &Scenario) -> Outcome {
    s.disk_on_node_1(&["node-3"]).await?;
    s.snapshot("first", json!({"image": "disk"})).await?;
    s.replicated("first").await.map(drop)
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_pool_unmounted_while_its_agent_runs_is_missed_and_found_again() -> Outcome {
    alone("unmounted", async |s| {
        one_snapshot_on_node_3(s).await?;
        // Nobody may keep an administrator from unmounting a disk.
        s.node("node-3").sh(UMOUNT).await?;
        let message = s.node_row_says("node-3", Reason::PoolNotMounted).await?;
        assert!(
            message.contains(POOL),
            "does not say where it looked: {message}"
        );
        s.snapshot("second", json!({"image": "disk"})).await?;
        let waits = |snapshot: &Snapshot| {
            replica(snapshot, "node-3")
                .is_some_and(|row| row.reason.as_deref() == Some("PoolNotMounted"))
        };
        s.until(&s.snapshots(), "second", "waiting for the pool", waits)
            .await?;
        nothing_is_written_without_a_pool(s).await?;

        mount_own_disk(&s.cluster, "node-3").await?;
        s.node_row_ready("node-3").await?;
        s.replicated("second").await?;
        s.same_content("disk", 2, &["node-1", "node-3"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_pool_mounted_after_its_agent_started_is_found() -> Outcome {
    alone("late", async |s| {
        one_snapshot_on_node_3(s).await?;
        s.node("node-3").sh(UMOUNT).await?;
        let agent = s.cluster.agent("node-3").await?;
        s.cluster.kill(&agent).await?;
        let restarted = async || {
            let pods = s.cluster.pods(Component::Agent).await?;
            let count = |pods: Vec<k8s_openapi::api::core::v1::Pod>| {
                pods.into_iter()
                    .find(|pod| pod.metadata.name == agent.metadata.name)
                    .and_then(|pod| Some(pod.status?.container_statuses?.first()?.restart_count))
            };
            let (was, is) = (count(vec![agent.clone()]), count(pods));
            Ok(if is > was {
                Ok(())
            } else {
                Err(format!("{was:?} restarts, now {is:?}"))
            })
        };
        let limit = std::time::Duration::from_secs(120);
        icbd_e2e::within(limit, "the agent to start anew", restarted).await?;
        s.node_row_says("node-3", Reason::PoolNotMounted).await?;
        s.snapshot("second", json!({"image": "disk"})).await?;
        s.snapshot_is("second", icbd_crds::ConditionType::Taken)
            .await?;
        nothing_is_written_without_a_pool(s).await?;

        mount_own_disk(&s.cluster, "node-3").await?;
        s.replicated("second").await?;
        s.same_content("disk", 2, &["node-1", "node-3"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_pool_swapped_for_another_disk_is_filled_anew_and_the_old_one_known_again() -> Outcome {
    alone("swapped", async |s| {
        one_snapshot_on_node_3(s).await?;
        let old = s.node_row_ready("node-3").await?.pool_uuid;
        let disk = s
            .cluster
            .state()
            .await?
            .join("node-3/other.img")
            .display()
            .to_string();
        let swap = format!(
            "truncate -s 1G {disk}; mkfs.btrfs -q -f {disk} >/dev/null
             {UMOUNT}; mount -o loop {disk} {POOL}"
        );
        s.node("node-3").sh(&swap).await?;
        // An empty pool is taken into use by itself, and known to be another one.
        let another = |target: &icbd_crds::ReplicationTarget| {
            target
                .status
                .iter()
                .flat_map(|status| &status.nodes)
                .any(|row| {
                    row.name == "node-3"
                        && row.ready
                        && row.pool_uuid.is_some()
                        && row.pool_uuid != old
                })
        };
        s.until(&s.targets(), &s.namespace, "another pool", another)
            .await?;
        s.numbers_become("disk", &["node-3"], &[1]).await?;
        s.same_content("disk", 1, &["node-1", "node-3"]).await?;
        let full = |snapshot: &Snapshot| {
            replica(snapshot, "node-3").is_some_and(|row| {
                row.state == ReplicaState::Complete && row.mode == Some(TransferMode::Full)
            })
        };
        s.until(&s.snapshots(), "first", "filled anew", full)
            .await?;

        s.node("node-3").sh(&format!("{UMOUNT}; rm {disk}")).await?;
        mount_own_disk(&s.cluster, "node-3").await?;
        let back = |target: &icbd_crds::ReplicationTarget| {
            target
                .status
                .iter()
                .flat_map(|status| &status.nodes)
                .any(|row| row.name == "node-3" && row.ready && row.pool_uuid == old)
        };
        s.until(&s.targets(), &s.namespace, "the old pool", back)
            .await?;
        s.snapshot("second", json!({"image": "disk"})).await?;
        let second = s.replicated("second").await?;
        let mode = replica(&second, "node-3").and_then(|row| row.mode);
        assert_eq!(mode, Some(TransferMode::Incremental));
        s.same_content("disk", 2, &["node-1", "node-3"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_pool_that_is_no_btrfs_is_told_and_left_alone() -> Outcome {
    alone("tmpfs", async |s| {
        s.disk_on_node_1(&["node-3"]).await?;
        s.node("node-3")
            .sh(&format!("{UMOUNT}; mount -t tmpfs tmpfs {POOL}"))
            .await?;
        let message = s.node_row_says("node-3", Reason::PoolNotBtrfs).await?;
        assert!(
            message.contains(POOL),
            "does not say where it looked: {message}"
        );
        let agent = s
            .cluster
            .agent("node-3")
            .await?
            .metadata
            .name
            .unwrap_or_default();
        let wait = [
            "wait",
            "--for=condition=Ready=false",
            "pod",
            &agent,
            "--timeout=60s",
        ];
        s.cluster
            .kubectl(&[&wait[..], &["-n", icbd_e2e::SYSTEM_NAMESPACE]].concat())
            .await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_is("first", icbd_crds::ConditionType::Taken)
            .await?;
        nothing_is_written_without_a_pool(s).await?;
        s.node("node-3").sh(UMOUNT).await?;
        nothing_is_written_without_a_pool(s).await?;
        mount_own_disk(&s.cluster, "node-3").await?;
        s.replicated("first").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_used_or_foreign_pool_waits_for_consent() -> Outcome {
    alone("consent", async |s| {
        s.target(json!({"nodes": selecting(&["node-3"])})).await?;
        s.node_row_ready("node-3").await?;
        // Another disk, in use by somebody.
        let disk = s
            .cluster
            .state()
            .await?
            .join("node-3/used.img")
            .display()
            .to_string();
        // It gets its content before it is the pool, or it would be found empty.
        let swap = format!(
            "truncate -s 1G {disk}; mkfs.btrfs -q -f {disk} >/dev/null
             mkdir -p /run/used; mount -o loop {disk} /run/used; echo theirs > /run/used/theirs
             umount /run/used; {UMOUNT}; mount -o loop {disk} {POOL}"
        );
        s.node("node-3").sh(&swap).await?;
        s.node_row_says("node-3", Reason::PoolNotInitialised)
            .await?;
        let nodes = kube::Api::<k8s_openapi::api::core::v1::Node>::all(s.cluster.client.clone());
        s.annotate(
            &nodes,
            "node-3",
            json!({icbd_crds::names::INIT_POOL: "true"}),
        )
        .await?;
        s.node_row_ready("node-3").await?;
        s.annotate(&nodes, "node-3", json!({icbd_crds::names::INIT_POOL: null}))
            .await?;
        assert_eq!(
            s.node("node-3").sh(&format!("cat {POOL}/theirs")).await?,
            "theirs\n"
        );

        // The same disk, marked by another installation.
        let foreign = format!(
            "sed -i -E 's/(\"installation\": *)\"[^\"]*\"/\\1\"somebody-else\"/' {POOL}/.icbd-pool
             grep -q somebody-else {POOL}/.icbd-pool"
        );
        s.node("node-3").sh(&foreign).await?;
        let message = s.node_row_says("node-3", Reason::PoolForeign).await?;
        assert!(
            message.contains("somebody-else"),
            "does not name the owner: {message}"
        );
        let take = json!({icbd_crds::names::TAKE_OVER_POOL: "somebody-else"});
        s.annotate(&nodes, "node-3", take).await?;
        s.node_row_ready("node-3").await?;
        s.annotate(
            &nodes,
            "node-3",
            json!({icbd_crds::names::TAKE_OVER_POOL: null}),
        )
        .await?;

        s.node("node-3").sh(&format!("{UMOUNT}; rm {disk}")).await?;
        mount_own_disk(&s.cluster, "node-3").await
    })
    .await
}
