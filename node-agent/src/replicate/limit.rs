//! Bandwidth limits as people write them.

use std::num::NonZeroU64;

/// Multipliers by suffix, as Kubernetes writes quantities.
const SUFFIXES: [(&str, u64); 9] = [
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("k", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("", 1),
];

/// Reads a number of bytes such as `50Mi`.
pub(super) fn parse(text: &str) -> Result<NonZeroU64, String> {
    SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| {
            let number: u64 = text.strip_suffix(suffix)?.parse().ok()?;
            NonZeroU64::new(number.checked_mul(*factor)?)
        })
        .ok_or_else(|| "bytes a second, such as 50Mi or 1G, and at least 1, would be right".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_written_and_nothing_else_is() {
        let read = |text| parse(text).ok().map(NonZeroU64::get);
        assert_eq!(read("50Mi"), Some(50 << 20));
        assert_eq!(read("1G"), Some(1_000_000_000));
        assert_eq!(read("7"), Some(7));
        for wrong in ["", "0", "Mi", "-1", "1.5Gi", "5 Mi", "99999999999Ti"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
