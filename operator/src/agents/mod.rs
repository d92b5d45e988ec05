//! What is known of the agents, from their Watch streams, and how to call them. Whoever reads here
//! reads memory; nothing here decides.

mod calls;
mod connection;
mod convert;
mod discovery;
mod transfers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use icbd_net::Fingerprint;
use icbd_planner::quota::{Taken, taken};
use icbd_planner::{Agent, ImageKey, Inventory, NodeName, Pool, Refusal, SnapshotNumber, Transfer};
use icbd_wire::control as pb;
use icbd_wire::control::agent_client::AgentClient;
use jiff::Timestamp;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::identity::Own;
use crate::lease::Epoch;
use transfers::Transfers;

pub(crate) use calls::{Accepted, Owner, Take};
pub(crate) use discovery::discover;

/// Who speaks to the agents: this installation, and this leadership of it.
#[derive(Debug, Clone)]
pub(crate) struct Speaker {
    /// uid of the namespace kube-system, and the namespace of this release.
    pub(crate) installation: String,
    pub(crate) epoch: Epoch,
}

impl Speaker {
    fn fence(&self) -> pb::Fence {
        pb::Fence {
            installation: self.installation.clone(),
            lease_created: self.epoch.created,
            lease_transitions: self.epoch.transitions,
        }
    }
}

/// What changed at an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Whether the node's pool can be used, or which it is.
    Node(NodeName),
    /// Only how full it is.
    Space(NodeName),
    /// Snapshots of an image on a node; the numbers that came, went or changed.
    Image {
        key: ImageKey,
        numbers: BTreeSet<SnapshotNumber>,
    },
    /// A transfer.
    Transfer {
        key: ImageKey,
        number: SnapshotNumber,
        ended: bool,
    },
}

/// The agents.
pub(crate) struct Agents {
    speaker: Speaker,
    /// What this replica shows to agents.
    own: Own,
    state: RwLock<State>,
    changed: Box<dyn Fn(Change) + Send + Sync>,
    node_version: AtomicU64,
    /// How many connections have not been tried yet.
    untried: watch::Sender<usize>,
    /// Grows when what agents in touch believe changes.
    trust: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By node, then by address: while a pod replaces another there are two.
    links: BTreeMap<NodeName, BTreeMap<SocketAddr, Link>>,
    transfers: Transfers,
}

/// One agent pod.
struct Link {
    contact: Contact,
    inventories: BTreeMap<ImageKey, Arc<Inventory>>,
    /// The authorities that it believes.
    trusted: BTreeSet<Fingerprint>,
}

enum Contact {
    /// Not tried yet.
    Untried,
    Lost(String),
    Made {
        pool: Box<Pool>,
        data_port: u16,
        client: AgentClient<Channel>,
    },
}

impl Link {
    fn usable(&self) -> bool {
        matches!(&self.contact, Contact::Made { pool, .. } if pool.usable.is_ok())
    }

    fn agent(&self) -> Agent {
        match &self.contact {
            Contact::Untried => Agent::Unreachable("not dialled yet".to_owned()),
            Contact::Lost(why) => Agent::Unreachable(why.clone()),
            Contact::Made { pool, .. } => Agent::Connected(Pool::clone(pool)),
        }
    }
}

impl State {
    /// Of two pods on a node, the one that holds the pool counts.
    fn link(&self, node: &NodeName) -> Option<(&SocketAddr, &Link)> {
        let rank = |link: &Link| match &link.contact {
            Contact::Made { .. } if link.usable() => 2,
            Contact::Made { .. } => 1,
            Contact::Untried | Contact::Lost(_) => 0,
        };
        self.links
            .get(node)?
            .iter()
            .max_by_key(|(_, link)| rank(link))
    }
}

