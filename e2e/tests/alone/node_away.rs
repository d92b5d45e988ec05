//! A node that is off holds nothing up, and catches up when it returns.

use icbd_crds::{ConditionType, Reason, names};
use icbd_e2e::{Outcome, bytes_sent};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ObjectMeta, PostParams};
use serde_json::json;

use crate::{NODES, alone};

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn deletions_do_not_wait_for_a_node_that_is_off() -> Outcome {
    alone("away", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        for (name, policy) in [
            ("first", "Retain"),
            ("second", "Retain"),
            ("third", "Delete"),
        ] {
            s.snapshot(name, json!({"image": "disk", "deletionPolicy": policy}))
                .await?;
            s.replicated(name).await?;
        }
        s.cluster.stop("node-3").await?;
        s.node_row_says("node-3", Reason::AgentUnreachable).await?;

        s.delete(&s.snapshots(), "third").await?;
        s.gone(&s.snapshots(), "third").await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 2])
            .await?;
        s.delete(&s.images(), "disk").await?;
        s.gone(&s.images(), "disk").await?;
        let namespaces: Api<Namespace> = Api::all(s.cluster.client.clone());
        let old = namespaces
            .get(&s.namespace)
            .await?
            .metadata
            .uid
            .unwrap_or_default();
        s.delete_namespace().await?;
        s.gone(&namespaces, &s.namespace).await?;
        s.numbers_become("disk", &["node-1", "node-2"], &[1, 2])
            .await?;

        s.cluster.start("node-3").await?;
        s.node_row_ready("node-3").await?;
        let again = Namespace {
            metadata: ObjectMeta {
                name: Some(s.namespace.clone()),
                annotations: Some([(names::ADOPT_FROM.to_owned(), old)].into()),
                ..Default::default()
            },
            ..Default::default()
        };
        namespaces.create(&PostParams::default(), &again).await?;
        s.image("disk", "node-1", json!({})).await?;
        for name in ["first", "second"] {
            s.snapshot(name, json!({"image": "disk"})).await?;
            let snapshot = s.replicated(name).await?;
            assert_eq!(bytes_sent(&snapshot), 0, "data moved that was there");
        }
        // What was deleted while the node was off goes there too.
        s.numbers_become("disk", &NODES, &[1, 2]).await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster to itself"]
async fn a_node_that_was_off_gets_what_it_missed() -> Outcome {
    alone("missed", async |s| {
        s.disk_on_node_1(&["node-2", "node-3"]).await?;
        s.image("disk", "node-1", json!({"minReplicas": 1})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.numbers_become("disk", &NODES, &[1]).await?;
        s.cluster.stop("node-3").await?;
        for name in ["second", "third"] {
            s.write_live("node-1", "disk", &format!("echo {name} > file"))
                .await?;
            s.snapshot(name, json!({"image": "disk"})).await?;
            // One of two replicas is enough for this image.
            s.replicated(name).await?;
        }
        s.image_says("disk", ConditionType::UpToDate, Reason::Lagging)
            .await?;
        s.cluster.start("node-3").await?;
        s.image_says("disk", ConditionType::UpToDate, Reason::UpToDate)
            .await?;
        s.numbers_become("disk", &NODES, &[1, 2, 3]).await?;
        for number in [2, 3] {
            s.same_content("disk", number, &NODES).await?;
        }
        Ok(())
    })
    .await
}
