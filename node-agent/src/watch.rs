//! What this agent knows, and who wants to hear of it. State, not messages: each fact carries the
//! version at which it last changed, and a watcher asks for what is newer than what it has seen. So
//! a slow watcher skips what was overtaken meanwhile, and none makes the agent hold a queue.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use icbd_wire::control::agent_event::Event;
use icbd_wire::control::{
    AgentEvent, DescribeResponse, ImageInventory, PoolState, PoolStatus, Role, Synced, Transfer,
    Trusted,
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
    trusted: Versioned<Trusted>,
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
            trusted: Versioned {
                version: 1,
                value: Trusted::default(),
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

    /// Sets which authorities are believed.
    pub(crate) fn set_trusted(&self, fingerprints: Vec<String>) {
        self.change(|known, version| {
            let value = Trusted { fingerprints };
            let changed = known.trusted.value != value;
            if changed {
                known.trusted = Versioned { version, value };
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

    /// All there is.
    fn everything(&self) -> Vec<Event> {
        let mut events = vec![
            Event::Described(self.described()),
            Event::Trusted(self.trusted.value.clone()),
        ];
        events.extend(
            self.images_since(0)
                .filter(|event| matches!(event, Event::Image(_))),
        );
        events.extend(self.transfers_since(0));
        events.push(Event::Synced(Synced {}));
        events
    }

    /// What changed after `seen`.
    fn since(&self, seen: u64) -> Vec<Event> {
        let pool = (self.pool.version > seen).then(|| Event::Pool(self.pool.value.clone()));
        // What is in a pool is told before that it is ready, and that it is not before what has
        // gone with it.
        let (before, after) = match self.pool.value.state() {
            PoolState::Ready => (None, pool),
            _ => (pool, None),
        };
        let trusted = (self.trusted.version > seen).then(|| self.trusted.value.clone());
        let changes = self.images_since(seen).chain(self.transfers_since(seen));
        let changes = changes.chain(trusted.map(Event::Trusted));
        before.into_iter().chain(changes).chain(after).collect()
    }

    fn images_since(&self, seen: u64) -> impl Iterator<Item = Event> {
        let new = self
            .images
            .iter()
            .filter(move |(_, image)| image.version > seen);
        new.map(|(id, image)| match &image.value {
            Some(inventory) => Event::Image(inventory.clone()),
            None => Event::ImageGone(id.into()),
        })
    }

    fn transfers_since(&self, seen: u64) -> impl Iterator<Item = Event> {
        let new = self
            .transfers
            .values()
            .filter(move |transfer| transfer.version > seen);
        new.map(|transfer| Event::Transfer(transfer.value.clone()))
    }
}

/// One watcher's place in the facts.
pub(crate) struct Watcher {
    facts: Facts,
    newest: watch::Receiver<u64>,
    seen: Option<u64>,
}

impl Watcher {
    /// What is new since the last call: first everything, once the pool has been looked at; then,
    /// once there are any, the changes.
    pub(crate) async fn next(&mut self) -> Vec<AgentEvent> {
        loop {
            self.newest.mark_unchanged();
            let (events, version) = self.facts.read(|known| match self.seen {
                Some(seen) => (known.since(seen), known.version),
                None if known.pool.value.state() == PoolState::Unspecified => (vec![], 0),
                None => (known.everything(), known.version),
            });
            if !events.is_empty() {
                self.seen = Some(version);
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

#[cfg(test)]
mod tests {
    use icbd_wire::control::ImageRef;

    use super::*;

    fn facts() -> Facts {
        Facts::new(DescribeResponse::default())
    }

    fn id(image: &str) -> ImageId {
        let image = ImageRef {
            namespace: "ns".into(),
            image: image.into(),
        };
        ImageId::try_from(Some(&image)).unwrap()
    }

    fn pool(state: PoolState) -> PoolStatus {
        PoolStatus {
            state: state.into(),
            ..PoolStatus::default()
        }
    }

    fn names(events: Vec<AgentEvent>) -> Vec<&'static str> {
        let name = |event: AgentEvent| match event.event.unwrap() {
            Event::Described(_) => "described",
            Event::Pool(_) => "pool",
            Event::Image(_) => "image",
            Event::ImageGone(_) => "gone",
            Event::Transfer(_) => "transfer",
            Event::Synced(_) => "synced",
            Event::Trusted(_) => "trusted",
        };
        events.into_iter().map(name).collect()
    }

    #[tokio::test]
    async fn a_watcher_gets_all_there_is_and_then_only_what_changes() {
        let facts = facts();
        facts.set_image(&id("a"), Some(ImageInventory::default()));
        facts.set_image(&id("b"), Some(ImageInventory::default()));
        facts.set_image(&id("b"), None);
        facts.set_pool(pool(PoolState::Ready));
        let mut watcher = facts.watch();
        assert_eq!(
            names(watcher.next().await),
            ["described", "trusted", "image", "synced"]
        );
        facts.set_image(&id("a"), Some(ImageInventory::default()));
        facts.set_transfer(Transfer::default());
        assert_eq!(
            names(watcher.next().await),
            ["transfer"],
            "equal facts are no news"
        );
        for _ in 0..2 {
            facts.set_trusted(vec!["a".into()]);
        }
        facts.set_transfer(Transfer {
            number: 1,
            ..Transfer::default()
        });
        assert_eq!(names(watcher.next().await), ["transfer", "trusted"]);
    }

    #[tokio::test]
    async fn a_slow_watcher_gets_what_is_and_not_what_was() {
        let facts = facts();
        facts.set_pool(pool(PoolState::Ready));
        let mut watcher = facts.watch();
        watcher.next().await;
        for number in 0..1000 {
            facts.set_transfer(Transfer {
                bytes_done: number,
                ..Transfer::default()
            });
            let partials = vec![number];
            facts.set_image(
                &id("a"),
                Some(ImageInventory {
                    partials,
                    ..Default::default()
                }),
            );
        }
        let events = watcher.next().await;
        assert_eq!(events.len(), 2);
        assert!(matches!(&events[1].event, Some(Event::Transfer(it)) if it.bytes_done == 999));
    }

    #[tokio::test]
    async fn a_pool_is_told_ready_after_its_images_and_gone_before_them() {
        let facts = facts();
        facts.set_pool(pool(PoolState::NotMounted));
        let mut watcher = facts.watch();
        watcher.next().await;
        facts.set_image(&id("a"), Some(ImageInventory::default()));
        facts.set_pool(pool(PoolState::Ready));
        assert_eq!(names(watcher.next().await), ["image", "pool"]);
        facts.set_images(BTreeMap::new());
        facts.set_pool(pool(PoolState::NotMounted));
        assert_eq!(names(watcher.next().await), ["pool", "gone"]);
    }

    #[test]
    fn ended_transfers_are_not_remembered_without_bound() {
        let facts = facts();
        for number in 0..2 * MAX_ENDED {
            let id = number.to_string();
            facts.set_transfer(Transfer {
                id,
                ended_at: 1,
                ..Transfer::default()
            });
        }
        assert_eq!(facts.read(|known| known.transfers.len()), MAX_ENDED);
    }
}
