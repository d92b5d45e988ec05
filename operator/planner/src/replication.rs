//! Which transfers to start now, over all images: for each replica the oldest snapshot that it
//! lacks, the largest lag first, within the limits of nodes and cluster; and which deleted
//! snapshots have come back with a node that was away when they were deleted.

use std::collections::{BTreeMap, BTreeSet};

use icbd_crds::Compression;
use jiff::Timestamp;

use crate::lineage::Route;
use crate::model::{
    Agent, ImageFacts, ImageKey, Inventory, NodeName, Record, SnapshotNumber, Tombstone,
};
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

/// Plans. Transfers that run are counted as the agents report them, so nothing is started twice
/// for a replica of an image.
pub fn plan(jobs: &[Job], cluster: ClusterLimits, now: Timestamp) -> Plan {
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
    let mut load = Load::of(jobs);
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
    let receiving = |t: &crate::model::Transfer| t.end.is_none() && t.receiver == *node;
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
                *wake_at = Some(wake_at.map_or(until, |other| other.min(until)));
                return None;
            }
            // One that the source lost keeps nothing newer from going.
            Standing::Waiting(_) => {}
            Standing::Unseen(_) | Standing::Moving(_) | Standing::Broken(_) => return None,
        }
    }
    None
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
            Route::Full => (None, held.map_or(0, |held| held.bytes)),
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
}

