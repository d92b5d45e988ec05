//! The data of the partial's files: writing it, and knowing at the end that all of it is durable.
//! Which file a path means is `tree.rs`' answer.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::Refusal;
use super::error::NotDurable;
use super::kept::Kept;
use super::tree::Node;
use crate::stream::{Encoded, TreePath};
use crate::sys::{self, Caching};
use crate::tree_items::inode_item;

/// Files that are kept open for the final fsync. An image has a few; more are synced together.
const MAX_HELD: usize = 64;

/// Extents that are kept as they came before they are looked up: some 4 MiB of memory.
const MAX_KEPT: usize = 64 << 10;

/// Bytes that are copied at a time where they cannot be cloned.
const COPY_BUFFER: usize = 1 << 20;

/// Bytes of a file that are written in a row before their write-back is started, so that the disk works while the
/// stream still arrives; and how many are worth it when the row ends.
const WRITE_BACK: u64 = 1 << 20;
const WRITE_BACK_PIECE: u64 = 64 << 10;

/// The files that were written to.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Transaction in which the subvolume was made: all that is written here is no older.
    pub(super) since: u64,
    /// Whether those that are not among them are as the parent has them.
    as_parent: bool,
    /// By inode, not by path: a path may come to mean another file. The oldest is first.
    held: Vec<File>,
    /// Whether there were more than could be held.
    spilled: bool,
    /// What was kept in those, by inode.
    kept: HashMap<u64, Kept>,
    /// Extents that were kept in all files together.
    kept_extents: usize,
}

/// One file, open for writing.
#[derive(Debug)]
pub(super) struct File {
    ino: u64,
    fd: Arc<OwnedFd>,
    /// Its path when it was opened, for messages.
    path: Vec<u8>,
    /// What was written in a row, and is not yet on its way to the disk.
    written: Range<u64>,
    /// From here on it is as the parent has it.
    as_parent_from: u64,
    kept: Kept,
}

impl Files {
    /// None yet, of a subvolume that was made in the transaction `since`: `as_parent` if nothing was changed in it
    /// since.
    pub(super) fn new(since: u64, as_parent: bool) -> Self {
        Self {
            since,
            as_parent,
            ..Self::default()
        }
    }

