//! The two messages that open a transfer: the source's [`Hello`] and the receiver's [`Answer`].
//! Whether a transfer is welcome is the receiver's business; here is only what can be said.

use std::num::NonZeroU64;

use prost::Message;
use uuid::Uuid;

use super::schema;
use super::{
    CodecSet, Failure, Label, LabelError, MAX_HANDSHAKE, PREFACE_LEN, Position, ProtocolVersion,
    VersionRange,
};

/// A Kubernetes namespace's name.
pub type Namespace = Label<63>;

/// An image's name.
pub type ImageName = Label<50>;

/// The first bytes of every handshake message. No text protocol and no TLS record starts with 0x89.
const MAGIC: [u8; 5] = *b"\x89ICBD";

/// What a handshake message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum HandshakeKind {
    /// The source's [`Hello`].
    Hello = 1,
    /// The receiver's [`Welcome`].
    Welcome = 2,
    /// The receiver's refusal, a [`Failure`].
    Refused = 3,
}

/// The fixed bytes before a handshake message's body: magic (5), kind (1), body length (2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// What the body is.
    pub kind: HandshakeKind,
    /// The length of the body in bytes; with the preface at most [`MAX_HANDSHAKE`].
    pub body_len: u16,
}

/// Why a handshake message cannot be taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum HandshakeError {
    /// The first bytes are not this protocol's.
    #[error("not the icbd data protocol: the connection starts with {0:02x?}")]
    NotThisProtocol([u8; MAGIC.len()]),
    /// The message's kind is not known.
    #[error("handshake message of unknown kind {0}")]
    UnknownKind(u8),
    /// The message is of a kind that this side does not get.
    #[error("handshake message {0:?} is not for this side")]
    WrongKind(HandshakeKind),
    /// The message is longer than a handshake may be.
    #[error("handshake body of {len} bytes, at most {} are allowed", MAX_HANDSHAKE - PREFACE_LEN)]
    TooLong {
        /// The length that was announced.
        len: u16,
    },
    /// The body given is not as long as the preface says.
    #[error("handshake body has {got} bytes instead of {announced}")]
    BodyLength {
        /// The length in the preface.
        announced: u16,
        /// The length of the body given.
        got: usize,
    },
    /// The body is not a protobuf message of this kind.
    #[error("handshake body does not decode")]
    Malformed(#[from] prost::DecodeError),
    /// A name is not one.
    #[error("handshake field {field}")]
    Name {
        /// Which field.
        field: &'static str,
        /// What is wrong with the name.
        source: LabelError,
    },
    /// A field is missing or cannot have this value.
    #[error("handshake field {field} is missing or invalid")]
    Field {
        /// Which field.
        field: &'static str,
    },
    /// The two ends share no version.
    #[error(
        "no common protocol version: the source speaks {} to {}, this receiver {} to {}",
        .source_speaks.oldest, .source_speaks.newest,
        VersionRange::OURS.oldest, VersionRange::OURS.newest
    )]
    NoCommonVersion {
        /// What the source offered.
        source_speaks: VersionRange,
    },
    /// The receiver answered with something that the source had not offered.
    #[error("the receiver chose {0}, which was not offered")]
    NotOffered(&'static str),
}

impl Preface {
    /// Reads a preface: the first [`PREFACE_LEN`] bytes of a message.
    ///
    /// # Errors
    /// If they are not this protocol's, or announce more than [`MAX_HANDSHAKE`] allows.
    pub fn decode(bytes: &[u8; PREFACE_LEN]) -> Result<Self, HandshakeError> {
        let [m0, m1, m2, m3, m4, kind, l0, l1] = *bytes;
        let magic = [m0, m1, m2, m3, m4];
        if magic != MAGIC {
            return Err(HandshakeError::NotThisProtocol(magic));
        }
        let kind = match kind {
            1 => HandshakeKind::Hello,
            2 => HandshakeKind::Welcome,
            3 => HandshakeKind::Refused,
            other => return Err(HandshakeError::UnknownKind(other)),
        };
        let body_len = u16::from_le_bytes([l0, l1]);
        if PREFACE_LEN + usize::from(body_len) > MAX_HANDSHAKE {
            return Err(HandshakeError::TooLong { len: body_len });
        }
        Ok(Self { kind, body_len })
    }

