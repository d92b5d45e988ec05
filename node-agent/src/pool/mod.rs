//! The pool: the btrfs mount or subvolume that this node lends, opened afresh for each operation.
//! Whether it may be used, by whom, and what it says of itself; images in it are `image`'s matter.
//!
//! No descriptor of the pool is kept between operations: only so a disk that is mounted or swapped
//! later is seen, the old one is not written to any more, and the node can unmount it.

mod kernel;
mod lock;
mod marker;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use icbd_btrfs::Subvolume;
use icbd_wire::control::{Fence, InitPoolRequest, PoolState, PoolStatus, Reason};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::durable;
use crate::error::{Error, Result};

pub(crate) use kernel::release as kernel_release;
use lock::PoolLock;
use marker::{Epoch, Marker};

/// Which pool: another disk, or another subvolume of the same one, is another pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PoolId {
    fsid: Uuid,
    subvolume: Uuid,
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.fsid, self.subvolume)
    }
}

/// Where the pool is, and what this agent holds of it: a lock beside it, never a descriptor in it.
pub(crate) struct Pool {
    path: PathBuf,
    lock: Mutex<Option<PoolLock>>,
    /// The installation whose operator last watched this agent.
    serves: Mutex<Option<String>>,
    /// Held while the marker is read and rewritten.
    marking: Mutex<()>,
}

/// A pool, open for one operation.
pub(crate) struct OpenPool {
    dir: Subvolume,
    pub(crate) id: PoolId,
}

impl AsFd for OpenPool {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Why what stands at the pool's path cannot be used.
struct Unfit {
    state: PoolState,
    message: String,
}

impl Unfit {
    fn new(state: PoolState, message: impl Into<String>) -> Self {
        Self {
            state,
            message: message.into(),
        }
    }
}

impl From<Unfit> for Error {
    fn from(unfit: Unfit) -> Self {
        Error::refused(reason_for(unfit.state), unfit.message)
    }
}

/// The reason that an operation on a pool in this state is refused with.
pub(crate) fn reason_for(state: PoolState) -> Reason {
    match state {
        PoolState::Unspecified | PoolState::Ready => Reason::Unspecified,
        PoolState::NotMounted => Reason::PoolNotMounted,
        PoolState::NotBtrfs => Reason::PoolNotBtrfs,
        PoolState::NotInitialised => Reason::PoolNotInitialised,
        PoolState::Foreign => Reason::PoolForeign,
        PoolState::Locked => Reason::PoolLocked,
        PoolState::KernelTooOld => Reason::KernelTooOld,
        PoolState::Unavailable => Reason::PoolUnavailable,
    }
}

impl Pool {
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            lock: Mutex::default(),
            serves: Mutex::default(),
            marking: Mutex::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The installation whose pool this ought to be, as its operator says it.
    pub(crate) fn serve(&self, installation: &str) {
        *locked(&self.serves) = Some(installation.to_owned());
    }

    /// Opens the pool for an operation of the agent's own. Blocks.
    pub(crate) fn open(&self) -> Result<OpenPool> {
        let pool = self.find()?;
        self.judge(&self.marker(&pool)?)?;
        Ok(pool)
    }

    /// Opens the pool for a changing call of an operator, whose epoch is durable before anything
    /// is changed. Blocks.
    pub(crate) fn admit(&self, fence: Option<&Fence>) -> Result<OpenPool> {
        let fence = valid(fence)?;
        let _marking = locked(&self.marking);
        let pool = self.find()?;
        let Some(mut marker) = self.marker(&pool)? else {
            return Err(self.not_initialised().into());
        };
        if marker.installation != fence.installation {
            return Err(self.foreign(&marker, &fence.installation).into());
        }
        if marker.raise(Epoch::of(fence))? {
            durable::write(&pool, marker::NAME, &marker)?;
        }
        Ok(pool)
    }

    /// Marks the pool as an installation's. Blocks.
    pub(crate) fn init(&self, request: &InitPoolRequest) -> Result<()> {
        let fence = valid(request.fence.as_ref())?;
        let _marking = locked(&self.marking);
        let pool = self.find()?;
        let mounted = (pool.id.fsid.to_string(), pool.id.subvolume.to_string());
        if mounted != (request.fsid.clone(), request.subvolume_uuid.clone()) {
            let message = format!(
                "{} is subvolume {} of file system {} now, not {} of {}",
                self.path.display(),
                mounted.1,
                mounted.0,
                request.subvolume_uuid,
                request.fsid,
            );
            return Err(Error::refused(Reason::PoolUnavailable, message));
        }
        let epoch = Epoch::of(fence);
        let marker = match self.marker(&pool)? {
            Some(mut marker) if marker.installation == fence.installation => {
                marker.raise(epoch)?;
                marker
            }
            Some(marker) if marker.installation != request.take_over_from => {
                return Err(self.foreign(&marker, &fence.installation).into());
            }
            None if !request.allow_non_empty && !is_empty(&pool)? => {
                return Err(self.not_initialised().into());
            }
            _ => Marker {
                installation: fence.installation.clone(),
                epoch,
            },
        };
        durable::write(&pool, marker::NAME, &marker)
    }

    /// What the operator and the node's administrator are told of the pool. Blocks.
    pub(crate) fn status(&self) -> PoolStatus {
        let path = self.path.display().to_string();
        let mut status = PoolStatus {
            path,
            ..PoolStatus::default()
        };
        match self.describe(&mut status) {
            Ok(()) => status.set_state(PoolState::Ready),
            Err(unfit) => {
                status.set_state(unfit.state);
                status.message = unfit.message;
            }
        }
        status
    }

