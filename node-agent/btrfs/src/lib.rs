//! What this product needs of btrfs, straight from the kernel's ioctls: subvolumes, snapshots, send.
//! No network, no async, no paths: everything is relative to an open directory and names one entry of it.
//!
//! [`Subvolume`] is where to start.

mod blocks;
mod digest;
mod encoding;
mod error;
mod hold;
mod identity;
mod inventory;
mod measure;
mod probe;
pub mod receive;
mod send;
mod space;
pub mod stream;
mod subvolume;
mod sys;
mod tree_items;
mod walk;
mod watched;

pub use blocks::{Block, BlockBuffer, BlockError, ExtentBlocks, StreamBlocks};
pub use digest::{Digest, digest};
pub use encoding::Encoding;
pub use error::Error;
pub use hold::Hold;
pub use identity::{Identity, Suspicion};
pub use inventory::{Inventory, LIVE, NotCounted, NotCountedReason, SnapshotNumber, scan};
pub use probe::punches_large_holes;
pub use rustix::io::Errno;
pub use send::{SendRequest, SendStream};
pub use space::{Space, referenced_bytes, space};
pub use subvolume::{
    Access, Subvolume, SubvolumeInfo, create, delete, file_system_id, is_btrfs, is_subvolume,
    snapshot, sync, sync_dir,
};
