//! One read, many receivers: transfers of the same snapshot on the same parent that start at the same
//! time listen to one pass. How a pass is made is in `feed`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use icbd_wire::control::Role;
use icbd_wire::data::Mode;
use tokio::sync::Notify;
use tokio::time::Instant;
use uuid::Uuid;

use super::feed::{Agreed, Feed, Opened, Subscription};
use super::lines::LastSeen;
use crate::image::{ImageId, SnapshotNumber};
use crate::transfer::Transfers;
use crate::transfer::ticket::Ticket;

/// How long a pass waits for receivers that are still being greeted.
const GREETING: Duration = Duration::from_secs(2);

/// From this many bytes on, a pass waits a moment for receivers that are about to be named, too.
const LARGE: u64 = 64 << 20;
const MOMENT: Duration = Duration::from_millis(100);

/// What is the same for all who listen to one pass.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct PassKey {
    pub(super) image: ImageId,
    pub(super) number: SnapshotNumber,
    pub(super) content: Uuid,
    pub(super) parent: Option<Uuid>,
    pub(super) mode: Mode,
    pub(super) codec: Agreed,
}

/// The passes that have not begun.
#[derive(Default)]
pub(in crate::transfer) struct Gatherings {
    feeds: Mutex<HashMap<PassKey, Feed>>,
    /// A receiver was greeted, or will not be.
    greeted: Notify,
}

impl Gatherings {
    fn feeds(&self) -> MutexGuard<'_, HashMap<PassKey, Feed>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn greeted(&self) {
        self.greeted.notify_waiters();
    }
}

impl Transfers {
    /// Listens to the pass that is about to begin, or makes one begin, for a receiver at the end of this
    /// line that has so many raw bytes.
    pub(super) fn listen_to(
        &self,
        key: PassKey,
        opened: &Arc<Opened>,
        ticket: &Ticket,
        (had, line): (u64, &LastSeen),
    ) -> Subscription {
        let mut feeds = self.0.gatherings.feeds();
        match feeds.entry(key.clone()) {
            Entry::Occupied(mut feed) => feed.get_mut().subscribe(had, line.clone()),
            Entry::Vacant(free) => {
                let mut feed = Feed::new(Arc::clone(opened), key.mode, key.codec);
                let pieces = feed.subscribe(had, line.clone());
                free.insert(feed);
                let large = ticket.total() >= LARGE;
                self.0.tasks.spawn(self.clone().begin_pass(key, large));
                pieces
            }
        }
    }

    /// Begins a pass as soon as nobody who might listen is still being greeted.
    async fn begin_pass(self, key: PassKey, large: bool) {
        let begun = Instant::now();
        if large {
            tokio::time::sleep(MOMENT).await;
        }
        loop {
            let greeted = self.0.gatherings.greeted.notified();
            if !self.is_greeting(&key) {
                break;
            }
            if tokio::time::timeout_at(begun + GREETING, greeted)
                .await
                .is_err()
            {
                break;
            }
        }
        let feed = self.0.gatherings.feeds().remove(&key);
        if let Some(feed) = feed {
            tokio::task::spawn_blocking(move || feed.run());
        }
    }

    fn is_greeting(&self, key: &PassKey) -> bool {
        let same = |ticket: &Ticket| {
            ticket.role == Role::Source
                && ticket.image == key.image
                && ticket.number == key.number
                && !ticket.is_running()
                && !ticket.is_over()
        };
        self.tickets().values().any(|ticket| same(ticket))
    }
}
