//! The source's connection half: sealed blocks go out as fast as the receiver and the bandwidth
//! limit let them, and what the receiver says comes in, until it is done.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use icbd_wire::control::Reason;
use icbd_wire::data::{Chain, Data, Frame, Heartbeat, Phase, Position, Sending, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};

use super::feed::{Piece, Subscription, UNKNOWN};
use crate::error::{Error, Result};
use crate::transfer::codec;
use crate::transfer::limit::Bucket;
use crate::transfer::link::{self, Movement, RawFrame};
use crate::transfer::ticket::Ticket;

/// How long the reason for a failed write may take to come from the receiver.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The connection to the receiver, from welcome to done.
pub(super) struct Connection<'a> {
    pub(super) ticket: &'a Ticket,
    pub(super) movement: Movement,
    pub(super) bucket: &'a Option<Arc<Bucket>>,
    sending: Mutex<Sending>,
    /// Where the receiver goes on: what stands before is compared and not sent.
    resume: Position,
    /// How often to give a sign of life.
    heartbeat: Duration,
    /// What the receiver said last of how much it starves; see [`Heartbeat::starved`].
    starved: AtomicU32,
}

impl<'a> Connection<'a> {
    pub(super) fn new(
        ticket: &'a Ticket,
        stall: Duration,
        bucket: &'a Option<Arc<Bucket>>,
        welcome: &Welcome,
    ) -> Self {
        Self {
            ticket,
            movement: Movement::new(stall),
            bucket,
            sending: Mutex::new(Sending::new(welcome)),
            resume: welcome.resume,
            heartbeat: link::HEARTBEAT.min(stall / 4),
            starved: AtomicU32::new(UNKNOWN),
        }
    }

    /// Sends what a pass yields; `anew` begins another one, should this one leave the receiver
    /// behind, which then has so many raw bytes.
    pub(super) async fn run(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        pieces: Subscription,
        anew: impl Fn(u64) -> Subscription,
    ) -> Result<()> {
        let (mut from, mut to) = tokio::io::split(stream);
        let result = {
            let hear = self.hear(&mut from);
            let speak = self.speak(&mut to, pieces, anew);
            tokio::pin!(hear, speak);
            tokio::select! {
                result = &mut hear => result,
                error = self.movement.stalled() => Err(error),
                error = self.ticket.overdue(LAST_WORDS) => Err(error),
                Err(error) = &mut speak => {
                    // What the receiver says counts more than that it hung up.
                    let heard = match error.reason() {
                        Reason::PeerLost => tokio::time::timeout(LAST_WORDS, &mut hear).await.ok(),
                        _ => None,
                    };
                    heard.unwrap_or(Err(error))
                }
            }
        };
        link::part(&mut from, &mut to).await;
        result
    }

    /// Takes what the receiver says, until the snapshot exists there.
    async fn hear(&self, from: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        let mut body = Vec::new();
        let mut beat = None;
        loop {
            // A sign of life alone is not progress: only what changes counts.
            let raw = RawFrame::read(from, body, &|| {}).await?;
            {
                let frame = raw.frame()?;
                let mut sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
                let before = sending.acked();
                sending
                    .admit(&frame)
                    .map_err(|error| link::broken(&error))?;
                match frame {
                    Frame::Done(_) => return Ok(()),
                    Frame::Abort(failure) => return Err(link::heard(&failure)),
                    Frame::Heartbeat(Heartbeat {
                        phase,
                        done,
                        starved,
                        ..
                    }) => {
                        if let Some(starved) = starved {
                            self.starved.store(starved, Ordering::Relaxed);
                        }
                        let last = beat.replace((phase, done));
                        let was = last.map(|(phase, _)| phase);
                        if phase == Phase::Finishing && was != Some(phase) {
                            self.movement.be_patient(link::FINISHING);
                        }
                        if last != beat {
                            self.movement.moved();
                        }
                    }
                    Frame::Ack(ack) if ack != before => self.movement.moved(),
                    Frame::Ack(_) | Frame::Data(_) | Frame::End(_) => {}
                }
            }
            body = raw.body;
        }
    }

