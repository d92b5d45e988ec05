//! What can be wrong with a stream, and where.

use std::fmt;
use std::io;

use thiserror::Error;

use super::{Attribute, Kind, NameError, Position};

/// A stream that cannot be read on, and the command at which it could not.
#[derive(Debug, Error)]
pub struct StreamError {
    /// Where the command starts, or where the stream's header does.
    pub position: Position,
    /// The command, where it is known.
    pub command: Option<Kind>,
    /// What was wrong.
    #[source]
    pub problem: Problem,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "send stream, {}", self.position)?;
        if let Some(command) = self.command {
            write!(f, " ({command})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

/// What was wrong with a stream.
#[derive(Debug, Error)]
#[allow(missing_docs)] // The messages say what each field is.
pub enum Problem {
    #[error("reading failed: {0}")]
    Read(#[source] io::Error),
    #[error("the stream ends in the middle of it")]
    Truncated,
    #[error("it comes after END")]
    AfterEnd,
    #[error("it does not begin as a send stream does")]
    NotASendStream,
    #[error("version {0} of the format is not supported; versions 1 and 2 are")]
    Version(u32),
    #[error("it claims a payload of {length} bytes; {cap} is the most")]
    TooLong { length: u64, cap: usize },
    #[error("its checksum is {computed:#010x}, and {stated:#010x} was stated")]
    Checksum { stated: u32, computed: u32 },
    #[error("command number {0} is unknown in this version")]
    UnknownCommand(u16),
    #[error("it needs fs-verity, which is not supported")]
    Verity,
    #[error("an attribute is cut short at byte {0} of the payload")]
    CutAttribute(usize),
    #[error("attribute number {0} is unknown in this version")]
    UnknownAttribute(u16),
    #[error("attribute {0} is there twice")]
    Repeated(Attribute),
    #[error("attribute {0} is missing")]
    Missing(Attribute),
    #[error("attribute {0} does not belong to it")]
    Unexpected(Attribute),
    #[error("attribute {attribute} has {length} bytes; {wanted} is right")]
    Size {
        attribute: Attribute,
        length: usize,
        wanted: &'static str,
    },
    #[error("attribute {attribute} is {value}; {wanted} is right")]
    Value {
        attribute: Attribute,
        value: u64,
        wanted: &'static str,
    },
    #[error("{attribute} \"{path}\": {error}")]
    Path {
        attribute: Attribute,
        path: String,
        error: NameError,
    },
    #[error("attribute {0} contains a NUL")]
    Nul(Attribute),
    #[error("the range of {length} bytes at {offset} goes past the largest file there can be")]
    Range { offset: u64, length: u64 },
    #[error("{0} bytes at {1} of {2} unencoded bytes is not within them")]
    EncodedRange(u64, u64, u64),
}
