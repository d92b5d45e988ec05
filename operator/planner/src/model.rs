//! What the decisions are about, as small values: nodes with their agents and pools, inventories
//! of images, transfers, and the facts of one image put together. No decisions here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use icbd_crds::{Origin, Reason, ReplicationTargetSpec, VMImageSpec, names};
use jiff::{SignedDuration, Timestamp};

use crate::quota::Taken;

/// The name of a Node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(pub String);

/// An image, by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey {
    /// The VMImage's namespace.
    pub namespace: String,
    /// The VMImage's name.
    pub image: String,
}

/// The number of a snapshot, from 1; unique within an image, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotNumber(pub u64);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        NodeName(name.to_owned())
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.image)
    }
}

impl fmt::Display for SnapshotNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why something cannot be, as a condition says it: a word for programs, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The word.
    pub reason: Reason,
    /// The sentence: names the thing, and what is waited for or would be right.
    pub message: String,
}

impl Refusal {
    /// Makes one.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Refusal {
            reason,
            message: message.into(),
        }
    }
}

/// A Node, with what its agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The Node's labels.
    pub labels: BTreeMap<String, String>,
    /// Consent to initialise a pool that is not empty.
    pub init_pool: bool,
    /// Consent to take the pool over from this installation.
    pub take_over_pool: Option<String>,
    /// The agent on it.
    pub agent: Agent,
}

/// The agent on a node, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// None runs there.
    Absent,
    /// One runs there and cannot be spoken to; the text says why.
    Unreachable(String),
    /// It told all that it knows, and tells what changes.
    Connected(Pool),
}

/// Which file system, and which subvolume of it, a pool is: another one is another disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolId {
    /// UUID of the file system.
    pub fsid: String,
    /// UUID of the subvolume that is the pool's root.
    pub subvolume: String,
}

/// What a node lends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Whether it can be used; if not, why.
    pub usable: Result<(), Refusal>,
    /// Unset while there is no btrfs.
    pub id: Option<PoolId>,
    /// Whom its marker names.
    pub installation: Option<String>,
    /// Nothing in it but, perhaps, the marker.
    pub empty: bool,
    /// Bytes.
    pub capacity: u64,
    /// Bytes.
    pub free: u64,
    /// Where it is on the node.
    pub path: String,
}

/// What is recorded beside a snapshot and travels with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The Snapshot's name.
    pub name: String,
    /// uid of the Snapshot object that had it taken.
    pub object_uid: String,
    /// Who had it taken.
    pub origin: Origin,
    /// When it was taken.
    pub taken_at: Timestamp,
}

/// A snapshot on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// What its content is: received-uuid, else uuid.
    pub identity: String,
    /// Changed since it was taken or received: neither source nor parent.
    pub suspect: bool,
    /// Unset: found on disk without a name.
    pub record: Option<Record>,
    /// Referenced bytes; unset while they have not been counted.
    pub bytes: Option<u64>,
    /// When the subvolume was made.
    pub created_at: Timestamp,
}

/// What remains of a deleted snapshot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    /// Its number.
    pub number: SnapshotNumber,
    /// What its content was.
    pub identity: String,
}

/// The writable subvolume that snapshots are taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// It carries a received-uuid: a flipped replica, and no source.
    pub received: bool,
}

/// One image directory on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// uid of the namespace that the data belongs to; unset: nobody claimed it yet.
    pub namespace_uid: Option<String>,
    /// `live`, where there is one.
    pub live: Option<Live>,
    /// Highest number ever given out or seen there.
    pub highest: u64,
    /// The complete snapshots.
    pub snapshots: BTreeMap<SnapshotNumber, Held>,
    /// What was deleted.
    pub tombstones: BTreeSet<Tombstone>,
    /// Numbers of snapshots that are still arriving, or were when their transfer ended.
    pub partials: BTreeSet<SnapshotNumber>,
}

impl Inventory {
    /// The snapshot that carries a Snapshot's name.
    pub fn named(&self, name: &str) -> Option<(SnapshotNumber, &Held)> {
        self.snapshots
            .iter()
            .find(|(_, held)| {
                held.record
                    .as_ref()
                    .is_some_and(|record| record.name == name)
            })
            .map(|(number, held)| (*number, held))
    }

    /// Whether it holds this content, unchanged, under this number.
    pub fn holds(&self, number: SnapshotNumber, identity: &str) -> bool {
        self.snapshots
            .get(&number)
            .is_some_and(|held| held.identity == identity && !held.suspect)
    }

