//! Every command that takes a path, and the ways to put something else into its payload.

use icbd_btrfs::stream::encode::payload;
use icbd_btrfs::stream::{
    Attribute, Command, Compression, Encoded, Kind, Timestamp, TreePath, Version,
};

use super::target::SELF;

pub const EPOCH: Timestamp = Timestamp {
    seconds: 0,
    nanoseconds: 0,
};

pub fn path(bytes: &[u8]) -> TreePath<'_> {
    TreePath::new(bytes).unwrap()
}

/// Whether a stream of this version can say the command.
pub fn is_known(command: &Command<'_>, version: Version) -> bool {
    Kind::from_number(command.kind().number(), version).is_some()
}

/// Every command once, without harm.
pub fn commands(version: Version) -> impl Iterator<Item = Command<'static>> {
    let mut seen = Vec::new();
    attackable()
        .into_iter()
        .map(|(command, ..)| command)
        .filter(move |command| {
            let new = !seen.contains(&command.kind());
            seen.push(command.kind());
            new && is_known(command, version)
        })
}

/// Every command that takes a path, with the attribute under attack and the decent value of it: in
/// `dir`, something of the kind that the command wants.
pub fn attackable() -> Vec<(Command<'static>, Attribute, &'static str)> {
    let new = path(b"dir/new");
    let file = path(b"dir/file");
    let marked = path(b"dir/marked");
    let zlib: &[u8] = &[120, 156, 75, 4, 0, 0, 98, 0, 98]; // "a"
    let encoded = Encoded {
        compression: Compression::Zlib,
        data: zlib,
        unencoded_len: 1,
        unencoded_offset: 0,
        file_len: 1,
    };
    let clone = |to: &'static [u8], from: &'static [u8]| Command::Clone {
        path: path(to),
        offset: 4096,
        length: 4096,
        source: SELF,
        source_ctransid: 9,
        source_path: path(from),
        source_offset: 0,
    };
    let first = [
        Command::Mkfile { path: new, ino: 0 },
        Command::Mkdir { path: new, ino: 0 },
        Command::Mknod {
            path: new,
            ino: 0,
            mode: 0o020_644,
            rdev: 0x103,
        },
        Command::Mkfifo {
            path: new,
            ino: 0,
            mode: 0o010_644,
            rdev: 0,
        },
        Command::Mksock {
            path: new,
            ino: 0,
            mode: 0o140_644,
            rdev: 0,
        },
        Command::Symlink {
            path: new,
            ino: 0,
            target: b"/etc/passwd",
        },
        Command::Rename {
            path: file,
            to: path(b"renamed"),
        },
        Command::Link {
            path: new,
            existing: path(b"file"),
        },
        Command::Unlink { path: file },
        Command::Rmdir {
            path: path(b"dir/empty"),
        },
        Command::SetXattr {
            path: file,
            name: b"user.x",
            value: b"x",
        },
        Command::RemoveXattr {
            path: marked,
            name: b"user.mark",
        },
        Command::Write {
            path: file,
            offset: 2,
            data: b"harm",
        },
        clone(b"dir/file", b"file"),
        Command::Truncate {
            path: file,
            size: 3,
        },
        Command::Chmod {
            path: file,
            mode: 0o6777,
        },
        Command::Chown {
            path: file,
            uid: 1,
            gid: 1,
        },
        Command::Utimes {
            path: file,
            atime: EPOCH,
            mtime: EPOCH,
            ctime: EPOCH,
            otime: None,
        },
        Command::Fallocate {
            path: file,
            mode: 3,
            offset: 0,
            length: 4096,
        },
        Command::Fileattr {
            path: file,
            flags: 0,
        },
        Command::EncodedWrite {
            path: file,
            offset: 0,
            encoded,
        },
        Command::UpdateExtent {
            path: file,
            offset: 0,
            length: 16_384,
        },
    ];
    let mut all: Vec<_> = first
        .into_iter()
        .map(|command| {
            let name = command.path().unwrap();
            (
                command,
                Attribute::Path,
                std::str::from_utf8(name.as_bytes()).unwrap(),
            )
        })
        .collect();
    all.extend([
        (
            Command::Rename {
                path: path(b"file"),
                to: new,
            },
            Attribute::PathTo,
            "dir/new",
        ),
        (
            Command::Link {
                path: path(b"new"),
                existing: file,
            },
            Attribute::PathLink,
            "dir/file",
        ),
        (
            clone(b"file", b"dir/file"),
            Attribute::ClonePath,
            "dir/file",
        ),
    ]);
    all
}

/// Whether the command goes for what is in a file.
pub fn is_about_data(kind: Kind, attribute: Attribute) -> bool {
    attribute == Attribute::ClonePath
        || matches!(
            kind,
            Kind::Write
                | Kind::EncodedWrite
                | Kind::Truncate
                | Kind::Fallocate
                | Kind::Clone
                | Kind::UpdateExtent
        )
}

/// A payload as its attributes' numbers and values.
pub fn taken_apart(command: &Command<'_>, version: Version) -> Vec<(u16, Vec<u8>)> {
    let bytes = payload(command, version);
    let (mut rest, mut attributes) = (&bytes[..], Vec::new());
    while let Some((number, after)) = rest.split_first_chunk() {
        let number = u16::from_le_bytes(*number);
        let (value, after) = match has_length(number, version) {
            true => {
                let (length, after) = after.split_first_chunk().unwrap();
                after.split_at(u16::from_le_bytes(*length).into())
            }
            false => (after, &[][..]),
        };
        attributes.push((number, value.to_vec()));
        rest = after;
    }
    attributes
}

/// The payload of these attributes.
pub fn put_together(attributes: &[(u16, Vec<u8>)], version: Version) -> Vec<u8> {
    attributes
        .iter()
        .flat_map(|(number, value)| attribute(*number, value.len(), value, version))
        .collect()
}

/// One attribute, which may lie about its length if it tells one.
pub fn attribute(number: u16, length: usize, value: &[u8], version: Version) -> Vec<u8> {
    let mut bytes = number.to_le_bytes().to_vec();
    if has_length(number, version) {
        bytes.extend((length as u16).to_le_bytes());
    }
    bytes.extend(value);
    bytes
}

/// DATA is the rest of the payload, from version 2 on.
pub fn has_length(number: u16, version: Version) -> bool {
    number != Attribute::Data.number() || version == Version::V1
}

/// The command's payload with another value in one attribute.
pub fn with(command: &Command<'_>, version: Version, which: Attribute, value: &[u8]) -> Vec<u8> {
    let mut attributes = taken_apart(command, version);
    let found = attributes
        .iter_mut()
        .find(|(number, _)| *number == which.number())
        .unwrap();
    found.1 = value.to_vec();
    put_together(&attributes, version)
}
