//! Tenants: what a target allows them, how much of it, and that they do not get in each other's
//! way.

use icbd_crds::{ConditionType, Reason, ReplicaState, Snapshot};
use icbd_e2e::{Outcome, Scenario, bytes_sent, replica, selecting};
use serde_json::json;

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_target_that_does_not_allow_the_primary_is_named_and_used_when_it_does() -> Outcome {
    Scenario::run("primaries", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        let allowing = |primaries: &[&str]| {
            json!({"nodes": selecting(&["node-2"]), "allowedPrimaries": selecting(primaries)})
        };
        s.target(allowing(&["node-3"])).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_is("first", ConditionType::Taken).await?;
        let message = s
            .snapshot_says(
                "first",
                ConditionType::Replicated,
                Reason::PrimaryNotAllowed,
            )
            .await?;
        assert!(
            message.contains("node-1") && message.contains(&s.namespace),
            "{message}"
        );
        // It waits for an administrator, who may yet allow it: nothing has failed.
        for type_ in [ConditionType::Ready, ConditionType::Reconciling] {
            s.image_says("disk", type_, Reason::PrimaryNotAllowed)
                .await?;
        }
        assert_eq!(
            s.node("node-2").numbers(&s.dir("disk")).await?,
            [] as [u64; 0]
        );
        s.target(allowing(&["node-1", "node-3"])).await?;
        s.replicated("first").await?;
        s.same_content("disk", 1, &["node-1", "node-2"])
            .await
            .map(drop)
    })
    .await
}

/// Waits until a Snapshot's replica on node-2 is withheld for the quota; what its row says.
async fn withheld(s: &Scenario, name: &str) -> Outcome<String> {
    let over = |snapshot: &Snapshot| {
        replica(snapshot, "node-2").is_some_and(|row| {
            row.state == ReplicaState::Pending
                && row.reason.as_deref() == Some(Reason::QuotaExceeded.as_str())
        })
    };
    let snapshot = s.until(&s.snapshots(), name, "withheld", over).await?;
    assert_eq!(bytes_sent(&snapshot), 0, "{:?}", snapshot.status);
    let row = replica(&snapshot, "node-2").and_then(|row| row.message.clone());
    Ok(row.unwrap_or_default())
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_namespace_at_its_quota_waits_until_it_has_room_and_keeps_what_it_has() -> Outcome {
    Scenario::run("quota", async |s| {
        let write = "head -c 8M /dev/urandom > disk.img";
        for image in ["disk", "other"] {
            s.write_live("node-1", image, write).await?;
        }
        // Two such snapshots and a half.
        let target = |quota| json!({"nodes": selecting(&["node-2"]), "namespaceQuota": quota});
        s.target(target("20Mi")).await?;
        s.image("disk", "node-1", json!({})).await?;
        s.image("other", "node-1", json!({})).await?;
        for name in ["first", "second"] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": "Delete"}))
                .await?;
            s.replicated(name).await?;
        }
        // Of another image, but of the same namespace.
        s.snapshot("third", json!({"image": "other"})).await?;
        let message = withheld(s, "third").await?;
        for figure in [8 << 20, 16 << 20, 20 << 20].map(|bytes: u64| bytes.to_string()) {
            assert!(message.contains(&figure), "{figure} is not in: {message}");
        }
        s.snapshot_says("third", ConditionType::Replicated, Reason::QuotaExceeded)
            .await?;
        s.snapshot_says("third", ConditionType::Reconciling, Reason::QuotaExceeded)
            .await?;
        // Nothing is deleted for it, also when it is lowered.
        s.target(target("1Mi")).await?;
        withheld(s, "third").await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 2])
            .await?;
        assert_eq!(
            s.node("node-2").numbers(&s.dir("other")).await?,
            [] as [u64; 0]
        );
        s.target(target("20Mi")).await?;
        s.delete(&s.snapshots(), "first").await?;
        s.replicated("third").await?;
        s.same_content("other", 1, &["node-1", "node-2"]).await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[2]).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn images_of_one_name_in_two_namespaces_stay_apart() -> Outcome {
    Scenario::run("left", async |left| {
        Scenario::run("right", async |right| {
            for s in [left, right] {
                s.disk_on_node_1(&["node-2"]).await?;
                s.snapshot(
                    "golden",
                    json!({"image": "disk", "deletionPolicy": "Delete"}),
                )
                .await?;
                s.replicated("golden").await?;
            }
            let nodes = ["node-1", "node-2"];
            let ours = left.same_content("disk", 1, &nodes).await?;
            let theirs = right.same_content("disk", 1, &nodes).await?;
            assert_ne!(ours, theirs, "one got the other's content");
            // The name and number that one deletes, the other keeps.
            left.snapshot("next", json!({"image": "disk"})).await?;
            left.replicated("next").await?;
            left.delete(&left.snapshots(), "golden").await?;
            left.gone(&left.snapshots(), "golden").await?;
            left.numbers_become("disk", &nodes, &[2]).await?;
            right.replicated("golden").await?;
            right.numbers_become("disk", &nodes, &[1]).await
        })
        .await
    })
    .await
}
