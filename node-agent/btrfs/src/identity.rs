//! Which content a subvolume holds, told from the uuids and transactions that the kernel records; pure.
//! Comparing digests, where this is not enough, is the caller's business.

use uuid::Uuid;

use crate::subvolume::SubvolumeInfo;

/// Which content a subvolume holds. Two subvolumes with the same clean identity, on whatever hosts,
/// hold the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Nothing speaks against the content being that of the snapshot first made with this uuid.
    Clean(Uuid),
    /// The content may have changed since it was that of `uuid`; only a digest can tell. No parent
    /// for an increment until then.
    Suspect {
        /// The content it claims to hold.
        uuid: Uuid,
        /// What speaks against it.
        because: Suspicion,
    },
}

/// What speaks against a subvolume holding what its uuid says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suspicion {
    /// Its content is not protected from change.
    Writable,
    /// It changed after it was made or received: made writable for a while, deduplicated, or
    /// received by a program that marks before everything is written.
    Changed {
        /// Transaction in which its content was settled.
        settled: u64,
        /// Transaction of its last change.
        changed: u64,
    },
}

impl Identity {
    /// The identity of a subvolume: the received uuid, else its own.
    ///
    /// Of a received one the content was settled by the transaction that marked it, not by a later
    /// one that snapshotted it: a snapshot inherits the mark whatever happened in between.
    #[must_use]
    pub fn of(info: &SubvolumeInfo) -> Self {
        let (uuid, settled) = match info.received_uuid {
            Some(received) => (received, info.rtransid),
            None => (info.uuid, info.otransid),
        };
        if !info.read_only {
            return Self::Suspect {
                uuid,
                because: Suspicion::Writable,
            };
        }
        if info.ctransid > settled {
            let because = Suspicion::Changed {
                settled,
                changed: info.ctransid,
            };
            return Self::Suspect { uuid, because };
        }
        Self::Clean(uuid)
    }

    /// The uuid it is, or claims to be.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        match self {
            Self::Clean(uuid) | Self::Suspect { uuid, .. } => uuid,
        }
    }

    /// The uuid, if nothing speaks against it.
    #[must_use]
    pub fn clean(self) -> Option<Uuid> {
        match self {
            Self::Clean(uuid) => Some(uuid),
            Self::Suspect { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const OWN: Uuid = Uuid::from_u128(1);
    const RECEIVED: Uuid = Uuid::from_u128(2);

    /// A read-only snapshot, made in transaction 100 of what last changed in transaction 90.
    fn made() -> SubvolumeInfo {
        SubvolumeInfo {
            id: 300,
            uuid: OWN,
            parent_uuid: Some(Uuid::from_u128(3)),
            received_uuid: None,
            read_only: true,
            generation: 100,
            ctransid: 90,
            otransid: 100,
            stransid: 0,
            rtransid: 0,
            otime: SystemTime::UNIX_EPOCH,
            rtime: None,
        }
    }

    /// The same of a partial that was marked as received in transaction 95.
    fn received() -> SubvolumeInfo {
        SubvolumeInfo {
            received_uuid: Some(RECEIVED),
            stransid: 7,
            rtransid: 95,
            rtime: Some(SystemTime::UNIX_EPOCH),
            ..made()
        }
    }

    fn changed(settled: u64, changed: u64) -> Suspicion {
        Suspicion::Changed { settled, changed }
    }

    #[test]
    fn the_generations_tell_clean_from_suspect() {
        let clean = Identity::Clean;
        let suspect = |uuid, because| Identity::Suspect { uuid, because };
        let writable = Suspicion::Writable;
        for (case, info, identity) in [
            ("made of settled content", made(), clean(OWN)),
            (
                "made in the transaction of the last change",
                SubvolumeInfo {
                    ctransid: 100,
                    ..made()
                },
                clean(OWN),
            ),
            (
                "changed after it was made",
                SubvolumeInfo {
                    ctransid: 101,
                    ..made()
                },
                suspect(OWN, changed(100, 101)),
            ),
            (
                "a later generation alone is the kernel's bookkeeping",
                SubvolumeInfo {
                    generation: 200,
                    ..made()
                },
                clean(OWN),
            ),
            ("received", received(), clean(RECEIVED)),
            (
                "marked in the transaction of the last change",
                SubvolumeInfo {
                    ctransid: 95,
                    ..received()
                },
                clean(RECEIVED),
            ),
            (
                "changed after it was marked, snapshotted later still",
                SubvolumeInfo {
                    ctransid: 96,
                    ..received()
                },
                suspect(RECEIVED, changed(95, 96)),
            ),
            (
                "marked in place, as btrfs receive does",
                SubvolumeInfo {
                    otransid: 50,
                    ..received()
                },
                clean(RECEIVED),
            ),
            (
                "changed after it was marked in place",
                SubvolumeInfo {
                    otransid: 50,
                    ctransid: 120,
                    ..received()
                },
                suspect(RECEIVED, changed(95, 120)),
            ),
            (
                "writable",
                SubvolumeInfo {
                    read_only: false,
                    ..made()
                },
                suspect(OWN, writable),
            ),
            (
                "received and made writable",
                SubvolumeInfo {
                    read_only: false,
                    ..received()
                },
                suspect(RECEIVED, writable),
            ),
        ] {
            assert_eq!(Identity::of(&info), identity, "{case}");
        }
    }
}
