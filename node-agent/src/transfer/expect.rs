//! Announcements: what the operator says is about to arrive, and whether it may. A transfer that
//! was not announced is not received; one that was, from the announced node, once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use icbd_wire::control::expect_response::{Accepted, AlreadyThere, Answer};
use icbd_wire::control::{ExpectRequest, Reason, Role};
use icbd_wire::data::Hello;
use tokio::sync::oneshot;

use super::Transfers;
use super::listen::Awaited;
use super::ticket::{Ticket, now};
use crate::error::{Error, Result};
use crate::image::arrival::{self, Verdict};
use crate::image::{
    self, Expectation, ImageDir, ImageId, Meta, SnapshotNumber, SnapshotRecord, claim, expectation,
};
use crate::pool::OpenPool;

/// What was announced.
#[derive(Clone)]
pub(super) struct Announced {
    pub(super) image: ImageId,
    pub(super) number: SnapshotNumber,
    pub(super) expected: Expectation,
}

impl Announced {
    /// What a call announces, to come within `longest`.
    fn from(request: &ExpectRequest, longest: Duration) -> Result<Self> {
        let identity = image::uuid("identity", &request.identity)?;
        let parent = Some(request.parent_identity.as_str()).filter(|parent| !parent.is_empty());
        let record = request.record.as_ref();
        Ok(Self {
            image: request.image.as_ref().try_into()?,
            number: image::number(request.number)?,
            expected: Expectation {
                transfer: image::uuid("transfer", &request.transfer)?,
                source: request.source_node.clone(),
                identity,
                parent: parent
                    .map(|parent| image::uuid("parent identity", parent))
                    .transpose()?,
                record: record.map(|record| SnapshotRecord::received(record, identity)),
                bytes: request.bytes,
                min_free: request.min_free,
                deadline: expectation::deadline(now(), longest),
            },
        })
    }

    /// Whether a source that says this is the one that was announced.
    pub(super) fn is(&self, hello: &Hello) -> bool {
        self.expected.transfer == hello.transfer
            && self.image.namespace == hello.namespace
            && self.image.name == hello.image
            && self.number.get() == hello.snapshot.get()
            && self.expected.identity == hello.content
            && self.expected.parent == hello.parent
    }

    /// Whether it may come, now: asked when it is announced, and again when it comes.
    pub(super) fn judge(
        &self,
        pool: &OpenPool,
        image: &ImageDir,
        meta: &Meta,
        bytes: u64,
    ) -> Result<Verdict> {
        let Expectation {
            identity,
            parent,
            min_free,
            ..
        } = self.expected;
        let verdict = arrival::judge(image, meta, self.number, identity, parent)?;
        if verdict == Verdict::AlreadyThere {
            return Ok(verdict);
        }
        let bytes = bytes.saturating_sub(self.kept(meta)?.unwrap_or(0));
        let (_, free) = pool.space()?;
        if free.saturating_sub(min_free) < bytes.max(1) {
            let message = format!(
                "{bytes} bytes are to come, {free} are free, and {min_free} must stay free",
            );
            return Err(Error::refused(Reason::InsufficientSpace, message));
        }
        Ok(verdict)
    }

    /// How many raw bytes an earlier attempt has left to go on from, if it has left any.
    fn kept(&self, meta: &Meta) -> Result<Option<u64>> {
        let (arrival, parent) = (self.expected.arrival(), self.expected.parent);
        let kept = arrival::kept(meta, self.number, &arrival, parent)?;
        Ok(kept.map(|kept| kept.position().raw))
    }
}

impl Transfers {
    /// Takes an announcement; what it says of a number replaces what was said before. What was
    /// accepted is awaited by an agent that is started anew, too.
    pub(crate) async fn expect(&self, request: ExpectRequest) -> Result<Answer> {
        let announced = Announced::from(&request, self.0.pace.expect)?;
        let (image, transfers) = (announced.image.clone(), self.clone());
        let (answer, before) = self
            .0
            .images
            .change(request.fence, &image, move |pool| {
                let image = ImageDir::make(pool, &announced.image)?;
                let meta = Meta::make(&image)?;
                claim(&image, &meta, request.owner.as_ref())?;
                let number = announced.number;
                if announced.judge(pool, &image, &meta, request.bytes)? == Verdict::AlreadyThere {
                    if meta.snapshots.get(number)?.is_none() {
                        arrival::complete(&image, &meta, number, &announced.expected.arrival())?;
                    }
                    return Ok((Answer::AlreadyThere(AlreadyThere {}), Vec::new()));
                }
                let kept = announced.kept(&meta)?;
                if kept.is_some() {
                    // It does not expire before the transfer is known to be awaited.
                    meta.arriving.touch(number, SystemTime::now())?;
                }
                let resume_at = kept.unwrap_or(0);
                let before = transfers.announce(&meta, announced)?;
                Ok((Answer::Accepted(Accepted { resume_at }), before))
            })
            .await?;
        for ticket in before {
            ticket.over().await;
        }
        Ok(answer)
    }

