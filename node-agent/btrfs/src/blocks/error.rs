//! Why a stream cannot be cut into blocks, or a block not filled.

use rustix::io::Errno;

use crate::error::Error;
use crate::stream::StreamError;
use crate::watched::Failure;

/// What can go wrong while a snapshot is sent in blocks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The watcher broke it off.
    #[error("sending was broken off")]
    BrokenOff,
    /// The kernel does not send this, or not all of it.
    #[error(transparent)]
    Send(#[from] Error),
    /// What the kernel sends is not what it should be.
    #[error("cannot cut into blocks what the kernel sends: {0}")]
    Stream(#[source] StreamError),
    /// The stream names something that it has not made, and that the parent does not have.
    #[error("\"{path}\" of the stream is not a file that the snapshot or its parent has")]
    Unknown {
        /// The path, escaped.
        path: String,
    },
    /// The kernel sends an extent compressed with LZO, which receivers do not take. To be sent plain.
    #[error("\"{path}\" of the snapshot is compressed with LZO, and can only be sent plain")]
    Lzo {
        /// The path that the stream calls it by, escaped.
        path: String,
    },
    /// The kernel refused a call about a file of a snapshot.
    #[error("cannot {doing} \"{path}\" of the snapshot: {errno}")]
    File {
        /// The operation, as a verb.
        doing: &'static str,
        /// The path that the stream calls it by, escaped.
        path: String,
        /// The kernel's answer. EIO: the disk cannot be read, or the data does not match its
        /// checksum.
        errno: Errno,
    },
    /// A file has another end than the kernel announced.
    #[error("\"{path}\" ends before byte {end}, which the kernel announced")]
    Short {
        /// The path that the stream calls it by, escaped.
        path: String,
        /// End of the range.
        end: u64,
    },
    /// A snapshot is not what it was when sending began.
    #[error("snapshot \"{name}\" changed while it was sent")]
    Changed {
        /// The snapshot's name, escaped.
        name: String,
    },
}

impl BlockError {
    pub(crate) fn of(error: StreamError) -> Self {
        match Failure::of(error) {
            Failure::BrokenOff => Self::BrokenOff,
            Failure::Send(error) => Self::Send(error),
            Failure::Stream(error) => Self::Stream(error),
        }
    }

    pub(super) fn file(doing: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> Self {
        move |errno| Self::File {
            doing,
            path: path.escape_ascii().to_string(),
            errno,
        }
    }

    pub(super) fn unknown(path: &[u8]) -> Self {
        Self::Unknown {
            path: path.escape_ascii().to_string(),
        }
    }

    /// The kernel's error number, where the kernel is who refused.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Send(error) => error.errno(),
            Self::File { errno, .. } => Some(*errno),
            Self::BrokenOff
            | Self::Stream(_)
            | Self::Unknown { .. }
            | Self::Lzo { .. }
            | Self::Short { .. }
            | Self::Changed { .. } => None,
        }
    }
}
