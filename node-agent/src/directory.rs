//! A plain directory on btrfs with snapshots in it, outside any pool: which there are, told by their
//! content. What is done with them is the business of the commands for hosts without Kubernetes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use icbd_btrfs::{Identity, Subvolume, SubvolumeInfo};
use icbd_wire::control::Reason;
use rustix::process::{Resource, Rlimit};
use uuid::Uuid;

use crate::error::{Error, Result};

/// A read-only subvolume whose content is known.
pub(crate) struct Snapshot {
    pub(crate) subvolume: Subvolume,
    pub(crate) info: SubvolumeInfo,
    pub(crate) content: Uuid,
}

impl Snapshot {
    /// The snapshot that a subvolume is; `None` if it is writable, or was changed.
    pub(crate) fn of(subvolume: Subvolume) -> Result<Option<Self>> {
        let name = subvolume.name().escape_ascii().to_string();
        let info = subvolume.info().map_err(Error::btrfs(name))?;
        let content = Identity::of(&info).clean();
        Ok(content.map(|content| Self {
            subvolume,
            info,
            content,
        }))
    }

    /// Opens the snapshot at a path.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(Error::io(format!("open {name}")))?;
        let subvolume = Subvolume::from_fd(file.into(), path.as_os_str().as_bytes())
            .map_err(Error::btrfs(&name))?;
        Self::of(subvolume)?.ok_or_else(|| {
            let message = format!(
                "{name} is writable, or was changed since it was taken: take a read-only snapshot \
                 of it, and replicate that"
            );
            Error::refused(Reason::InvalidArgument, message)
        })
    }

    /// The snapshots that stand directly in a directory, each of them open.
    pub(crate) fn all_in(dir: &Path) -> Result<Vec<Self>> {
        allow_many_descriptors();
        let reading = || format!("read {}", dir.display());
        let opened = File::open(dir).map_err(Error::io(reading()))?;
        let mut snapshots = Vec::new();
        for entry in fs::read_dir(dir).map_err(Error::io(reading()))? {
            let name = entry.map_err(Error::io(reading()))?.file_name();
            // What cannot be opened as one is none.
            if let Ok(subvolume) = Subvolume::open(&opened, name.as_bytes())
                && let Some(snapshot) = Self::of(subvolume)?
            {
                snapshots.push(snapshot);
            }
        }
        Ok(snapshots)
    }
}

/// A directory may hold more snapshots than a process may usually have files open.
fn allow_many_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Refused, what there is must do.
    let _ = rustix::process::setrlimit(Resource::Nofile, most);
}

/// What stands under a name already.
pub(crate) fn in_the_way(dir: &Path, name: &[u8]) -> Result<Option<&'static str>> {
    let path = entry(dir, name);
    match fs::symlink_metadata(&path) {
        // Every subvolume's root has this inode number.
        Ok(meta) if meta.is_dir() && meta.ino() == 256 => Ok(Some("subvolume")),
        Ok(_) => Ok(Some("file or directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("look at {}", path.display()))(error)),
    }
}

/// The path of an entry, whose name may be any bytes.
pub(crate) fn entry(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(name))
}
