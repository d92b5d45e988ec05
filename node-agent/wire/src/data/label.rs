//! Names that come from the wire and end up in paths: DNS labels, checked when they are made.

use std::fmt;
use std::str::FromStr;

/// A DNS label (RFC 1123) of at most `MAX` bytes: lower-case letters, digits and `-`, and neither
/// the first nor the last character a `-`. It is therefore safe as one component of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label<const MAX: usize>(String);

/// Why a text is not a [`Label`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// It is empty or too long.
    #[error("name has {len} bytes, must have 1 to {max}")]
    Length {
        /// Its length in bytes.
        len: usize,
        /// The longest one allowed.
        max: usize,
    },
    /// A character is not allowed where it stands.
    #[error("name {name:?} is not a DNS label: lower-case letters, digits and inner '-' only")]
    Character {
        /// The name as it was given.
        name: String,
    },
}

impl<const MAX: usize> Label<MAX> {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for Label<MAX> {
    type Error = LabelError;

    fn try_from(name: String) -> Result<Self, LabelError> {
        let len = name.len();
        if len == 0 || len > MAX {
            return Err(LabelError::Length { len, max: MAX });
        }
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if !name.bytes().all(allowed) || name.starts_with('-') || name.ends_with('-') {
            return Err(LabelError::Character { name });
        }
        Ok(Self(name))
    }
}

impl<const MAX: usize> FromStr for Label<MAX> {
    type Err = LabelError;

    fn from_str(name: &str) -> Result<Self, LabelError> {
        name.to_owned().try_into()
    }
}

impl<const MAX: usize> fmt::Display for Label<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_a_directory_is_not_a_label() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a\0b",
            "-a",
            "a-",
            "A",
            "ä",
            "a.b",
            "a b",
            "abcdefghi",
        ] {
            assert!(name.parse::<Label<8>>().is_err(), "{name:?}");
        }
        for name in ["a", "0", "a-b", "a--b", "abcdefgh"] {
            assert_eq!(name.parse::<Label<8>>().unwrap().as_str(), name);
        }
    }
}
