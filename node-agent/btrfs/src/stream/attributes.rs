//! A command's payload taken apart into attributes, each at most once, and the typed ways to take
//! one out. Which command takes which attributes is in `parse.rs`.

use uuid::Uuid;

use super::command::Timestamp;
use super::{Attribute, MAX_FILE_SIZE, NameError, Problem, TreePath, Version};

const SLOTS: usize = Attribute::ALL.len() + 1;

/// The attributes of one command that have not been taken yet.
pub(super) struct Attributes<'a> {
    values: [Option<&'a [u8]>; SLOTS],
}

impl<'a> Attributes<'a> {
    pub(super) fn parse(payload: &'a [u8], version: Version) -> Result<Attributes<'a>, Problem> {
        let mut attributes = Attributes {
            values: [None; SLOTS],
        };
        let mut rest = payload;
        while !rest.is_empty() {
            let cut = || Problem::CutAttribute(payload.len() - rest.len());
            let (number, after) = rest.split_first_chunk().ok_or_else(cut)?;
            let number = u16::from_le_bytes(*number);
            let attribute =
                Attribute::from_number(number, version).ok_or(Problem::UnknownAttribute(number))?;
            let value;
            if attribute == Attribute::Data && version >= Version::V2 {
                (value, rest) = (after, &[]);
            } else {
                let (length, after) = after.split_first_chunk().ok_or_else(cut)?;
                let length = usize::from(u16::from_le_bytes(*length));
                (value, rest) = after.split_at_checked(length).ok_or_else(cut)?;
            }
            if attributes.values[attribute as usize]
                .replace(value)
                .is_some()
            {
                return Err(Problem::Repeated(attribute));
            }
        }
        Ok(attributes)
    }

    /// Refuses whatever the command did not take.
    pub(super) fn finish(self) -> Result<(), Problem> {
        let left = Attribute::ALL
            .iter()
            .find(|&&a| self.values[a as usize].is_some());
        left.map_or(Ok(()), |&attribute| Err(Problem::Unexpected(attribute)))
    }

    pub(super) fn bytes(&mut self, attribute: Attribute) -> Result<&'a [u8], Problem> {
        self.optional(attribute).ok_or(Problem::Missing(attribute))
    }

    pub(super) fn optional(&mut self, attribute: Attribute) -> Option<&'a [u8]> {
        self.values[attribute as usize].take()
    }

    /// Between 1 and `most` bytes without a NUL, for what the kernel takes as a string.
    pub(super) fn string(
        &mut self,
        attribute: Attribute,
        most: usize,
        wanted: &'static str,
    ) -> Result<&'a [u8], Problem> {
        let value = self.bytes(attribute)?;
        if value.is_empty() || value.len() > most {
            return Err(Problem::Size {
                attribute,
                length: value.len(),
                wanted,
            });
        }
        if value.contains(&0) {
            return Err(Problem::Nul(attribute));
        }
        Ok(value)
    }

    pub(super) fn u64(&mut self, attribute: Attribute) -> Result<u64, Problem> {
        self.bytes(attribute)
            .and_then(|v| fixed(attribute, v, "8"))
            .map(u64::from_le_bytes)
    }

    pub(super) fn u32(&mut self, attribute: Attribute) -> Result<u32, Problem> {
        self.bytes(attribute)
            .and_then(|v| fixed(attribute, v, "4"))
            .map(u32::from_le_bytes)
    }

    pub(super) fn optional_u32(&mut self, attribute: Attribute) -> Result<Option<u32>, Problem> {
        let value = self.optional(attribute).map(|v| fixed(attribute, v, "4"));
        Ok(value.transpose()?.map(u32::from_le_bytes))
    }

    /// An owner or group. All ones is no id: chown(2) takes it for "leave as it is".
    pub(super) fn id(&mut self, attribute: Attribute) -> Result<u32, Problem> {
        match self.narrow(attribute)? {
            u32::MAX => {
                let wanted = "less than 2^32 - 1";
                Err(Problem::Value {
                    attribute,
                    value: u32::MAX.into(),
                    wanted,
                })
            }
            id => Ok(id),
        }
    }

    /// A number that is 64 bits wide on the wire and 32 in the kernel, as modes and devices are.
    pub(super) fn narrow(&mut self, attribute: Attribute) -> Result<u32, Problem> {
        let value = self.u64(attribute)?;
        let wanted = "less than 2^32";
        u32::try_from(value).map_err(|_| Problem::Value {
            attribute,
            value,
            wanted,
        })
    }

    pub(super) fn uuid(&mut self, attribute: Attribute) -> Result<Uuid, Problem> {
        self.bytes(attribute)
            .and_then(|v| fixed(attribute, v, "16"))
            .map(Uuid::from_bytes)
    }

    pub(super) fn timestamp(&mut self, attribute: Attribute) -> Result<Timestamp, Problem> {
        let value: [u8; 12] = fixed(attribute, self.bytes(attribute)?, "12")?;
        let (seconds, nanoseconds) = value.split_at(8);
        let seconds = i64::from_le_bytes(fixed(attribute, seconds, "8")?);
        let nanoseconds = u32::from_le_bytes(fixed(attribute, nanoseconds, "4")?);
        if nanoseconds >= 1_000_000_000 {
            let wanted = "less than a second in nanoseconds";
            return Err(Problem::Value {
                attribute,
                value: nanoseconds.into(),
                wanted,
            });
        }
        Ok(Timestamp {
            seconds,
            nanoseconds,
        })
    }

    pub(super) fn optional_timestamp(
        &mut self,
        attribute: Attribute,
    ) -> Result<Option<Timestamp>, Problem> {
        match self.values[attribute as usize] {
            Some(_) => self.timestamp(attribute).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn path(&mut self, attribute: Attribute) -> Result<TreePath<'a>, Problem> {
        checked(attribute, self.bytes(attribute)?, TreePath::new)
    }

    pub(super) fn name(&mut self, attribute: Attribute) -> Result<TreePath<'a>, Problem> {
        checked(attribute, self.bytes(attribute)?, TreePath::single)
    }

    /// A file offset, checked to leave room for `length` bytes.
    pub(super) fn offset(&mut self, attribute: Attribute, length: u64) -> Result<u64, Problem> {
        let offset = self.u64(attribute)?;
        match offset.checked_add(length) {
            Some(end) if end <= MAX_FILE_SIZE => Ok(offset),
            _ => Err(Problem::Range { offset, length }),
        }
    }
}

fn fixed<const N: usize>(
    attribute: Attribute,
    value: &[u8],
    wanted: &'static str,
) -> Result<[u8; N], Problem> {
    let length = value.len();
    value.try_into().map_err(|_| Problem::Size {
        attribute,
        length,
        wanted,
    })
}

fn checked<'a>(
    attribute: Attribute,
    bytes: &'a [u8],
    check: fn(&'a [u8]) -> Result<TreePath<'a>, NameError>,
) -> Result<TreePath<'a>, Problem> {
    check(bytes).map_err(|error| {
        // Enough of it to recognise, for a path that is too long is long.
        let path = bytes[..bytes.len().min(300)].escape_ascii().to_string();
        Problem::Path {
            attribute,
            path,
            error,
        }
    })
}
