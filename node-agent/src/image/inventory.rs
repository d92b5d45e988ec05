//! What an image has on disk, put together with what is recorded of it: the inventory that the
//! operator plans with. Reads only.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use icbd_btrfs::Inventory;
use icbd_btrfs::{Errno, Identity, Subvolume, SubvolumeInfo};
use icbd_wire::control::{self, ImageInventory, Live, SnapshotInfo};
use icbd_wire::data::Namespace;
use uuid::Uuid;

use super::{ImageDir, ImageId, Records, SnapshotNumber, SnapshotRecord};
use crate::durable;
use crate::error::{Error, Result};
use crate::pool::OpenPool;

/// A read-only subvolume under a number.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    /// The content that it holds, or claims to hold if it is suspect.
    pub(crate) identity: Uuid,
    /// Changed since it was taken or received: no parent, no source.
    pub(crate) suspect: bool,
    pub(crate) uuid: Uuid,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at: i64,
}

impl Snapshot {
    fn of(info: &SubvolumeInfo) -> Self {
        let identity = Identity::of(info);
        Self {
            identity: identity.uuid(),
            suspect: identity.clean().is_none(),
            uuid: info.uuid,
            created_at: milliseconds(info.otime),
        }
    }

    pub(crate) fn info(
        &self,
        number: SnapshotNumber,
        record: Option<&SnapshotRecord>,
    ) -> SnapshotInfo {
        SnapshotInfo {
            number: number.get(),
            identity: self.identity.to_string(),
            suspect: self.suspect,
            uuid: self.uuid.to_string(),
            record: record.map(Into::into),
            bytes: record.and_then(|record| record.bytes),
            created_at: self.created_at,
        }
    }
}

/// The snapshot with this number; `None` if there is none, or what is there does not count as one.
pub(crate) fn snapshot(image: &ImageDir, number: SnapshotNumber) -> Result<Option<Snapshot>> {
    let found = Subvolume::open(image, number.to_string()).and_then(|found| found.info());
    match found {
        Ok(info) => Ok(info.read_only.then(|| Snapshot::of(&info))),
        Err(error) => match error.errno() {
            None | Some(Errno::NOENT | Errno::XDEV) => Ok(None),
            Some(_) => Err(Error::btrfs(image.at(number))(error)),
        },
    }
}

/// What stands in the image's directory.
pub(crate) fn disk(image: &ImageDir) -> Result<Inventory> {
    icbd_btrfs::scan(image).map_err(Error::btrfs(image.id().to_string()))
}

/// All images in the pool: every directory with a valid name in one with a valid name.
pub(crate) fn images(pool: &OpenPool) -> Result<Vec<ImageId>> {
    let mut images = Vec::new();
    for namespace in durable::names(pool)?
        .iter()
        .filter_map(|name| name.parse().ok())
    {
        let namespace: Namespace = namespace;
        let Some(dir) = open_if_directory(pool, namespace.as_str())? else {
            continue;
        };
        for name in durable::names(&dir)?
            .iter()
            .filter_map(|name| name.parse().ok())
        {
            let id = ImageId {
                namespace: namespace.clone(),
                name,
            };
            if open_if_directory(&dir, id.name.as_str())?.is_some() {
                images.push(id);
            }
        }
    }
    Ok(images)
}

fn open_if_directory(dir: impl AsFd, name: &str) -> Result<Option<OwnedFd>> {
    match durable::open_dir(dir, name) {
        // A file, a symlink or another mount is no image.
        Err(error)
            if matches!(
                error.errno(),
                Some(Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
            ) =>
        {
            Ok(None)
        }
        opened => opened,
    }
}

/// What stands under a number without being a snapshot: why it does not count.
pub(crate) fn in_the_way(image: &ImageDir, number: SnapshotNumber) -> Result<Option<String>> {
    let name = number.to_string();
    let entries = disk(image)?.not_counted;
    let entry = entries
        .iter()
        .find(|entry| AsRef::<[u8]>::as_ref(&entry.name) == name.as_bytes());
    Ok(entry.map(|entry| entry.reason.to_string()))
}

/// The inventory of one image, as the operator gets it.
pub(crate) fn scan(image: &ImageDir) -> Result<ImageInventory> {
    let Inventory {
        snapshots,
        live,
        partials,
        checkpoints: _,
        not_counted,
    } = disk(image)?;
    let ignored: Vec<String> = not_counted
        .iter()
        .map(|entry| format!("{}: {}", entry.name.escape_ascii(), entry.reason))
        .collect();
    // Without its records an image would look like one that nobody has named or deleted anything of.
    let records = Records::of(image)?;
    let last = [
        snapshots.last().map(|(n, _)| n.get()),
        partials.last().map(|(n, _)| n.get()),
    ];
    let on_disk = last.into_iter().flatten().max().unwrap_or(0);
    // A name belongs to one content: recorded of another, it says nothing of what is there now.
    let info = |number, found: Snapshot| {
        let record = records.snapshots.get(&number);
        found.info(
            number,
            record.filter(|record| record.identity == Some(found.identity)),
        )
    };
    Ok(ImageInventory {
        image: Some(image.id().into()),
        namespace_uid: records.image.namespace_uid.clone().unwrap_or_default(),
        live: live.map(|live| Live {
            received: live.received_uuid.is_some(),
        }),
        highest_number: records.highest().max(on_disk),
        snapshots: snapshots
            .iter()
            .map(|(number, found)| info(*number, Snapshot::of(found)))
            .collect(),
        tombstones: records
            .tombstones
            .iter()
            .map(|(number, tombstone)| control::Tombstone {
                number: number.get(),
                identity: tombstone
                    .identity
                    .map(|uuid| uuid.to_string())
                    .unwrap_or_default(),
                name: tombstone.name.clone(),
            })
            .collect(),
        partials: partials.iter().map(|(number, _)| number.get()).collect(),
        ignored,
    })
}

fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
