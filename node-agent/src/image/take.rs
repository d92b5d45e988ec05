//! Taking a snapshot of `live`, or binding a name to one that exists: once a name, whatever dies
//! in between. The record is durable before the snapshot, and says afterwards which one it was.

use icbd_btrfs::{Access, LIVE, Subvolume};
use icbd_wire::control::{Reason, SnapshotInfo, TakeSnapshotRequest};

use super::inventory::{self, Snapshot};
use super::{ImageDir, Meta, Records, SnapshotNumber, SnapshotRecord, number};
use crate::error::{Error, Result};

/// Does what the request says; asked again, it answers the same. Call it under the image's lock.
pub(crate) fn take(
    image: &ImageDir,
    meta: &Meta,
    request: &TakeSnapshotRequest,
    now: i64,
) -> Result<SnapshotInfo> {
    if request.name.is_empty() {
        return Err(Error::refused(
            Reason::InvalidArgument,
            "the snapshot has no name",
        ));
    }
    let records = meta.read()?;
    let named = records.named(&request.name);
    if let Some((number, record)) = named
        && let Some(answer) = again(image, meta, number, record, request.bind_number)?
    {
        return Ok(answer);
    }
    let abandoned = named.map(|(number, _)| number);
    let record = SnapshotRecord {
        name: request.name.clone(),
        object_uid: request.object_uid.clone(),
        origin: request.origin().into(),
        taken_at: now,
        identity: None,
        bytes: None,
    };
    if request.bind_number != 0 {
        return bind(image, meta, &records, number(request.bind_number)?, record);
    }
    let live = live(image)?;
    let next = next_number(image, &records, request.highest_known)?;
    let number = match abandoned {
        // Nothing was taken since: the number that was meant for it will do.
        Some(number) if number.get() + 1 == next.get() => number,
        Some(number) => {
            meta.snapshots.remove(number)?;
            next
        }
        None => next,
    };
    meta.raise_highest(number)?;
    meta.snapshots.put(number, &record)?;
    complete(image, meta, number, record, Some(&live))
}

/// The name is recorded: the same answer, or what was left undone; `None`, if nothing was ever
/// taken for it.
fn again(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    record: &SnapshotRecord,
    bind_number: u64,
) -> Result<Option<SnapshotInfo>> {
    if bind_number != 0 && bind_number != number.get() {
        let message = format!("{} is bound to number {number} already", record.name);
        return Err(Error::refused(Reason::NumberBound, message));
    }
    let found = inventory::snapshot(image, number)?;
    match (record.identity, found) {
        (Some(identity), Some(found)) if found.identity != identity => {
            let message = format!(
                "{} was taken as {} with {identity}, which holds {} now",
                record.name,
                image.at(number),
                found.identity,
            );
            Err(Error::refused(Reason::Conflict, message))
        }
        (Some(_), Some(found)) => Ok(Some(found.info(number, Some(record)))),
        (Some(identity), None) => {
            let message = format!(
                "{} was taken as {}, and the snapshot {identity} is gone",
                record.name,
                image.at(number),
            );
            Err(Error::refused(Reason::SnapshotLost, message))
        }
        // The agent ended between the snapshot and its identity.
        (None, Some(_)) => complete(image, meta, number, record.clone(), None).map(Some),
        // It ended, or failed, between the record and the snapshot.
        (None, None) => Ok(None),
    }
}

/// Takes the snapshot, if `live` is given, and completes its record.
fn complete(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    mut record: SnapshotRecord,
    live: Option<&Subvolume>,
) -> Result<SnapshotInfo> {
    if let Some(live) = live {
        let name = number.to_string();
        // The ioctl ends with the commit of its transaction (create_snapshot in fs/btrfs/ioctl.c);
        // the fsync makes sure of it where a kernel should leave it to us.
        icbd_btrfs::snapshot(live, image, &name, Access::ReadOnly)
            .and_then(|_| icbd_btrfs::sync_dir(image))
            .map_err(Error::btrfs(image.at(number)))?;
    }
    let found = existing(image, number)?;
    record.identity = Some(found.identity);
    meta.snapshots.put(number, &record)?;
    Ok(found.info(number, Some(&record)))
}

/// Gives a name to a snapshot that is there.
fn bind(
    image: &ImageDir,
    meta: &Meta,
    records: &Records,
    number: SnapshotNumber,
    mut record: SnapshotRecord,
) -> Result<SnapshotInfo> {
    if let Some(bound) = records.snapshots.get(&number) {
        let message = format!(
            "number {number} belongs to {}, not to {}",
            bound.name, record.name
        );
        return Err(Error::refused(Reason::NumberBound, message));
    }
    let found = existing(image, number)?;
    if found.suspect {
        let message = format!("{} was changed since it was taken", image.at(number));
        return Err(Error::refused(Reason::SnapshotNotFound, message));
    }
    record.taken_at = found.created_at;
    record.identity = Some(found.identity);
    meta.raise_highest(number)?;
    meta.snapshots.put(number, &record)?;
    Ok(found.info(number, Some(&record)))
}

fn existing(image: &ImageDir, number: SnapshotNumber) -> Result<Snapshot> {
    inventory::snapshot(image, number)?.ok_or_else(|| {
        let message = format!("there is no snapshot {}", image.at(number));
        Error::refused(Reason::SnapshotNotFound, message)
    })
}

fn live(image: &ImageDir) -> Result<Subvolume> {
    let missing = |what: &str| {
        let message = format!("{} {what}: snapshots are taken of it", image.at(LIVE));
        Error::refused(Reason::LiveNotFound, message)
    };
    let live = match Subvolume::open(image, LIVE) {
        Ok(live) => live,
        Err(icbd_btrfs::Error::NotSubvolume { .. }) => {
            return Err(missing("is not a btrfs subvolume"));
        }
        Err(error) if error.errno() == Some(icbd_btrfs::Errno::NOENT) => {
            return Err(missing("does not exist"));
        }
        Err(error) => return Err(Error::btrfs(image.at(LIVE))(error)),
    };
    let info = live.info().map_err(Error::btrfs(image.at(LIVE)))?;
    if let Some(received) = info.received_uuid {
        let message = format!(
            "{} carries the received-uuid {received}: it is a replica made writable; \
             make live a writable snapshot of it instead",
            image.at(LIVE),
        );
        return Err(Error::refused(Reason::LiveReceived, message));
    }
    Ok(live)
}

/// Beyond every number that is known of, here or anywhere.
fn next_number(image: &ImageDir, records: &Records, known: u64) -> Result<SnapshotNumber> {
    let disk = inventory::disk(image)?;
    let mut on_disk: Vec<u64> = disk
        .snapshots
        .iter()
        .chain(&disk.partials)
        .map(|(number, _)| number.get())
        .collect();
    // What does not count as a snapshot takes up its number all the same.
    on_disk.extend(
        disk.not_counted
            .iter()
            .filter_map(|entry| SnapshotNumber::from_name(&entry.name).map(SnapshotNumber::get)),
    );
    let on_disk = on_disk.into_iter().max().unwrap_or(0);
    let highest = records.highest().max(on_disk).max(known);
    highest
        .checked_add(1)
        .and_then(SnapshotNumber::new)
        .ok_or_else(|| {
            Error::refused(
                Reason::InvalidArgument,
                "no snapshot number is left beyond 2^64 - 1",
            )
        })
}
