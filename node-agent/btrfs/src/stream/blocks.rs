//! Reads a stream that comes in blocks, each of whole commands. Nothing is copied: a command borrows
//! from its block. Cutting blocks is whoever sends them; see [`super::MAX_BLOCK`].

use super::attributes::Attributes;
use super::header::{self, CommandHeader};
use super::{
    COMMAND_HEADER, Command, MAX_BLOCK, Position, Problem, STREAM_HEADER, StreamError, Version,
};

/// Reads one stream, block by block, from its header on or from where an earlier reader got.
///
/// The commands' own checksums are not looked at: a block comes with a better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockReader {
    /// `None` before the stream's header.
    version: Option<Version>,
    upcoming: Position,
    ended: bool,
}

impl BlockReader {
    /// For a stream from its first block on, which starts with the stream's header.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            version: None,
            upcoming: Position {
                command: 0,
                offset: 0,
            },
            ended: false,
        }
    }

    /// For a stream whose next block starts at `upcoming`.
    #[must_use]
    pub fn resume(version: Version, upcoming: Position) -> Self {
        Self {
            version: Some(version),
            upcoming,
            ended: false,
        }
    }

    /// The stream's version; `None` before its header.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Where the next command starts.
    #[must_use]
    pub fn upcoming(&self) -> Position {
        self.upcoming
    }

    /// Whether END was read.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether `bytes` start with a whole command, for whoever cuts blocks.
    #[must_use]
    pub fn starts_with_command(&self, bytes: &[u8]) -> bool {
        let header = match self.version {
            Some(_) => 0,
            None => STREAM_HEADER,
        };
        let command = bytes.get(header..).unwrap_or_default();
        let (Some(length), Some(payload)) = (command.first_chunk(), command.get(COMMAND_HEADER..))
        else {
            return false;
        };
        payload.len() as u64 >= u64::from(u32::from_le_bytes(*length))
    }

    /// Takes the next command off the front of `block`; `None` at the block's end. After an error
    /// there is no reading on.
    ///
    /// # Errors
    /// The command is not as it must be, does not end in this block, or comes after END.
    pub fn next_command<'b>(
        &mut self,
        block: &mut &'b [u8],
    ) -> Result<Option<Command<'b>>, StreamError> {
        if block.is_empty() {
            return Ok(None);
        }
        let version = match self.version {
            Some(version) => version,
            None => self.take_header(block)?,
        };
        if block.is_empty() {
            return Ok(None);
        }
        let position = self.upcoming;
        let failed = |(command, problem)| StreamError {
            position,
            command,
            problem,
        };
        if self.ended {
            return Err(failed((None, Problem::AfterEnd)));
        }
        let (header, rest) = block
            .split_first_chunk::<COMMAND_HEADER>()
            .ok_or_else(|| failed((None, Problem::Truncated)))?;
        let header = CommandHeader::parse(*header, version, MAX_BLOCK).map_err(failed)?;
        let kind = header.kind;
        let (payload, rest) = rest
            .split_at_checked(header.length)
            .ok_or_else(|| failed((Some(kind), Problem::Truncated)))?;
        let command = Attributes::parse(payload, version)
            .and_then(|attributes| Command::parse(kind, attributes))
            .map_err(|problem| failed((Some(kind), problem)))?;
        *block = rest;
        self.upcoming = Position {
            command: position.command + 1,
            offset: position.offset + (COMMAND_HEADER + header.length) as u64,
        };
        self.ended = matches!(command, Command::End);
        Ok(Some(command))
    }

    fn take_header(&mut self, block: &mut &[u8]) -> Result<Version, StreamError> {
        let failed = |problem| StreamError {
            position: self.upcoming,
            command: None,
            problem,
        };
        let (header, rest) = block
            .split_first_chunk::<STREAM_HEADER>()
            .ok_or_else(|| failed(Problem::NotASendStream))?;
        let version = header::version(header).map_err(failed)?;
        *block = rest;
        self.version = Some(version);
        self.upcoming = Position::FIRST_COMMAND;
        Ok(version)
    }
}
