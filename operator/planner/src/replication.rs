//! Which transfers to start now, over all images: for each replica the oldest snapshot that it
//! lacks, the largest lag first, within the limits of nodes and cluster; and which deleted
//! snapshots have come back with a node that was away when they were deleted.

use std::collections::{BTreeMap, BTreeSet};

use icbd_crds::Compression;
use jiff::Timestamp;

use crate::lineage::Route;
use crate::model::{
    Agent, INVENTORY_FOLLOWS, ImageFacts, ImageKey, Inventory, NodeName, Record, SnapshotNumber,
    Tombstone, Transfer, TransferEnd,
};
use crate::quota;
use crate::replica::{self, Standing, Wanted};
use crate::selection::{Limits, Selection, select};

/// A snapshot that an image's Snapshot object stands for, taken and not being deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedSnapshot {
    /// Its number.
    pub number: SnapshotNumber,
    /// What its content is.
    pub identity: String,
    /// When it was taken.
    pub taken_at: Timestamp,
}

/// One image and what its replicas are to hold.
#[derive(Debug, Clone)]
pub struct Job {
    /// All that was seen of it.
    pub facts: ImageFacts,
    /// By number, ascending.
    pub wanted: Vec<WantedSnapshot>,
}

/// Limits of the whole installation.
#[derive(Debug, Clone, Copy)]
pub struct ClusterLimits {
    /// Transfers at once, in all.
    pub transfers: usize,
    /// Transfers at once from one source.
    pub per_source: usize,
}

/// A transfer to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Of which image.
    pub image: ImageKey,
    /// uid of its namespace, and the one whose data that may take over.
    pub owner: (String, Option<String>),
    /// Of which snapshot.
    pub number: SnapshotNumber,
    /// What its content is.
    pub identity: String,
    /// What travels with it.
    pub record: Option<Record>,
    /// The number of the parent, and what its content is; unset: in full.
    pub parent: Option<(SnapshotNumber, String)>,
    /// The node that sends.
    pub source: NodeName,
    /// The node that receives.
    pub receiver: NodeName,
    /// How the data is compressed.
    pub compression: Compression,
    /// The target whose token bucket limits the rate, and the rate in bytes per second.
    pub bandwidth: Option<(String, u64)>,
    /// Bytes that must stay free on the receiver.
    pub min_free: u64,
    /// Expected bytes when written; zero where nobody knows before the source measures.
    pub bytes: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub starts: Vec<Start>,
    /// When the next attempt after a failure may begin, if nothing else happens.
    pub wake_at: Option<Timestamp>,
}

struct Candidate<'a> {
    job: &'a Job,
    node: &'a NodeName,
    limits: &'a Limits,
    snapshot: &'a WantedSnapshot,
    route: Route,
}

/// Plans. `running` are all transfers under way, also of images that are not among the jobs: they
/// count towards the limits. Nothing is started twice for a replica of an image.
pub fn plan(jobs: &[Job], running: &[Transfer], cluster: ClusterLimits, now: Timestamp) -> Plan {
    let selections: Vec<Selection> = jobs.iter().map(|job| select(&job.facts)).collect();
    let mut plan = Plan::default();
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for (job, selection) in jobs.iter().zip(&selections) {
        for (node, limits) in &selection.replicas {
            candidates.extend(candidate(job, node, limits, now, &mut plan.wake_at));
        }
    }
    // Oldest first: the replica that has waited longest lags most.
    candidates.sort_by_key(|c| (c.snapshot.taken_at, &c.job.facts.key, c.node));
    let mut load = Load::of(running);
    for candidate in candidates {
        if load.admit(&candidate, cluster) {
            plan.starts.push(candidate.start());
        }
    }
    plan
}

/// The next snapshot for a replica. A conflict is passed over: it concerns its own number alone.
/// A failure is not: what comes after it would need it as a parent.
fn candidate<'a>(
    job: &'a Job,
    node: &'a NodeName,
    limits: &'a Limits,
    now: Timestamp,
    wake_at: &mut Option<Timestamp>,
) -> Option<Candidate<'a>> {
    let receiving = |t: &Transfer| t.end.is_none() && t.receiver == *node;
    if job.facts.transfers.iter().any(receiving) {
        return None;
    }
    for snapshot in &job.wanted {
        let wanted = Wanted {
            number: snapshot.number,
            identity: &snapshot.identity,
        };
        match replica::assess(&job.facts, node, limits, wanted, now) {
            Standing::Complete(_) | Standing::Conflict(_) => {}
            Standing::Possible(route) => {
                return Some(Candidate {
                    job,
                    node,
                    limits,
                    snapshot,
                    route,
                });
            }
            Standing::Failed(_, until) => {
                *wake_at = earliest(*wake_at, until);
                return None;
            }
            Standing::Moving(transfer) => {
                // One that has succeeded, and that the inventory does not show by then, was
                // removed in the meantime: nothing else would have it sent again.
                let shown = |end: &TransferEnd| end.at.checked_add(INVENTORY_FOLLOWS).ok();
                if let Some(by) = transfer.end.as_ref().and_then(shown) {
                    *wake_at = earliest(*wake_at, by);
                }
                return None;
            }
            // One that the source lost keeps nothing newer from going.
            Standing::Waiting(_) => {}
            // A smaller one does not overtake: each replica gets its snapshots in order.
            Standing::OverQuota(_) => return None,
            Standing::Unseen(_) | Standing::Broken(_) => return None,
        }
    }
    None
}

