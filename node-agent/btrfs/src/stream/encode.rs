//! Writes streams: well-formed ones from [`Command`]s, and, attribute by attribute, parts of commands and
//! ones that are not well-formed, for tests and fuzzing. What is sent is the business of `blocks`.

use super::{Attribute, Command, Kind, MAGIC, Timestamp, TreePath, Version, checksum};

/// A stream under construction.
pub struct Encoder {
    version: Version,
    bytes: Vec<u8>,
}

impl Encoder {
    /// Begins a stream with its header.
    pub fn new(version: Version) -> Encoder {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(version.number().to_le_bytes());
        Encoder { version, bytes }
    }

    /// Appends a command.
    pub fn command(&mut self, command: &Command<'_>) -> &mut Encoder {
        let payload = payload(command, self.version);
        self.raw(command.kind().number(), &payload)
    }

    /// Appends a command of any number and payload, with a right checksum.
    pub fn raw(&mut self, number: u16, payload: &[u8]) -> &mut Encoder {
        let mut header = [0; super::COMMAND_HEADER];
        // Test streams stay far below 4 GiB.
        header[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        header[4..6].copy_from_slice(&number.to_le_bytes());
        let crc = checksum(header, payload);
        header[6..].copy_from_slice(&crc.to_le_bytes());
        self.bytes.extend(header);
        self.bytes.extend(payload);
        self
    }

    /// The stream so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The stream, ended.
    pub fn end(&mut self) -> Vec<u8> {
        self.raw(Kind::End.number(), &[]);
        self.bytes.clone()
    }
}

/// Attributes one after the other, as a command's payload is made of.
#[derive(Default)]
pub struct Payload(Vec<u8>);

impl Payload {
    /// Appends an attribute with its length, whatever the version.
    pub fn attribute(mut self, attribute: Attribute, value: &[u8]) -> Payload {
        self.0.extend(attribute.number().to_le_bytes());
        // Attributes with a length have at most 16 bits of it.
        self.0.extend((value.len() as u16).to_le_bytes());
        self.0.extend(value);
        self
    }

    /// Appends DATA as `version` writes it.
    pub fn data(mut self, version: Version, value: &[u8]) -> Payload {
        if version == Version::V1 {
            return self.attribute(Attribute::Data, value);
        }
        self.0.extend(Attribute::Data.number().to_le_bytes());
        self.0.extend(value);
        self
    }

    /// The payload's bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn u64(self, attribute: Attribute, value: u64) -> Payload {
        self.attribute(attribute, &value.to_le_bytes())
    }

    fn u32(self, attribute: Attribute, value: u32) -> Payload {
        self.attribute(attribute, &value.to_le_bytes())
    }

    fn path(self, attribute: Attribute, path: TreePath<'_>) -> Payload {
        self.attribute(attribute, path.as_bytes())
    }

    fn time(self, attribute: Attribute, time: Timestamp) -> Payload {
        let mut value = time.seconds.to_le_bytes().to_vec();
        value.extend(time.nanoseconds.to_le_bytes());
        self.attribute(attribute, &value)
    }

    fn special(self, path: TreePath<'_>, ino: u64, mode: u32, rdev: u32) -> Payload {
        self.path(Attribute::Path, path)
            .u64(Attribute::Ino, ino)
            .u64(Attribute::Rdev, rdev.into())
            .u64(Attribute::Mode, mode.into())
    }
}

