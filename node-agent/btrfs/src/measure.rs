//! How long a send stream will be, told by a pass of the kernel without file data: milliseconds for most increments.
//! An estimate for progress and for space; nothing may depend on its being right.

use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use crate::error::Error;
use crate::send::{FileData, SendRequest, SendStream};
use crate::stream::{COMMAND_HEADER, Command, MAX_ENCODED, Problem, Reader, StreamError};
use crate::walk::READ;

/// The most that the kernel puts into one write command of version 2 (`max_send_read_size` of
/// `fs/btrfs/send.c`).
const WRITE_BYTES: u64 = MAX_ENCODED as u64;

/// How long the kernel may compute in silence before the watcher is asked again.
const SILENCE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// The length that a stream will have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamSize {
    /// Bytes of the whole stream.
    pub stream: u64,
    /// Bytes of file data in it.
    pub data: u64,
}

/// Why there is no measure.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MeasureError {
    /// The watcher broke it off.
    #[error("measuring was broken off")]
    BrokenOff,
    /// The kernel does not send this.
    #[error(transparent)]
    Send(#[from] Error),
    /// What the kernel sends is not what it should be.
    #[error("cannot measure: {0}")]
    Stream(#[source] StreamError),
}

impl SendRequest<'_> {
    /// How long the stream of this request will be.
    ///
    /// The kernel goes through all metadata for it: for a file of 100,000 shared extents that takes
    /// most of a minute. `watch` is told, a few times a second at least, how many bytes of metadata
    /// came so far, and can break it off.
    ///
    /// # Errors
    /// As [`SendRequest::send_to`]; broken off.
    pub fn measure(
        &self,
        watch: impl FnMut(u64) -> ControlFlow<()>,
    ) -> Result<StreamSize, MeasureError> {
        let stream = self.start_with(FileData::Omitted)?;
        let mut reader = Reader::begin(BufReader::new(Watched {
            stream,
            bytes: 0,
            watch,
        }))
        .map_err(MeasureError::of)?
        .ok_or_else(|| Error::system("send", self.source.name())(Errno::NODATA))?;
        let mut holes = HoleFinder {
            source: self.source.as_fd(),
            file: None,
        };
        let mut instead = StreamSize::default();
        let mut omitted = 0;
        while let Some(command) = reader.next_command().map_err(MeasureError::of)? {
            if let Command::UpdateExtent {
                path,
                offset,
                length,
            } = command
            {
                let path = path.as_bytes();
                // Only an increment speaks of holes: in a full send there is nothing to punch.
                let hole = self.parent.is_some() && holes.is_hole(path, offset, length);
                let size = if hole {
                    punch(path)
                } else {
                    writes(path, length)
                };
                instead.stream = instead.stream.saturating_add(size.stream);
                instead.data = instead.data.saturating_add(size.data);
                omitted += update_extent(path);
            }
        }
        let metadata = reader.upcoming().offset - omitted;
        Ok(StreamSize {
            stream: metadata.saturating_add(instead.stream),
            ..instead
        })
    }
}

impl MeasureError {
    /// Takes out what [`Watched`] and [`SendStream`] wrapped.
    fn of(error: StreamError) -> Self {
        let Problem::Read(source) = &error.problem else {
            return Self::Stream(error);
        };
        let inner = source.get_ref();
        if inner.is_some_and(|inner| inner.is::<BrokenOff>()) {
            return Self::BrokenOff;
        }
        match inner.and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::Send(error.clone()),
            None => Self::Stream(error),
        }
    }
}

// The bytes of commands that name `path`: a header, and attributes of four bytes and the value each.

fn update_extent(path: &[u8]) -> u64 {
    (COMMAND_HEADER + (4 + path.len()) + (4 + 8) + (4 + 8)) as u64
}

/// One FALLOCATE: path, mode, offset, size.
fn punch(path: &[u8]) -> StreamSize {
    StreamSize {
        stream: update_extent(path) + (4 + 4),
        data: 0,
    }
}

/// As many WRITEs as `length` bytes take: path, offset, and data, which has no length.
fn writes(path: &[u8], length: u64) -> StreamSize {
    let each = (COMMAND_HEADER + (4 + path.len()) + (4 + 8) + 2) as u64;
    let overhead = length.div_ceil(WRITE_BYTES).saturating_mul(each);
    StreamSize {
        stream: length.saturating_add(overhead),
        data: length,
    }
}

/// Tells holes from data, which the pass without data does not.
struct HoleFinder<'a> {
    source: BorrowedFd<'a>,
    /// The file asked about last, which in most cases is asked about next; none if it cannot be
    /// opened.
    file: Option<(Vec<u8>, Option<OwnedFd>)>,
}

impl HoleFinder<'_> {
    /// Whether this range is one hole in the source. The path is one of the moment in the stream,
    /// so it may be no file's in the source, or another's: then the answer may be wrong.
    fn is_hole(&mut self, path: &[u8], offset: u64, length: u64) -> bool {
        if self.file.as_ref().is_none_or(|(known, _)| known != path) {
            self.file = Some((path.to_vec(), self.open(path)));
        }
        let Some((_, Some(file))) = &self.file else {
            return false;
        };
        match rustix::fs::seek(file, SeekFrom::Data(offset)) {
            Ok(data) => data.saturating_sub(offset) >= length,
            Err(errno) => errno == Errno::NXIO,
        }
    }

    /// Opens a regular file, and nothing that does more when it is opened.
    fn open(&self, path: &[u8]) -> Option<OwnedFd> {
        let open = |flags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            rustix::fs::openat2(self.source, path, flags, Mode::empty(), resolve).ok()
        };
        let stat = rustix::fs::fstat(open(OFlags::PATH | OFlags::CLOEXEC)?).ok()?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            open(READ)
        } else {
            None
        }
    }
}

/// Reads a stream, asking the watcher before each read and while there is nothing to read.
struct Watched<W> {
    stream: SendStream,
    bytes: u64,
    watch: W,
}

#[derive(Debug, thiserror::Error)]
#[error("broken off")]
struct BrokenOff;

impl<W: FnMut(u64) -> ControlFlow<()>> Read for Watched<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if (self.watch)(self.bytes).is_break() {
                return Err(io::Error::other(BrokenOff));
            }
            let mut fds = [PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, Some(&SILENCE)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        let count = self.stream.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}
