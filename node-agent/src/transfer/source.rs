//! The source's end of a transfer: the kernel's send stream, cut into blocks, sealed on a thread of
//! its own, and written to the receiver as fast as that and the bandwidth limit let it.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use icbd_btrfs::{SendRequest, SendStream, Subvolume};
use icbd_wire::control::{self, Reason, Role};
use icbd_wire::data::{
    Answer, Codec, CodecSet, Compressor, Frame, Heartbeat, Hello, MAX_BLOCK, Mode, Phase, Sending,
    VersionRange, Welcome,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Transfers;
use super::limit::Bucket;
use super::link::{self, Movement, RawFrame};
use super::ticket::Ticket;
use crate::error::{Error, Result, blocking};
use crate::image::{self, ImageDir, ImageId, Meta, SnapshotNumber, claim, inventory};
use crate::net;

/// Sealed blocks that wait for the network, at most; each has up to 1 MiB.
const AHEAD: usize = 4;

/// How long the reason for a failed write may take to come from the receiver.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long a transfer waits to learn its length; after that it is told when it is known.
const MEASURE_FIRST: Duration = Duration::from_secs(1);

/// What to send, to whom and how.
struct Order {
    image: ImageId,
    number: SnapshotNumber,
    identity: Uuid,
    parent: Option<(SnapshotNumber, Uuid)>,
    receiver: SocketAddr,
    codec: Codec,
    bucket: Option<Arc<Bucket>>,
}

/// The snapshots of a transfer, open: while they are, they stay what they are.
struct Opened {
    source: Subvolume,
    parent: Option<Subvolume>,
}

impl Opened {
    fn request(&self) -> SendRequest<'_> {
        let (source, parent) = (&self.source, self.parent.as_ref());
        SendRequest {
            source,
            parent,
            clone_sources: &[],
        }
    }
}

