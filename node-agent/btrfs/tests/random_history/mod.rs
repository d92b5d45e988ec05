//! A tree to which something happens, again and again: whatever a file system can do that send has to
//! carry. One seed is one history.
// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use icbd_btrfs::{Access, Subvolume, delete, snapshot};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags, renameat_with};

use crate::support::Pool;

const BLOCK: u64 = 4096;

/// Files grow to that size at most.
const LARGE: u64 = 6 << 20;

/// A writable subvolume, and one random change after the other.
pub struct History {
    pool: OwnedFd,
    root: PathBuf,
    random: Rng,
}

impl History {
    /// Begins with an empty subvolume `live` in `pool`.
    pub fn new(pool: &Pool, seed: u64) -> History {
        icbd_btrfs::create(pool.dir(), "live").unwrap();
        History {
            pool: pool.dir(),
            root: pool.path().join("live"),
            random: Rng::with_seed(seed),
        }
    }

    /// Takes a snapshot. The changes after it may come to reuse inode numbers of files that it has.
    pub fn take(&mut self, name: &str) -> Subvolume {
        let live = Subvolume::open(&self.pool, "live").unwrap();
        let taken = snapshot(&live, &self.pool, name, Access::ReadOnly).unwrap();
        if self.random.u32(..3) == 0 {
            self.forget_highest_inode();
        }
        taken
    }

    /// A new subvolume counts on from the highest inode number that it has.
    fn forget_highest_inode(&mut self) {
        for _ in 0..self.random.usize(..4) {
            let all = self.all();
            let newest = all.iter().max_by_key(|path| inode(path)).unwrap();
            if *newest != self.root {
                let _ = fs::remove_dir_all(newest).or_else(|_| fs::remove_file(newest));
            }
        }
        let live = Subvolume::open(&self.pool, "live").unwrap();
        snapshot(&live, &self.pool, "next", Access::Writable).unwrap();
        delete(&self.pool, "live").unwrap();
        fs::rename(self.root.with_file_name("next"), &self.root).unwrap();
    }

    /// One change. Some come to nothing, as when a directory is to be moved into itself.
    pub fn change(&mut self) {
        let _ = match self.random.u32(..40) {
            0..3 => self.new_file(),
            3 => self.new_large_file(),
            4..6 => fs::create_dir(self.new_path()),
            6 => symlink(self.name(), self.new_path()),
            7 => self.new_special(),
            8..10 => fs::hard_link(self.existing(), self.new_path()),
            10..14 => fs::rename(self.existing(), self.new_path()),
            14 => fs::rename(self.existing(), self.existing()),
            15 => self.exchange(),
            16 => self.replace_directory(),
            17 => self.delete(),
            18 => fs::remove_file(self.existing()),
            19..22 => self.overwrite(),
            22 => self.resize(),
            23..25 => self.allocate_or_punch(),
            25..27 => self.clone(),
            27..29 => self.set_xattr(),
            29 => self.remove_xattr(),
            30 => self.set_mode(),
            31 => self.set_owner(),
            32 => self.set_time(),
            33..35 => self.swap(),
            35..37 => self.replace_directory_around_its_files(),
            37..39 => self.overwrite_here_and_there(),
            _ => self.flush(),
        };
    }

    /// The root, or anything below it.
    fn existing(&mut self) -> PathBuf {
        let all = self.all();
        self.random.choice(all).unwrap()
    }

    fn all(&self) -> Vec<PathBuf> {
        let mut all = vec![self.root.clone()];
        let mut at = 0;
        while at < all.len() {
            if let Ok(entries) = fs::read_dir(&all[at])
                && !all[at].is_symlink()
            {
                let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
                entries.sort();
                all.extend(entries);
            }
            at += 1;
        }
        all
    }

