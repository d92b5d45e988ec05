//! Upgrading, removing and installing again lose nothing and hang nowhere.

use icbd_crds::{Snapshot, TransferMode};
use icbd_e2e::{Outcome, bytes_sent, replica, selecting};
use serde_json::json;

use crate::{NODES, alone};

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn helm_upgrade_in_mid_transfer_loses_nothing() -> Outcome {
    alone("upgrade", async |s| {
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
            replica(snapshot, "node-2").is_some_and(|row| row.bytes_done > 1 << 20)
        };
        s.until(&s.snapshots(), "first", "moving", moving).await?;

        let chart = s.cluster.chart();
        let operator = format!("operator.podAnnotations.upgraded={}", s.namespace);
        let agent = format!("agent.podAnnotations.upgraded={}", s.namespace);
        let upgrade = [
            "upgrade",
            "icbd",
            &chart,
            "--reuse-values",
            "--wait",
            "--timeout=3m",
        ];
        s.cluster
            .helm(
                &[&upgrade[..], &["--set", &operator, "--set", &agent]].concat(),
                "",
            )
            .await?;
        s.cluster.product_is_ready().await?;
        s.replicated("first").await?;
        let digest = s.same_content("disk", 1, &["node-1", "node-2"]).await?;
        assert_eq!(
            watcher.seen().await?,
            [digest],
            "something else was seen under the number"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn helm_uninstall_and_install_again_lose_nothing_and_find_their_pools() -> Outcome {
    alone("reinstall", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        for (name, policy) in [("first", "Retain"), ("second", "Delete")] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": policy}))
                .await?;
        }
        let first = s.replicated("first").await?;
        s.replicated("second").await?;
        let pools = async || -> Outcome<Vec<_>> {
            let mut pools = Vec::new();
            for node in ["node-2", "node-3"] {
                pools.push(s.node_row_ready(node).await?.pool_uuid);
            }
            Ok(pools)
        };
        let before = pools().await?;
        let authority = s.cluster.signing().await?;
        assert!(authority.is_some());

        let values = s.cluster.uninstall().await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;
        s.snapshot("third", json!({"image": "disk"})).await?;

        s.cluster.install(&values, &[]).await?;
        let third = s.replicated("third").await?;
        for node in ["node-2", "node-3"] {
            let mode = replica(&third, node).and_then(|row| row.mode);
            assert_eq!(mode, Some(TransferMode::Incremental));
        }
        s.numbers_become("disk", &NODES, &[1, 2, 3]).await?;
        s.same_content("disk", 3, &NODES).await?;
        assert_eq!(pools().await?, before);
        assert_eq!(s.cluster.signing().await?, authority);
        let again = s.replicated("first").await?;
        assert_eq!(
            bytes_sent(&again),
            bytes_sent(&first),
            "data moved that was there"
        );
        Ok(())
    })
    .await
}
