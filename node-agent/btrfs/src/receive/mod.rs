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
//! [`Receiver::run`], for a stream as the kernel makes it, or [`Arriving`], for one that comes in
//! blocks, makes the partial and carries out the stream's commands in their order, which
//! matters: writing to a file takes its capabilities away, changing a directory its times.
//! [`Received::sync`] then makes all data durable, which takes its time; [`Received::finish`] marks
//! the partial with the identity of its content, and takes one read-only snapshot of it under the
//! final name: content, name, flag and mark become durable together, or not at all. Until then
//! nothing but the partial can be seen, and when any of it fails, or the [`Received`] is dropped,
//! the partial is deleted. [`Arriving::checkpoint`] keeps what has come so far, so that another
//! attempt can go on from there.
//!
//! # What a stream does not say
//!
//! Modes of new files are 0600, of new directories 0700, until the stream sets them. Extended
//! attributes that a new object inherits from its directory are taken away, for the stream names
//! all that it has. Creation times are the receiver's own, and so are inode flags: full streams
//! do not carry them, and increments only their changes.

mod apply;
mod applying;
mod decode;
mod error;
mod files;
mod inspect;
mod kept;
mod making;
mod tree;

use std::fmt;
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use uuid::Uuid;

pub use error::{NotDurable, ReceiveError, Refusal};
pub use inspect::{Inspection, Inspector};

use crate::encoding::Encoding;
use crate::stream::{BlockReader, Position, Problem, Reader, StreamError, Version};
use crate::subvolume::Subvolume;
use apply::Announcements;
use applying::{Applying, Partial};
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

impl Progress {
    fn before(upcoming: Position) -> Self {
        Self {
            bytes: upcoming.offset,
            commands: upcoming.command.saturating_sub(1),
        }
    }
}

/// Receives streams into one directory.
#[derive(Clone, Copy, Debug)]
pub struct Receiver<'a> {
    dir: BorrowedFd<'a>,
    partial: &'a [u8],
    bases: &'a [Base<'a>],
    encoding: Encoding,
}

impl<'a> Receiver<'a> {
    /// A receiver that calls its partial `partial` in `dir`, a directory on btrfs.
    pub fn new(dir: BorrowedFd<'a>, partial: &'a [u8], bases: &'a [Base<'a>]) -> Receiver<'a> {
        Receiver {
            dir,
            partial,
            bases,
            encoding: Encoding::Plain,
        }
    }

    /// With [`Encoding::AsStored`], compressed extents are written as they come, where the file system
    /// takes them; each is looked up before it counts as durable. Payloads that do not decompress are
    /// refused either way. The processes that may change the partial are none, and so
    /// is autodefrag: what it moves is not found again, and the stream fails for it. It needs
    /// CAP_SYS_ADMIN, and CAP_DAC_READ_SEARCH.
    #[must_use]
    pub fn with_encoding(self, encoding: Encoding) -> Receiver<'a> {
        Receiver { encoding, ..self }
    }

    /// Receives one stream as the kernel makes it, up to its END command and no byte further.
    /// `progress` is called after every command, and can break it off.
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
        let mut applying = Applying::new(*self, Announcements::Refused);
        loop {
            let position = stream.upcoming();
            let done = Progress::before(position);
            if progress(done).is_break() {
                return Err(ReceiveError::Cancelled { bytes: done.bytes });
            }
            match stream.next_command()? {
                Some(command) => applying.command(position, &command)?,
                None => return applying.end(done.bytes),
            }
        }
    }

    /// Receives a stream block by block.
    #[must_use]
    pub fn begin(&self) -> Arriving<'a> {
        Arriving {
            applying: Applying::new(*self, Announcements::Kept),
            stream: BlockReader::begin(),
        }
    }

    /// Goes on where `checkpoint` was made, of which `subvolume` is what it kept.
    ///
    /// # Errors
    /// It is not that subvolume; the partial cannot be made.
    pub fn resume(
        &self,
        checkpoint: &Checkpoint,
        subvolume: &Subvolume,
    ) -> Result<Arriving<'a>, ReceiveError> {
        Ok(Arriving {
            applying: Applying::resume(*self, checkpoint, subvolume)?,
            stream: BlockReader::resume(checkpoint.version, checkpoint.upcoming),
        })
    }
}

