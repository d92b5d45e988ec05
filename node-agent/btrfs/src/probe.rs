//! What the running kernel's send can do, found out by trying: for what no version number tells.
//! Remembering the answer is the caller's business.

use std::io::BufReader;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::blocks::BlockError;
use crate::error::Error;
use crate::send::{FileData, SendRequest};
use crate::stream::{Command, Reader};
use crate::subvolume::{Access, Subvolume, create, delete, snapshot};

const LIVE: &[u8] = b"probe-live";
const BEFORE: &[u8] = b"probe-before";
const AFTER: &[u8] = b"probe-after";

/// Blocks of the probe's file; all but the first and the last become one hole.
const BLOCKS: [u64; 3] = [0, 1 << 30, 6 << 30];

const BLOCK: [u8; 4096] = [1; 4096];

/// Whether a send without file data, as [`SendRequest::extents`] asks for, tells a hole of 4 GiB or
/// more as it is. Kernels that announce holes as they announce data cut the length to 32 bits, and
/// must not be used so.
///
/// `scratch` is a directory on the file system; some small subvolumes named `probe-…` are made in it
/// and removed again, and so are those that a probe which was killed left there.
///
/// # Errors
/// The subvolumes cannot be made, sent or removed.
pub fn punches_large_holes(scratch: impl AsFd) -> Result<bool, BlockError> {
    let scratch = scratch.as_fd();
    clear(scratch)?;
    let answer = punch_and_send(scratch);
    clear(scratch)?;
    answer
}

fn clear(scratch: BorrowedFd<'_>) -> Result<(), Error> {
    for name in [LIVE, BEFORE, AFTER] {
        match delete(scratch, name) {
            Err(error) if error.errno() != Some(Errno::NOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn punch_and_send(scratch: BorrowedFd<'_>) -> Result<bool, BlockError> {
    let live = create(scratch, LIVE)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&live, c"sparse", flags, Mode::RUSR)
        .map_err(Error::system("make a file in", LIVE))?;
    for at in BLOCKS {
        let written = rustix::io::pwrite(&file, &BLOCK, at);
        written.map_err(Error::system("write to", LIVE))?;
    }
    let before = snapshot(&live, scratch, BEFORE, Access::ReadOnly)?;
    let [first, middle, last] = BLOCKS;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, middle, BLOCK.len() as u64)
        .map_err(Error::system("punch a hole into", LIVE))?;
    let after = snapshot(&live, scratch, AFTER, Access::ReadOnly)?;
    tells_hole(&before, &after, first + BLOCK.len() as u64..last)
}

/// Whether the increment says that `hole` is one.
fn tells_hole(
    before: &Subvolume,
    after: &Subvolume,
    hole: std::ops::Range<u64>,
) -> Result<bool, BlockError> {
    let request = SendRequest {
        source: after,
        parent: Some(before),
        clone_sources: &[],
    };
    let kernel = BufReader::new(request.start_with(FileData::Omitted)?);
    let mut stream = Reader::begin(kernel)
        .map_err(BlockError::of)?
        .ok_or_else(|| Error::system("send", AFTER)(Errno::NODATA))?;
    let mut told = false;
    while let Some(command) = stream.next_command().map_err(BlockError::of)? {
        if let Command::Fallocate { offset, length, .. } = command {
            told |= (offset..offset + length) == hole;
        }
    }
    Ok(told)
}