    fn existing_file(&mut self) -> std::io::Result<(PathBuf, File)> {
        let path = self.existing();
        match fs::symlink_metadata(&path)?.is_file() {
            true => Ok((
                path.clone(),
                OpenOptions::new().read(true).write(true).open(path)?,
            )),
            false => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }

    fn new_path(&mut self) -> PathBuf {
        let near = self.existing();
        let directory = match near.is_dir() && !near.is_symlink() {
            true => near,
            false => near.parent().unwrap().to_owned(),
        };
        directory.join(self.name())
    }

    /// One of few names, so that names come again with another meaning.
    fn name(&mut self) -> PathBuf {
        let mut name = vec![*self.random.choice(b"abcdefgh\xff\n").unwrap()];
        if self.random.u32(..20) == 0 {
            name = name.repeat(255);
        }
        std::ffi::OsString::from_vec(name).into()
    }

    fn data(&mut self) -> Vec<u8> {
        let length = match self.random.u32(..16) {
            0..4 => self.random.usize(..100),
            4..8 => self.random.usize(..5000),
            8..12 => self.random.usize(1..40) * BLOCK as usize,
            12..15 => self.random.usize(..300_000),
            _ => self.random.usize(..3 << 20),
        };
        match self.random.u32(..4) {
            0 => vec![self.random.u8(..); length],
            _ => std::iter::repeat_with(|| self.random.u8(..))
                .take(length)
                .collect(),
        }
    }

    /// On a block more often than not, and in the first megabyte.
    fn offset(&mut self) -> u64 {
        let end = match self.random.u32(..4) {
            0 => LARGE,
            _ => 1 << 20,
        };
        match self.random.u32(..3) {
            0 => self.random.u64(..end),
            _ => self.random.u64(..end / BLOCK) * BLOCK,
        }
    }

    fn new_file(&mut self) -> std::io::Result<()> {
        let path = self.new_path();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        if self.random.u32(..8) == 0 {
            // Refused in a directory whose files are to be compressed.
            let _ = Command::new("chattr")
                .arg("+C")
                .arg(&path)
                .stderr(Stdio::null())
                .status();
        }
        file.write_all_at(&self.data(), 0)
    }

    /// With data and holes.
    fn new_large_file(&mut self) -> std::io::Result<()> {
        let path = self.new_path();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(self.random.u64(1 << 20..LARGE))?;
        for _ in 0..self.random.usize(1..6) {
            file.write_all_at(&self.data(), self.offset())?;
        }
        Ok(())
    }

    fn new_special(&mut self) -> std::io::Result<()> {
        let kinds = [
            FileType::Fifo,
            FileType::Socket,
            FileType::BlockDevice,
            FileType::CharacterDevice,
        ];
        let kind = self.random.choice(kinds).unwrap();
        let device = rustix::fs::makedev(self.random.u32(1..4096), self.random.u32(..1 << 20));
        let mode = Mode::from(self.random.u32(..0o1000));
        Ok(rustix::fs::mknodat(
            CWD,
            self.new_path(),
            kind,
            mode,
            device,
        )?)
    }

    fn exchange(&mut self) -> std::io::Result<()> {
        let (one, other) = (self.existing(), self.existing());
        Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
    }

    /// Moves something away and makes another of its kind under its name.
    fn replace_directory(&mut self) -> std::io::Result<()> {
        let path = self.existing();
        let is_directory = path.is_dir() && !path.is_symlink();
        fs::rename(&path, self.new_path())?;
        match is_directory {
            true => {
                fs::create_dir(&path)?;
                fs::write(path.join(self.name()), self.data())
            }
            // Moved onto another of its names it is still there, and may be a fifo.
            false => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)?
                .write_all_at(&self.data(), 0),
        }
    }

    /// Another directory in its place, and what was in it in that one, but for what is left behind.
    fn replace_directory_around_its_files(&mut self) -> std::io::Result<()> {
        let (path, aside) = (self.existing(), self.new_path());
        if !path.is_dir() || path.is_symlink() {
            return Ok(());
        }
        fs::rename(&path, &aside)?;
        fs::create_dir(&path)?;
        for entry in fs::read_dir(&aside)? {
            if self.random.u32(..4) > 0 {
                let entry = entry?;
                fs::rename(entry.path(), path.join(entry.file_name()))?;
            }
        }
        if self.random.bool() {
            fs::remove_dir_all(aside)?;
        }
        Ok(())
    }

