//! Whatever is killed in the middle of a transfer, the replica ends equal to its source, and
//! nothing half-made is ever seen under a number.

use icbd_crds::Snapshot;
use icbd_e2e::{Outcome, Scenario, replica, selecting};
use serde_json::json;

use crate::alone;

const MIB: u64 = 1 << 20;

/// The second attempt goes on where the first was: at most three seconds are sent again, and not all
/// that had been.
async fn resumed(s: &Scenario) -> Outcome {
    let without_starting_over = |snapshot: &Snapshot| {
        replica(snapshot, "node-2")
            .is_some_and(|row| row.attempts >= 2 && row.bytes_sent < (16 + 7) * MIB)
    };
    s.until(&s.snapshots(), "first", "resumed", without_starting_over)
        .await
        .map(drop)
}

/// Begins a transfer to node-2 that takes some seconds, kills something while it runs, and sees
/// it through.
async fn killed_in_mid_transfer(s: &Scenario, kill: impl AsyncFnOnce() -> Outcome) -> Outcome {
    s.write_live("node-1", "disk", "head -c 16M /dev/urandom > disk.img")
        .await?;
    s.target(json!({"nodes": selecting(&["node-2"]), "bandwidth": "2Mi"}))
        .await?;
    s.image("disk", "node-1", json!({"compression": "None"}))
        .await?;
    let watcher = s
        .node("node-2")
        .watch_entry(&format!("{}/1", s.dir("disk")))
        .await?;
    s.snapshot("first", json!({"image": "disk"})).await?;
    let moving = |snapshot: &Snapshot| {
        replica(snapshot, "node-2").is_some_and(|row| row.bytes_done > 8 * MIB)
    };
    s.until(&s.snapshots(), "first", "moving", moving).await?;
    assert_eq!(
        s.node("node-2").numbers(&s.dir("disk")).await?,
        [] as [u64; 0]
    );
    kill().await?;

    s.replicated("first").await?;
    let digest = s.same_content("disk", 1, &["node-1", "node-2"]).await?;
    assert_eq!(
        watcher.seen().await?,
        [digest],
        "something else was seen under the number"
    );
    s.cluster.product_is_ready().await?;
    let partials = format!("ls -A {} | grep '^\\.partial' || true", s.dir("disk"));
    assert_eq!(s.node("node-2").sh(&partials).await?, "");
    Ok(())
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn an_operator_killed_in_mid_transfer_changes_nothing_of_its_end() -> Outcome {
    alone("kill-operator", async |s| {
        killed_in_mid_transfer(s, async || {
            let leader = s.cluster.leader().await?;
            s.cluster.kill(&leader).await
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn an_operator_deleted_in_mid_transfer_is_followed_by_another() -> Outcome {
    alone("next-leader", async |s| {
        killed_in_mid_transfer(s, async || {
            let leader = s.cluster.leader().await?.metadata.name.unwrap_or_default();
            let delete = ["delete", "pod", &leader, "-n", icbd_e2e::SYSTEM_NAMESPACE];
            s.cluster
                .kubectl(&[&delete[..], &["--grace-period=0", "--force"]].concat())
                .await?;
            let next = s.cluster.leader().await?.metadata.name.unwrap_or_default();
            assert_ne!(next, leader);
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_source_killed_in_mid_transfer_goes_on_where_it_was() -> Outcome {
    alone("kill-source", async |s| {
        killed_in_mid_transfer(s, async || {
            let source = s.cluster.agent("node-1").await?;
            s.cluster.kill(&source).await
        })
        .await?;
        resumed(s).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_receiver_killed_in_mid_transfer_goes_on_where_it_was() -> Outcome {
    alone("kill-receiver", async |s| {
        killed_in_mid_transfer(s, async || {
            let receiver = s.cluster.agent("node-2").await?;
            s.cluster.kill(&receiver).await
        })
        .await?;
        resumed(s).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_receiving_node_that_loses_power_in_mid_transfer_receives_again() -> Outcome {
    alone("power", async |s| {
        s.write_live("node-1", "disk", "head -c 16M /dev/urandom > disk.img")
            .await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"]), "bandwidth": "2Mi"}))
            .await?;
        s.image("disk", "node-1", json!({"compression": "None"}))
            .await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let moving = |snapshot: &Snapshot| {
            replica(snapshot, "node-3").is_some_and(|row| row.bytes_done > 1 << 20)
        };
        s.until(&s.snapshots(), "first", "moving", moving).await?;
        s.cluster.stop("node-3").await?;
        // The other replica does not wait for it.
        s.numbers_become("disk", &["node-2"], &[1]).await?;
        s.cluster.start("node-3").await?;
        s.replicated("first").await?;
        s.same_content("disk", 1, &["node-1", "node-2", "node-3"])
            .await
            .map(drop)
    })
    .await
}
