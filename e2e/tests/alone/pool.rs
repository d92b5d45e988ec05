//! The pool's disk comes late, goes away, is another one: the reason shows, nothing is written to
//! the wrong file system, and all is right again by itself.

use std::time::Duration;

use icbd_crds::{Reason, ReplicaState, Snapshot, TransferMode};
use icbd_e2e::{Component, Outcome, POOL, Scenario, replica, selecting, within};
use serde_json::json;

use crate::{alone, mount_own_disk};

/// Unmounts the pool of node-3. A transfer that writes at this moment may delay it, no more.
async fn unmount(s: &Scenario) -> Outcome {
    within(
        Duration::from_secs(30),
        "the pool to be let go of",
        async || {
            let refusal = s
                .node("node-3")
                .sh(&format!("umount {POOL} 2>&1 || true"))
                .await?;
            Ok(if refusal.is_empty() {
                Ok(())
            } else {
                Err(refusal)
            })
        },
    )
    .await
}

/// Mounts a disk as the pool of node-3.
async fn mount(s: &Scenario, disk: &str) -> Outcome {
    s.node("node-3")
        .sh(&format!("mount -o loop {disk} {POOL}"))
        .await
        .map(drop)
}

/// Makes another disk for node-3, with a file on it that is not empty unless `content` is.
async fn another_disk(s: &Scenario, name: &str, content: &str) -> Outcome<String> {
    let disk = s
        .cluster
        .state()
        .await?
        .join("node-3")
        .join(name)
        .display()
        .to_string();
    let make = format!(
        "truncate -s 1G {disk}; mkfs.btrfs -q -f {disk} >/dev/null
         [ -n '{content}' ] || exit 0
         mkdir -p /run/another; mount -o loop {disk} /run/another
         echo {content} > /run/another/{content}; umount /run/another"
    );
    s.node("node-3").sh(&make).await?;
    Ok(disk)
}

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
        unmount(s).await?;
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
        unmount(s).await?;
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
        let limit = Duration::from_secs(120);
        within(limit, "the agent to start anew", restarted).await?;
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
        let disk = another_disk(s, "other.img", "").await?;
        unmount(s).await?;
        mount(s, &disk).await?;
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

        unmount(s).await?;
        s.node("node-3").sh(&format!("rm {disk}")).await?;
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
        unmount(s).await?;
        s.node("node-3")
            .sh(&format!("mount -t tmpfs tmpfs {POOL}"))
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
        unmount(s).await?;
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
        let disk = another_disk(s, "used.img", "theirs").await?;
        unmount(s).await?;
        mount(s, &disk).await?;
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

        unmount(s).await?;
        s.node("node-3").sh(&format!("rm {disk}")).await?;
        mount_own_disk(&s.cluster, "node-3").await
    })
    .await
}
