//! What is recorded of an image, in `.meta` of its directory: whose it is, which names its
//! snapshots have, which numbers are used up. Pure files; what they decide is decided elsewhere.
//!
//! `image.json`, and one file a snapshot in `snapshots/`, a deleted one in `tombstones/`, one that
//! is being received in `arriving/`, one that was announced in `expected/`.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::time::SystemTime;

use icbd_wire::control;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::checkpoint::CheckpointRecord;
use super::expectation::Expectation;
use super::{ImageDir, SnapshotNumber};
use crate::durable;
use crate::error::Result;

const DIRECTORY: &str = ".meta";
const IMAGE: &str = "image.json";

/// What is recorded of the image as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ImageRecord {
    /// The uid of the namespace whose data this is.
    pub(crate) namespace_uid: Option<String>,
    /// The highest number ever given out or received here.
    pub(crate) highest: u64,
}

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    User,
    Schedule,
    Adopted,
}

impl From<control::Origin> for Origin {
    fn from(origin: control::Origin) -> Self {
        match origin {
            control::Origin::Unspecified | control::Origin::User => Self::User,
            control::Origin::Schedule => Self::Schedule,
            control::Origin::Adopted => Self::Adopted,
        }
    }
}

impl From<Origin> for control::Origin {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::User => Self::User,
            Origin::Schedule => Self::Schedule,
            Origin::Adopted => Self::Adopted,
        }
    }
}

/// The name that a snapshot was taken or bound under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SnapshotRecord {
    pub(crate) name: String,
    pub(crate) object_uid: String,
    pub(crate) origin: Origin,
    /// Milliseconds since the Unix epoch.
    pub(crate) taken_at: i64,
    /// The content's identity; `None` until the snapshot has been taken.
    pub(crate) identity: Option<Uuid>,
    /// Referenced bytes; `None` until they have been counted.
    pub(crate) bytes: Option<u64>,
}

impl SnapshotRecord {
    /// The record that travels with a snapshot, for one with this identity.
    pub(crate) fn received(record: &control::SnapshotRecord, identity: Uuid) -> Self {
        Self {
            name: record.name.clone(),
            object_uid: record.object_uid.clone(),
            origin: record.origin().into(),
            taken_at: record.taken_at,
            identity: Some(identity),
            bytes: None,
        }
    }
}

impl From<&SnapshotRecord> for control::SnapshotRecord {
    fn from(record: &SnapshotRecord) -> Self {
        Self {
            name: record.name.clone(),
            object_uid: record.object_uid.clone(),
            origin: control::Origin::from(record.origin).into(),
            taken_at: record.taken_at,
        }
    }
}

/// What is left of a deleted snapshot: its number is never used again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Tombstone {
    pub(crate) identity: Option<Uuid>,
    pub(crate) name: String,
}

/// A snapshot that is being received: written before anything of it is on disk, removed when its
/// record is. Found after a crash, it says whose the snapshot is that may have become whole, and
/// how far it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Arrival {
    pub(crate) transfer: Uuid,
    pub(crate) identity: Uuid,
    /// `None`: the source has none.
    pub(crate) record: Option<SnapshotRecord>,
    /// Where another attempt can go on.
    #[serde(default)]
    pub(crate) checkpoint: Option<CheckpointRecord>,
}

/// An image's records, for reading and writing.
pub(crate) struct Meta {
    dir: OwnedFd,
    /// Where it is, for messages.
    at: String,
    pub(crate) snapshots: Table<SnapshotRecord>,
    pub(crate) tombstones: Table<Tombstone>,
    pub(crate) arriving: Table<Arrival>,
    pub(crate) expected: Table<Expectation>,
}

impl Meta {
    /// Opens the records, and makes room for them if there is none.
    pub(crate) fn make(image: &ImageDir) -> Result<Self> {
        let dir = durable::make_dir(image, DIRECTORY, 0o700)
            .map_err(|error| error.inside(&image.id().to_string()))?;
        Self::inside(dir, image.at(DIRECTORY))
    }

    /// Opens the records of an image that has some.
    pub(crate) fn open(image: &ImageDir) -> Result<Option<Self>> {
        durable::open_dir(image, DIRECTORY)?
            .map(|dir| Self::inside(dir, image.at(DIRECTORY)))
            .transpose()
    }

    fn inside(dir: OwnedFd, at: String) -> Result<Self> {
        Ok(Self {
            snapshots: Table::inside(&dir, &at, "snapshots")?,
            tombstones: Table::inside(&dir, &at, "tombstones")?,
            arriving: Table::inside(&dir, &at, "arriving")?,
            expected: Table::inside(&dir, &at, "expected")?,
            dir,
            at,
        })
    }

