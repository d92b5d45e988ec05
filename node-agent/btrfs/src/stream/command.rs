//! The commands of a stream, typed. How each is made from its attributes is in `parse.rs`, and
//! applying them is [`crate::receive`]'s.

use uuid::Uuid;

use super::{Kind, TreePath};

/// A point in time as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Less than 1,000,000,000, forward from `seconds`.
    pub nanoseconds: u32,
}

/// How an extent is compressed (`BTRFS_ENCODED_IO_COMPRESSION_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Their names say it.
pub enum Compression {
    Zlib,
    Zstd,
    /// In sectors of so many bytes, each compressed alone.
    Lzo {
        sector: u32,
    },
}

impl Compression {
    /// Its number on the wire, and in the kernel's encoded reads and writes.
    pub(crate) fn number(self) -> u32 {
        match self {
            Compression::Zlib => 1,
            Compression::Zstd => 2,
            Compression::Lzo { sector } => 3 + (sector / 4096).trailing_zeros(),
        }
    }
}

/// A compressed extent, and the part of it that shows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded<'a> {
    /// How `data` is compressed.
    pub compression: Compression,
    /// At most 128 KiB; may be padded beyond the compressed data's own end.
    pub data: &'a [u8],
    /// Bytes of the extent before compression, at most 128 KiB.
    pub unencoded_len: u64,
    /// Where in the extent the part begins that shows in the file.
    pub unencoded_offset: u64,
    /// Bytes of that part, which lies within the extent.
    pub file_len: u64,
}

/// One command. Offsets and lengths are bytes, and lie within what a file can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // Fields are named as the wire's attributes, which the kernel documents.
pub enum Command<'a> {
    /// Begins a full stream. `uuid` and `ctransid` identify the content.
    Subvol {
        name: TreePath<'a>,
        uuid: Uuid,
        ctransid: u64,
    },
    /// Begins an increment to the parent that `clone_uuid` identifies.
    Snapshot {
        name: TreePath<'a>,
        uuid: Uuid,
        ctransid: u64,
        clone_uuid: Uuid,
        clone_ctransid: u64,
    },
    Mkfile {
        path: TreePath<'a>,
        ino: u64,
    },
    Mkdir {
        path: TreePath<'a>,
        ino: u64,
    },
    /// A character or block device; `mode` carries the type, `rdev` the kernel's 32-bit encoding.
    Mknod {
        path: TreePath<'a>,
        ino: u64,
        mode: u32,
        rdev: u32,
    },
    Mkfifo {
        path: TreePath<'a>,
        ino: u64,
        mode: u32,
        rdev: u32,
    },
    Mksock {
        path: TreePath<'a>,
        ino: u64,
        mode: u32,
        rdev: u32,
    },
    /// `target` is any string without NUL.
    Symlink {
        path: TreePath<'a>,
        ino: u64,
        target: &'a [u8],
    },
    Rename {
        path: TreePath<'a>,
        to: TreePath<'a>,
    },
    /// `path` becomes another name of `existing`.
    Link {
        path: TreePath<'a>,
        existing: TreePath<'a>,
    },
    Unlink {
        path: TreePath<'a>,
    },
    Rmdir {
        path: TreePath<'a>,
    },
    SetXattr {
        path: TreePath<'a>,
        name: &'a [u8],
        value: &'a [u8],
    },
    RemoveXattr {
        path: TreePath<'a>,
        name: &'a [u8],
    },
    Write {
        path: TreePath<'a>,
        offset: u64,
        data: &'a [u8],
    },
    /// `path` shares `length` bytes of `source_path` in the snapshot that `source` identifies.
    Clone {
        path: TreePath<'a>,
        offset: u64,
        length: u64,
        source: Uuid,
        source_ctransid: u64,
        source_path: TreePath<'a>,
        source_offset: u64,
    },
    Truncate {
        path: TreePath<'a>,
        size: u64,
    },
    /// `mode` is the permission bits, with or without the type.
    Chmod {
        path: TreePath<'a>,
        mode: u32,
    },
    Chown {
        path: TreePath<'a>,
        uid: u32,
        gid: u32,
    },
    Utimes {
        path: TreePath<'a>,
        atime: Timestamp,
        mtime: Timestamp,
        ctime: Timestamp,
        otime: Option<Timestamp>,
    },
    /// Stands for data in streams that were asked for without any.
    UpdateExtent {
        path: TreePath<'a>,
        offset: u64,
        length: u64,
    },
    /// `mode` as fallocate(2) takes it.
    Fallocate {
        path: TreePath<'a>,
        mode: u32,
        offset: u64,
        length: u64,
    },
    /// `flags` as the inode item keeps them (`BTRFS_INODE_*`).
    Fileattr {
        path: TreePath<'a>,
        flags: u64,
    },
    EncodedWrite {
        path: TreePath<'a>,
        offset: u64,
        encoded: Encoded<'a>,
    },
    /// The stream is complete.
    End,
}

impl<'a> Command<'a> {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Command::Subvol { .. } => Kind::Subvol,
            Command::Snapshot { .. } => Kind::Snapshot,
            Command::Mkfile { .. } => Kind::Mkfile,
            Command::Mkdir { .. } => Kind::Mkdir,
            Command::Mknod { .. } => Kind::Mknod,
            Command::Mkfifo { .. } => Kind::Mkfifo,
            Command::Mksock { .. } => Kind::Mksock,
            Command::Symlink { .. } => Kind::Symlink,
            Command::Rename { .. } => Kind::Rename,
            Command::Link { .. } => Kind::Link,
            Command::Unlink { .. } => Kind::Unlink,
            Command::Rmdir { .. } => Kind::Rmdir,
            Command::SetXattr { .. } => Kind::SetXattr,
            Command::RemoveXattr { .. } => Kind::RemoveXattr,
            Command::Write { .. } => Kind::Write,
            Command::Clone { .. } => Kind::Clone,
            Command::Truncate { .. } => Kind::Truncate,
            Command::Chmod { .. } => Kind::Chmod,
            Command::Chown { .. } => Kind::Chown,
            Command::Utimes { .. } => Kind::Utimes,
            Command::UpdateExtent { .. } => Kind::UpdateExtent,
            Command::Fallocate { .. } => Kind::Fallocate,
            Command::Fileattr { .. } => Kind::Fileattr,
            Command::EncodedWrite { .. } => Kind::EncodedWrite,
            Command::End => Kind::End,
        }
    }

    /// The path it is about; none for what is about the whole subvolume.
    pub fn path(&self) -> Option<TreePath<'a>> {
        match *self {
            Command::Subvol { .. } | Command::Snapshot { .. } | Command::End => None,
            Command::Mkfile { path, .. }
            | Command::Mkdir { path, .. }
            | Command::Mknod { path, .. }
            | Command::Mkfifo { path, .. }
            | Command::Mksock { path, .. }
            | Command::Symlink { path, .. }
            | Command::Rename { path, .. }
            | Command::Link { path, .. }
            | Command::Unlink { path }
            | Command::Rmdir { path }
            | Command::SetXattr { path, .. }
            | Command::RemoveXattr { path, .. }
            | Command::Write { path, .. }
            | Command::Clone { path, .. }
            | Command::Truncate { path, .. }
            | Command::Chmod { path, .. }
            | Command::Chown { path, .. }
            | Command::Utimes { path, .. }
            | Command::UpdateExtent { path, .. }
            | Command::Fallocate { path, .. }
            | Command::Fileattr { path, .. }
            | Command::EncodedWrite { path, .. } => Some(path),
        }
    }
}
