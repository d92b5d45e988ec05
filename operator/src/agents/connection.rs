//! One connection to one agent: dial, watch, take in what it tells, dial again. Whether an agent is
//! lost is decided by HTTP/2 keep-alive: a ping every 10 s, lost after 30 s without an answer.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use icbd_net::{Fingerprint, Name, Pauses, grpc};
use icbd_planner::{ImageKey, Inventory, NodeName, Pool, SnapshotNumber};
use icbd_wire::control as pb;
use icbd_wire::control::agent_client::AgentClient;
use icbd_wire::control::agent_event::Event;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use super::{Agents, Change, Contact, Link, convert};

const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
const LOST_AFTER: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Inventories of images with tens of thousands of snapshots.
const LARGEST_MESSAGE: usize = 64 << 20;

/// Stays in touch with one agent until it is dropped.
pub(super) async fn stay_in_touch(agents: Arc<Agents>, node: NodeName, address: SocketAddr) {
    let _presence = Presence::new(&agents, node.clone(), address);
    let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let (told_all, why) = match watch(&agents, &node, address).await {
            Ok(mut told) => {
                let told_all = told.synced;
                (told_all, told.run(&agents, &node, address).await)
            }
            Err(why) => (false, why),
        };
        warn!(%node, %address, why, "lost the agent");
        agents.lost(&node, address, why);
        if told_all {
            pauses.start_over();
        }
        tokio::time::sleep(pauses.after_failure()).await;
    }
}

/// An agent that told all it knows.
struct Told {
    synced: bool,
    stream: Streaming<pb::AgentEvent>,
}

/// Dials, and takes in all that the agent knows.
async fn watch(agents: &Agents, node: &NodeName, address: SocketAddr) -> Result<Told, String> {
    let channel = dial(agents, node, address).await?;
    let mut client = AgentClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let request = pb::WatchRequest {
        fence: Some(agents.speaker.fence()),
    };
    let mut stream = match tokio::time::timeout(LOST_AFTER, client.watch(request)).await {
        Ok(answer) => answer
            .map_err(|status| status.message().to_owned())?
            .into_inner(),
        Err(_) => return Err("no answer to Watch".to_owned()),
    };
    let mut described = None;
    let mut trusted = BTreeSet::new();
    let mut images = Vec::new();
    let mut transfers = Vec::new();
    loop {
        match next(&mut stream).await? {
            Event::Trusted(told) => trusted = fingerprints(told),
            Event::Described(description) => described = Some(description),
            Event::Pool(pool) => {
                if let Some(description) = &mut described {
                    description.pool = Some(pool);
                }
            }
            Event::Image(image) => images.push(image),
            Event::ImageGone(gone) => images.retain(|image| image.image.as_ref() != Some(&gone)),
            Event::Transfer(transfer) => transfers.push(transfer),
            Event::Synced(_) => break,
        }
    }
    let description = described.ok_or("the agent did not describe itself")?;
    if description.node != node.0 {
        return Err(format!(
            "the agent at {address} is that of node {}",
            description.node
        ));
    }
    info!(%node, %address, version = description.agent_version, kernel = description.kernel_release, "in touch with the agent");
    let all = Everything {
        description,
        trusted,
        images,
        transfers,
    };
    agents.told_all(node, address, client, all);
    Ok(Told {
        synced: true,
        stream,
    })
}

/// All that an agent tells at first.
struct Everything {
    description: pb::DescribeResponse,
    trusted: BTreeSet<Fingerprint>,
    images: Vec<pb::ImageInventory>,
    transfers: Vec<pb::Transfer>,
}

/// Connects with mutual proof: to the agent of this node, and to nobody else at its address.
async fn dial(agents: &Agents, node: &NodeName, address: SocketAddr) -> Result<Channel, String> {
    let identity = agents.own.identity(CONNECT_WITHIN).await;
    let identity = identity.ok_or("the operator has no certificate of its own")?;
    let peer = Name::agent(identity.current().name().trust_domain(), &node.0);
    let endpoint = grpc::endpoint()
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(LOST_AFTER)
        .keep_alive_while_idle(true);
    let channel = grpc::dial(endpoint, address, identity, peer).await;
    channel.map_err(|error| grpc::explain(&error))
}

