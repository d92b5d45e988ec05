//! Frames: what both ends exchange after the handshake, and how it stands in bytes.
//! Which frame may come when is in `order.rs`; what is inside a block's payload in `compress.rs`.

use prost::Message;
use uuid::Uuid;

use super::schema;
use super::{
    BLOCK_HASH_LEN, BlockHash, Codec, DATA_HEAD_LEN, FRAME_HEADER_LEN, Failure, MAX_BLOCK,
    MAX_CONTROL_BODY, MAX_DATA_BODY, Position,
};

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// A block of raw bytes, from the source.
    Data = 1,
    /// A sign of life and progress, from either side.
    Heartbeat = 2,
    /// There are no more blocks, from the source.
    End = 3,
    /// What arrived and what is durable, from the receiver.
    Ack = 4,
    /// The snapshot exists, from the receiver.
    Done = 5,
    /// The transfer is over and has failed, from either side.
    Abort = 6,
}

/// Why a frame cannot be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// The frame's kind is not known in this version of the protocol.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// The frame's codec is not known.
    #[error("frame with unknown codec {0}")]
    UnknownCodec(u8),
    /// The reserved bytes are not zero.
    #[error("{kind:?} frame with reserved bytes {reserved:#06x}")]
    Reserved {
        /// The frame's kind.
        kind: FrameKind,
        /// The reserved bytes.
        reserved: u16,
    },
    /// A length is beyond what a frame of this kind may have.
    #[error("{kind:?} frame with {what} of {len} bytes, at most {max} are allowed")]
    TooLong {
        /// The frame's kind.
        kind: FrameKind,
        /// Which length.
        what: &'static str,
        /// The length announced.
        len: u32,
        /// The longest allowed.
        max: usize,
    },
    /// The lengths and codec in a header contradict each other.
    #[error("{kind:?} frame with {body_len} body bytes for {raw_len} raw bytes in codec {codec}")]
    Contradiction {
        /// The frame's kind.
        kind: FrameKind,
        /// The codec announced.
        codec: Codec,
        /// The body's length announced.
        body_len: u32,
        /// The raw length announced.
        raw_len: u32,
    },
    /// The body given is not as long as the header says.
    #[error("{kind:?} frame's body has {got} bytes instead of {announced}")]
    BodyLength {
        /// The frame's kind.
        kind: FrameKind,
        /// The length in the header.
        announced: u32,
        /// The length of the body given.
        got: usize,
    },
    /// The body is not a protobuf message of this kind.
    #[error("{kind:?} frame's body does not decode")]
    Malformed {
        /// The frame's kind.
        kind: FrameKind,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// A field is missing or cannot have this value.
    #[error("{kind:?} frame's field {field} is missing or invalid")]
    Field {
        /// The frame's kind.
        kind: FrameKind,
        /// Which field.
        field: &'static str,
    },
}

/// The fixed bytes before a frame's body: kind (1), codec (1), reserved (2), body length (4),
/// raw length (4). Codec and raw length are zero but for Data. A header that was decoded is within
/// the caps: a buffer of [`MAX_DATA_BODY`] bytes takes every body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    kind: FrameKind,
    codec: Codec,
    body_len: u32,
    raw_len: u32,
}

impl FrameHeader {
    /// Reads a header.
    ///
    /// # Errors
    /// If kind or codec are not known, a length exceeds its cap, or a compressed block would not
    /// be smaller than the raw one.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, codec, f0, f1, b0, b1, b2, b3, r0, r1, r2, r3] = *bytes;
        let kind = match kind {
            1 => FrameKind::Data,
            2 => FrameKind::Heartbeat,
            3 => FrameKind::End,
            4 => FrameKind::Ack,
            5 => FrameKind::Done,
            6 => FrameKind::Abort,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let codec = Codec::from_number(codec).ok_or(FrameError::UnknownCodec(codec))?;
        let reserved = u16::from_le_bytes([f0, f1]);
        if reserved != 0 {
            return Err(FrameError::Reserved { kind, reserved });
        }
        let body_len = u32::from_le_bytes([b0, b1, b2, b3]);
        let raw_len = u32::from_le_bytes([r0, r1, r2, r3]);
        let header = Self {
            kind,
            codec,
            body_len,
            raw_len,
        };
        header.check()?;
        Ok(header)
    }

