//! Receives a send stream as a new snapshot of one directory. Where the bytes come from, which
//! stream is wanted and which number it gets is the caller's; the format is [`crate::stream`]'s.
//!
//! # What is relied on
//!
//! Nothing in the stream. It is applied to a writable subvolume of its own, the partial, every
//! path of it is resolved by the kernel below that subvolume and through no symlink, only regular
//! files are ever opened for their data, and clone sources are the partial itself and the
//! subvolumes that the caller gave. No other process may write to the partial meanwhile.
//!
//! # How a snapshot comes to be
//!
//! [`Receiver::run`] makes the partial and carries out the stream's commands in their order, which
//! matters: writing to a file takes its capabilities away, changing a directory its times.
//! [`Received::sync`] then makes all data durable, which takes its time; [`Received::finish`] marks
//! the partial with the identity of its content, and takes one read-only snapshot of it under the
//! final name: content, name, flag and mark become durable together, or not at all. Until then
//! nothing but the partial can be seen, and when any of it fails, or the [`Received`] is dropped,
//! the partial is deleted.
//!
//! # What a stream does not say
//!
//! Modes of new files are 0600, of new directories 0700, until the stream sets them. Extended
//! attributes that a new object inherits from its directory are taken away, for the stream names
//! all that it has. Creation times are the receiver's own, and so are inode flags: full streams
//! do not carry them, and increments only their changes.

mod apply;
mod decode;
mod error;
mod files;
mod tree;

use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use uuid::Uuid;

pub use error::{ReceiveError, Refusal};

use crate::stream::{Command, Reader};
use crate::subvolume::{self, Access, Subvolume};
use apply::Applier;
use files::Files;

/// A snapshot that the stream may build on: as its parent, or as a source of clones.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// Its content's identity, by which streams name it: the received uuid, else the uuid.
    pub identity: Uuid,
    /// The snapshot, on the same file system.
    pub subvolume: &'a Subvolume,
}

/// How far a stream has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the stream.
    pub bytes: u64,
    /// Commands carried out.
    pub commands: u64,
}

/// Receives streams into one directory.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    dir: BorrowedFd<'a>,
    partial: &'a [u8],
    bases: &'a [Base<'a>],
}

impl<'a> Receiver<'a> {
    /// A receiver that calls its partial `partial` in `dir`, a directory on btrfs.
    pub fn new(dir: BorrowedFd<'a>, partial: &'a [u8], bases: &'a [Base<'a>]) -> Receiver<'a> {
        Receiver {
            dir,
            partial,
            bases,
        }
    }

    /// Receives one stream, up to its END command and no byte further. `progress` is called after
    /// every command, and can break it off.
    ///
    /// # Errors
    /// The stream is refused, or the kernel refuses what it says; the partial is deleted then. One
    /// of that name that was there before is left alone, and is an error.
    pub fn run(
        &self,
        source: impl Read,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Received<'a>, ReceiveError> {
        let mut stream = Reader::begin(source)?.ok_or(ReceiveError::NoStream)?;
        let position = stream.upcoming();
        let first = stream.next_command()?.ok_or(ReceiveError::NoStream)?;
        let (partial, content) = self
            .begin(&first)
            .map_err(ReceiveError::command(position, &first))?;
        let mut applier = Applier::new(&partial.subvolume, content.uuid, self.bases)
            .map_err(ReceiveError::command(position, &first))?;
        loop {
            let position = stream.upcoming();
            let done = Progress {
                bytes: position.offset,
                commands: position.command - 1,
            };
            if progress(done).is_break() {
                return Err(ReceiveError::Cancelled { bytes: done.bytes });
            }
            let Some(command) = stream.next_command()? else {
                let files = applier.into_files();
                return Ok(Received {
                    files,
                    partial,
                    content,
                    bytes: done.bytes,
                });
            };
            applier
                .apply(&command)
                .map_err(ReceiveError::command(position, &command))?;
        }
    }

    /// Makes the partial that the first command asks for.
    fn begin(&self, first: &Command<'_>) -> Result<(Partial<'a>, Content), Refusal> {
        let (name, uuid, ctransid, parent) = match *first {
            Command::Subvol {
                name,
                uuid,
                ctransid,
            } => (name, uuid, ctransid, None),
            Command::Snapshot {
                name,
                uuid,
                ctransid,
                clone_uuid,
                ..
            } => (name, uuid, ctransid, Some(clone_uuid)),
            _ => return Err(Refusal::BeforeSubvolume),
        };
        if uuid.is_nil() {
            return Err(Refusal::NilUuid);
        }
        let subvolume = match parent {
            None => subvolume::create(self.dir, self.partial)?,
            Some(parent) => {
                let base = self.bases.iter().find(|base| base.identity == parent);
                let base = base.ok_or(Refusal::NoParent(parent))?;
                subvolume::snapshot(base.subvolume, self.dir, self.partial, Access::Writable)?
            }
        };
        let partial = Partial {
            dir: self.dir,
            name: self.partial,
            subvolume,
        };
        if parent.is_none() {
            tree::disinherit(partial.subvolume.as_fd())?;
        }
        let name = name.as_bytes().to_vec();
        Ok((
            partial,
            Content {
                name,
                uuid,
                stransid: ctransid,
                parent,
            },
        ))
    }
}

/// What a stream says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The snapshot's name at its source: one plain file name.
    pub name: Vec<u8>,
    /// Identity of the content.
    pub uuid: Uuid,
    /// Transaction of the last change at the source.
    pub stransid: u64,
    /// Identity of the parent, if the stream is an increment.
    pub parent: Option<Uuid>,
}

/// A stream received to its end, not yet a snapshot. Dropping it deletes what was received.
#[must_use = "dropping it deletes what was received"]
#[derive(Debug)]
pub struct Received<'a> {
    files: Files,
    partial: Partial<'a>,
    content: Content,
    bytes: u64,
}

impl Received<'_> {
    /// What the stream said of itself.
    #[must_use]
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Bytes of the stream.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes all data durable, so that [`Received::finish`] has none left to wait for.
    ///
    /// # Errors
    /// Data could not be written back; the partial is deleted.
    pub fn sync(mut self) -> Result<Self, ReceiveError> {
        std::mem::take(&mut self.files).sync(self.partial.subvolume.as_fd())?;
        Ok(self)
    }

    /// Makes what data is not so yet durable, and then the read-only snapshot `name` of it, which is
    /// durable when this returns. The partial is deleted, whether or not this succeeds.
    ///
    /// # Errors
    /// Data could not be written back; there is something called `name`, which stays as it is; a
    /// call failed.
    pub fn finish(self, name: &[u8]) -> Result<Subvolume, ReceiveError> {
        let Received {
            files,
            partial,
            content,
            bytes: _,
        } = self;
        let subvolume = &partial.subvolume;
        files.sync(subvolume.as_fd())?;
        subvolume
            .set_received(content.uuid, content.stransid)
            .map_err(ReceiveError::Finish)?;
        // This commits a transaction, and the mark and all metadata with it.
        subvolume::snapshot(subvolume, partial.dir, name, Access::ReadOnly)
            .map_err(ReceiveError::Finish)
    }
}

/// The writable subvolume that a stream is applied to; it goes when this does.
#[derive(Debug)]
struct Partial<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    subvolume: Subvolume,
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // What cannot be deleted now is still called a partial, and found as one later.
        let _ = subvolume::delete(self.dir, self.name);
        let _ = subvolume::sync_dir(self.dir);
    }
}
