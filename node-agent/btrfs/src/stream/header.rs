//! The fixed bytes that stand before a stream and before each of its commands.

use super::{COMMAND_HEADER, Kind, MAGIC, Problem, STREAM_HEADER, Version};

/// The number of the command that turns on fs-verity, from version 3 on.
const ENABLE_VERITY: u16 = 26;

/// The version that a stream's header tells.
pub(super) fn version(header: &[u8; STREAM_HEADER]) -> Result<Version, Problem> {
    let [magic @ .., v0, v1, v2, v3] = *header;
    if magic != *MAGIC {
        return Err(Problem::NotASendStream);
    }
    let number = u32::from_le_bytes([v0, v1, v2, v3]);
    Version::from_number(number).ok_or(Problem::Version(number))
}

/// What a command's header tells.
pub(super) struct CommandHeader {
    pub(super) kind: Kind,
    /// Bytes of the payload, within the cap.
    pub(super) length: usize,
    pub(super) crc: u32,
}

impl CommandHeader {
    /// Takes a header apart; the payload may have up to `cap` bytes.
    ///
    /// # Errors
    /// The problem, with the command's kind if that is not it.
    pub(super) fn parse(
        header: [u8; COMMAND_HEADER],
        version: Version,
        cap: usize,
    ) -> Result<Self, (Option<Kind>, Problem)> {
        let [l0, l1, l2, l3, n0, n1, c0, c1, c2, c3] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let number = u16::from_le_bytes([n0, n1]);
        let kind = Kind::from_number(number, version).ok_or(match number {
            ENABLE_VERITY => (None, Problem::Verity),
            _ => (None, Problem::UnknownCommand(number)),
        })?;
        match usize::try_from(length) {
            Ok(length) if length <= cap => Ok(Self {
                kind,
                length,
                crc: u32::from_le_bytes([c0, c1, c2, c3]),
            }),
            _ => {
                let length = length.into();
                Err((Some(kind), Problem::TooLong { length, cap }))
            }
        }
    }
}
