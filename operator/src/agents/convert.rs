//! From what agents say on the wire to the planner's values. What cannot be read is left out and
//! logged: one odd entry of a newer agent must not hide the rest.

use std::collections::BTreeMap;

use icbd_crds::{Compression, Origin, Reason};
use icbd_planner::{
    Ended, Held, ImageKey, Inventory, Live, Pool, PoolId, Record, Refusal, SnapshotNumber,
    Tombstone, TransferEnd,
};
use icbd_wire::control as pb;
use jiff::Timestamp;
use tracing::warn;

/// The word that users see for an agent's reason.
pub(crate) fn reason(reason: pb::Reason) -> Reason {
    Reason::from_name(reason.as_str_name()).unwrap_or(Reason::Unknown)
}

/// A refused or failed call, as a condition says it.
pub(crate) fn refusal(status: &tonic::Status) -> Refusal {
    match pb::reason_of(status) {
        Some(why) => Refusal::new(reason(why), status.message()),
        None => Refusal::new(
            Reason::AgentUnreachable,
            format!(
                "the agent did not answer: {}: {}",
                status.code(),
                status.message()
            ),
        ),
    }
}

pub(crate) fn key(image: &pb::ImageRef) -> ImageKey {
    ImageKey {
        namespace: image.namespace.clone(),
        image: image.image.clone(),
    }
}

pub(crate) fn image_ref(key: &ImageKey) -> pb::ImageRef {
    pb::ImageRef {
        namespace: key.namespace.clone(),
        image: key.image.clone(),
    }
}

pub(crate) fn pool(status: pb::PoolStatus) -> Pool {
    use pb::PoolState as S;
    let why = match status.state() {
        S::Ready => None,
        S::NotMounted => Some(Reason::PoolNotMounted),
        S::NotBtrfs => Some(Reason::PoolNotBtrfs),
        S::NotInitialised => Some(Reason::PoolNotInitialised),
        S::Foreign => Some(Reason::PoolForeign),
        S::Locked => Some(Reason::PoolLocked),
        S::KernelTooOld => Some(Reason::KernelTooOld),
        S::Unavailable | S::Unspecified => Some(Reason::PoolUnavailable),
    };
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Pool {
        usable: why.map_or(Ok(()), |reason| Err(Refusal::new(reason, status.message))),
        id: some(status.fsid)
            .zip(some(status.subvolume_uuid))
            .map(|(fsid, subvolume)| PoolId { fsid, subvolume }),
        installation: some(status.installation),
        empty: status.empty,
        capacity: status.capacity,
        free: status.free,
        path: status.path,
    }
}

pub(crate) fn inventory(image: pb::ImageInventory) -> Inventory {
    let snapshots: BTreeMap<SnapshotNumber, Held> = image
        .snapshots
        .into_iter()
        .map(|snapshot| (SnapshotNumber(snapshot.number), held(snapshot)))
        .collect();
    let tombstone = |t: pb::Tombstone| Tombstone {
        number: SnapshotNumber(t.number),
        identity: t.identity,
    };
    Inventory {
        namespace_uid: Some(image.namespace_uid).filter(|uid| !uid.is_empty()),
        live: image.live.map(|live| Live {
            received: live.received,
        }),
        highest: image.highest_number,
        snapshots,
        tombstones: image.tombstones.into_iter().map(tombstone).collect(),
        partials: image.partials.into_iter().map(SnapshotNumber).collect(),
    }
}

fn held(snapshot: pb::SnapshotInfo) -> Held {
    Held {
        identity: snapshot.identity,
        suspect: snapshot.suspect,
        record: snapshot.record.map(record),
        bytes: snapshot.bytes,
        created_at: time(snapshot.created_at),
    }
}

fn record(record: pb::SnapshotRecord) -> Record {
    let origin = match record.origin() {
        pb::Origin::Schedule => Origin::Schedule,
        pb::Origin::Adopted => Origin::Adopted,
        pb::Origin::User | pb::Origin::Unspecified => Origin::User,
    };
    Record {
        origin,
        name: record.name,
        object_uid: record.object_uid,
        taken_at: time(record.taken_at),
    }
}

pub(crate) fn record_to_wire(record: &Record) -> pb::SnapshotRecord {
    pb::SnapshotRecord {
        name: record.name.clone(),
        object_uid: record.object_uid.clone(),
        origin: origin(record.origin).into(),
        taken_at: record.taken_at.as_millisecond(),
    }
}

pub(crate) fn origin(origin: Origin) -> pb::Origin {
    match origin {
        Origin::User => pb::Origin::User,
        Origin::Schedule => pb::Origin::Schedule,
        Origin::Adopted => pb::Origin::Adopted,
    }
}

pub(crate) fn codec(compression: Compression) -> pb::Codec {
    match compression {
        Compression::Auto => pb::Codec::Auto,
        Compression::None => pb::Codec::None,
        Compression::Snappy => pb::Codec::Snappy,
        Compression::Lz4 => pb::Codec::Lz4,
        Compression::Zlib => pb::Codec::Zlib,
        Compression::Zstd => pb::Codec::Zstd,
    }
}

pub(crate) fn end(transfer: &pb::Transfer) -> Option<TransferEnd> {
    let outcome = match transfer.state() {
        pb::TransferState::Succeeded => Ok(()),
        pb::TransferState::Failed => Err(Ended {
            refusal: Refusal::new(reason(transfer.reason()), transfer.message.clone()),
            transient: transfer.transient,
        }),
        pb::TransferState::Running
        | pb::TransferState::Expected
        | pb::TransferState::Unspecified => return None,
    };
    Some(TransferEnd {
        at: time(transfer.ended_at),
        outcome,
    })
}

/// Milliseconds since the Unix epoch; beyond what a date can be: the epoch.
pub(crate) fn time(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap_or_else(|error| {
        warn!(milliseconds, %error, "an agent sent a time that is none");
        Timestamp::UNIX_EPOCH
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_of_an_agent_is_a_word_that_users_know() {
        for number in 1..200 {
            if let Ok(wire) = pb::Reason::try_from(number) {
                assert_ne!(reason(wire), Reason::Unknown, "{wire:?}");
            }
        }
    }

    #[test]
    fn a_time_that_is_none_is_no_panic() {
        assert_eq!(time(i64::MAX), Timestamp::UNIX_EPOCH);
    }
}
