//! Why a stream was not received: which command, where in the stream, on which path, and what the
//! kernel said, where it said something.

use rustix::io::Errno;
use thiserror::Error;
use uuid::Uuid;

use crate::Error;
use crate::stream::{Kind, Position, StreamError, TreePath};

/// A stream that was not received. Nothing of it is left under the number it was for.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// There was no stream to read.
    #[error("there is no stream: the input ended before its first byte")]
    NoStream,
    /// The stream itself is not right, or could not be read on.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A command could not be carried out.
    #[error("send stream, {position} ({command}) on \"{path}\": {refusal}")]
    Command {
        /// Where the command starts.
        position: Position,
        /// What it is.
        command: Kind,
        /// What it is about, escaped; empty for the root of the subvolume.
        path: String,
        /// Why not.
        #[source]
        refusal: Refusal,
    },
    /// The one who watches the progress wanted no more.
    #[error("cancelled after {bytes} bytes")]
    Cancelled {
        /// Bytes of the stream that had been read.
        bytes: u64,
    },
    /// Data that had been written could not be made durable.
    #[error(transparent)]
    NotDurable(#[from] NotDurable),
    /// What has come so far could not be kept, or not be gone on from.
    #[error("cannot make or take up a checkpoint: {0}")]
    Checkpoint(#[source] Error),
    /// The same, for a reason inside the tree.
    #[error("cannot make or take up a checkpoint: {0}")]
    Settle(#[source] Refusal),
    /// The subvolume given is not the one that the checkpoint's record speaks of.
    #[error("the checkpoint {0} is not there")]
    OtherCheckpoint(Uuid),
    /// All is there, and could not be made a snapshot.
    #[error("cannot finish the snapshot: {0}")]
    Finish(#[source] Error),
}

impl ReceiveError {
    pub(super) fn command(
        position: Position,
        command: Kind,
        path: TreePath<'_>,
    ) -> impl FnOnce(Refusal) -> Self {
        move |refusal| Self::Command {
            position,
            command,
            path: path.to_string(),
            refusal,
        }
    }

    pub(super) fn settle(refusal: Refusal) -> Self {
        Self::Settle(refusal)
    }

    /// The kernel's error number, where the kernel is who refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::NotDurable(error) => Some(error.errno()),
            Self::Command { refusal, .. } | Self::Settle(refusal) => refusal.errno(),
            Self::Checkpoint(error) | Self::Finish(error) => error.errno(),
            Self::NoStream
            | Self::Stream(_)
            | Self::Cancelled { .. }
            | Self::OtherCheckpoint(_) => None,
        }
    }
}

/// Data that had been written is not durable, and will not be.
#[derive(Debug, Error)]
pub enum NotDurable {
    /// The kernel says so.
    #[error("cannot make \"{path}\" durable: {errno}")]
    Sync {
        /// The file's path when it was first written to, escaped; empty for many files.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Compressed data that was written as it came is not there.
    #[error("what was written to \"{path}\" is not there: no space is left, or the disk fails")]
    Lost {
        /// As above.
        path: String,
    },
}

impl NotDurable {
    pub(super) fn sync(path: &[u8]) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::Sync {
            path: path.escape_ascii().to_string(),
            errno,
        }
    }

    pub(super) fn lost(path: &[u8]) -> Self {
        Self::Lost {
            path: path.escape_ascii().to_string(),
        }
    }

    fn errno(&self) -> Errno {
        match self {
            Self::Sync { errno, .. } => *errno,
            // What else there can be, some other call tells too.
            Self::Lost { .. } => Errno::NOSPC,
        }
    }
}

/// Why a command was not carried out.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The kernel refused a call.
    #[error("cannot {doing}: {errno}")]
    System {
        /// The operation, as a verb.
        doing: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Data that was written before is in the way, and not durable.
    #[error(transparent)]
    NotDurable(#[from] NotDurable),
    /// The partial subvolume could not be made.
    #[error(transparent)]
    Subvolume(#[from] Error),
    /// SUBVOL or SNAPSHOT has to come first.
    #[error("it comes before SUBVOL or SNAPSHOT")]
    BeforeSubvolume,
    /// A stream is of one subvolume.
    #[error("the stream has begun a subvolume already")]
    SecondSubvolume,
    /// A snapshot without identity could never be found again.
    #[error("the subvolume's uuid is nil")]
    NilUuid,
    /// The parent is not among those that were given.
    #[error("its parent {0} is not here")]
    NoParent(Uuid),
    /// The clone source is neither the subvolume itself nor among those that were given.
    #[error("its clone source {0} is not here")]
    NoCloneSource(Uuid),
    /// The root directory was made with the subvolume, and stays.
    #[error("it cannot be done to the root directory")]
    Root,
    /// Only regular files have data.
    #[error("it is not a regular file")]
    NotAFile,
    /// Cloning what the source does not have.
    #[error("the clone source has {size} bytes, and byte {end} was asked for")]
    CloneBeyondEnd {
        /// Size of the source.
        size: u64,
        /// End of the range.
        end: u64,
    },
    /// fallocate(2) has more modes than send uses.
    #[error("fallocate mode {0:#x} is not supported")]
    FallocateMode(u32),
    /// Extents compressed with LZO come only from a sender that was asked for compressed data.
    #[error("extents compressed with LZO are not supported; send without --compressed-data")]
    Lzo,
    /// The payload of an encoded write.
    #[error("the {0} data of the extent is damaged")]
    Decode(&'static str),
    /// The stream was asked for with `BTRFS_SEND_FLAG_NO_FILE_DATA`.
    #[error("the stream was made without file data")]
    NoFileData,
}

impl Refusal {
    fn errno(&self) -> Option<Errno> {
        match self {
            Self::System { errno, .. } => Some(*errno),
            Self::NotDurable(error) => Some(error.errno()),
            Self::Subvolume(error) => error.errno(),
            _ => None,
        }
    }

    pub(super) fn system(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::System { doing, errno }
    }
}
