//! Any bytes as a compressed extent: it becomes as many bytes as it says, or nothing. What a damaged
//! one leaves behind does not show in the next.
#![no_main]

use std::io::Write;

use icbd_btrfs::receive::decode;
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Compression, Encoded, Reader, TreePath, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[algorithm, lengths @ ..], data)) = bytes.split_first_chunk::<10>() else {
        return;
    };
    let number = |[a, b, c]: [u8; 3]| u64::from(u32::from_le_bytes([a, b, c, 0]));
    let [a, b, c, d, e, f, g, h, i] = lengths;
    let any = Encoded {
        compression: [
            Compression::Zlib,
            Compression::Zstd,
            Compression::Lzo { sector: 4096 },
        ][usize::from(algorithm % 3)],
        data,
        unencoded_len: number([a, b, c]),
        unencoded_offset: number([d, e, f]),
        file_len: number([g, h, i]),
    };
    if !can_be_read(any) {
        return;
    }
    let (zlib, zstd) = (zlib(data), zstd::stream::encode_all(data, 1).unwrap());
    let good = |compression, packed| Encoded {
        compression,
        data: packed,
        unencoded_len: data.len() as u64,
        unencoded_offset: 0,
        file_len: data.len() as u64,
    };
    let decoded = decode(&[
        any,
        good(Compression::Zlib, &zlib),
        any,
        good(Compression::Zstd, &zstd),
        any,
    ]);
    let [first, zlib, second, zstd, third] = &decoded[..] else {
        unreachable!("as many as there were");
    };
    assert_eq!(zlib.as_ref().unwrap(), data);
    assert_eq!(zstd.as_ref().unwrap(), data);
    for again in [second, third] {
        assert_eq!(again.as_ref().ok(), first.as_ref().ok());
    }
    if let Ok(first) = first {
        assert_eq!(first.len() as u64, any.file_len);
    }
});

/// Whether a stream can say this.
fn can_be_read(encoded: Encoded<'_>) -> bool {
    let mut encoder = Encoder::new(Version::V2);
    encoder.command(&Command::EncodedWrite {
        path: TreePath::new(b"file").unwrap(),
        offset: 0,
        encoded,
    });
    let mut reader = Reader::begin(encoder.bytes()).unwrap().unwrap();
    reader.next_command().is_ok()
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
