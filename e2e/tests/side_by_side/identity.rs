//! A name means one content, for ever; a number is given out once.

use icbd_crds::{ConditionType, Origin, Reason, ReplicaState, TransferMode};
use icbd_e2e::{Outcome, Scenario, bytes_sent, replica, selecting, within};
use serde_json::json;
use std::time::Duration;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_same_name_applied_again_binds_to_the_same_content() -> Outcome {
    Scenario::run("again", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let before = s.replicated("first").await?.status.unwrap_or_default();
        s.delete(&s.snapshots(), "first").await?;
        s.gone(&s.snapshots(), "first").await?;
        s.write_live("node-1", "disk", "echo later > later").await?;

        s.snapshot("first", json!({"image": "disk"})).await?;
        let again = s.replicated("first").await?;
        let after = again.status.clone().unwrap_or_default();
        assert_eq!((after.number, &after.uuid), (before.number, &before.uuid));
        assert_eq!(after.taken_at, before.taken_at);
        assert_eq!(bytes_sent(&again), 0, "data moved that was there");
        for node in ["node-2", "node-3"] {
            assert_eq!(
                replica(&again, node).and_then(|row| row.mode),
                Some(TransferMode::None)
            );
        }
        s.numbers_become("disk", &NODES, &[1]).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_deleted_number_is_not_given_out_again() -> Outcome {
    Scenario::run("numbers", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        for name in ["one", "two"] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": "Delete"}))
                .await?;
            s.replicated(name).await?;
        }
        s.delete(&s.snapshots(), "two").await?;
        s.gone(&s.snapshots(), "two").await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1])
            .await?;
        // The name is free again and means other content; the number is used up.
        s.snapshot("two", json!({"image": "disk"})).await?;
        let two = s.replicated("two").await?;
        assert_eq!(two.status.and_then(|status| status.number), Some(3));
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 3])
            .await
    })
    .await
}