    fn check(self) -> Result<(), FrameError> {
        let Self {
            kind,
            codec,
            body_len,
            raw_len,
        } = self;
        let cap = |what, len: u32, max| match len as usize > max {
            true => Err(FrameError::TooLong {
                kind,
                what,
                len,
                max,
            }),
            false => Ok(()),
        };
        let consistent = match kind {
            FrameKind::Data => {
                cap("raw block", raw_len, MAX_BLOCK)?;
                cap("body", body_len, MAX_DATA_BODY)?;
                match body_len.checked_sub(BLOCK_HASH_LEN as u32) {
                    Some(payload) if codec == Codec::None => payload == raw_len && raw_len > 0,
                    Some(payload) => payload > 0 && payload < raw_len,
                    None => false,
                }
            }
            _ => {
                cap("body", body_len, MAX_CONTROL_BODY)?;
                raw_len == 0 && codec == Codec::None
            }
        };
        match consistent {
            true => Ok(()),
            false => Err(FrameError::Contradiction {
                kind,
                codec,
                body_len,
                raw_len,
            }),
        }
    }

    fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let [b0, b1, b2, b3] = self.body_len.to_le_bytes();
        let [r0, r1, r2, r3] = self.raw_len.to_le_bytes();
        [
            self.kind as u8,
            self.codec.number(),
            0,
            0,
            b0,
            b1,
            b2,
            b3,
            r0,
            r1,
            r2,
            r3,
        ]
    }

    /// What the frame is.
    pub fn kind(self) -> FrameKind {
        self.kind
    }

    /// How many bytes of body follow.
    pub fn body_len(self) -> usize {
        self.body_len as usize
    }
}

/// A sealed block: made by [`Compressor::seal`](super::Compressor::seal), opened by
/// [`Decompressor::open`](super::Decompressor::open).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    /// How the payload is compressed.
    pub codec: Codec,
    /// The length of the raw block in bytes, 1 to [`MAX_BLOCK`].
    pub raw_len: u32,
    /// The hash of the raw block.
    pub hash: BlockHash,
    /// The raw or compressed bytes.
    pub payload: &'a [u8],
}

impl Data<'_> {
    /// Everything of the frame that stands before the payload, so that a sender can write the
    /// payload from where it is.
    pub fn head(&self) -> [u8; DATA_HEAD_LEN] {
        let header = FrameHeader {
            kind: FrameKind::Data,
            codec: self.codec,
            body_len: (BLOCK_HASH_LEN + self.payload.len()) as u32, // at most MAX_DATA_BODY
            raw_len: self.raw_len,
        };
        let mut head = [0; DATA_HEAD_LEN];
        head[..FRAME_HEADER_LEN].copy_from_slice(&header.encode());
        head[FRAME_HEADER_LEN..].copy_from_slice(self.hash.as_bytes());
        head
    }
}

/// What a side is doing, and so what a [`Heartbeat`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Phase {
    /// Making ready; counts nothing.
    Preparing = 1,
    /// The source reads the metadata commands to learn the totals; counts commands.
    MetadataPass = 2,
    /// The source generates again, to compare, what the receiver holds; counts raw bytes.
    Skipping = 3,
    /// Blocks flow; counts raw bytes, skipped ones included.
    Data = 4,
    /// The receiver makes all durable and the snapshot appear; counts files synced.
    Finishing = 5,
}

impl Phase {
    fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Preparing,
            2 => Self::MetadataPass,
            3 => Self::Skipping,
            4 => Self::Data,
            5 => Self::Finishing,
            _ => return None,
        })
    }
}

/// A sign of life. It is one of progress only if `phase` or `done` moved since the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// What its sender is doing.
    pub phase: Phase,
    /// How much of it is done, in the phase's own unit.
    pub done: u64,
    /// How much there is, as far as is known; it may change while the totals grow more exact.
    pub total: Option<u64>,
    /// For which share of the time since the last one the receiver had no block to work on, in per cent.
    pub starved: Option<u32>,
}

/// The end of the data: the receiver compares this with its own position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// All raw bytes of the transfer, those before its resume position included, and their hash.
    pub position: Position,
}

/// What the receiver has, in raw bytes from the start of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Bytes received and checked.
    pub received: u64,
    /// Bytes that would survive a crash: where a new attempt would resume at worst.
    pub durable: u64,
}

/// The transfer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The uuid of the snapshot on the receiver.
    pub snapshot: Uuid,
}

