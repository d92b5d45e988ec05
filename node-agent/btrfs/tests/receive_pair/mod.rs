//! Two file systems, and snapshots that go from one to the other and must arrive as they were.
// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub)]
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use icbd_btrfs::receive::{Base, ReceiveError, Receiver};
use icbd_btrfs::stream::MAX_BLOCK;
use icbd_btrfs::{
    Access, Block, BlockBuffer, BlockError, Encoding, Identity, SendRequest, Subvolume, delete,
    digest, snapshot,
};
use uuid::Uuid;

use crate::support::Pool;

pub const PARTIAL: &str = ".partial-test";

pub const MIB: usize = 1 << 20;

/// A source with a writable subvolume `live`, and a replica.
pub struct Pair {
    pub source: Pool,
    pub replica: Pool,
}

impl Pair {
    pub fn new() -> Pair {
        let pair = Pair {
            source: Pool::new(),
            replica: Pool::new(),
        };
        icbd_btrfs::create(pair.source.dir(), "live").unwrap();
        pair
    }

    /// Where to make changes.
    pub fn live(&self) -> PathBuf {
        self.source.path().join("live")
    }

    /// Takes the snapshot `name` of live.
    pub fn take(&self, name: &str) -> Subvolume {
        let live = Subvolume::open(self.source.dir(), "live").unwrap();
        snapshot(&live, self.source.dir(), name, Access::ReadOnly).unwrap()
    }

    /// Sends `name`, on `parent` if one is given, and receives it; what arrives must be equal.
    pub fn replicate(&self, name: &str, parent: Option<&str>) -> Subvolume {
        replicate(&self.source, &self.replica, name, parent)
    }

    /// Takes, replicates and compares a snapshot.
    pub fn take_and_replicate(&self, name: &str, parent: Option<&str>) -> Subvolume {
        self.take(name);
        self.replicate(name, parent)
    }
}

/// Sends `name` from one file system to another, on `parent` if one is given, and compares.
pub fn replicate(from: &Pool, to: &Pool, name: &str, parent: Option<&str>) -> Subvolume {
    replicate_by(Mode::Whole, (from, name), parent, (to, name))
}

/// How a snapshot travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The kernel's stream, as it is.
    Whole,
    /// The kernel's stream, in blocks.
    Stream,
    Extents,
    /// As these, with compressed extents as they are stored.
    StoredStream,
    StoredExtents,
}

/// Sends `name` in a mode, receives it as `to_name`, and compares.
pub fn replicate_by(
    mode: Mode,
    (from, name): (&Pool, &str),
    parent: Option<&str>,
    (to, to_name): (&Pool, &str),
) -> Subvolume {
    let source = Subvolume::open(from.dir(), name).unwrap();
    let parent = parent.map(|parent| Subvolume::open(from.dir(), parent).unwrap());
    let request = SendRequest {
        source: &source,
        parent: parent.as_ref(),
        clone_sources: &[],
    };
    let watch = |_| ControlFlow::Continue(());
    let received = match mode {
        Mode::Whole => receive(to, to_name, request.start().unwrap()),
        Mode::Stream => receive_blocks(to, to_name, request.blocks(watch).unwrap()),
        Mode::Extents => receive_blocks(to, to_name, request.extents(watch).unwrap()),
        Mode::StoredStream => {
            let blocks = request.blocks_as(Encoding::AsStored, watch).unwrap();
            receive_blocks_as(Encoding::AsStored, to, to_name, blocks)
        }
        Mode::StoredExtents => {
            let blocks = request.extents_as(Encoding::AsStored, watch).unwrap();
            receive_blocks_as(Encoding::AsStored, to, to_name, blocks)
        }
    };
    assert_equal(&source, &received.unwrap());
    Subvolume::open(to.dir(), to_name).unwrap()
}

/// Receives blocks as `name`; every read-only snapshot there may serve as base.
pub fn receive_blocks(
    pool: &Pool,
    name: &str,
    blocks: impl Iterator<Item = Result<Block, BlockError>>,
) -> Result<Subvolume, ReceiveError> {
    receive_blocks_as(Encoding::Plain, pool, name, blocks)
}

/// The same, with compressed extents as `encoding` says.
pub fn receive_blocks_as(
    encoding: Encoding,
    pool: &Pool,
    name: &str,
    blocks: impl Iterator<Item = Result<Block, BlockError>>,
) -> Result<Subvolume, ReceiveError> {
    with_bases(pool, |receiver| {
        let receiver = receiver.with_encoding(encoding);
        let mut arriving = receiver.begin();
        let mut bytes = BlockBuffer::default();
        for block in blocks {
            let block = block.unwrap();
            let length = block.len();
            block.fill(&mut bytes).unwrap();
            assert!(bytes.len() == length && length <= MAX_BLOCK);
            arriving.block(&bytes, |_| ControlFlow::Continue(()))?;
        }
        arriving.end()?.finish(name.as_bytes())
    })
}

