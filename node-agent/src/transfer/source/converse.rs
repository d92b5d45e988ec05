//! The source's connection half: sealed blocks go out as fast as the receiver and the bandwidth
//! limit let them, and what the receiver says comes in, until it is done.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use icbd_wire::control::Reason;
use icbd_wire::data::{Frame, Heartbeat, Phase, Sending};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::error::Result;
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
}

impl Connection<'_> {
    pub(super) async fn run(
        &self,
        mut stream: TcpStream,
        blocks: mpsc::Receiver<Result<Vec<u8>>>,
        sending: &Mutex<Sending>,
    ) -> Result<()> {
        let (mut from, mut to) = stream.split();
        let result = {
            let hear = self.hear(&mut from, sending);
            let speak = self.speak(&mut to, blocks);
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
    async fn hear(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        sending: &Mutex<Sending>,
    ) -> Result<()> {
        let mut body = Vec::new();
        let mut beat = None;
        loop {
            // A sign of life alone is not progress: only what changes counts.
            let raw = RawFrame::read(from, body, &|| {}).await?;
            {
                let frame = raw.frame()?;
                let mut sending = sending.lock().unwrap_or_else(PoisonError::into_inner);
                let before = sending.acked();
                sending
                    .admit(&frame)
                    .map_err(|error| link::broken(&error))?;
                match frame {
                    Frame::Done(_) => return Ok(()),
                    Frame::Abort(failure) => return Err(link::heard(&failure)),
                    Frame::Heartbeat(Heartbeat { phase, done, .. }) => {
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
        mut blocks: mpsc::Receiver<Result<Vec<u8>>>,
    ) -> Result<()> {
        let mut tick = tokio::time::interval(link::HEARTBEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut open = true;
        loop {
            let next = tokio::select! {
                biased;
                error = self.ticket.stopped() => Err(error),
                block = blocks.recv(), if open => match block {
                    Some(block) => block,
                    None => {
                        open = false;
                        continue;
                    }
                },
                _ = tick.tick() => {
                    // Our own sign of life moves nothing.
                    self.write(to, &self.heartbeat(), &|| {}).await?;
                    continue;
                }
            };
            match next {
                Ok(frame) => self.write(to, &frame, &|| self.movement.moved()).await?,
                Err(error) => {
                    let mut abort = Vec::new();
                    Frame::Abort(link::told(&error)).encode(&mut abort);
                    let _ = tokio::time::timeout(LAST_WORDS, link::write(to, &abort)).await;
                    return Err(error);
                }
            }
        }
    }

    fn heartbeat(&self) -> Vec<u8> {
        let done = self.ticket.done.load(Ordering::Relaxed);
        let total = Some(self.ticket.total.load(Ordering::Relaxed)).filter(|total| *total > 0);
        let mut frame = Vec::new();
        Frame::Heartbeat(Heartbeat {
            phase: Phase::Data,
            done,
            total,
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
