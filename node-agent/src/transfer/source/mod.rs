//! The source's end of a transfer: what to send is checked and opened, the receiver is greeted, and
//! two halves go to work: `feed` on the disk, `converse` on the connection.

mod auto;
mod converse;
mod feed;
mod gather;
mod lines;
mod measure;
mod mode;
mod probe;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use icbd_btrfs::Subvolume;
use icbd_wire::control::{self, Reason, Role};
use icbd_wire::data::{Answer, Codec, FailureCode, Hello, Mode, VersionRange, Welcome};
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

pub(crate) use self::auto::AUTO;
use self::converse::Connection;
pub(crate) use self::feed::Opened;
use self::feed::{Agreed, Feed, Subscription};
pub(super) use self::gather::Gatherings;
use self::gather::PassKey;
pub(crate) use self::lines::LastSeen;
pub(super) use self::lines::Lines;
pub(crate) use self::measure::Measuring;
pub(crate) use self::mode::ModeChoice;
use super::Transfers;
use super::codec::CodecChoice;
use super::limit::Bucket;
use super::link;
use super::ticket::Ticket;
use crate::error::{Error, Result};
use crate::image::{self, ImageDir, ImageId, Meta, SnapshotNumber, claim, inventory};

/// How long a transfer waits to learn its length; after that it is told when it is known.
const MEASURE_FIRST: Duration = Duration::from_millis(100);

/// What to send, to whom and how.
struct Order {
    image: ImageId,
    number: SnapshotNumber,
    identity: Uuid,
    parent: Option<(SnapshotNumber, Uuid)>,
    receiver: SocketAddr,
    codec: CodecChoice,
    bucket: Option<Arc<Bucket>>,
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
        let (wanted, owner, choice) = (Arc::clone(&order), request.owner, self.0.mode);
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
                Ok(Some((wanted.open(&image)?, choice.offered(pool))))
            })
            .await?;
        let Some((opened, mode)) = opened else {
            return Ok(());
        };
        let known_bad = self.stream_only().contains(&order.identity);
        let mode = if known_bad { Mode::Stream } else { mode };
        let peer = request
            .receiver
            .map(|receiver| receiver.node)
            .unwrap_or_default();
        let (image, number) = (order.image.clone(), order.number);
        let ticket = Arc::new(Ticket::new((id, Role::Source), image, number, peer));
        if let Some((parent, _)) = order.parent {
            let _ = ticket.parent.set(parent);
        }
        let work = self
            .clone()
            .send_to_end(Arc::clone(&ticket), order, opened, mode);
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
            codec: request.codec().into(),
            bucket: limit.map(|limit| self.0.limits.bucket(limit)),
        })
    }

    async fn send_to_end(
        self,
        ticket: Arc<Ticket>,
        order: Arc<Order>,
        opened: Opened,
        mode: Mode,
    ) -> Result<()> {
        tracing::info!(receiver = %order.receiver, codec = ?order.codec, "sending");
        let opened = Arc::new(opened);
        let mut measuring = Measuring::start(&ticket, &opened, mode);
        let measured = tokio::time::timeout(MEASURE_FIRST, measuring.length());
        let dialled = self.0.network.dial(order.receiver, &ticket.peer);
        let dialled = ticket.unless_stopped(dialled);
        let (expected, stream) = tokio::join!(measured, dialled);
        let hello = order.hello(ticket.id, mode, expected.ok().flatten())?;
        let sender = Sender {
            ticket: &ticket,
            codec: order.codec,
            bucket: &order.bucket,
            stall: self.0.pace.stall,
            line: match order.bucket {
                None => self.0.lines.to(&ticket.peer),
                // What passes within a limit says nothing of the line.
                Some(_) => LastSeen::default(),
            },
        };
        let mut stream = stream?;
        let welcome = sender.greet(&mut stream, &hello).await;
        self.0.gatherings.greeted();
        let Some(welcome) = welcome? else {
            return Ok(());
        };
        if welcome.mode != mode {
            measuring = Measuring::start(&ticket, &opened, welcome.mode);
        }
        let key = PassKey {
            image: order.image.clone(),
            number: order.number,
            content: order.identity,
            parent: order.parent.map(|(_, parent)| parent),
            mode: welcome.mode,
            codec: sender.agreed(&welcome),
        };
        let had = welcome.resume.raw;
        let pieces = self.listen_to(key, &opened, &ticket, (had, &sender.line));
        let sent = sender.send(stream, pieces, &welcome, &opened).await;
        drop(measuring);
        if let Err(error) = &sent
            && welcome.mode == Mode::Extents
            && error.reason() == Reason::StreamInvalid
        {
            // Whatever it is that extents mode cannot make of this snapshot, the kernel can.
            tracing::warn!(%error, "the next attempt takes the kernel's own stream");
            self.stream_only().insert(order.identity);
        }
        sent
    }

    /// The contents that extents mode could not send.
    fn stream_only(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        let known = &self.0.stream_only;
        known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One transfer to the receiver at the other end of a connection.
pub(crate) struct Sender<'a> {
    pub(crate) ticket: &'a Ticket,
    pub(crate) codec: CodecChoice,
    pub(crate) bucket: &'a Option<Arc<Bucket>>,
    pub(crate) stall: Duration,
    pub(crate) line: LastSeen,
}

