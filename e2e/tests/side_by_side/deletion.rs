//! Deleting is narrow: what an object's deletionPolicy says, and never `live`.

use icbd_crds::{ConditionType, Reason, Snapshot, names};
use icbd_e2e::{Outcome, Scenario, bytes_sent, within};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::json;
use std::time::Duration;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// `live` is never touched: the same subvolume with the same content.
async fn live(s: &Scenario) -> Outcome<(String, String)> {
    let path = format!("{}/live", s.dir("disk"));
    let node = s.node("node-1");
    Ok((node.uuid(&path).await?, node.digest(&path).await?))
}

/// Two replicated snapshots of `disk`, `first` and `second`, with these policies.
async fn two_snapshots(s: &Scenario, policies: [&str; 2]) -> Outcome {
    s.disk_on_node_1(&["node-2", "node-3"]).await?;
    for (name, policy) in ["first", "second"].into_iter().zip(policies) {
        s.snapshot(name, json!({"image": "disk", "deletionPolicy": policy}))
            .await?;
        s.replicated(name).await?;
    }
    Ok(())
}

/// Everything applied again finds its data: no byte moves.
async fn binds_again_without_moving_data(s: &Scenario) -> Outcome {
    for (name, number) in [("first", 1), ("second", 2)] {
        s.snapshot(name, json!({"image": "disk"})).await?;
        let snapshot: Snapshot = s.replicated(name).await?;
        assert_eq!(bytes_sent(&snapshot), 0, "{:?}", snapshot.status);
        assert_eq!(
            snapshot.status.and_then(|status| status.number),
            Some(number)
        );
    }
    s.numbers_become("disk", &NODES, &[1, 2]).await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_snapshot_with_delete_goes_from_every_node_and_one_with_retain_stays() -> Outcome {
    Scenario::run("policies", async |s| {
        two_snapshots(s, ["Retain", "Delete"]).await?;
        let untouched = live(s).await?;
        for name in ["first", "second"] {
            s.delete(&s.snapshots(), name).await?;
            s.gone(&s.snapshots(), name).await?;
        }
        s.numbers_become("disk", &NODES, &[1]).await?;
        s.same_content("disk", 1, &NODES).await?;
        assert_eq!(live(s).await?, untouched);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn the_last_complete_copy_goes_only_with_consent() -> Outcome {
    Scenario::run("consent", async |s| {
        // The primary is no replica: what it has is the last copy.
        s.disk_on_node_1(&["node-1"]).await?;
        s.snapshot("only", json!({"image": "disk", "deletionPolicy": "Delete"}))
            .await?;
        s.snapshot_is("only", ConditionType::Taken).await?;
        s.delete(&s.snapshots(), "only").await?;
        let asked = |message: &str| message.contains(names::CONFIRM_DELETE);
        let message = s
            .snapshot_says("only", ConditionType::Ready, Reason::ConfirmationRequired)
            .await?;
        assert!(asked(&message), "does not say how to consent: {message}");
        s.numbers_become("disk", &["node-1"], &[1]).await?;

        s.annotate(
            &s.snapshots(),
            "only",
            json!({names::CONFIRM_DELETE: "disk"}),
        )
        .await?;
        s.gone(&s.snapshots(), "only").await?;
        s.numbers_become("disk", &["node-1"], &[]).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn an_image_deleted_with_retain_leaves_all_data_and_binds_again() -> Outcome {
    Scenario::run("image-retain", async |s| {
        two_snapshots(s, ["Retain", "Delete"]).await?;
        let untouched = live(s).await?;
        s.delete(&s.images(), "disk").await?;
        s.gone(&s.images(), "disk").await?;
        // Without its image a Snapshot's object may go and its data stays, whatever its policy.
        for name in ["first", "second"] {
            s.delete(&s.snapshots(), name).await?;
            s.gone(&s.snapshots(), name).await?;
        }
        s.numbers_become("disk", &NODES, &[1, 2]).await?;
        assert_eq!(live(s).await?, untouched);
        s.image("disk", "node-1", json!({})).await?;
        binds_again_without_moving_data(s).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn an_image_deleted_with_delete_leaves_only_live() -> Outcome {
    Scenario::run("image-delete", async |s| {
        two_snapshots(s, ["Retain", "Retain"]).await?;
        let untouched = live(s).await?;
        s.image("disk", "node-1", json!({"deletionPolicy": "Delete"}))
            .await?;
        let marked = |image: &icbd_crds::VMImage| {
            image
                .metadata
                .finalizers
                .as_ref()
                .is_some_and(|f| f.iter().any(|f| f == names::FINALIZER))
        };
        s.until(&s.images(), "disk", "guarded by its finalizer", marked)
            .await?;
        s.delete(&s.images(), "disk").await?;
        s.gone(&s.images(), "disk").await?;
        s.numbers_become("disk", &NODES, &[]).await?;
        assert_eq!(live(s).await?, untouched);
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_deleted_namespace_leaves_all_data_and_its_successor_gets_it_when_told_to() -> Outcome {
    Scenario::run("namespace", async |s| {
        two_snapshots(s, ["Retain", "Delete"]).await?;
        let untouched = live(s).await?;
        let namespaces: Api<Namespace> = Api::all(s.cluster.client.clone());
        let old = namespaces
            .get(&s.namespace)
            .await?
            .metadata
            .uid
            .unwrap_or_default();
        s.delete_namespace().await?;
        s.gone(&namespaces, &s.namespace).await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;
        assert_eq!(live(s).await?, untouched);

        let again = Namespace {
            metadata: ObjectMeta {
                name: Some(s.namespace.clone()),
                ..Default::default()
            },
            ..Default::default()
        };
        namespaces.create(&PostParams::default(), &again).await?;
        s.image("disk", "node-1", json!({})).await?;
        let message = s
            .image_says("disk", ConditionType::Stalled, Reason::NamespaceChanged)
            .await?;
        assert!(
            message.contains(&old),
            "does not name the former namespace's uid: {message}"
        );
        // Nothing of the former namespace is told to, or taken for, the new one.
        s.snapshot("stranger", json!({"image": "disk"})).await?;
        s.snapshot_says("stranger", ConditionType::Ready, Reason::NamespaceChanged)
            .await?;
        s.delete(&s.snapshots(), "stranger").await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;

        s.annotate(&namespaces, &s.namespace, json!({names::ADOPT_FROM: old}))
            .await?;
        binds_again_without_moving_data(s).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_snapshot_deleted_during_its_transfer_leaves_nothing_half_made() -> Outcome {
    Scenario::run("mid-delete", async |s| {
        s.write_live("node-1", "disk", "head -c 20M /dev/urandom > disk.img")
            .await?;
        s.target(json!({"nodes": icbd_e2e::selecting(&["node-2"]), "bandwidth": "1Mi"}))
            .await?;
        s.image("disk", "node-1", json!({"compression": "None"}))
            .await?;
        s.snapshot(
            "doomed",
            json!({"image": "disk", "deletionPolicy": "Delete"}),
        )
        .await?;
        s.annotate(
            &s.snapshots(),
            "doomed",
            json!({names::CONFIRM_DELETE: "disk"}),
        )
        .await?;
        let moving = |snapshot: &Snapshot| {
            icbd_e2e::replica(snapshot, "node-2").is_some_and(|row| row.bytes_done > 0)
        };
        s.until(&s.snapshots(), "doomed", "moving", moving).await?;
        s.delete(&s.snapshots(), "doomed").await?;
        s.gone(&s.snapshots(), "doomed").await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[]).await?;
        within(Duration::from_secs(60), "the partial to go", async || {
            let left = format!("ls -A {} | grep -v -x .meta || true", s.dir("disk"));
            let left = s.node("node-2").sh(&left).await?;
            Ok(if left.is_empty() { Ok(()) } else { Err(left) })
        })
        .await
    })
    .await
}