/// A snapshot while it arrives in blocks. Dropping it deletes what came; checkpoints stay.
pub struct Arriving<'a> {
    applying: Applying<'a>,
    stream: BlockReader,
}

impl<'a> Arriving<'a> {
    /// Carries out the next block of the stream: whole commands. `progress` is called after every
    /// command, and can break it off.
    ///
    /// UPDATE_EXTENT is taken as the announcement of what follows: the data of the range by WRITE,
    /// its holes by FALLOCATE.
    ///
    /// # Errors
    /// The stream is refused, or the kernel refuses what it says. There is no going on then.
    pub fn block(
        &mut self,
        block: &[u8],
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), ReceiveError> {
        self.inspected_block(block, Inspection::default(), progress)
    }

    /// As [`Arriving::block`], with what an [`Inspector`] has found out about this block.
    ///
    /// # Errors
    /// As there.
    pub fn inspected_block(
        &mut self,
        mut block: &[u8],
        inspection: Inspection,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<(), ReceiveError> {
        self.applying.rely_on(inspection);
        loop {
            let before = self.stream.upcoming();
            let Some(command) = self.stream.next_command(&mut block)? else {
                return Ok(());
            };
            // The stream's header may have come before the command.
            let position = before.max(Position::FIRST_COMMAND);
            self.applying.command(position, &command)?;
            let done = Progress::before(self.stream.upcoming());
            if progress(done).is_break() {
                return Err(ReceiveError::Cancelled { bytes: done.bytes });
            }
        }
    }

    /// How much of the stream was carried out.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress::before(self.stream.upcoming())
    }

    /// Keeps what has come so far as the read-only subvolume `name`, durable when this returns. The
    /// caller records the answer; before that is durable too, the checkpoint counts for nothing.
    /// `None` if nothing has come yet, or all.
    ///
    /// # Errors
    /// Data could not be written back, and there is no going on; a call failed. The subvolume is
    /// deleted then.
    pub fn checkpoint(&mut self, name: &[u8]) -> Result<Option<Checkpoint>, ReceiveError> {
        let Some(version) = self.stream.version() else {
            return Ok(None);
        };
        if self.stream.is_ended() {
            return Ok(None);
        }
        let kept = self.applying.keep(name)?;
        Ok(kept.map(|(uuid, content)| Checkpoint {
            uuid,
            content,
            version,
            upcoming: self.stream.upcoming(),
        }))
    }

    /// All blocks have come.
    ///
    /// # Errors
    /// The stream has not ended.
    pub fn end(self) -> Result<Received<'a>, ReceiveError> {
        let bytes = self.progress().bytes;
        if !self.stream.is_ended() {
            return Err(ReceiveError::Stream(StreamError {
                position: self.stream.upcoming(),
                command: None,
                problem: Problem::Truncated,
            }));
        }
        self.applying.end(bytes)
    }
}

impl fmt::Debug for Arriving<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arriving")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

/// Where an arriving snapshot can go on: what must be known of it beside the subvolume that keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The uuid of the subvolume.
    pub uuid: Uuid,
    /// What the stream said of itself.
    pub content: Content,
    /// The stream's version.
    pub version: Version,
    /// Where the stream goes on.
    pub upcoming: Position,
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
        self.files.sync(self.partial.subvolume.as_fd())?;
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
            mut files,
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
        partial.become_snapshot(name).map_err(ReceiveError::Finish)
    }
}

/// What the extents of encoded writes stand for, one after the other, as a stream has them.
///
/// # Errors
/// Of each that is damaged, or too much.
#[cfg(fuzzing)]
pub fn decode(extents: &[crate::stream::Encoded<'_>]) -> Vec<Result<Vec<u8>, Refusal>> {
    let mut decoder = decode::Decoder::default();
    extents
        .iter()
        .map(|extent| decoder.decode(extent).map(<[u8]>::to_vec))
        .collect()
}
