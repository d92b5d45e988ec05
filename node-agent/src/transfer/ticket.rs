//! One transfer as this end of it sees it: what it is about, how far it is, and the wish that it
//! should stop. What moves the bytes is in `source` and `receiver`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use icbd_wire::control::{Codec, Reason, Role, Transfer, TransferState};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{ImageId, SnapshotNumber};

/// The rate that is shown is taken over this long.
const RATE_OVER: Duration = Duration::from_secs(5);

pub(crate) struct Ticket {
    pub(crate) id: Uuid,
    pub(crate) role: Role,
    pub(crate) image: ImageId,
    pub(crate) number: SnapshotNumber,
    /// The parent's number here; `None`: a full transfer, or not known yet.
    pub(crate) parent: OnceLock<SnapshotNumber>,
    pub(crate) peer: String,
    codec: AtomicI32,
    started_at: i64,
    running: AtomicBool,
    /// Bytes on the wire.
    pub(crate) sent: AtomicU64,
    /// Raw bytes of the stream so far.
    pub(crate) done: AtomicU64,
    /// Raw bytes of the stream in all, as far as anybody can tell; 0: nobody can yet.
    estimate: AtomicU64,
    /// Raw bytes of the stream in all.
    whole: OnceLock<u64>,
    seen: Mutex<VecDeque<(Instant, u64)>>,
    stop: CancellationToken,
    why: OnceLock<(Reason, String)>,
    ended: CancellationToken,
}

impl Ticket {
    pub(crate) fn new(
        (id, role): (Uuid, Role),
        image: ImageId,
        number: SnapshotNumber,
        peer: String,
    ) -> Self {
        Self {
            id,
            role,
            image,
            number,
            parent: OnceLock::new(),
            peer,
            codec: AtomicI32::new(Codec::Auto.into()),
            started_at: now(),
            running: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            done: AtomicU64::new(0),
            estimate: AtomicU64::new(0),
            whole: OnceLock::new(),
            seen: Mutex::default(),
            stop: CancellationToken::new(),
            why: OnceLock::new(),
            ended: CancellationToken::new(),
        }
    }

    /// Bytes begin to move, with this codec.
    pub(crate) fn start(&self, codec: Codec) {
        self.codec.store(codec.into(), Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
    }

    /// Bytes begin to move, behind those that an earlier attempt has moved.
    pub(crate) fn start_at(&self, raw: u64) {
        self.done.store(raw, Ordering::Relaxed);
        self.running.store(true, Ordering::Relaxed);
    }

    /// Whether bytes move, or are about to.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::Relaxed)
    }

    /// Raw bytes in all, as far as is known, and no fewer than are done; 0: not known yet.
    pub(crate) fn total(&self) -> u64 {
        let estimate = || self.estimate.load(Ordering::Relaxed);
        match self.whole.get().copied().unwrap_or_else(estimate) {
            0 => 0,
            total => total.max(self.done.load(Ordering::Relaxed)),
        }
    }

    /// Says how many raw bytes there will probably be.
    pub(crate) fn estimate_total(&self, bytes: u64) {
        self.estimate.store(bytes, Ordering::Relaxed);
    }

    /// Says how many raw bytes there are; what was estimated counts no more.
    pub(crate) fn set_total(&self, bytes: u64) {
        let _ = self.whole.set(bytes);
    }

    /// Asks the transfer to end; the first reason counts.
    pub(crate) fn stop(&self, reason: Reason, message: impl Into<String>) {
        let _ = self.why.set((reason, message.into()));
        self.stop.cancel();
    }

    /// Waits until the transfer is asked to end; with which error it then does.
    pub(crate) async fn stopped(&self) -> Error {
        self.stop.cancelled().await;
        self.asked_to_stop()
            .unwrap_or_else(|| Error::refused(Reason::Cancelled, "cancelled"))
    }

    /// Waits until the transfer has been asked to end, and had this long to do so.
    pub(crate) async fn overdue(&self, grace: Duration) -> Error {
        let error = self.stopped().await;
        tokio::time::sleep(grace).await;
        error
    }

    pub(crate) fn asked_to_stop(&self) -> Option<Error> {
        self.why
            .get()
            .map(|(reason, message)| Error::refused(*reason, message.clone()))
    }

    /// Does something that takes its time, unless the transfer is asked to end.
    pub(crate) async fn unless_stopped<T>(
        &self,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            biased;
            error = self.stopped() => Err(error),
            done = work => done,
        }
    }

    /// Waits until nothing of the transfer runs any more.
    pub(crate) async fn over(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the transfer is to end, or has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.is_cancelled() || self.ended.is_cancelled()
    }

    pub(super) fn end(&self) {
        self.ended.cancel();
    }

    /// Whether the transfer needs this snapshot of this image.
    pub(crate) fn uses(&self, image: &ImageId, number: SnapshotNumber) -> bool {
        self.image == *image && (self.number == number || self.parent.get() == Some(&number))
    }

    /// How it stands, for the operator.
    pub(crate) fn describe(&self) -> Transfer {
        let running = self.running.load(Ordering::Relaxed);
        let state = if running {
            TransferState::Running
        } else {
            TransferState::Expected
        };
        Transfer {
            id: self.id.to_string(),
            image: Some((&self.image).into()),
            number: self.number.get(),
            parent_number: self.parent.get().map_or(0, |number| number.get()),
            role: self.role.into(),
            peer_node: self.peer.clone(),
            state: state.into(),
            codec: self.codec.load(Ordering::Relaxed),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            bytes_done: self.done.load(Ordering::Relaxed),
            // Read after what is done, for it grows with that.
            bytes_total: self.total(),
            rate: self.rate(Instant::now()),
            started_at: self.started_at,
            ..Transfer::default()
        }
    }

    /// How it ended, for the operator.
    pub(super) fn describe_end(&self, result: &Result<()>) -> Transfer {
        let mut transfer = Transfer {
            ended_at: now(),
            rate: 0,
            ..self.describe()
        };
        match result {
            Ok(()) => transfer.set_state(TransferState::Succeeded),
            Err(error) => {
                transfer.set_state(TransferState::Failed);
                transfer.set_reason(error.reason());
                transfer.message = error.to_string();
                transfer.transient = error.is_transient();
            }
        }
        transfer
    }

    /// Raw bytes a second over the last seconds.
    fn rate(&self, now: Instant) -> u64 {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let done = self.done.load(Ordering::Relaxed);
        seen.push_back((now, done));
        while seen.len() > 2 && seen.get(1).is_some_and(|(at, _)| now - *at >= RATE_OVER) {
            seen.pop_front();
        }
        let (since, before) = seen.front().copied().unwrap_or((now, done));
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds > 0.0 {
            (done.saturating_sub(before) as f64 / seconds) as u64
        } else {
            0
        }
    }
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
