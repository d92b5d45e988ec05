//! A digest of all that a subvolume holds and that replication must keep: two trees have the same one exactly if
//! they are equal, on whatever host, kernel or file system layout.
//!
//! It is BLAKE3 over the bytes `icbd tree digest 1\n` and then one record for the root directory and
//! for everything in it: each directory's record, then its entries' in the order of their names'
//! bytes, then `E`. Integers are little-endian; *bytes* are their length (u64) and they themselves.
//!
//! | part | what |
//! |---|---|
//! | kind | one byte: `D` directory, `F` regular file, `L` symlink, `B` block device, `C` character device, `P` fifo, `S` socket, `H` another name of a file that came before |
//! | name | bytes; empty for the root |
//! | `H` only, and nothing after it | u64: which of the files with several names, counted from 0 by their first name in this order |
//! | mode | u16, permission bits, setuid, setgid and sticky |
//! | owner | u32 uid, u32 gid |
//! | mtime | i64 seconds, u32 nanoseconds |
//! | xattrs | u64 their number; then name and value, both bytes, in the order of the names' bytes |
//! | `F` | u64 size; for each block of 1 MiB that is not all zeros, in order: u64 its index, and the BLAKE3 of its bytes (up to the end of file in the last); then u64 2^64-1 |
//! | `L` | target, bytes |
//! | `B`, `C` | u32 major, u32 minor |
//!
//! A hole is thus equal to zeros and costs nothing. Not in it: atime, ctime, creation time, inode
//! numbers, how data lies on disk, flags (NOCOW, compression), and nested subvolumes with the empty
//! directories that stand for them in snapshots; send carries none of these.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Statx};
use rustix::io::Errno;

use crate::error::Error;
use crate::subvolume::Subvolume;
use crate::walk::{Entry, Failure, READ, Visit, walk};

const FORMAT: &[u8] = b"icbd tree digest 1\n";
const BLOCK: usize = 1 << 20;
/// The kernel's limits for the names of a file's xattrs together, and for one value
/// (`include/uapi/linux/limits.h`).
const XATTRS_MAX: usize = 64 << 10;

/// The digest of a tree; displayed as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

/// Reads the whole tree and digests it. Of a writable subvolume that changes meanwhile the digest
/// means nothing. Takes memory for the names of the directories on the way down to one file, and for
/// the files whose further names are still to come.
///
/// # Errors
/// A part of the tree cannot be read (EIO: its checksum does not match), with its path.
pub fn digest(subvolume: &Subvolume) -> Result<Digest, Error> {
    let mut tree = TreeHasher::new();
    walk(subvolume, |visit| tree.add(visit))?;
    Ok(Digest(*tree.hasher.finalize().as_bytes()))
}

struct TreeHasher {
    hasher: blake3::Hasher,
    block: Vec<u8>,
    xattr_names: Vec<u8>,
    xattr_value: Vec<u8>,
}

