//! The data protocol: how one snapshot goes from a source agent to a receiving one.
//! Bytes in, values out. No sockets, no async, no TLS and no btrfs here: whoever holds the
//! connection reads the bytes, and whoever holds the disk knows what they mean.
//!
//! ```text
//! source                                   receiver
//!   | -- Hello  ------------------------------> |   who, what, against which parent, what I can do
//!   | <- Welcome (or Refused, and closes) ----- |   what we shall do, and from which position
//!   | -- Heartbeat, Data, Data, … ------------> |
//!   | <------------ Heartbeat, Ack, Ack, … ---- |   what arrived, and what is durable
//!   | -- End ---------------------------------> |   how long it was, and its chained hash
//!   | <---------------------------------- Done- |   the snapshot exists under its number
//! ```
//!
//! Either side may send Abort at any time and then closes.
//!
//! - A handshake message ([`Hello`], [`Answer`]) is an 8-byte [`Preface`] and a body, at most
//!   [`MAX_HANDSHAKE`] together. The bodies are protobuf messages: a field that the reader does not
//!   know is skipped, so both can grow without a new version.
//! - After it come frames: a 12-byte [`FrameHeader`] and a body. The header is checked against the
//!   caps of its kind before anyone allocates room for the body.
//! - What travels is one sequence of raw bytes, a send stream in either [`Mode`], cut between
//!   commands into blocks of up to [`MAX_BLOCK`]. A source that starts again cuts where it cut
//!   before, so the [`Chain`] of both runs can be compared. Each block is compressed on its own and
//!   carries the hash of its raw bytes, so blocks can be sealed and opened side by side.
//!
//! Integers are little-endian. The two ends of a connection know each other from TLS; nothing here
//! proves identity.

mod chain;
mod codec;
mod compress;
mod decompress;
mod failure;
mod frame;
mod handshake;
mod label;
mod order;
mod schema;
mod version;

pub use chain::{BlockHash, Chain, ChainHash, Mismatch, Position};
pub use codec::{Codec, CodecSet, UnknownCodec};
pub use compress::{BlockLength, Compressor};
pub use decompress::{BlockError, Decompressor};
pub use failure::{Failure, FailureCode};
pub use frame::{
    Ack, Data, Done, End, Frame, FrameError, FrameHeader, FrameKind, Heartbeat, Phase,
};
pub use handshake::{
    Answer, HandshakeError, HandshakeKind, Hello, ImageName, Mode, Namespace, Preface, Welcome,
};
pub use label::{Label, LabelError};
pub use order::{OrderError, Receiving, Sending};
pub use version::{ProtocolVersion, VersionRange};

/// The name of this protocol in TLS' application-layer protocol negotiation.
pub const ALPN: &[u8] = b"icbd/1";

/// The longest raw block in bytes: a command with 1 MiB of data, and its head.
pub const MAX_BLOCK: usize = (1 << 20) + (8 << 10);

/// The longest handshake message in bytes, preface included.
pub const MAX_HANDSHAKE: usize = 4096;

/// The length in bytes of a handshake message's preface.
pub const PREFACE_LEN: usize = 8;

/// The length in bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 12;

/// The length in bytes of a position's hash.
pub const HASH_LEN: usize = blake3::OUT_LEN;

/// The length in bytes of a block's hash.
pub const BLOCK_HASH_LEN: usize = 16;

/// The length in bytes of what stands before a data frame's payload: header and hash.
pub const DATA_HEAD_LEN: usize = FRAME_HEADER_LEN + BLOCK_HASH_LEN;

/// The longest body of a data frame in bytes: the block's hash, and a block that did not shrink.
pub const MAX_DATA_BODY: usize = BLOCK_HASH_LEN + MAX_BLOCK;

/// The longest body in bytes of every other frame.
pub const MAX_CONTROL_BODY: usize = 1024;

/// The longest text in bytes that goes with a [`Failure`]; a longer one is cut.
pub const MAX_FAILURE_MESSAGE: usize = 512;