    fn describe(&self, status: &mut PoolStatus) -> Result<(), Unfit> {
        let failed = |error: Error| Unfit::new(PoolState::Unavailable, error.to_string());
        let pool = self.find()?;
        status.fsid = pool.id.fsid.to_string();
        status.subvolume_uuid = pool.id.subvolume.to_string();
        (status.capacity, status.free) = pool.space().map_err(failed)?;
        let marker = self.marker(&pool).map_err(failed)?;
        status.empty = is_empty(&pool).map_err(failed)?;
        if let Some(marker) = &marker {
            status.installation.clone_from(&marker.installation);
        }
        self.judge(&marker)
    }

    /// Opens what stands at the path, if it is a pool that this agent alone uses.
    fn find(&self) -> Result<OpenPool, Unfit> {
        let found = self.look();
        let mut lock = locked(&self.lock);
        // A lock outlives its pool's presence by one look at most.
        if lock
            .as_ref()
            .is_some_and(|held| found.as_ref().map_or(true, |f| !held.is_of(f.id)))
        {
            *lock = None;
        }
        let pool = found?;
        if lock.is_none() {
            *lock = Some(PoolLock::take(&self.path, pool.id)?);
        }
        Ok(pool)
    }

    fn look(&self) -> Result<OpenPool, Unfit> {
        kernel::check()?;
        let path = self.path.display();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|errno| {
            let state = match errno {
                Errno::NOENT | Errno::NOTDIR => PoolState::NotMounted,
                _ => PoolState::Unavailable,
            };
            Unfit::new(state, format!("cannot open the pool {path}: {errno}"))
        })?;
        let subvolume = Subvolume::from_fd(dir, path.to_string()).map_err(|error| match error {
            icbd_btrfs::Error::NotBtrfs { .. } if self.is_mount() => Unfit::new(
                PoolState::NotBtrfs,
                format!("{path} is not on btrfs: mount a btrfs file system there"),
            ),
            icbd_btrfs::Error::NotBtrfs { .. } | icbd_btrfs::Error::NotSubvolume { .. } => {
                let wanted = "mount a btrfs file system there, or make it a btrfs subvolume";
                let message = format!("{path} is a plain directory, nothing is mounted: {wanted}");
                Unfit::new(PoolState::NotMounted, message)
            }
            error => Unfit::new(PoolState::Unavailable, error.to_string()),
        })?;
        let unavailable =
            |error: icbd_btrfs::Error| Unfit::new(PoolState::Unavailable, error.to_string());
        let fsid = icbd_btrfs::file_system_id(&subvolume).map_err(unavailable)?;
        let id = PoolId {
            fsid,
            subvolume: subvolume.info().map_err(unavailable)?.uuid,
        };
        let pool = OpenPool { dir: subvolume, id };
        let flags = rustix::fs::fstatvfs(&pool).map(|stat| stat.f_flag);
        if flags.is_ok_and(|flags| flags.contains(StatVfsMountFlags::RDONLY)) {
            let message = format!("{path} is mounted read-only");
            return Err(Unfit::new(PoolState::Unavailable, message));
        }
        Ok(pool)
    }

    /// Whether something is mounted at the pool's path: it is on another device than its parent.
    fn is_mount(&self) -> bool {
        let device = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_dev);
        let parent = self.path.parent().unwrap_or(&self.path);
        device(&self.path) != device(parent)
    }

    fn marker(&self, pool: &OpenPool) -> Result<Option<Marker>> {
        durable::read(pool, marker::NAME)
    }

    fn judge(&self, marker: &Option<Marker>) -> Result<(), Unfit> {
        let Some(marker) = marker else {
            return Err(self.not_initialised());
        };
        match locked(&self.serves).as_deref() {
            Some(serves) if serves != marker.installation => Err(self.foreign(marker, serves)),
            _ => Ok(()),
        }
    }

    fn not_initialised(&self) -> Unfit {
        let message = format!(
            "{} has no marker {}: not initialised",
            self.path.display(),
            marker::NAME
        );
        Unfit::new(PoolState::NotInitialised, message)
    }

    fn foreign(&self, marker: &Marker, wanted: &str) -> Unfit {
        let (path, theirs) = (self.path.display(), &marker.installation);
        let message = format!("{path} belongs to installation {theirs}, not to {wanted}");
        Unfit::new(PoolState::Foreign, message)
    }
}

impl OpenPool {
    /// Bytes in all, and bytes that can still be written.
    pub(crate) fn space(&self) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstatvfs(self).map_err(Error::io("read the space of the pool"))?;
        Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    }
}

/// Whether there is nothing in the pool but what this agent itself puts beside the images.
fn is_empty(pool: &OpenPool) -> Result<bool> {
    Ok(durable::names(pool)?
        .iter()
        .all(|name| name.trim_start_matches('.').starts_with("icbd-pool")))
}

fn valid(fence: Option<&Fence>) -> Result<&Fence> {
    fence
        .filter(|fence| !fence.installation.is_empty())
        .ok_or_else(|| {
            Error::refused(
                Reason::InvalidArgument,
                "a changing call needs a fence with an installation",
            )
        })
}

/// A panic while it was held leaves nothing half-done behind these locks.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
