//! Puts together what the planner decides from: the objects in the caches and what the agents
//! told. No decisions here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use icbd_crds::{ConditionType, Snapshot, VMImage, condition, names};
use icbd_planner::quota::Taken;
use icbd_planner::replication::WantedSnapshot;
use icbd_planner::{
    Attempts, Held, ImageFacts, ImageKey, Namespace, Node, NodeName, SnapshotNumber, TargetFacts,
};
use jiff::Timestamp;
use kube::ResourceExt;
use kube_runtime::reflector::ObjectRef;

use crate::agents::{Agents, Owner};
use crate::caches::{Caches, image_key};
use crate::identity::Identity;
use crate::ledger::Ledger;

type Nodes = Arc<BTreeMap<NodeName, Node>>;

/// Everything that can be seen.
pub(crate) struct Sight {
    pub(crate) caches: Arc<Caches>,
    pub(crate) agents: Arc<Agents>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) identity: Identity,
    /// The nodes as last put together, and of which versions of objects and agents: many decisions
    /// are made from the same sight of them.
    nodes: Mutex<Option<((u64, u64), Nodes)>>,
}

impl Sight {
    pub(crate) fn new(
        caches: Arc<Caches>,
        agents: Arc<Agents>,
        ledger: Arc<Ledger>,
        identity: Identity,
    ) -> Self {
        Sight {
            caches,
            agents,
            ledger,
            identity,
            nodes: Mutex::default(),
        }
    }

    /// All nodes, with their agents.
    pub(crate) fn nodes(&self) -> Nodes {
        // Read before looking: what changes meanwhile is seen the next time.
        let version = (self.caches.node_version(), self.agents.node_version());
        let mut cached = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        match cached.as_ref() {
            Some((seen, nodes)) if *seen == version => nodes.clone(),
            _ => {
                let nodes = Arc::new(self.look_at_nodes());
                *cached = Some((version, nodes.clone()));
                nodes
            }
        }
    }

    fn look_at_nodes(&self) -> BTreeMap<NodeName, Node> {
        let objects = self.caches.nodes.state();
        let look = |object: &Arc<k8s_openapi::api::core::v1::Node>| {
            let name = NodeName(object.name_any());
            let annotation = |key| object.annotations().get(key).cloned();
            let node = Node {
                labels: object.labels().clone(),
                init_pool: annotation(names::INIT_POOL).as_deref() == Some("true"),
                take_over_pool: annotation(names::TAKE_OVER_POOL),
                agent: self.agents.agent(&name),
            };
            (name, node)
        };
        objects.iter().map(look).collect()
    }

    /// The namespace of an image.
    pub(crate) fn namespace(&self, name: &str) -> Namespace {
        let Some(object) = self.caches.namespaces.get(&ObjectRef::new(name)) else {
            return Namespace::default();
        };
        Namespace {
            uid: object.uid().unwrap_or_default(),
            labels: object.labels().clone(),
            adopt_from: object.annotations().get(names::ADOPT_FROM).cloned(),
            terminating: object.metadata.deletion_timestamp.is_some(),
        }
    }

    /// All that can be seen of one image.
    pub(crate) fn image(&self, image: &VMImage) -> ImageFacts {
        self.image_among(image, &mut BTreeMap::new())
    }

    /// The same; what namespaces take is added up once for all images that are looked at together.
    pub(crate) fn image_among(
        &self,
        image: &VMImage,
        namespaces: &mut BTreeMap<String, Arc<Taken>>,
    ) -> ImageFacts {
        let key = image_key(image, &image.name_any());
        let targets: Vec<TargetFacts> = image
            .spec
            .targets
            .iter()
            .map(|target| self.target(&target.name))
            .collect();
        let mut specs = targets.iter().filter_map(|target| target.spec.as_ref());
        let taken = if specs.any(|spec| spec.namespace_quota.is_some()) {
            let look = || Arc::new(self.agents.taken(&key.namespace, Timestamp::now()));
            namespaces
                .entry(key.namespace.clone())
                .or_insert_with(look)
                .clone()
        } else {
            Arc::default()
        };
        ImageFacts {
            spec: image.spec.clone(),
            terminating: image.metadata.deletion_timestamp.is_some(),
            namespace: self.namespace(&key.namespace),
            targets,
            nodes: self.nodes(),
            inventories: self.agents.inventories(&key),
            transfers: self.agents.transfers(&key),
            attempts: self.attempts(&key),
            taken,
            key,
        }
    }

