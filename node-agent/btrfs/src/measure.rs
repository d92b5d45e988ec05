//! How long a send will be, told by a pass of the kernel without file data: milliseconds for most
//! increments. Exact at its end, and until then what is known so far. For progress and for space: nothing may
//! depend on its being right.

use std::cell::Cell;
use std::io::BufReader;
use std::ops::ControlFlow;

use rustix::io::Errno;

use crate::blocks::BlockError;
use crate::encoding::Encoding;
use crate::error::Error;
use crate::send::{FileData, SendRequest};
use crate::stream::{COMMAND_HEADER, Command, MAX_ENCODED, Reader, TreePath};
use crate::subvolume::Subvolume;
use crate::walk::{Failure, Visit, walk};
use crate::watched::Watched;

/// The most that the kernel puts into one write command of version 2 (`max_send_read_size` of
/// `fs/btrfs/send.c`).
const WRITE_BYTES: u64 = MAX_ENCODED as u64;

impl SendRequest<'_> {
    /// How many bytes [`blocks`](Self::blocks) will have: the length of the kernel's stream. For each
    /// range that the kernel would have written it says so; holes it punches in this pass as it will in
    /// the stream, or, before it learned to, writes in both.
    ///
    /// The kernel goes through all metadata for it: for a file of 100,000 shared extents that takes
    /// most of a minute. `watch` is told, a few times a second at least, what is known so far, and can
    /// break it off. Of an increment that is what the pass has come to. Of a full send it is 0 for a
    /// moment, then what the files have, and becomes less where the kernel clones.
    ///
    /// # Errors
    /// As [`SendRequest::send_to`]; broken off.
    pub fn measure(
        &self,
        mut watch: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<u64, BlockError> {
        let estimate = Estimate::first(self, &mut watch)?;
        let stream = self.start_with(FileData::Omitted)?;
        let watched = BufReader::new(Watched::new(stream, |_| watch(estimate.get())));
        let mut reader = Reader::begin(watched)
            .map_err(BlockError::of)?
            .ok_or_else(|| Error::system("send", self.source.name())(Errno::NODATA))?;
        // The announcements of data in this pass, and the writes that the stream has in their place.
        let (mut announcements, mut writes, mut shown) = (0, 0_u64, 0_u64);
        while let Some(command) = reader.next_command().map_err(BlockError::of)? {
            shown = shown.saturating_add(content(&command));
            if let Command::UpdateExtent { path, length, .. } = command {
                announcements += announcement_bytes(path);
                writes = writes.saturating_add(write_bytes(path, length));
            }
            let metadata = reader.upcoming().offset - announcements;
            estimate.set(metadata.saturating_add(writes), shown);
        }
        Ok(estimate.found.get())
    }

    /// As [`measure`](Self::measure), of what [`extents_as`](Self::extents_as) will have: exactly, for
    /// the same blocks are made, only not filled.
    ///
    /// # Errors
    /// As [`SendRequest::extents_as`]; broken off.
    pub fn measure_extents(
        &self,
        encoding: Encoding,
        mut watch: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<u64, BlockError> {
        let estimate = Estimate::first(self, &mut watch)?;
        self.extents_as(encoding, |_| watch(estimate.get()))?
            .measure(|found, shown| estimate.set(found, shown))?;
        Ok(estimate.found.get())
    }
}

/// What is known of a length while it is measured: what the pass has found, and what the files have
/// beyond what it has come to.
struct Estimate {
    /// Bytes that the files of a full send have; 0 for an increment, of which nobody knows before.
    content: u64,
    found: Cell<u64>,
    ahead: Cell<u64>,
}

impl Estimate {
    fn first(
        request: &SendRequest<'_>,
        watch: &mut impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Self, BlockError> {
        let content = match request.parent {
            None => content_of(request.source, watch)?,
            Some(_) => 0,
        };
        Ok(Self {
            content,
            found: Cell::new(0),
            ahead: Cell::new(content),
        })
    }

    /// The pass has found so many bytes, in which so many of file content show.
    fn set(&self, found: u64, shown: u64) {
        self.found.set(found);
        self.ahead.set(self.content.saturating_sub(shown));
    }

    fn get(&self) -> u64 {
        self.found.get().saturating_add(self.ahead.get())
    }
}

/// The bytes that the files of a snapshot have, holes not counted. Half of it would be worse than
/// nothing where much is cloned, so `watch` is told nothing on the way.
fn content_of(
    source: &Subvolume,
    watch: &mut impl FnMut(u64) -> ControlFlow<()>,
) -> Result<u64, BlockError> {
    let (mut bytes, mut broken_off) = (0_u64, false);
    let walked = walk(source, |visit| {
        if let Visit::Entry(entry) = visit
            && entry.kind.is_file()
            && entry.link_of.is_none()
        {
            // statx counts in units of 512 bytes, whatever the block size.
            let allocated = entry.stat.stx_blocks.saturating_mul(512);
            bytes = bytes.saturating_add(entry.stat.stx_size.min(allocated));
        }
        broken_off = watch(0).is_break();
        match broken_off {
            true => Err(Failure::of("measure")(Errno::CANCELED)),
            false => Ok(()),
        }
    });
    match broken_off {
        true => Err(BlockError::BrokenOff),
        false => Ok(walked.map(|()| bytes)?),
    }
}

/// Bytes of file content that a command of the pass stands for.
pub(crate) fn content(command: &Command<'_>) -> u64 {
    match command {
        Command::UpdateExtent { length, .. } | Command::Clone { length, .. } => *length,
        _ => 0,
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
