//! Codecs as the operator, people and the data protocol call them.

use std::str::FromStr;

use icbd_wire::control;
use icbd_wire::data::{Codec, CodecSet, UnknownCodec};

/// Which codec a transfer is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodecChoice {
    /// Whatever gets most through, found out on the way.
    Auto,
    /// This one.
    Always(Codec),
}

impl CodecChoice {
    /// What to offer to the receiver.
    pub(crate) fn offered(self) -> CodecSet {
        match self {
            Self::Auto => CodecSet::of(super::source::AUTO),
            Self::Always(codec) => CodecSet::of([codec]),
        }
    }
}

impl From<control::Codec> for CodecChoice {
    fn from(wanted: control::Codec) -> Self {
        Self::Always(match wanted {
            control::Codec::Auto => return Self::Auto,
            control::Codec::None => Codec::None,
            control::Codec::Snappy => Codec::Snappy,
            control::Codec::Lz4 => Codec::Lz4,
            control::Codec::Zlib => Codec::Zlib,
            control::Codec::Zstd => Codec::Zstd,
        })
    }
}

impl FromStr for CodecChoice {
    type Err = UnknownCodec;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "auto" => Ok(Self::Auto),
            name => name.parse().map(Self::Always),
        }
    }
}

/// A codec as the operator calls it.
pub(super) fn named(codec: Codec) -> control::Codec {
    match codec {
        Codec::None => control::Codec::None,
        Codec::Snappy => control::Codec::Snappy,
        Codec::Lz4 => control::Codec::Lz4,
        Codec::Zlib => control::Codec::Zlib,
        Codec::Zstd => control::Codec::Zstd,
    }
}

/// A codec as people call it.
pub(crate) fn codec_name(codec: control::Codec) -> &'static str {
    match codec {
        control::Codec::Auto => "auto",
        control::Codec::None => Codec::None.name(),
        control::Codec::Snappy => Codec::Snappy.name(),
        control::Codec::Lz4 => Codec::Lz4.name(),
        control::Codec::Zlib => Codec::Zlib.name(),
        control::Codec::Zstd => Codec::Zstd.name(),
    }
}