impl TreeHasher {
    fn new() -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(FORMAT);
        Self {
            hasher,
            block: vec![0; BLOCK],
            xattr_names: vec![0; XATTRS_MAX],
            xattr_value: vec![0; XATTRS_MAX],
        }
    }

    fn add(&mut self, visit: Visit<'_>) -> Result<(), Failure> {
        match visit {
            Visit::Entry(entry) => self.entry(&entry),
            Visit::Leave => {
                self.hasher.update(b"E");
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: &Entry<'_>) -> Result<(), Failure> {
        if let Some(number) = entry.link_of {
            self.hasher.update(b"H");
            self.bytes(entry.name);
            self.hasher.update(&number.to_le_bytes());
            return Ok(());
        }
        let kind = match entry.kind {
            FileType::Directory => b"D",
            FileType::RegularFile => b"F",
            FileType::Symlink => b"L",
            FileType::BlockDevice => b"B",
            FileType::CharacterDevice => b"C",
            FileType::Fifo => b"P",
            FileType::Socket => b"S",
            FileType::Unknown => {
                return Err(Failure {
                    doing: "tell the type of",
                    errno: Errno::INVAL,
                });
            }
        };
        self.hasher.update(kind);
        self.bytes(entry.name);
        self.attributes(entry.stat);
        match entry.kind {
            FileType::Directory => self.xattrs(entry.dir),
            FileType::RegularFile => {
                let file = rustix::fs::openat(entry.dir, entry.name, READ, Mode::empty())
                    .map_err(Failure::of("open"))?;
                self.xattrs(file.as_fd())?;
                self.data(&file, entry.stat.stx_size)
            }
            _ => {
                self.xattrs_by_name(entry)?;
                self.special(entry)
            }
        }
    }

    fn attributes(&mut self, stat: &Statx) {
        self.hasher
            .update(&(stat.stx_mode & 0o7777).to_le_bytes())
            .update(&stat.stx_uid.to_le_bytes())
            .update(&stat.stx_gid.to_le_bytes())
            .update(&stat.stx_mtime.tv_sec.to_le_bytes())
            .update(&stat.stx_mtime.tv_nsec.to_le_bytes());
    }

    /// What a file is besides its attributes, if it is neither regular nor a directory.
    fn special(&mut self, entry: &Entry<'_>) -> Result<(), Failure> {
        match entry.kind {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(entry.dir, entry.name, Vec::new())
                    .map_err(Failure::of("read the target of"))?;
                self.bytes(target.to_bytes());
            }
            FileType::BlockDevice | FileType::CharacterDevice => {
                self.hasher
                    .update(&entry.stat.stx_rdev_major.to_le_bytes())
                    .update(&entry.stat.stx_rdev_minor.to_le_bytes());
            }
            _ => {}
        }
        Ok(())
    }

    /// A symlink, fifo or device must not be opened for reading, and a descriptor that is not open
    /// for reading takes no xattr calls; its name in /proc does.
    fn xattrs_by_name(&mut self, entry: &Entry<'_>) -> Result<(), Failure> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(entry.dir, entry.name, flags, Mode::empty())
            .map_err(Failure::of("open"))?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let length = rustix::fs::listxattr(path.as_str(), self.xattr_names.as_mut_slice())
            .map_err(Failure::of("list the xattrs of"))?;
        self.each_xattr(length, |name, value| {
            rustix::fs::getxattr(path.as_str(), name, value)
        })
    }

    fn xattrs(&mut self, file: BorrowedFd<'_>) -> Result<(), Failure> {
        let length = rustix::fs::flistxattr(file, self.xattr_names.as_mut_slice())
            .map_err(Failure::of("list the xattrs of"))?;
        self.each_xattr(length, |name, value| {
            rustix::fs::fgetxattr(file, name, value)
        })
    }

    /// Adds the xattrs whose names, each ended by a NUL, are the first `length` bytes of the buffer.
    fn each_xattr(
        &mut self,
        length: usize,
        get: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Failure> {
        let list = std::mem::take(&mut self.xattr_names);
        let mut names: Vec<&[u8]> = list[..length]
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .collect();
        names.sort_unstable();
        self.hasher.update(&(names.len() as u64).to_le_bytes());
        for name in names {
            let length =
                get(name, &mut self.xattr_value).map_err(Failure::of("read an xattr of"))?;
            self.bytes(name);
            self.hasher
                .update(&(length as u64).to_le_bytes())
                .update(&self.xattr_value[..length]);
        }
        self.xattr_names = list;
        Ok(())
    }

    fn data(&mut self, file: &OwnedFd, size: u64) -> Result<(), Failure> {
        self.hasher.update(&size.to_le_bytes());
        let mut offset = 0;
        while let Some(data) = next_data(file, offset, size)? {
            offset = data.start - data.start % BLOCK as u64;
            while offset < data.end {
                self.block(file, offset, size)?;
                offset += BLOCK as u64;
            }
        }
        self.hasher.update(&u64::MAX.to_le_bytes());
        Ok(())
    }

    /// Adds the block at `offset`, if it is not all zeros.
    fn block(&mut self, file: &OwnedFd, offset: u64, size: u64) -> Result<(), Failure> {
        let length = (size - offset).min(BLOCK as u64) as usize;
        let block = &mut self.block[..length];
        let mut filled = 0;
        while filled < length {
            match rustix::io::pread(file, &mut block[filled..], offset + filled as u64) {
                // Only in a writable tree: it was cut meanwhile.
                Ok(0) => {
                    return Err(Failure {
                        doing: "read all of",
                        errno: Errno::STALE,
                    });
                }
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(Failure {
                        doing: "read",
                        errno,
                    });
                }
            }
        }
        if !all_zeros(block) {
            let index = offset / BLOCK as u64;
            self.hasher
                .update(&index.to_le_bytes())
                .update(blake3::hash(block).as_bytes());
        }
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.hasher
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    }
}

/// The next range at or after `offset` that is not a hole. What fits one block is not worth the
/// calls.
fn next_data(
    file: &OwnedFd,
    offset: u64,
    size: u64,
) -> Result<Option<std::ops::Range<u64>>, Failure> {
    if offset >= size {
        return Ok(None);
    }
    if size <= BLOCK as u64 {
        return Ok(Some(0..size));
    }
    let failed = || Failure::of("look for holes in");
    let start = match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(failed()(errno)),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(failed())?;
    Ok(Some(start..end.min(size)))
}

/// Eight kilobytes at a time, so that the compiler can take whole vectors and a block of data is
/// told from zeros at its beginning.
fn all_zeros(block: &[u8]) -> bool {
    block
        .chunks(8 << 10)
        .all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

#[cfg(test)]
mod tests {
    use super::all_zeros;

    #[test]
    fn one_byte_anywhere_makes_a_block_not_all_zeros() {
        let mut block = vec![0; (16 << 10) + 5];
        assert!(all_zeros(&block) && all_zeros(&[]));
        for at in [0, 1, 8191, 8192, block.len() - 1] {
            block[at] = 1;
            assert!(!all_zeros(&block), "at {at}");
            block[at] = 0;
        }
    }
}
