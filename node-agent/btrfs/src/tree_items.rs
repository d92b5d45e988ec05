//! What the tree of a subvolume keeps of a file: its inode item and its extents, found by the kernel's
//! tree search. Reading the file itself is elsewhere.
//!
//! The items are those of the kernel's `include/uapi/linux/btrfs_tree.h`, little-endian as on disk.

use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use linux_raw_sys::btrfs::{
    BTRFS_EXTENT_DATA_KEY, BTRFS_FILE_EXTENT_REG, BTRFS_INODE_ITEM_KEY, btrfs_file_extent_item,
    btrfs_inode_item, btrfs_ioctl_search_header,
};
use rustix::io::{Errno, Result};

use crate::stream::{Compression, MAX_ENCODED};
use crate::sys;

/// What is kept of an inode.
pub(crate) struct InodeItem {
    /// Transaction that made it; tells it from others that had its number before.
    pub(crate) generation: u64,
    /// Type and permissions.
    pub(crate) mode: u32,
}

/// What is kept of `inode` in the subvolume that `fd` is in; ENOENT if it has none of that number.
pub(crate) fn inode_item(fd: BorrowedFd<'_>, inode: u64) -> Result<InodeItem> {
    let (count, found) = sys::search(fd, (inode, BTRFS_INODE_ITEM_KEY), (0, u64::MAX), 1)?;
    if count == 0 {
        return Err(Errno::NOENT);
    }
    let (_, item, _) = split(&found).ok_or(Errno::OVERFLOW)?;
    let inode_item = || {
        Some(InodeItem {
            generation: u64_at(item, offset_of!(btrfs_inode_item, generation))?,
            mode: u32_at(item, offset_of!(btrfs_inode_item, mode))?,
        })
    };
    inode_item().ok_or(Errno::OVERFLOW)
}

/// A compressed extent, and where a file shows a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CompressedExtent {
    /// The range of the file.
    pub(crate) shown: Range<u64>,
    /// Where in the uncompressed extent that range begins.
    pub(crate) offset: u64,
    /// Bytes of the extent before it was compressed, at most [`MAX_ENCODED`].
    pub(crate) unencoded_len: u64,
    /// Bytes that it takes, at most [`MAX_ENCODED`].
    pub(crate) stored_len: usize,
    pub(crate) compression: Compression,
    /// Transaction in which the file came to show it.
    pub(crate) generation: u64,
}

/// The extents of `inode` that are compressed with zlib or zstd, in the order of their places: those
/// that show anything in `range`, and perhaps some around it. The second answer is up to where
/// in the file these are all there are; it is beyond the range's start.
pub(crate) fn compressed_extents(
    fd: BorrowedFd<'_>,
    inode: u64,
    range: &Range<u64>,
) -> Result<(Vec<CompressedExtent>, u64)> {
    // An extent that reaches into the range begins no further before it than an extent is long.
    let mut next = range.start.saturating_sub(MAX_ENCODED as u64);
    let mut extents = Vec::new();
    while next <= range.start {
        let wanted = (inode, BTRFS_EXTENT_DATA_KEY);
        let (count, found) = sys::search(fd, wanted, (next, u64::MAX), u32::MAX)?;
        if count == 0 {
            return Ok((extents, u64::MAX));
        }
        let mut found = found.as_slice();
        for _ in 0..count {
            let (start, item, rest) = split(found).ok_or(Errno::OVERFLOW)?;
            extents.extend(compressed_extent(start, item));
            found = rest;
            next = start + 1;
        }
    }
    Ok((extents, next))
}

/// `None` for what is not compressed, compressed with LZO, inline, or not as compressed extents are.
fn compressed_extent(start: u64, item: &[u8]) -> Option<CompressedExtent> {
    type Item = btrfs_file_extent_item;
    let number = |offset| u64_at(item, offset);
    let byte = |offset| item.get(offset).copied();
    if u32::from(byte(offset_of!(Item, type_))?) != BTRFS_FILE_EXTENT_REG as u32
        || byte(offset_of!(Item, encryption))? != 0
        || number(offset_of!(Item, disk_bytenr))? == 0
    {
        return None;
    }
    // As on disk (`enum btrfs_compression_type`), which are not the numbers of encoded reads.
    let compression = match byte(offset_of!(Item, compression))? {
        1 => Compression::Zlib,
        3 => Compression::Zstd,
        _ => return None,
    };
    let length = number(offset_of!(Item, num_bytes))?;
    let extent = CompressedExtent {
        shown: start..start.checked_add(length)?,
        offset: number(offset_of!(Item, offset))?,
        unencoded_len: number(offset_of!(Item, ram_bytes))?,
        stored_len: number(offset_of!(Item, disk_num_bytes))?.try_into().ok()?,
        compression,
        generation: number(offset_of!(Item, generation))?,
    };
    let end = extent.offset.checked_add(length)?;
    let most = MAX_ENCODED as u64;
    let sane = end <= extent.unencoded_len
        && extent.unencoded_len <= most
        && extent.stored_len as u64 <= most;
    sane.then_some(extent)
}

/// Takes the first item off what a search found: its offset in the tree, the item, the rest.
fn split(found: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let offset = u64_at(found, offset_of!(btrfs_ioctl_search_header, offset))?;
    let length = u32_at(found, offset_of!(btrfs_ioctl_search_header, len))?;
    let items = found.get(size_of::<btrfs_ioctl_search_header>()..)?;
    let (item, rest) = items.split_at_checked(length as usize)?;
    Some((offset, item, rest))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}
