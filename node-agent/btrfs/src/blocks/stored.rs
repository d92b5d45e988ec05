//! Where a file's data is compressed, and can be sent as it is stored. Where it has data at all is
//! `map.rs`' business.

use std::collections::VecDeque;
use std::ops::Range;

use super::BlockError;
use super::files::SourceFile;
use crate::tree_items::CompressedExtent;

/// Blocks of a file system are a multiple of this.
const BLOCK: u64 = 4096;

/// The compressed extents of one file, found as its data is announced.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// All that there are within `known`.
    extents: VecDeque<CompressedExtent>,
    known: Range<u64>,
}

impl Stored {
    /// What `range` of the file, which is not empty, begins with: the extent if it is to be sent as
    /// it is stored, and where in the range that ends.
    pub(super) fn first(
        &mut self,
        file: &SourceFile,
        range: &Range<u64>,
    ) -> Result<(Option<CompressedExtent>, u64), BlockError> {
        if !self.known.contains(&range.start) {
            let (extents, end) = file.compressed_extents(range)?;
            self.extents = extents.into();
            self.known = range.start..end;
        }
        self.known.start = range.start;
        while let Some(extent) = self.extents.front()
            && extent.shown.end <= range.start
        {
            self.extents.pop_front();
        }
        Ok(match self.extents.front() {
            Some(extent) if extent.shown.start <= range.start => {
                let end = extent.shown.end.min(range.end);
                (worth_sending(extent, range.start..end), end)
            }
            Some(extent) => (None, extent.shown.start.min(range.end)),
            None => (None, self.known.end.min(range.end)),
        })
    }
}

/// The extent as `part` shows it, unless what is stored is as long as the part. So it is where little
/// of an extent was left when the rest was overwritten; and else an extent of which many
/// parts show would be sent, and stored, as many times.
fn worth_sending(extent: &CompressedExtent, part: Range<u64>) -> Option<CompressedExtent> {
    let worth =
        part.start.is_multiple_of(BLOCK) && (extent.stored_len as u64) < part.end - part.start;
    worth.then(|| CompressedExtent {
        offset: extent.offset + (part.start - extent.shown.start),
        shown: part,
        ..extent.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Compression;

    fn extent(shown: Range<u64>, offset: u64) -> CompressedExtent {
        CompressedExtent {
            shown,
            offset,
            unencoded_len: 128 << 10,
            stored_len: 16 << 10,
            compression: Compression::Zstd,
            generation: 7,
        }
    }

    #[test]
    fn a_part_keeps_its_place_in_the_extent() {
        let extent = extent(1 << 20..(1 << 20) + (64 << 10), 8192);
        let part = (1 << 20) + 4096..(1 << 20) + (40 << 10);
        let sent = worth_sending(&extent, part.clone()).unwrap();
        assert_eq!((sent.shown, sent.offset), (part, 12288));
    }

    #[test]
    fn a_part_that_is_no_longer_than_what_is_stored_is_not_sent_as_stored() {
        let extent = extent(0..128 << 10, 0);
        assert!(worth_sending(&extent, 0..(16 << 10) + 1).is_some());
        assert_eq!(worth_sending(&extent, 0..16 << 10), None);
        assert_eq!(worth_sending(&extent, 512..64 << 10), None);
    }
}
