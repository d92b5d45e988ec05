//! Subvolumes: open, look at, create, snapshot, mark, delete. All relative to an open directory and by one name.
//! What a subvolume's uuids mean for replication is in `identity`; which ones an image has, in `inventory`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use linux_raw_sys::btrfs::{BTRFS_FIRST_FREE_OBJECTID, btrfs_ioctl_timespec};
use linux_raw_sys::general::BTRFS_SUPER_MAGIC;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::error::Error;
use crate::sys;

/// `BTRFS_ROOT_SUBVOL_RDONLY` of `btrfs_tree.h`: subvolume info gives the flags as they are on disk,
/// where this is bit 0; the ioctls that set flags call it bit 1.
const ROOT_SUBVOL_RDONLY: u64 = 1;

/// An open subvolume: a directory that is the root of one (inode 256) on btrfs.
#[derive(Debug)]
pub struct Subvolume {
    fd: OwnedFd,
    /// For messages only.
    name: Vec<u8>,
}

/// What the kernel records of a subvolume (`struct btrfs_ioctl_get_subvol_info_args`). The
/// transaction ids are generations of the file system: they only ever grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Number within its file system; never used again there.
    pub id: u64,
    /// Given at creation; unique in the world.
    pub uuid: Uuid,
    /// The subvolume that this one is a snapshot of.
    pub parent_uuid: Option<Uuid>,
    /// The uuid, at its source, of the snapshot that this one was received from.
    pub received_uuid: Option<Uuid>,
    /// Whether its content is protected from change.
    pub read_only: bool,
    /// Transaction of the last change to its tree, the kernel's own bookkeeping included.
    pub generation: u64,
    /// Transaction of the last change to a file or directory in it.
    pub ctransid: u64,
    /// Transaction in which it was created.
    pub otransid: u64,
    /// The ctransid at its source, if received.
    pub stransid: u64,
    /// Transaction in which it was marked as received; 0 if it was not.
    pub rtransid: u64,
    /// When it was created.
    pub otime: SystemTime,
    /// When it was marked as received.
    pub rtime: Option<SystemTime>,
}

/// Whether a new snapshot can be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Content protected from change; what can be sent.
    ReadOnly,
    /// An ordinary subvolume that starts with the source's content.
    Writable,
}

impl Subvolume {
    /// Opens the subvolume `name` in `dir`; follows no symlink and enters no other mount.
    ///
    /// # Errors
    /// [`Error::NotSubvolume`] or [`Error::NotBtrfs`] if it is something else (a symlink too),
    /// [`Error::OtherFileSystem`] if something is mounted there.
    pub fn open(dir: impl AsFd, name: impl AsRef<[u8]>) -> Result<Self, Error> {
        let name = single(name.as_ref())?;
        let fd = rustix::fs::openat2(
            dir,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        );
        match fd {
            Ok(fd) => Self::from_fd(fd, name),
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Error::NotSubvolume { name: escape(name) }),
            Err(Errno::XDEV) => Err(Error::OtherFileSystem { name: escape(name) }),
            Err(errno) => Err(Error::system("open", name)(errno)),
        }
    }

    /// Takes an open directory as a subvolume; `name` is what messages call it.
    ///
    /// # Errors
    /// [`Error::NotBtrfs`], [`Error::NotSubvolume`].
    pub fn from_fd(fd: OwnedFd, name: impl AsRef<[u8]>) -> Result<Self, Error> {
        let name = name.as_ref();
        if !is_btrfs(&fd)? {
            return Err(Error::NotBtrfs { name: escape(name) });
        }
        if !is_subvolume(&fd)? {
            return Err(Error::NotSubvolume { name: escape(name) });
        }
        Ok(Self {
            fd,
            name: name.to_vec(),
        })
    }

    /// A second handle on the same subvolume.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("duplicate the descriptor of", &self.name)(errno)
        })?;
        Ok(Self {
            fd,
            name: self.name.clone(),
        })
    }

    /// The name it was opened by, for messages.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What the kernel records of it, now.
    ///
    /// # Errors
    /// The call failed, as for a subvolume that was deleted meanwhile (ENOENT).
    pub fn info(&self) -> Result<SubvolumeInfo, Error> {
        let raw = sys::subvolume_info(self.as_fd())
            .map_err(Error::system("read the subvolume info of", &self.name))?;
        Ok(SubvolumeInfo {
            id: raw.treeid,
            uuid: Uuid::from_bytes(raw.uuid),
            parent_uuid: not_nil(raw.parent_uuid),
            received_uuid: not_nil(raw.received_uuid),
            read_only: raw.flags & ROOT_SUBVOL_RDONLY != 0,
            generation: raw.generation,
            ctransid: raw.ctransid,
            otransid: raw.otransid,
            stransid: raw.stransid,
            rtransid: raw.rtransid,
            otime: time(raw.otime),
            rtime: (raw.rtransid != 0).then(|| time(raw.rtime)),
        })
    }

    /// Makes it read-only, or writable again. Replicas are never made writable: they are
    /// snapshotted (a read-only flag that goes and comes back leaves a received-uuid behind that
    /// tells lies).
    ///
    /// # Errors
    /// EPERM while it is being sent; the call failed.
    pub fn set_read_only(&self, read_only: bool) -> Result<(), Error> {
        sys::set_read_only(self.as_fd(), read_only)
            .map_err(Error::system("change the read-only flag of", &self.name))
    }

    /// Marks it, still writable, as received from the snapshot `uuid`, whose ctransid at the source
    /// was `stransid`. Returns the rtransid. Read-only snapshots of it inherit the mark, writable
    /// ones do not.
    ///
    /// # Errors
    /// EROFS if it is read-only; the call failed.
    pub fn set_received(&self, uuid: Uuid, stransid: u64) -> Result<u64, Error> {
        sys::set_received(self.as_fd(), uuid.into_bytes(), stransid)
            .map_err(Error::system("set the received uuid of", &self.name))
    }
}

