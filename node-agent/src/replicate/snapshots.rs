//! Which snapshot is to go where, and on which parent: told from what is on disk.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use icbd_btrfs::{Identity, Subvolume, SubvolumeInfo};
use icbd_wire::control::Reason;
use uuid::Uuid;

use super::folder::Folder;
use crate::error::{Error, Result};
use crate::transfer::Opened;

/// What there is to do.
pub(super) enum Found {
    /// Nothing: the content is there already, under this name.
    AlreadyThere,
    ToSend(Box<Pair>),
}

/// A snapshot, and where it is to go.
pub(super) struct Pair {
    source: Snapshot,
    dir: File,
    name: Vec<u8>,
    /// The parent here and there.
    parent: Option<(Snapshot, Snapshot)>,
}

/// A read-only subvolume whose content is known.
struct Snapshot {
    subvolume: Subvolume,
    info: SubvolumeInfo,
    content: Uuid,
}

impl Snapshot {
    fn of(subvolume: Subvolume) -> Result<Option<Self>> {
        let name = subvolume.name().escape_ascii().to_string();
        let info = subvolume.info().map_err(Error::btrfs(name))?;
        let content = Identity::of(&info).clean();
        Ok(content.map(|content| Self {
            subvolume,
            info,
            content,
        }))
    }

    fn open(path: &Path) -> Result<Self> {
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
}

/// Looks at both ends.
pub(super) fn find(subvolume: &Path, dir: &Path, parent: Option<&Path>) -> Result<Found> {
    let reading = |path: &Path| format!("open {}", path.display());
    let subvolume = fs::canonicalize(subvolume).map_err(Error::io(reading(subvolume)))?;
    let source = Snapshot::open(&subvolume)?;
    let name = subvolume
        .file_name()
        .map(OsStrExt::as_bytes)
        .unwrap_or_default()
        .to_vec();
    if name.is_empty() {
        let message = "the root of a file system has no name to be replicated under";
        return Err(Error::refused(Reason::InvalidArgument, message));
    }
    let target = File::open(dir).map_err(Error::io(reading(dir)))?;
    let there = beside(dir)?;
    if let Some(what) = in_the_way(dir, &name)? {
        let same = there.iter().find(|other| other.subvolume.name() == name);
        return match same {
            Some(same) if same.content == source.content => Ok(Found::AlreadyThere),
            _ => Err(Error::refused(
                Reason::Conflict,
                format!(
                    "{} is there already, and is another {what}",
                    what_path(dir, &name)
                ),
            )),
        };
    }
    let parent = match parent {
        Some(parent) => Some(named_parent(parent, there, dir)?),
        None => newest_common(&source, &subvolume, there)?,
    };
    Ok(Found::ToSend(Box::new(Pair {
        source,
        dir: target,
        name,
        parent,
    })))
}

fn what_path(dir: &Path, name: &[u8]) -> String {
    dir.join(std::ffi::OsStr::from_bytes(name))
        .display()
        .to_string()
}

/// What stands under the name that the snapshot is to have.
fn in_the_way(dir: &Path, name: &[u8]) -> Result<Option<&'static str>> {
    let path = dir.join(std::ffi::OsStr::from_bytes(name));
    match fs::symlink_metadata(&path) {
        // Every subvolume's root has this inode number.
        Ok(meta) if meta.is_dir() && meta.ino() == 256 => Ok(Some("subvolume")),
        Ok(_) => Ok(Some("file or directory")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("look at {}", path.display()))(error)),
    }
}

/// The snapshots that stand directly in a directory.
fn beside(dir: &Path) -> Result<Vec<Snapshot>> {
    let reading = || format!("read {}", dir.display());
    let opened = File::open(dir).map_err(Error::io(reading()))?;
    let mut snapshots = Vec::new();
    for entry in fs::read_dir(dir).map_err(Error::io(reading()))? {
        let name = entry.map_err(Error::io(reading()))?.file_name();
        // What cannot be opened as one is none.
        if let Ok(subvolume) = Subvolume::open(&opened, name.as_bytes())
            && let Some(snapshot) = Snapshot::of(subvolume)?
        {
            snapshots.push(snapshot);
        }
    }
    Ok(snapshots)
}

fn named_parent(parent: &Path, there: Vec<Snapshot>, dir: &Path) -> Result<(Snapshot, Snapshot)> {
    let here = Snapshot::open(parent)?;
    let replica = there
        .into_iter()
        .find(|other| other.content == here.content);
    let replica = replica.ok_or_else(|| {
        let message = format!(
            "{} holds no replica of {}, whose content is {}",
            dir.display(),
            parent.display(),
            here.content,
        );
        Error::refused(Reason::ParentMissing, message)
    })?;
    Ok((here, replica))
}

/// The newest snapshot beside the source that is there too.
fn newest_common(
    source: &Snapshot,
    path: &Path,
    there: Vec<Snapshot>,
) -> Result<Option<(Snapshot, Snapshot)>> {
    let dir = path.parent().map(PathBuf::from).unwrap_or_default();
    let mut here = beside(&dir)?;
    here.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.info.otransid));
    let common = here.into_iter().find_map(|parent| {
        let shared = |other: &Snapshot| other.content == parent.content;
        let same = parent.content == source.content;
        let at = there.iter().position(shared).filter(|_| !same)?;
        Some((parent, at))
    });
    Ok(common.and_then(|(parent, at)| {
        let replica = there.into_iter().nth(at)?;
        Some((parent, replica))
    }))
}

impl Pair {
    pub(super) fn parent_name(&self) -> Option<String> {
        let (parent, _) = self.parent.as_ref()?;
        let name = parent.subvolume.name();
        let last = name.rsplit(|byte| *byte == b'/').next()?;
        Some(String::from_utf8_lossy(last).into_owned())
    }

    /// What the source opens, and what the receiver fills.
    pub(super) fn ends(self) -> Result<(Opened, Folder)> {
        let Self {
            source,
            dir,
            name,
            parent,
        } = self;
        let (here, there) = parent.unzip();
        let parent = there.map(|there| (there.content, there.subvolume));
        let folder = Folder::make(dir, name, source.content, parent)?;
        let opened = Opened {
            at: source.subvolume.name().escape_ascii().to_string(),
            source: source.subvolume,
            parent: here.map(|here| here.subvolume),
        };
        Ok((opened, folder))
    }
}
