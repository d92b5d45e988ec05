//! What an image directory holds, told from its entries' names and the kernel's subvolume info.
//! The records beside the snapshots (`.meta`) are the agent's; what to do about anything here is decided elsewhere.

use std::fmt;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::error::Error;
use crate::subvolume::{Subvolume, SubvolumeInfo};

/// The name of the writable subvolume that snapshots are taken of.
pub const LIVE: &str = "live";

/// The number that is a snapshot's name: 1 or more, in decimal, without leading zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotNumber(NonZeroU64);

impl SnapshotNumber {
    /// `None` for 0.
    #[must_use]
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// `None` for any name but the one that this number has.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        canonical(name).and_then(Self::new)
    }

    /// As an integer.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The name that this snapshot has while it is arriving.
    #[must_use]
    pub fn partial_name(self) -> String {
        format!(".partial-{self}")
    }

    /// The name of the partial's checkpoint `index`.
    #[must_use]
    pub fn checkpoint_name(self, index: u64) -> String {
        format!(".checkpoint-{self}-{index}")
    }
}

/// The snapshot's name.
impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an image directory holds; each list in the order of the numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The read-only subvolumes named by a number: the image's snapshots.
    pub snapshots: Vec<(SnapshotNumber, SubvolumeInfo)>,
    /// The writable subvolume `live`. One with a received uuid was a replica once.
    pub live: Option<SubvolumeInfo>,
    /// The subvolumes `.partial-<number>`: snapshots still arriving.
    pub partials: Vec<(SnapshotNumber, SubvolumeInfo)>,
    /// The subvolumes `.checkpoint-<number>-<index>`: where an arriving snapshot can go on.
    pub checkpoints: Vec<(SnapshotNumber, u64, SubvolumeInfo)>,
    /// What has a name of one of these kinds and is none, or a number in a form that is not used.
    pub not_counted: Vec<NotCounted>,
}

/// An entry that looks like a part of the image and is not one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotCounted {
    /// Its name.
    pub name: Vec<u8>,
    /// Why it does not count.
    pub reason: NotCountedReason,
}

/// Why an entry does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCountedReason {
    /// Snapshots are read-only.
    #[error("it is writable")]
    Writable,
    /// `live` is writable.
    #[error("it is read-only")]
    ReadOnly,
    /// A file, or an ordinary directory.
    #[error("it is not a btrfs subvolume")]
    NotSubvolume,
    /// Another file system or subvolume is mounted there.
    #[error("something is mounted on it")]
    Mounted,
    /// Only digits, but 0, too large, or with leading zeros.
    #[error("snapshots are named 1, 2, 3 and so on, without leading zeros")]
    NotNumber,
    /// The kernel cannot tell what it is.
    #[error("{0}")]
    Unreadable(Error),
}

/// Looks at what the image directory `dir` holds. An entry that vanishes meanwhile is left out.
///
/// # Errors
/// The directory cannot be listed.
pub fn scan(dir: impl AsFd) -> Result<Inventory, Error> {
    let dir = dir.as_fd();
    let mut inventory = Inventory::default();
    for name in names(dir)? {
        if let Some(role) = Role::of(&name) {
            inventory.add(dir, name, role);
        }
    }
    let Inventory {
        snapshots,
        live: _,
        partials,
        checkpoints,
        not_counted,
    } = &mut inventory;
    snapshots.sort_unstable_by_key(|(number, _)| *number);
    partials.sort_unstable_by_key(|(number, _)| *number);
    checkpoints.sort_unstable_by_key(|(number, index, _)| (*number, *index));
    not_counted.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(inventory)
}

impl Inventory {
    fn add(&mut self, dir: BorrowedFd<'_>, name: Vec<u8>, role: Role) {
        let info = Subvolume::open(dir, &name).and_then(|subvolume| subvolume.info());
        let reason = match (role, info) {
            (
                _,
                Err(Error::System {
                    errno: Errno::NOENT,
                    ..
                }),
            ) => return,
            (Role::OddNumber, _) => NotCountedReason::NotNumber,
            (_, Err(error)) => NotCountedReason::of(error),
            (Role::Snapshot(number), Ok(info)) if info.read_only => {
                return self.snapshots.push((number, info));
            }
            (Role::Snapshot(_), Ok(_)) => NotCountedReason::Writable,
            (Role::Live, Ok(info)) if !info.read_only => {
                self.live = Some(info);
                return;
            }
            (Role::Live, Ok(_)) => NotCountedReason::ReadOnly,
            (Role::Partial(number), Ok(info)) => return self.partials.push((number, info)),
            (Role::Checkpoint(number, index), Ok(info)) => {
                return self.checkpoints.push((number, index, info));
            }
        };
        self.not_counted.push(NotCounted { name, reason });
    }
}