    fn attempts(&self, key: &ImageKey) -> Attempts {
        self.ledger.of(key)
    }

    fn target(&self, name: &str) -> TargetFacts {
        let object = self.caches.targets.get(&ObjectRef::new(name));
        let rows = object
            .iter()
            .flat_map(|object| &object.status)
            .flat_map(|status| &status.nodes);
        let gone: BTreeSet<NodeName> = rows
            .filter(|row| row.gone_since.is_some())
            .map(|row| NodeName(row.name.clone()))
            .collect();
        TargetFacts {
            name: name.to_owned(),
            spec: object.as_ref().map(|object| Arc::new(object.spec.clone())),
            gone,
        }
    }

    /// The VMImage that a Snapshot names.
    pub(crate) fn image_of(&self, snapshot: &Snapshot) -> Option<Arc<VMImage>> {
        let key = image_key(snapshot, &snapshot.spec.image);
        self.caches
            .images
            .get(&ObjectRef::new(&key.image).within(&key.namespace))
    }

    /// The Snapshots of an image that replicas are to hold, in order of their numbers, each with
    /// its object.
    pub(crate) fn wanted(&self, facts: &ImageFacts) -> Vec<(Arc<Snapshot>, WantedSnapshot)> {
        let names: BTreeMap<&str, (&SnapshotNumber, &Held)> = facts
            .primary_inventory()
            .map(|primary| primary.snapshots.iter())
            .into_iter()
            .flatten()
            .filter_map(|(number, held)| {
                Some((held.record.as_ref()?.name.as_str(), (number, held)))
            })
            .collect();
        let mut wanted: Vec<(Arc<Snapshot>, WantedSnapshot)> = self
            .caches
            .snapshots_of(&facts.key)
            .into_iter()
            .filter(|snapshot| snapshot.metadata.deletion_timestamp.is_none())
            .filter_map(|snapshot| {
                let found = names.get(snapshot.name_any().as_str()).copied();
                let wanted = found.map(on_disk).or_else(|| by_status(&snapshot))?;
                (!facts.buried(wanted.number, &wanted.identity)).then_some(())?;
                Some((snapshot, wanted))
            })
            .collect();
        wanted.sort_by_key(|(_, wanted)| wanted.number);
        wanted.dedup_by_key(|(_, wanted)| wanted.number);
        wanted
    }
}

/// What a Snapshot stands for, as the primary's disk knows it.
fn on_disk((number, held): (&SnapshotNumber, &Held)) -> WantedSnapshot {
    WantedSnapshot {
        number: *number,
        identity: held.identity.clone(),
        taken_at: held
            .record
            .as_ref()
            .map_or(held.created_at, |record| record.taken_at),
    }
}

/// What a Snapshot stood for when it was last seen.
fn by_status(snapshot: &Snapshot) -> Option<WantedSnapshot> {
    let status = snapshot.status.as_ref()?;
    let taken = condition(&status.conditions, ConditionType::Taken)?;
    (taken.status == "True").then_some(())?;
    Some(WantedSnapshot {
        number: SnapshotNumber(status.number?),
        identity: status.uuid.clone()?,
        taken_at: status
            .taken_at
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    })
}

/// Whose data an image is.
pub(crate) fn owner(facts: &ImageFacts) -> Owner {
    Owner {
        namespace_uid: facts.namespace.uid.clone(),
        adopt_from: facts.namespace.adopt_from.clone(),
    }
}
