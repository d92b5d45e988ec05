//! Decompresses the extents of encoded writes. What comes out is never longer than the stream said,
//! and that never more than btrfs compresses at a time.

use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

use super::Refusal;
use crate::stream::{Compression, Encoded, MAX_ENCODED};

/// btrfs compresses with windows of at most 128 KiB (`ZSTD_BTRFS_MAX_WINDOWLOG`).
const MAX_WINDOW_LOG: u32 = 17;

/// Whether an extent is compressed in just the way that btrfs has, so that it is beyond doubt that the
/// kernel reads what [`Decoder`] does: a zlib stream with the largest window, a zstd frame, and either filled up
/// to whole blocks. Extents within the metadata are not.
pub(super) fn is_as_btrfs_writes(encoded: &Encoded<'_>) -> bool {
    let begins = match encoded.compression {
        Compression::Zlib => encoded.data.first() == Some(&0x78),
        Compression::Zstd => encoded.data.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]),
        Compression::Lzo { .. } => false,
    };
    begins && encoded.data.len().is_multiple_of(4096)
}

/// Keeps what decompressing needs from one extent to the next.
#[derive(Default)]
pub(super) struct Decoder {
    output: Vec<u8>,
    zlib: Option<Decompress>,
    zstd: Option<ZstdDecoder<'static>>,
}

impl Decoder {
    /// The bytes that `encoded` stands for in the file. As the kernel has it, an extent that
    /// decompresses to less than it claims goes on with zeros, and one that does to more is cut.
    pub(super) fn decode(&mut self, encoded: &Encoded<'_>) -> Result<&[u8], Refusal> {
        self.output.resize(MAX_ENCODED, 0);
        // The parser has checked that all of these lie within `MAX_ENCODED`.
        let unencoded_len = encoded.unencoded_len as usize;
        let start = encoded.unencoded_offset as usize;
        let end = start + encoded.file_len as usize;
        let decoded = match encoded.compression {
            Compression::Zlib => self.zlib(encoded.data, unencoded_len)?,
            Compression::Zstd => self.zstd(encoded.data, unencoded_len)?,
            Compression::Lzo { .. } => return Err(Refusal::Lzo),
        };
        // Of the extent before, or of what the decompressor used as room to work in.
        self.output[decoded..].fill(0);
        Ok(&self.output[start..end])
    }

    /// Decompresses to at most `length` bytes; how many these are.
    fn zlib(&mut self, data: &[u8], length: usize) -> Result<usize, Refusal> {
        let zlib = self.zlib.get_or_insert_with(|| Decompress::new(true));
        zlib.reset(true);
        let output = &mut self.output[..length];
        let status = zlib.decompress(data, output, FlushDecompress::Finish);
        // No more than `length`, which is a usize.
        let decoded = zlib.total_out() as usize;
        match status {
            Ok(Status::StreamEnd) => Ok(decoded),
            Ok(_) if decoded == length => Ok(decoded),
            Ok(_) | Err(_) => Err(Refusal::Decode("zlib")),
        }
    }

    /// Decompresses to at most `length` bytes; how many these are.
    fn zstd(&mut self, data: &[u8], length: usize) -> Result<usize, Refusal> {
        let damaged = |_| Refusal::Decode("zstd");
        let zstd = match &mut self.zstd {
            Some(zstd) => zstd,
            none => {
                let mut zstd = ZstdDecoder::new().map_err(damaged)?;
                zstd.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))
                    .map_err(damaged)?;
                none.insert(zstd)
            }
        };
        zstd.reinit().map_err(damaged)?;
        let mut input = InBuffer::around(data);
        let mut output = OutBuffer::around(&mut self.output[..length]);
        loop {
            let before = (input.pos(), output.pos());
            let more = zstd.run(&mut input, &mut output).map_err(damaged)?;
            if more == 0 || output.pos() == length {
                return Ok(output.pos());
            }
            if (input.pos(), output.pos()) == before {
                return Err(Refusal::Decode("zstd"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn decode(
        compression: Compression,
        data: &[u8],
        unencoded_len: u64,
    ) -> Result<Vec<u8>, Refusal> {
        let encoded = Encoded {
            compression,
            data,
            unencoded_len,
            unencoded_offset: 0,
            file_len: unencoded_len,
        };
        let mut decoder = Decoder::default();
        let once = decoder.decode(&encoded).map(<[u8]>::to_vec)?;
        assert_eq!(decoder.decode(&encoded).unwrap(), once, "the second time");
        Ok(once)
    }

    fn zlib(data: &[u8]) -> Vec<u8> {
        let mut encoder =
            flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(data, 3).unwrap()
    }

    fn text(length: usize) -> Vec<u8> {
        b"replicated, and replicated again. "
            .iter()
            .copied()
            .cycle()
            .take(length)
            .collect()
    }

    #[test]
    fn extents_come_back_padded_or_not() {
        let data = text(100_000);
        for (compression, mut packed) in [
            (Compression::Zlib, zlib(&data)),
            (Compression::Zstd, zstd(&data)),
        ] {
            assert_eq!(decode(compression, &packed, 100_000).unwrap(), data);
            packed.resize(packed.len().next_multiple_of(4096), 0);
            assert_eq!(decode(compression, &packed, 100_000).unwrap(), data);
        }
    }

    #[test]
    fn a_part_of_an_extent_is_cut_out_of_it() {
        let data = text(100_000);
        let packed = zstd(&data);
        let encoded = Encoded {
            compression: Compression::Zstd,
            data: &packed,
            unencoded_len: 100_000,
            unencoded_offset: 4096,
            file_len: 8192,
        };
        assert_eq!(
            Decoder::default().decode(&encoded).unwrap(),
            &data[4096..12288]
        );
    }

    #[test]
    fn less_than_claimed_ends_in_zeros_and_more_is_cut() {
        let data = text(5000);
        for (compression, packed) in [
            (Compression::Zlib, zlib(&data)),
            (Compression::Zstd, zstd(&data)),
        ] {
            let longer = decode(compression, &packed, 8192).unwrap();
            assert_eq!(
                (&longer[..5000], &longer[5000..]),
                (&data[..], &[0; 3192][..])
            );
            assert_eq!(decode(compression, &packed, 4096).unwrap(), &data[..4096]);
        }
    }

    #[test]
    fn a_bomb_stays_within_what_was_claimed() {
        let zeros = vec![0; 64 << 20];
        for (compression, packed) in [
            (Compression::Zlib, zlib(&zeros)),
            (Compression::Zstd, zstd(&zeros)),
        ] {
            let result = decode(compression, &packed, MAX_ENCODED as u64);
            // A frame may also be refused for a window that btrfs never uses.
            assert!(result.is_err() || result.unwrap() == zeros[..MAX_ENCODED]);
        }
    }

    #[test]
    fn what_does_not_decompress_is_refused() {
        let data = text(100_000);
        for (compression, packed) in [
            (Compression::Zlib, zlib(&data)),
            (Compression::Zstd, zstd(&data)),
        ] {
            for damaged in [
                &packed[..packed.len() / 2],
                b"",
                b"neither of them",
                &[0; 4096],
            ] {
                let result = decode(compression, damaged, 100_000);
                assert!(matches!(result, Err(Refusal::Decode(_))), "{result:?}");
            }
        }
        let lzo = decode(Compression::Lzo { sector: 4096 }, b"lzo", 4096);
        assert!(matches!(lzo, Err(Refusal::Lzo)));
    }
}
