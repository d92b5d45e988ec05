//! A pool to attack: what must not change stands around the place that streams are received in, and
//! every command that takes a path is at hand to try it with.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(unreachable_pub, clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use icbd_btrfs::receive::{Base, ReceiveError, Receiver};
use icbd_btrfs::stream::encode::{Encoder, payload};
use icbd_btrfs::stream::{
    Attribute, Command, Compression, Encoded, Kind, Timestamp, TreePath, Version,
};
use icbd_btrfs::{Digest, Subvolume, digest};
use uuid::Uuid;

use crate::receive_pair::{PARTIAL, identity, names};
use crate::support::Pool;

pub const SELF: Uuid = Uuid::from_bytes([7; 16]);
pub const EPOCH: Timestamp = Timestamp {
    seconds: 0,
    nanoseconds: 0,
};

/// A pool with what must stay as it is: `outside`, which every attack tries to reach, and the
/// snapshot `base`.
pub struct Target {
    pub pool: Pool,
    pub outside: Subvolume,
    pub base: Subvolume,
    before: (Vec<String>, Digest, Digest),
}

impl Target {
    pub fn new() -> Target {
        let pool = Pool::new();
        let outside = icbd_btrfs::create(pool.dir(), "outside").unwrap();
        let at = |name: &str| pool.path().join("outside").join(name);
        fs::write(at("file"), "a canary").unwrap();
        fs::write(at("other"), "another").unwrap();
        fs::create_dir(at("empty")).unwrap();
        symlink("file", at("link")).unwrap();
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o640)).unwrap();
        rustix::fs::setxattr(
            at("file"),
            "user.mark",
            b"1",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        symlink(at("file"), at("absolute")).unwrap();
        let base = icbd_btrfs::snapshot(&outside, pool.dir(), "base", icbd_btrfs::Access::ReadOnly)
            .unwrap();
        let before = (
            names(&pool),
            digest(&outside).unwrap(),
            digest(&base).unwrap(),
        );
        Target {
            pool,
            outside,
            base,
            before,
        }
    }

    /// What becomes of a stream. Whatever it is, everything else is as before.
    pub fn receive(&self, stream: &[u8]) -> Result<(), ReceiveError> {
        let bases = [Base {
            identity: identity(&self.base),
            subvolume: &self.base,
        }];
        let dir = self.pool.dir();
        let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases);
        let outcome = receiver
            .run(stream, |_| ControlFlow::Continue(()))
            .map(drop);
        let after = (
            names(&self.pool),
            digest(&self.outside).unwrap(),
            digest(&self.base).unwrap(),
        );
        assert_eq!(after, self.before, "something outside changed");
        outcome
    }

    /// A stream that makes a tree to work in, on which `attack` follows.
    pub fn stream(&self, attack: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut encoder = Encoder::new(Version::V2);
        encoder.command(&Command::Subvol {
            name: path(b"1"),
            uuid: SELF,
            ctransid: 9,
        });
        for name in ["dir", "dir/empty", "empty"] {
            encoder.command(&Command::Mkdir {
                path: path(name.as_bytes()),
                ino: 0,
            });
        }
        for name in ["file", "dir/file", "dir/marked"] {
            let path = path(name.as_bytes());
            encoder.command(&Command::Mkfile { path, ino: 0 });
            encoder.command(&Command::Write {
                path,
                offset: 0,
                data: &[b'x'; 8192],
            });
            encoder.command(&Command::SetXattr {
                path,
                name: b"user.mark",
                value: b"1",
            });
        }
        let outside = self.pool.path().join("outside");
        for (name, target) in [
            ("out", outside.to_str().unwrap()),
            ("up", "../outside"),
            ("in", "dir"),
            ("self", "."),
            ("to file", outside.join("file").to_str().unwrap()),
            ("up to file", "../outside/file"),
            ("in to file", "file"),
            ("to nothing", outside.join("new").to_str().unwrap()),
            ("loop", "loop"),
        ] {
            let (path, target) = (path(name.as_bytes()), target.as_bytes());
            encoder.command(&Command::Symlink {
                path,
                ino: 0,
                target,
            });
        }
        encoder.command(&Command::Mkfifo {
            path: path(b"fifo"),
            ino: 0,
            mode: 0o010_644,
            rdev: 0,
        });
        encoder.command(&Command::Mksock {
            path: path(b"sock"),
            ino: 0,
            mode: 0o140_644,
            rdev: 0,
        });
        // The null device, and the kernel's first loop device.
        for (name, mode, rdev) in [("null", 0o020_644, 0x103), ("loop0", 0o060_644, 0x700)] {
            let path = path(name.as_bytes());
            encoder.command(&Command::Mknod {
                path,
                ino: 0,
                mode,
                rdev,
            });
        }
        attack(&mut encoder);
        encoder.end()
    }
}

pub fn path(bytes: &[u8]) -> TreePath<'_> {
    TreePath::new(bytes).unwrap()
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

/// Appends a command with one path attribute replaced by any bytes.
pub fn with_path(
    encoder: &mut Encoder,
    command: &Command<'_>,
    attribute: Attribute,
    decent: &str,
    hostile: &[u8],
) {
    let attributed = |value: &[u8]| {
        let length = (value.len() as u16).to_le_bytes();
        [&attribute.number().to_le_bytes()[..], &length, value].concat()
    };
    let bytes = payload(command, Version::V2);
    let decent = attributed(decent.as_bytes());
    let at = bytes
        .windows(decent.len())
        .position(|window| window == decent)
        .unwrap();
    let bytes = [
        &bytes[..at],
        &attributed(hostile),
        &bytes[at + decent.len()..],
    ]
    .concat();
    encoder.raw(command.kind().number(), &bytes);
}

/// Whether the command goes for what is in a file.
pub fn is_about_data(kind: Kind, attribute: Attribute) -> bool {
    attribute == Attribute::ClonePath
        || matches!(
            kind,
            Kind::Write | Kind::EncodedWrite | Kind::Truncate | Kind::Fallocate | Kind::Clone
        )
}
