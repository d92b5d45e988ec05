//! What is recorded of a transfer that was announced and has not begun: so that its source is let in
//! also by an agent that was started anew since. It counts once, and not for long.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Arrival, ImageDir, Meta, SnapshotNumber, SnapshotRecord};
use crate::error::Result;

/// A transfer that was announced. Gone from the records, it cannot begin any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Expectation {
    pub(crate) transfer: Uuid,
    /// The node that the snapshot is to come from.
    pub(crate) source: String,
    pub(crate) identity: Uuid,
    /// `None`: a full transfer.
    pub(crate) parent: Option<Uuid>,
    /// `None`: the source has none.
    pub(crate) record: Option<SnapshotRecord>,
    /// About so many bytes are to come; 0: nobody knows yet.
    pub(crate) bytes: u64,
    /// Bytes of the pool that must stay free.
    pub(crate) min_free: u64,
    /// Until when the source may connect: milliseconds since the Unix epoch.
    pub(crate) deadline: i64,
}

impl Expectation {
    /// What is recorded of the snapshot when it begins to come.
    pub(crate) fn arrival(&self) -> Arrival {
        Arrival {
            transfer: self.transfer,
            identity: self.identity,
            record: self.record.clone(),
            checkpoint: None,
        }
    }

    /// How long the source may still take; `None`: it is too late.
    pub(crate) fn left(&self, now: i64) -> Option<Duration> {
        let left = u64::try_from(self.deadline.saturating_sub(now)).ok()?;
        (left > 0).then_some(Duration::from_millis(left))
    }
}

/// When something is over that begins now and lasts so long.
pub(crate) fn deadline(now: i64, lasts: Duration) -> i64 {
    now.saturating_add(i64::try_from(lasts.as_millis()).unwrap_or(i64::MAX))
}

/// Uses an announcement up, durably; whether it still counted. Call it under the image's lock.
pub(crate) fn consume(
    meta: &Meta,
    number: SnapshotNumber,
    transfer: Uuid,
    now: i64,
) -> Result<bool> {
    let found = meta.expected.get(number)?;
    // What was announced of the number since stays.
    let Some(found) = found.filter(|found| found.transfer == transfer) else {
        return Ok(false);
    };
    meta.expected.remove(number)?;
    Ok(found.left(now).is_some())
}

/// Has `await_again` told of each transfer of an image that was announced before this agent was
/// started or the pool came, and may still come. What it declines is forgotten, as is what is too
/// late, or no record. None counts for longer than `longest`. Call it under the image's lock.
pub(crate) fn restore(
    image: &ImageDir,
    now: i64,
    longest: Duration,
    await_again: impl Fn(SnapshotNumber, Expectation) -> bool,
) -> Result<()> {
    let Some(meta) = Meta::open(image)? else {
        return Ok(());
    };
    for number in meta.expected.numbers()? {
        let found = meta.expected.get(number).unwrap_or_else(|error| {
            tracing::warn!(image = %image.id(), %number, %error, "an announcement is lost");
            None
        });
        let counts = found.filter(|found| found.left(now).is_some());
        let awaited = match counts {
            Some(mut found) => {
                let latest = deadline(now, longest);
                if found.deadline > latest {
                    // The clock was put back since. Its time is counted from here, or it might
                    // count for ever.
                    found.deadline = latest;
                    meta.expected.put(number, &found)?;
                }
                await_again(number, found)
            }
            None => false,
        };
        if !awaited {
            meta.expected.remove(number)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{
        "transfer": "6b1f5d1e-0f5d-4c39-9d0c-6f3a3c1c8a01",
        "source": "n1",
        "identity": "0b9c1f1e-3f5d-4c39-9d0c-6f3a3c1c8a02",
        "parent": "1c9c1f1e-3f5d-4c39-9d0c-6f3a3c1c8a03",
        "record": {
            "name": "monday", "objectUid": "uid", "origin": "User", "takenAt": 7,
            "identity": "0b9c1f1e-3f5d-4c39-9d0c-6f3a3c1c8a02", "bytes": null
        },
        "bytes": 4096,
        "minFree": 1024,
        "deadline": 1000
    }"#;

    #[test]
    fn records_of_this_version_can_be_read_by_the_next() {
        let read: Expectation = serde_json::from_str(RECORD).unwrap();
        let written = serde_json::to_value(&read).unwrap();
        let record: serde_json::Value = serde_json::from_str(RECORD).unwrap();
        assert_eq!(written, record);
        // What a later version knows more is no harm.
        let mut more = record;
        more["priority"] = 1.into();
        assert_eq!(serde_json::from_value::<Expectation>(more).unwrap(), read);
    }

    #[test]
    fn an_arrival_that_an_older_version_recorded_is_still_one() {
        let record = r#"{"transfer": "6b1f5d1e-0f5d-4c39-9d0c-6f3a3c1c8a01",
            "identity": "0b9c1f1e-3f5d-4c39-9d0c-6f3a3c1c8a02", "record": null}"#;
        let arrival: Arrival = serde_json::from_str(record).unwrap();
        assert_eq!((arrival.record, arrival.checkpoint), (None, None));
    }

    #[test]
    fn it_counts_until_its_deadline() {
        let expected: Expectation = serde_json::from_str(RECORD).unwrap();
        assert_eq!(expected.left(400), Some(Duration::from_millis(600)));
        assert_eq!(expected.left(1000), None);
        assert_eq!(expected.left(i64::MAX), None);
        assert!(expected.left(i64::MIN).is_some());
        assert_eq!(deadline(400, Duration::from_millis(600)), 1000);
        assert_eq!(deadline(0, Duration::MAX), i64::MAX);
    }
}