    /// Writes the blocks as they come; never returns once the last is written. Asked to stop, or
    /// if there is no next block, it tells the receiver why, between two frames.
    async fn speak(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        mut pieces: Subscription,
        anew: impl Fn(u64) -> Subscription,
    ) -> Result<()> {
        let mut tick = tokio::time::interval(self.heartbeat);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut skip = Skip::to(self.resume);
        let (mut open, mut kernel_bytes) = (true, 0);
        loop {
            let next = tokio::select! {
                biased;
                error = self.ticket.stopped() => Err(error),
                piece = pieces.pieces.recv(), if open => match piece {
                    Some(Piece::Failed(error)) => Err(error.again()),
                    Some(piece) => Ok(piece),
                    None => {
                        tracing::info!("others go on: reading the snapshot again for this receiver");
                        let position = self.position();
                        pieces = anew(position.raw);
                        skip = Skip::to(position);
                        continue;
                    }
                },
                _ = tick.tick() => {
                    // Our own sign of life moves nothing, but for the work that the kernel does.
                    let moved = pieces.kernel_bytes() != kernel_bytes;
                    kernel_bytes = pieces.kernel_bytes();
                    if moved {
                        self.movement.moved();
                    }
                    let heartbeat = self.heartbeat(&skip, moved.then_some(kernel_bytes));
                    self.write(to, &heartbeat, &|| {}).await?;
                    continue;
                }
            };
            pieces.tell_starved(self.starved.load(Ordering::Relaxed));
            let sent = match next {
                Ok(Piece::Block(block)) => self.block(to, &block.data(), &mut skip).await,
                Ok(Piece::End) => {
                    open = false;
                    self.end(to, &skip).await
                }
                Ok(Piece::Failed(error)) => Err(error.again()),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                if error.reason() != Reason::PeerLost {
                    let mut abort = Vec::new();
                    Frame::Abort(link::told(&error)).encode(&mut abort);
                    let _ = tokio::time::timeout(LAST_WORDS, link::write(to, &abort)).await;
                }
                return Err(error);
            }
        }
    }

    /// Sends a block, or skips it if the receiver has it already.
    async fn block(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        data: &Data<'_>,
        skip: &mut Skip,
    ) -> Result<()> {
        if skip.block(data)? {
            self.movement.moved();
            return Ok(());
        }
        self.sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .block(data)
            .map_err(|error| link::broken(&error))?;
        self.ticket.start(codec::named(data.codec));
        let moved = || self.movement.moved();
        self.write(to, &data.head(), &moved).await?;
        self.write(to, data.payload, &moved).await?;
        let raw = self.position().raw;
        self.ticket.done.store(raw, Ordering::Relaxed);
        Ok(())
    }

    async fn end(&self, to: &mut (impl AsyncWrite + Unpin), skip: &Skip) -> Result<()> {
        skip.done()?;
        let end = self
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end();
        self.ticket.set_total(end.position.raw);
        let mut frame = Vec::new();
        Frame::End(end).encode(&mut frame);
        self.write(to, &frame, &|| self.movement.moved()).await
    }

    fn position(&self) -> Position {
        let sending = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        sending.position()
    }

    /// What this end is at, `kernel_bytes` being what the kernel has sent if that has moved.
    fn heartbeat(&self, skip: &Skip, kernel_bytes: Option<u64>) -> Vec<u8> {
        let done = self.ticket.done.load(Ordering::Relaxed);
        let total = Some(self.ticket.total()).filter(|total| *total > 0);
        let (phase, done) = match (skip.under_way(), kernel_bytes) {
            (Some(skipped), _) => (Phase::Skipping, skipped),
            (None, Some(bytes)) => (Phase::MetadataPass, bytes),
            (None, None) => (Phase::Data, done),
        };
        let mut frame = Vec::new();
        Frame::Heartbeat(Heartbeat {
            phase,
            done,
            total,
            starved: None,
        })
        .encode(&mut frame);
        frame
    }

    /// Writes a frame within the bandwidth limit; `moved` is told of each piece of it.
    async fn write(
        &self,
        to: &mut (impl AsyncWrite + Unpin),
        frame: &[u8],
        moved: &impl Fn(),
    ) -> Result<()> {
        let piece = self
            .bucket
            .as_ref()
            .map_or(64 << 10, |bucket| bucket.piece());
        for part in frame.chunks(piece) {
            if let Some(bucket) = self.bucket {
                // Waiting for our own limit is not the receiver's doing.
                moved();
                bucket.pass(part.len()).await;
            }
            link::write(to, part).await?;
            self.ticket
                .sent
                .fetch_add(part.len() as u64, Ordering::Relaxed);
            moved();
        }
        Ok(())
    }
}

/// The blocks that the receiver has already: they are made again, and compared before anything is
/// left out.
struct Skip {
    to: Position,
    chain: Chain,
}

impl Skip {
    fn to(to: Position) -> Self {
        Self {
            to,
            chain: Chain::at(Position::START),
        }
    }

    /// Bytes skipped so far, if there are more to skip.
    fn under_way(&self) -> Option<u64> {
        let skipped = self.chain.position().raw;
        (skipped < self.to.raw).then_some(skipped)
    }

    /// Whether the receiver has this block, the next of the stream.
    fn block(&mut self, data: &Data<'_>) -> Result<bool> {
        if self.under_way().is_none() {
            return Ok(false);
        }
        self.chain.fold(data.hash, data.raw_len);
        if self.under_way().is_none() {
            self.done()?;
        }
        Ok(true)
    }

    /// Makes sure that what was skipped is what the receiver has.
    fn done(&self) -> Result<()> {
        let here = self.chain.position();
        here.compare(&self.to).map_err(|mismatch| {
            let message = format!("the source makes another stream than before: {mismatch}");
            Error::refused(Reason::SourceChanged, message)
        })
    }
}
