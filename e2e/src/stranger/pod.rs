//! The stranger's pod: in a scenario's namespace, with a ServiceAccount to which nothing is bound.

use icbd_crds::names::GROUP;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use serde_json::json;

use super::{Answer, Attempt, Flood, Flooded, Report, Task};
use crate::awaited::PATIENCE;
use crate::cluster::checkout;
use crate::{Failure, Outcome, Scenario, within};

const NAME: &str = "stranger";

/// A pod without rights.
pub struct Stranger<'a> {
    scenario: &'a Scenario,
}

impl Scenario {
    /// Starts the stranger's pod on a node.
    ///
    /// # Errors
    /// When it does not start: `hack/images --tests` builds its image.
    pub async fn stranger(&self, node: &str) -> Outcome<Stranger<'_>> {
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let pod = serde_json::from_value(json!({
            "metadata": {"name": NAME, "labels": {format!("{GROUP}/test"): NAME}},
            "spec": {
                "nodeName": node,
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": NAME, "image": image()?, "imagePullPolicy": "Never",
                    "command": ["icbd-stranger", "wait"],
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 65532, "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                }],
            },
        }))
        .map_err(|error| Failure::Unexpected(format!("the stranger's pod: {error}")))?;
        pods.create(&PostParams::default(), &pod).await?;
        within(PATIENCE, "the stranger's pod to run", async || {
            let status = pods.get(NAME).await?.status.unwrap_or_default();
            let ready = status.container_statuses.iter().flatten().any(|c| c.ready);
            Ok(if ready {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            })
        })
        .await?;
        Ok(Stranger { scenario: self })
    }
}

/// What `hack/images --tests` called it.
fn image() -> Outcome<String> {
    let tag = checkout().join("target/images/stranger.tag");
    let tag = std::fs::read_to_string(&tag).map_err(|error| {
        let tag = tag.display();
        Failure::Unexpected(format!("{tag}: {error}; hack/images --tests makes it"))
    })?;
    Ok(format!("localhost/icbd-stranger:{}", tag.trim()))
}

impl Stranger<'_> {
    /// The pod.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn pod(&self) -> Outcome<Pod> {
        let client = self.scenario.cluster.client.clone();
        let pods: Api<Pod> = Api::namespaced(client, &self.scenario.namespace);
        Ok(pods.get(NAME).await?)
    }

    /// Has it try something.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub async fn tries(&self, attempt: Attempt) -> Outcome<Answer> {
        match self.does(Task::Attempt(Box::new(attempt))).await? {
            Report::Attempt(answer) => Ok(answer),
            other => Err(Failure::Unexpected(format!("{other:?}"))),
        }
    }

    /// Has it flood somebody.
    ///
    /// # Errors
    /// When it cannot be told to.
    pub async fn floods(&self, flood: Flood) -> Outcome<Vec<Flooded>> {
        match self.does(Task::Flood(flood)).await? {
            Report::Flood(flooded) => Ok(flooded),
            other => Err(Failure::Unexpected(format!("{other:?}"))),
        }
    }

    async fn does(&self, task: Task) -> Outcome<Report> {
        let unexpected =
            |error: serde_json::Error| Failure::Unexpected(format!("stranger: {error}"));
        let task = serde_json::to_string(&task).map_err(unexpected)?;
        let namespace = self.scenario.namespace.as_str();
        let exec = ["exec", "-i", "-n", namespace, NAME, "--", "icbd-stranger"];
        let said = self.scenario.cluster.kubectl_with(&exec, &task).await?;
        serde_json::from_str(&said).map_err(unexpected)
    }
}
