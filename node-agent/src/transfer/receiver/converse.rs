//! The receiver's connection half: frames come in and go to the disk, and the source hears how far
//! they have got.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use icbd_wire::data::{Ack, Done, Frame, Heartbeat, Phase, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::Place;
use super::apply::Blocks;
use crate::error::{Result, blocking};
use crate::image::Images;
use crate::transfer::expect::Announced;
use crate::transfer::link::{self, Movement, RawFrame};
use crate::transfer::ticket::Ticket;

/// Frames that wait to be applied, at most; each has up to 1 MiB.
const AHEAD: usize = 4;

/// How often the source hears how far its bytes have got.
const ACKNOWLEDGE: Duration = Duration::from_secs(1);

/// A snapshot while it arrives, as its two halves share it: the connection and the disk.
pub(super) struct Arriving {
    pub(super) ticket: Arc<Ticket>,
    pub(super) movement: Movement,
    /// Raw bytes that were received and checked.
    pub(super) received: AtomicU64,
    /// Raw bytes whose commands were carried out.
    pub(super) applied: AtomicU64,
    /// Whether all has come and is being made durable.
    pub(super) finishing: AtomicBool,
    /// Buffers to read frames into again.
    spare: Mutex<VecDeque<Vec<u8>>>,
}

impl Arriving {
    pub(super) fn new(ticket: Arc<Ticket>, stall: Duration) -> Arc<Self> {
        Arc::new(Self {
            ticket,
            movement: Movement::new(stall),
            received: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            finishing: AtomicBool::new(false),
            spare: Mutex::default(),
        })
    }

    pub(super) async fn run(
        self: Arc<Self>,
        mut stream: TcpStream,
        welcome: Welcome,
        place: Place,
        announced: Announced,
        images: Images,
    ) -> Result<()> {
        let (mut from, mut to) = stream.split();
        let (frames, queue) = mpsc::channel(AHEAD);
        let (arriving, image) = (Arc::clone(&self), announced.image.clone());
        let disk = images.clone();
        let applied = blocking(move || {
            let blocks = Blocks::new(Arc::clone(&arriving), queue, &welcome);
            arriving.apply(blocks, &place, &announced, &disk)
        });
        tokio::pin!(applied);
        let early = {
            let talk =
                async { tokio::try_join!(self.hear(&mut from, frames), self.speak(&mut to)) };
            tokio::select! {
                result = &mut applied => Ok(result),
                error = self.ticket.stopped() => Err(error),
                error = self.movement.stalled() => Err(error),
                Err(error) = talk => Err(error),
            }
        };
        let result = match early {
            Ok(result) => result,
            // The queue is closed now, and the disk ends as soon as it asks for more. That is not
            // why the transfer fails, if it does.
            Err(cause) => applied.await.map_err(|_| cause),
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
        // Its partial is gone or its snapshot is there: the inventory is to show which.
        if let Err(error) = images.proceed(&image, |_| Ok(())).await {
            tracing::warn!(%error, "cannot read the image");
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
            let body = self.spare().pop_front().unwrap_or_default();
            let raw = RawFrame::read(from, body, &|| self.movement.moved()).await;
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
                        self.ticket.set_total(total);
                    }
                    if heartbeat.replace(now) != Some(now) {
                        self.movement.moved();
                    }
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
        let mut tick = tokio::time::interval(ACKNOWLEDGE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let received = self.received.load(Ordering::Relaxed);
            let finishing = self.finishing.load(Ordering::Relaxed);
            // One block can keep the disk busy for long: what was carried out of it is progress.
            let (phase, done) = match finishing {
                true => (Phase::Finishing, 0),
                false => (Phase::Data, self.applied.load(Ordering::Relaxed)),
            };
            let mut frames = Vec::new();
            // Nothing is durable by itself before the snapshot is: an attempt starts over.
            Frame::Ack(Ack {
                received,
                durable: 0,
            })
            .encode(&mut frames);
            Frame::Heartbeat(Heartbeat {
                phase,
                done,
                total: None,
            })
            .encode(&mut frames);
            match link::write(to, &frames).await {
                Ok(()) => {}
                Err(_) if finishing => return std::future::pending().await,
                Err(error) => return Err(error),
            }
        }
    }

    pub(super) fn spare(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
