//! What a scenario waits for, and what it asserts of the nodes' pools.

use std::fmt::Debug;
use std::time::Duration;

use icbd_crds::{ConditionType, Reason, ReplicationTarget, Snapshot, TargetNode, condition};
use kube::Resource;
use kube::api::Api;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::status::{Observed, is_true};
use crate::{Failure, Outcome, Scenario, within};

/// Long enough for anything that these tests do, also while all of them run on two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

impl Scenario {
    /// Waits until an object is gone.
    ///
    /// # Errors
    /// When it stays.
    pub async fn gone<K>(&self, api: &Api<K>, name: &str) -> Outcome
    where
        K: Resource + Clone + DeserializeOwned + Debug + Serialize,
    {
        within(PATIENCE, &format!("{name} to be gone"), async || {
            Ok(match api.get_opt(name).await? {
                None => Ok(()),
                Some(object) => Err(shown(&object)),
            })
        })
        .await
    }

    /// Waits until an object is as it should be.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn until<K>(
        &self,
        api: &Api<K>,
        name: &str,
        what: &str,
        holds: impl Fn(&K) -> bool,
    ) -> Outcome<K>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Serialize,
    {
        within(PATIENCE, &format!("{name}: {what}"), async || {
            Ok(match api.get_opt(name).await? {
                None => Err("no such object".to_owned()),
                Some(object) if holds(&object) => Ok(object),
                Some(object) => Err(shown(&object)),
            })
        })
        .await
    }

    /// Waits until a condition of a Snapshot is True.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn snapshot_is(&self, name: &str, type_: ConditionType) -> Outcome<Snapshot> {
        self.until(&self.snapshots(), name, type_.as_str(), |snapshot| {
            is_true(snapshot.conditions(), type_)
        })
        .await
    }

    /// Waits until a Snapshot is replicated and every wanted replica is complete.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn replicated(&self, name: &str) -> Outcome<Snapshot> {
        self.snapshot_is(name, ConditionType::Replicated).await
    }

    /// Waits until a condition of a Snapshot has a reason, and returns what it tells people.
    ///
    /// # Errors
    /// When it does not get it.
    pub async fn snapshot_says(
        &self,
        name: &str,
        type_: ConditionType,
        reason: Reason,
    ) -> Outcome<String> {
        self.says(&self.snapshots(), name, type_, reason).await
    }

    /// Waits until a condition of a VMImage has a reason, and returns what it tells people.
    ///
    /// # Errors
    /// When it does not get it.
    pub async fn image_says(
        &self,
        name: &str,
        type_: ConditionType,
        reason: Reason,
    ) -> Outcome<String> {
        self.says(&self.images(), name, type_, reason).await
    }

    /// Waits until a condition of the scenario's target has a reason, and returns what it tells people.
    ///
    /// # Errors
    /// When it does not get it.
    pub async fn target_says(&self, type_: ConditionType, reason: Reason) -> Outcome<String> {
        self.says(&self.targets(), &self.namespace, type_, reason)
            .await
    }

    async fn says<K>(
        &self,
        api: &Api<K>,
        name: &str,
        type_: ConditionType,
        reason: Reason,
    ) -> Outcome<String>
    where
        K: Observed + Resource + Clone + DeserializeOwned + Debug + Serialize,
    {
        let what = format!("{} because of {reason}", type_.as_str());
        let found = |object: &K| {
            condition(object.conditions(), type_).is_some_and(|c| c.reason == reason.as_str())
        };
        let object = self.until(api, name, &what, found).await?;
        Ok(condition(object.conditions(), type_)
            .map(|c| c.message.clone())
            .unwrap_or_default())
    }

    /// Waits until the row of `node` in the scenario's target has a reason.
    ///
    /// # Errors
    /// When it does not get it.
    pub async fn node_row_says(&self, node: &str, reason: Reason) -> Outcome<String> {
        let what = format!("{node} because of {reason}");
        let holds = |target: &ReplicationTarget| {
            row(target, node)
                .is_some_and(|row| !row.ready && row.reason.as_deref() == Some(reason.as_str()))
        };
        let target = self
            .until(&self.targets(), &self.namespace, &what, holds)
            .await?;
        Ok(row(&target, node)
            .and_then(|row| row.message.clone())
            .unwrap_or_default())
    }

    /// Waits until the row of `node` in the scenario's target says that it can receive.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn node_row_ready(&self, node: &str) -> Outcome<TargetNode> {
        let holds = |target: &ReplicationTarget| row(target, node).is_some_and(|row| row.ready);
        let target = self
            .until(&self.targets(), &self.namespace, "node ready", holds)
            .await?;
        row(&target, node)
            .cloned()
            .ok_or_else(|| Failure::Unexpected(format!("{node} left the target")))
    }

    /// Waits until the operator has seen what is on a node's pool now: an image that comes into
    /// being after it is seen no earlier.
    ///
    /// # Errors
    /// When it looks away.
    pub async fn seen_by_the_operator(&self, node: &str) -> Outcome {
        self.write_live(node, "newest", "").await?;
        self.image("newest", node, json!({"targets": []})).await?;
        self.image_says("newest", ConditionType::Ready, Reason::Available)
            .await
            .map(drop)
    }

    /// Waits until nodes hold exactly these numbers of an image.
    ///
    /// # Errors
    /// When they do not come to.
    pub async fn numbers_become(&self, image: &str, nodes: &[&str], numbers: &[u64]) -> Outcome {
        let dir = self.dir(image);
        for name in nodes {
            let node = self.node(name);
            within(
                PATIENCE,
                &format!("{name} to hold {numbers:?} of {image}"),
                async || {
                    let found = node.numbers(&dir).await?;
                    Ok(if found == numbers {
                        Ok(())
                    } else {
                        Err(format!("{found:?}"))
                    })
                },
            )
            .await?;
        }
        Ok(())
    }

    /// Asserts that nodes hold a snapshot with the content that the first of them has, and
    /// returns its digest.
    ///
    /// # Errors
    /// When a node lacks it.
    pub async fn same_content(&self, image: &str, number: u64, nodes: &[&str]) -> Outcome<String> {
        let path = format!("{}/{number}", self.dir(image));
        let mut first: Option<String> = None;
        for name in nodes {
            let digest = self.node(name).digest(&path).await?;
            let expected = first.get_or_insert_with(|| digest.clone());
            assert_eq!(
                &digest, expected,
                "{path} on {name} differs from {}",
                nodes[0]
            );
        }
        Ok(first.unwrap_or_default())
    }
}

fn row<'a>(target: &'a ReplicationTarget, node: &str) -> Option<&'a TargetNode> {
    target
        .status
        .as_ref()?
        .nodes
        .iter()
        .find(|row| row.name == node)
}

/// An object as text, its status above all.
fn shown<K: Serialize>(object: &K) -> String {
    let value = serde_json::to_value(object).unwrap_or_default();
    value.get("status").unwrap_or(&value).to_string()
}