/// Receives a stream as `name`; every read-only snapshot there may serve as base.
pub fn receive(pool: &Pool, name: &str, stream: impl Read) -> Result<Subvolume, ReceiveError> {
    with_bases(pool, |receiver| {
        receiver
            .run(stream, |_| ControlFlow::Continue(()))?
            .finish(name.as_bytes())
    })
}

fn with_bases<T>(pool: &Pool, receive: impl FnOnce(&Receiver<'_>) -> T) -> T {
    let bases = snapshots(pool);
    let bases: Vec<Base<'_>> = bases
        .iter()
        .map(|sub| Base {
            identity: identity(sub),
            subvolume: sub,
        })
        .collect();
    let dir = pool.dir();
    receive(&Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases))
}

/// The read-only snapshots in a pool.
pub fn snapshots(pool: &Pool) -> Vec<Subvolume> {
    names(pool)
        .iter()
        .filter_map(|name| Subvolume::open(pool.dir(), name).ok())
        .filter(|subvolume| subvolume.info().unwrap().read_only)
        .collect()
}

/// What is in a pool, sorted.
pub fn names(pool: &Pool) -> Vec<String> {
    let entries = std::fs::read_dir(pool.path()).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn identity(subvolume: &Subvolume) -> Uuid {
    // Of a snapshot that is not clean nothing may be known but its uuid.
    Identity::of(&subvolume.info().unwrap()).clean().unwrap()
}

pub fn assert_equal(source: &Subvolume, received: &Subvolume) {
    if digest(source).unwrap() != digest(received).unwrap() {
        let (source, received) = (listing(source), listing(received));
        let only = |one: &[String], other: &[String]| {
            one.iter()
                .filter(|line| !other.contains(line))
                .cloned()
                .collect::<Vec<_>>()
                .join("\n")
        };
        let (sent, arrived) = (only(&source, &received), only(&received, &source));
        panic!("what arrived is not what was sent\nsent:\n{sent}\narrived:\n{arrived}");
    }
    assert!(received.info().unwrap().read_only);
    assert_eq!(identity(source), identity(received));
}

/// Every object with what the digest covers, one a line, for people to compare.
fn listing(subvolume: &Subvolume) -> Vec<String> {
    let root = PathBuf::from(format!("/proc/self/fd/{}", subvolume.as_fd().as_raw_fd()));
    let root = std::fs::read_link(root).unwrap();
    let mut paths = vec![root.clone()];
    let mut lines = Vec::new();
    while let Some(path) = paths.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        if stat.is_dir() {
            paths.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let content = match stat.is_file() {
            true => blake3::hash(&std::fs::read(&path).unwrap()).to_string(),
            false => format!("{:?}", std::fs::read_link(&path).ok()),
        };
        let mut names = vec![0; 65_536];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap();
        let xattrs: Vec<_> = names[..length]
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| {
                let mut value = vec![0; 65_536];
                let length = rustix::fs::lgetxattr(&path, name, &mut value[..]).unwrap();
                (
                    name.escape_ascii().to_string(),
                    blake3::hash(&value[..length]),
                )
            })
            .collect();
        lines.push(format!(
            "{:?} mode {:o} owner {}:{} mtime {}.{} size {} links {} device {} {content} {xattrs:?}",
            path.strip_prefix(&root).unwrap(),
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec(),
            if stat.is_dir() { 0 } else { stat.size() },
            stat.nlink(),
            stat.rdev(),
        ));
    }
    lines.sort();
    lines
}

pub fn remove(pool: &Pool, name: &str) {
    delete(pool.dir(), name).unwrap();
}

/// A stream as its commands, the stream's header with the first.
pub fn split(stream: &[u8]) -> Vec<Vec<u8>> {
    let (mut commands, mut from, mut at) = (Vec::new(), 0, 17);
    while at < stream.len() {
        let length = u32::from_le_bytes(stream[at..at + 4].try_into().unwrap());
        at += 10 + length as usize;
        commands.push(stream[from..at].to_vec());
        from = at;
    }
    commands
}

/// A stream of `btrfs send`, with options of its own.
pub fn btrfs_send(pool: &Pool, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("btrfs")
        .args(["-q", "send"])
        .args(arguments)
        .current_dir(pool.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Gives a stream to `btrfs receive`; what went wrong, if anything did.
pub fn btrfs_receive(pool: &Pool, stream: &[u8]) -> Result<(), String> {
    let mut child = Command::new("btrfs")
        .args(["-q", "receive"])
        .arg(pool.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may stop reading when it fails, which its exit status tells.
    let _ = child.stdin.take().unwrap().write_all(stream);
    let output = child.wait_with_output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Bytes that neither compress nor repeat.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
