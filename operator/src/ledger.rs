//! What is remembered of attempts: how often, how much, and why the last one failed. A new leader
//! starts from the statuses and from what the agents remember.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use icbd_crds::{ReplicaState, Snapshot};
use icbd_planner::{
    Attempt, Attempts, Ended, ImageFacts, ImageKey, NodeName, SnapshotNumber, Transfer,
};
use jiff::Timestamp;
use kube::ResourceExt;

type Entries = BTreeMap<ImageKey, Attempts>;

/// The memory; it decides nothing.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Entries>);

impl Ledger {
    fn entries<T>(&self, f: impl FnOnce(&mut Entries) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The attempts of one image.
    pub(crate) fn of(&self, key: &ImageKey) -> Attempts {
        self.entries(|entries| entries.get(key).cloned().unwrap_or_default())
    }

    /// One more attempt begins.
    pub(crate) fn begin(
        &self,
        key: &ImageKey,
        node: &NodeName,
        number: SnapshotNumber,
        object_uid: &str,
        transfer: &str,
        sent_before: u64,
    ) {
        self.entries(|entries| {
            let attempts = entries.entry(key.clone()).or_default();
            let earlier = attempts
                .get(&(node.clone(), number))
                .filter(|a| a.object_uid == object_uid);
            let attempt = Attempt {
                object_uid: object_uid.to_owned(),
                count: earlier.map_or(0, |earlier| earlier.count).saturating_add(1),
                sent_before,
                transfer: transfer.to_owned(),
                started_at: Timestamp::now(),
                failure: None,
            };
            attempts.insert((node.clone(), number), attempt);
        });
    }

    /// The latest attempt did not even start.
    pub(crate) fn failed(
        &self,
        key: &ImageKey,
        node: &NodeName,
        number: SnapshotNumber,
        transfer: &str,
        ended: Ended,
    ) {
        self.entries(|entries| {
            let attempt = entries
                .get_mut(key)
                .and_then(|a| a.get_mut(&(node.clone(), number)));
            if let Some(attempt) = attempt.filter(|attempt| attempt.transfer == transfer) {
                attempt.failure = Some((Timestamp::now(), ended));
            }
        });
    }

    /// Takes over what an earlier leader began: the count from the Snapshot's status, the transfer
    /// from the agents.
    pub(crate) fn take_over(&self, facts: &ImageFacts, object: &Snapshot, number: SnapshotNumber) {
        let rows = object.status.iter().flat_map(|status| &status.replicas);
        let open = rows.filter(|row| row.attempts > 0 && row.state != ReplicaState::Complete);
        for row in open {
            let Some(node) = row.name.strip_prefix("node/").map(NodeName::from) else {
                continue;
            };
            let ours = |t: &&Transfer| t.number == number && t.receiver == node;
            let latest = facts
                .transfers
                .iter()
                .filter(ours)
                .max_by_key(|t| t.started_at);
            let attempt = Attempt {
                object_uid: object.uid().unwrap_or_default(),
                count: row.attempts,
                sent_before: match latest {
                    Some(transfer) => row.bytes_sent.saturating_sub(transfer.bytes_sent),
                    None => row.bytes_sent,
                },
                transfer: latest.map_or_else(String::new, |transfer| transfer.id.clone()),
                started_at: row
                    .started_at
                    .as_ref()
                    .map_or(Timestamp::UNIX_EPOCH, |at| at.0),
                failure: None,
            };
            self.entries(|entries| {
                let attempts = entries.entry(facts.key.clone()).or_default();
                attempts.entry((node, number)).or_insert(attempt);
            });
        }
    }

    /// Notes how transfers ended that the ledger knows.
    pub(crate) fn settle(&self, facts: &ImageFacts) {
        self.entries(|entries| {
            let Some(attempts) = entries.get_mut(&facts.key) else {
                return;
            };
            for attempt in attempts
                .values_mut()
                .filter(|attempt| attempt.failure.is_none())
            {
                let transfer = facts.transfers.iter().find(|t| t.id == attempt.transfer);
                let Some(end) = transfer.and_then(|t| t.end.as_ref()) else {
                    continue;
                };
                if let Err(ended) = &end.outcome {
                    // On this clock: the agents' may differ, and a pause counts from here.
                    attempt.failure = Some((Timestamp::now(), ended.clone()));
                }
            }
        });
    }

    /// Forgets attempts for objects that are gone.
    pub(crate) fn keep_only(&self, objects: &BTreeMap<(ImageKey, SnapshotNumber), String>) {
        self.entries(|entries| {
            entries.retain(|key, attempts| {
                attempts.retain(|(_, number), attempt| {
                    objects.get(&(key.clone(), *number)) == Some(&attempt.object_uid)
                });
                !attempts.is_empty()
            });
        });
    }
}
