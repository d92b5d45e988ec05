//! A tiny notation for tests: `1a 2b!` is an inventory of snapshot 1 with content `a` and of 2
//! with content `b`, changed since; `n1 1a 2b | n2 1a | n3 away` are nodes, the first the primary.

use std::collections::BTreeMap;
use std::sync::Arc;

use icbd_crds::{
    Compression, DeletionPolicy, FullTransfers, LabelSelector, Origin, Primary,
    ReplicationTargetSpec, VMImageSpec,
};
use jiff::Timestamp;

use crate::model::{
    Agent, Held, ImageFacts, ImageKey, Inventory, Live, Namespace, Node, NodeName, Pool, PoolId,
    Record, SnapshotNumber, TargetFacts, Tombstone, Transfer,
};
use crate::quota::taken;

pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// Snapshots as `<number><content>[!]`, their names `s<number>`, taken at second `number`; a
/// number with a dagger, `3c†`, is a tombstone; `~4` is a partial.
pub(crate) fn inventory(text: &str) -> Inventory {
    let mut inventory = Inventory {
        namespace_uid: Some("ns-uid".into()),
        live: Some(Live { received: false }),
        ..Inventory::default()
    };
    for word in text.split_whitespace() {
        if let Some(partial) = word.strip_prefix('~') {
            inventory
                .partials
                .insert(SnapshotNumber(partial.parse().unwrap()));
            continue;
        }
        let letters = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: u64 = word[..word.len() - letters.len()].parse().unwrap();
        let identity = letters.trim_end_matches(['!', '†']).to_owned();
        inventory.highest = inventory.highest.max(number);
        if letters.ends_with('†') {
            inventory.tombstones.insert(Tombstone {
                number: SnapshotNumber(number),
                identity,
            });
            continue;
        }
        let record = Record {
            name: format!("s{number}"),
            object_uid: format!("uid-s{number}"),
            origin: Origin::User,
            taken_at: at(number as i64),
        };
        let held = Held {
            identity,
            suspect: letters.ends_with('!'),
            record: Some(record),
            bytes: Some(1 << 20),
            created_at: at(number as i64),
        };
        inventory.snapshots.insert(SnapshotNumber(number), held);
    }
    inventory
}

pub(crate) fn ready_pool() -> Pool {
    Pool {
        usable: Ok(()),
        id: Some(PoolId {
            fsid: "fs".into(),
            subvolume: "sub".into(),
        }),
        installation: Some("here".into()),
        empty: false,
        capacity: 100 << 30,
        free: 90 << 30,
        path: "/var/lib/icbd/pool".into(),
    }
}

pub(crate) fn node(agent: Agent) -> Node {
    Node {
        labels: BTreeMap::new(),
        init_pool: false,
        take_over_pool: None,
        agent,
    }
}

/// Image `vms/win` on the nodes that the text names.
pub(crate) fn facts(text: &str) -> ImageFacts {
    let mut nodes = BTreeMap::new();
    let mut inventories = BTreeMap::new();
    for part in text.split('|') {
        let (name, content) = part.trim().split_once(' ').unwrap_or((part.trim(), ""));
        let name = NodeName::from(name);
        let agent = match content {
            "away" => Agent::Unreachable("connection refused".into()),
            "absent" => Agent::Absent,
            _ => {
                inventories.insert(name.clone(), Arc::new(inventory(content)));
                Agent::Connected(ready_pool())
            }
        };
        nodes.insert(name, node(agent));
    }
    let primary = text.split_whitespace().next().unwrap().to_owned();
    ImageFacts {
        key: ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        },
        spec: VMImageSpec {
            primary: Primary { node_name: primary },
            targets: Vec::new(),
            compression: Compression::Auto,
            min_replicas: None,
            full_transfers: FullTransfers::WhenEmpty,
            suspend: false,
            deletion_policy: DeletionPolicy::Retain,
        },
        terminating: false,
        namespace: Namespace {
            uid: "ns-uid".into(),
            ..Namespace::default()
        },
        targets: Vec::new(),
        nodes: Arc::new(nodes),
        inventories,
        transfers: Vec::new(),
        attempts: BTreeMap::new(),
        taken: Default::default(),
    }
}

