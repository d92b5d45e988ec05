//! How much room a file system has, and how much of it a snapshot refers to.
//! What is reserved, and what a receiver refuses, is decided elsewhere.

use std::os::fd::AsFd;

use crate::error::Error;
use crate::subvolume::Subvolume;
use crate::walk::{Visit, walk};

/// Room on a file system, in bytes that a user can store (redundant copies counted once).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All there is, used or not.
    pub capacity: u64,
    /// What can still be written, as `df` shows it. An estimate: btrfs decides when it allocates.
    pub free: u64,
}

/// The room on the file system that `fd` is in.
///
/// # Errors
/// The call failed.
pub fn space(fd: impl AsFd) -> Result<Space, Error> {
    let stat = rustix::fs::fstatvfs(fd).map_err(Error::system("read the space of", b"pool"))?;
    Ok(Space {
        capacity: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// The bytes of file data that a subvolume refers to: what `du` would add up for it. Holes count
/// nothing, preallocated ranges count; compressed data counts with its uncompressed size; data that
/// is shared, with other snapshots or within this one, counts in full each time, hard links once.
/// Nested subvolumes and metadata count nothing.
///
/// Costs a `statx` for each entry; no quota groups are needed.
///
/// # Errors
/// A call failed; the tree changed meanwhile.
pub fn referenced_bytes(subvolume: &Subvolume) -> Result<u64, Error> {
    let mut bytes = 0_u64;
    walk(subvolume, |visit| {
        if let Visit::Entry(entry) = visit
            && entry.link_of.is_none()
        {
            // statx counts in units of 512 bytes, whatever the block size.
            bytes = bytes.saturating_add(entry.stat.stx_blocks.saturating_mul(512));
        }
        Ok(())
    })?;
    Ok(bytes)
}
