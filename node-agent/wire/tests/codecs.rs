//! What must hold for every codec, and for payloads that lie.
#![allow(clippy::unwrap_used, clippy::panic)]

use icbd_wire::data::{
    BlockError, BlockHash, BlockLength, Codec, Compressor, Data, Decompressor, Failure,
    FailureCode, MAX_BLOCK,
};
use proptest::prelude::*;

fn codecs() -> impl Strategy<Value = Codec> {
    prop::sample::select(Codec::ALL.to_vec())
}

/// Blocks from compressible to not, short ones most of the time.
fn blocks() -> impl Strategy<Value = Vec<u8>> {
    let sizes = prop_oneof![9 => 1..4096usize, 1 => 1..=MAX_BLOCK];
    (sizes, 1..=256u16, any::<u64>()).prop_map(|(len, letters, seed)| noise(len, letters, seed))
}

/// `len` bytes of which there are `letters` different ones, by a xorshift generator.
fn noise(len: usize, letters: u16, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 32) % u64::from(letters)) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_sealed_opens_to_the_same_bytes_and_never_grows(
        blocks in proptest::collection::vec((codecs(), blocks()), 1..6),
    ) {
        // One pair for all: what a codec leaves behind must not show in the next block.
        let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
        for (codec, raw) in &blocks {
            let data = compressor.seal(*codec, raw).unwrap();
            prop_assert!(data.payload.len() <= raw.len());
            prop_assert!(data.codec == *codec || data.codec == Codec::None);
            prop_assert_eq!(decompressor.open(&data).unwrap(), &raw[..]);
        }
    }

    #[test]
    fn a_payload_cut_short_does_not_open(
        codec in codecs(), raw in blocks(), cut in any::<prop::sample::Index>(),
    ) {
        let mut compressor = Compressor::new();
        let data = compressor.seal(codec, &raw).unwrap();
        let cut = Data { payload: &data.payload[..cut.index(data.payload.len())], ..data };
        prop_assert!(Decompressor::new().open(&cut).is_err());
    }

    #[test]
    fn a_flipped_bit_never_yields_other_bytes(
        codec in codecs(), raw in blocks(), at in any::<prop::sample::Index>(), bit in 0..8u8,
    ) {
        let mut compressor = Compressor::new();
        let data = compressor.seal(codec, &raw).unwrap();
        let mut payload = data.payload.to_vec();
        payload[at.index(data.payload.len())] ^= 1 << bit;
        // Some formats have bits that mean nothing; all others must be noticed.
        if let Ok(opened) = Decompressor::new().open(&Data { payload: &payload, ..data }) {
            prop_assert_eq!(opened, &raw[..]);
        }
    }

    #[test]
    fn a_block_that_lies_about_its_length_does_not_open(
        codec in codecs(), raw in blocks(), claim in 0..=MAX_BLOCK as u32 + 1,
    ) {
        prop_assume!(claim as usize != raw.len());
        let mut compressor = Compressor::new();
        let data = compressor.seal(codec, &raw).unwrap();
        let lie = Data { raw_len: claim, ..data };
        prop_assert!(Decompressor::new().open(&lie).is_err());
    }

    #[test]
    fn no_payload_makes_a_decoder_panic(
        codec in codecs(), payload in proptest::collection::vec(any::<u8>(), 0..2000),
        raw_len in 0..=u32::MAX,
    ) {
        let hash = BlockHash::from([0; 16]);
        let mut decompressor = Decompressor::new();
        for raw_len in [raw_len, raw_len % 4096] {
            let data = Data { codec, raw_len, hash, payload: &payload };
            prop_assert!(decompressor.open(&data).is_err());
        }
    }
}

#[test]
fn every_codec_shrinks_what_can_be_shrunk() {
    for codec in [Codec::Snappy, Codec::Lz4, Codec::Zlib, Codec::Zstd] {
        let mut compressor = Compressor::new();
        for seed in [1, 2] {
            let raw = noise(MAX_BLOCK, 4, seed);
            let data = compressor.seal(codec, &raw).unwrap();
            assert_eq!(data.codec, codec);
            assert!(
                data.payload.len() < raw.len() * 3 / 4,
                "{codec}: {}",
                data.payload.len()
            );
            assert_eq!(Decompressor::new().open(&data).unwrap(), raw);
        }
    }
}

#[test]
fn what_cannot_be_shrunk_goes_as_it_is_without_a_copy() {
    let raw = noise(MAX_BLOCK, 256, 1);
    let mut compressor = Compressor::new();
    for codec in Codec::ALL {
        let data = compressor.seal(codec, &raw).unwrap();
        assert_eq!(data.codec, Codec::None, "{codec}");
        assert_eq!(data.payload.as_ptr(), raw.as_ptr(), "{codec}");
    }
    let data = compressor.seal(Codec::None, &raw).unwrap();
    assert_eq!(
        Decompressor::new().open(&data).unwrap().as_ptr(),
        raw.as_ptr()
    );
}

#[test]
fn a_block_must_have_a_length_that_a_frame_can_carry() {
    let mut compressor = Compressor::new();
    let too_long = vec![0; MAX_BLOCK + 1];
    assert_eq!(compressor.seal(Codec::None, &[]), Err(BlockLength(0)));
    assert_eq!(
        compressor.seal(Codec::Lz4, &too_long),
        Err(BlockLength(MAX_BLOCK + 1))
    );
    assert!(compressor.seal(Codec::Lz4, &too_long[1..]).is_ok());
}

#[test]
fn a_compression_bomb_stops_at_the_length_that_was_claimed() {
    // A payload that really holds 1 MiB, in a block that claims the most its header may, and less.
    let raw = vec![0; MAX_BLOCK];
    for codec in [Codec::Snappy, Codec::Lz4, Codec::Zlib, Codec::Zstd] {
        let (mut compressor, mut decompressor) = (Compressor::new(), Decompressor::new());
        let data = compressor.seal(codec, &raw).unwrap();
        decompressor.open(&data).unwrap(); // its buffer is now as large as it gets
        for raw_len in [1, 4096, MAX_BLOCK as u32 - 1] {
            let error = decompressor.open(&Data { raw_len, ..data }).unwrap_err();
            assert!(
                matches!(error, BlockError::Corrupt { .. }),
                "{codec} {raw_len}: {error}"
            );
        }
    }
}

#[test]
fn a_payload_with_something_behind_it_does_not_open() {
    let raw = noise(5000, 4, 1);
    for codec in Codec::ALL {
        let mut compressor = Compressor::new();
        let data = compressor.seal(codec, &raw).unwrap();
        for tail in [0, 255] {
            let payload = [data.payload, &[tail]].concat();
            let longer = Data {
                payload: &payload,
                ..data
            };
            assert!(Decompressor::new().open(&longer).is_err(), "{codec} {tail}");
        }
    }
}

#[test]
fn other_bytes_than_were_sealed_are_a_hash_mismatch() {
    let data = Data {
        codec: Codec::None,
        raw_len: 3,
        hash: BlockHash::of(b"one"),
        payload: b"two",
    };
    let error = Decompressor::new().open(&data).unwrap_err();
    assert_eq!(Failure::from(&error).code, FailureCode::HashMismatch);
}