fn fingerprints(told: pb::Trusted) -> BTreeSet<Fingerprint> {
    let told = told.fingerprints.into_iter();
    told.map(Fingerprint::told).collect()
}

async fn next(stream: &mut Streaming<pb::AgentEvent>) -> Result<Event, String> {
    loop {
        match stream.message().await {
            // An event that only newer agents know.
            Ok(Some(pb::AgentEvent { event: None })) => {}
            Ok(Some(pb::AgentEvent { event: Some(event) })) => return Ok(event),
            Ok(None) => return Err("the agent ended its stream".to_owned()),
            Err(status) => return Err(lost_because(&status)),
        }
    }
}

fn lost_because(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), grpc::explain)
}

impl Told {
    /// Takes in changes until the agent is lost; says why it is.
    async fn run(&mut self, agents: &Agents, node: &NodeName, address: SocketAddr) -> String {
        loop {
            match next(&mut self.stream).await {
                Ok(event) => agents.told(node, address, event),
                Err(why) => return why,
            }
        }
    }
}

/// An address stands in the registry for as long as somebody stays in touch with it.
struct Presence<'a> {
    agents: &'a Agents,
    node: NodeName,
    address: SocketAddr,
}

impl<'a> Presence<'a> {
    fn new(agents: &'a Agents, node: NodeName, address: SocketAddr) -> Self {
        agents.untried.send_modify(|untried| *untried += 1);
        let link = Link {
            contact: Contact::Untried,
            inventories: Default::default(),
            trusted: Default::default(),
        };
        agents
            .write()
            .links
            .entry(node.clone())
            .or_default()
            .insert(address, link);
        Presence {
            agents,
            node,
            address,
        }
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.agents.gone(&self.node, self.address);
    }
}

impl Agents {
    fn tried(&self, was: &Contact) {
        if matches!(was, Contact::Untried) {
            self.untried.send_modify(|untried| *untried -= 1);
        }
    }

    fn told_all(
        &self,
        node: &NodeName,
        address: SocketAddr,
        client: AgentClient<Channel>,
        all: Everything,
    ) {
        let Everything {
            description,
            trusted,
            images,
            transfers,
        } = all;
        let contact = Contact::Made {
            pool: Box::new(convert::pool(description.pool.unwrap_or_default())),
            data_port: u16::try_from(description.data_port).unwrap_or(icbd_crds::names::DATA_PORT),
            client,
        };
        let inventories: std::collections::BTreeMap<ImageKey, Arc<Inventory>> = images
            .into_iter()
            .filter_map(|image| {
                let key = convert::key(image.image.as_ref()?);
                Some((key, Arc::new(convert::inventory(image))))
            })
            .collect();
        let mut changes = vec![Change::Node(node.clone())];
        {
            let mut state = self.write();
            state.transfers.forget(node);
            for transfer in transfers {
                changes.extend(transfer_change(&transfer));
                state.transfers.told(node, transfer);
            }
            let link = Link {
                contact,
                inventories: inventories.clone(),
                trusted,
            };
            let old = state
                .links
                .entry(node.clone())
                .or_default()
                .insert(address, link);
            let old = old.unwrap_or(Link {
                contact: Contact::Lost(String::new()),
                inventories: Default::default(),
                trusted: Default::default(),
            });
            self.tried(&old.contact);
            let keys: BTreeSet<&ImageKey> =
                old.inventories.keys().chain(inventories.keys()).collect();
            for key in keys {
                let numbers = differing(old.inventories.get(key), inventories.get(key));
                changes.push(Change::Image {
                    key: key.clone(),
                    numbers,
                });
            }
        }
        changes.into_iter().for_each(|change| self.report(change));
        self.trust_changed();
    }

