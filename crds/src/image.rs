//! `VMImage`: an image whose snapshots are replicated.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{Condition, DeletionPolicy};

/// A VM image, or any directory, whose numbered snapshots are kept on several nodes. On its
/// primary's pool it is the directory `<namespace>/<name>/`: `live` is what the VM writes to, and
/// `1`, `2`, `3` … are its read-only snapshots.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "replication.icbd.io",
    version = "v1alpha1",
    kind = "VMImage",
    singular = "vmimage",
    plural = "vmimages",
    shortname = "vimg",
    category = "icbd",
    namespaced,
    status = "VMImageStatus",
    derive = "PartialEq",
    doc = "A VM image, or any directory, whose numbered btrfs snapshots are kept on several nodes.",
    validation = Rule::new("self.metadata.name.size() <= 50 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of a VMImage has at most 50 lower-case letters, digits and dashes, and begins and ends with a letter or digit"),
    printcolumn(name = "Primary", type_ = "string", json_path = ".spec.primary.nodeName"),
    printcolumn(name = "Latest", type_ = "integer", json_path = ".status.latest.number", description = "Number of the newest snapshot"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.upToDate", description = "Replicas that hold the newest snapshot, of those wanted"),
    printcolumn(name = "Synced", type_ = "date", json_path = ".status.syncedThrough", description = "Lag: age of the newest snapshot that every wanted replica holds"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Snapshots", type_ = "integer", json_path = ".status.snapshots", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VMImageSpec {
    /// Where the image's `live` is and snapshots are taken. Immutable: an edit in Git must not be a
    /// failover. To use a replica after the primary is lost, delete the VMImage (deletionPolicy
    /// Retain) and apply it with the new primary.
    #[x_kube(validation = Rule::new("self == oldSelf").message("primary is immutable: delete the VMImage with deletionPolicy Retain and apply it with the new primary"))]
    pub primary: Primary,
    /// The ReplicationTargets whose nodes hold replicas. A node that several select holds one
    /// replica, and the stricter limits hold. Unset or empty: snapshots are taken, not replicated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<TargetReference>,
    /// How data is compressed between agents. Default: Auto.
    #[serde(default)]
    pub compression: Compression,
    /// How many complete replicas make a Snapshot `Replicated`. Unset: all that are wanted.
    /// Example: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: Option<u32>,
    /// When a snapshot may be sent in full. Default: WhenEmpty.
    #[serde(default)]
    pub full_transfers: FullTransfers,
    /// While true no new snapshot is taken and no transfer is started; those that run go on.
    #[serde(default)]
    pub suspend: bool,
    /// What deleting this object does to the image's snapshots on all nodes. Default: Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// The node that holds an image's `live`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Primary {
    /// Name of the Node. Example: node-1.
    #[schemars(length(min = 1, max = 253))]
    pub node_name: String,
}

/// A ReplicationTarget by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetReference {
    /// Name of the ReplicationTarget. Example: edge.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How data is compressed between agents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compression {
    /// The agents choose.
    #[default]
    Auto,
    /// None: for links faster than the CPUs.
    None,
    /// Snappy: little CPU.
    Snappy,
    /// LZ4: least CPU.
    Lz4,
    /// Zlib: compatible ratio, much CPU.
    Zlib,
    /// Zstandard: best ratio for its CPU, for slow links.
    Zstd,
}

/// When a snapshot may be sent in full.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FullTransfers {
    /// Only to a replica that holds no snapshot of the image. One that holds some, but shares none
    /// with the source, is LineageBroken until a person decides.
    #[default]
    WhenEmpty,
    /// Also to a replica that shares no snapshot with the source. It may cost as much space and
    /// traffic as the whole image, each time.
    Always,
}

/// What was last seen of a VMImage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VMImageStatus {
    /// `Ready`, `Reconciling`, `Stalled`, `UpToDate`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The newest snapshot on the primary that a Snapshot object stands for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<LatestSnapshot>,
    /// How many snapshots the primary holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u32>,
    /// One row a wanted replica, at most 32; those that are up to date leave first beyond that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub replicas: Vec<ImageReplica>,
    /// Replicas that hold the newest snapshot, of those wanted. Example: 2/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_to_date: Option<String>,
    /// When the newest snapshot was taken that every wanted replica holds; its age is the lag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synced_through: Option<Time>,
    /// Snapshots up to this number were on the primary when this object first met it, and were
    /// adopted. Adoption happens once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted_through: Option<u64>,
}

/// The newest snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatestSnapshot {
    /// Its number.
    pub number: u64,
    /// The Snapshot's name.
    pub name: String,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
}

/// One replica of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageReplica {
    /// `node/<name>`.
    pub name: String,
    /// Whether it holds the newest snapshot.
    pub up_to_date: bool,
    /// Number of the newest snapshot that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<u64>,
    /// How many of the image's snapshots it lacks.
    pub behind: u32,
    /// Why it is behind, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is behind, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
