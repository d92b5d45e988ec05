//! Level-triggered: in whatever order objects, labels and directories come, the end is the same.

use icbd_crds::{ConditionType, Reason};
use icbd_e2e::{Outcome, Scenario, selecting};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_snapshot_before_its_image_before_its_target_converges() -> Outcome {
    Scenario::run("order", async |s| {
        s.snapshot("first", json!({"image": "disk"})).await?;
        let message = s
            .snapshot_says("first", ConditionType::Ready, Reason::VMImageNotFound)
            .await?;
        assert!(
            message.contains("disk"),
            "does not name the image: {message}"
        );

        s.image("disk", "node-1", json!({})).await?;
        let message = s
            .image_says("disk", ConditionType::Ready, Reason::ImageNotFound)
            .await?;
        assert!(
            message.contains(&s.dir("disk")),
            "does not name the directory: {message}"
        );

        s.write_live("node-1", "disk", "head -c 200000 /dev/urandom > disk.img")
            .await?;
        s.snapshot_is("first", ConditionType::Taken).await?;
        let message = s
            .snapshot_says("first", ConditionType::Replicated, Reason::TargetNotFound)
            .await?;
        assert!(
            message.contains(&s.namespace),
            "does not name the target: {message}"
        );

        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.replicated("first").await?;
        s.same_content("disk", 1, &["node-1", "node-2", "node-3"])
            .await?;
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_node_labelled_later_gets_its_replica() -> Outcome {
    Scenario::run("label", async |s| {
        s.write_live("node-1", "disk", "head -c 200000 /dev/urandom > disk.img")
            .await?;
        let label = format!("e2e/{}", s.namespace);
        s.target(json!({"nodes": {"matchLabels": {label.as_str(): "yes"}}}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_says("first", ConditionType::Replicated, Reason::NoReplicasWanted)
            .await?;

        set_label(s, "node-3", &label, json!("yes")).await?;
        let first = s.replicated("first").await?;
        assert_eq!(
            first.status.and_then(|status| status.replicated).as_deref(),
            Some("1/1")
        );
        s.same_content("disk", 1, &["node-1", "node-3"]).await?;

        set_label(s, "node-3", &label, Value::Null).await
    })
    .await
}

async fn set_label(s: &Scenario, node: &str, label: &str, value: Value) -> Outcome {
    let nodes: Api<Node> = Api::all(s.cluster.client.clone());
    let patch = json!({"metadata": {"labels": {label: value}}});
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}
