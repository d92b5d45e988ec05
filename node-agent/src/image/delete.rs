//! Deleting snapshots: the tombstone is durable first, so that a number whose data is gone is
//! never taken for a free one. `live` is never touched.

use std::collections::BTreeSet;

use icbd_btrfs::Errno;
use icbd_wire::control::Reason;
use uuid::Uuid;

use super::checkpoint::CheckpointRecord;
use super::inventory;
use super::{ImageDir, Meta, SnapshotNumber, meta};
use crate::error::{Error, Result};

/// Deletes one snapshot; whether there was one. It must be the content that was meant. Call it
/// under the image's lock.
pub(crate) fn delete_snapshot(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    identity: Option<Uuid>,
    name: &str,
) -> Result<bool> {
    let found = inventory::snapshot(image, number)?;
    if let (Some(found), Some(wanted)) = (&found, identity)
        && found.identity != wanted
    {
        let message = format!(
            "{} holds {}, not {wanted}: not deleted",
            image.at(number),
            found.identity
        );
        return Err(Error::refused(Reason::Conflict, message));
    }
    let identity = identity.or(found.as_ref().map(|found| found.identity));
    bury(
        image,
        meta,
        number,
        meta::Tombstone {
            identity,
            name: name.to_owned(),
        },
    )?;
    Ok(found.is_some())
}

/// Deletes all snapshots of an image and whatever of one is still arriving; which there were. Call
/// it under the image's lock.
pub(crate) fn delete_all(image: &ImageDir, meta: &Meta) -> Result<Vec<SnapshotNumber>> {
    for number in meta.expected.numbers()? {
        meta.expected.remove(number)?;
    }
    let records = meta.read()?;
    let mut deleted = Vec::new();
    let disk = inventory::disk(image)?;
    let present = disk
        .snapshots
        .iter()
        .chain(&disk.partials)
        .map(|(number, _)| *number)
        .chain(disk.checkpoints.iter().map(|(number, _, _)| *number));
    let recorded = records
        .snapshots
        .keys()
        .chain(records.arriving.keys())
        .copied();
    for number in present.chain(recorded).collect::<BTreeSet<_>>() {
        let record = records.snapshots.get(&number);
        let found = inventory::snapshot(image, number)?;
        let tombstone = meta::Tombstone {
            identity: found
                .as_ref()
                .map(|found| found.identity)
                .or(record.and_then(|record| record.identity)),
            name: record.map(|record| record.name.clone()).unwrap_or_default(),
        };
        bury(image, meta, number, tombstone)?;
        if found.is_some() {
            deleted.push(number);
        }
    }
    Ok(deleted)
}

fn bury(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    tombstone: meta::Tombstone,
) -> Result<()> {
    meta.raise_highest(number)?;
    meta.tombstones.put(number, &tombstone)?;
    meta.expected.remove(number)?;
    if inventory::snapshot(image, number)?.is_some() {
        remove(image, number, &number.to_string())?;
    }
    remove_arrived(image, number, None)?;
    meta.snapshots.remove(number)?;
    meta.arriving.remove(number)
}

/// Removes what has arrived of a snapshot, if anything, but for the checkpoint to be kept.
pub(crate) fn remove_arrived(
    image: &ImageDir,
    number: SnapshotNumber,
    keep: Option<&CheckpointRecord>,
) -> Result<()> {
    remove(image, number, &number.partial_name())?;
    for (of, index, _) in inventory::disk(image)?.checkpoints {
        if of == number && keep.is_none_or(|kept| kept.index != index) {
            remove(image, number, &number.checkpoint_name(index))?;
        }
    }
    Ok(())
}

/// Removes a subvolume, durably, if it is there.
pub(super) fn remove(image: &ImageDir, number: SnapshotNumber, entry: &str) -> Result<()> {
    let deleted = icbd_btrfs::delete(image, entry).and_then(|()| icbd_btrfs::sync_dir(image));
    match deleted {
        Ok(()) => Ok(()),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
        // What the kernel says of a snapshot that is being sent.
        Err(error) if error.errno() == Some(Errno::PERM) => {
            let message = format!("{} is in use by a transfer: {error}", image.at(number));
            Err(Error::refused(Reason::SnapshotBusy, message))
        }
        Err(error) => Err(Error::btrfs(image.at(entry))(error)),
    }
}
