//! How long a send stream will be, told by a pass of the kernel without file data: milliseconds for most increments.
//! An estimate for progress and for space; nothing may depend on its being right.

use std::io::BufReader;
use std::ops::ControlFlow;

use rustix::io::Errno;

use crate::error::Error;
use crate::send::{FileData, SendRequest};
use crate::stream::{COMMAND_HEADER, Command, MAX_ENCODED, Reader, StreamError, TreePath};
use crate::watched::{Failure, Watched};

/// The most that the kernel puts into one write command of version 2 (`max_send_read_size` of
/// `fs/btrfs/send.c`).
const WRITE_BYTES: u64 = MAX_ENCODED as u64;

/// The length that a stream will have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamSize {
    /// Bytes of the whole stream.
    pub stream: u64,
    /// Bytes of file data in it.
    pub data: u64,
}

/// Why there is no measure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The watcher broke it off.
    #[error("measuring was broken off")]
    BrokenOff,
    /// The kernel does not send this.
    #[error(transparent)]
    Send(#[from] Error),
    /// What the kernel sends is not what it should be.
    #[error("cannot measure: {0}")]
    Stream(#[source] StreamError),
}

impl SendRequest<'_> {
    /// How long the stream of this request will be. For each range that the kernel would have written
    /// it says so; holes it punches in this pass as it will in the stream, or, before it learned to,
    /// writes in both.
    ///
    /// The kernel goes through all metadata for it: for a file of 100,000 shared extents that takes
    /// most of a minute. `watch` is told, a few times a second at least, how many bytes of metadata
    /// came so far, and can break it off.
    ///
    /// # Errors
    /// As [`SendRequest::send_to`]; broken off.
    pub fn measure(
        &self,
        watch: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<StreamSize, MeasureError> {
        let stream = self.start_with(FileData::Omitted)?;
        let watched = BufReader::new(Watched::new(stream, watch));
        let mut reader = Reader::begin(watched)
            .map_err(MeasureError::of)?
            .ok_or_else(|| Error::system("send", self.source.name())(Errno::NODATA))?;
        // The announcements of data in this pass, and the writes that the stream has in their place.
        let (mut announcements, mut writes, mut data) = (0, 0_u64, 0_u64);
        while let Some(command) = reader.next_command().map_err(MeasureError::of)? {
            if let Command::UpdateExtent { path, length, .. } = command {
                announcements += announcement_bytes(path);
                writes = writes.saturating_add(write_bytes(path, length));
                data = data.saturating_add(length);
            }
        }
        let metadata = reader.upcoming().offset - announcements;
        Ok(StreamSize {
            stream: metadata.saturating_add(writes),
            data,
        })
    }
}

impl MeasureError {
    fn of(error: StreamError) -> Self {
        match Failure::of(error) {
            Failure::BrokenOff => Self::BrokenOff,
            Failure::Send(error) => Self::Send(error),
            Failure::Stream(error) => Self::Stream(error),
        }
    }
}

/// One UPDATE_EXTENT: a header, and path, offset and length, each with an attribute header of four
/// bytes.
fn announcement_bytes(path: TreePath<'_>) -> u64 {
    (COMMAND_HEADER + (4 + path.as_bytes().len()) + (4 + 8) + (4 + 8)) as u64
}

/// As many WRITEs as `length` bytes take: a header each, path, offset, and data, whose attribute
/// header has two bytes.
fn write_bytes(path: TreePath<'_>, length: u64) -> u64 {
    let each = (COMMAND_HEADER + (4 + path.as_bytes().len()) + (4 + 8) + 2) as u64;
    length.saturating_add(length.div_ceil(WRITE_BYTES).saturating_mul(each))
}
