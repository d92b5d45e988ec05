//! `ReplicationTarget`: where replicas may go.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::selector::LabelSelector;
use crate::status::Condition;

/// A set of nodes that hold replicas, and the limits of getting them there. Cluster-scoped: an
/// administrator's object.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "replication.icbd.io",
    version = "v1alpha1",
    kind = "ReplicationTarget",
    singular = "replicationtarget",
    plural = "replicationtargets",
    shortname = "rtgt",
    category = "icbd",
    status = "ReplicationTargetStatus",
    derive = "PartialEq",
    doc = "A set of nodes that hold replicas, and the limits of getting them there.",
    printcolumn(
        name = "Nodes",
        type_ = "string",
        json_path = ".status.readyNodes",
        description = "Nodes that can receive, of those selected"
    ),
    printcolumn(name = "Suspended", type_ = "boolean", json_path = ".spec.suspend"),
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
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReplicationTargetSpec {
    /// Selects the Nodes that hold replicas. Every matching Node is wanted, ready or not; an
    /// image's primary is never its own replica. Example: `{matchLabels: {icbd.io/site: edge}}`.
    pub nodes: LabelSelector,
    /// Selects the namespaces whose images may use this target, by the labels of the Namespace.
    /// `{}` is all of them.
    pub allowed_namespaces: LabelSelector,
    /// Selects the Nodes that an image of this target may have as its primary, by their labels: an
    /// image whose primary is another gets no replicas from this target. Unset: all. Example:
    /// `{matchLabels: {icbd.io/trusted: "true"}}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_primaries: Option<LabelSelector>,
    /// Most bytes per second that each sending node puts on the wire for this target, with Ki, Mi,
    /// Gi, Ti or k, M, G, T. Unset: unlimited. Example: 50Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$') && isQuantity(self) && quantity(self).compareTo(quantity('1Ki')) >= 0")
        .message("bandwidth is whole bytes per second of at least 1Ki, such as 50Mi"))]
    pub bandwidth: Option<String>,
    /// Most transfers that each node of this target receives at once. Default: 2.
    #[serde(default = "max_concurrent_transfers")]
    #[schemars(range(min = 1, max = 64))]
    pub max_concurrent_transfers: u32,
    /// What must stay free on a receiving pool: a share of it, or bytes. A transfer that would
    /// leave less is refused before its first byte. Default: 10%. Example: 20Gi.
    #[serde(default = "min_free")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]|[1-9][0-9])%$') || (self.matches('^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$') && isQuantity(self))")
        .message("minFree is a share from 0% to 99%, or bytes such as 20Gi"))]
    pub min_free: String,
    /// Most bytes that the snapshots of one namespace may take on each node of this target. A
    /// transfer that would go beyond it is not started, and waits until there is room; what is there
    /// already stays. Counted are the bytes of file data that each snapshot in the namespace's
    /// directory refers to, in full and uncompressed, as if snapshots shared nothing; those arriving,
    /// with what they will refer to, and those of images that have the node as their primary too;
    /// not `live`. Unset: no limit. Example: 500Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+(Ki|Mi|Gi|Ti|k|M|G|T)?$') && isQuantity(self)")
        .message("namespaceQuota is whole bytes, such as 500Gi"))]
    pub namespace_quota: Option<String>,
    /// While true no transfer to this target is started; those that run go on.
    #[serde(default)]
    pub suspend: bool,
}

fn max_concurrent_transfers() -> u32 {
    2
}

fn min_free() -> String {
    "10%".to_owned()
}

/// What was last seen of a ReplicationTarget.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationTargetStatus {
    /// `Ready`, `Reconciling`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// One row a selected node, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    pub nodes: Vec<TargetNode>,
    /// Nodes that can receive, of those selected. Example: 3/3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_nodes: Option<String>,
}

/// One node of a target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetNode {
    /// Name of the Node.
    pub name: String,
    /// Whether it can receive.
    pub ready: bool,
    /// Why it cannot, in a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it cannot, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Which pool it is: file system and subvolume. Another one is another disk.
    #[serde(default, rename = "poolUUID", skip_serializing_if = "Option::is_none")]
    pub pool_uuid: Option<String>,
    /// Size of the pool, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u64>,
    /// Free in the pool, bytes; written anew when it has changed by more than a hundredth of the
    /// capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Images of which it holds at least one snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u32>,
    /// Since when its Node object is gone. It counts as wanted for 24 hours more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone_since: Option<Time>,
}