impl Sender<'_> {
    /// Opens the conversation; `None` if the receiver has the snapshot already.
    pub(crate) async fn greet(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        hello: &Hello,
    ) -> Result<Option<Welcome>> {
        let greeting = greet(stream, hello, self.ticket, self.stall);
        let welcome = self.ticket.unless_stopped(greeting).await?;
        match &welcome {
            Some(welcome) => {
                let (mode, from) = (welcome.mode.name(), welcome.resume.raw);
                tracing::info!(mode, from, "welcome");
                self.ticket.start_at(from);
            }
            None => tracing::info!("the receiver has the snapshot already"),
        }
        Ok(welcome)
    }

    /// Sends what a pass yields, to the end.
    async fn send(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        pieces: Subscription,
        welcome: &Welcome,
        opened: &Arc<Opened>,
    ) -> Result<()> {
        let alone = |had| self.begin(opened, welcome, had);
        Connection::new(self.ticket, self.stall, self.bucket, welcome)
            .run(stream, pieces, alone)
            .await
    }

    /// Sends a snapshot to a receiver that has welcomed it, from a pass of its own.
    pub(crate) async fn send_alone(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        welcome: &Welcome,
        opened: &Arc<Opened>,
    ) -> Result<()> {
        let pieces = self.begin(opened, welcome, welcome.resume.raw);
        self.send(stream, pieces, welcome, opened).await
    }

    fn agreed(&self, welcome: &Welcome) -> Agreed {
        match self.codec {
            CodecChoice::Auto => Agreed::Best(welcome.codecs),
            CodecChoice::Always(codec) if welcome.codecs.contains(codec) => Agreed::Always(codec),
            CodecChoice::Always(_) => Agreed::Always(Codec::None),
        }
    }

    /// Begins a pass over the snapshot for this receiver alone, which has so many raw bytes.
    fn begin(&self, opened: &Arc<Opened>, welcome: &Welcome, had: u64) -> Subscription {
        let mut feed = Feed::new(Arc::clone(opened), welcome.mode, self.agreed(welcome));
        let pieces = feed.subscribe(had, self.line.clone());
        tokio::task::spawn_blocking(move || feed.run());
        pieces
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
            at: image.at(self.number),
            source: open(self.number, self.identity)?,
            parent: self
                .parent
                .map(|(number, identity)| open(number, identity))
                .transpose()?,
        })
    }

    fn hello(&self, transfer: Uuid, mode: Mode, expected_raw: Option<u64>) -> Result<Hello> {
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
            mode,
            codecs: self.codec.offered(),
            expected_raw,
        })
    }
}

/// Opens the conversation; `None` if the receiver has the snapshot already.
async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    hello: &Hello,
    ticket: &Ticket,
    stall: Duration,
) -> Result<Option<Welcome>> {
    let mut message = Vec::new();
    hello.encode(&mut message);
    link::write(stream, &message).await?;
    ticket
        .sent
        .fetch_add(message.len() as u64, Ordering::Relaxed);
    match link::read_answer(stream, stall).await? {
        Answer::Welcome(welcome) => {
            hello
                .check(&welcome)
                .map_err(|error| link::broken(&error))?;
            Ok(Some(welcome))
        }
        Answer::Refused(failure) if failure.code == FailureCode::AlreadyThere => Ok(None),
        Answer::Refused(failure) => Err(link::heard(&failure)),
    }
}
