//! The home of a snapshot outside any pool: a directory, with a record beside what is arriving.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use icbd_btrfs::receive::Received;
use icbd_btrfs::{Errno, Subvolume};
use icbd_wire::control::Reason;
use rustix::fs::FlockOperation;
use uuid::Uuid;

use crate::durable;
use crate::error::{Error, Result};
use crate::image::checkpoint::CheckpointRecord;
use crate::transfer::Home;

/// A place for one snapshot in a directory.
pub(super) struct Folder {
    dir: File,
    /// Its last name, as a string: it is in names of files beside it.
    name: String,
    content: Uuid,
    parent: Option<(Uuid, Subvolume)>,
    resume: Option<(CheckpointRecord, Subvolume)>,
}

impl Folder {
    /// Makes the place, and takes it for this process.
    pub(super) fn make(
        dir: File,
        name: Vec<u8>,
        content: Uuid,
        parent: Option<(Uuid, Subvolume)>,
    ) -> Result<Self> {
        let name = String::from_utf8(name).map_err(|error| {
            let name = error.as_bytes().escape_ascii().to_string();
            let message = format!("the name {name:?} of the snapshot is not UTF-8");
            Error::refused(Reason::InvalidArgument, message)
        })?;
        lock(&dir)?;
        let mut folder = Self {
            dir,
            name,
            content,
            parent,
            resume: None,
        };
        let parent = folder.parent.as_ref().map(|(parent, _)| *parent);
        let kept: Option<CheckpointRecord> = durable::read(&folder.dir, &folder.record())?;
        folder.resume = kept
            .filter(|kept| kept.serves(content, parent))
            .and_then(|kept| {
                let subvolume = kept.open(&folder.dir, &folder.checkpoint(kept.index))?;
                Some((kept, subvolume))
            });
        let kept = folder.resume.as_ref().map(|(kept, _)| kept.index);
        folder.remove_arrived(kept)?;
        Ok(folder)
    }

    /// Raw bytes that an earlier attempt has left.
    pub(super) fn resumed_at(&self) -> u64 {
        let resume = self.resume.as_ref();
        resume.map_or(0, |(record, _)| record.position().raw)
    }

    /// The content that is to come, and that of its parent.
    pub(super) fn wanted(&self) -> (Uuid, Option<Uuid>) {
        let parent = self.parent.as_ref().map(|(parent, _)| *parent);
        (self.content, parent)
    }

    fn record(&self) -> String {
        format!(".checkpoint-{}.json", self.name)
    }

    /// Removes what came, but for one checkpoint.
    fn remove_arrived(&self, keep: Option<u64>) -> Result<()> {
        remove(&self.dir, &self.partial())?;
        self.remove_checkpoints(keep)
    }

    fn remove_checkpoints(&self, keep: Option<u64>) -> Result<()> {
        let prefix = format!(".checkpoint-{}-", self.name);
        for name in durable::names(&self.dir)? {
            let index = name.strip_prefix(&prefix);
            let index = index.and_then(|index| index.parse::<u64>().ok());
            if index.is_some_and(|index| Some(index) != keep) {
                remove(&self.dir, &name)?;
            }
        }
        Ok(())
    }
}

/// Keeps a second process from the same directory, for as long as this one has it open.
fn lock(dir: &File) -> Result<()> {
    match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let message = "another process replicates into this directory";
            Err(Error::refused(Reason::SnapshotBusy, message))
        }
        Err(errno) => Err(Error::io("lock the directory")(errno)),
    }
}

/// Removes a subvolume, durably, if it is there.
fn remove(dir: &File, name: &str) -> Result<()> {
    match icbd_btrfs::delete(dir, name).and_then(|()| icbd_btrfs::sync_dir(dir)) {
        Err(error) if error.errno() != Some(Errno::NOENT) => Err(Error::btrfs(name)(error)),
        _ => Ok(()),
    }
}

impl Home for Folder {
    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn partial(&self) -> String {
        format!(".partial-{}", self.name)
    }

    fn checkpoint(&self, index: u64) -> String {
        format!(".checkpoint-{}-{index}", self.name)
    }

    fn at(&self) -> String {
        self.name.clone()
    }

    fn content(&self) -> Uuid {
        self.content
    }

    fn parent(&self) -> Option<(Uuid, &Subvolume)> {
        let parent = self.parent.as_ref();
        parent.map(|(content, subvolume)| (*content, subvolume))
    }

    fn resume(&self) -> Option<(&CheckpointRecord, &Subvolume)> {
        let resume = self.resume.as_ref();
        resume.map(|(record, subvolume)| (record, subvolume))
    }

    fn keep(&self, checkpoint: CheckpointRecord) -> Result<()> {
        durable::write(&self.dir, &self.record(), &checkpoint)?;
        self.remove_checkpoints(Some(checkpoint.index))
    }

    fn finish(&self, received: Received<'_>) -> Result<Uuid> {
        let snapshot = received
            .finish(self.name.as_bytes())
            .map_err(Error::receive(self.at()))?;
        self.forget()?;
        Ok(snapshot.info().map_err(Error::btrfs(self.at()))?.uuid)
    }

    fn give_up(&self) -> Result<()> {
        let kept: Option<CheckpointRecord> = durable::read(&self.dir, &self.record())?;
        self.remove_arrived(kept.map(|kept| kept.index))
    }

    fn forget(&self) -> Result<()> {
        durable::remove(&self.dir, &self.record())?;
        self.remove_arrived(None)
    }
}
