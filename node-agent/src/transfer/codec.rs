//! Codecs as the operator and as the data protocol call them.

use icbd_wire::control;
use icbd_wire::data::Codec;

/// `Auto` is LZ4 in this version: no link is so fast that it costs more than it saves by much.
pub(super) fn chosen(wanted: control::Codec) -> Codec {
    match wanted {
        control::Codec::Auto | control::Codec::Lz4 => Codec::Lz4,
        control::Codec::None => Codec::None,
        control::Codec::Snappy => Codec::Snappy,
        control::Codec::Zlib => Codec::Zlib,
        control::Codec::Zstd => Codec::Zstd,
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