    /// Whether this content was deleted here on purpose.
    pub fn buried(&self, number: SnapshotNumber, identity: &str) -> bool {
        self.tombstones.contains(&Tombstone {
            number,
            identity: identity.to_owned(),
        })
    }
}

/// A transfer that an agent speaks of: under way, or ended not long ago.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// One for each attempt.
    pub id: String,
    /// Of which image.
    pub image: ImageKey,
    /// Of which snapshot.
    pub number: SnapshotNumber,
    /// Unset: in full.
    pub parent: Option<SnapshotNumber>,
    /// The node that sends.
    pub source: NodeName,
    /// The node that receives.
    pub receiver: NodeName,
    /// Bytes on the wire, in this attempt.
    pub bytes_sent: u64,
    /// Bytes of the stream, before compression.
    pub bytes_done: u64,
    /// Bytes of the stream, before compression; unset while not known.
    pub bytes_total: Option<u64>,
    /// Of `bytes_done`, per second.
    pub rate: u64,
    /// When it began.
    pub started_at: Timestamp,
    /// How it ended; unset: it is under way.
    pub end: Option<TransferEnd>,
}

impl Transfer {
    /// Whether it is under way, or has just succeeded: the inventory follows.
    pub(crate) fn arrives(&self, now: Timestamp) -> bool {
        self.end.as_ref().is_none_or(|end| {
            end.outcome.is_ok() && now.duration_since(end.at).abs() < INVENTORY_FOLLOWS
        })
    }
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferEnd {
    /// When.
    pub at: Timestamp,
    /// Whether it failed, and if so, why and whether another try may help by itself.
    pub outcome: Result<(), Ended>,
}

/// A failure of a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub refusal: Refusal,
    /// Another try may succeed without anybody changing anything.
    pub transient: bool,
}

/// What is remembered of the transfers of one snapshot to one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// uid of the Snapshot object that they were begun for.
    pub object_uid: String,
    /// How many were begun.
    pub count: u32,
    /// Bytes on the wire by the attempts before the latest.
    pub sent_before: u64,
    /// The latest.
    pub transfer: String,
    /// When the latest began.
    pub started_at: Timestamp,
    /// Set when the latest failed.
    pub failure: Option<(Timestamp, Ended)>,
}

/// The attempts of one image, by node and number.
pub type Attempts = BTreeMap<(NodeName, SnapshotNumber), Attempt>;

/// A ReplicationTarget that an image names.
#[derive(Debug, Clone, PartialEq)]
pub struct TargetFacts {
    /// Its name.
    pub name: String,
    /// Unset: there is no such object.
    pub spec: Option<Arc<ReplicationTargetSpec>>,
    /// Nodes whose objects are gone and that still count as wanted.
    pub gone: BTreeSet<NodeName>,
}

/// The namespace of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The former namespace whose data it takes over.
    pub adopt_from: Option<String>,
    /// It is being deleted.
    pub terminating: bool,
}

/// All that was seen of one image and what it stands on.
#[derive(Debug, Clone)]
pub struct ImageFacts {
    /// Which image.
    pub key: ImageKey,
    /// What is wanted.
    pub spec: VMImageSpec,
    /// The VMImage is being deleted.
    pub terminating: bool,
    /// Its namespace.
    pub namespace: Namespace,
    /// The targets that it names, in its order.
    pub targets: Vec<TargetFacts>,
    /// All nodes.
    pub nodes: Arc<BTreeMap<NodeName, Node>>,
    /// The image's directory on each node that has one.
    pub inventories: BTreeMap<NodeName, Arc<Inventory>>,
    /// Its transfers, under way and ended.
    pub transfers: Vec<Transfer>,
    /// What is remembered of earlier attempts.
    pub attempts: Attempts,
    /// What its namespace takes; empty where no target that it names has a quota.
    pub taken: Arc<Taken>,
}

impl ImageFacts {
    /// The node that holds `live`.
    pub fn primary(&self) -> NodeName {
        NodeName(self.spec.primary.node_name.clone())
    }

    /// What a node holds of this image now: an empty inventory where it has no directory.
    ///
    /// # Errors
    /// Why that cannot be known: no node, no agent, no answer, no usable pool.
    pub fn observe(&self, name: &NodeName) -> Result<Option<&Inventory>, Refusal> {
        usable_pool(&self.nodes, name)?;
        Ok(self.inventories.get(name).map(Arc::as_ref))
    }

