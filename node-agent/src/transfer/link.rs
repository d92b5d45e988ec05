//! The connection between two agents, as both ends use it: whole handshake messages and frames in
//! and out, what moved when, and failures in the words of either side. What the frames mean for
//! this end is in `source` and `receiver`.

use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use icbd_btrfs::Errno;
use icbd_wire::control::Reason;
use icbd_wire::data::{
    Answer, FRAME_HEADER_LEN, Failure, FailureCode, Frame, FrameHeader, FrameKind, Hello,
    PREFACE_LEN, Preface,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::error::{Error, Result};

pub(crate) use icbd_net::{HANDSHAKE, PARTING};

/// How often the source gives a sign of life, or more often where little time is given.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(5);

/// How many times longer than usual the receiver may show no progress while it makes everything
/// durable: an fsync tells nothing until it returns.
pub(crate) const FINISHING: u32 = 15;

/// How much time a transfer gives itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// After this long without movement it is ended.
    pub(crate) stall: Duration,
    /// A receiver works at least this long between two checkpoints.
    pub(crate) checkpoint: Duration,
    /// The source of an announced transfer may take this long to connect.
    pub(crate) expect: Duration,
}

/// When something last moved.
pub(crate) struct Movement {
    last: Mutex<Instant>,
    limit: Mutex<Duration>,
}

impl Movement {
    /// Starts now; without movement for `limit` the transfer is stalled.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            last: Mutex::new(Instant::now()),
            limit: Mutex::new(limit),
        }
    }

    pub(crate) fn moved(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// From here on it may take longer until something is seen to move.
    pub(crate) fn be_patient(&self, factor: u32) {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        *limit = limit.saturating_mul(factor);
        self.moved();
    }

    /// Returns when nothing has moved for too long.
    pub(crate) async fn stalled(&self) -> Error {
        loop {
            let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
            let limit = *self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            let due = last + limit;
            if Instant::now() >= due {
                let message = format!("no progress for {} s", limit.as_secs());
                return Error::refused(Reason::TransferStalled, message);
            }
            tokio::time::sleep_until(due.min(Instant::now() + HEARTBEAT)).await;
        }
    }
}

/// Reads exactly this many bytes; `moved` is told of every piece that comes.
async fn fill(
    from: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    moved: &impl Fn(),
) -> Result<()> {
    let mut at = 0;
    while at < buffer.len() {
        match from.read(&mut buffer[at..]).await {
            Ok(0) => return Err(lost("it closed the connection")),
            Ok(count) => at += count,
            Err(error) => return Err(lost(error)),
        }
        moved();
    }
    Ok(())
}

/// A frame as it came: a header within the caps, and a body of its length.
pub(crate) struct RawFrame {
    pub(crate) header: FrameHeader,
    pub(crate) body: Vec<u8>,
}

impl RawFrame {
    /// Reads one frame into `body`, whose allocation is used again; `moved` is told of each piece
    /// of a block, for on a slow line one takes its time.
    pub(crate) async fn read(
        from: &mut (impl AsyncRead + Unpin),
        mut body: Vec<u8>,
        moved: &impl Fn(),
    ) -> Result<Self> {
        let mut header = [0; FRAME_HEADER_LEN];
        fill(from, &mut header, &|| {}).await?;
        let header = FrameHeader::decode(&header).map_err(|error| broken(&error))?;
        body.resize(header.body_len(), 0);
        match header.kind() {
            FrameKind::Data => fill(from, &mut body, moved).await?,
            _ => fill(from, &mut body, &|| {}).await?,
        }
        Ok(Self { header, body })
    }

    pub(crate) fn frame(&self) -> Result<Frame<'_>> {
        Frame::decode(self.header, &self.body).map_err(|error| broken(&error))
    }

    /// Bytes on the wire.
    pub(crate) fn len(&self) -> u64 {
        (FRAME_HEADER_LEN + self.body.len()) as u64
    }
}

async fn message(
    from: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Result<(Preface, Vec<u8>)> {
    let read = async {
        let mut preface = [0; PREFACE_LEN];
        fill(from, &mut preface, &|| {}).await?;
        let preface = Preface::decode(&preface).map_err(|error| broken(&error))?;
        let mut body = vec![0; usize::from(preface.body_len)];
        fill(from, &mut body, &|| {}).await?;
        Ok((preface, body))
    };
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_| {
        let message = format!("no whole handshake message within {} s", limit.as_secs());
        Err(Error::refused(Reason::TransferStalled, message))
    })
}

/// Reads what a source says first.
pub(crate) async fn read_hello(from: &mut (impl AsyncRead + Unpin)) -> Result<Hello> {
    let (preface, body) = message(from, HANDSHAKE).await?;
    Hello::decode(preface, &body).map_err(|error| broken(&error))
}