/// A pool as iCBD-Replication, or a person with btrfs-progs, leaves it.
async fn numbered_snapshots_on_disk(s: &Scenario) -> Outcome {
    s.write_live("node-1", "disk", "head -c 300000 /dev/urandom > disk.img")
        .await?;
    let by_hand = "btrfs subvolume snapshot -r . ../4 >/dev/null
         echo more > more
         btrfs subvolume snapshot -r . ../7 >/dev/null";
    s.write_live("node-1", "disk", by_hand).await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn numbered_snapshots_that_exist_are_adopted_and_replicated() -> Outcome {
    Scenario::run("adopt", async |s| {
        numbered_snapshots_on_disk(s).await?;
        let uuid = s
            .node("node-1")
            .uuid(&format!("{}/4", s.dir("disk")))
            .await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        for (name, number) in [("disk-4", 4), ("disk-7", 7)] {
            let status = s.replicated(name).await?.status.unwrap_or_default();
            assert_eq!(status.number, Some(number));
            assert_eq!(status.origin, Some(Origin::Adopted));
        }
        let adopted = s.snapshots().get("disk-4").await?;
        assert_eq!(adopted.status.and_then(|status| status.uuid), Some(uuid));
        let image = s.images().get("disk").await?;
        assert_eq!(
            image.status.and_then(|status| status.adopted_through),
            Some(7)
        );
        s.numbers_become("disk", &NODES, &[4, 7]).await?;
        for number in [4, 7] {
            s.same_content("disk", number, &NODES).await?;
        }
        s.snapshot("next", json!({"image": "disk"})).await?;
        let next = s.replicated("next").await?;
        assert_eq!(next.status.and_then(|status| status.number), Some(8));
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn an_adopted_snapshot_deleted_as_an_object_is_not_adopted_again() -> Outcome {
    Scenario::run("adopt-once", async |s| {
        numbered_snapshots_on_disk(s).await?;
        s.target(json!({"nodes": selecting(&["node-2"])})).await?;
        s.image("disk", "node-1", json!({})).await?;
        for name in ["disk-4", "disk-7"] {
            s.replicated(name).await?;
        }
        s.delete(&s.snapshots(), "disk-4").await?;
        s.gone(&s.snapshots(), "disk-4").await?;
        // Whatever the operator would do about it, it does before it replicates this.
        s.snapshot("next", json!({"image": "disk"})).await?;
        s.replicated("next").await?;
        assert!(
            s.snapshots().get_opt("disk-4").await?.is_none(),
            "adopted again"
        );
        s.numbers_become("disk", &["node-1", "node-2"], &[4, 7, 8])
            .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_number_binds_a_name_to_a_snapshot_that_exists() -> Outcome {
    Scenario::run("bind", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.image_says("disk", ConditionType::Ready, Reason::Available)
            .await?;
        let by_hand = "btrfs subvolume snapshot -r . ../5 >/dev/null";
        s.write_live("node-1", "disk", by_hand).await?;
        s.snapshot("five", json!({"image": "disk", "number": 5}))
            .await?;
        let five = s.replicated("five").await?;
        assert_eq!(five.status.and_then(|status| status.number), Some(5));
        s.same_content("disk", 5, &["node-1", "node-2"]).await?;

        s.snapshot("five-too", json!({"image": "disk", "number": 5}))
            .await?;
        let message = s
            .snapshot_says("five-too", ConditionType::Ready, Reason::NumberBound)
            .await?;
        assert!(
            message.contains("five"),
            "does not name the owner: {message}"
        );
        s.snapshot("nine", json!({"image": "disk", "number": 9}))
            .await?;
        let message = s
            .snapshot_says("nine", ConditionType::Ready, Reason::SnapshotNotFound)
            .await?;
        assert!(message.contains('9'), "does not name the number: {message}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn other_content_under_the_same_number_is_a_conflict_and_stays() -> Outcome {
    Scenario::run("conflict", async |s| {
        numbered_snapshots_on_disk(s).await?;
        s.write_live("node-2", "disk", "echo mine > mine").await?;
        s.write_live(
            "node-2",
            "disk",
            "btrfs subvolume snapshot -r . ../4 >/dev/null",
        )
        .await?;
        let path = format!("{}/4", s.dir("disk"));
        let (ours, theirs) = (
            s.node("node-1").uuid(&path).await?,
            s.node("node-2").uuid(&path).await?,
        );
        let before = s.node("node-2").digest(&path).await?;

        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        let conflict = s
            .until(&s.snapshots(), "disk-4", "conflict on node-2", |snapshot| {
                replica(snapshot, "node-2").is_some_and(|row| row.state == ReplicaState::Conflict)
            })
            .await?;
        let message = replica(&conflict, "node-2").and_then(|row| row.message.clone());
        let message = message.unwrap_or_default();
        for uuid in [&ours, &theirs] {
            assert!(
                message.contains(uuid.as_str()),
                "{uuid} is not in: {message}"
            );
        }
        // The other replica does not suffer, and the evidence stays.
        s.numbers_become("disk", &["node-3"], &[4, 7]).await?;
        s.same_content("disk", 4, &["node-1", "node-3"]).await?;
        assert_eq!(s.node("node-2").uuid(&path).await?, theirs);
        assert_eq!(s.node("node-2").digest(&path).await?, before);
        s.snapshot_says("disk-4", ConditionType::Stalled, Reason::Conflict)
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_replica_that_shares_nothing_waits_for_consent_to_a_full_transfer() -> Outcome {
    Scenario::run("lineage", async |s| {
        s.write_live("node-2", "disk", "echo other > other").await?;
        s.write_live(
            "node-2",
            "disk",
            "btrfs subvolume snapshot -r . ../1 >/dev/null",
        )
        .await?;
        s.seen_by_the_operator("node-2").await?;
        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.until(&s.snapshots(), "first", "a broken lineage", |snapshot| {
            replica(snapshot, "node-2").is_some_and(|row| row.state == ReplicaState::LineageBroken)
        })
        .await?;
        s.image("disk", "node-1", json!({"fullTransfers": "Always"}))
            .await?;
        let first = s.replicated("first").await?;
        assert_eq!(
            replica(&first, "node-2").and_then(|row| row.mode),
            Some(TransferMode::Full)
        );
        let number = first
            .status
            .and_then(|status| status.number)
            .unwrap_or_default();
        s.same_content("disk", number, &["node-1", "node-2"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn data_that_is_lost_is_said_to_be_and_never_taken_anew() -> Outcome {
    Scenario::run("lost", async |s| {
        s.disk_on_node_1(&["node-1"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_is("first", ConditionType::Taken).await?;
        s.node("node-1")
            .sh(&format!("btrfs subvolume delete {}/1", s.dir("disk")))
            .await?;
        s.snapshot_is("first", ConditionType::Expired).await?;
        // A snapshot that is taken now shows that the operator is past it.
        s.snapshot("second", json!({"image": "disk"})).await?;
        s.snapshot_is("second", ConditionType::Taken).await?;
        within(Duration::ZERO, "the lost number to stay free", async || {
            let numbers = s.node("node-1").numbers(&s.dir("disk")).await?;
            Ok(if numbers == [2] {
                Ok(())
            } else {
                Err(format!("{numbers:?}"))
            })
        })
        .await
    })
    .await
}