impl AsFd for Subvolume {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes an empty writable subvolume.
///
/// # Errors
/// [`Error::Exists`]; the call failed.
pub fn create(dir: impl AsFd, name: impl AsRef<[u8]>) -> Result<Subvolume, Error> {
    let (dir, name) = (dir.as_fd(), single(name.as_ref())?);
    sys::create_subvolume(dir, name).map_err(|errno| match errno {
        Errno::EXIST => Error::Exists { name: escape(name) },
        errno => Error::system("create subvolume", name)(errno),
    })?;
    Subvolume::open(dir, name)
}

/// Makes a snapshot of `source` in `dir`. It is durable once `dir` is fsynced ([`sync_dir`]).
///
/// # Errors
/// [`Error::Exists`]; [`Error::OtherFileSystem`] if `dir` is not on the source's file system; the
/// call failed.
pub fn snapshot(
    source: &Subvolume,
    dir: impl AsFd,
    name: impl AsRef<[u8]>,
    access: Access,
) -> Result<Subvolume, Error> {
    let (dir, name) = (dir.as_fd(), single(name.as_ref())?);
    // The kernel says EINVAL here, as for much else; asked beforehand the answer is clear.
    if file_system_id(dir)? != file_system_id(source)? {
        return Err(Error::OtherFileSystem {
            name: escape(&source.name),
        });
    }
    sys::create_snapshot(dir, name, source.as_fd(), access == Access::ReadOnly).map_err(
        |errno| match errno {
            Errno::EXIST => Error::Exists { name: escape(name) },
            errno => Error::System {
                doing: "snapshot",
                what: format!("\"{}\" as \"{}\"", escape(&source.name), escape(name)),
                errno,
            },
        },
    )?;
    Subvolume::open(dir, name)
}

/// Deletes a subvolume, writable or not. Its name is gone at once, durably once `dir` is fsynced
/// ([`sync_dir`]); its space comes back in the background.
///
/// # Errors
/// [`Error::NotSubvolume`] if it is an ordinary file or directory, which stays;
/// [`Error::HasSubvolumes`]; ENOENT if there is none of that name; EPERM while it is being sent.
pub fn delete(dir: impl AsFd, name: impl AsRef<[u8]>) -> Result<(), Error> {
    let (dir, name) = (dir.as_fd(), single(name.as_ref())?);
    drop(Subvolume::open(dir, name)?);
    sys::destroy_subvolume(dir, name).map_err(|errno| match errno {
        Errno::NOTEMPTY => Error::HasSubvolumes { name: escape(name) },
        errno => Error::system("delete subvolume", name)(errno),
    })
}

/// Makes durable what was created, renamed or deleted in `dir`.
///
/// # Errors
/// The write-back failed; it is told once only.
pub fn sync_dir(dir: impl AsFd) -> Result<(), Error> {
    rustix::fs::fsync(dir).map_err(Error::system("sync", b"directory"))
}

/// Makes the whole file system that `fd` is in durable (`syncfs`).
///
/// # Errors
/// The write-back failed. A write-back error of one file is told reliably only by fsync of that
/// file.
pub fn sync(fd: impl AsFd) -> Result<(), Error> {
    rustix::fs::syncfs(fd).map_err(Error::system("sync", b"file system"))
}

/// Whether `fd` is on btrfs.
///
/// # Errors
/// The call failed.
pub fn is_btrfs(fd: impl AsFd) -> Result<bool, Error> {
    let stat = rustix::fs::fstatfs(fd).map_err(Error::system("stat", b"file system"))?;
    // The type of `f_type` differs between architectures, the low 32 bits are the magic on all.
    Ok(stat.f_type as u32 == BTRFS_SUPER_MAGIC)
}

/// Whether `fd`, known to be on btrfs, is the root of a subvolume: its inode is 256 then, and that
/// of nothing else is.
///
/// # Errors
/// The call failed.
pub fn is_subvolume(fd: impl AsFd) -> Result<bool, Error> {
    let stat = rustix::fs::fstat(fd).map_err(Error::system("stat", b"directory"))?;
    Ok(stat.st_ino == u64::from(BTRFS_FIRST_FREE_OBJECTID))
}

/// The uuid of the btrfs file system that `fd` is in.
///
/// # Errors
/// ENOTTY if it is not btrfs.
pub fn file_system_id(fd: impl AsFd) -> Result<Uuid, Error> {
    sys::file_system_id(fd.as_fd())
        .map(Uuid::from_bytes)
        .map_err(Error::system("read the id of", b"file system"))
}

/// `name` if it names exactly one entry of a directory.
pub(crate) fn single(name: &[u8]) -> Result<&[u8], Error> {
    let valid = !name.is_empty()
        && name.len() <= 255
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if valid {
        Ok(name)
    } else {
        Err(Error::InvalidName { name: escape(name) })
    }
}

pub(crate) fn escape(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

fn not_nil(bytes: [u8; 16]) -> Option<Uuid> {
    Some(Uuid::from_bytes(bytes)).filter(|uuid| !uuid.is_nil())
}

fn time(raw: btrfs_ioctl_timespec) -> SystemTime {
    // `sec` is a signed number in an unsigned field; a time out of range is as good as none.
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::new(raw.sec, raw.nsec.min(999_999_999)))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