    /// The file that `node` is, for writing.
    pub(super) fn open(&mut self, node: &Node, path: TreePath<'_>) -> Result<&mut File, Refusal> {
        let at = match self.held.iter().rposition(|file| file.ino == node.ino) {
            Some(at) => at,
            None => {
                let fd = node.open_file()?;
                if self.held.len() == MAX_HELD {
                    let file = self.held.remove(0);
                    self.spilled = true;
                    self.as_parent = false;
                    if !file.kept.is_empty() {
                        self.kept.insert(file.ino, file.kept);
                    }
                }
                let path = path.as_bytes().to_vec();
                self.held.push(File {
                    ino: node.ino,
                    fd,
                    path,
                    written: 0..0,
                    as_parent_from: if self.as_parent { 0 } else { u64::MAX },
                    kept: self.kept.remove(&node.ino).unwrap_or_default(),
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
    pub(super) fn sync(&mut self, root: BorrowedFd<'_>) -> Result<(), NotDurable> {
        for file in &self.held {
            rustix::fs::fsync(&file.fd).map_err(NotDurable::sync(&file.path))?;
        }
        if self.spilled {
            rustix::fs::syncfs(root).map_err(NotDurable::sync(b""))?;
        }
        for file in &mut self.held {
            file.check_kept()?;
        }
        for (&ino, kept) in &mut self.kept {
            match open_again(root, ino) {
                Ok(fd) => check_kept(kept, (fd.as_fd(), ino), b"")?,
                // It was deleted since.
                Err(Errno::NOENT | Errno::STALE) => {}
                Err(errno) => return Err(NotDurable::sync(b"")(errno)),
            }
        }
        *self = Self::new(self.since, false);
        Ok(())
    }

    /// Counts an extent that was kept as it came; when there are very many, it is time to sync.
    pub(super) fn one_more_kept(&mut self, root: BorrowedFd<'_>) -> Result<(), Refusal> {
        self.kept_extents += 1;
        match self.kept_extents >= MAX_KEPT {
            true => Ok(self.sync(root)?),
            false => Ok(()),
        }
    }
}

fn check_kept(
    kept: &mut Kept,
    (fd, ino): (BorrowedFd<'_>, u64),
    path: &[u8],
) -> Result<(), NotDurable> {
    match kept.stand(fd, ino).map_err(NotDurable::sync(path))? {
        true => Ok(()),
        false => Err(NotDurable::lost(path)),
    }
}

/// A file that could not be held, for reading.
fn open_again(root: BorrowedFd<'_>, ino: u64) -> Result<OwnedFd, Errno> {
    let subvolume = sys::subvolume_info(root)?.treeid;
    let inode = (subvolume, ino, inode_item(root, ino)?.generation);
    sys::open_inode(root, inode, Caching::Used)
}

impl File {
    /// Writes an extent as it is, not before the transaction `since`, if the kernel takes it.
    pub(super) fn write_encoded(
        &mut self,
        since: u64,
        offset: u64,
        encoded: &Encoded<'_>,
    ) -> Result<bool, Refusal> {
        let block = u64::try_from(self.stat()?.st_blksize).unwrap_or(0);
        // Other extents the kernel would make longer, and what is looked up be another than what was written.
        if encoded.file_len == 0 || !encoded.unencoded_len.is_multiple_of(block) {
            return Ok(false);
        }
        self.about_to_change(offset..offset + encoded.file_len)?;
        // It refuses files without checksums, ranges off a block, and what compression made longer. Of an error
        // that has to do with more than this extent, the plain write tells.
        let written = self
            .kept
            .write(self.fd.as_fd(), (block, since), offset, encoded);
        Ok(written.is_ok())
    }

    fn check_kept(&mut self) -> Result<(), NotDurable> {
        check_kept(&mut self.kept, (self.fd.as_fd(), self.ino), &self.path)
    }

    /// What was kept in a range has to be looked up before something else stands there.
    fn about_to_change(&mut self, range: Range<u64>) -> Result<(), Refusal> {
        self.as_parent_from = self.as_parent_from.max(range.end);
        if self.kept.is_in(&range) {
            rustix::fs::fsync(&self.fd).map_err(NotDurable::sync(&self.path))?;
            self.check_kept()?;
            self.kept = Kept::default();
        }
        Ok(())
    }

    /// Whether from `offset` on it is what the file of the same number in the parent is.
    pub(super) fn is_as_parent(&self, offset: u64) -> bool {
        self.as_parent_from <= offset
    }

    fn stat(&self) -> Result<Stat, Refusal> {
        rustix::fs::fstat(&self.fd).map_err(Refusal::system("look at it"))
    }

    pub(super) fn write(&mut self, mut offset: u64, mut data: &[u8]) -> Result<(), Refusal> {
        self.about_to_change(offset..offset + data.len() as u64)?;
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
        if length < WRITE_BACK_PIECE {
            return Ok(());
        }
        sys::start_write_back(self.fd.as_fd(), self.written.start, length)
            .map_err(Refusal::system("start writing it back"))
    }

    /// Makes the file at least `size` bytes long.
    pub(super) fn reach(&mut self, size: u64) -> Result<(), Refusal> {
        if self.stat()?.st_size.cast_unsigned() < size {
            self.truncate(size)?;
        }
        Ok(())
    }

    pub(super) fn truncate(&mut self, size: u64) -> Result<(), Refusal> {
        self.as_parent_from = u64::MAX;
        if !self.kept.is_empty() {
            let now = self.stat()?.st_size.cast_unsigned();
            if now != size {
                self.about_to_change(now.min(size)..u64::MAX)?;
            }
        }
        rustix::fs::ftruncate(&self.fd, size).map_err(Refusal::system("truncate it"))
    }

    pub(super) fn allocate(&mut self, mode: u32, offset: u64, length: u64) -> Result<(), Refusal> {
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
        self.about_to_change(offset..offset.saturating_add(length))?;
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
        self.about_to_change(offset..offset.saturating_add(length))?;
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
