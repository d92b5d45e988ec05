//! Transfers: one snapshot from one agent to another. Here is which ones there are, how each is
//! run, watched and ended; how bytes move is in `source` and `receiver`.

mod codec;
mod expect;
mod limit;
mod link;
mod listen;
mod pipeline;
mod receiver;
mod source;
mod ticket;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use icbd_wire::control::{Reason, Role};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::image::{ImageId, Images, SnapshotNumber};
use crate::metrics::Metrics;
use crate::net::Network;
use crate::watch::Facts;
pub(crate) use codec::{CodecChoice, codec_name};
pub(crate) use limit::Bucket;
use limit::Limits;
pub(crate) use link::{Pace, read_hello};
use listen::Awaited;
pub(crate) use receiver::home::Home;
pub(crate) use receiver::receive;
use source::{Gatherings, Lines};
pub(crate) use source::{LastSeen, Measuring, ModeChoice, Opened, Sender};
pub(crate) use ticket::Ticket;
pub(crate) use ticket::now;

/// How long whoever asks for a transfer that is not known waits for the pool to be settled: what was
/// announced in it is known then.
const SETTLE: Duration = Duration::from_secs(10);

/// How often the operator hears of a transfer's progress.
const PROGRESS: Duration = Duration::from_millis(500);

/// The transfers of this agent, as source or receiver; cheap to share.
#[derive(Clone)]
pub(crate) struct Transfers(Arc<Inner>);

struct Inner {
    images: Images,
    facts: Facts,
    metrics: Arc<Metrics>,
    network: Network,
    limits: Limits,
    pace: Pace,
    /// How snapshots are offered.
    mode: ModeChoice,
    tickets: Mutex<HashMap<(Uuid, Role), Arc<Ticket>>>,
    /// The announced transfers whose source has not connected yet.
    expected: Mutex<HashMap<Uuid, Awaited>>,
    /// What extents mode could not send.
    stream_only: Mutex<HashSet<Uuid>>,
    /// Passes over snapshots that are about to begin.
    gatherings: Gatherings,
    /// What the lines to receivers were last seen to be.
    lines: Lines,
    tasks: TaskTracker,
    closing: CancellationToken,
}

impl Transfers {
    pub(crate) fn new(
        images: Images,
        facts: Facts,
        metrics: Arc<Metrics>,
        network: Network,
        pace: Pace,
        mode: ModeChoice,
    ) -> Self {
        Self(Arc::new(Inner {
            images,
            facts,
            metrics,
            network,
            limits: Limits::default(),
            pace,
            mode,
            tickets: Mutex::default(),
            expected: Mutex::default(),
            stream_only: Mutex::default(),
            gatherings: Gatherings::default(),
            lines: Lines::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        }))
    }

