//! What this agent knows, and who wants to hear of it. State, not messages: each fact carries the
//! version at which it last changed, and a watcher asks for what is newer than what it has seen. So
//! a slow watcher skips what was overtaken meanwhile, and none makes the agent hold a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use icbd_wire::control::agent_event::Event;
use icbd_wire::control::{
    AgentEvent, DescribeResponse, ImageInventory, PoolStatus, Role, Synced, Transfer,
};
use tokio::sync::watch;

use crate::image::ImageId;

/// How long the end of a transfer is remembered for an operator that was away.
const REMEMBER_ENDED: Duration = Duration::from_secs(15 * 60);

/// How many ended transfers are remembered at most.
const MAX_ENDED: usize = 512;

/// A fact and the version at which it became so.
struct Versioned<T> {
    version: u64,
    value: T,
}

/// The facts; cheap to share.
#[derive(Clone)]
pub(crate) struct Facts {
    known: Arc<Mutex<Known>>,
    newest: Arc<watch::Sender<u64>>,
}

struct Known {
    version: u64,
    described: DescribeResponse,
    pool: Versioned<PoolStatus>,
    /// `None`: gone.
    images: BTreeMap<ImageId, Versioned<Option<ImageInventory>>>,
    transfers: BTreeMap<(String, Role), Versioned<Transfer>>,
    ended: BTreeMap<(String, Role), Instant>,
}

impl Facts {
    pub(crate) fn new(described: DescribeResponse) -> Self {
        let pool = described.pool.clone().unwrap_or_default();
        let known = Known {
            version: 1,
            described,
            pool: Versioned {
                version: 1,
                value: pool,
            },
            images: BTreeMap::new(),
            transfers: BTreeMap::new(),
            ended: BTreeMap::new(),
        };
        Self {
            known: Arc::new(Mutex::new(known)),
            newest: Arc::new(watch::Sender::new(1)),
        }
    }

