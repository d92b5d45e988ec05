//! Where a file has data and where it has holes. Allocated space that was never written is a hole.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BlockError;
use super::files::SourceFile;
use crate::sys::Caching;

/// What a range of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Hole,
}

/// Tells the data of one file from its holes, range by range from its start on.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    /// What was found last. The kernel looks for a hole's end extent by extent, and would go through
    /// all of an allocated range for each extent of it.
    hole: Range<u64>,
}

impl Map {
    pub(super) fn of(file: &SourceFile) -> Result<Self, BlockError> {
        Ok(Self {
            fd: file.open(Caching::Used)?,
            hole: 0..0,
        })
    }

    /// What `range`, which was announced and is not empty, begins with, and where in it that ends.
    ///
    /// Kernels announce extent by extent: what begins with data is data all through. Were it not,
    /// its holes would be sent as zeros. So nobody has to look for the end of data, which in a file
    /// of many extents is far away.
    pub(super) fn first(&mut self, range: &Range<u64>) -> Result<(Content, u64), Errno> {
        if !self.hole.contains(&range.start) {
            let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(range.start)) {
                Ok(data) => data,
                // There is none up to the file's end.
                Err(Errno::NXIO) => u64::MAX,
                Err(errno) => return Err(errno),
            };
            self.hole = range.start..data;
        }
        match self.hole.is_empty() {
            true => Ok((Content::Data, range.end)),
            false => Ok((Content::Hole, self.hole.end.min(range.end))),
        }
    }
}
