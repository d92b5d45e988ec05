//! Real btrfs file systems for tests: a sparse file, formatted, on a loop device, mounted in a temporary directory.
//! Unmounted and removed on drop; what a killed run left behind goes when the next one starts.
// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use rustix::fs::SeekFrom;

const PREFIX: &str = "icbd-pool-";

/// What mkfs overwrites at the end of a disk.
const CLEARED: u64 = 2 << 20;

/// A mounted btrfs file system of its own.
pub struct Pool {
    directory: PathBuf,
    size: u64,
    /// Locked for as long as the pool is in use: tells a live pool from a leftover.
    _lock: File,
}

impl Pool {
    /// A file system with room for 4 GiB, which takes no more than is written to it.
    pub fn new() -> Self {
        Self::with_size(4 << 30)
    }

    /// A file system of `size` bytes.
    pub fn with_size(size: u64) -> Self {
        static LEFTOVERS: Once = Once::new();
        LEFTOVERS.call_once(remove_leftovers);
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .unwrap()
            .keep();
        // Locked before it has its name, so that no other process finds it unlocked.
        let lock = File::create(directory.join("lock.new")).unwrap();
        lock.lock().unwrap();
        fs::rename(directory.join("lock.new"), directory.join("lock")).unwrap();
        let pool = Self {
            directory,
            size,
            _lock: lock,
        };
        let image = pool.directory.join("disk");
        File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(pool.path()).unwrap();
        run("mkfs.btrfs", ["-q".as_ref(), image.as_os_str()]);
        run(
            "mount",
            [
                "-o".as_ref(),
                // No test pulls the plug on the machine, and each commit would wait for its disk.
                "loop,nobarrier".as_ref(),
                image.as_os_str(),
                pool.path().as_os_str(),
            ],
        );
        pool
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.join("mnt")
    }

    /// Changes the options that it is mounted with.
    pub fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let path = self.path();
        run("mount", ["-o".as_ref(), options.as_ref(), path.as_os_str()]);
    }

    /// The file that the loop device stands on.
    pub fn disk(&self) -> PathBuf {
        self.directory.join("disk")
    }

    /// Cuts off what the disk has never held, but for the next `spare` bytes: what is written there fails.
    pub fn cut_disk(&self, spare: u64) {
        let disk = File::open(self.disk()).unwrap();
        let mut end = 0;
        // mkfs clears the very end.
        while let Ok(data) = rustix::fs::seek(&disk, SeekFrom::Data(end))
            && data < self.size - CLEARED
        {
            end = rustix::fs::seek(&disk, SeekFrom::Hole(data)).unwrap();
        }
        self.resize_disk(end + spare);
    }

    /// Gives the disk its end back.
    pub fn mend_disk(&self) {
        self.resize_disk(self.size);
    }

    /// Gives it a larger disk.
    pub fn grow(&self, size: u64) {
        self.resize_disk(size);
        let path = self.path();
        let resize = ["filesystem", "resize", "max"].map(OsStr::new);
        run("btrfs", resize.into_iter().chain([path.as_os_str()]));
    }

    fn resize_disk(&self, size: u64) {
        let disk = self.disk();
        File::options()
            .write(true)
            .open(&disk)
            .unwrap()
            .set_len(size)
            .unwrap();
        let device = Command::new("losetup")
            .args(["-nO", "NAME", "-j"])
            .arg(&disk)
            .output()
            .unwrap();
        let device = String::from_utf8(device.stdout).unwrap();
        run("losetup", ["-c", device.trim()]);
    }

    /// Its root directory, open.
    pub fn dir(&self) -> OwnedFd {
        File::open(self.path()).unwrap().into()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Runs a program to its end and fails the test if it fails.
pub fn run<I, S>(program: &str, arguments: I)
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}

/// Removes the pools whose lock nobody holds.
fn remove_leftovers() {
    for entry in fs::read_dir(std::env::temp_dir()).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // Without a lock file it is a pool that another process is making this very moment.
        if let Ok(lock) = File::open(entry.path().join("lock"))
            && lock.try_lock().is_ok()
        {
            remove(&entry.path());
        }
    }
}

/// A loop device that `mount -o loop` made detaches itself when its file system is unmounted.
fn remove(directory: &Path) {
    let _ = Command::new("umount")
        .arg("-l")
        .arg(directory.join("mnt"))
        .stderr(Stdio::null())
        .status();
    let _ = fs::remove_dir_all(directory);
}
