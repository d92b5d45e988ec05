//! Reads a stream command by command into one buffer, and checks lengths, checksums and order of
//! bytes; what the attributes of a command mean is in `parse.rs`.

use std::fmt;
use std::io::{self, Read};

use super::attributes::Attributes;
use super::header::{self, CommandHeader};
use super::{
    COMMAND_HEADER, Command, Kind, MAGIC, Problem, STREAM_HEADER, StreamError, Version, checksum,
};

/// A place in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Counts commands from 1; 0 is the stream's header.
    pub command: u64,
    /// Bytes from the start of the stream, its header included.
    pub offset: u64,
}

impl Position {
    /// Right behind the stream's header.
    pub const FIRST_COMMAND: Position = Position {
        command: 1,
        offset: STREAM_HEADER as u64,
    };
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command {
            0 => write!(f, "header"),
            number => write!(f, "command {number} at byte {}", self.offset),
        }
    }
}

/// Reads one stream.
///
/// It asks its source for a command's header and then for its payload, and never for a byte
/// beyond END: what follows a stream in the same source stays there for the next reader. Small
/// reads cost a system call each unless the source is buffered.
pub struct Reader<R> {
    source: R,
    version: Version,
    /// Grows to the longest payload so far, never past the version's cap.
    buffer: Vec<u8>,
    /// Bytes of `buffer` that are the payload of the command that was read last.
    length: usize,
    /// Where the next command starts.
    upcoming: Position,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header of a stream; `None` if the source ends right where it would begin.
    ///
    /// # Errors
    /// Reading fails, or this is not a send stream of a supported version.
    pub fn begin(mut source: R) -> Result<Option<Reader<R>>, StreamError> {
        let position = Position {
            command: 0,
            offset: 0,
        };
        let failed = |problem| StreamError {
            position,
            command: None,
            problem,
        };
        let mut header = [0; STREAM_HEADER];
        match read_full(&mut source, &mut header).map_err(failed)? {
            0 => return Ok(None),
            STREAM_HEADER => {}
            read if header[..read.min(MAGIC.len())] == MAGIC[..read.min(MAGIC.len())] => {
                return Err(failed(Problem::Truncated));
            }
            _ => return Err(failed(Problem::NotASendStream)),
        }
        let version = header::version(&header).map_err(failed)?;
        Ok(Some(Reader {
            source,
            version,
            buffer: Vec::new(),
            length: 0,
            upcoming: Position::FIRST_COMMAND,
            ended: false,
        }))
    }

    /// The stream's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where the next command starts, which is where the last one ended.
    pub fn upcoming(&self) -> Position {
        self.upcoming
    }

    /// Reads the next command, END included; `None` after END.
    ///
    /// # Errors
    /// Reading fails, the source ends before END, or the command is not as it must be. After an
    /// error there is no reading on.
    pub fn next_command(&mut self) -> Result<Option<Command<'_>>, StreamError> {
        if self.ended {
            return Ok(None);
        }
        let position = self.upcoming;
        // An error ends the stream; a command other than END takes this back.
        self.ended = true;
        let kind = self
            .read_frame()
            .map_err(|(command, problem)| StreamError {
                position,
                command,
                problem,
            })?;
        self.upcoming = Position {
            command: position.command + 1,
            offset: position.offset + (COMMAND_HEADER + self.length) as u64,
        };
        self.ended = kind == Kind::End;
        Attributes::parse(&self.buffer[..self.length], self.version)
            .and_then(|attributes| Command::parse(kind, attributes))
            .map(Some)
            .map_err(|problem| {
                self.ended = true;
                StreamError {
                    position,
                    command: Some(kind),
                    problem,
                }
            })
    }

    /// Reads one command's payload into the buffer, with everything checked but its attributes.
    fn read_frame(&mut self) -> Result<Kind, (Option<Kind>, Problem)> {
        let mut header = [0; COMMAND_HEADER];
        read_exact(&mut self.source, &mut header).map_err(|problem| (None, problem))?;
        let CommandHeader { kind, length, crc } =
            CommandHeader::parse(header, self.version, self.version.max_payload())?;
        let failed = |problem| (Some(kind), problem);
        self.length = length;
        if self.buffer.len() < self.length {
            self.buffer.resize(self.length, 0);
        }
        let payload = &mut self.buffer[..self.length];
        read_exact(&mut self.source, payload).map_err(failed)?;

        let computed = checksum(header, payload);
        if computed != crc {
            let stated = crc;
            return Err(failed(Problem::Checksum { stated, computed }));
        }
        Ok(kind)
    }
}

fn read_exact(source: &mut impl Read, buffer: &mut [u8]) -> Result<(), Problem> {
    match read_full(source, buffer)? {
        read if read == buffer.len() => Ok(()),
        _ => Err(Problem::Truncated),
    }
}

/// Reads until `buffer` is full or the source ends, and says how much that was.
fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Problem> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Problem::Read(error)),
        }
    }
    Ok(filled)
}