    /// Two of one kind, often in one directory, get each other's names.
    fn swap(&mut self) -> std::io::Result<()> {
        let one = self.existing();
        let near = self.random.bool();
        let mut others = self.all();
        others.retain(|other| {
            *other != one
                && other.is_dir() == one.is_dir()
                && (!near || other.parent() == one.parent())
        });
        match self.random.choice(others) {
            Some(other) => Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?),
            None => Ok(()),
        }
    }

    fn delete(&mut self) -> std::io::Result<()> {
        let path = self.existing();
        if path == self.root {
            Ok(())
        } else {
            fs::remove_dir_all(path)
        }
    }

    fn overwrite(&mut self) -> std::io::Result<()> {
        let (_, file) = self.existing_file()?;
        file.write_all_at(&self.data(), self.offset())
    }

    /// Small extents among large ones.
    fn overwrite_here_and_there(&mut self) -> std::io::Result<()> {
        let (_, file) = self.existing_file()?;
        let size = file.metadata()?.len();
        for _ in 0..self.random.usize(1..20) {
            let mut data = self.data();
            data.truncate(3 * BLOCK as usize);
            file.write_all_at(&data, self.random.u64(..size / BLOCK + 1) * BLOCK)?;
        }
        Ok(())
    }

    fn resize(&mut self) -> std::io::Result<()> {
        let (_, file) = self.existing_file()?;
        file.set_len(self.offset())
    }

    fn allocate_or_punch(&mut self) -> std::io::Result<()> {
        let modes = [
            FallocateFlags::empty(),
            FallocateFlags::KEEP_SIZE,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            FallocateFlags::ZERO_RANGE,
        ];
        let mode = self.random.choice(modes).unwrap();
        let (_, file) = self.existing_file()?;
        Ok(rustix::fs::fallocate(
            &file,
            mode,
            self.offset(),
            self.offset() + 1,
        )?)
    }

    /// Within a file or between two: shares what lies on blocks.
    fn clone(&mut self) -> std::io::Result<()> {
        let (_, from) = self.existing_file()?;
        let (_, to) = match self.random.bool() {
            true => self.existing_file()?,
            false => (PathBuf::new(), from.try_clone()?),
        };
        let end = match self.random.u32(..3) {
            0 => LARGE / BLOCK,
            _ => 64,
        };
        let (mut from_offset, mut to_offset) = (
            self.random.u64(..end) * BLOCK,
            self.random.u64(..4 * end) * BLOCK,
        );
        let length = self.random.usize(1..end as usize) * BLOCK as usize;
        let copy = rustix::fs::copy_file_range(
            &from,
            Some(&mut from_offset),
            &to,
            Some(&mut to_offset),
            length,
        );
        Ok(copy.map(drop)?)
    }

    fn xattr_name(&mut self) -> &'static str {
        let names = [
            "user.a",
            "user.b",
            "trusted.c",
            "security.capability",
            "system.posix_acl_default",
            "system.posix_acl_access",
            "btrfs.compression",
        ];
        self.random.choice(names).unwrap()
    }

    fn set_xattr(&mut self) -> std::io::Result<()> {
        // user::rwx, user:7:rwx, group::r-x, mask::rwx, other::r-x
        const ACL: [u8; 44] = [
            2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 7, 0, 0, 0, 4, 0, 5, 0, 255,
            255, 255, 255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
        ];
        const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let name = self.xattr_name();
        let value = match name {
            "security.capability" => CAPABILITY.to_vec(),
            "btrfs.compression" => b"zstd".to_vec(),
            acl if acl.starts_with("system.") => ACL.to_vec(),
            _ => self.data().into_iter().take(3000).collect(),
        };
        Ok(rustix::fs::lsetxattr(
            self.existing(),
            name,
            &value,
            XattrFlags::empty(),
        )?)
    }

    fn remove_xattr(&mut self) -> std::io::Result<()> {
        let name = self.xattr_name();
        Ok(rustix::fs::lremovexattr(self.existing(), name)?)
    }

    fn set_mode(&mut self) -> std::io::Result<()> {
        let path = self.existing();
        match path.is_symlink() {
            true => Ok(()),
            false => fs::set_permissions(path, Permissions::from_mode(self.random.u32(..0o10000))),
        }
    }

    fn set_owner(&mut self) -> std::io::Result<()> {
        let (uid, gid) = (self.random.u32(..4), self.random.u32(..4));
        std::os::unix::fs::lchown(self.existing(), Some(uid), Some(gid))
    }

    fn set_time(&mut self) -> std::io::Result<()> {
        let (_, file) = self.existing_file()?;
        file.set_modified(UNIX_EPOCH + Duration::from_nanos(self.random.u64(..1 << 60)))
    }

    /// Lets delayed data become extents between two changes, not only at the snapshot.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(Path::new(&self.root))?)?)
    }
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}