impl NotCountedReason {
    fn of(error: Error) -> Self {
        match error {
            Error::NotSubvolume { .. } | Error::NotBtrfs { .. } => Self::NotSubvolume,
            Error::OtherFileSystem { .. } => Self::Mounted,
            error => Self::Unreadable(error),
        }
    }
}

/// What an entry is by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Snapshot(SnapshotNumber),
    Live,
    Partial(SnapshotNumber),
    Checkpoint(SnapshotNumber, u64),
    /// Only digits, and no snapshot's name.
    OddNumber,
}

impl Role {
    /// `None` for a name that means nothing here.
    fn of(name: &[u8]) -> Option<Self> {
        if name == LIVE.as_bytes() {
            return Some(Self::Live);
        }
        if let Some(number) = name.strip_prefix(b".partial-") {
            return SnapshotNumber::from_name(number).map(Self::Partial);
        }
        if let Some(rest) = name.strip_prefix(b".checkpoint-") {
            let mut parts = rest.split(|byte| *byte == b'-');
            let number = SnapshotNumber::from_name(parts.next()?)?;
            let index = canonical(parts.next()?)?;
            return parts
                .next()
                .is_none()
                .then_some(Self::Checkpoint(number, index));
        }
        if !name.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(SnapshotNumber::from_name(name).map_or(Self::OddNumber, Self::Snapshot))
    }
}

/// The number of which `digits` is the one decimal form.
fn canonical(digits: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == digits).then_some(number)
}

/// The names in `dir`, read through a descriptor of its own, whose position is nobody else's.
fn names(dir: BorrowedFd<'_>) -> Result<Vec<Vec<u8>>, Error> {
    let failed = || Error::system("list", b"image directory");
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(dir, ".", flags, Mode::empty()).map_err(failed())?;
    let mut buffer = [MaybeUninit::uninit(); 8 << 10];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        names.push(entry.map_err(failed())?.file_name().to_bytes().to_vec());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(number: u64) -> SnapshotNumber {
        SnapshotNumber::new(number).unwrap()
    }

    #[test]
    fn names_mean_what_they_say() {
        for (name, role) in [
            ("1", Some(Role::Snapshot(number(1)))),
            (
                "18446744073709551615",
                Some(Role::Snapshot(number(u64::MAX))),
            ),
            ("18446744073709551616", Some(Role::OddNumber)),
            ("0", Some(Role::OddNumber)),
            ("01", Some(Role::OddNumber)),
            ("+1", None),
            ("-1", None),
            ("1 ", None),
            ("1a", None),
            ("live", Some(Role::Live)),
            ("Live", None),
            (".partial-7", Some(Role::Partial(number(7)))),
            (".partial-07", None),
            (".partial-0", None),
            (".partial-", None),
            (".checkpoint-7-0", Some(Role::Checkpoint(number(7), 0))),
            (".checkpoint-7-12", Some(Role::Checkpoint(number(7), 12))),
            (".checkpoint-7", None),
            (".checkpoint-7-01", None),
            (".checkpoint-7-1-1", None),
            (".meta", None),
            ("\u{661}", None),
        ] {
            assert_eq!(Role::of(name.as_bytes()), role, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_found_under_its_names(any in 1_u64.., index: u64) {
            let number = number(any);
            let role = |name: String| Role::of(name.as_bytes());
            prop_assert_eq!(role(number.to_string()), Some(Role::Snapshot(number)));
            prop_assert_eq!(role(number.partial_name()), Some(Role::Partial(number)));
            let checkpoint = Some(Role::Checkpoint(number, index));
            prop_assert_eq!(role(number.checkpoint_name(index)), checkpoint);
        }

        #[test]
        fn a_snapshot_has_one_name(name in "[0-9]{1,22}") {
            if let Some(number) = SnapshotNumber::from_name(name.as_bytes()) {
                prop_assert_eq!(number.to_string(), name);
            }
        }
    }
}
