//! The kernel's end of both modes: its bytes, and the commands in them.

use std::io::{self, Read};
use std::ops::ControlFlow;

use super::BlockError;
use crate::send::SendStream;
use crate::stream::{BlockReader, Command, Problem, StreamError};
use crate::watched::Watched;

/// A stream while the kernel sends it.
#[derive(Debug)]
pub(super) struct Kernel<W> {
    bytes: Watched<W>,
    commands: BlockReader,
}

impl<W: FnMut(u64) -> ControlFlow<()>> Kernel<W> {
    pub(super) fn new(stream: SendStream, watch: W) -> Self {
        Self {
            bytes: Watched::new(stream, watch),
            commands: BlockReader::begin(),
        }
    }

    /// Reads on; 0 if the kernel has sent everything and says that it is all.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BlockError> {
        loop {
            match self.bytes.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(BlockError::of(StreamError {
                        position: self.commands.upcoming(),
                        command: None,
                        problem: Problem::Read(error),
                    }));
                }
            }
        }
    }

    /// Whether `bytes` start with a whole command.
    pub(super) fn is_command(&self, bytes: &[u8]) -> bool {
        self.commands.starts_with_command(bytes)
    }

    /// Takes a command off the front of `bytes`, the stream's header with the first. `None` at the
    /// end of the stream.
    pub(super) fn command<'b>(
        &mut self,
        bytes: &mut &'b [u8],
    ) -> Result<Option<Command<'b>>, BlockError> {
        let position = self.commands.upcoming();
        match self.commands.next_command(bytes).map_err(BlockError::of)? {
            None if !self.commands.is_ended() => Err(BlockError::of(StreamError {
                position,
                command: None,
                problem: Problem::Truncated,
            })),
            command => Ok(command),
        }
    }
}
