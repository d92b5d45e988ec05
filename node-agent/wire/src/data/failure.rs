//! Why a transfer was refused or ended: one set of codes for both ends, for refusals and aborts.
//! Which condition an operator makes of them is not decided here.

use std::fmt;
use std::io;

use super::schema;
use super::{BlockError, FrameError, HandshakeError, MAX_FAILURE_MESSAGE, Mismatch, OrderError};

/// What went wrong, as one of the protocol's stable numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FailureCode {
    /// A code of a newer protocol than this build's.
    Unknown = 0,
    /// The receiver was not told of this transfer, or not from this source.
    NotExpected = 1,
    /// The receiver already holds this snapshot, with this content.
    AlreadyThere = 2,
    /// One end lacks the parent that the increment is computed against.
    ParentMissing = 3,
    /// There is not enough space, or a quota is used up.
    NoSpace = 4,
    /// The receiver holds other content under this number.
    Conflict = 5,
    /// The receiver has as many transfers as it may have, or this one already runs.
    Busy = 6,
    /// There is no protocol version that both ends speak.
    VersionMismatch = 7,
    /// Bytes differ from what their hash says.
    HashMismatch = 8,
    /// The raw bytes are not a valid send stream, or one that must not be applied.
    StreamInvalid = 9,
    /// A system call failed; `errno` says how.
    Io = 10,
    /// Somebody asked for the transfer to end.
    Cancelled = 11,
    /// The agent is shutting down.
    ShuttingDown = 12,
    /// Something is longer than this end accepts.
    TooLarge = 13,
    /// The other end broke the rules of this protocol.
    ProtocolViolation = 14,
    /// The source's stream is no longer the one of which the receiver holds a part; the next
    /// attempt starts over.
    SourceChanged = 15,
    /// The pool is not mounted, not initialised, or not this installation's.
    PoolUnavailable = 16,
    /// The other end made no progress for too long.
    Stalled = 17,
    /// The source no longer has the snapshot.
    SnapshotMissing = 18,
}

impl FailureCode {
    const ALL: [Self; 19] = [
        Self::Unknown,
        Self::NotExpected,
        Self::AlreadyThere,
        Self::ParentMissing,
        Self::NoSpace,
        Self::Conflict,
        Self::Busy,
        Self::VersionMismatch,
        Self::HashMismatch,
        Self::StreamInvalid,
        Self::Io,
        Self::Cancelled,
        Self::ShuttingDown,
        Self::TooLarge,
        Self::ProtocolViolation,
        Self::SourceChanged,
        Self::PoolUnavailable,
        Self::Stalled,
        Self::SnapshotMissing,
    ];

    /// The number that stands for the code on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The code with this number; [`FailureCode::Unknown`] if this build has none.
    pub fn from_number(number: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|code| code.number() == number)
            .unwrap_or(Self::Unknown)
    }
}

/// A failure as it is told to the other end, in a refusal or in an Abort frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub code: FailureCode,
    /// The error number of the system call that failed, where one did.
    pub errno: Option<i32>,
    message: String,
}

impl Failure {
    /// A failure with a text for people, cut to [`MAX_FAILURE_MESSAGE`] bytes.
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_FAILURE_MESSAGE));
        Self {
            code,
            errno: None,
            message,
        }
    }

    /// A system call's failure; `message` says which call on what.
    pub fn io(error: &io::Error, message: impl fmt::Display) -> Self {
        let code = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureCode::NoSpace,
            _ => FailureCode::Io,
        };
        Self {
            errno: error.raw_os_error(),
            ..Self::new(code, format!("{message}: {error}"))
        }
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the same transfer may succeed later although nobody asks for anything else. A
    /// failure that is not transient needs another plan: another source or parent, or a person.
    pub fn is_transient(&self) -> bool {
        use FailureCode as C;
        match self.code {
            C::Unknown | C::NotExpected | C::NoSpace | C::Busy | C::HashMismatch => true,
            C::ShuttingDown | C::SourceChanged | C::PoolUnavailable | C::Stalled => true,
            C::AlreadyThere | C::ParentMissing | C::Conflict | C::VersionMismatch => false,
            C::StreamInvalid | C::Cancelled | C::TooLarge | C::ProtocolViolation => false,
            C::SnapshotMissing => false,
            // EIO is the disk's or a checksum's verdict and does not pass.
            C::Io => self
                .errno
                .map(io::Error::from_raw_os_error)
                .is_some_and(|error| {
                    use io::ErrorKind as K;
                    matches!(
                        error.kind(),
                        K::Interrupted
                            | K::WouldBlock
                            | K::OutOfMemory
                            | K::ResourceBusy
                            | K::TimedOut
                            | K::BrokenPipe
                            | K::ConnectionReset
                            | K::ConnectionAborted
                            | K::ConnectionRefused
                            | K::HostUnreachable
                            | K::NetworkUnreachable
                            | K::NetworkDown
                    )
                }),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.message)
    }
}

