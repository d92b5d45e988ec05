//! Extents that were written compressed, as they came, until they are known to be on the disk.
//!
//! The kernel tells nobody when it has no room for the metadata of such an extent: the write, fsync and
//! syncfs succeed, and the data is not there. So each is read back, compressed, once it ought to be
//! durable, and compared.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

use crate::stream::{Encoded, MAX_ENCODED};
use crate::sys::{self, EncodedRange};

/// The first bytes of 16 of a BLAKE3 hash.
type Fingerprint = [u8; 16];

/// The extents of one file that are still to be read back.
#[derive(Debug, Default)]
pub(super) struct Kept {
    extents: Vec<Extent>,
    /// From the first to the last, with all that is between them. A stream goes through a file from its start
    /// to its end, so that what comes next is hardly ever in here.
    around: Range<u64>,
}

#[derive(Debug)]
struct Extent {
    offset: u64,
    stored_len: usize,
    fingerprint: Fingerprint,
}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Whether a change of the file in `range` may change what is read back.
    pub(super) fn is_in(&self, range: &Range<u64>) -> bool {
        range.start < self.around.end && self.around.start < range.end
    }

    /// Has the kernel store an extent as it is, in a file with blocks of `block` bytes. An error says that
    /// nothing was written.
    pub(super) fn write(
        &mut self,
        fd: BorrowedFd<'_>,
        block: u64,
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
        let end = match offset + encoded.file_len {
            end if end.is_multiple_of(block) => end,
            // The file ends within this block. Whatever makes the file longer writes it anew.
            _ => u64::MAX,
        };
        self.around = match self.is_empty() {
            true => offset..end,
            false => self.around.start.min(offset)..self.around.end.max(end),
        };
        self.extents.push(Extent {
            offset,
            stored_len: encoded.data.len(),
            fingerprint: fingerprint(&range, encoded.data),
        });
        Ok(())
    }

    /// Whether all of them stand in the file, which was synced, as they were written.
    pub(super) fn stand(&self, fd: BorrowedFd<'_>) -> Result<bool> {
        let mut buffer = vec![0; MAX_ENCODED];
        for extent in &self.extents {
            if !extent.stands(fd, &mut buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Extent {
    fn stands(&self, fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<bool> {
        let (range, count) = loop {
            match sys::encoded_read(fd, self.offset, buffer) {
                Err(Errno::INTR) => {}
                // Another extent, longer than any that is compressed.
                Err(Errno::NOBUFS) => return Ok(false),
                read => break read?,
            }
        };
        // More is stored if the file system's blocks are longer than those that the extent came from.
        let stored = buffer[..count].get(..self.stored_len);
        Ok(stored.is_some_and(|stored| fingerprint(&range, stored) == self.fingerprint))
    }
}

fn fingerprint(range: &EncodedRange, stored: &[u8]) -> Fingerprint {
    let mut hasher = blake3::Hasher::new();
    for number in [range.len, range.unencoded_len, range.unencoded_offset] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&range.compression.to_le_bytes());
    hasher.update(stored);
    let mut fingerprint = Fingerprint::default();
    hasher.finalize_xof().fill(&mut fingerprint);
    fingerprint
}
