//! Reading statuses: conditions and replica rows.

use icbd_crds::{
    Condition, ConditionType, ReplicationTarget, Snapshot, SnapshotReplica, VMImage, condition,
};

/// A kind with conditions.
pub trait Observed {
    /// Its conditions; none while nobody has looked at it.
    fn conditions(&self) -> &[Condition];
}

macro_rules! observed {
    ($($kind:ty),*) => {
        $(impl Observed for $kind {
            fn conditions(&self) -> &[Condition] {
                self.status.as_ref().map_or(&[], |status| &status.conditions)
            }
        })*
    };
}

observed!(ReplicationTarget, Snapshot, VMImage);

/// Whether a condition is True.
pub fn is_true(conditions: &[Condition], type_: ConditionType) -> bool {
    condition(conditions, type_).is_some_and(|c| c.status == "True")
}

/// A Snapshot's row of the replica on `node`.
pub fn replica<'a>(snapshot: &'a Snapshot, node: &str) -> Option<&'a SnapshotReplica> {
    let name = format!("node/{node}");
    snapshot
        .status
        .as_ref()?
        .replicas
        .iter()
        .find(|replica| replica.name == name)
}

/// Bytes on the wire for all replicas of a Snapshot.
pub fn bytes_sent(snapshot: &Snapshot) -> u64 {
    snapshot
        .status
        .iter()
        .flat_map(|s| &s.replicas)
        .map(|replica| replica.bytes_sent)
        .sum()
}
