//! Why the agent refuses or fails, in the contract's words: every error has a [`Reason`] and a
//! sentence for people. How errors travel (gRPC, the data protocol) is decided by who sends them.

use std::io;

use icbd_btrfs::receive::ReceiveError;
use icbd_btrfs::{BlockError, Errno};
use icbd_wire::control::{self, Reason};

/// A refusal or a failure.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A rule says no, or the other end of a transfer does.
    #[error("{message}")]
    Refused {
        reason: Reason,
        message: String,
        /// What the kernel said to whom this was heard from.
        errno: Option<Errno>,
    },
    /// A call on the file system or the network failed.
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: io::Error },
    /// A btrfs operation failed; `at` is where, as a path below the pool.
    #[error("{at}: {source}")]
    Btrfs {
        at: String,
        source: icbd_btrfs::Error,
    },
    /// A snapshot could not be sent in blocks; `at` is where it is, as a path below the pool.
    #[error("cannot send {at}: {source}")]
    Blocks { at: String, source: BlockError },
    /// A stream was not received; `at` is where it was to go, as a path below the pool.
    #[error("cannot receive {at}: {source}")]
    Receive { at: String, source: ReceiveError },
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::Refused {
            reason,
            message: message.into(),
            errno: None,
        }
    }

    /// For `map_err` on calls that answer with an errno or an [`io::Error`].
    pub(crate) fn io<E: Into<io::Error>>(doing: impl Into<String>) -> impl FnOnce(E) -> Self {
        let doing = doing.into();
        move |source| Self::Io {
            doing,
            source: source.into(),
        }
    }

    /// The same, saying in which directory, as a path below the pool, a call failed.
    pub(crate) fn inside(self, at: &str) -> Self {
        match self {
            Self::Io { doing, source } => Self::Io {
                doing: format!("{doing} in {at}"),
                source,
            },
            other => other,
        }
    }

    /// For `map_err` on btrfs operations.
    pub(crate) fn btrfs(at: impl Into<String>) -> impl FnOnce(icbd_btrfs::Error) -> Self {
        let at = at.into();
        move |source| Self::Btrfs { at, source }
    }

    /// For `map_err` on receiving.
    pub(crate) fn receive(at: impl Into<String>) -> impl FnOnce(ReceiveError) -> Self {
        let at = at.into();
        move |source| Self::Receive { at, source }
    }

    /// For `map_err` on sending in blocks.
    pub(crate) fn blocks(at: impl Into<String>) -> impl FnOnce(BlockError) -> Self {
        let at = at.into();
        move |source| Self::Blocks { at, source }
    }

    /// The kernel's error number, if a call failed.
    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => *errno,
            Self::Io { source, .. } => Errno::from_io_error(source),
            Self::Btrfs { source, .. } => source.errno(),
            Self::Blocks { source, .. } => source.errno(),
            Self::Receive { source, .. } => source.errno(),
        }
    }

    /// What the operator is told as the cause.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Blocks {
                source: BlockError::Changed { .. },
                ..
            } => Reason::SourceChanged,
            Self::Io { .. } | Self::Btrfs { .. } | Self::Blocks { .. } | Self::Receive { .. } => {
                match self.errno() {
                    Some(Errno::NOSPC | Errno::DQUOT) => Reason::InsufficientSpace,
                    Some(Errno::ROFS | Errno::STALE | Errno::NODEV) => Reason::PoolUnavailable,
                    None if matches!(self, Self::Receive { .. } | Self::Blocks { .. }) => {
                        Reason::StreamInvalid
                    }
                    _ => Reason::IoError,
                }
            }
        }
    }

    /// The same, for one more who has to know.
    pub(crate) fn again(&self) -> Self {
        Self::Refused {
            reason: self.reason(),
            message: self.to_string(),
            errno: self.errno(),
        }
    }

    /// Whether it is worth another try as it is. EIO is a disk's or a checksum's verdict, and stays.
    pub(crate) fn is_transient(&self) -> bool {
        self.reason().is_transient() && self.errno() != Some(Errno::IO)
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        control::refusal(error.reason(), error.to_string())
    }
}

/// Runs blocking file-system work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done,
        Err(lost) => Err(Error::Io {
            doing: "finish an operation of this agent".into(),
            source: io::Error::other(lost),
        }),
    }
}
