//! The data of the partial's files: writing it, and knowing at the end that all of it is durable.
//! Which file a path means is `tree.rs`' answer.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::tree::Node;
use super::{ReceiveError, Refusal};
use crate::stream::TreePath;
use crate::sys;

/// Files that are kept open for the final fsync. An image has a few; more are synced together.
const MAX_HELD: usize = 64;

/// Bytes that are copied at a time where they cannot be cloned.
const COPY_BUFFER: usize = 1 << 20;

/// Bytes of a file that are written before their write-back is started, so that the disk works
/// while the stream still arrives.
const WRITE_BACK: u64 = 1 << 20;

/// The files that were written to.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// By inode, not by path: a path may come to mean another file. The oldest is first.
    held: Vec<File>,
    /// Whether there were more than could be held.
    spilled: bool,
}

/// One file, open for writing.
#[derive(Debug)]
pub(super) struct File {
    ino: u64,
    fd: OwnedFd,
    /// Its path when it was opened, for messages.
    path: Vec<u8>,
    /// What was written in a row, and is not yet on its way to the disk.
    written: std::ops::Range<u64>,
}

impl Files {
    /// The file that `node` is, for writing.
    pub(super) fn open(&mut self, node: &Node, path: TreePath<'_>) -> Result<&mut File, Refusal> {
        let at = match self.held.iter().rposition(|file| file.ino == node.ino) {
            Some(at) => at,
            None => {
                let fd = node.open_data(OFlags::RDWR)?;
                if self.held.len() == MAX_HELD {
                    self.held.remove(0);
                    self.spilled = true;
                }
                let path = path.as_bytes().to_vec();
                self.held.push(File {
                    ino: node.ino,
                    fd,
                    path,
                    written: 0..0,
                });
                self.held.len() - 1
            }
        };
        Ok(&mut self.held[at])
    }

    /// Makes everything durable that was written.
    ///
    /// A write-back error is told once to every descriptor that was open when it happened, so the
    /// descriptors that data was written through are asked. Of the files that could not be held,
    /// the file system as a whole is asked: `root` has been open since before the first write.
    pub(super) fn sync(&mut self, root: BorrowedFd<'_>) -> Result<(), ReceiveError> {
        for file in &self.held {
            rustix::fs::fsync(&file.fd).map_err(|errno| {
                let path = file.path.escape_ascii().to_string();
                ReceiveError::Sync { path, errno }
            })?;
        }
        if self.spilled {
            rustix::fs::syncfs(root).map_err(|errno| ReceiveError::Sync {
                path: String::new(),
                errno,
            })?;
        }
        *self = Self::default();
        Ok(())
    }
}

impl File {
    pub(super) fn write(&mut self, mut offset: u64, mut data: &[u8]) -> Result<(), Refusal> {
        if self.written.end != offset {
            self.start_write_back()?;
            self.written = offset..offset;
        }
        while !data.is_empty() {
            match rustix::io::pwrite(&self.fd, data, offset) {
                Ok(0) => return Err(Refusal::system("write to it")(Errno::IO)),
                Ok(written) => {
                    offset += written as u64;
                    data = &data[written..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Refusal::system("write to it")(errno)),
            }
        }
        self.written.end = offset;
        if offset - self.written.start >= WRITE_BACK {
            self.start_write_back()?;
            self.written.start = offset;
        }
        Ok(())
    }

    /// An error of the write-back itself shows at the final fsync.
    fn start_write_back(&self) -> Result<(), Refusal> {
        let length = self.written.end - self.written.start;
        if length < WRITE_BACK {
            return Ok(());
        }
        sys::start_write_back(self.fd.as_fd(), self.written.start, length)
            .map_err(Refusal::system("start writing it back"))
    }

    /// Makes the file at least `size` bytes long.
    pub(super) fn reach(&self, size: u64) -> Result<(), Refusal> {
        let stat = rustix::fs::fstat(&self.fd).map_err(Refusal::system("look at it"))?;
        if stat.st_size.cast_unsigned() < size {
            self.truncate(size)?;
        }
        Ok(())
    }

    pub(super) fn truncate(&self, size: u64) -> Result<(), Refusal> {
        rustix::fs::ftruncate(&self.fd, size).map_err(Refusal::system("truncate it"))
    }

    pub(super) fn allocate(&self, mode: u32, offset: u64, length: u64) -> Result<(), Refusal> {
        // Of all modes, those that send uses or may come to use: none moves data.
        let keep_size = FallocateFlags::KEEP_SIZE;
        let known = [
            FallocateFlags::empty(),
            keep_size,
            FallocateFlags::PUNCH_HOLE | keep_size,
            FallocateFlags::ZERO_RANGE,
            FallocateFlags::ZERO_RANGE | keep_size,
        ];
        let flags = FallocateFlags::from_bits_retain(mode);
        if !known.contains(&flags) {
            return Err(Refusal::FallocateMode(mode));
        }
        rustix::fs::fallocate(&self.fd, flags, offset, length)
            .map_err(Refusal::system("allocate or punch it"))
    }

    /// Shares `length` bytes of `source`, or copies them where the kernel cannot share: when one
    /// of the two has checksums and the other has not, or when the range does not lie on blocks.
    pub(super) fn clone_range(
        &mut self,
        source: &OwnedFd,
        source_offset: u64,
        length: u64,
        offset: u64,
    ) -> Result<(), Refusal> {
        match sys::clone_range(
            self.fd.as_fd(),
            source.as_fd(),
            source_offset,
            length,
            offset,
        ) {
            Err(Errno::INVAL) => self.copy_range(source, source_offset, length, offset),
            cloned => cloned.map_err(Refusal::system("clone into it")),
        }
    }

    /// Copies data as data and holes as holes, so that the work is bounded by what is there.
    fn copy_range(
        &mut self,
        source: &OwnedFd,
        source_offset: u64,
        length: u64,
        offset: u64,
    ) -> Result<(), Refusal> {
        let (mut at, end) = (source_offset, source_offset + length);
        let target = |at: u64| offset + (at - source_offset);
        self.reach(target(end))?;
        let mut buffer = vec![0; COPY_BUFFER];
        while at < end {
            let data = seek(source, SeekFrom::Data(at))?.unwrap_or(end).min(end);
            if data > at {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.fd, punch, target(at), data - at)
                    .map_err(Refusal::system("punch a hole into it"))?;
            }
            at = data;
            let hole = seek(source, SeekFrom::Hole(at))?.unwrap_or(end).min(end);
            while at < hole {
                let wanted = (hole - at).min(COPY_BUFFER as u64) as usize;
                let read = rustix::io::pread(source, &mut buffer[..wanted], at)
                    .map_err(Refusal::system("read the clone source"))?;
                if read == 0 {
                    return Err(Refusal::system("read the clone source")(Errno::IO));
                }
                self.write(target(at), &buffer[..read])?;
                at += read as u64;
            }
        }
        Ok(())
    }
}

/// The next data or hole; `None` if there is none up to the file's end.
fn seek(file: &OwnedFd, to: SeekFrom) -> Result<Option<u64>, Refusal> {
    match rustix::fs::seek(file, to) {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(Refusal::system("find the holes of the clone source")(errno)),
    }
}
