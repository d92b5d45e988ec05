//! Stream mode: what the kernel sends, cut where commands end.

use std::iter::FusedIterator;
use std::ops::ControlFlow;

use super::kernel::Kernel;
use super::{Block, BlockError};
use crate::stream::{Command, Compression, MAX_BLOCK};

/// The kernel's stream in blocks, as many commands in each as fit. It ends after the first error.
#[derive(Debug)]
pub struct StreamBlocks<W> {
    kernel: Kernel<W>,
    /// The beginning of a command that did not fit into the block before.
    rest: Vec<u8>,
    ended: bool,
}

impl<W: FnMut(u64) -> ControlFlow<()>> StreamBlocks<W> {
    pub(super) fn new(kernel: Kernel<W>) -> Self {
        Self {
            kernel,
            rest: Vec::new(),
            ended: false,
        }
    }

    fn cut(&mut self) -> Result<Option<Block>, BlockError> {
        let mut bytes = vec![0; MAX_BLOCK];
        let mut filled = self.rest.len();
        bytes[..filled].copy_from_slice(&self.rest);
        while filled < bytes.len() {
            match self.kernel.read(&mut bytes[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let mut rest = &bytes[..filled];
        match self.kernel.command(&mut rest)? {
            Some(command) => refuse_lzo(&command)?,
            None => return Ok(None),
        }
        while self.kernel.is_command(rest) {
            if let Some(command) = self.kernel.command(&mut rest)? {
                refuse_lzo(&command)?;
            }
        }
        self.rest.clear();
        self.rest.extend_from_slice(rest);
        bytes.truncate(filled - self.rest.len());
        Ok(Some(Block::of_bytes(bytes)))
    }
}

/// The kernel cannot be asked to decompress these alone.
fn refuse_lzo(command: &Command<'_>) -> Result<(), BlockError> {
    match command {
        Command::EncodedWrite { path, encoded, .. }
            if matches!(encoded.compression, Compression::Lzo { .. }) =>
        {
            Err(BlockError::Lzo {
                path: path.to_string(),
            })
        }
        _ => Ok(()),
    }
}

impl<W: FnMut(u64) -> ControlFlow<()>> Iterator for StreamBlocks<W> {
    type Item = Result<Block, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let block = self.cut().transpose();
        self.ended = !matches!(block, Some(Ok(_)));
        block
    }
}

impl<W: FnMut(u64) -> ControlFlow<()>> FusedIterator for StreamBlocks<W> {}