impl std::error::Error for Failure {}

impl From<&Failure> for schema::Failure {
    fn from(failure: &Failure) -> Self {
        Self {
            code: failure.code.number(),
            errno: failure.errno,
            message: failure.message.clone(),
        }
    }
}

impl From<schema::Failure> for Failure {
    fn from(raw: schema::Failure) -> Self {
        let schema::Failure {
            code,
            errno,
            message,
        } = raw;
        Self {
            errno,
            ..Self::new(FailureCode::from_number(code), message)
        }
    }
}

/// What to tell a peer whose handshake could not be taken.
impl From<&HandshakeError> for Failure {
    fn from(error: &HandshakeError) -> Self {
        let code = match error {
            HandshakeError::NoCommonVersion { .. } => FailureCode::VersionMismatch,
            HandshakeError::TooLong { .. } => FailureCode::TooLarge,
            _ => FailureCode::ProtocolViolation,
        };
        Self::new(code, error.to_string())
    }
}

/// What to tell a peer whose frame could not be taken.
impl From<&FrameError> for Failure {
    fn from(error: &FrameError) -> Self {
        let code = match error {
            FrameError::TooLong { .. } => FailureCode::TooLarge,
            _ => FailureCode::ProtocolViolation,
        };
        Self::new(code, error.to_string())
    }
}

/// What to tell a peer whose block could not be opened.
impl From<&BlockError> for Failure {
    fn from(error: &BlockError) -> Self {
        let code = match error {
            BlockError::Hash { .. } => FailureCode::HashMismatch,
            _ => FailureCode::ProtocolViolation,
        };
        Self::new(code, error.to_string())
    }
}

/// What to tell a peer whose frame came out of order.
impl From<&OrderError> for Failure {
    fn from(error: &OrderError) -> Self {
        let code = match error {
            OrderError::End(_) => FailureCode::HashMismatch,
            _ => FailureCode::ProtocolViolation,
        };
        Self::new(code, error.to_string())
    }
}

/// What a source tells a receiver that wants to resume where the source's own chain differs.
impl From<&Mismatch> for Failure {
    fn from(error: &Mismatch) -> Self {
        Self::new(FailureCode::SourceChanged, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_keeps_its_number() {
        for (index, code) in FailureCode::ALL.into_iter().enumerate() {
            assert_eq!(code.number() as usize, index);
            assert_eq!(FailureCode::from_number(code.number()), code);
        }
        assert_eq!(FailureCode::from_number(u32::MAX), FailureCode::Unknown);
    }

    #[test]
    fn a_full_disk_is_no_space_and_passes_but_a_disk_error_does_not() {
        let (eio, enospc) = (5, 28);
        let full = Failure::io(&io::Error::from_raw_os_error(enospc), "write disk.img");
        assert_eq!(
            (full.code, full.errno),
            (FailureCode::NoSpace, Some(enospc))
        );
        assert!(full.is_transient());
        let broken = Failure::io(&io::Error::from_raw_os_error(eio), "read disk.img");
        assert_eq!((broken.code, broken.errno), (FailureCode::Io, Some(eio)));
        assert!(!broken.is_transient());
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let failure = Failure::new(FailureCode::Busy, "é".repeat(MAX_FAILURE_MESSAGE));
        assert_eq!(failure.message().len(), MAX_FAILURE_MESSAGE);
        let odd = Failure::new(FailureCode::Busy, format!("x{}", "é".repeat(600)));
        assert_eq!(odd.message().len(), MAX_FAILURE_MESSAGE - 1);
    }
}
