//! The receiver's connection half: frames come in and go to the disk, and the source hears how far
//! they have got.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use icbd_wire::control::Reason;
use icbd_wire::data::{Ack, Done, Frame, Heartbeat, Phase, Position, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::home::Home;
use super::starving::Starving;
use crate::error::{Error, Result, blocking};
use crate::transfer::codec;
use crate::transfer::link::{self, Movement, Pace, RawFrame};
use crate::transfer::ticket::Ticket;

/// Frames that wait to be opened, at most; each has up to 1 MiB.
const AHEAD: usize = 4;

/// Buffers that are kept to be used again, at most.
const SPARE: usize = 16;

/// How often the source hears how far its bytes have got: at first, for it has to choose a codec, and later.
const ACKNOWLEDGE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(250));

/// What came first.
enum Early {
    /// The disk has ended.
    Done(Result<Uuid>),
    /// The disk is about to end.
    GivenUp,
    /// The connection has ended, or has to.
    BrokenOff(Error),
}

/// A snapshot while it arrives, as its two halves share it: the connection and the disk.
pub(super) struct Reception {
    pub(super) ticket: Arc<Ticket>,
    pub(super) pace: Pace,
    pub(super) movement: Movement,
    /// Raw bytes that were received and checked.
    pub(super) received: AtomicU64,
    /// Raw bytes whose commands were carried out.
    pub(super) applied: AtomicU64,
    pub(super) starving: Starving,
    /// Raw bytes that a crash would not take away.
    pub(super) durable: AtomicU64,
    /// Whether all has come and is being made durable.
    pub(super) finishing: AtomicBool,
    /// Why no more frames come, if it is not that the source has gone.
    pub(super) broken_off: OnceLock<Reason>,
    /// The disk takes no more frames, and says itself why.
    pub(super) given_up: CancellationToken,
    /// Buffers to read into again.
    spare: Mutex<VecDeque<Vec<u8>>>,
}

impl Reception {
    pub(super) fn new(ticket: Arc<Ticket>, pace: Pace, from: Position) -> Arc<Self> {
        let from = || AtomicU64::new(from.raw);
        Arc::new(Self {
            ticket,
            pace,
            movement: Movement::new(pace.stall),
            received: from(),
            applied: from(),
            starving: Starving::default(),
            durable: from(),
            finishing: AtomicBool::new(false),
            broken_off: OnceLock::new(),
            given_up: CancellationToken::new(),
            spare: Mutex::default(),
        })
    }

    pub(super) async fn run(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        welcome: Welcome,
        home: impl Home + 'static,
    ) -> Result<()> {
        let (mut from, mut to) = tokio::io::split(stream);
        let (frames, queue) = mpsc::channel(AHEAD);
        let disk = Arc::clone(&self);
        let applied = blocking(move || disk.apply(queue, &welcome, &home));
        tokio::pin!(applied);
        let early = {
            let talk =
                async { tokio::try_join!(self.hear(&mut from, frames), self.speak(&mut to)) };
            let cause = tokio::select! {
                result = &mut applied => Early::Done(result),
                () = self.given_up.cancelled() => Early::GivenUp,
                error = self.ticket.stopped() => Early::BrokenOff(error),
                error = self.movement.stalled() => Early::BrokenOff(error),
                Err(error) = talk => Early::BrokenOff(error),
            };
            if let Early::BrokenOff(error) = &cause {
                // Known before the queue is closed, for the disk asks why.
                let _ = self.broken_off.set(error.reason());
            }
            cause
        };
        // The queue is closed now, and the disk ends as soon as it asks for more.
        let result = match early {
            Early::Done(result) => result,
            Early::GivenUp => applied.await,
            // That the queue is closed is not why the transfer fails, if it does.
            Early::BrokenOff(cause) => applied.await.map_err(|_| cause),
        };
        let mut last = Vec::new();
        match &result {
            Ok(snapshot) => Frame::Done(Done {
                snapshot: *snapshot,
            })
            .encode(&mut last),
            Err(error) => Frame::Abort(link::told(error)).encode(&mut last),
        }
        let told = tokio::time::timeout(link::PARTING, link::write(&mut to, &last));
        if told.await.is_ok() {
            link::part(&mut from, &mut to).await;
        }
        result.map(drop)
    }

    /// Reads frames and hands them to the disk, until the connection or the disk has had enough.
    async fn hear(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        frames: mpsc::Sender<RawFrame>,
    ) -> Result<()> {
        let mut heartbeat = None;
        loop {
            let raw = RawFrame::read(from, self.take_buffer(), &|| self.movement.moved()).await;
            let raw = match raw {
                Ok(raw) => raw,
                // All has come: whether the source still listens changes nothing.
                Err(_) if self.finishing.load(Ordering::Relaxed) => {
                    return std::future::pending().await;
                }
                Err(error) => return Err(error),
            };
            self.ticket.sent.fetch_add(raw.len(), Ordering::Relaxed);
            match raw.frame()? {
                Frame::Abort(failure) => return Err(link::heard(&failure)),
                Frame::Heartbeat(now) => {
                    if let Some(total) = now.total {
                        self.ticket.estimate_total(total);
                    }
                    // What the source learns of the length moves nothing.
                    let now = (now.phase, now.done);
                    if heartbeat.replace(now) != Some(now) {
                        self.movement.moved();
                    }
                }
                Frame::End(end) => {
                    self.ticket.set_total(end.position.raw);
                    self.movement.moved();
                }
                Frame::Data(data) => {
                    self.ticket.start(codec::named(data.codec));
                    self.movement.moved();
                }
                _ => self.movement.moved(),
            }
            if frames.send(raw).await.is_err() {
                // The disk has ended, and says itself why.
                return std::future::pending().await;
            }
        }
    }

    /// Tells the source how far its bytes have got, for as long as the transfer lasts.
    async fn speak(&self, to: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
        let mut pause = ACKNOWLEDGE.0;
        let mut last = (Instant::now(), Duration::ZERO);
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(ACKNOWLEDGE.1);
            let now = Instant::now();
            let starving = self.starving.so_far(now);
            let time = (now - last.0).as_nanos().max(1);
            let starved = starving.saturating_sub(last.1).as_nanos() * 100 / time;
            last = (now, starving);
            // In this order, for what is durable was received before.
            let durable = self.durable.load(Ordering::Acquire);
            let received = self.received.load(Ordering::Relaxed);
            let finishing = self.finishing.load(Ordering::Relaxed);
            // One block can keep the disk busy for long: what was carried out of it is progress.
            let (phase, done) = match finishing {
                true => (Phase::Finishing, 0),
                false => (Phase::Data, self.applied.load(Ordering::Relaxed)),
            };
            let mut frames = Vec::new();
            Frame::Ack(Ack { received, durable }).encode(&mut frames);
            Frame::Heartbeat(Heartbeat {
                phase,
                done,
                total: None,
                starved: Some(starved.min(100) as u32),
            })
            .encode(&mut frames);
            match link::write(to, &frames).await {
                Ok(()) => {}
                Err(_) if finishing => return std::future::pending().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// A buffer to read into, with whatever it held before.
    pub(super) fn take_buffer(&self) -> Vec<u8> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.pop_front().unwrap_or_default()
    }

    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push_back(buffer);
        }
    }
}
