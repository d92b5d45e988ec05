//! Where a file has data and where it has holes. Allocated space that was never written is a hole.

use std::ops::Range;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BlockError;
use super::files::SourceFile;

/// What a range of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Data,
    Hole,
}

/// Tells the data of one file from its holes. It remembers what it found last: the kernel looks for
/// the end of a run extent by extent, and would go through all of a file of many extents for each
/// range that is asked about.
#[derive(Debug)]
pub(super) struct Map {
    fd: OwnedFd,
    known: (Content, Range<u64>),
}

impl Map {
    pub(super) fn of(file: &SourceFile) -> Result<Self, BlockError> {
        Ok(Self {
            fd: file.open()?,
            known: (Content::Hole, 0..0),
        })
    }

    /// What `range`, which is not empty, begins with, and where in it that ends. Behind the end of
    /// the file is a hole.
    pub(super) fn first(&mut self, range: &Range<u64>) -> Result<(Content, u64), Errno> {
        if !self.known.1.contains(&range.start) {
            self.known = self.find(range.start)?;
        }
        let (content, known) = &self.known;
        Ok((*content, known.end.min(range.end)))
    }

    fn find(&self, at: u64) -> Result<(Content, Range<u64>), Errno> {
        let data = match rustix::fs::seek(&self.fd, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok((Content::Hole, at..u64::MAX)),
            Err(errno) => return Err(errno),
        };
        if data > at {
            return Ok((Content::Hole, at..data));
        }
        let hole = rustix::fs::seek(&self.fd, SeekFrom::Hole(at))?;
        Ok((Content::Data, at..hole))
    }
}
