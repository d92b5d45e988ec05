//! The receiver's end of a transfer: blocks come in, are checked and applied on a thread of their
//! own, and become a snapshot once the last has proved to be the last.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use icbd_btrfs::receive::{Base, Receiver};
use icbd_btrfs::{SnapshotNumber, Subvolume};
use icbd_wire::control::Reason;
use icbd_wire::data::{
    Ack, Answer, CodecSet, Decompressor, Done, Failure, FailureCode, Frame, Heartbeat, Phase,
    Position, Receiving, Welcome,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::expect::Announced;
use super::link::{self, Movement, RawFrame};
use super::listen::{Incoming, refuse};
use super::ticket::Ticket;
use super::{Transfers, source};
use crate::error::{Error, Result, blocking};
use crate::image::arrival::{self, Verdict};
use crate::image::{ImageDir, Images, Meta};

/// Frames that wait to be applied, at most; each has up to 1 MiB.
const AHEAD: usize = 4;

/// How often the source hears how far its bytes have got.
const ACKNOWLEDGE: Duration = Duration::from_secs(1);

/// A place for a snapshot in its image: recorded, and empty.
struct Place {
    image: ImageDir,
    meta: Meta,
    /// Which snapshots the stream may build on.
    parent: Option<(Uuid, SnapshotNumber, Subvolume)>,
}

impl Transfers {
    /// Receives what was announced from the source that has connected.
    pub(super) async fn receive(
        &self,
        ticket: &Arc<Ticket>,
        announced: Announced,
        incoming: Incoming,
    ) -> Result<()> {
        let Incoming { mut stream, hello } = incoming;
        let begun = match announced.is(&hello) {
            true => {
                self.begin(&announced, hello.expected_raw.unwrap_or(0))
                    .await
            }
            false => {
                let message = "the source offers another snapshot than was announced";
                Err(Error::refused(Reason::NotExpected, message))
            }
        };
        let place = match begun {
            Ok(Some(place)) => place,
            Ok(None) => {
                let mut answer = Vec::new();
                let there = Failure::new(FailureCode::AlreadyThere, "the snapshot is here already");
                Answer::Refused(there).encode(&mut answer);
                link::write(&mut stream, &answer).await?;
                return Ok(());
            }
            Err(error) => {
                refuse(&mut stream, &error).await;
                return Err(error);
            }
        };
        if let Some((_, number, _)) = &place.parent {
            let _ = ticket.parent.set(*number);
        }
        if let Some(total) = hello.expected_raw {
            ticket.set_total(total);
        }
        let welcome = hello
            .welcome(CodecSet::ALL, Position::START)
            .map_err(|error| link::broken(&error));
        let welcome = match welcome {
            Ok(welcome) => welcome,
            Err(error) => {
                refuse(&mut stream, &error).await;
                return Err(error);
            }
        };
        let codec = welcome
            .codecs
            .iter()
            .last()
            .map(source::named)
            .unwrap_or_default();
        ticket.start(codec);
        tracing::info!("receiving");
        let mut answer = Vec::new();
        Answer::Welcome(welcome).encode(&mut answer);
        link::write(&mut stream, &answer).await?;
        Arriving::new(Arc::clone(ticket), self.0.stall)
            .run(stream, welcome, place, announced, self.0.images.clone())
            .await
    }

    /// Makes a place for the snapshot; `None` if it is there already.
    async fn begin(&self, announced: &Announced, bytes: u64) -> Result<Option<Place>> {
        let (wanted, images) = (announced.clone(), self.0.images.clone());
        self.0
            .images
            .proceed(&announced.image, move |pool| {
                if !images.is_settled(pool) {
                    let message = "the pool has just come and is being looked at";
                    return Err(Error::refused(Reason::PoolUnavailable, message));
                }
                let image = ImageDir::make(pool, &wanted.image)?;
                let meta = Meta::make(&image)?;
                if wanted.judge(pool, &image, &meta, bytes)? == Verdict::AlreadyThere {
                    return Ok(None);
                }
                let parent = wanted.parent.map(|parent| {
                    let number = arrival::find(&image, parent)?;
                    let subvolume = Subvolume::open(&image, number.to_string())
                        .map_err(Error::btrfs(image.at(number)))?;
                    Ok::<_, Error>((parent, number, subvolume))
                });
                let parent = parent.transpose()?;
                arrival::begin(&image, &meta, wanted.number, &wanted.arrival)?;
                Ok(Some(Place {
                    image,
                    meta,
                    parent,
                }))
            })
            .await
    }
}

/// A snapshot while it arrives, as its two halves share it: the connection and the disk.
struct Arriving {
    ticket: Arc<Ticket>,
    movement: Movement,
    /// Raw bytes that were received and checked.
    received: AtomicU64,
    /// Whether all has come and is being made durable.
    finishing: AtomicBool,
    /// Buffers to read frames into again.
    spare: Mutex<VecDeque<Vec<u8>>>,
}

impl Arriving {
    fn new(ticket: Arc<Ticket>, stall: Duration) -> Arc<Self> {
        Arc::new(Self {
            ticket,
            movement: Movement::new(stall),
            received: AtomicU64::new(0),
            finishing: AtomicBool::new(false),
            spare: Mutex::default(),
        })
    }

    async fn run(
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
        // Its partial is gone or its snapshot is there: the inventory shows which.
        let shown = images.proceed(&image, |_| Ok(())).await;
        result.and(shown)
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
            let phase = if finishing {
                Phase::Finishing
            } else {
                Phase::Data
            };
            let mut frames = Vec::new();
            // Nothing is durable by itself before the snapshot is: an attempt starts over.
            Frame::Ack(Ack {
                received,
                durable: 0,
            })
            .encode(&mut frames);
            let done = if finishing { 0 } else { received };
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

    /// Applies the stream and makes it a snapshot, whose uuid it returns. Blocks; on failure
    /// nothing is left.
    fn apply(
        &self,
        mut blocks: Blocks,
        place: &Place,
        announced: &Announced,
        images: &Images,
    ) -> Result<Uuid> {
        let result = self.apply_all(&mut blocks, place, announced, images);
        if result.is_err()
            && let Err(error) = arrival::give_up(&place.image, &place.meta, announced.number)
        {
            tracing::error!(%error, "cannot remove what came of the snapshot");
        }
        result.map_err(|error| blocks.broken.take().unwrap_or(error))
    }

    fn apply_all(
        &self,
        blocks: &mut Blocks,
        Place {
            image,
            meta,
            parent,
        }: &Place,
        announced: &Announced,
        images: &Images,
    ) -> Result<Uuid> {
        let (number, identity) = (announced.number, announced.arrival.identity);
        let bases: Vec<_> = parent
            .iter()
            .map(|(identity, _, subvolume)| Base {
                identity: *identity,
                subvolume,
            })
            .collect();
        let partial = number.partial_name();
        let received = Receiver::new(image.as_fd(), partial.as_bytes(), &bases)
            .run(&mut *blocks, |_| match self.ticket.asked_to_stop() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            })
            .map_err(Error::receive(image.at(number)))?;
        blocks.expect_end()?;
        let content = received.content().uuid;
        if content != identity {
            let message = format!("the stream carries {content}, not {identity}");
            return Err(Error::refused(Reason::StreamInvalid, message));
        }
        self.finishing.store(true, Ordering::Relaxed);
        self.movement.be_patient(link::FINISHING);
        let _alone = images.alone_blocking(image.id());
        // The tombstone of a snapshot that was deleted meanwhile forbids it to appear.
        arrival::judge(image, meta, number, identity, announced.parent)?;
        let snapshot = received
            .finish(number.to_string().as_bytes())
            .map_err(Error::receive(image.at(number)))?;
        arrival::complete(meta, number, &announced.arrival)?;
        Ok(snapshot
            .info()
            .map_err(Error::btrfs(image.at(number)))?
            .uuid)
    }

    fn spare(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks as a stream of raw bytes, each opened and checked before any of it is given out.
struct Blocks {
    arriving: Arc<Arriving>,
    queue: mpsc::Receiver<RawFrame>,
    receiving: Receiving,
    decompressor: Decompressor,
    raw: Vec<u8>,
    at: usize,
    /// Why there is no next block: an I/O error cannot say it well.
    broken: Option<Error>,
}

impl Blocks {
    fn new(arriving: Arc<Arriving>, queue: mpsc::Receiver<RawFrame>, welcome: &Welcome) -> Self {
        Self {
            arriving,
            queue,
            receiving: Receiving::new(welcome),
            decompressor: Decompressor::new(),
            raw: Vec::new(),
            at: 0,
            broken: None,
        }
    }

    /// Opens the next block; `false` at the end of the stream.
    fn next_block(&mut self) -> Result<bool> {
        loop {
            if self.receiving.is_complete() {
                return Ok(false);
            }
            let Some(frame) = self.queue.blocking_recv() else {
                return Err(Error::refused(Reason::PeerLost, "the stream broke off"));
            };
            let opened = self.open(&frame)?;
            self.arriving.spare().push_back(frame.body);
            if opened {
                return Ok(true);
            }
        }
    }

    fn open(&mut self, raw: &RawFrame) -> Result<bool> {
        let frame = raw.frame()?;
        self.receiving
            .admit(&frame)
            .map_err(|error| link::broken(&error))?;
        let Frame::Data(data) = frame else {
            return Ok(false);
        };
        let block = self
            .decompressor
            .open(&data)
            .map_err(|error| link::broken(&error))?;
        self.raw.clear();
        self.raw.extend_from_slice(block);
        self.at = 0;
        let received = self.receiving.position().raw;
        self.arriving.received.store(received, Ordering::Relaxed);
        self.arriving.ticket.done.store(received, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes sure that the source has said all, and that all of it was the stream.
    fn expect_end(&mut self) -> Result<()> {
        if self.at < self.raw.len() || self.next_block()? {
            let message = "bytes follow the end of the send stream";
            return Err(Error::refused(Reason::StreamInvalid, message));
        }
        Ok(())
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.raw.len() {
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let message = error.to_string();
                    self.broken = Some(error);
                    return Err(io::Error::other(message));
                }
            }
        }
        let rest = self.raw.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