fn earliest(known: Option<Timestamp>, other: Timestamp) -> Option<Timestamp> {
    Some(known.map_or(other, |known| known.min(other)))
}

impl Candidate<'_> {
    fn start(&self) -> Start {
        let facts = &self.job.facts;
        let held = facts
            .inventories
            .get(&facts.primary())
            .and_then(|inventory| inventory.snapshots.get(&self.snapshot.number));
        let capacity = match facts.nodes.get(self.node).map(|node| &node.agent) {
            Some(Agent::Connected(pool)) => pool.capacity,
            _ => 0,
        };
        let (parent, bytes) = match &self.route {
            Route::Incremental { parent, identity } => (Some((*parent, identity.clone())), 0),
            Route::Full => (None, held.and_then(|held| held.bytes).unwrap_or(0)),
        };
        Start {
            image: facts.key.clone(),
            owner: (
                facts.namespace.uid.clone(),
                facts.namespace.adopt_from.clone(),
            ),
            number: self.snapshot.number,
            identity: self.snapshot.identity.clone(),
            record: held.and_then(|held| held.record.clone()),
            parent,
            source: facts.primary(),
            receiver: self.node.clone(),
            compression: facts.spec.compression,
            bandwidth: self.limits.bandwidth.clone(),
            min_free: self.limits.min_free_of(capacity),
            bytes,
        }
    }
}

/// How many transfers run, and where.
#[derive(Default)]
struct Load {
    total: usize,
    sending: BTreeMap<NodeName, usize>,
    receiving: BTreeMap<NodeName, usize>,
    /// Bytes that this plan adds to a namespace on a node; what runs already is counted there.
    adding: BTreeMap<(NodeName, String), u64>,
}

impl Load {
    fn of(running: &[Transfer]) -> Load {
        let mut load = Load::default();
        running
            .iter()
            .for_each(|transfer| load.add(&transfer.source, &transfer.receiver));
        load
    }

    fn add(&mut self, source: &NodeName, receiver: &NodeName) {
        self.total += 1;
        *self.sending.entry(source.clone()).or_default() += 1;
        *self.receiving.entry(receiver.clone()).or_default() += 1;
    }

    fn admit(&mut self, candidate: &Candidate<'_>, cluster: ClusterLimits) -> bool {
        let source = candidate.job.facts.primary();
        let at = |map: &BTreeMap<NodeName, usize>, node| map.get(node).copied().unwrap_or(0);
        let fits = self.total < cluster.transfers
            && at(&self.sending, &source) < cluster.per_source
            && at(&self.receiving, candidate.node) < candidate.limits.max_concurrent as usize
            && self.admit_bytes(candidate);
        if fits {
            self.add(&source, candidate.node);
        }
        fits
    }

    /// Whether the namespace has room for it beside what was admitted before it.
    fn admit_bytes(&mut self, candidate: &Candidate<'_>) -> bool {
        let (facts, number) = (&candidate.job.facts, candidate.snapshot.number);
        let place = (candidate.node.clone(), facts.key.namespace.clone());
        let adding = self.adding.entry(place).or_default();
        let fits = quota::fits(facts, candidate.node, candidate.limits, number, *adding).is_ok();
        if fits {
            let bytes = quota::adds(facts, candidate.node, number).unwrap_or(0);
            *adding = adding.saturating_add(bytes);
        }
        fits
    }
}

/// A snapshot to remove from a node, because it was deleted while the node was away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extraneous {
    /// The node that holds it.
    pub node: NodeName,
    /// Of which image.
    pub image: ImageKey,
    /// Whose data it is.
    pub namespace_uid: String,
    /// Its number.
    pub number: SnapshotNumber,
    /// What its content is.
    pub identity: String,
    /// The name that it had.
    pub name: String,
}

/// Finds what came back. Goes by the tombstones on the nodes alone, never by an object that is
/// missing; number, content and owner must all be those of the tombstone.
pub fn extraneous<'a>(
    image: &ImageKey,
    inventories: impl Iterator<Item = (&'a NodeName, &'a Inventory)> + Clone,
) -> Vec<Extraneous> {
    let buried: BTreeSet<(&str, &Tombstone)> = inventories
        .clone()
        .filter_map(|(_, inventory)| Some((inventory.namespace_uid.as_deref()?, inventory)))
        .flat_map(|(owner, inventory)| inventory.tombstones.iter().map(move |t| (owner, t)))
        .collect();
    let mut found = Vec::new();
    for (node, inventory) in inventories {
        let Some(owner) = inventory.namespace_uid.as_deref() else {
            continue;
        };
        for (number, held) in &inventory.snapshots {
            let grave = Tombstone {
                number: *number,
                identity: held.identity.clone(),
            };
            if buried.contains(&(owner, &grave)) {
                found.push(Extraneous {
                    node: node.clone(),
                    image: image.clone(),
                    namespace_uid: owner.to_owned(),
                    number: *number,
                    identity: held.identity.clone(),
                    name: held
                        .record
                        .as_ref()
                        .map_or_else(String::new, |r| r.name.clone()),
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
