//! The kernel's send stream, protocol versions 1 and 2, as typed commands: [`Reader`] checks and
//! yields them one by one. Pure: it reads from any [`std::io::Read`] and touches no file system;
//! [`crate::receive`] is what applies a stream.
//!
//! # Format
//!
//! As `fs/btrfs/send.h` and btrfs' developer documentation ("Send stream format") describe it.
//! All integers are little-endian.
//!
//! ```text
//! stream     "btrfs-stream" NUL, version u32, then commands up to END
//! command    payload length u32, number u16, crc u32, payload
//! payload    attributes: number u16, length u16, value
//! ```
//!
//! The crc is CRC-32C without the usual inversions (seed 0) over header and payload, with the crc
//! field taken as zero. In version 2 the DATA attribute has no length: it is the last one, and its
//! value is the rest of the payload. The empty path is the subvolume's root directory.
//!
//! # Strictness
//!
//! What the kernel does not send is refused: unknown commands and attributes, an attribute that is
//! repeated, missing or of the wrong size, one that the command does not take, paths that are not
//! plain relative names, ranges beyond what a file can have. Every length is capped before
//! anything is allocated for it.

mod attributes;
mod blocks;
mod command;
pub mod encode;
mod error;
mod header;
mod numbers;
mod parse;
mod path;
mod reader;
#[cfg(test)]
mod tests;

pub use blocks::BlockReader;
pub use command::{Command, Compression, Encoded, Timestamp};
pub use error::{Problem, StreamError};
pub use numbers::{Attribute, Kind};
pub(crate) use path::TreePathBuf;
pub use path::{NameError, TreePath};
pub use reader::{Position, Reader};

/// What every stream starts with.
pub(crate) const MAGIC: &[u8; 13] = b"btrfs-stream\0";

/// Magic and version.
pub(crate) const STREAM_HEADER: usize = MAGIC.len() + 4;

/// A command's length, number and crc.
pub(crate) const COMMAND_HEADER: usize = 10;

/// The longest payload of a version 1 command: the kernel builds each, header included, in a
/// buffer of 64 KiB (`BTRFS_SEND_BUF_SIZE_V1`).
pub const MAX_PAYLOAD_V1: usize = (64 << 10) - COMMAND_HEADER;

/// The longest payload of a version 2 command. The kernel's buffer is 16 KiB plus the largest
/// compressed extent of 128 KiB, rounded up to a page (`BTRFS_SEND_BUF_SIZE_V2`): 192 KiB where
/// pages have 64 KiB. The protocol itself names no limit.
pub const MAX_PAYLOAD_V2: usize = 256 << 10;

/// The longest block that a stream travels in: whole commands, one of which may be a WRITE of 1 MiB
/// of data, with room for its head (a path of 4095 bytes at most, and 38 more).
pub const MAX_BLOCK: usize = (1 << 20) + (8 << 10);

/// The largest extent that btrfs compresses, before and after (`BTRFS_MAX_UNCOMPRESSED` and
/// `BTRFS_MAX_COMPRESSED`).
pub const MAX_ENCODED: usize = 128 << 10;

/// The largest size and offset that a file can have (`MAX_LFS_FILESIZE`).
pub const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// The version of a stream's format. Version 3 exists in experimental kernels only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Since the first kernel with send.
    V1,
    /// Linux 6.0: encoded writes, fallocate, longer writes.
    V2,
}

impl Version {
    /// The number in the stream's header.
    pub fn number(self) -> u32 {
        match self {
            Version::V1 => 1,
            Version::V2 => 2,
        }
    }

    /// The longest payload that a command may have.
    pub fn max_payload(self) -> usize {
        match self {
            Version::V1 => MAX_PAYLOAD_V1,
            Version::V2 => MAX_PAYLOAD_V2,
        }
    }

    /// The version with this number, if it is known.
    pub fn from_number(number: u32) -> Option<Version> {
        match number {
            1 => Some(Version::V1),
            2 => Some(Version::V2),
            _ => None,
        }
    }
}

/// The crc of one command: `header` with its crc field zeroed, then the payload.
pub(crate) fn checksum(mut header: [u8; COMMAND_HEADER], payload: &[u8]) -> u32 {
    header[6..].fill(0);
    // The stream wants the bare polynomial division; the crate inverts before and after.
    !crc32c::crc32c_append(crc32c::crc32c_append(!0, &header), payload)
}
