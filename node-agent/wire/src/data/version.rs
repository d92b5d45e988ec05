//! The versions of the data protocol and how two agents agree on one.
//! What a version changes is written here, and only here.

/// A version of the data protocol. The enum is its own changelog: each variant says what is new.
///
/// New fields in existing messages need no new version, since readers skip what they do not know.
/// New kinds of frames, phases, modes or rules do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum ProtocolVersion {
    /// Handshake with resume position; stream mode; codecs none, snappy, lz4, zlib and zstd;
    /// frames Data, Heartbeat, End, Ack, Done and Abort.
    V1 = 1,
}

impl ProtocolVersion {
    /// The oldest version that this build speaks.
    pub const OLDEST: Self = Self::V1;
    /// The newest version that this build speaks.
    pub const NEWEST: Self = Self::V1;

    /// The number that stands for the version on the wire.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The version with this number, if this build speaks it.
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            _ => None,
        }
    }
}

/// The versions that an agent speaks: every one from `oldest` to `newest`. They are numbers, for
/// the other agent may be newer than this build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The lowest version number.
    pub oldest: u32,
    /// The highest version number.
    pub newest: u32,
}

impl VersionRange {
    /// What this build speaks.
    pub const OURS: Self = Self {
        oldest: ProtocolVersion::OLDEST as u32,
        newest: ProtocolVersion::NEWEST as u32,
    };

    /// The newest version that both this range and this build hold.
    pub fn newest_common(self) -> Option<ProtocolVersion> {
        let version = ProtocolVersion::from_number(self.newest.min(Self::OURS.newest))?;
        self.contains(version).then_some(version)
    }

    /// Whether the range holds this version.
    pub fn contains(self, version: ProtocolVersion) -> bool {
        (self.oldest..=self.newest).contains(&version.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_peer_that_still_speaks_ours_gets_our_newest() {
        let newer = VersionRange {
            oldest: 1,
            newest: 9,
        };
        assert_eq!(newer.newest_common(), Some(ProtocolVersion::NEWEST));
    }

    #[test]
    fn ranges_that_do_not_meet_have_nothing_in_common() {
        for (oldest, newest) in [(0, 0), (2, 9), (9, 1), (2, 1)] {
            assert_eq!(
                VersionRange { oldest, newest }.newest_common(),
                None,
                "{oldest}..={newest}"
            );
        }
    }
}
