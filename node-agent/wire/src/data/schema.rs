//! The protobuf shapes of the handshake's bodies and of all frames but Data: the numbers here are
//! the contract between versions. Meaning and checks are in `handshake.rs` and `frame.rs`.
//!
//! A number once used is never used for anything else. Readers skip fields they do not know; a
//! field that is missing reads as zero or empty, which the checks refuse where it matters.

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Hello {
    #[prost(uint32, tag = "1")]
    pub(super) oldest_version: u32,
    #[prost(uint32, tag = "2")]
    pub(super) newest_version: u32,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) transfer: Vec<u8>,
    #[prost(string, tag = "4")]
    pub(super) namespace: String,
    #[prost(string, tag = "5")]
    pub(super) image: String,
    #[prost(uint64, tag = "6")]
    pub(super) snapshot: u64,
    #[prost(bytes = "vec", tag = "7")]
    pub(super) content: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "8")]
    pub(super) parent: Option<Vec<u8>>,
    #[prost(uint32, tag = "9")]
    pub(super) mode: u32,
    #[prost(uint32, tag = "10")]
    pub(super) codecs: u32,
    #[prost(uint64, optional, tag = "11")]
    pub(super) expected_raw: Option<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Welcome {
    #[prost(uint32, tag = "1")]
    pub(super) version: u32,
    #[prost(uint32, tag = "2")]
    pub(super) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(super) codecs: u32,
    #[prost(message, optional, tag = "4")]
    pub(super) resume: Option<Position>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Position {
    #[prost(uint64, tag = "1")]
    pub(super) raw: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) chain: Vec<u8>,
}

/// The body of a refusal and of an Abort frame.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Failure {
    #[prost(uint32, tag = "1")]
    pub(super) code: u32,
    #[prost(int32, optional, tag = "2")]
    pub(super) errno: Option<i32>,
    #[prost(string, tag = "3")]
    pub(super) message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Heartbeat {
    #[prost(uint32, tag = "1")]
    pub(super) phase: u32,
    #[prost(uint64, tag = "2")]
    pub(super) done: u64,
    #[prost(uint64, optional, tag = "3")]
    pub(super) total: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    pub(super) starved: Option<u32>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct End {
    #[prost(message, optional, tag = "1")]
    pub(super) position: Option<Position>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ack {
    #[prost(uint64, tag = "1")]
    pub(super) received: u64,
    #[prost(uint64, tag = "2")]
    pub(super) durable: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Done {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) snapshot: Vec<u8>,
}

impl From<super::Position> for Position {
    fn from(position: super::Position) -> Self {
        Self {
            raw: position.raw,
            chain: position.chain.as_bytes().to_vec(),
        }
    }
}

impl Position {
    /// The position, if its hash has a hash's length.
    pub(super) fn checked(self) -> Option<super::Position> {
        let chain: [u8; super::HASH_LEN] = self.chain.try_into().ok()?;
        Some(super::Position {
            raw: self.raw,
            chain: chain.into(),
        })
    }
}
