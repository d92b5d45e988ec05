//! The memory of one block, laid so that the kernel can read a file straight into it.

use std::ops::{Deref, Range};

use crate::stream::MAX_BLOCK;

/// What reading past the page cache asks of addresses, offsets and lengths: whole blocks of the file
/// system, which is more where its blocks are longer. What is not so the kernel reads through the cache.
pub(super) const ALIGNMENT: usize = 4096;

/// Room for a block wherever it begins.
const ROOM: usize = MAX_BLOCK + 2 * ALIGNMENT;

/// The bytes of one block. Its memory is kept when it is filled again.
#[derive(Debug, Default)]
pub struct BlockBuffer {
    memory: Vec<u8>,
    block: Range<usize>,
}

impl BlockBuffer {
    /// Begins anew, with a block whose byte number `aligned` is to be where the kernel can read to.
    pub(super) fn begin(&mut self, aligned: usize) {
        self.memory.resize(ROOM, 0);
        let first = self.memory.as_ptr().align_offset(ALIGNMENT);
        let begin = first + (ALIGNMENT - aligned % ALIGNMENT) % ALIGNMENT;
        self.block = begin..begin;
    }

    /// Makes it a copy of `bytes`, of which there are at most [`MAX_BLOCK`].
    pub fn copy(&mut self, bytes: &[u8]) {
        self.begin(0);
        self.append(bytes);
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    /// Makes it longer; what is to be filled.
    pub(super) fn grow(&mut self, length: usize) -> &mut [u8] {
        let end = self.block.end;
        self.block.end += length;
        &mut self.memory[end..end + length]
    }
}

impl Deref for BlockBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.block.clone()]
    }
}

impl From<Vec<u8>> for BlockBuffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            block: 0..bytes.len(),
            memory: bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_that_was_named_is_aligned_and_nothing_is_left_of_the_block_before() {
        let mut buffer = BlockBuffer::from(vec![7; 100]);
        for aligned in [0, 1, 57, ALIGNMENT, ALIGNMENT + 1, MAX_BLOCK] {
            buffer.begin(aligned);
            assert!(buffer.is_empty());
            buffer.append(&vec![1; aligned]);
            buffer.grow(MAX_BLOCK - aligned).fill(2);
            assert_eq!(buffer.len(), MAX_BLOCK);
            assert_eq!(buffer[aligned..].as_ptr().align_offset(ALIGNMENT), 0);
            assert!(buffer[..aligned].iter().all(|&byte| byte == 1));
        }
    }
}
