//! Announcements: what the operator says is about to arrive, and whether it may. A transfer that
//! was not announced is not received.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use icbd_wire::control::expect_response::{Accepted, AlreadyThere, Answer};
use icbd_wire::control::{ExpectRequest, Reason, Role};
use icbd_wire::data::Hello;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::listen::Awaited;
use super::ticket::Ticket;
use super::{Transfers, end_all};
use crate::error::{Error, Result};
use crate::image::arrival::{self, Verdict};
use crate::image::{self, Arrival, ImageDir, ImageId, Meta, SnapshotNumber, SnapshotRecord, claim};
use crate::pool::OpenPool;

/// How long an announced transfer may take to come.
const EXPECT_WITHIN: Duration = Duration::from_secs(120);

/// What was announced.
#[derive(Clone)]
pub(super) struct Announced {
    pub(super) image: ImageId,
    pub(super) number: SnapshotNumber,
    pub(super) parent: Option<Uuid>,
    pub(super) arrival: Arrival,
    pub(super) min_free: u64,
}

impl Announced {
    fn from(request: &ExpectRequest) -> Result<Self> {
        let identity = image::uuid("identity", &request.identity)?;
        let parent = Some(request.parent_identity.as_str()).filter(|parent| !parent.is_empty());
        let record = request.record.as_ref();
        Ok(Self {
            image: request.image.as_ref().try_into()?,
            number: image::number(request.number)?,
            parent: parent
                .map(|parent| image::uuid("parent identity", parent))
                .transpose()?,
            arrival: Arrival {
                transfer: image::uuid("transfer", &request.transfer)?,
                identity,
                record: record.map(|record| SnapshotRecord::received(record, identity)),
                checkpoint: None,
            },
            min_free: request.min_free,
        })
    }

    /// Whether a source that says this is the one that was announced.
    pub(super) fn is(&self, hello: &Hello) -> bool {
        self.arrival.transfer == hello.transfer
            && self.image.namespace == hello.namespace
            && self.image.name == hello.image
            && self.number.get() == hello.snapshot.get()
            && self.arrival.identity == hello.content
            && self.parent == hello.parent
    }

    /// Whether it may come, now: asked when it is announced, and again when it comes.
    pub(super) fn judge(
        &self,
        pool: &OpenPool,
        image: &ImageDir,
        meta: &Meta,
        bytes: u64,
    ) -> Result<Verdict> {
        let identity = self.arrival.identity;
        let verdict = arrival::judge(image, meta, self.number, identity, self.parent)?;
        if verdict == Verdict::AlreadyThere {
            return Ok(verdict);
        }
        let kept = arrival::kept(meta, self.number, &self.arrival, self.parent)?;
        let bytes = bytes.saturating_sub(kept.map_or(0, |kept| kept.position().raw));
        let (_, free) = pool.space()?;
        if free.saturating_sub(self.min_free) < bytes.max(1) {
            let message = format!(
                "{bytes} bytes are to come, {free} are free, and {} must stay free",
                self.min_free,
            );
            return Err(Error::refused(Reason::InsufficientSpace, message));
        }
        Ok(verdict)
    }
}

impl Transfers {
    /// Takes an announcement; what it says of a number replaces what was said before.
    pub(crate) async fn expect(&self, request: ExpectRequest) -> Result<Answer> {
        let announced = Announced::from(&request)?;
        let id = announced.arrival.transfer;
        let (wanted, bytes, source) = (announced.clone(), request.bytes, request.source_node);
        let (verdict, resume_at) = self
            .0
            .images
            .change(request.fence, &announced.image, move |pool| {
                let image = ImageDir::make(pool, &wanted.image)?;
                let meta = Meta::make(&image)?;
                claim(&image, &meta, request.owner.as_ref())?;
                let verdict = wanted.judge(pool, &image, &meta, bytes)?;
                if let (Verdict::AlreadyThere, None) = (verdict, meta.snapshots.get(wanted.number)?)
                {
                    arrival::complete(&image, &meta, wanted.number, &wanted.arrival)?;
                }
                let kept = arrival::kept(&meta, wanted.number, &wanted.arrival, wanted.parent)?;
                if kept.is_some() {
                    // It does not expire before the transfer is known to be awaited.
                    meta.arriving.touch(wanted.number, SystemTime::now())?;
                }
                Ok((verdict, kept.map_or(0, |kept| kept.position().raw)))
            })
            .await?;
        if verdict == Verdict::AlreadyThere {
            return Ok(Answer::AlreadyThere(AlreadyThere {}));
        }
        let _alone = self.0.announcing.lock().await;
        let before = self.users(|ticket| {
            ticket.role == Role::Receiver
                && ticket.image == announced.image
                && ticket.number == announced.number
        });
        if before.iter().any(|ticket| ticket.id == id) {
            return Ok(Answer::Accepted(Accepted { resume_at }));
        }
        let why = "the snapshot was announced anew";
        // Not as cancelled: what has come is to be gone on from.
        end_all(&before, Reason::PeerLost, why).await;
        self.await_source(announced, source, bytes)?;
        Ok(Answer::Accepted(Accepted { resume_at }))
    }

    /// Makes room for the source to connect.
    fn await_source(&self, announced: Announced, source: String, bytes: u64) -> Result<()> {
        let id = announced.arrival.transfer;
        let (image, number) = (announced.image.clone(), announced.number);
        let receiving = (id, Role::Receiver);
        let ticket = Arc::new(Ticket::new(receiving, image, number, source.clone()));
        ticket.estimate_total(bytes);
        let (connected, connection) = oneshot::channel();
        self.expected().insert(id, Awaited { source, connected });
        let (transfers, waiting) = (self.clone(), Arc::clone(&ticket));
        self.run(&ticket, async move {
            let within = tokio::time::timeout(EXPECT_WITHIN, connection);
            let incoming = waiting
                .unless_stopped(async {
                    let connected = within.await.ok().and_then(|connected| connected.ok());
                    connected.ok_or_else(|| {
                        let seconds = EXPECT_WITHIN.as_secs();
                        let message = format!("the source did not connect within {seconds} s");
                        Error::refused(Reason::TransferStalled, message)
                    })
                })
                .await?;
            transfers.receive(&waiting, announced, incoming).await
        })
    }
}
