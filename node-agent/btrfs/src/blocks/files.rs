//! The files of the snapshot that is sent: found by inode number, and read. Which inode a path of the
//! stream means is `overlay.rs`' answer.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::BlockError;
use crate::error::Error;
use crate::hold::Hold;
use crate::send::SendRequest;
use crate::subvolume::{Subvolume, escape};
use crate::sys::{self, Caching, EncodedRange};
use crate::tree_items::{CompressedExtent, compressed_extents, inode_item};

/// A snapshot and its parent, held.
#[derive(Debug)]
pub(super) struct Snapshots {
    source: Unchanged,
    parent: Option<Unchanged>,
    _hold: Hold,
}

#[derive(Debug)]
struct Unchanged {
    snapshot: Subvolume,
    id: u64,
    /// Transaction of its last change when the hold began.
    ctransid: u64,
}

impl Snapshots {
    pub(super) fn hold(request: &SendRequest<'_>) -> Result<Self, Error> {
        let hold = request.hold()?;
        Ok(Self {
            source: Unchanged::new(request.source)?,
            parent: request.parent.map(Unchanged::new).transpose()?,
            _hold: hold,
        })
    }

    /// A hold admits no change. This is for whoever asks whether it really did not.
    pub(super) fn check_unchanged(&self) -> Result<(), BlockError> {
        [Some(&self.source), self.parent.as_ref()]
            .into_iter()
            .flatten()
            .try_for_each(Unchanged::check)
    }

    pub(super) fn has_parent(&self) -> bool {
        self.parent.is_some()
    }

    /// The inode of the file at a path of the parent.
    pub(super) fn inode_in_parent(&self, path: &[u8]) -> Result<u64, BlockError> {
        Ok(self.stat_in_parent(path)?.st_ino)
    }

    /// Whether there is a directory at a path of the parent.
    pub(super) fn is_directory_in_parent(&self, path: &[u8]) -> Result<bool, BlockError> {
        let mode = self.stat_in_parent(path)?.st_mode;
        Ok(FileType::from_raw_mode(mode) == FileType::Directory)
    }

    fn stat_in_parent(&self, path: &[u8]) -> Result<Stat, BlockError> {
        let parent = self.parent.as_ref();
        let parent = parent.ok_or_else(|| BlockError::unknown(path))?;
        rustix::fs::openat2(
            &parent.snapshot,
            path,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        )
        .and_then(rustix::fs::fstat)
        .map_err(BlockError::file("find in the parent", path))
    }
}

impl Unchanged {
    fn new(snapshot: &Subvolume) -> Result<Self, Error> {
        let info = snapshot.info()?;
        Ok(Self {
            snapshot: snapshot.try_clone()?,
            id: info.id,
            ctransid: info.ctransid,
        })
    }

    fn check(&self) -> Result<(), BlockError> {
        let info = self.snapshot.info()?;
        if info.read_only && info.ctransid == self.ctransid {
            return Ok(());
        }
        Err(self.changed())
    }

    fn changed(&self) -> BlockError {
        BlockError::Changed {
            name: escape(self.snapshot.name()),
        }
    }
}

/// A regular file of the snapshot that is sent.
#[derive(Debug)]
pub(super) struct SourceFile {
    snapshots: Arc<Snapshots>,
    inode: u64,
    path: Vec<u8>,
}

impl SourceFile {
    /// The file `inode`, which the stream calls `path` at this place.
    pub(super) fn new(snapshots: &Arc<Snapshots>, inode: u64, path: &[u8]) -> Self {
        Self {
            snapshots: snapshots.clone(),
            inode,
            path: path.to_vec(),
        }
    }

    /// The path that the stream calls it by. In the snapshot another file may stand there.
    pub(super) fn path(&self) -> &[u8] {
        &self.path
    }

    /// Opens it for reading.
    pub(super) fn open(&self, caching: Caching) -> Result<OwnedFd, BlockError> {
        let Unchanged { snapshot, id, .. } = &self.snapshots.source;
        let item = inode_item(snapshot.as_fd(), self.inode)
            .map_err(BlockError::file("find", &self.path))?;
        // Opening anything else could have an effect.
        if FileType::from_raw_mode(item.mode) != FileType::RegularFile {
            return Err(BlockError::unknown(&self.path));
        }
        sys::open_inode(
            snapshot.as_fd(),
            (*id, self.inode, item.generation),
            caching,
        )
        .map_err(BlockError::file("open", &self.path))
    }

    /// Its compressed extents, as [`compressed_extents`] finds them.
    pub(super) fn compressed_extents(
        &self,
        range: &Range<u64>,
    ) -> Result<(Vec<CompressedExtent>, u64), BlockError> {
        let snapshot = self.snapshots.source.snapshot.as_fd();
        compressed_extents(snapshot, self.inode, range)
            .map_err(BlockError::file("find the extents of", &self.path))
    }

    /// Fills `out` with an extent of it, as it is stored.
    pub(super) fn read_stored(
        &self,
        fd: BorrowedFd<'_>,
        extent: &CompressedExtent,
        out: &mut [u8],
    ) -> Result<(), BlockError> {
        let read = sys::encoded_read(fd, extent.shown.start, out)
            .map_err(BlockError::file("read as it is stored", &self.path))?;
        let shown = extent.shown.end - extent.shown.start;
        let expected = EncodedRange {
            // Of the extent more can show than is to be sent.
            len: read.0.len.max(shown),
            unencoded_len: extent.unencoded_len,
            unencoded_offset: extent.offset,
            compression: extent.compression.number(),
        };
        match read == (expected, extent.stored_len) {
            true => Ok(()),
            false => Err(self.snapshots.source.changed()),
        }
    }

    /// Fills `out` with what it has from `offset` on.
    pub(super) fn read(
        &self,
        fd: BorrowedFd<'_>,
        offset: u64,
        out: &mut [u8],
    ) -> Result<(), BlockError> {
        let mut done = 0;
        while done < out.len() {
            match rustix::io::pread(fd, &mut out[done..], offset + done as u64) {
                Ok(0) => {
                    return Err(BlockError::Short {
                        path: escape(&self.path),
                        end: offset + out.len() as u64,
                    });
                }
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(BlockError::file("read", &self.path)(errno)),
            }
        }
        Ok(())
    }
}
