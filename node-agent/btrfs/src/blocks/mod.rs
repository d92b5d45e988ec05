//! A send stream cut into blocks of whole commands, each at most [`MAX_BLOCK`] bytes long: what a
//! transfer is made of. Sealing and moving blocks is the caller's business; [`crate::receive`] is what
//! applies them.
//!
//! # Two modes
//!
//! [`SendRequest::blocks`] cuts what the kernel sends. [`SendRequest::extents`] has the kernel send
//! without file data (`BTRFS_SEND_FLAG_NO_FILE_DATA`), and puts commands of its own in place of each
//! range that the kernel announces: WRITE for data, of up to 1 MiB each, and UPDATE_EXTENT with
//! FALLOCATE for holes. UPDATE_EXTENT means that the file reaches to the range's end at least: the
//! stream says nothing else of a file that fallocate(2) made longer. Data is read only when a block
//! is filled, so several threads can read at once while one takes the blocks. Long runs of it are read
//! past the page cache: nobody reads a snapshot twice.
//!
//! With [`Encoding::AsStored`] ENCODED_WRITE stands for what is compressed with zlib or zstd. The file's
//! extents are looked up in the snapshot's tree, where alone the compressed length is to be had without
//! reading: a block is to know how long it will be.
//!
//! The checksums of commands that are made here are zero. A block comes with a better one.
//!
//! # Determinism
//!
//! The cuts follow from the snapshots and the kernel alone, not from time: a second pass over the
//! same pair on the same kernel yields the same blocks.

mod buffer;
mod cut;
mod error;
mod extents;
mod files;
mod kernel;
mod map;
mod overlay;
mod stored;
mod stream;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

pub use buffer::BlockBuffer;
pub use error::BlockError;
pub use extents::ExtentBlocks;
pub use stream::StreamBlocks;

use crate::encoding::Encoding;
use crate::send::{FileData, SendRequest};
#[cfg(doc)]
use crate::stream::MAX_BLOCK;
use crate::sys::Caching;
use crate::tree_items::CompressedExtent;
use files::SourceFile;
use kernel::Kernel;

/// Data of at least so many bytes is worth reading past the page cache, where no read-ahead helps.
const LONG: usize = 64 << 10;

impl SendRequest<'_> {
    /// Starts sending the kernel's stream in blocks. `watch` is told, a few times a second at least,
    /// how many bytes the kernel sent so far, and can break it off.
    ///
    /// # Errors
    /// No descriptor or thread to be had. What the kernel has against sending it, the first block
    /// tells.
    pub fn blocks<W>(&self, watch: W) -> Result<StreamBlocks<W>, BlockError>
    where
        W: FnMut(u64) -> ControlFlow<()>,
    {
        self.blocks_as(Encoding::Plain, watch)
    }

    /// As [`SendRequest::blocks`], with compressed extents as `encoding` says.
    ///
    /// # Errors
    /// As there; a block can tell [`BlockError::Lzo`].
    pub fn blocks_as<W>(&self, encoding: Encoding, watch: W) -> Result<StreamBlocks<W>, BlockError>
    where
        W: FnMut(u64) -> ControlFlow<()>,
    {
        let stream = self.start_with(FileData::Included(encoding))?;
        Ok(StreamBlocks::new(Kernel::new(stream, watch)))
    }

    /// Starts sending in blocks with data that is read here. The snapshots are held, as by
    /// [`SendRequest::hold`], until the last block that has data to read is filled or dropped.
    /// `watch` is told, a few times a second at least, how many bytes the kernel sent so far, file
    /// data not among them, and can break it off.
    ///
    /// # Errors
    /// As [`SendRequest::hold`].
    pub fn extents<W>(&self, watch: W) -> Result<ExtentBlocks<W>, BlockError>
    where
        W: FnMut(u64) -> ControlFlow<()>,
    {
        self.extents_as(Encoding::Plain, watch)
    }

    /// As [`SendRequest::extents`], with compressed extents as `encoding` says; those that are compressed
    /// with LZO are always decompressed.
    ///
    /// # Errors
    /// As there.
    pub fn extents_as<W>(&self, encoding: Encoding, watch: W) -> Result<ExtentBlocks<W>, BlockError>
    where
        W: FnMut(u64) -> ControlFlow<()>,
    {
        ExtentBlocks::start(self, encoding, watch)
    }
}

/// Some commands of a stream, whole ones; the first block of a stream starts with its header.
#[derive(Debug)]
pub struct Block {
    /// All but the data that is still to be read.
    bytes: Vec<u8>,
    /// In the order of their places.
    reads: Vec<DataRead>,
    length: usize,
}

/// Data that belongs into a block.
#[derive(Debug)]
struct DataRead {
    /// After how many of the block's own bytes, from the data before it on.
    after: usize,
    file: Arc<SourceFile>,
    reading: Reading,
}

#[derive(Debug)]
enum Reading {
    Plain { offset: u64, length: usize },
    Stored(CompressedExtent),
}

impl Reading {
    fn caching(&self) -> Caching {
        match self {
            Self::Plain { length, .. } if *length >= LONG => Caching::Bypassed,
            Self::Plain { .. } | Self::Stored(_) => Caching::Used,
        }
    }
}

impl Block {
    fn of_bytes(bytes: Vec<u8>) -> Self {
        let length = bytes.len();
        Self {
            bytes,
            reads: Vec::new(),
            length,
        }
    }

    /// Bytes that it has when it is filled, at most [`MAX_BLOCK`].
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // None is.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Makes `out` its bytes, reading what is to be read. What was in `out` is lost.
    ///
    /// # Errors
    /// A file of the snapshot cannot be read. EIO is what the kernel says of data that does not
    /// match its checksum.
    pub fn fill(self, out: &mut BlockBuffer) -> Result<(), BlockError> {
        let Some(first) = self.reads.first() else {
            *out = self.bytes.into();
            return Ok(());
        };
        out.begin(first.after);
        let mut own = self.bytes.as_slice();
        let mut open: Option<(&SourceFile, OwnedFd)> = None;
        for read in &self.reads {
            out.append(own.split_off(..read.after).unwrap_or_default());
            // One at a time, for a block can have thousands of small ones.
            let (file, fd) = match open.take() {
                Some(last) if std::ptr::eq(last.0, &*read.file) => last,
                _ => (&*read.file, read.file.open(read.reading.caching())?),
            };
            match &read.reading {
                Reading::Plain { offset, length } => {
                    file.read(fd.as_fd(), *offset, out.grow(*length))?
                }
                Reading::Stored(extent) => {
                    file.read_stored(fd.as_fd(), extent, out.grow(extent.stored_len))?
                }
            }
            open = Some((file, fd));
        }
        out.append(own);
        Ok(())
    }
}
