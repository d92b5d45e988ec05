//! Small JSON files that are either the old or the new content after any crash.
//! What they mean is known to their owners: the pool's marker and an image's `.meta`.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The largest file that is read: ours have a few hundred bytes, and a disk may hold anything.
const MAX_FILE: u64 = 64 * 1024;

/// Below `dir`, through no symlink and into no other mount.
const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV);

/// Replaces `name` in `dir` by `value`, durably: a temporary file, fsync, rename, fsync of `dir`.
pub(crate) fn write<T: Serialize>(dir: impl AsFd, name: &str, value: &T) -> Result<()> {
    let doing = || format!("write {name}");
    let temporary = format!(".{name}.tmp");
    let mut content = serde_json::to_vec(value).map_err(Error::io(doing()))?;
    content.push(b'\n');
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat2(&dir, &temporary, flags, Mode::from_raw_mode(0o600), WITHIN)
        .map_err(Error::io(doing()))?;
    let mut file = File::from(file);
    let replaced = file
        .write_all(&content)
        .and_then(|()| file.sync_all())
        .and_then(|()| {
            let flags = RenameFlags::empty();
            Ok(rustix::fs::renameat_with(
                &dir, &temporary, &dir, name, flags,
            )?)
        });
    if let Err(error) = replaced {
        let _ = rustix::fs::unlinkat(&dir, &temporary, AtFlags::empty());
        return Err(Error::io(doing())(error));
    }
    rustix::fs::fsync(dir).map_err(Error::io(doing()))
}

/// Reads `name` in `dir`; `None` if there is none.
pub(crate) fn read<T: DeserializeOwned>(dir: impl AsFd, name: &str) -> Result<Option<T>> {
    let doing = || format!("read {name}");
    // Should it be a fifo, opening it must not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat2(dir, name, flags, Mode::empty(), WITHIN) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::io(doing())(errno)),
    };
    let mut content = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut content)
        .map_err(Error::io(doing()))?;
    serde_json::from_slice(&content)
        .map(Some)
        .map_err(Error::io(doing()))
}

/// When `name` in `dir` was last written, or said to be by [`touch`]; `None` if there is none.
pub(crate) fn written(dir: impl AsFd, name: &str) -> Result<Option<SystemTime>> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(Error::io(format!("look at {name}"))(errno)),
    };
    let since = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
    Ok(SystemTime::UNIX_EPOCH.checked_add(since))
}

/// Says that `name` in `dir` was written now.
pub(crate) fn touch(dir: impl AsFd, name: &str, now: SystemTime) -> Result<()> {
    let since = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: 0,
        },
    };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(Error::io(format!("set the time of {name}")))
}

/// Removes `name` from `dir`, durably; it need not be there.
pub(crate) fn remove(dir: impl AsFd, name: &str) -> Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) => rustix::fs::fsync(dir).map_err(Error::io(format!("remove {name}"))),
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io(format!("remove {name}"))(errno)),
    }
}

/// Opens the directory `name` in `dir`; `None` if there is none.
pub(crate) fn open_dir(dir: impl AsFd, name: &str) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name, flags, Mode::empty(), WITHIN) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(Error::io(format!("open directory {name}"))(errno)),
    }
}

/// Opens the directory `name` in `dir`, and makes it, durably, if there is none.
pub(crate) fn make_dir(dir: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd> {
    if let Some(fd) = open_dir(&dir, name)? {
        return Ok(fd);
    }
    let doing = || format!("make directory {name}");
    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)) {
        Ok(()) => rustix::fs::fsync(&dir).map_err(Error::io(doing()))?,
        Err(Errno::EXIST) => {}
        Err(errno) => return Err(Error::io(doing())(errno)),
    }
    open_dir(dir, name)?.ok_or_else(|| Error::io(doing())(Errno::NOENT))
}

/// The names in `dir`, in no order, without `.` and `..`; names that are not UTF-8 are none of ours.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<String>> {
    let listing = rustix::fs::Dir::read_from(dir).map_err(Error::io("list a directory"))?;
    let mut names = Vec::new();
    for entry in listing {
        let entry = entry.map_err(Error::io("list a directory"))?;
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