    pub(crate) fn image(&self) -> Result<ImageRecord> {
        let record = durable::read(&self.dir, IMAGE).map_err(|error| error.inside(&self.at))?;
        Ok(record.unwrap_or_default())
    }

    pub(crate) fn set_image(&self, record: &ImageRecord) -> Result<()> {
        durable::write(&self.dir, IMAGE, record).map_err(|error| error.inside(&self.at))
    }

    /// Makes sure that no number up to this one is ever given out.
    pub(crate) fn raise_highest(&self, number: SnapshotNumber) -> Result<()> {
        let mut record = self.image()?;
        if record.highest >= number.get() {
            return Ok(());
        }
        record.highest = number.get();
        self.set_image(&record)
    }

    /// Everything recorded of what there is, or begins to be, as values.
    pub(crate) fn read(&self) -> Result<Records> {
        Ok(Records {
            image: self.image()?,
            snapshots: self.snapshots.all()?,
            tombstones: self.tombstones.all()?,
            arriving: self.arriving.all()?,
        })
    }
}

/// One JSON file a number.
pub(crate) struct Table<T> {
    dir: OwnedFd,
    /// Where it is, for messages.
    at: String,
    rows: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> Table<T> {
    fn inside(meta: impl AsFd, meta_at: &str, name: &str) -> Result<Self> {
        Ok(Self {
            dir: durable::make_dir(meta, name, 0o700).map_err(|error| error.inside(meta_at))?,
            at: format!("{meta_at}/{name}"),
            rows: PhantomData,
        })
    }

    pub(crate) fn put(&self, number: SnapshotNumber, row: &T) -> Result<()> {
        durable::write(&self.dir, &file(number), row).map_err(|error| error.inside(&self.at))
    }

    pub(crate) fn get(&self, number: SnapshotNumber) -> Result<Option<T>> {
        durable::read(&self.dir, &file(number)).map_err(|error| error.inside(&self.at))
    }

    pub(crate) fn remove(&self, number: SnapshotNumber) -> Result<()> {
        durable::remove(&self.dir, &file(number)).map_err(|error| error.inside(&self.at))
    }

    /// When the row was last put or touched; `None` if there is none.
    pub(crate) fn written(&self, number: SnapshotNumber) -> Result<Option<SystemTime>> {
        durable::written(&self.dir, &file(number))
    }

    /// Says that the row was put now.
    pub(crate) fn touch(&self, number: SnapshotNumber, now: SystemTime) -> Result<()> {
        durable::touch(&self.dir, &file(number), now)
    }

    /// The numbers that have a row.
    pub(crate) fn numbers(&self) -> Result<Vec<SnapshotNumber>> {
        let names = durable::names(&self.dir)?;
        let names = names.iter().filter_map(|name| name.strip_suffix(".json"));
        Ok(names
            .filter_map(|name| SnapshotNumber::from_name(name.as_bytes()))
            .collect())
    }

    fn all(&self) -> Result<BTreeMap<SnapshotNumber, T>> {
        let mut rows = BTreeMap::new();
        for number in self.numbers()? {
            if let Some(row) = self.get(number)? {
                rows.insert(number, row);
            }
        }
        Ok(rows)
    }
}

fn file(number: SnapshotNumber) -> String {
    format!("{number}.json")
}

/// An image's records as they were read.
#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) image: ImageRecord,
    pub(crate) snapshots: BTreeMap<SnapshotNumber, SnapshotRecord>,
    pub(crate) tombstones: BTreeMap<SnapshotNumber, Tombstone>,
    pub(crate) arriving: BTreeMap<SnapshotNumber, Arrival>,
}

impl Records {
    /// The records of an image; of one that has none, empty ones.
    pub(crate) fn of(image: &ImageDir) -> Result<Self> {
        Ok(Meta::open(image)?
            .map(|meta| meta.read())
            .transpose()?
            .unwrap_or_default())
    }

    /// The highest number that these records know of; 0: none.
    pub(crate) fn highest(&self) -> u64 {
        let last = [
            self.snapshots
                .last_key_value()
                .map(|(number, _)| number.get()),
            self.tombstones
                .last_key_value()
                .map(|(number, _)| number.get()),
            self.arriving
                .last_key_value()
                .map(|(number, _)| number.get()),
        ];
        last.into_iter()
            .flatten()
            .fold(self.image.highest, u64::max)
    }

    /// The snapshot taken or bound under this name, and not deleted since: a tombstone outranks a
    /// record that a crash has left beside it.
    pub(crate) fn named(&self, name: &str) -> Option<(SnapshotNumber, &SnapshotRecord)> {
        let mut records = self.snapshots.iter();
        records
            .find(|(number, record)| record.name == name && !self.tombstones.contains_key(number))
            .map(|(number, record)| (*number, record))
    }
}