    /// The nodes whose content is known now and that have a directory of this image.
    pub fn observed(&self) -> impl Iterator<Item = (&NodeName, &Inventory)> {
        self.inventories
            .iter()
            .filter(|(name, _)| usable_pool(&self.nodes, name).is_ok())
            .map(|(name, inventory)| (name, inventory.as_ref()))
    }

    /// Whether a directory's data is this namespace's, or nobody's yet, or may be taken over.
    pub fn owns(&self, inventory: &Inventory) -> bool {
        let Namespace {
            uid, adopt_from, ..
        } = &self.namespace;
        inventory
            .namespace_uid
            .as_ref()
            .is_none_or(|owner| owner == uid || Some(owner) == adopt_from.as_ref())
    }

    /// Whether this content was deleted on purpose on any node that can be seen.
    pub fn buried(&self, number: SnapshotNumber, identity: &str) -> bool {
        self.observed()
            .any(|(_, inventory)| self.owns(inventory) && inventory.buried(number, identity))
    }

    /// The transfers under way, as far as anybody can tell: with both ends out of sight, nobody can.
    pub fn running(&self) -> impl Iterator<Item = &Transfer> {
        let seen = |node: &NodeName| usable_pool(&self.nodes, node).is_ok();
        self.transfers
            .iter()
            .filter(move |t| t.end.is_none() && (seen(&t.source) || seen(&t.receiver)))
    }

    /// The primary's directory, when it is there to be seen and is this namespace's.
    ///
    /// # Errors
    /// What stands in the way, in the order in which a person would look.
    pub fn primary_inventory(&self) -> Result<&Inventory, Refusal> {
        let primary = self.primary();
        let ImageKey { namespace, image } = &self.key;
        let Some(inventory) = self.observe(&primary)? else {
            let path = usable_pool(&self.nodes, &primary).map_or("", |pool| pool.path.as_str());
            return Err(Refusal::new(
                Reason::ImageNotFound,
                format!(
                    "node {primary} has no directory {path}/{namespace}/{image}: waiting for it to appear"
                ),
            ));
        };
        if !self.owns(inventory) {
            let owner = inventory.namespace_uid.as_deref().unwrap_or_default();
            return Err(Refusal::new(
                Reason::NamespaceChanged,
                format!(
                    "the data of {namespace}/{image} on node {primary} belongs to a former namespace {namespace} (uid {owner}, not {}): annotate the Namespace with {}={owner} to take it over",
                    self.namespace.uid,
                    names::ADOPT_FROM,
                ),
            ));
        }
        Ok(inventory)
    }

    /// The transfer of a snapshot to a node that is under way, or that has just succeeded: the
    /// agent tells of its end a moment before its inventory shows what came.
    pub fn arriving(
        &self,
        receiver: &NodeName,
        number: SnapshotNumber,
        now: Timestamp,
    ) -> Option<&Transfer> {
        self.transfers
            .iter()
            .filter(|t| t.number == number && t.receiver == *receiver)
            .find(|t| t.arrives(now))
    }
}

/// Within this time after a transfer has succeeded its snapshot is in the inventory; if not, it was
/// removed again. Longer than two clocks of one cluster differ.
pub(crate) const INVENTORY_FOLLOWS: SignedDuration = SignedDuration::from_secs(10);

/// The pool of a node, when its agent answers and the pool can be used.
///
/// # Errors
/// What stands in the way, in the order in which a person would look.
pub(crate) fn usable_pool<'a>(
    nodes: &'a BTreeMap<NodeName, Node>,
    name: &NodeName,
) -> Result<&'a Pool, Refusal> {
    let Some(node) = nodes.get(name) else {
        return Err(Refusal::new(
            Reason::NodeNotFound,
            format!("there is no Node {name}"),
        ));
    };
    match &node.agent {
        Agent::Absent => Err(Refusal::new(
            Reason::AgentNotFound,
            format!(
                "no agent runs on node {name}: waiting for the DaemonSet's pod there (does the node carry its label?)"
            ),
        )),
        Agent::Unreachable(why) => Err(Refusal::new(
            Reason::AgentUnreachable,
            format!("the agent on node {name} does not answer: {why}"),
        )),
        Agent::Connected(Pool {
            usable: Err(refusal),
            ..
        }) => Err(Refusal::new(
            refusal.reason,
            format!("node {name}: {}", refusal.message),
        )),
        Agent::Connected(pool) => Ok(pool),
    }
}
