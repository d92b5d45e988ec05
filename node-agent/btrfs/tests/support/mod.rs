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

const PREFIX: &str = "icbd-pool-";

/// A mounted btrfs file system of its own.
pub struct Pool {
    directory: PathBuf,
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