/// One frame; a block's payload is borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// See [`Data`].
    Data(Data<'a>),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// See [`End`].
    End(End),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Done`].
    Done(Done),
    /// The transfer has failed, and this is why.
    Abort(Failure),
}

impl<'a> Frame<'a> {
    /// What the frame is.
    pub fn kind(&self) -> FrameKind {
        match self {
            Self::Data(_) => FrameKind::Data,
            Self::Heartbeat(_) => FrameKind::Heartbeat,
            Self::End(_) => FrameKind::End,
            Self::Ack(_) => FrameKind::Ack,
            Self::Done(_) => FrameKind::Done,
            Self::Abort(_) => FrameKind::Abort,
        }
    }

    /// Appends the whole frame, header included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let kind = self.kind();
        match self {
            Self::Data(data) => {
                out.extend_from_slice(&data.head());
                out.extend_from_slice(data.payload);
            }
            Self::Heartbeat(heartbeat) => {
                let heartbeat = schema::Heartbeat {
                    phase: heartbeat.phase as u32,
                    done: heartbeat.done,
                    total: heartbeat.total,
                    starved: heartbeat.starved,
                };
                encode_control(kind, &heartbeat, out);
            }
            Self::End(End { position }) => {
                let position = Some((*position).into());
                encode_control(kind, &schema::End { position }, out);
            }
            Self::Ack(Ack { received, durable }) => {
                let (received, durable) = (*received, *durable);
                encode_control(kind, &schema::Ack { received, durable }, out);
            }
            Self::Done(Done { snapshot }) => {
                let snapshot = snapshot.as_bytes().to_vec();
                encode_control(kind, &schema::Done { snapshot }, out);
            }
            Self::Abort(failure) => encode_control(kind, &schema::Failure::from(failure), out),
        }
    }

    /// Reads the body that follows `header`.
    ///
    /// # Errors
    /// If the body has another length than the header says, or is not what its kind must be.
    pub fn decode(header: FrameHeader, body: &'a [u8]) -> Result<Self, FrameError> {
        let FrameHeader {
            kind,
            codec,
            body_len,
            raw_len,
        } = header;
        if body.len() != body_len as usize {
            return Err(FrameError::BodyLength {
                kind,
                announced: body_len,
                got: body.len(),
            });
        }
        let missing = |field| FrameError::Field { kind, field };
        Ok(match kind {
            FrameKind::Data => {
                let (hash, payload) = body
                    .split_first_chunk::<BLOCK_HASH_LEN>()
                    .ok_or(missing("hash"))?;
                Self::Data(Data {
                    codec,
                    raw_len,
                    hash: (*hash).into(),
                    payload,
                })
            }
            FrameKind::Heartbeat => {
                let raw: schema::Heartbeat = decode_control(kind, body)?;
                Self::Heartbeat(Heartbeat {
                    phase: Phase::from_number(raw.phase).ok_or(missing("phase"))?,
                    done: raw.done,
                    total: raw.total,
                    starved: raw.starved,
                })
            }
            FrameKind::End => {
                let schema::End { position } = decode_control(kind, body)?;
                let position = position.and_then(schema::Position::checked);
                Self::End(End {
                    position: position.ok_or(missing("position"))?,
                })
            }
            FrameKind::Ack => {
                let schema::Ack { received, durable } = decode_control(kind, body)?;
                Self::Ack(Ack { received, durable })
            }
            FrameKind::Done => {
                let schema::Done { snapshot } = decode_control(kind, body)?;
                let snapshot = Uuid::from_slice(&snapshot).map_err(|_| missing("snapshot"))?;
                Self::Done(Done { snapshot })
            }
            FrameKind::Abort => Self::Abort(decode_control::<schema::Failure>(kind, body)?.into()),
        })
    }

    /// Takes one whole frame off the front of `buffer`; `None` if more bytes are needed.
    ///
    /// # Errors
    /// As [`FrameHeader::decode`] and [`Frame::decode`]; a header is refused before its body is
    /// there.
    pub fn take(buffer: &'a [u8]) -> Result<Option<(Self, &'a [u8])>, FrameError> {
        let Some((header, rest)) = buffer.split_first_chunk::<FRAME_HEADER_LEN>() else {
            return Ok(None);
        };
        let header = FrameHeader::decode(header)?;
        let Some((body, rest)) = rest.split_at_checked(header.body_len()) else {
            return Ok(None);
        };
        Ok(Some((Self::decode(header, body)?, rest)))
    }
}

/// Appends a frame with a protobuf body. Every body of this module is far below
/// [`MAX_CONTROL_BODY`]: the longest holds a message of 512 bytes.
fn encode_control(kind: FrameKind, body: &impl Message, out: &mut Vec<u8>) {
    let body_len = body.encoded_len() as u32;
    let header = FrameHeader {
        kind,
        codec: Codec::None,
        body_len,
        raw_len: 0,
    };
    out.extend_from_slice(&header.encode());
    body.encode_raw(out);
}

fn decode_control<M: Message + Default>(kind: FrameKind, body: &[u8]) -> Result<M, FrameError> {
    M::decode(body).map_err(|source| FrameError::Malformed { kind, source })
}
