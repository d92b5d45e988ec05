//! What is recorded of a checkpoint, so that another attempt can go on from it: the subvolume that
//! keeps what came, and how far in the stream that was.

use std::os::fd::AsFd;

use icbd_btrfs::Subvolume;
use icbd_btrfs::receive::{Checkpoint, Content};
use icbd_btrfs::stream::{self, Version};
use icbd_wire::data::{Mode, Position};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A checkpoint of an arriving snapshot. Without this record the subvolume counts for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CheckpointRecord {
    /// Counts the checkpoints of one snapshot; part of the subvolume's name.
    pub(crate) index: u64,
    /// The subvolume's uuid.
    uuid: Uuid,
    /// How the source made the stream: another mode has other bytes.
    extents: bool,
    /// Bytes of the stream up to here.
    raw: u64,
    /// The chain hash of these bytes.
    chain: [u8; 32],
    /// Commands of the stream up to here.
    commands: u64,
    stream_version: u32,
    /// What the stream said of itself at its begin.
    name: Vec<u8>,
    content: Uuid,
    stransid: u64,
    parent: Option<Uuid>,
}

impl CheckpointRecord {
    pub(crate) fn new(index: u64, mode: Mode, position: Position, checkpoint: Checkpoint) -> Self {
        let Checkpoint {
            uuid,
            content,
            version,
            upcoming,
        } = checkpoint;
        Self {
            index,
            uuid,
            extents: mode == Mode::Extents,
            raw: position.raw,
            chain: *position.chain.as_bytes(),
            commands: upcoming.command,
            stream_version: version.number(),
            name: content.name,
            content: content.uuid,
            stransid: content.stransid,
            parent: content.parent,
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.extents {
            true => Mode::Extents,
            false => Mode::Stream,
        }
    }

    /// Where the stream goes on.
    pub(crate) fn position(&self) -> Position {
        Position {
            raw: self.raw,
            chain: self.chain.into(),
        }
    }

    /// What was received up to here; `None` if the record is from a version that knew more.
    pub(crate) fn checkpoint(&self) -> Option<Checkpoint> {
        Some(Checkpoint {
            uuid: self.uuid,
            content: Content {
                name: self.name.clone(),
                uuid: self.content,
                stransid: self.stransid,
                parent: self.parent,
            },
            version: Version::from_number(self.stream_version)?,
            upcoming: stream::Position {
                command: self.commands,
                offset: self.raw,
            },
        })
    }

    /// Whether another attempt at this content on this parent can go on from here.
    pub(crate) fn serves(&self, content: Uuid, parent: Option<Uuid>) -> bool {
        self.content == content && self.parent == parent
    }

    /// The subvolume, if it is there and still what it was.
    pub(crate) fn open(&self, dir: impl AsFd, name: &str) -> Option<Subvolume> {
        let kept = Subvolume::open(dir, name).ok()?;
        let info = kept.info().ok()?;
        (info.uuid == self.uuid && info.read_only).then_some(kept)
    }
}
