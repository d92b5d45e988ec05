//! The lock that keeps a second agent out of a pool: a file beside the pool, not in it, so that
//! holding it never makes an unmount fail.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use icbd_wire::control::PoolState;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::{PoolId, Unfit};

pub(super) struct PoolLock {
    id: PoolId,
    /// The lock lives as long as this open file does, whoever ends the process.
    _file: File,
}

impl PoolLock {
    /// Locks the pool with this id for this process, at once or not at all.
    pub(super) fn take(pool: &Path, id: PoolId) -> Result<Self, Unfit> {
        let path = pool.with_file_name(format!(".icbd-{id}.lock"));
        let cannot = |error: std::io::Error| {
            let message = format!("cannot lock {}: {error}", path.display());
            Unfit::new(PoolState::Unavailable, message)
        };
        // The file stays when the lock goes: removing it would let two agents lock two files.
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(nofollow)
            .open(&path)
            .map_err(cannot)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { id, _file: file }),
            Err(Errno::WOULDBLOCK) => {
                let message = format!(
                    "another agent uses the pool: it holds the lock {}",
                    path.display()
                );
                Err(Unfit::new(PoolState::Locked, message))
            }
            Err(errno) => Err(cannot(errno.into())),
        }
    }

    pub(super) fn is_of(&self, id: PoolId) -> bool {
        self.id == id
    }
}
