//! A block device that nobody has a reason to write to.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::{Command, Stdio};

const BYTES: usize = 64 << 10;

/// A loop device with known content. It detaches itself when this goes, however it goes.
pub struct Device {
    file: File,
    rdev: u64,
}

impl Device {
    pub fn new() -> Device {
        let backing = tempfile::NamedTempFile::new().unwrap();
        fs::write(backing.path(), vec![b'd'; BYTES]).unwrap();
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(backing.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let path = String::from_utf8(output.stdout).unwrap();
        let file = File::open(path.trim()).unwrap();
        // While it is open here this only marks it, to be detached when it is closed.
        crate::support::run("losetup", ["--detach", path.trim()]);
        let rdev = file.metadata().unwrap().rdev();
        Device { file, rdev }
    }

    /// Its number, as the system calls have it.
    pub fn number(&self) -> u64 {
        self.rdev
    }

    /// Its number, as streams have it (the kernel's `new_encode_dev`).
    pub fn stream_number(&self) -> u32 {
        let (major, minor) = (rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev));
        (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
    }

    pub fn is_untouched(&self) -> bool {
        let mut bytes = vec![0; BYTES];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes.iter().all(|&byte| byte == b'd')
    }
}