    /// Records an announcement, and awaits its source. The transfers of the same number until now
    /// are asked to end: they are the answer. Call it under the image's lock.
    fn announce(&self, meta: &Meta, announced: Announced) -> Result<Vec<Arc<Ticket>>> {
        let (number, transfer) = (announced.number, announced.expected.transfer);
        let before = self.users(|ticket| {
            ticket.role == Role::Receiver
                && ticket.image == announced.image
                && ticket.number == number
        });
        if before.iter().any(|ticket| ticket.id == transfer) {
            // Said twice. It may have begun, and be used up.
            return Ok(Vec::new());
        }
        meta.expected.put(number, &announced.expected)?;
        for ticket in &before {
            // Not as cancelled: what has come is to be gone on from.
            ticket.stop(Reason::PeerLost, "the snapshot was announced anew");
        }
        if let Err(error) = self.await_source(announced) {
            meta.expected.remove(number)?;
            return Err(error);
        }
        Ok(before)
    }

    /// Awaits the source of what was announced before this agent was started or the pool came;
    /// whether it is awaited: what has ended here does not begin again. Call it under the image's
    /// lock.
    pub(super) fn await_again(
        &self,
        image: ImageId,
        number: SnapshotNumber,
        expected: Expectation,
    ) -> bool {
        let transfer = expected.transfer.to_string();
        let known = self.0.facts.transfer(&transfer, Role::Receiver);
        if known.is_some_and(|known| known.ended_at != 0) {
            return false;
        }
        tracing::info!(%image, %number, transfer, "still announced");
        let again = self.await_source(Announced {
            image,
            number,
            expected,
        });
        if let Err(error) = again {
            // The next agent will.
            tracing::info!(%error, transfer, "not awaited");
        }
        true
    }

    /// Makes room for the source to connect, unless there is. Call it under the image's lock.
    fn await_source(&self, announced: Announced) -> Result<()> {
        let Announced {
            image,
            number,
            expected,
        } = &announced;
        let receiving = (expected.transfer, Role::Receiver);
        if self.tickets().contains_key(&receiving) {
            return Ok(());
        }
        let source = expected.source.clone();
        let ticket = Arc::new(Ticket::new(
            receiving,
            image.clone(),
            *number,
            source.clone(),
        ));
        ticket.estimate_total(expected.bytes);
        let (connected, connection) = oneshot::channel();
        let awaited = Awaited { source, connected };
        self.expected().insert(expected.transfer, awaited);
        let (transfers, waiting) = (self.clone(), Arc::clone(&ticket));
        self.run(&ticket, async move {
            let left = announced.expected.left(now()).unwrap_or_default();
            let connected = async {
                let connected = tokio::time::timeout(left, connection).await;
                let connected = connected.ok().and_then(|connected| connected.ok());
                connected.ok_or_else(|| too_late(transfers.0.pace.expect))
            };
            let connected = waiting.unless_stopped(connected).await;
            let received = match connected {
                Ok(incoming) => transfers.receive(&waiting, &announced, incoming).await,
                Err(error) => Err(error),
            };
            // Once it runs, it is used up.
            let withdrawn = received.is_err() && !waiting.is_running();
            if withdrawn && !outlives(&waiting, &received) {
                transfers.withdraw(&announced).await;
            }
            received
        })
    }

    /// Forgets an announcement, durably.
    async fn withdraw(&self, announced: &Announced) {
        let (image, number) = (announced.image.clone(), announced.number);
        let transfer = announced.expected.transfer;
        let withdraw = move |pool: &OpenPool| {
            let dir = ImageDir::open(pool, &image)?;
            let meta = dir.as_ref().map(Meta::open).transpose()?.flatten();
            meta.map(|meta| expectation::consume(&meta, number, transfer, now()))
                .transpose()
        };
        if let Err(error) = self.0.images.proceed(&announced.image, withdraw).await {
            // Should the pool come back, it will not be awaited, and forgotten then.
            tracing::warn!(%error, "cannot forget what was announced");
        }
    }
}

fn too_late(longest: Duration) -> Error {
    let seconds = longest.as_secs();
    let message = format!("the source did not connect within {seconds} s");
    Error::refused(Reason::TransferStalled, message)
}

/// Whether an announcement outlives what became of it here: this agent ends, and nobody has come.
pub(super) fn outlives(ticket: &Ticket, result: &Result<()>) -> bool {
    let ends = |error: &Error| error.reason() == Reason::ShuttingDown;
    ticket.role == Role::Receiver && !ticket.is_running() && result.as_ref().is_err_and(ends)
}
