//! Any payload in any codec opens to the length it claims or not at all; any block that is sealed
//! opens to itself. The first five bytes choose codec and claimed length.
#![no_main]

use icbd_wire::data::{BlockHash, Codec, Compressor, Data, Decompressor, MAX_BLOCK};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&[number, l0, l1, l2, l3], payload)) = input.split_first_chunk() else {
        return;
    };
    let Some(codec) = Codec::from_number(number % 5) else {
        return;
    };
    let mut decompressor = Decompressor::new();

    let claimed = u32::from_le_bytes([l0, l1, l2, l3]);
    for raw_len in [claimed, claimed % (MAX_BLOCK as u32 + 1)] {
        let lie = Data {
            codec,
            raw_len,
            hash: BlockHash::from([0; 16]),
            payload,
        };
        assert!(decompressor.open(&lie).is_err());
    }

    let mut compressor = Compressor::new();
    if let Ok(data) = compressor.seal(codec, payload) {
        assert!(data.payload.len() <= payload.len());
        assert_eq!(decompressor.open(&data), Ok(payload));
    }
});