    fn check_body(self, body: &[u8]) -> Result<(), HandshakeError> {
        if body.len() == usize::from(self.body_len) {
            return Ok(());
        }
        Err(HandshakeError::BodyLength {
            announced: self.body_len,
            got: body.len(),
        })
    }
}

/// Appends a whole message. Every body of this module is far below [`MAX_HANDSHAKE`]: its names,
/// ids and texts are bounded where they are made.
fn encode_message(kind: HandshakeKind, body: &impl Message, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    out.push(kind as u8);
    out.extend_from_slice(&(body.encoded_len() as u16).to_le_bytes());
    body.encode_raw(out);
}

/// How the raw bytes make up a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Mode {
    /// They are the kernel's send stream. Every source and every receiver can do this.
    Stream = 1,
    /// They are a send stream that the source makes: the kernel's commands without file data, and
    /// after each UPDATE_EXTENT the data of its range, which the source has read itself, compressed
    /// extents as they are stored.
    Extents = 2,
}

impl Mode {
    /// The mode's name in command lines, logs and records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Extents => "extents",
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Stream),
            2 => Some(Self::Extents),
            _ => None,
        }
    }
}

/// How a source opens a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol versions that the source speaks.
    pub versions: VersionRange,
    /// The transfer's id, as the operator announced it to both ends.
    pub transfer: Uuid,
    /// The image's namespace.
    pub namespace: Namespace,
    /// The image.
    pub image: ImageName,
    /// The snapshot's number.
    pub snapshot: NonZeroU64,
    /// The snapshot's content identity.
    pub content: Uuid,
    /// The content identity of the parent; `None` for a full transfer.
    pub parent: Option<Uuid>,
    /// The best mode that the source can do; a receiver may fall back to [`Mode::Stream`].
    pub mode: Mode,
    /// The codecs that the source may use.
    pub codecs: CodecSet,
    /// How many raw bytes the whole transfer is expected to have, if the source knows already.
    pub expected_raw: Option<u64>,
}

/// How a receiver answers: a welcome, or a failure and the end of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The transfer goes on as it says.
    Welcome(Welcome),
    /// There will be no transfer, and this is why.
    Refused(Failure),
}

/// What a receiver chose from a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: ProtocolVersion,
    /// The mode.
    pub mode: Mode,
    /// The codecs that the receiver takes; a subset of those offered.
    pub codecs: CodecSet,
    /// Where to go on. The source compares the hash with its own at this position before it skips
    /// anything, and aborts with [`SourceChanged`](super::FailureCode::SourceChanged) if it
    /// differs. It lies between two blocks.
    pub resume: Position,
}

