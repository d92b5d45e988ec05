//! `Snapshot`: one snapshot of an image, and how far its replicas are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::{Condition, DeletionPolicy};

/// One snapshot of a VMImage. Applying it takes the snapshot on the image's primary and has it
/// replicated. Its name means one content, for ever: applied again, it binds to the same data.
/// Snapshots are crash-consistent: what a VM finds after a power cut.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "replication.icbd.io",
    version = "v1alpha1",
    kind = "Snapshot",
    singular = "snapshot",
    plural = "snapshots",
    shortname = "isnap",
    category = "icbd",
    namespaced,
    status = "SnapshotStatus",
    derive = "PartialEq",
    doc = "One crash-consistent snapshot of a VMImage: applying it takes the snapshot and has it replicated.",
    selectable = ".spec.image",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Number", type_ = "integer", json_path = ".status.number"),
    printcolumn(
        name = "Replicated",
        type_ = "string",
        json_path = ".status.replicated",
        description = "Complete replicas, of those wanted"
    ),
    printcolumn(
        name = "Progress",
        type_ = "string",
        json_path = ".status.progress",
        description = "Of the slowest replica still moving"
    ),
    printcolumn(name = "Rate", type_ = "string", json_path = ".status.rate"),
    printcolumn(name = "Remaining", type_ = "string", json_path = ".status.remaining"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Taken",
        type_ = "date",
        json_path = ".status.takenAt",
        priority = 1
    ),
    printcolumn(
        name = "Bytes",
        type_ = "integer",
        json_path = ".status.bytes",
        priority = 1
    ),
    printcolumn(
        name = "Origin",
        type_ = "string",
        json_path = ".status.origin",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("has(self.number) == has(oldSelf.number)")
    .message("number is immutable: it binds a Snapshot to an existing snapshot once, when the Snapshot is created"))]
pub struct SnapshotSpec {
    /// The VMImage in this namespace. Immutable. Example: win11.
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("image is immutable: create another Snapshot"))]
    pub image: String,
    /// Binds this Snapshot to the numbered snapshot that exists on the primary, instead of taking
    /// a new one. Immutable. Unset: a new snapshot is taken and given the next number. Example: 17.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_u64))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("number is immutable: create another Snapshot"))]
    pub number: Option<u64>,
    /// What deleting this object does to the snapshot on all nodes. Default: Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What was last seen of a Snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// `Taken`, `Replicated`, `Ready`, `Reconciling`, `Stalled`, `Expired`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The snapshot's number; never given to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u64>,
    /// What identifies the content on every node: btrfs' received-uuid, else uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Who had it taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// Bytes that the snapshot references, shared with other snapshots or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Complete replicas, of those wanted. Example: 2/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicated: Option<String>,
    /// Of the slowest replica still moving. Example: 63%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Rate of the slowest replica still moving, before compression. Example: 310 MiB/s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Time that the slowest replica still moving is expected to take. Example: 1m20s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<String>,
    /// One row a wanted replica, at most 32; complete ones leave first beyond that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub replicas: Vec<SnapshotReplica>,
}

/// Who had a snapshot taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Origin {
    /// Somebody applied the Snapshot.
    User,
    /// The image's schedule.
    Schedule,
    /// It was on the primary's disk before the VMImage was applied.
    Adopted,
}

/// One replica of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotReplica {
    /// `node/<name>`.
    pub name: String,
    /// How far it is.
    pub state: ReplicaState,
    /// Why it is so, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it is so, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How the content got there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TransferMode>,
    /// Number of the snapshot against which the increment was computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<u64>,
    /// Bytes on the wire, over all attempts.
    #[serde(default)]
    pub bytes_sent: u64,
    /// Bytes of the stream that the receiver has, before compression.
    #[serde(default)]
    pub bytes_done: u64,
    /// Bytes of the whole stream, before compression; percent is of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes per second, before compression, over the last seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Seconds that the rest is expected to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
    /// When the latest attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the replica was seen complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Time>,
    /// Transfers begun for this replica.
    #[serde(default)]
    pub attempts: u32,
}

/// How far a replica of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ReplicaState {
    /// Nothing moves yet; the reason says what is waited for.
    Pending,
    /// Data is on its way.
    Transferring,
    /// The node holds the snapshot with the same content.
    Complete,
    /// The last attempt failed; it is tried again, ever less often.
    Failed,
    /// The node holds other content under this number. Nothing is overwritten.
    Conflict,
    /// The node holds snapshots of the image but shares none with the source, and the image does
    /// not allow full transfers then.
    LineageBroken,
}

/// How a replica's content got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TransferMode {
    /// All of it was sent.
    Full,
    /// The difference to `parent` was sent.
    Incremental,
    /// It was there already.
    None,
}