impl Load {
    fn of(jobs: &[Job]) -> Load {
        let mut load = Load::default();
        for transfer in jobs.iter().flat_map(|job| &job.facts.transfers) {
            if transfer.end.is_none() {
                load.add(&transfer.source, &transfer.receiver);
            }
        }
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
            && at(&self.receiving, candidate.node) < candidate.limits.max_concurrent as usize;
        if fits {
            self.add(&source, candidate.node);
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Attempt, Ended, Refusal};
    use crate::notation::{at, facts, inventory, target};

    const WIDE: ClusterLimits = ClusterLimits {
        transfers: 100,
        per_source: 100,
    };

    /// A job that wants all that its primary holds.
    fn job(text: &str) -> Job {
        let facts = facts(text).with_targets([target("edge")]);
        let source = facts
            .inventories
            .get(&facts.primary())
            .cloned()
            .unwrap_or_default();
        let wanted = source
            .snapshots
            .iter()
            .map(|(number, held)| WantedSnapshot {
                number: *number,
                identity: held.identity.clone(),
                taken_at: held.created_at,
            })
            .collect();
        Job { facts, wanted }
    }

    fn named(mut job: Job, image: &str) -> Job {
        job.facts.key.image = image.to_owned();
        job
    }

    /// `receiver:number<parent` of each start.
    fn starts(jobs: &[Job], cluster: ClusterLimits) -> Vec<String> {
        let describe = |s: Start| {
            let parent = s
                .parent
                .map_or_else(|| "full".to_owned(), |(n, _)| n.to_string());
            format!("{}:{}<{parent}", s.receiver, s.number)
        };
        plan(jobs, cluster, at(5000))
            .starts
            .into_iter()
            .map(describe)
            .collect()
    }

    #[test]
    fn each_replica_gets_the_oldest_snapshot_that_it_lacks() {
        assert_eq!(
            starts(&[job("n1 1a 2b 3c | n2 1a | n3")], WIDE),
            ["n3:1<full", "n2:2<1"]
        );
    }

    #[test]
    fn one_transfer_at_once_for_a_replica_of_an_image() {
        let mut busy = job("n1 1a 2b | n2");
        busy.facts = busy.facts.moving("n2", 1, None);
        assert!(starts(&[busy], WIDE).is_empty());
    }

    #[test]
    fn a_conflict_keeps_nothing_newer_from_going() {
        assert_eq!(starts(&[job("n1 1a 2b 3c | n2 1a 2x")], WIDE), ["n2:3<1"]);
    }

    #[test]
    fn a_replica_away_holds_nobody_else_up() {
        assert_eq!(starts(&[job("n1 1a | n2 away | n3")], WIDE), ["n3:1<full"]);
    }

    #[test]
    fn limits_of_receiver_source_and_cluster_hold_together_with_what_runs() {
        let jobs: Vec<Job> = (0..5)
            .map(|i| named(job("n1 1a | n2"), &format!("i{i}")))
            .collect();
        assert_eq!(starts(&jobs, WIDE).len(), 2, "maxConcurrentTransfers");
        let wide: Vec<Job> = jobs
            .iter()
            .cloned()
            .map(|mut job| {
                job.facts.targets = vec![target("edge").max_concurrent(64)];
                job
            })
            .collect();
        assert_eq!(
            starts(
                &wide,
                ClusterLimits {
                    transfers: 100,
                    per_source: 3
                }
            )
            .len(),
            3
        );
        assert_eq!(
            starts(
                &wide,
                ClusterLimits {
                    transfers: 4,
                    per_source: 100
                }
            )
            .len(),
            4
        );
        let mut running = wide;
        running[0].facts = running[0].facts.clone().moving("n2", 1, None);
        assert_eq!(
            starts(
                &running,
                ClusterLimits {
                    transfers: 4,
                    per_source: 100
                }
            )
            .len(),
            3
        );
    }

    #[test]
    fn the_largest_lag_goes_first() {
        let cluster = ClusterLimits {
            transfers: 1,
            per_source: 1,
        };
        let fresh = named(job("n1 8a | n2"), "fresh");
        let stale = named(job("n1 3a | n2"), "stale");
        assert_eq!(
            plan(&[fresh, stale], cluster, at(5000)).starts[0]
                .image
                .image,
            "stale"
        );
    }

    #[test]
    fn a_failed_transfer_waits_for_its_time_and_then_goes() {
        let mut failed = job("n1 1a 2b | n2");
        let refusal = Refusal::new(icbd_crds::Reason::PeerLost, "connection reset");
        let attempt = Attempt {
            object_uid: "uid".into(),
            count: 1,
            sent_before: 0,
            transfer: "t".into(),
            started_at: at(90),
            failure: Some((
                at(100),
                Ended {
                    refusal,
                    transient: true,
                },
            )),
        };
        failed
            .facts
            .attempts
            .insert(("n2".into(), SnapshotNumber(1)), attempt);
        let waiting = plan(std::slice::from_ref(&failed), WIDE, at(100));
        assert!(
            waiting.starts.is_empty() && waiting.wake_at > Some(at(100)),
            "{waiting:?}"
        );
        let woken = plan(&[failed], WIDE, waiting.wake_at.unwrap());
        assert_eq!(woken.starts.len(), 1);
    }

    #[test]
    fn what_was_deleted_while_a_node_was_away_is_found_on_its_return() {
        let (here, back) = (inventory("1a 2b†"), inventory("1a 2b 3c"));
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        let image = ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        };
        let found = extraneous(&image, [(&n1, &here), (&n2, &back)].into_iter());
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].node, found[0].number), (&n2, SnapshotNumber(2)));
    }

    #[test]
    fn a_tombstone_speaks_of_one_content_and_one_owner_only() {
        let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
        let image = ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        };
        let (grave, other_content) = (inventory("2b†"), inventory("2x"));
        assert!(extraneous(&image, [(&n1, &grave), (&n2, &other_content)].into_iter()).is_empty());
        let mut stranger = inventory("2b");
        stranger.namespace_uid = Some("another".into());
        assert!(extraneous(&image, [(&n1, &grave), (&n2, &stranger)].into_iter()).is_empty());
    }

    proptest! {
        // Whatever the nodes hold: no start for what is there, none from or to a node that is
        // away, every parent held by both ends, and never two for one replica.
        #[test]
        fn every_start_is_one_that_can_succeed(
            source in "([1-6][a-f]!? ){0,5}",
            replicas in proptest::collection::vec("(away|([1-6][a-f]!? ){0,5})", 1..4),
            per_source in 1usize..4,
        ) {
            let text = replicas.iter().enumerate().fold(format!("n0 {source}"), |text, (i, r)| {
                format!("{text} | n{} {r}", i + 1)
            });
            let job = job(&text);
            let cluster = ClusterLimits { transfers: 100, per_source };
            let starts = plan(std::slice::from_ref(&job), cluster, at(5000)).starts;
            prop_assert!(starts.len() <= per_source);
            let mut receivers = BTreeSet::new();
            for start in starts {
                prop_assert!(receivers.insert(start.receiver.clone()));
                let source = &job.facts.inventories[&start.source];
                let replica = &job.facts.inventories[&start.receiver];
                prop_assert!(source.holds(start.number, &start.identity));
                prop_assert!(!replica.snapshots.contains_key(&start.number));
                match start.parent {
                    Some((number, identity)) => {
                        prop_assert!(source.holds(number, &identity));
                        prop_assert!(replica.snapshots.values().any(|h| h.identity == identity && !h.suspect));
                    }
                    None => prop_assert!(replica.snapshots.is_empty()),
                }
            }
        }
    }
}