/// Learns how long the stream will be, while the transfer lasts; `None` if that cannot be learnt.
async fn measure(ticket: Arc<Ticket>, opened: Arc<Opened>) -> Option<u64> {
    let measured = tokio::task::spawn_blocking(move || {
        let measured = opened.request().measure(|_| match ticket.is_over() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        match measured {
            Ok(size) => {
                ticket.set_total(size.stream);
                Some(size.stream)
            }
            Err(error) => {
                tracing::debug!(%error, "the length of the stream is not known");
                None
            }
        }
    });
    measured.await.ok().flatten()
}

impl Transfers {
    /// Starts a transfer that this agent is the source of. Asked again, it does nothing more.
    pub(crate) async fn send(&self, request: control::SendRequest) -> Result<()> {
        let id = image::uuid("transfer", &request.transfer)?;
        let order = Arc::new(self.order(&request)?);
        let known = self
            .0
            .facts
            .transfer(&request.transfer, Role::Source)
            .is_some();
        let (wanted, owner) = (Arc::clone(&order), request.owner);
        let opened = self
            .0
            .images
            .change(request.fence, &order.image, move |pool| {
                let image = ImageDir::open(pool, &wanted.image)?.ok_or_else(|| {
                    let message = format!("there is no directory {}", wanted.image);
                    Error::refused(Reason::ImageNotFound, message)
                })?;
                claim(&image, &Meta::make(&image)?, owner.as_ref())?;
                if known {
                    return Ok(None);
                }
                wanted.open(&image).map(Some)
            })
            .await?;
        let Some(opened) = opened else { return Ok(()) };
        let peer = request
            .receiver
            .map(|receiver| receiver.node)
            .unwrap_or_default();
        let (image, number) = (order.image.clone(), order.number);
        let ticket = Arc::new(Ticket::new((id, Role::Source), image, number, peer));
        if let Some((parent, _)) = order.parent {
            let _ = ticket.parent.set(parent);
        }
        ticket.start(named(order.codec));
        let work = Self::send_to_end(Arc::clone(&ticket), order, opened, self.0.stall);
        self.run(&ticket, work)
    }

    fn order(&self, request: &control::SendRequest) -> Result<Order> {
        let invalid = |message: &str| Error::refused(Reason::InvalidArgument, message);
        let receiver = request
            .receiver
            .as_ref()
            .ok_or_else(|| invalid("no receiver"))?;
        let address: IpAddr = receiver
            .address
            .parse()
            .map_err(|_| invalid("the receiver's address is not an IP address"))?;
        let port = u16::try_from(receiver.port)
            .map_err(|_| invalid("the receiver's port is beyond 65535"))?;
        let parent = match request.parent_number {
            0 => None,
            parent => {
                let identity = image::uuid("parent identity", &request.parent_identity)?;
                Some((image::number(parent)?, identity))
            }
        };
        let limit = request
            .limit
            .as_ref()
            .filter(|limit| limit.bytes_per_second > 0);
        Ok(Order {
            image: request.image.as_ref().try_into()?,
            number: image::number(request.number)?,
            identity: image::uuid("identity", &request.identity)?,
            parent,
            receiver: SocketAddr::new(address, port),
            codec: codec(request.codec()),
            bucket: limit.map(|limit| self.0.limits.bucket(limit)),
        })
    }

    async fn send_to_end(
        ticket: Arc<Ticket>,
        order: Arc<Order>,
        opened: Opened,
        stall: Duration,
    ) -> Result<()> {
        tracing::info!(receiver = %order.receiver, codec = %order.codec, "sending");
        let opened = Arc::new(opened);
        let measured = measure(Arc::clone(&ticket), Arc::clone(&opened));
        let expected = tokio::time::timeout(MEASURE_FIRST, measured)
            .await
            .ok()
            .flatten();
        let mut stream = ticket.unless_stopped(net::dial(order.receiver)).await?;
        let hello = order.hello(ticket.id, expected)?;
        let greeting = greet(&mut stream, &hello, &ticket);
        let Some(welcome) = ticket.unless_stopped(greeting).await? else {
            tracing::info!("the receiver has the snapshot already");
            return Ok(());
        };
        let codec = if welcome.codecs.contains(order.codec) {
            order.codec
        } else {
            Codec::None
        };
        ticket.start(named(codec));

        let sending = Arc::new(Mutex::new(Sending::new(&welcome)));
        let (sealed, blocks) = mpsc::channel(AHEAD);
        let sealing = Sealing {
            ticket: Arc::clone(&ticket),
            sending: Arc::clone(&sending),
            codec,
            sealed,
        };
        let sealer = blocking(move || {
            sealing.run(&opened);
            Ok(())
        });
        let connection = Connection {
            ticket: &ticket,
            movement: Movement::new(stall),
            bucket: &order.bucket,
        };
        let (_, result) = tokio::join!(sealer, connection.run(stream, blocks, &sending));
        result
    }
}

impl Order {
    fn open(&self, image: &ImageDir) -> Result<Opened> {
        let open = |number: SnapshotNumber, identity: Uuid| {
            let at = image.at(number);
            let missing = |what: String| Error::refused(Reason::SnapshotNotFound, what);
            let found = inventory::snapshot(image, number)?
                .ok_or_else(|| missing(format!("there is no snapshot {at}")))?;
            if found.identity != identity {
                let message = format!("{at} holds {}, not {identity}", found.identity);
                return Err(Error::refused(Reason::Conflict, message));
            }
            if found.suspect {
                return Err(missing(format!(
                    "{at} was changed since it was taken or received"
                )));
            }
            Subvolume::open(image, number.to_string()).map_err(Error::btrfs(at))
        };
        Ok(Opened {
            source: open(self.number, self.identity)?,
            parent: self
                .parent
                .map(|(number, identity)| open(number, identity))
                .transpose()?,
        })
    }

    fn hello(&self, transfer: Uuid, expected_raw: Option<u64>) -> Result<Hello> {
        let snapshot = NonZeroU64::new(self.number.get()).ok_or_else(|| {
            Error::refused(Reason::InvalidArgument, "snapshot numbers start at 1")
        })?;
        Ok(Hello {
            versions: VersionRange::OURS,
            transfer,
            namespace: self.image.namespace.clone(),
            image: self.image.name.clone(),
            snapshot,
            content: self.identity,
            parent: self.parent.map(|(_, identity)| identity),
            mode: Mode::Stream,
            codecs: CodecSet::of([self.codec]),
            expected_raw,
        })
    }
}

/// Opens the conversation; `None` if the receiver has the snapshot already.
async fn greet(stream: &mut TcpStream, hello: &Hello, ticket: &Ticket) -> Result<Option<Welcome>> {
    let mut message = Vec::new();
    hello.encode(&mut message);
    link::write(stream, &message).await?;
    ticket
        .sent
        .fetch_add(message.len() as u64, Ordering::Relaxed);
    match link::read_answer(stream).await? {
        Answer::Welcome(welcome) => {
            hello
                .check(&welcome)
                .map_err(|error| link::broken(&error))?;
            Ok(Some(welcome))
        }
        Answer::Refused(failure) if failure.code == icbd_wire::data::FailureCode::AlreadyThere => {
            Ok(None)
        }
        Answer::Refused(failure) => Err(link::heard(&failure)),
    }
}

/// The thread that turns the kernel's stream into sealed blocks.
struct Sealing {
    ticket: Arc<Ticket>,
    sending: Arc<Mutex<Sending>>,
    codec: Codec,
    sealed: mpsc::Sender<Result<Vec<u8>>>,
}

impl Sealing {
    fn run(self, opened: &Opened) {
        if let Err(error) = self.seal_all(opened) {
            // Whoever waited for blocks has gone if this fails, and knows why.
            let _ = self.sealed.blocking_send(Err(error));
        }
    }

    fn seal_all(&self, opened: &Opened) -> Result<()> {
        let at = || format!("{}/{}", self.ticket.image, self.ticket.number);
        let mut stream = opened.request().start().map_err(Error::btrfs(at()))?;
        let mut compressor = Compressor::new();
        let mut raw = vec![0; MAX_BLOCK];
        loop {
            let length = fill_block(&mut stream, &mut raw)
                .map_err(Error::io(format!("read the send stream of {}", at())))?;
            if length == 0 {
                break;
            }
            let Some(data) = raw
                .get(..length)
                .map(|raw| compressor.seal(self.codec, raw))
            else {
                break;
            };
            let data = data.map_err(|error| {
                Error::refused(Reason::IoError, format!("cannot seal a block: {error}"))
            })?;
            let sent = self
                .sending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .block(&data);
            sent.map_err(|error| link::broken(&error))?;
            let mut frame = Vec::with_capacity(data.payload.len() + 64);
            Frame::Data(data).encode(&mut frame);
            if self.sealed.blocking_send(Ok(frame)).is_err() {
                return Ok(());
            }
            self.ticket.done.fetch_add(length as u64, Ordering::Relaxed);
            if length < MAX_BLOCK {
                break;
            }
        }
        let end = self
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end();
        let mut frame = Vec::new();
        Frame::End(end).encode(&mut frame);
        let _ = self.sealed.blocking_send(Ok(frame));
        Ok(())
    }
}

/// Fills a block as far as the stream goes. A short one is the last.
fn fill_block(stream: &mut SendStream, block: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = block.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}

/// The connection to the receiver, from welcome to done.
struct Connection<'a> {
    ticket: &'a Ticket,
    movement: Movement,
    bucket: &'a Option<Arc<Bucket>>,
}