/// Reads how a receiver answers, which may take up to `limit`: it makes a place for the snapshot
/// first, durably, and its disk may be busy.
pub(crate) async fn read_answer(
    from: &mut (impl AsyncRead + Unpin),
    limit: Duration,
) -> Result<Answer> {
    let (preface, body) = message(from, limit).await?;
    Answer::decode(preface, &body).map_err(|error| broken(&error))
}

/// Writes a whole message or frame, or a piece of one, and has it sent.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<()> {
    to.write_all(bytes).await.map_err(lost)?;
    to.flush().await.map_err(lost)
}

/// Closes a connection whose other end has just been told why, so that it gets to read it: with
/// unread bytes on this side, closing at once would throw away what was said.
pub(crate) async fn part(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) {
    let drain = async {
        let _ = to.shutdown().await;
        let mut rest = [0; 4096];
        while from.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    };
    let _ = tokio::time::timeout(PARTING, drain).await;
}

fn lost(why: impl std::fmt::Display) -> Error {
    Error::refused(Reason::PeerLost, format!("lost the other agent: {why}"))
}

/// What the other end said is not what the protocol allows.
pub(crate) fn broken<E>(error: &E) -> Error
where
    E: std::error::Error,
    for<'a> Failure: From<&'a E>,
{
    heard(&Failure::from(error))
}

/// What the other end, or the protocol, says has failed, as an error of this end.
pub(crate) fn heard(failure: &Failure) -> Error {
    let reason = match failure.code {
        FailureCode::NotExpected => Reason::NotExpected,
        FailureCode::ParentMissing => Reason::ParentMissing,
        FailureCode::NoSpace => Reason::InsufficientSpace,
        FailureCode::Conflict => Reason::Conflict,
        FailureCode::Busy | FailureCode::AlreadyThere => Reason::SnapshotBusy,
        FailureCode::VersionMismatch => Reason::VersionMismatch,
        FailureCode::HashMismatch => Reason::HashMismatch,
        FailureCode::SourceChanged => Reason::SourceChanged,
        FailureCode::StreamInvalid | FailureCode::TooLarge | FailureCode::ProtocolViolation => {
            Reason::StreamInvalid
        }
        FailureCode::Unknown | FailureCode::Io => Reason::IoError,
        FailureCode::Cancelled => Reason::Cancelled,
        FailureCode::ShuttingDown => Reason::ShuttingDown,
        FailureCode::PoolUnavailable => Reason::PoolUnavailable,
        FailureCode::Stalled => Reason::TransferStalled,
        FailureCode::SnapshotMissing => Reason::SnapshotNotFound,
    };
    Error::Refused {
        reason,
        message: failure.message().to_owned(),
        // A number from the wire may be none that the kernel has.
        errno: failure
            .errno
            .and_then(|errno| Errno::from_io_error(&io::Error::from_raw_os_error(errno))),
    }
}

/// An error of this end, as the other is told.
pub(crate) fn told(error: &Error) -> Failure {
    let code = match error.reason() {
        Reason::NotExpected => FailureCode::NotExpected,
        Reason::ParentMissing => FailureCode::ParentMissing,
        Reason::InsufficientSpace => FailureCode::NoSpace,
        Reason::Conflict | Reason::NamespaceChanged => FailureCode::Conflict,
        Reason::SnapshotBusy => FailureCode::Busy,
        Reason::VersionMismatch => FailureCode::VersionMismatch,
        Reason::HashMismatch => FailureCode::HashMismatch,
        Reason::SourceChanged => FailureCode::SourceChanged,
        Reason::StreamInvalid => FailureCode::StreamInvalid,
        Reason::Cancelled => FailureCode::Cancelled,
        Reason::ShuttingDown => FailureCode::ShuttingDown,
        Reason::TransferStalled => FailureCode::Stalled,
        Reason::SnapshotNotFound | Reason::SnapshotLost => FailureCode::SnapshotMissing,
        reason if is_about_the_pool(reason) => FailureCode::PoolUnavailable,
        _ => FailureCode::Io,
    };
    let mut failure = Failure::new(code, error.to_string());
    failure.errno = error.errno().map(|errno| errno.raw_os_error());
    failure
}

/// Whether it is the pool that is not this agent's to use.
pub(crate) fn is_about_the_pool(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::PoolNotMounted
            | Reason::PoolNotBtrfs
            | Reason::PoolNotInitialised
            | Reason::PoolForeign
            | Reason::PoolLocked
            | Reason::PoolUnavailable
    )
}
