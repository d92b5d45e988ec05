//! The kinds themselves deleted, as by a `kubectl delete` too many.

use icbd_crds::VMImage;
use icbd_e2e::{Outcome, bytes_sent, selecting};
use kube::ResourceExt;
use serde_json::json;

use crate::{NODES, alone};

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn deleting_the_kinds_with_a_node_away_hangs_nowhere_and_leaves_all_data() -> Outcome {
    alone("kinds", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        for (name, policy) in [("first", "Retain"), ("second", "Delete")] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": policy}))
                .await?;
            s.replicated(name).await?;
        }
        s.image("disk", "node-1", json!({"deletionPolicy": "Delete"}))
            .await?;
        let guarded = |image: &VMImage| !image.finalizers().is_empty();
        s.until(&s.images(), "disk", "guarded by its finalizer", guarded)
            .await?;
        let kinds = ["replicationtargets", "vmimages", "snapshots"]
            .map(|kind| format!("{kind}.{}", icbd_crds::names::GROUP));
        let delete = ["delete", "crd", "--timeout=120s"];
        // Nothing holds targets back. Who leads from now on meets a kind that is no more, and has
        // to let go of the others all the same.
        s.cluster
            .kubectl(&[&delete[..], &[&kinds[0]]].concat())
            .await?;
        let leader = s.cluster.leader().await?;
        s.cluster.kill(&leader).await?;
        s.cluster.stop("node-3").await?;
        s.cluster
            .kubectl(&[&delete[..], &[&kinds[1], &kinds[2]]].concat())
            .await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 2])
            .await?;
        s.cluster.start("node-3").await?;
        s.numbers_become("disk", &NODES, &[1, 2]).await?;

        let chart = s.cluster.chart();
        let upgrade = [
            "upgrade",
            "icbd",
            &chart,
            "--reuse-values",
            "--wait",
            "--timeout=3m",
        ];
        s.cluster.helm(&upgrade, "").await?;
        let mut wait = vec![
            "wait",
            "--for=condition=Established",
            "crd",
            "--timeout=60s",
        ];
        wait.extend(kinds.iter().map(String::as_str));
        s.cluster.kubectl(&wait).await?;
        s.target(json!({"nodes": selecting(&["node-2", "node-3"])}))
            .await?;
        s.image("disk", "node-1", json!({})).await?;
        for (name, number) in [("first", 1), ("second", 2)] {
            s.snapshot(name, json!({"image": "disk"})).await?;
            let snapshot = s.replicated(name).await?;
            assert_eq!(bytes_sent(&snapshot), 0, "data moved that was there");
            assert_eq!(
                snapshot.status.and_then(|status| status.number),
                Some(number)
            );
        }
        s.numbers_become("disk", &NODES, &[1, 2]).await
    })
    .await
}