impl Connection<'_> {
    async fn run(
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
        let mut heartbeat = None;
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
                    Frame::Heartbeat(now) => {
                        let finishing = |beat: &Heartbeat| beat.phase == Phase::Finishing;
                        if finishing(&now) && !heartbeat.as_ref().is_some_and(finishing) {
                            self.movement.be_patient(link::FINISHING);
                        }
                        if heartbeat.replace(now) != Some(now) {
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
                _ = tick.tick() => Ok(self.heartbeat()),
            };
            match next {
                Ok(frame) => self.write(to, &frame).await?,
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

    async fn write(&self, to: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> Result<()> {
        let piece = self
            .bucket
            .as_ref()
            .map_or(64 << 10, |bucket| bucket.piece());
        for part in frame.chunks(piece) {
            if let Some(bucket) = self.bucket {
                // Waiting for our own limit is not the receiver's doing.
                self.movement.moved();
                bucket.pass(part.len()).await;
            }
            link::write(to, part).await?;
            self.ticket
                .sent
                .fetch_add(part.len() as u64, Ordering::Relaxed);
            self.movement.moved();
        }
        Ok(())
    }
}

/// `Auto` is LZ4 in this version: no link is so fast that it costs more than it saves by much.
fn codec(wanted: control::Codec) -> Codec {
    match wanted {
        control::Codec::Auto | control::Codec::Lz4 => Codec::Lz4,
        control::Codec::None => Codec::None,
        control::Codec::Snappy => Codec::Snappy,
        control::Codec::Zlib => Codec::Zlib,
        control::Codec::Zstd => Codec::Zstd,
    }
}

/// A codec as the operator calls it.
pub(super) fn named(codec: Codec) -> control::Codec {
    match codec {
        Codec::None => control::Codec::None,
        Codec::Snappy => control::Codec::Snappy,
        Codec::Lz4 => control::Codec::Lz4,
        Codec::Zlib => control::Codec::Zlib,
        Codec::Zstd => control::Codec::Zstd,
    }
}
