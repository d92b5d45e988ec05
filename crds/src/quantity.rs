//! Sizes as users write them: `50Mi`, `2G`, `10%`.

use std::str::FromStr;

use thiserror::Error;

/// A size that is not one, with what would be.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{value:?} is not a size: {expected}")]
pub struct BadQuantity {
    value: String,
    expected: &'static str,
}

const UNITS: [(&str, u64); 8] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
];

/// Reads whole bytes with an optional unit: Ki, Mi, Gi, Ti (powers of 1024) or k, M, G, T (of 1000).
///
/// # Errors
/// Anything else, fractions included, and sizes beyond 2^64 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, BadQuantity> {
    let bad = || BadQuantity {
        value: text.to_owned(),
        expected: "a whole number of bytes, with Ki, Mi, Gi, Ti, k, M, G or T for larger units, such as 50Mi",
    };
    let (digits, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)))
        .unwrap_or((text, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(bad)
}

/// Space that a receiver keeps free: a share of the pool, or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreeSpace {
    /// Hundredths of the pool's capacity, 0 to 99.
    Percent(u8),
    /// Bytes.
    Bytes(u64),
}

impl FreeSpace {
    /// Bytes that must stay free in a pool of `capacity` bytes.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            // In 128 bits: no capacity overflows, and the result is below the capacity.
            FreeSpace::Percent(p) => (u128::from(capacity) * u128::from(p) / 100) as u64,
            FreeSpace::Bytes(b) => b,
        }
    }
}

impl FromStr for FreeSpace {
    type Err = BadQuantity;

    fn from_str(text: &str) -> Result<Self, BadQuantity> {
        let Some(percent) = text.strip_suffix('%') else {
            return parse_bytes(text).map(FreeSpace::Bytes);
        };
        match percent.parse::<u8>() {
            Ok(p) if p < 100 && percent.bytes().all(|b| b.is_ascii_digit()) => {
                Ok(FreeSpace::Percent(p))
            }
            _ => Err(BadQuantity {
                value: text.to_owned(),
                expected: "a share from 0% to 99%, or bytes such as 20Gi",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_in_both_families_of_units() {
        assert_eq!(parse_bytes("50Mi"), Ok(50 << 20));
        assert_eq!(parse_bytes("2G"), Ok(2_000_000_000));
        assert_eq!(parse_bytes("7"), Ok(7));
        assert_eq!("10%".parse(), Ok(FreeSpace::Percent(10)));
        assert_eq!("20Gi".parse(), Ok(FreeSpace::Bytes(20 << 30)));
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for bad in [
            "",
            "Mi",
            "-1",
            "+1",
            "1.5Gi",
            "1e3",
            "50 Mi",
            "99999999999Ti",
            "٣",
        ] {
            assert!(parse_bytes(bad).is_err(), "{bad:?}");
        }
        for bad in ["100%", "-1%", "%", "+5%"] {
            assert!(bad.parse::<FreeSpace>().is_err(), "{bad:?}");
        }
        assert!(
            parse_bytes("x")
                .unwrap_err()
                .to_string()
                .contains("such as 50Mi")
        );
    }

    proptest! {
        #[test]
        fn a_share_never_exceeds_its_whole(capacity: u64, p in 0u8..100) {
            prop_assert!(FreeSpace::Percent(p).of(capacity) <= capacity);
        }

        #[test]
        fn whole_bytes_come_back(n: u64) {
            prop_assert_eq!(parse_bytes(&n.to_string()), Ok(n));
        }
    }
}
