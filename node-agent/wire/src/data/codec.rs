//! The codecs a block may be compressed with, by name and number, and sets of them.
//! The compressing itself is in `compress.rs` and `decompress.rs`.

use std::fmt;
use std::str::FromStr;

/// How a block's payload is compressed. The number is what stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The payload is the raw block.
    None = 0,
    /// Snappy's raw format.
    Snappy = 1,
    /// LZ4's block format.
    Lz4 = 2,
    /// A zlib stream (RFC 1950).
    Zlib = 3,
    /// A Zstandard frame (RFC 8878).
    Zstd = 4,
}

impl Codec {
    /// Every codec, in the order of their numbers.
    pub const ALL: [Self; 5] = [Self::None, Self::Snappy, Self::Lz4, Self::Zlib, Self::Zstd];

    /// The number that stands for the codec on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// The codec with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The codec's name in command lines and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Snappy => "snappy",
            Self::Lz4 => "lz4",
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No codec has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown codec {0:?}: none, snappy, lz4, zlib or zstd")]
pub struct UnknownCodec(String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(name: &str) -> Result<Self, UnknownCodec> {
        let known = Self::ALL.into_iter().find(|codec| codec.name() == name);
        known.ok_or_else(|| UnknownCodec(name.to_owned()))
    }
}

/// A set of codecs. [`Codec::None`] is always in it: a block that does not shrink is sent as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CodecSet(u32);

impl CodecSet {
    /// Every codec of this build.
    pub const ALL: Self = Self((1 << Codec::ALL.len()) - 1);

    /// A set of these codecs, and [`Codec::None`].
    pub fn of(codecs: impl IntoIterator<Item = Codec>) -> Self {
        Self(
            codecs
                .into_iter()
                .fold(1, |bits, codec| bits | 1 << codec.number()),
        )
    }

    /// Whether blocks may come in this codec.
    pub fn contains(self, codec: Codec) -> bool {
        self.0 & 1 << codec.number() != 0
    }

    /// The codecs that both sets hold.
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether `other` holds every codec of this set.
    pub fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// The set as it stands on the wire: bit n is codec n.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// The set that these bits stand for; codecs that this build does not know are left out.
    pub fn from_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0 | 1)
    }

    /// The codecs in the set, in the order of their numbers.
    pub fn iter(self) -> impl Iterator<Item = Codec> {
        Codec::ALL
            .into_iter()
            .filter(move |codec| self.contains(*codec))
    }
}

impl fmt::Debug for CodecSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_is_found_by_its_number_and_by_its_name() {
        for codec in Codec::ALL {
            assert_eq!(Codec::from_number(codec.number()), Some(codec));
            assert_eq!(codec.name().parse(), Ok(codec));
        }
        assert_eq!(Codec::from_number(5), None);
        assert!("gzip".parse::<Codec>().is_err());
    }

    #[test]
    fn none_is_in_every_set() {
        for set in [CodecSet::of([]), CodecSet::from_bits(0), CodecSet::ALL] {
            assert!(set.contains(Codec::None));
        }
    }

    #[test]
    fn codecs_of_the_future_are_left_out() {
        assert_eq!(CodecSet::from_bits(u32::MAX), CodecSet::ALL);
        assert_eq!(
            CodecSet::from_bits(1 << 2 | 1 << 9),
            CodecSet::of([Codec::Lz4])
        );
    }
}
