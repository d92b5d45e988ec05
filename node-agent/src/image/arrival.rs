//! A snapshot's way into an image, as far as disk and records go: whether it may come, what is
//! durable before its first byte, and what a crash at any instant leaves to be settled. A snapshot
//! stands under its number when it is whole, or not at all.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use icbd_btrfs::{Identity, Subvolume};
use icbd_wire::control::Reason;
use uuid::Uuid;

use super::checkpoint::CheckpointRecord;
use super::delete::{remove, remove_arrived};
use super::inventory;
use super::{Arrival, ImageDir, Meta, SnapshotNumber};
use crate::error::{Error, Result};

/// How long a checkpoint is kept that nothing goes on from.
const KEEP: Duration = Duration::from_secs(7 * 24 * 3600);

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

/// The checkpoint that is recorded of an earlier attempt at the same content on the same parent.
pub(crate) fn kept(
    meta: &Meta,
    number: SnapshotNumber,
    arrival: &Arrival,
    parent: Option<Uuid>,
) -> Result<Option<CheckpointRecord>> {
    let before = meta.arriving.get(number)?;
    let kept = before.and_then(|before| before.checkpoint);
    Ok(kept.filter(|kept| kept.serves(arrival.identity, parent)))
}

/// Makes durable what is to come, and clears its place, but for the checkpoint that an earlier
/// attempt at the same content on the same parent has left: that is the answer.
pub(crate) fn begin(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    arrival: &mut Arrival,
    parent: Option<Uuid>,
) -> Result<Option<Subvolume>> {
    let kept = kept(meta, number, arrival, parent)?.and_then(|kept| {
        let subvolume = kept.open(image, &number.checkpoint_name(kept.index))?;
        Some((kept, subvolume))
    });
    let (checkpoint, subvolume) = kept.unzip();
    remove_arrived(image, number, checkpoint.as_ref())?;
    arrival.checkpoint = checkpoint;
    meta.raise_highest(number)?;
    meta.arriving.put(number, arrival)?;
    Ok(subvolume)
}

/// Records a checkpoint, and removes the one before it: from here on the new one counts.
pub(crate) fn keep(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    arrival: &Arrival,
) -> Result<()> {
    meta.arriving.put(number, arrival)?;
    let before = inventory::disk(image)?.checkpoints;
    let new = arrival.checkpoint.as_ref().map(|kept| kept.index);
    for (_, index, _) in before.iter().filter(|(of, ..)| *of == number) {
        if Some(*index) != new {
            remove(image, number, &number.checkpoint_name(*index))?;
        }
    }
    Ok(())
}

/// Gives a snapshot that has become whole its record.
pub(crate) fn complete(
    image: &ImageDir,
    meta: &Meta,
    number: SnapshotNumber,
    arrival: &Arrival,
) -> Result<()> {
    if let Some(record) = &arrival.record {
        meta.snapshots.put(number, record)?;
    }
    meta.arriving.remove(number)?;
    remove_arrived(image, number, None)
}

/// Removes what has come of a snapshot that will not become whole. A checkpoint stays, for the next
/// attempt.
pub(crate) fn give_up(image: &ImageDir, meta: &Meta, number: SnapshotNumber) -> Result<()> {
    let arrival = meta.arriving.get(number)?;
    let kept = arrival.and_then(|arrival| arrival.checkpoint);
    remove_arrived(image, number, kept.as_ref())?;
    match kept {
        Some(_) => Ok(()),
        None => meta.arriving.remove(number),
    }
}

/// Removes everything of a snapshot that has come so far: it has to start anew.
pub(crate) fn forget(image: &ImageDir, meta: &Meta, number: SnapshotNumber) -> Result<()> {
    meta.arriving.remove(number)?;
    remove_arrived(image, number, None)
}

/// Removes the checkpoints that nothing has gone on from for long, but for those of snapshots that
/// are `awaited`. Call it under the image's lock.
pub(crate) fn expire(
    image: &ImageDir,
    meta: &Meta,
    now: SystemTime,
    is_awaited: impl Fn(SnapshotNumber) -> bool,
) -> Result<()> {
    for number in meta.arriving.numbers()? {
        let Some(written) = meta.arriving.written(number)? else {
            continue;
        };
        match now.duration_since(written) {
            Ok(age) if age < KEEP || is_awaited(number) => {}
            Ok(_) if inventory::snapshot(image, number)?.is_some() => {}
            Ok(_) => {
                tracing::info!(image = %image.id(), %number, "nobody goes on from the checkpoint");
                forget(image, meta, number)?;
            }
            // The clock was put back since. Its time is counted from here, or it might stay for ever.
            Err(_) => meta.arriving.touch(number, now)?,
        }
    }
    Ok(())
}

/// Settles what an agent that ended in mid-transfer has left.
pub(crate) fn settle(image: &ImageDir) -> Result<()> {
    let meta = Meta::open(image)?;
    let records = meta.as_ref().map(Meta::read).transpose()?;
    let records = records.unwrap_or_default();
    let disk = inventory::disk(image)?;
    let partials = disk.partials.iter().map(|(number, _)| *number);
    let checkpoints = disk.checkpoints.iter().map(|(number, ..)| *number);
    for number in partials.chain(checkpoints).collect::<BTreeSet<_>>() {
        tracing::info!(image = %image.id(), %number, "clearing up after an earlier transfer");
        let arrival = records.arriving.get(&number);
        remove_arrived(
            image,
            number,
            arrival.and_then(|arrival| arrival.checkpoint.as_ref()),
        )?;
    }
    let Some(meta) = meta else { return Ok(()) };
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
                complete(image, &meta, number, &arrival)?;
            }
            _ if arrival.checkpoint.is_some() => {}
            _ => meta.arriving.remove(number)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageId;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn what_nothing_goes_on_from_for_a_week_expires_unless_it_is_awaited() {
        let dir = tempfile::tempdir().unwrap();
        let image = ImageDir {
            dir: std::fs::File::open(dir.path()).unwrap().into(),
            id: ImageId {
                namespace: "desktops".parse().unwrap(),
                name: "win11".parse().unwrap(),
            },
        };
        let meta = Meta::make(&image).unwrap();
        let arrival = Arrival {
            transfer: Uuid::new_v4(),
            identity: Uuid::new_v4(),
            record: None,
            checkpoint: None,
        };
        let now = SystemTime::UNIX_EPOCH + DAY * 20_000;
        let [young, old, awaited, future] =
            [1, 2, 3, 4].map(|number| SnapshotNumber::new(number).unwrap());
        let written = [
            (young, now - DAY.mul_f64(6.9)),
            (old, now - DAY.mul_f64(7.1)),
            (awaited, now - DAY.mul_f64(7.1)),
            // The clock was put back since.
            (future, now + DAY),
        ];
        for (number, at) in written {
            meta.arriving.put(number, &arrival).unwrap();
            meta.arriving.touch(number, at).unwrap();
        }
        let left = || {
            let mut left = meta.arriving.numbers().unwrap();
            left.sort();
            left
        };
        expire(&image, &meta, now, |number| number == awaited).unwrap();
        assert_eq!(left(), [young, awaited, future]);
        expire(&image, &meta, now, |_| false).unwrap();
        assert_eq!(left(), [young, future]);
        // Its week begins when that is noticed.
        let later = now + KEEP - Duration::from_secs(1);
        expire(&image, &meta, later, |_| false).unwrap();
        assert_eq!(left(), [future]);
        expire(&image, &meta, now + KEEP, |_| false).unwrap();
        assert!(left().is_empty());
    }
}
