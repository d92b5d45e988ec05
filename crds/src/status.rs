//! What the three kinds' statuses have in common: conditions by type, and the deletion policy.

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The types of conditions, one list for the three kinds. `Ready`, `Reconciling` and `Stalled` are
/// those of kstatus, which Flux and `kubectl wait` go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object is what it says it should be. Of an image: accepted, and its primary serves; of a
    /// Snapshot: taken and replicated; of a target: all of its nodes can receive.
    Ready,
    /// Work goes on, or something is waited for that comes by itself.
    Reconciling,
    /// Nothing but an edit or a documented act by a person helps.
    Stalled,
    /// Of an image: every wanted replica holds the newest snapshot.
    UpToDate,
    /// Of a Snapshot: it exists on the primary.
    Taken,
    /// Of a Snapshot: as many replicas as are wanted were complete once. Never turns back.
    Replicated,
    /// Of a Snapshot: its data was there and is gone. It is never taken anew.
    Expired,
}

impl ConditionType {
    /// The type as it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            ConditionType::Ready => "Ready",
            ConditionType::Reconciling => "Reconciling",
            ConditionType::Stalled => "Stalled",
            ConditionType::UpToDate => "UpToDate",
            ConditionType::Taken => "Taken",
            ConditionType::Replicated => "Replicated",
            ConditionType::Expired => "Expired",
        }
    }
}

/// Finds a condition by its type.
pub fn condition(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions
        .iter()
        .find(|condition| condition.type_ == type_.as_str())
}

/// What deleting an object does to the data that it stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The data stays where it is; applying the object again finds it.
    #[default]
    Retain,
    /// The data is removed from every node. `live` is never touched.
    Delete,
}
