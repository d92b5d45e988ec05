//! Bad input gets an answer that says what would be right, and things go on by themselves when
//! its cause is gone.

use icbd_crds::{ConditionType, Reason};
use icbd_e2e::{Observed, Outcome, POOL, Scenario, selecting};
use serde_json::json;

/// Manifests that are refused, each with what the refusal has to say.
const REFUSED: [(&str, &str); 14] = [
    (
        "kind: VMImage\nmetadata: {name: disk}\nspec: {}",
        "spec.primary: Required value",
    ),
    (
        "kind: VMImage\nmetadata: {name: disk}\nspec: {primary: {nodeName: node-1}, compression: Brotli}",
        "supported values: \"Auto\", \"None\", \"Snappy\", \"Lz4\", \"Zlib\", \"Zstd\"",
    ),
    (
        "kind: VMImage\nmetadata: {name: disk}\nspec: {primary: {nodeName: node-1}, deletionPolicy: Keep}",
        "supported values: \"Retain\", \"Delete\"",
    ),
    (
        "kind: VMImage\nmetadata: {name: disk}\nspec: {primary: {nodeName: node-1}, minReplicas: 0}",
        "should be greater than or equal to 1",
    ),
    (
        "kind: VMImage\nmetadata: {name: a-name-that-is-much-longer-than-what-fits-everywhere}\nspec: {primary: {nodeName: node-1}}",
        "at most 50 lower-case letters",
    ),
    (
        "kind: VMImage\nmetadata: {name: dotted.name}\nspec: {primary: {nodeName: node-1}}",
        "at most 50 lower-case letters",
    ),
    (
        "kind: VMImage\nmetadata: {name: disk}\nspec: {primary: {nodeName: node-1}, target: [edge]}",
        "unknown field \"spec.target\"",
    ),
    (
        "kind: Snapshot\nmetadata: {name: first}\nspec: {}",
        "spec.image: Required value",
    ),
    (
        "kind: Snapshot\nmetadata: {name: first}\nspec: {image: disk, number: 0}",
        "should be greater than or equal to 1",
    ),
    (
        "kind: ReplicationTarget\nmetadata: {name: bad}\nspec: {nodes: {}}",
        "spec.allowedNamespaces: Required value",
    ),
    (
        "kind: ReplicationTarget\nmetadata: {name: bad}\nspec: {nodes: {}, allowedNamespaces: {}, bandwidth: fast}",
        "such as 50Mi",
    ),
    (
        "kind: ReplicationTarget\nmetadata: {name: bad}\nspec: {nodes: {}, allowedNamespaces: {}, minFree: 120%}",
        "a share from 0% to 99%, or bytes such as 20Gi",
    ),
    (
        "kind: ReplicationTarget\nmetadata: {name: bad}\nspec: {nodes: {}, allowedNamespaces: {}, namespaceQuota: 10%}",
        "whole bytes, such as 500Gi",
    ),
    (
        "kind: ReplicationTarget\nmetadata: {name: bad}\nspec: {nodes: {}, allowedNamespaces: {}, allowedPrimaries: {matchExpressions: [{key: site, operator: In}]}}",
        "In and NotIn need at least one of values",
    ),
];

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn what_the_schema_forbids_is_refused_at_apply_with_what_would_be_right() -> Outcome {
    Scenario::run("schema", async |s| {
        for (manifest, says) in REFUSED {
            let manifest = format!("apiVersion: replication.icbd.io/v1alpha1\n{manifest}").replace(
                "metadata: {",
                &format!("metadata: {{namespace: {}, ", s.namespace),
            );
            let answer = s.cluster.kubectl_apply(&manifest).await?;
            assert!(!answer.status.success(), "taken: {manifest}");
            assert!(
                answer.stderr.contains(says),
                "{manifest}\n{says:?} is not in\n{}",
                answer.stderr
            );
        }
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn what_cannot_change_is_refused_at_edit_with_what_to_do() -> Outcome {
    Scenario::run("immutable", async |s| {
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let moved = s.image("disk", "node-2", json!({})).await;
        let refusal = moved.expect_err("the primary was changed").to_string();
        assert!(
            refusal.contains("apply it with the new primary"),
            "{refusal}"
        );
        let moved = s.snapshot("first", json!({"image": "other"})).await;
        let refusal = moved.expect_err("the image was changed").to_string();
        assert!(refusal.contains("create another Snapshot"), "{refusal}");
        let bound = s
            .snapshot("first", json!({"image": "disk", "number": 3}))
            .await;
        let refusal = bound.expect_err("the number was changed").to_string();
        assert!(refusal.contains("number is immutable"), "{refusal}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_primary_that_is_no_node_is_named() -> Outcome {
    Scenario::run("no-node", async |s| {
        s.image("disk", "node-77", json!({})).await?;
        let message = s
            .image_says("disk", ConditionType::Ready, Reason::NodeNotFound)
            .await?;
        assert!(message.contains("node-77"), "{message}");
        s.image_says("disk", ConditionType::Reconciling, Reason::NodeNotFound)
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_primary_without_live_is_told_so_and_goes_on_when_it_has_one() -> Outcome {
    Scenario::run("no-live", async |s| {
        let dir = s.dir("disk");
        s.node("node-1").sh(&format!("mkdir -p {dir}")).await?;
        s.target(json!({"nodes": selecting(&["node-2"])})).await?;
        s.image("disk", "node-1", json!({})).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        let message = s
            .snapshot_says("first", ConditionType::Ready, Reason::LiveNotFound)
            .await?;
        assert!(message.contains("live"), "{message}");
        s.write_live("node-1", "disk", "echo content > file")
            .await?;
        s.replicated("first").await?;
        s.same_content("disk", 1, &["node-1", "node-2"])
            .await
            .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_live_that_is_a_flipped_replica_is_no_source() -> Outcome {
    Scenario::run("flipped", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.replicated("first").await?;
        let (from, to) = (s.dir("disk"), s.dir("flipped"));
        // The ioctl that makes a subvolume writable, as old versions of `btrfs property` used it.
        let flip = format!(
            "mkdir -p {to}
             btrfs send -q {from}/1 | btrfs receive -q {to}
             mv {to}/1 {to}/live
             perl -e 'open(D, \"<\", shift); my $flags = pack(\"Q\", 0); ioctl(D, 0x4008941a, $flags) or die $!' {to}/live"
        );
        s.node("node-2").sh(&flip).await?;
        s.image("flipped", "node-2", json!({"targets": []})).await?;
        s.snapshot("second", json!({"image": "flipped"})).await?;
        let message = s.snapshot_says("second", ConditionType::Ready, Reason::LiveReceived).await?;
        assert!(message.contains("live"), "{message}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_target_that_does_not_allow_the_namespace_is_named_and_used_when_it_does() -> Outcome {
    Scenario::run("allowed", async |s| {
        s.disk_on_node_1(&["node-2"]).await?;
        let strangers = json!({"nodes": selecting(&["node-2"]),
            "allowedNamespaces": {"matchLabels": {"kubernetes.io/metadata.name": "nobody"}}});
        s.apply(&s.targets(), &s.namespace, strangers).await?;
        s.snapshot("first", json!({"image": "disk"})).await?;
        s.snapshot_is("first", ConditionType::Taken).await?;
        let message = s
            .snapshot_says(
                "first",
                ConditionType::Replicated,
                Reason::NamespaceNotAllowed,
            )
            .await?;
        assert!(message.contains(&s.namespace), "{message}");
        assert_eq!(
            s.node("node-2").numbers(&s.dir("disk")).await?,
            [] as [u64; 0]
        );
        s.target(json!({"nodes": selecting(&["node-2"])})).await?;
        s.replicated("first").await.map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn a_target_that_selects_nothing_says_so() -> Outcome {
    Scenario::run("selects-none", async |s| {
        s.target(json!({"nodes": selecting(&["node-77"])})).await?;
        s.until(&s.targets(), &s.namespace, "without nodes", |target| {
            target
                .conditions()
                .iter()
                .any(|c| c.reason == Reason::NoNodesSelected.as_str())
        })
        .await
        .map(drop)
    })
    .await
}

#[tokio::test]
#[ignore = "needs the test cluster"]
async fn names_that_look_like_paths_stay_within_their_directory() -> Outcome {
    Scenario::run("paths", async |s| {
        let outside = format!("{POOL}/outside");
        for image in ["..", "../outside", "a/b", ".meta"] {
            let manifest = format!(
                "apiVersion: replication.icbd.io/v1alpha1\nkind: VMImage\n\
                 metadata: {{namespace: {}, name: \"{image}\"}}\n\
                 spec: {{primary: {{nodeName: node-1}}}}",
                s.namespace
            );
            let answer = s.cluster.kubectl_apply(&manifest).await?;
            assert!(!answer.status.success(), "{image} was taken");
        }
        s.snapshot("first", json!({"image": "../outside"})).await?;
        s.snapshot_says("first", ConditionType::Ready, Reason::VMImageNotFound)
            .await?;
        s.node("node-1")
            .sh(&format!("[ ! -e {outside} ]"))
            .await
            .map(drop)
    })
    .await
}