    /// Changes what is known; `change` says whether it did.
    fn change(&self, change: impl FnOnce(&mut Known, u64) -> bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let next = known.version + 1;
        if change(&mut known, next) {
            known.version = next;
            self.newest.send_replace(next);
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Known) -> T) -> T {
        read(&self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn pool(&self) -> PoolStatus {
        self.read(|known| known.pool.value.clone())
    }

    pub(crate) fn described(&self) -> DescribeResponse {
        self.read(Known::described)
    }

    pub(crate) fn set_pool(&self, status: PoolStatus) {
        self.change(|known, version| {
            let changed = known.pool.value != status;
            if changed {
                known.pool = Versioned {
                    version,
                    value: status,
                };
            }
            changed
        });
    }

    /// What one image has, if it is known.
    pub(crate) fn image(&self, id: &ImageId) -> Option<ImageInventory> {
        self.read(|known| known.images.get(id).and_then(|image| image.value.clone()))
    }

    /// What all images have.
    pub(crate) fn images(&self) -> Vec<(ImageId, ImageInventory)> {
        self.read(|known| {
            let known = known.images.iter();
            known
                .filter_map(|(id, image)| Some((id.clone(), image.value.clone()?)))
                .collect()
        })
    }

    /// Sets what one image has; `None`: it is gone.
    pub(crate) fn set_image(&self, id: &ImageId, inventory: Option<ImageInventory>) {
        self.change(|known, version| known.set_image(id, inventory, version));
    }

    /// Sets what all images have; those not named are gone.
    pub(crate) fn set_images(&self, mut found: BTreeMap<ImageId, ImageInventory>) {
        self.change(|known, version| {
            let before: Vec<ImageId> = known.images.keys().cloned().collect();
            let mut changed = false;
            for id in before {
                let inventory = found.remove(&id);
                changed |= known.set_image(&id, inventory, version);
            }
            for (id, inventory) in found {
                changed |= known.set_image(&id, Some(inventory), version);
            }
            changed
        });
    }

    /// A transfer as this agent saw it last, in this role.
    pub(crate) fn transfer(&self, id: &str, role: Role) -> Option<Transfer> {
        let key = (id.to_owned(), role);
        self.read(|known| {
            known
                .transfers
                .get(&key)
                .map(|transfer| transfer.value.clone())
        })
    }

    pub(crate) fn set_transfer(&self, transfer: Transfer) {
        let now = Instant::now();
        self.change(|known, version| {
            let key = (transfer.id.clone(), transfer.role());
            let before = known.transfers.get(&key);
            if before.is_some_and(|before| before.value == transfer) {
                return false;
            }
            if transfer.ended_at != 0 {
                known.ended.insert(key.clone(), now);
            }
            known.transfers.insert(
                key,
                Versioned {
                    version,
                    value: transfer,
                },
            );
            known.forget_ended(now);
            true
        });
    }

    /// A watcher that has seen nothing yet.
    pub(crate) fn watch(&self) -> Watcher {
        Watcher {
            facts: self.clone(),
            newest: self.newest.subscribe(),
            seen: None,
        }
    }
}

impl Known {
    fn described(&self) -> DescribeResponse {
        DescribeResponse {
            pool: Some(self.pool.value.clone()),
            ..self.described.clone()
        }
    }

    fn set_image(&mut self, id: &ImageId, value: Option<ImageInventory>, version: u64) -> bool {
        let before = self.images.get(id).and_then(|image| image.value.as_ref());
        let changed = before != value.as_ref();
        if changed {
            self.images.insert(id.clone(), Versioned { version, value });
        }
        changed
    }

    fn forget_ended(&mut self, now: Instant) {
        self.ended.retain(|key, at| {
            let keep = now.duration_since(*at) < REMEMBER_ENDED;
            if !keep {
                self.transfers.remove(key);
            }
            keep
        });
        while self.ended.len() > MAX_ENDED {
            let oldest = self
                .ended
                .iter()
                .min_by_key(|(_, at)| **at)
                .map(|(key, _)| key.clone());
            let Some(key) = oldest else { break };
            self.ended.remove(&key);
            self.transfers.remove(&key);
        }
    }

    /// What changed after `seen`; everything there is, if nothing was seen.
    fn since(&self, seen: Option<u64>) -> Vec<Event> {
        let new = |version: u64| seen.is_none_or(|seen| version > seen);
        let mut events = Vec::new();
        match seen {
            None => events.push(Event::Described(self.described())),
            Some(seen) if self.pool.version > seen => {
                events.push(Event::Pool(self.pool.value.clone()));
            }
            Some(_) => {}
        }
        for (id, image) in self.images.iter().filter(|(_, image)| new(image.version)) {
            match &image.value {
                Some(inventory) => events.push(Event::Image(inventory.clone())),
                None if seen.is_some() => events.push(Event::ImageGone(id.into())),
                None => {}
            }
        }
        let transfers = self
            .transfers
            .values()
            .filter(|transfer| new(transfer.version));
        events.extend(transfers.map(|transfer| Event::Transfer(transfer.value.clone())));
        if seen.is_none() {
            events.push(Event::Synced(Synced {}));
        }
        events
    }
}

/// One watcher's place in the facts.
pub(crate) struct Watcher {
    facts: Facts,
    newest: watch::Receiver<u64>,
    seen: Option<u64>,
}

impl Watcher {
    /// What is new since the last call: first everything, then, once there is any, the changes.
    pub(crate) async fn next(&mut self) -> Vec<AgentEvent> {
        loop {
            self.newest.mark_unchanged();
            let (events, version) = self
                .facts
                .read(|known| (known.since(self.seen), known.version));
            self.seen = Some(version);
            if !events.is_empty() {
                return events
                    .into_iter()
                    .map(|event| AgentEvent { event: Some(event) })
                    .collect();
            }
            // The sender lives in `self.facts`: this waits, and cannot fail.
            let _ = self.newest.changed().await;
        }
    }
}
