//! Extents that were written compressed, as they came, until they are known to be on the disk.
//!
//! The kernel tells nobody when it has no room for the metadata of such an extent: the write, fsync and
//! syncfs succeed, and the file does not show it. So each is looked up in the subvolume's tree once it ought
//! to be durable. Errors of the disk itself fsync does tell.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::stream::{Encoded, MAX_ENCODED};
use crate::sys::{self, EncodedRange};
use crate::tree_items::{CompressedExtent, compressed_extents};

/// The extents of one file that are still to be looked up.
#[derive(Debug, Default)]
pub(super) struct Kept {
    extents: Vec<CompressedExtent>,
    /// From the first to the last, with all that is between them. A stream goes through a file from its start
    /// to its end, so that what comes next is hardly ever in here.
    around: Range<u64>,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Whether a change of the file in `range` may change what is looked up.
    pub(super) fn is_in(&self, range: &Range<u64>) -> bool {
        range.start < self.around.end && self.around.start < range.end
    }

    /// Has the kernel store an extent as it is, in a file with blocks of `block` bytes, not before the
    /// transaction `since`. An error says that nothing was written.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        (block, since): (u64, u64),
        offset: u64,
        encoded: &Encoded<'_>,
    ) -> Result<()> {
        let range = EncodedRange {
            len: encoded.file_len,
            unencoded_len: encoded.unencoded_len,
            unencoded_offset: encoded.unencoded_offset,
            compression: encoded.compression.number(),
        };
        sys::encoded_write(fd, offset, &range, encoded.data)?;
        let shown = offset..offset + encoded.file_len;
        let end = match shown.end.is_multiple_of(block) {
            true => shown.end,
            // The file ends within this block. Whatever makes the file longer writes it anew.
            false => u64::MAX,
        };
        self.around = match self.is_empty() {
            true => offset..end,
            false => self.around.start.min(offset)..self.around.end.max(end),
        };
        self.extents.push(CompressedExtent {
            shown,
            offset: encoded.unencoded_offset,
            unencoded_len: encoded.unencoded_len,
            stored_len: encoded.data.len(),
            compression: encoded.compression,
            generation: since,
        });
        Ok(())
    }

    /// Whether the file `inode`, which was synced, shows all of them.
    pub(super) fn stand(&mut self, fd: BorrowedFd<'_>, inode: u64) -> Result<bool> {
        self.extents
            .sort_unstable_by_key(|extent| extent.shown.start);
        let (mut found, mut known) = (Vec::new(), 0..0);
        let mut buffer = Vec::new();
        for extent in &self.extents {
            let begin = extent.shown.start;
            if !known.contains(&begin) {
                let (extents, end) = compressed_extents(fd, inode, &extent.shown)?;
                (found, known) = (extents, begin..end);
            }
            let at = found.partition_point(|other| other.shown.start < begin);
            let stands = found.get(at).is_some_and(|other| is_shown(extent, other));
            if !stands && !stands_after_all(extent, (fd, inode), &mut buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether `found` in the tree is what was written. It is longer where the file system's blocks are longer than
/// those that the extent came from.
fn is_shown(written: &CompressedExtent, found: &CompressedExtent) -> bool {
    found.shown.start == written.shown.start
        && found.shown.end >= written.shown.end
        && found.offset == written.offset
        && found.unencoded_len == written.unencoded_len
        && found.stored_len >= written.stored_len
        && found.compression == written.compression
        && found.generation >= written.generation
}

/// fsync can return as soon as the log has an extent, before the tree has it. Whoever reads there waits for that.
/// What is read goes into `buffer`.
fn stands_after_all(
    extent: &CompressedExtent,
    (fd, inode): (BorrowedFd<'_>, u64),
    buffer: &mut Vec<u8>,
) -> Result<bool> {
    buffer.resize(MAX_ENCODED, 0);
    loop {
        match sys::encoded_read(fd, extent.shown.start, buffer) {
            Err(Errno::INTR) => {}
            // Another extent, longer than any that is compressed.
            Ok(_) | Err(Errno::NOBUFS) => break,
            Err(errno) => return Err(errno),
        }
    }
    let (found, _) = compressed_extents(fd, inode, &extent.shown)?;
    Ok(found.iter().any(|other| is_shown(extent, other)))
}
