//! The three kinds of `replication.icbd.io/v1alpha1` as Rust types, with their conditions, reasons
//! and the names that the outside relies on. Knows no client, no runtime and no agent: what is
//! wanted and what was last seen, as data.

// Printer columns repeat their type and priority, each in its own group.
#![allow(clippy::duplicated_attributes)]

mod image;
pub mod names;
mod quantity;
mod reason;
mod selector;
mod snapshot;
mod status;
mod target;
pub mod yaml;

pub use image::{
    Compression, FullTransfers, ImageReplica, LatestSnapshot, Primary, TargetReference, VMImage,
    VMImageSpec, VMImageStatus,
};
pub use quantity::{BadQuantity, FreeSpace, parse_bytes};
pub use reason::Reason;
pub use selector::{LabelSelector, Operator, Requirement};
pub use snapshot::{
    Origin, ReplicaState, Snapshot, SnapshotReplica, SnapshotSpec, SnapshotStatus, TransferMode,
};
pub use status::{Condition, ConditionType, DeletionPolicy, condition};
pub use target::{ReplicationTarget, ReplicationTargetSpec, ReplicationTargetStatus, TargetNode};
