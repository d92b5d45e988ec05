//! Random file-system histories, replicated snapshot by snapshot: whatever happened to a tree, its
//! replica is equal, and so is a replica's replica. `btrfs receive` gets the same streams; where only
//! it differs, that is printed, for it is known to misapply some.
//!
//! `HISTORY_SEED` repeats one history; `HISTORIES` says how many there shall be.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]
// Seeds are for whoever reads the output.
#![allow(clippy::print_stdout)]

mod receive_pair;
mod support;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use icbd_btrfs::{Access, SendRequest, Subvolume, digest, snapshot};
use receive_pair::{assert_equal, btrfs_receive, receive, remove, replicate};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};
use support::Pool;

const SNAPSHOTS: usize = 5;
const CHANGES: usize = 40;

struct Pools {
    source: Pool,
    replica: Pool,
    /// Receives from the replica.
    second: Pool,
    /// `btrfs receive`.
    witness: Pool,
}

#[test]
#[ignore = "needs root and btrfs"]
fn whatever_happened_the_replica_is_equal() {
    let pools = Pools {
        source: Pool::new(),
        replica: Pool::new(),
        second: Pool::new(),
        witness: Pool::new(),
    };
    if let Some(seed) = number("HISTORY_SEED") {
        return replay(&pools, seed);
    }
    for _ in 0..number("HISTORIES").unwrap_or(30) {
        replay(&pools, fastrand::u64(..1 << 32));
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap())
}

fn replay(pools: &Pools, seed: u64) {
    println!("HISTORY_SEED={seed}");
    let live = icbd_btrfs::create(pools.source.dir(), "live").unwrap();
    let mut history = History::new(pools.source.path().join("live"), seed);
    let mut witness_agrees = true;
    for number in 1..=SNAPSHOTS {
        for _ in 0..CHANGES {
            history.change();
        }
        let name = number.to_string();
        let source = snapshot(&live, pools.source.dir(), &name, Access::ReadOnly).unwrap();
        let before = (number > 1).then(|| (number - 1).to_string());
        replicate(&pools.source, &pools.replica, &name, before.as_deref());
        replicate(&pools.replica, &pools.second, &name, before.as_deref());

        witness_agrees = witness_agrees && {
            let stream = stream(&pools.source, &source, before.as_deref());
            let outcome = btrfs_receive(&pools.witness, &stream);
            let agrees = outcome.is_ok() && {
                let received = Subvolume::open(pools.witness.dir(), &name).unwrap();
                digest(&received).unwrap() == digest(&source).unwrap()
            };
            if !agrees {
                println!("btrfs receive differs: seed {seed}, snapshot {name}: {outcome:?}");
            }
            agrees
        };
    }
    // The last one once more, in full, and as one large increment.
    let last = SNAPSHOTS.to_string();
    let source = Subvolume::open(pools.source.dir(), &last).unwrap();
    for parent in [None, Some("1")] {
        let stream = stream(&pools.source, &source, parent);
        assert_equal(
            &source,
            &receive(&pools.replica, "again", &stream[..]).unwrap(),
        );
        remove(&pools.replica, "again");
    }
    for pool in [&pools.source, &pools.replica, &pools.second, &pools.witness] {
        for name in receive_pair::names(pool) {
            remove(pool, &name);
        }
    }
}

fn stream(pool: &Pool, source: &Subvolume, parent: Option<&str>) -> Vec<u8> {
    let parent = parent.map(|parent| Subvolume::open(pool.dir(), parent).unwrap());
    let request = SendRequest {
        source,
        parent: parent.as_ref(),
        clone_sources: &[],
    };
    let mut bytes = Vec::new();
    request.start().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A tree, and one random change after the other.
struct History {
    root: PathBuf,
    random: Rng,
}

impl History {
    fn new(root: PathBuf, seed: u64) -> History {
        History {
            root,
            random: Rng::with_seed(seed),
        }
    }

    /// One change. Some come to nothing, as when a directory is to be moved into itself.
    fn change(&mut self) {
        let _ = match self.random.u32(..34) {
            0..4 => self.new_file(),
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
            _ => self.flush(),
        };
    }

    /// The root, or anything below it.
    fn existing(&mut self) -> PathBuf {
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
        self.random.choice(all).unwrap()
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
        let length = match self.random.u32(..4) {
            0 => self.random.usize(..100),
            1 => self.random.usize(..5000),
            2 => self.random.usize(1..40) * 4096,
            _ => self.random.usize(..300_000),
        };
        match self.random.u32(..4) {
            0 => vec![self.random.u8(..); length],
            _ => std::iter::repeat_with(|| self.random.u8(..))
                .take(length)
                .collect(),
        }
    }

    /// Anywhere in the first megabyte, on a block more often than not.
    fn offset(&mut self) -> u64 {
        match self.random.u32(..3) {
            0 => self.random.u64(..1 << 20),
            _ => self.random.u64(..256) * 4096,
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
        Ok(rustix::fs::renameat_with(
            CWD,
            one,
            CWD,
            other,
            RenameFlags::EXCHANGE,
        )?)
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
        let (mut from_offset, mut to_offset) =
            (self.random.u64(..64) * 4096, self.random.u64(..256) * 4096);
        let length = self.random.usize(1..64) * 4096;
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
