//! Nodes that lend no pool: no agent runs there.

use icbd_crds::{ConditionType, Reason};
use icbd_e2e::{Outcome, Scenario, selecting};
use serde_json::json;

use crate::alone;

async fn lend_pool(s: &Scenario, node: &str, lends: bool) -> Outcome {
    let label = if lends {
        "icbd.io/pool=true"
    } else {
        "icbd.io/pool-"
    };
    s.cluster
        .kubectl(&["label", "node", node, "--overwrite", label])
        .await
        .map(drop)
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn nodes_without_an_agent_are_named_and_used_when_they_have_one() -> Outcome {
    alone("no-agent", async |s| {
        lend_pool(s, "node-3", false).await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.node_row_says("node-3", Reason::AgentNotFound).await?;
        s.write_live("node-3", "far", "echo content > file").await?;
        s.image("far", "node-3", json!({})).await?;
        let message = s
            .image_says("far", ConditionType::Ready, Reason::AgentNotFound)
            .await?;
        assert!(
            message.contains("node-3"),
            "does not name the node: {message}"
        );
        s.write_live("node-1", "near", "echo content > file")
            .await?;
        s.image("near", "node-1", json!({})).await?;
        for image in ["far", "near"] {
            s.snapshot(image, json!({"image": image})).await?;
            s.snapshot_says(image, ConditionType::Ready, Reason::AgentNotFound)
                .await?;
        }
        // The replica that has an agent does not wait for the one that has none.
        s.numbers_become("near", &["node-2"], &[1]).await?;

        lend_pool(s, "node-3", true).await?;
        for image in ["far", "near"] {
            s.replicated(image).await?;
        }
        s.same_content("far", 1, &["node-3", "node-2"]).await?;
        s.same_content("near", 1, &["node-1", "node-2", "node-3"])
            .await
            .map(drop)
    })
    .await
}