impl Hello {
    /// Appends the whole message, preface included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let body = schema::Hello {
            oldest_version: self.versions.oldest,
            newest_version: self.versions.newest,
            transfer: self.transfer.as_bytes().to_vec(),
            namespace: self.namespace.to_string(),
            image: self.image.to_string(),
            snapshot: self.snapshot.get(),
            content: self.content.as_bytes().to_vec(),
            parent: self.parent.map(|parent| parent.as_bytes().to_vec()),
            mode: self.mode as u32,
            codecs: self.codecs.bits(),
            expected_raw: self.expected_raw,
        };
        encode_message(HandshakeKind::Hello, &body, out);
    }

    /// Reads the body that follows `preface`.
    ///
    /// # Errors
    /// If it is not a source's message, or a field is not what it must be. Versions, modes and
    /// codecs that this build does not know are no error.
    pub fn decode(preface: Preface, body: &[u8]) -> Result<Self, HandshakeError> {
        preface.check_body(body)?;
        if preface.kind != HandshakeKind::Hello {
            return Err(HandshakeError::WrongKind(preface.kind));
        }
        let raw = schema::Hello::decode(body)?;
        let name = |field| move |source| HandshakeError::Name { field, source };
        Ok(Self {
            versions: VersionRange {
                oldest: raw.oldest_version,
                newest: raw.newest_version,
            },
            transfer: identity("transfer", &raw.transfer)?,
            namespace: raw.namespace.try_into().map_err(name("namespace"))?,
            image: raw.image.try_into().map_err(name("image"))?,
            snapshot: NonZeroU64::new(raw.snapshot)
                .ok_or(HandshakeError::Field { field: "snapshot" })?,
            content: identity("content", &raw.content)?,
            parent: raw
                .parent
                .map(|parent| identity("parent", &parent))
                .transpose()?,
            // A mode of the future comes from a source that can do stream mode too.
            mode: Mode::from_number(raw.mode).unwrap_or(Mode::Stream),
            codecs: CodecSet::from_bits(raw.codecs),
            expected_raw: raw.expected_raw,
        })
    }

    /// The welcome of a receiver of this build that takes these codecs and goes on at `resume`, in
    /// the mode that the source likes best.
    ///
    /// # Errors
    /// [`HandshakeError::NoCommonVersion`].
    pub fn welcome(&self, codecs: CodecSet, resume: Position) -> Result<Welcome, HandshakeError> {
        let version = self
            .versions
            .newest_common()
            .ok_or(HandshakeError::NoCommonVersion {
                source_speaks: self.versions,
            })?;
        Ok(Welcome {
            version,
            mode: self.mode,
            codecs: self.codecs.intersection(codecs),
            resume,
        })
    }

    /// Checks that a receiver chose only what this offered.
    ///
    /// # Errors
    /// [`HandshakeError::NotOffered`].
    pub fn check(&self, welcome: &Welcome) -> Result<(), HandshakeError> {
        let Welcome {
            version,
            mode,
            codecs,
            resume,
        } = *welcome;
        if !self.versions.contains(version) {
            return Err(HandshakeError::NotOffered("a protocol version"));
        }
        if !codecs.is_subset(self.codecs) {
            return Err(HandshakeError::NotOffered("a codec"));
        }
        if mode != Mode::Stream && mode != self.mode {
            return Err(HandshakeError::NotOffered("a mode"));
        }
        if resume.raw == 0 && resume != Position::START {
            return Err(HandshakeError::NotOffered(
                "a hash for the start of the stream",
            ));
        }
        Ok(())
    }
}

impl Answer {
    /// Appends the whole message, preface included.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome(welcome) => {
                let body = schema::Welcome {
                    version: welcome.version.number(),
                    mode: welcome.mode as u32,
                    codecs: welcome.codecs.bits(),
                    resume: Some(welcome.resume.into()),
                };
                encode_message(HandshakeKind::Welcome, &body, out);
            }
            Self::Refused(failure) => {
                encode_message(HandshakeKind::Refused, &schema::Failure::from(failure), out);
            }
        }
    }

    /// Reads the body that follows `preface`. What was chosen is still to be compared with what
    /// was offered: [`Hello::check`].
    ///
    /// # Errors
    /// If it is not a receiver's message, or a field is not what it must be.
    pub fn decode(preface: Preface, body: &[u8]) -> Result<Self, HandshakeError> {
        preface.check_body(body)?;
        match preface.kind {
            HandshakeKind::Hello => Err(HandshakeError::WrongKind(preface.kind)),
            HandshakeKind::Refused => Ok(Self::Refused(schema::Failure::decode(body)?.into())),
            HandshakeKind::Welcome => {
                let raw = schema::Welcome::decode(body)?;
                let mode =
                    Mode::from_number(raw.mode).ok_or(HandshakeError::NotOffered("a mode"))?;
                Ok(Self::Welcome(Welcome {
                    version: ProtocolVersion::from_number(raw.version)
                        .ok_or(HandshakeError::NotOffered("a protocol version"))?,
                    mode,
                    codecs: CodecSet::from_bits(raw.codecs),
                    resume: raw
                        .resume
                        .and_then(schema::Position::checked)
                        .ok_or(HandshakeError::Field { field: "resume" })?,
                }))
            }
        }
    }
}

/// An id of 16 bytes that is not all zeros.
fn identity(field: &'static str, bytes: &[u8]) -> Result<Uuid, HandshakeError> {
    match Uuid::from_slice(bytes) {
        Ok(uuid) if !uuid.is_nil() => Ok(uuid),
        _ => Err(HandshakeError::Field { field }),
    }
}
