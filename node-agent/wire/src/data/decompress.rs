//! Opens sealed blocks: decompression into a buffer that the block's header has sized, then the
//! hash. Nothing a payload says can make it write or allocate more than [`MAX_BLOCK`].

use flate2::{Decompress, FlushDecompress, Status};

use super::{BlockHash, Codec, Data, MAX_BLOCK};

/// Why a sealed block cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The block claims to be longer than a block may be.
    #[error("block claims {claimed} raw bytes, at most {MAX_BLOCK} are allowed")]
    TooLong {
        /// The raw length that was claimed.
        claimed: u32,
    },
    /// The payload is not what its codec makes, or holds more bytes than the block claims.
    #[error(
        "payload of {payload} bytes does not decompress with {codec} to {raw_len} bytes: {reason}"
    )]
    Corrupt {
        /// The codec that the block names.
        codec: Codec,
        /// The length of the payload in bytes.
        payload: usize,
        /// The raw length that was claimed.
        raw_len: u32,
        /// What the codec said.
        reason: String,
    },
    /// The payload holds fewer bytes than the block claims.
    #[error("payload decompresses with {codec} to {got} bytes instead of {raw_len}")]
    Length {
        /// The codec that the block names.
        codec: Codec,
        /// The raw length that was claimed.
        raw_len: u32,
        /// The raw length that came out.
        got: usize,
    },
    /// The raw bytes are not those that the source sealed.
    #[error("block of {raw_len} bytes has hash {actual} instead of {claimed}")]
    Hash {
        /// The raw length.
        raw_len: u32,
        /// The hash that came with the block.
        claimed: BlockHash,
        /// The hash of what came out.
        actual: BlockHash,
    },
}

/// Opens blocks, reusing its buffer and each codec's tables. One for each thread.
pub struct Decompressor {
    scratch: Vec<u8>,
    snappy: snap::raw::Decoder,
    zlib: Option<Decompress>,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Decompressor {
    /// A decompressor for every codec; what a codec needs is allocated when it is first used.
    pub fn new() -> Self {
        Self {
            scratch: Vec::new(),
            snappy: snap::raw::Decoder::new(),
            zlib: None,
            zstd: None,
        }
    }

    /// The raw bytes of a block, after checking their length and hash. The answer borrows from the
    /// block's payload or from this decompressor; nothing is copied.
    ///
    /// # Errors
    /// If the payload does not decompress to exactly the claimed length, or its hash differs.
    pub fn open<'a>(&'a mut self, data: &Data<'a>) -> Result<&'a [u8], BlockError> {
        let Data {
            codec,
            raw_len,
            hash: claimed,
            payload,
        } = *data;
        if raw_len as usize > MAX_BLOCK {
            return Err(BlockError::TooLong { claimed: raw_len });
        }
        let raw = match codec {
            Codec::None => payload,
            _ => self.expand(codec, payload, raw_len)?,
        };
        if raw.len() != raw_len as usize {
            return Err(BlockError::Length {
                codec,
                raw_len,
                got: raw.len(),
            });
        }
        let actual = BlockHash::of(raw);
        if actual != claimed {
            return Err(BlockError::Hash {
                raw_len,
                claimed,
                actual,
            });
        }
        Ok(raw)
    }

    /// Decompresses into the scratch buffer, of which the codec sees `raw_len` bytes and no more.
    fn expand(&mut self, codec: Codec, payload: &[u8], raw_len: u32) -> Result<&[u8], BlockError> {
        let corrupt = |reason: String| BlockError::Corrupt {
            codec,
            payload: payload.len(),
            raw_len,
            reason,
        };
        let room = raw_len as usize;
        if self.scratch.len() < room {
            self.scratch.resize(room, 0);
        }
        let out = &mut self.scratch[..room];
        let got = match codec {
            Codec::None => return Err(corrupt("nothing to decompress".to_owned())),
            Codec::Snappy => self
                .snappy
                .decompress(payload, out)
                .map_err(|error| corrupt(error.to_string()))?,
            Codec::Lz4 => lz4_flex::block::decompress_into(payload, out)
                .map_err(|error| corrupt(error.to_string()))?,
            Codec::Zlib => {
                let zlib = self.zlib.get_or_insert_with(|| Decompress::new(true));
                zlib.reset(true);
                let status = zlib
                    .decompress(payload, out, FlushDecompress::Finish)
                    .map_err(|error| corrupt(error.to_string()))?;
                if status != Status::StreamEnd || zlib.total_in() != payload.len() as u64 {
                    return Err(corrupt(
                        "the stream does not end where the payload does".to_owned(),
                    ));
                }
                zlib.total_out() as usize // at most out.len()
            }
            Codec::Zstd => {
                let new = || zstd::bulk::Decompressor::new();
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(new().map_err(|error| corrupt(error.to_string()))?),
                };
                zstd.decompress_to_buffer(payload, out)
                    .map_err(|error| corrupt(error.to_string()))?
            }
        };
        Ok(&self.scratch[..got])
    }
}