    fn tickets(&self) -> MutexGuard<'_, HashMap<(Uuid, Role), Arc<Ticket>>> {
        self.0
            .tickets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self) -> MutexGuard<'_, HashMap<Uuid, Awaited>> {
        self.0
            .expected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a transfer to its end, on a task of its own, unless it runs already. Refused once the
    /// agent is closing.
    fn run(
        &self,
        ticket: &Arc<Ticket>,
        work: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<()> {
        {
            let mut tickets = self.tickets();
            if self.0.closing.is_cancelled() {
                return Err(Error::refused(
                    Reason::ShuttingDown,
                    "the agent is shutting down",
                ));
            }
            match tickets.entry((ticket.id, ticket.role)) {
                Entry::Occupied(_) => return Ok(()),
                Entry::Vacant(free) => free.insert(Arc::clone(ticket)),
            };
        }
        self.0.facts.set_transfer(ticket.describe());
        let span = tracing::info_span!(
            "transfer",
            transfer = %ticket.id,
            role = role_name(ticket.role),
            image = %ticket.image,
            number = %ticket.number,
            peer = %ticket.peer,
        );
        let watched = self.clone().watch(Arc::clone(ticket), work);
        self.0.tasks.spawn(watched.instrument(span));
        Ok(())
    }

    /// Publishes a transfer's progress while it runs, and how it ended.
    async fn watch(self, ticket: Arc<Ticket>, work: impl Future<Output = Result<()>>) {
        let direction = role_name(ticket.role);
        let meter = self.0.metrics.transfer(direction);
        tokio::pin!(work);
        let mut tick = tokio::time::interval(PROGRESS);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                _ = tick.tick() => {
                    let transfer = ticket.describe();
                    meter.moved(transfer.bytes_sent);
                    self.0.facts.set_transfer(transfer);
                }
            }
        };
        if expect::outlives(&ticket, &result) {
            // It has not ended: when the agent is back, its source may come.
            tracing::info!("the transfer stays announced");
            self.finish(&ticket);
            return;
        }
        let transfer = ticket.describe_end(&result);
        meter.moved(transfer.bytes_sent);
        meter.ended(transfer.ended_at - transfer.started_at, result.is_ok());
        let (wire, raw) = (transfer.bytes_sent, transfer.bytes_done);
        match &result {
            Ok(()) => tracing::info!(wire, raw, "transfer complete"),
            Err(error) => {
                let reason = error.reason().as_str_name();
                tracing::warn!(reason, %error, wire, raw, "transfer ended");
            }
        }
        self.0.facts.set_transfer(transfer);
        self.finish(&ticket);
    }

    /// Nothing of a transfer runs any more.
    fn finish(&self, ticket: &Ticket) {
        self.expected().remove(&ticket.id);
        self.tickets().remove(&(ticket.id, ticket.role));
        ticket.end();
    }

    /// Ends a transfer, in whichever role this agent has it; whether there was one. One that has not
    /// begun is not awaited after this, by an agent that is started anew neither.
    pub(crate) async fn cancel(&self, id: Uuid) -> bool {
        let is_it = |ticket: &Ticket| ticket.id == id;
        let mut found = self.users(is_it);
        if found.is_empty() && self.0.images.settled_within(SETTLE).await {
            found = self.users(is_it);
        }
        for ticket in &found {
            ticket.stop(Reason::Cancelled, "the operator cancelled the transfer");
        }
        for ticket in found.iter().filter(|ticket| !ticket.is_running()) {
            ticket.over().await;
        }
        !found.is_empty()
    }

    /// Settles the images of a pool that has come, and awaits again what was announced in it.
    pub(crate) async fn settle(&self) -> Result<()> {
        let transfers = self.clone();
        let await_again = move |image: &ImageId, number, expectation| {
            transfers.await_again(image.clone(), number, expectation)
        };
        let longest = self.0.pace.expect;
        self.0.images.settle(now(), longest, await_again).await
    }

    /// Makes a snapshot free to be deleted: ends its own arrival, and refuses while a transfer
    /// reads it.
    pub(crate) async fn release(&self, image: &ImageId, number: SnapshotNumber) -> Result<()> {
        let users = self.users(|ticket| ticket.uses(image, number));
        let arrives = |ticket: &Ticket| ticket.role == Role::Receiver && ticket.number == number;
        if let Some(reader) = users.iter().find(|ticket| !arrives(ticket)) {
            let message = format!("transfer {} uses {image}/{number}", reader.id);
            return Err(Error::refused(Reason::SnapshotBusy, message));
        }
        end_all(&users, Reason::Cancelled, "the snapshot is being deleted").await;
        Ok(())
    }

    /// Ends all transfers of an image.
    pub(crate) async fn release_all(&self, image: &ImageId) {
        let users = self.users(|ticket| ticket.image == *image);
        end_all(&users, Reason::Cancelled, "the image is being deleted").await;
    }

    /// Ends all transfers, since the pool they work on has gone.
    pub(crate) async fn end_all(&self, reason: Reason, message: &str) {
        end_all(&self.users(|_| true), reason, message).await;
    }

    /// Ends all transfers and takes no more; returns when nothing of them is left.
    pub(crate) async fn close(&self) {
        self.0.closing.cancel();
        self.end_all(Reason::ShuttingDown, "the agent is shutting down")
            .await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Whether this snapshot was announced, or is arriving.
    pub(crate) fn awaits(&self, image: &ImageId, number: SnapshotNumber) -> bool {
        let arrives = |ticket: &Arc<Ticket>| {
            ticket.role == Role::Receiver && ticket.image == *image && ticket.number == number
        };
        self.tickets().values().any(arrives)
    }

    fn users(&self, uses: impl Fn(&Ticket) -> bool) -> Vec<Arc<Ticket>> {
        self.tickets()
            .values()
            .filter(|ticket| uses(ticket))
            .cloned()
            .collect()
    }
}

async fn end_all(tickets: &[Arc<Ticket>], reason: Reason, message: &str) {
    for ticket in tickets {
        ticket.stop(reason, message);
    }
    for ticket in tickets {
        ticket.over().await;
    }
}

/// What logs and metrics call a role.
fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "unknown",
        Role::Source => "source",
        Role::Receiver => "receiver",
    }
}