/// A target that selects every node and allows every namespace.
pub(crate) fn target(name: &str) -> TargetFacts {
    let spec = ReplicationTargetSpec {
        nodes: LabelSelector::default(),
        allowed_namespaces: LabelSelector::default(),
        allowed_primaries: None,
        bandwidth: None,
        max_concurrent_transfers: 2,
        min_free: "10%".into(),
        namespace_quota: None,
        suspend: false,
    };
    TargetFacts {
        name: name.into(),
        spec: Some(Arc::new(spec)),
        gone: Default::default(),
    }
}

impl TargetFacts {
    fn edit(mut self, edit: impl FnOnce(&mut ReplicationTargetSpec)) -> Self {
        edit(Arc::make_mut(self.spec.as_mut().unwrap()));
        self
    }
    pub(crate) fn bandwidth(self, rate: &str) -> Self {
        self.edit(|spec| spec.bandwidth = Some(rate.into()))
    }
    pub(crate) fn max_concurrent(self, n: u32) -> Self {
        self.edit(|spec| spec.max_concurrent_transfers = n)
    }
    pub(crate) fn min_free(self, free: &str) -> Self {
        self.edit(|spec| spec.min_free = free.into())
    }
    pub(crate) fn suspended(self) -> Self {
        self.edit(|spec| spec.suspend = true)
    }
    pub(crate) fn allows(self, key: &str, value: &str) -> Self {
        self.edit(|spec| {
            spec.allowed_namespaces
                .match_labels
                .insert(key.into(), value.into());
        })
    }
    pub(crate) fn allows_primary(self, key: &str, value: &str) -> Self {
        self.edit(|spec| {
            let allowed = spec.allowed_primaries.get_or_insert_default();
            allowed.match_labels.insert(key.into(), value.into());
        })
    }
    pub(crate) fn quota(self, bytes: &str) -> Self {
        self.edit(|spec| spec.namespace_quota = Some(bytes.into()))
    }
    pub(crate) fn gone(mut self, node: &str) -> Self {
        self.gone.insert(node.into());
        self
    }
    pub(crate) fn missing(mut self) -> Self {
        self.spec = None;
        self
    }
}

impl ImageFacts {
    pub(crate) fn with_targets(mut self, targets: impl IntoIterator<Item = TargetFacts>) -> Self {
        self.targets = targets.into_iter().collect();
        self
    }
    /// With a label on one of the nodes.
    pub(crate) fn labelled(mut self, node: &str, key: &str, value: &str) -> Self {
        let nodes = Arc::make_mut(&mut self.nodes);
        let labels = &mut nodes.get_mut(&NodeName::from(node)).unwrap().labels;
        labels.insert(key.into(), value.into());
        self
    }
    /// With what its namespace takes, this image being all that there is in it.
    pub(crate) fn counted(mut self) -> Self {
        let all = [(&self.inventories, self.transfers.as_slice())];
        self.taken = Arc::new(taken(all, at(5000)));
        self
    }
    /// A transfer under way from the primary.
    pub(crate) fn moving(mut self, receiver: &str, number: u64, parent: Option<u64>) -> Self {
        self.transfers.push(Transfer {
            id: format!("t-{receiver}-{number}"),
            image: self.key.clone(),
            number: SnapshotNumber(number),
            parent: parent.map(SnapshotNumber),
            source: self.primary(),
            receiver: receiver.into(),
            bytes_sent: 30,
            bytes_done: 50,
            bytes_total: Some(100),
            rate: 10,
            started_at: at(1000),
            end: None,
        });
        self
    }
}
