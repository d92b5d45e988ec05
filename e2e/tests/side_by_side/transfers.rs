//! How much moves, and how fast a small change does.

use std::time::{Duration, Instant};

use icbd_crds::{ConditionType, ReplicaState, Snapshot, TransferMode};
use icbd_e2e::{Outcome, Scenario, bytes_sent, is_true, replica, selecting, within};
use kube::runtime::wait::await_condition;
use serde_json::json;

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_second_snapshot_sends_only_what_changed() -> Outcome {
    Scenario::run("increment", async |s| {
        s.write_live("node-1", "disk", "head -c 20M /dev/urandom > disk.img")
            .await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let first = s.replicated("first").await?;
        s.write_live(
            "node-1",
            "disk",
            "head -c 1M /dev/urandom | dd of=disk.img bs=1M seek=7 conv=notrunc status=none",
        )
        .await?;
        s.snapshot("second", json!({"image": "disk"})).await?;
        let second = s.replicated("second").await?;
        for node in ["node-2", "node-3"] {
            let (before, now) = (replica(&first, node), replica(&second, node));
            let mode = |row: Option<&icbd_crds::SnapshotReplica>| row.and_then(|r| r.mode);
            assert_eq!(mode(before), Some(TransferMode::Full));
            assert_eq!(mode(now), Some(TransferMode::Incremental));
            assert_eq!(now.and_then(|row| row.parent), Some(1));
        }
        assert!(
            bytes_sent(&second) < bytes_sent(&first) / 10,
            "{:?}",
            second.status
        );
        s.same_content("disk", 2, &["node-1", "node-2", "node-3"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn snapshots_applied_at_once_all_arrive() -> Outcome {
    Scenario::run("burst", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        for n in 1..=6 {
            s.snapshot(&format!("burst-{n}"), json!({"image": "disk"}))
                .await?;
        }
        for n in 1..=6 {
            s.replicated(&format!("burst-{n}")).await?;
        }
        let all = [1, 2, 3, 4, 5, 6];
        s.numbers_become("disk", &["node-1", "node-2", "node-3"], &all)
            .await?;
        for number in all {
            s.same_content("disk", number, &["node-1", "node-2", "node-3"])
                .await?;
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_full_pool_is_left_alone_and_tried_again_when_it_may() -> Outcome {
    Scenario::run("space", async |s| {
        s.write_live("node-1", "disk", "head -c 1M /dev/urandom > disk.img")
            .await?;
        let target = |min_free| json!({"nodes": selecting(&["node-2"]), "minFree": min_free});
        // No pool has as much free.
        s.target(target("9Ti")).await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let first = s
            .until(
                &s.snapshots(),
                "first",
                "refused for lack of space",
                |snapshot| {
                    replica(snapshot, "node-2")
                        .is_some_and(|row| row.reason.as_deref() == Some("InsufficientSpace"))
                },
            )
            .await?;
        assert_eq!(bytes_sent(&first), 0);
        assert_eq!(
            s.node("node-2").numbers(&s.dir("disk")).await?,
            [] as [u64; 0]
        );
        s.target(target("1Mi")).await?;
        s.replicated("first").await?;
        s.same_content("disk", 1, &["node-1", "node-2"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_suspended_image_takes_nothing_and_goes_on_afterwards() -> Outcome {
    Scenario::run("suspend", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.image("disk", "node-1", json!({"suspend": true})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_says("first", ConditionType::Ready, icbd_crds::Reason::Suspended)
            .await?;
        assert_eq!(
            s.node("node-1").numbers(&s.dir("disk")).await?,
            [] as [u64; 0]
        );
        s.image("disk", "node-1", json!({"suspend": false})).await?;
        s.replicated("first").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_snapshot_removed_by_hand_on_a_replica_is_sent_again() -> Outcome {
    Scenario::run("by-hand", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        s.node("node-2")
            .sh(&format!("btrfs subvolume delete {}/1", s.dir("disk")))
            .await?;
        s.numbers_become("disk", &["node-2"], &[1]).await?;
        s.same_content("disk", 1, &["node-1", "node-2"]).await?;
        let complete = |snapshot: &Snapshot| {
            replica(snapshot, "node-2").is_some_and(|row| row.state == ReplicaState::Complete)
        };
        s.until(&s.snapshots(), "first", "complete again", complete)
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_time_from_apply_to_replicated_of_small_changes_is_told() -> Outcome {
    Scenario::run("latency", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        let mut times = Vec::new();
        for n in 0..12 {
            let name = format!("small-{n}");
            s.write_live("node-1", "disk", &format!("echo {n} > change"))
                .await?;
            let started = Instant::now();
            s.snapshot(&name, json!({"image": "disk"})).await?;
            let replicated = |snapshot: Option<&Snapshot>| {
                snapshot
                    .and_then(|s| s.status.as_ref())
                    .is_some_and(|s| is_true(&s.conditions, ConditionType::Replicated))
            };
            let waited = await_condition(s.snapshots(), &name, replicated);
            let limit = Duration::from_secs(60);
            let seen = tokio::time::timeout(limit, waited).await;
            within(Duration::ZERO, &format!("{name} replicated"), async || {
                Ok(if matches!(seen, Ok(Ok(_))) {
                    Ok(())
                } else {
                    Err(format!("{limit:?} over"))
                })
            })
            .await?;
            // The first is a full transfer, and finds everything cold.
            if n > 0 {
                times.push(started.elapsed());
            }
        }
        times.sort_unstable();
        println!(
            "apply to Replicated on two nodes: median {:?}, slowest {:?}",
            times[times.len() / 2],
            times[times.len() - 1]
        );
        Ok(())
    })
    .await
}