/// A command's payload, its attributes in the kernel's order.
pub fn payload(command: &Command<'_>, version: Version) -> Vec<u8> {
    use Attribute as A;
    let p = Payload::default();
    let payload = match *command {
        Command::Subvol {
            name,
            uuid,
            ctransid,
        } => p
            .path(A::Path, name)
            .attribute(A::Uuid, uuid.as_bytes())
            .u64(A::Ctransid, ctransid),
        Command::Snapshot {
            name,
            uuid,
            ctransid,
            clone_uuid,
            clone_ctransid,
        } => p
            .path(A::Path, name)
            .attribute(A::Uuid, uuid.as_bytes())
            .u64(A::Ctransid, ctransid)
            .attribute(A::CloneUuid, clone_uuid.as_bytes())
            .u64(A::CloneCtransid, clone_ctransid),
        Command::Mkfile { path, ino } | Command::Mkdir { path, ino } => {
            p.path(A::Path, path).u64(A::Ino, ino)
        }
        Command::Mknod {
            path,
            ino,
            mode,
            rdev,
        }
        | Command::Mkfifo {
            path,
            ino,
            mode,
            rdev,
        }
        | Command::Mksock {
            path,
            ino,
            mode,
            rdev,
        } => p.special(path, ino, mode, rdev),
        Command::Symlink { path, ino, target } => p
            .path(A::Path, path)
            .u64(A::Ino, ino)
            .attribute(A::PathLink, target),
        Command::Rename { path, to } => p.path(A::Path, path).path(A::PathTo, to),
        Command::Link { path, existing } => p.path(A::Path, path).path(A::PathLink, existing),
        Command::Unlink { path } | Command::Rmdir { path } => p.path(A::Path, path),
        Command::SetXattr { path, name, value } => p
            .path(A::Path, path)
            .attribute(A::XattrName, name)
            .attribute(A::XattrData, value),
        Command::RemoveXattr { path, name } => p.path(A::Path, path).attribute(A::XattrName, name),
        Command::Write { path, offset, data } => p
            .path(A::Path, path)
            .u64(A::FileOffset, offset)
            .data(version, data),
        Command::Clone {
            path,
            offset,
            length,
            source,
            source_ctransid,
            source_path,
            source_offset,
        } => p
            .u64(A::FileOffset, offset)
            .u64(A::CloneLen, length)
            .path(A::Path, path)
            .attribute(A::CloneUuid, source.as_bytes())
            .u64(A::CloneCtransid, source_ctransid)
            .path(A::ClonePath, source_path)
            .u64(A::CloneOffset, source_offset),
        Command::Truncate { path, size } => p.path(A::Path, path).u64(A::Size, size),
        Command::Chmod { path, mode } => p.path(A::Path, path).u64(A::Mode, mode.into()),
        Command::Chown { path, uid, gid } => p
            .path(A::Path, path)
            .u64(A::Uid, uid.into())
            .u64(A::Gid, gid.into()),
        Command::Utimes {
            path,
            atime,
            mtime,
            ctime,
            otime,
        } => {
            let p = p
                .path(A::Path, path)
                .time(A::Atime, atime)
                .time(A::Mtime, mtime)
                .time(A::Ctime, ctime);
            match otime {
                Some(otime) => p.time(A::Otime, otime),
                None => p,
            }
        }
        Command::UpdateExtent {
            path,
            offset,
            length,
        } => p
            .path(A::Path, path)
            .u64(A::FileOffset, offset)
            .u64(A::Size, length),
        Command::Fallocate {
            path,
            mode,
            offset,
            length,
        } => p
            .path(A::Path, path)
            .u32(A::FallocateMode, mode)
            .u64(A::FileOffset, offset)
            .u64(A::Size, length),
        Command::Fileattr { path, flags } => p.path(A::Path, path).u64(A::Fileattr, flags),
        Command::EncodedWrite {
            path,
            offset,
            encoded,
        } => p
            .path(A::Path, path)
            .u64(A::FileOffset, offset)
            .u64(A::UnencodedFileLen, encoded.file_len)
            .u64(A::UnencodedLen, encoded.unencoded_len)
            .u64(A::UnencodedOffset, encoded.unencoded_offset)
            .u32(A::Compression, encoded.compression.number())
            .data(version, encoded.data),
        Command::End => p,
    };
    payload.into_bytes()
}