impl Agents {
    /// `changed` is called after every change, and must not wait.
    pub(crate) fn new(
        speaker: Speaker,
        own: Own,
        changed: impl Fn(Change) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Agents {
            speaker,
            own,
            state: RwLock::default(),
            changed: Box::new(changed),
            node_version: AtomicU64::new(0),
            untried: watch::Sender::new(0),
            trust: watch::Sender::new(0),
        })
    }

    /// Grows with every change of an agent's pool, or of whether it answers.
    pub(crate) fn node_version(&self) -> u64 {
        self.node_version.load(Ordering::Acquire)
    }

    fn report(&self, change: Change) {
        if matches!(change, Change::Node(_) | Change::Space(_)) {
            self.node_version.fetch_add(1, Ordering::AcqRel);
        }
        (self.changed)(change);
    }

    // Every change under the lock leaves a whole state: a panic elsewhere spoils nothing.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every agent that was discovered has answered or failed to, once.
    pub(crate) async fn all_tried(&self) {
        // The sender lives in self: there is no error to come.
        let _ = self
            .untried
            .subscribe()
            .wait_for(|untried| *untried == 0)
            .await;
    }

    /// What each agent in touch believes.
    pub(crate) fn trusted(&self) -> Vec<BTreeSet<Fingerprint>> {
        let state = self.read();
        let links = state.links.values().flat_map(BTreeMap::values);
        links
            .filter(|link| matches!(link.contact, Contact::Made { .. }))
            .map(|link| link.trusted.clone())
            .collect()
    }

    /// Tells when that changes.
    pub(crate) fn trust(&self) -> watch::Receiver<u64> {
        self.trust.subscribe()
    }

    fn trust_changed(&self) {
        self.trust.send_modify(|version| *version += 1);
    }

    /// The agent on a node.
    pub(crate) fn agent(&self, node: &NodeName) -> Agent {
        self.read()
            .link(node)
            .map_or(Agent::Absent, |(_, link)| link.agent())
    }

    /// An image's directory on each node, also as last seen on nodes that do not answer now.
    pub(crate) fn inventories(&self, key: &ImageKey) -> BTreeMap<NodeName, Arc<Inventory>> {
        let state = self.read();
        let on = |node: &NodeName| {
            Some((
                node.clone(),
                state.link(node)?.1.inventories.get(key)?.clone(),
            ))
        };
        state.links.keys().filter_map(on).collect()
    }

    /// The images that any node has a directory of.
    pub(crate) fn images(&self) -> BTreeSet<ImageKey> {
        let state = self.read();
        let links = state.links.values().flat_map(BTreeMap::values);
        links
            .flat_map(|link| link.inventories.keys())
            .cloned()
            .collect()
    }

    /// Of how many images each node holds snapshots.
    pub(crate) fn images_held(&self) -> BTreeMap<NodeName, u32> {
        let state = self.read();
        let count = |node: &NodeName| {
            let held = |inventory: &&Arc<Inventory>| !inventory.snapshots.is_empty();
            let images = state
                .link(node)?
                .1
                .inventories
                .values()
                .filter(held)
                .count();
            Some((node.clone(), images as u32))
        };
        state.links.keys().filter_map(count).collect()
    }

    /// What a namespace takes on each node.
    pub(crate) fn taken(&self, namespace: &str, now: Timestamp) -> Taken {
        let state = self.read();
        let mut inventories: BTreeMap<ImageKey, BTreeMap<NodeName, Arc<Inventory>>> =
            BTreeMap::new();
        let first = ImageKey {
            namespace: namespace.to_owned(),
            image: String::new(),
        };
        for node in state.links.keys() {
            let Some((_, link)) = state.link(node) else {
                continue;
            };
            let images = link.inventories.range(&first..);
            for (key, held) in images.take_while(|(key, _)| key.namespace == namespace) {
                let of_image = inventories.entry(key.clone()).or_default();
                of_image.insert(node.clone(), held.clone());
            }
        }
        let transfers = state.transfers.in_namespace(namespace);
        for key in transfers.keys() {
            inventories.entry(key.clone()).or_default();
        }
        let none: &[Transfer] = &[];
        let images = inventories
            .iter()
            .map(|(key, held)| (held, transfers.get(key).map_or(none, Vec::as_slice)));
        taken(images, now)
    }

    /// The transfers of an image, under way and ended.
    pub(crate) fn transfers(&self, key: &ImageKey) -> Vec<Transfer> {
        self.read().transfers.of(key)
    }

    /// All transfers under way, of whatever image.
    pub(crate) fn all_running(&self) -> Vec<Transfer> {
        self.read().transfers.all_running()
    }

    /// How many transfers are under way.
    pub(crate) fn running(&self) -> usize {
        self.read().transfers.running()
    }

    /// How many agents answer, of how many there are.
    pub(crate) fn answering(&self) -> (usize, usize) {
        let state = self.read();
        let made = |node: &&NodeName| {
            state
                .link(node)
                .is_some_and(|(_, link)| matches!(link.contact, Contact::Made { .. }))
        };
        (state.links.keys().filter(made).count(), state.links.len())
    }

    fn client(&self, node: &NodeName) -> Result<AgentClient<Channel>, Refusal> {
        use icbd_crds::Reason;
        match self.read().link(node).map(|(_, link)| &link.contact) {
            Some(Contact::Made { client, .. }) => Ok(client.clone()),
            Some(Contact::Lost(why)) => Err(Refusal::new(
                Reason::AgentUnreachable,
                format!("the agent on node {node} does not answer: {why}"),
            )),
            Some(Contact::Untried) | None => Err(Refusal::new(
                Reason::AgentNotFound,
                format!("no agent runs on node {node}"),
            )),
        }
    }

    /// Where a node's agent takes data.
    fn data_address(&self, node: &NodeName) -> Option<(String, u16)> {
        match self.read().link(node)? {
            (
                address,
                Link {
                    contact: Contact::Made { data_port, .. },
                    ..
                },
            ) => Some((address.ip().to_string(), *data_port)),
            _ => None,
        }
    }
}
