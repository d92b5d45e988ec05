//! Puts commands together into blocks, and makes the ones that stand for data and holes. Which
//! commands there are to be is `extents.rs`' business.

use std::collections::VecDeque;
use std::mem::take;
use std::ops::Range;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::files::SourceFile;
use super::{Block, DataRead, Reading};
use crate::stream::encode::Payload;
use crate::stream::{Attribute, COMMAND_HEADER, Kind, MAX_BLOCK, Version};
use crate::tree_items::CompressedExtent;

/// Blocks under construction: filled up one after the other, no command across two.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    bytes: Vec<u8>,
    reads: Vec<DataRead>,
    /// Bytes of the block with all its data.
    length: usize,
    /// Which of `bytes` come after the last data.
    after: usize,
    ready: VecDeque<Block>,
}

impl Cutter {
    /// Appends a command as it is, or the stream's header.
    pub(super) fn command(&mut self, bytes: &[u8]) {
        self.make_room(bytes.len());
        self.append(bytes);
    }

    /// Appends a WRITE of a range of the file, at most 1 MiB.
    pub(super) fn data(&mut self, file: &Arc<SourceFile>, range: Range<u64>) {
        let length = (range.end - range.start) as usize;
        let head = Payload::default()
            .attribute(Attribute::Path, file.path())
            .attribute(Attribute::FileOffset, &range.start.to_le_bytes())
            .data(Version::V2, &[]);
        let head = command(Kind::Write, head, length);
        self.make_room(head.len() + length);
        self.append(&head);
        let offset = range.start;
        self.read(file, Reading::Plain { offset, length }, length);
    }

    /// Appends an ENCODED_WRITE of an extent of the file.
    pub(super) fn stored(&mut self, file: &Arc<SourceFile>, extent: CompressedExtent) {
        let length = extent.stored_len;
        let shown = extent.shown.end - extent.shown.start;
        let head = Payload::default()
            .attribute(Attribute::Path, file.path())
            .attribute(Attribute::FileOffset, &extent.shown.start.to_le_bytes())
            .attribute(Attribute::UnencodedFileLen, &shown.to_le_bytes())
            .attribute(Attribute::UnencodedLen, &extent.unencoded_len.to_le_bytes())
            .attribute(Attribute::UnencodedOffset, &extent.offset.to_le_bytes())
            .attribute(
                Attribute::Compression,
                &extent.compression.number().to_le_bytes(),
            )
            .data(Version::V2, &[]);
        let head = command(Kind::EncodedWrite, head, length);
        self.make_room(head.len() + length);
        self.append(&head);
        self.read(file, Reading::Stored(extent), length);
    }

    /// Appends what makes a range of the file a hole, and the file as long as to have it.
    pub(super) fn hole(&mut self, file: &SourceFile, range: &Range<u64>) {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let offset = range.start.to_le_bytes();
        let size = (range.end - range.start).to_le_bytes();
        let announcement = Payload::default()
            .attribute(Attribute::Path, file.path())
            .attribute(Attribute::FileOffset, &offset)
            .attribute(Attribute::Size, &size);
        let punch = Payload::default()
            .attribute(Attribute::Path, file.path())
            .attribute(Attribute::FallocateMode, &mode.bits().to_le_bytes())
            .attribute(Attribute::FileOffset, &offset)
            .attribute(Attribute::Size, &size);
        self.command(&command(Kind::UpdateExtent, announcement, 0));
        self.command(&command(Kind::Fallocate, punch, 0));
    }

    /// Here comes data of the file.
    fn read(&mut self, file: &Arc<SourceFile>, reading: Reading, length: usize) {
        self.reads.push(DataRead {
            after: self.bytes.len() - self.after,
            file: file.clone(),
            reading,
        });
        self.after = self.bytes.len();
        self.length += length;
    }

    /// The commands end here.
    pub(super) fn end(&mut self) {
        if self.length > 0 {
            self.ready.push_back(Block {
                bytes: take(&mut self.bytes),
                reads: take(&mut self.reads),
                length: take(&mut self.length),
            });
            self.after = 0;
        }
    }

    /// The next block that is full, or the last.
    pub(super) fn next_block(&mut self) -> Option<Block> {
        self.ready.pop_front()
    }

    /// Bytes of the block that is not full yet, with all its data.
    pub(super) fn begun(&self) -> usize {
        self.length
    }

    fn make_room(&mut self, length: usize) {
        if self.length + length > MAX_BLOCK {
            self.end();
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.length += bytes.len();
    }
}

/// A command without its checksum, to be followed by `more` bytes of its payload.
fn command(kind: Kind, payload: Payload, more: usize) -> Vec<u8> {
    let payload = payload.into_bytes();
    let mut bytes = Vec::with_capacity(COMMAND_HEADER + payload.len());
    // At most MAX_BLOCK.
    bytes.extend(((payload.len() + more) as u32).to_le_bytes());
    bytes.extend(kind.number().to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes
}
