//! A snapshot's way into an image, as far as disk and records go: whether it may come, what is
//! durable before its first byte, and what a crash at any instant leaves to be settled. A snapshot
//! stands under its number when it is whole, or not at all.

use icbd_btrfs::Identity;
use icbd_wire::control::Reason;
use uuid::Uuid;

use super::delete::remove_partial;
use super::inventory;
use super::{Arrival, ImageDir, Meta, SnapshotNumber};
use crate::error::{Error, Result};

/// What becomes of an announced snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Welcome,
    AlreadyThere,
}

/// Whether a snapshot with this identity may come under this number.
pub(crate) fn judge(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    identity: Uuid,
    parent: Option<Uuid>,
) -> Result<Verdict> {
    if let Some(found) = inventory::snapshot(image, number)? {
        if found.identity == identity {
            return Ok(Verdict::AlreadyThere);
        }
        let message = format!(
            "{} holds {}, and {identity} was to come under the same number",
            image.at(number),
            found.identity,
        );
        return Err(Error::refused(Reason::Conflict, message));
    }
    if let Some(why) = inventory::in_the_way(image, number)? {
        let message = format!(
            "{} is there and does not count as a snapshot: {why}",
            image.at(number)
        );
        return Err(Error::refused(Reason::Conflict, message));
    }
    if meta.tombstones.get(number)?.is_some() {
        let message = format!("{} was deleted: its number is used up", image.at(number));
        return Err(Error::refused(Reason::Conflict, message));
    }
    if let Some(parent) = parent {
        find(image, parent)?;
    }
    Ok(Verdict::Welcome)
}

/// The clean snapshot of an image with this content.
pub(crate) fn find(image: &ImageDir, identity: Uuid) -> Result<SnapshotNumber> {
    let mut suspect = None;
    for (number, info) in inventory::disk(image)?.snapshots {
        match Identity::of(&info) {
            Identity::Clean(found) if found == identity => return Ok(number),
            Identity::Suspect { uuid, .. } if uuid == identity => suspect = Some(number),
            Identity::Clean(_) | Identity::Suspect { .. } => {}
        }
    }
    let message = match suspect {
        Some(number) => {
            format!(
                "the parent {identity}, {}, was changed since it came",
                image.at(number)
            )
        }
        None => format!("there is no snapshot {identity} in {}", image.id()),
    };
    Err(Error::refused(Reason::ParentMissing, message))
}

/// Makes durable what is to come, and clears its place.
pub(crate) fn begin(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    arrival: &Arrival,
) -> Result<()> {
    remove_partial(image, number)?;
    meta.raise_highest(number)?;
    meta.arriving.put(number, arrival)
}

/// Gives a snapshot that has become whole its record.
pub(crate) fn complete(meta: &Meta, number: SnapshotNumber, arrival: &Arrival) -> Result<()> {
    if let Some(record) = &arrival.record {
        meta.snapshots.put(number, record)?;
    }
    meta.arriving.remove(number)
}

/// Removes what has come of a snapshot that will not become whole.
pub(crate) fn give_up(image: &ImageDir, meta: &Meta, number: SnapshotNumber) -> Result<()> {
    remove_partial(image, number)?;
    meta.arriving.remove(number)
}

/// Settles what an agent that ended in mid-transfer has left.
pub(crate) fn settle(image: &ImageDir) -> Result<()> {
    for (number, _) in inventory::disk(image)?.partials {
        tracing::info!(image = %image.id(), %number, "removing what an earlier transfer left");
        remove_partial(image, number)?;
    }
    let Some(meta) = Meta::open(image)? else {
        return Ok(());
    };
    let records = meta.read()?;
    for number in records.tombstones.keys() {
        // A deletion that ended between the snapshot and its record.
        if records.snapshots.contains_key(number) && inventory::snapshot(image, *number)?.is_none()
        {
            meta.snapshots.remove(*number)?;
        }
    }
    for (number, arrival) in records.arriving {
        match inventory::snapshot(image, number)? {
            Some(found) if found.identity == arrival.identity => {
                complete(&meta, number, &arrival)?;
            }
            _ => meta.arriving.remove(number)?,
        }
    }
    Ok(())
}
