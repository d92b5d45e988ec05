//! The steps of docs/operations.md, "Using a replica after the primary is lost".

use icbd_crds::{Reason, TransferMode};
use icbd_e2e::{Outcome, replica, selecting};
use serde_json::json;

use crate::{NODES, alone};

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_replica_takes_over_when_the_primary_is_lost() -> Outcome {
    alone("lost", async |s| {
        s.write_live("node-1", "disk", "head -c 1M /dev/urandom > disk.img")
            .await?;
        s.target(json!({"nodes": selecting(&NODES)})).await?;
        s.image("disk", "node-1", json!({"minReplicas": 1})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.numbers_become("disk", &NODES, &[1]).await?;
        s.cluster.stop("node-1").await?;
        s.node_row_says("node-1", Reason::AgentUnreachable).await?;

        s.delete(&s.images(), "disk").await?;
        s.gone(&s.images(), "disk").await?;
        let dir = s.dir("disk");
        s.node("node-2")
            .sh(&format!("btrfs subvolume snapshot {dir}/1 {dir}/live"))
            .await?;
        s.image("disk", "node-2", json!({"minReplicas": 1})).await?;
        s.write_live("node-2", "disk", "echo on the new primary > news")
            .await?;
        s.snapshot("second", json!({"image": "disk"})).await?;
        let second = s.replicated("second").await?;
        let row = replica(&second, "node-3");
        assert_eq!(
            row.and_then(|row| row.mode),
            Some(TransferMode::Incremental)
        );
        s.same_content("disk", 2, &["node-2", "node-3"]).await?;
        // The first is where it was, under the same name.
        let first = s.replicated("first").await?;
        assert_eq!(first.status.and_then(|status| status.number), Some(1));

        // The old primary returns as a replica; its `live` stays as it was.
        s.cluster.start("node-1").await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;
        s.same_content("disk", 2, &NODES).await?;
        s.node("node-1")
            .sh(&format!("[ -d {dir}/live ] && [ ! -e {dir}/live/news ]"))
            .await?;
        Ok(())
    })
    .await
}
