//! Which snapshot is to go where, and on which parent: told from what is on disk.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use icbd_wire::control::Reason;

use super::folder::Folder;
use crate::directory::{self, Snapshot};
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
    let there = Snapshot::all_in(dir)?;
    if let Some(what) = directory::in_the_way(dir, &name)? {
        let same = there.iter().find(|other| other.subvolume.name() == name);
        return match same {
            Some(same) if same.content == source.content => Ok(Found::AlreadyThere),
            _ => Err(Error::refused(
                Reason::Conflict,
                format!(
                    "{} is there already, and is another {what}",
                    directory::entry(dir, &name).display()
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
    let mut here = Snapshot::all_in(&dir)?;
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
