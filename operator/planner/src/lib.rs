//! Decisions: what was seen and what is wanted go in, actions and statuses come out, each with its
//! reason as text fit for a condition. Pure: this crate knows no Kubernetes client, no runtime, no
//! clock and no chance; `now` is an argument.
//!
//! One module a question:
//! - [`image`], [`snapshot`], [`target`]: what is to be done about one object, and what to say of it;
//! - [`replication`]: which transfers to start, over all images;
//! - [`pool`]: whether a node's pool is to be initialised;
//! - [`selection`], [`lineage`], [`quota`], [`replica`]: the parts these have in common.

mod conditions;
pub mod image;
pub mod lineage;
mod model;
pub mod pool;
pub mod quota;
pub mod replica;
pub mod replication;
pub mod selection;
pub mod snapshot;
pub mod target;

#[cfg(test)]
mod notation;

pub use conditions::{Status, Verdict};
pub use model::{
    Agent, Attempt, Attempts, Ended, Held, ImageFacts, ImageKey, Inventory, Live, Namespace, Node,
    NodeName, Pool, PoolId, Record, Refusal, SnapshotNumber, TargetFacts, Tombstone, Transfer,
    TransferEnd,
};