    fn told(&self, node: &NodeName, address: SocketAddr, event: Event) {
        let is_of_trust = matches!(event, Event::Trusted(_));
        let change = {
            let mut state = self.write();
            if let Event::Transfer(transfer) = event {
                let change = transfer_change(&transfer);
                state.transfers.told(node, transfer);
                change
            } else {
                let link = state
                    .links
                    .get_mut(node)
                    .and_then(|links| links.get_mut(&address));
                link.and_then(|link| take_in(link, node, event))
            }
        };
        if is_of_trust {
            self.trust_changed();
        }
        if let Some(change) = change {
            self.report(change);
        }
    }

    fn lost(&self, node: &NodeName, address: SocketAddr, why: String) {
        {
            let mut state = self.write();
            let Some(link) = state
                .links
                .get_mut(node)
                .and_then(|links| links.get_mut(&address))
            else {
                return;
            };
            let was = std::mem::replace(&mut link.contact, Contact::Lost(why.clone()));
            self.tried(&was);
            if matches!(&was, Contact::Lost(before) if *before == why) {
                return;
            }
        }
        self.report(Change::Node(node.clone()));
        self.trust_changed();
    }

    fn gone(&self, node: &NodeName, address: SocketAddr) {
        {
            let mut state = self.write();
            let Some(links) = state.links.get_mut(node) else {
                return;
            };
            if let Some(link) = links.remove(&address) {
                self.tried(&link.contact);
            }
            if links.is_empty() {
                state.links.remove(node);
                state.transfers.forget(node);
            }
        }
        self.report(Change::Node(node.clone()));
        self.trust_changed();
    }
}

/// Takes one change in; says what it changed, if anything.
fn take_in(link: &mut Link, node: &NodeName, event: Event) -> Option<Change> {
    match event {
        Event::Pool(pool) => replace_pool(link, node, convert::pool(pool)),
        Event::Described(description) => replace_pool(
            link,
            node,
            convert::pool(description.pool.unwrap_or_default()),
        ),
        Event::Image(image) => {
            let key = convert::key(image.image.as_ref()?);
            let new = Arc::new(convert::inventory(image));
            let old = link.inventories.insert(key.clone(), new.clone());
            let numbers = differing(old.as_ref(), Some(&new));
            (old.as_ref() != Some(&new)).then_some(Change::Image { key, numbers })
        }
        Event::ImageGone(image) => {
            let key = convert::key(&image);
            let old = link.inventories.remove(&key)?;
            Some(Change::Image {
                key,
                numbers: differing(Some(&old), None),
            })
        }
        Event::Trusted(told) => {
            link.trusted = fingerprints(told);
            None
        }
        Event::Transfer(_) | Event::Synced(_) => None,
    }
}

fn replace_pool(link: &mut Link, node: &NodeName, new: Pool) -> Option<Change> {
    let Contact::Made { pool, .. } = &mut link.contact else {
        return None;
    };
    let old = std::mem::replace(pool.as_mut(), new.clone());
    let same_but_space = Pool {
        free: old.free,
        capacity: old.capacity,
        ..new.clone()
    } == old;
    match (old == new, same_but_space) {
        (true, _) => None,
        (false, true) => Some(Change::Space(node.clone())),
        (false, false) => Some(Change::Node(node.clone())),
    }
}

fn transfer_change(transfer: &pb::Transfer) -> Option<Change> {
    Some(Change::Transfer {
        key: convert::key(transfer.image.as_ref()?),
        number: SnapshotNumber(transfer.number),
        ended: convert::end(transfer).is_some(),
    })
}

fn differing(
    old: Option<&Arc<Inventory>>,
    new: Option<&Arc<Inventory>>,
) -> BTreeSet<SnapshotNumber> {
    let empty = Inventory::default();
    let old = old.map_or(&empty, Arc::as_ref);
    let new = new.map_or(&empty, Arc::as_ref);
    let held = old.snapshots.keys().chain(new.snapshots.keys()).copied();
    let changed = held.filter(|number| old.snapshots.get(number) != new.snapshots.get(number));
    let buried = old
        .tombstones
        .symmetric_difference(&new.tombstones)
        .map(|t| t.number);
    let partial = old.partials.symmetric_difference(&new.partials).copied();
    changed.chain(buried).chain(partial).collect()
}
