//! What is known outlives every process that knows it.

use icbd_e2e::{Outcome, SYSTEM_NAMESPACE};
use serde_json::json;

use crate::{NODES, alone};

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_deleted_number_stays_used_over_restarts_and_a_second_leader() -> Outcome {
    alone("restarts", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        for name in ["one", "two", "three"] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": "Delete"}))
                .await?;
            s.replicated(name).await?;
        }
        s.delete(&s.snapshots(), "three").await?;
        s.gone(&s.snapshots(), "three").await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;

        for node in NODES {
            let agent = s.cluster.agent(node).await?;
            s.cluster.kill(&agent).await?;
        }
        let leader = s.cluster.leader().await?.metadata.name.unwrap_or_default();
        s.cluster
            .kubectl(&["delete", "pod", &leader, "-n", SYSTEM_NAMESPACE])
            .await?;
        s.cluster.product_is_ready().await?;
        assert_ne!(s.cluster.leader().await?.metadata.name, Some(leader));

        s.snapshot("four", json!({"image": "disk"})).await?;
        let four = s.replicated("four").await?;
        assert_eq!(four.status.and_then(|status| status.number), Some(4));
        s.numbers_become("disk", &NODES, &[1, 2, 4]).await?;
        s.same_content("disk", 4, &NODES).await.map(drop)
    })
    .await
}
