//! One test's own corner of the cluster: a namespace, a ReplicationTarget of the same name, images
//! on the nodes' pools. Gone when the test is over.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, resume_unwind};

use futures::FutureExt;
use icbd_crds::{ReplicationTarget, Snapshot, VMImage};
use k8s_openapi::api::core::v1::Namespace;
use kube::Resource;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::awaited::PATIENCE;
use crate::{Cluster, Node, Outcome, POOL, evidence, within};

/// One test's own corner of the cluster.
pub struct Scenario {
    /// The cluster.
    pub cluster: Cluster,
    /// The test's namespace, and the name of its ReplicationTarget.
    pub namespace: String,
}

/// A selector of nodes by their names.
pub fn selecting(nodes: &[&str]) -> Value {
    json!({"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}
    ]})
}

impl Scenario {
    /// Runs `test` in a namespace of its own. When it fails it prints what there is to see.
    /// Everything is removed at the end, unless `ICBD_E2E_KEEP` is set.
    ///
    /// # Errors
    /// What went wrong in the test, or in removing what it left.
    pub async fn run(story: &str, test: impl AsyncFnOnce(&Scenario) -> Outcome) -> Outcome {
        let cluster = Cluster::connect().await?;
        cluster.product_is_ready().await?;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let wanted = Namespace {
            metadata: kube::api::ObjectMeta {
                generate_name: Some(format!("e2e-{story}-")),
                ..Default::default()
            },
            ..Default::default()
        };
        let made = namespaces.create(&PostParams::default(), &wanted).await?;
        let scenario = Scenario {
            cluster,
            namespace: made.metadata.name.unwrap_or_default(),
        };
        let result = AssertUnwindSafe(test(&scenario)).catch_unwind().await;
        if !matches!(result, Ok(Ok(()))) {
            evidence::print(&scenario).await;
        }
        let cleaned = match std::env::var_os("ICBD_E2E_KEEP") {
            None => scenario.clean_up().await,
            Some(_) => Ok(()),
        };
        match result {
            Ok(outcome) => outcome.and(cleaned),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Deletes objects before data, so that nothing is re-sent meanwhile.
    async fn clean_up(&self) -> Outcome {
        self.delete_namespace().await?;
        let everything = ListParams::default();
        within(
            PATIENCE,
            "the objects of a deleted namespace to go",
            async || {
                let left = self.snapshots().list(&everything).await?.items.len()
                    + self.images().list(&everything).await?.items.len();
                Ok(if left == 0 {
                    Ok(())
                } else {
                    Err(format!("{left} objects"))
                })
            },
        )
        .await?;
        self.delete(&self.targets(), &self.namespace).await?;
        for node in ["node-1", "node-2", "node-3"] {
            self.cluster.node(node).purge(&self.namespace).await?;
        }
        Ok(())
    }

    /// Deletes the scenario's namespace and does not wait.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_namespace(&self) -> Outcome {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        self.delete(&namespaces, &self.namespace).await
    }

    /// A node, by its name.
    pub fn node<'a>(&'a self, name: &'a str) -> Node<'a> {
        self.cluster.node(name)
    }

    /// The directory of an image on any node.
    pub fn dir(&self, image: &str) -> String {
        format!("{POOL}/{}/{image}", self.namespace)
    }

    /// The scenario's VMImages.
    pub fn images(&self) -> Api<VMImage> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    /// The scenario's Snapshots.
    pub fn snapshots(&self) -> Api<Snapshot> {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    /// The cluster's ReplicationTargets.
    pub fn targets(&self) -> Api<ReplicationTarget> {
        Api::all(self.cluster.client.clone())
    }

    /// Makes the image directory on `node`, `live` in it unless it is there, and runs `script` in
    /// `live`.
    ///
    /// # Errors
    /// When the script fails.
    pub async fn write_live(&self, node: &str, image: &str, script: &str) -> Outcome {
        let dir = self.dir(image);
        let script = format!(
            "mkdir -p {dir}; cd {dir}
             [ -d live ] || btrfs subvolume create live >/dev/null
             cd live
             {script}"
        );
        self.node(node).sh(&script).await.map(drop)
    }

    /// Applies the scenario's ReplicationTarget, for its own namespace: `spec` says the rest.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn target(&self, mut spec: Value) -> Outcome {
        spec["allowedNamespaces"] =
            json!({"matchLabels": {"kubernetes.io/metadata.name": self.namespace}});
        self.apply(&self.targets(), &self.namespace, spec).await
    }

    /// Applies a VMImage on `primary` that uses the scenario's target: `spec` says the rest.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn image(&self, name: &str, primary: &str, mut spec: Value) -> Outcome {
        spec["primary"] = json!({"nodeName": primary});
        if spec.get("targets").is_none() {
            spec["targets"] = json!([{"name": self.namespace}]);
        }
        self.apply(&self.images(), name, spec).await
    }

    /// Applies a Snapshot.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn snapshot(&self, name: &str, spec: Value) -> Outcome {
        self.apply(&self.snapshots(), name, spec).await
    }

    /// The usual beginning: image `disk` with some content on node-1, and a target of `replicas`.
    ///
    /// # Errors
    /// When something of it is refused.
    pub async fn disk_on_node_1(&self, replicas: &[&str]) -> Outcome {
        self.write_live("node-1", "disk", "head -c 300000 /dev/urandom > disk.img")
            .await?;
        self.target(json!({"nodes": selecting(replicas)})).await?;
        self.image("disk", "node-1", json!({})).await
    }

    /// Server-side apply of a spec.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn apply<K>(&self, api: &Api<K>, name: &str, spec: Value) -> Outcome
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()),
            "metadata": {"name": name}, "spec": spec,
        });
        api.patch(
            name,
            &PatchParams::apply("e2e").force(),
            &Patch::Apply(object),
        )
        .await?;
        Ok(())
    }

    /// Sets annotations.
    ///
    /// # Errors
    /// When there is no such object.
    pub async fn annotate<K>(&self, api: &Api<K>, name: &str, annotations: Value) -> Outcome
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        let patch = json!({"metadata": {"annotations": annotations}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    /// Deletes an object, and does not wait; fine if it is not there.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete<K>(&self, api: &Api<K>, name: &str) -> Outcome
    where
        K: Resource + Clone + DeserializeOwned + Debug,
    {
        match api.delete(name, &DeleteParams::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
