//! All images, what their replicas are to hold, and where they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use icbd_planner::replication::{Extraneous, Job, WantedSnapshot, extraneous};
use icbd_planner::{Agent, ImageKey, Inventory, NodeName, SnapshotNumber, Transfer};
use kube::ResourceExt;

use crate::facts::Sight;

pub(super) struct Seen {
    pub(super) jobs: Vec<Job>,
    /// All transfers under way.
    pub(super) running: Vec<Transfer>,
    /// By image and number: uid of the Snapshot object.
    pub(super) objects: BTreeMap<(ImageKey, SnapshotNumber), String>,
    /// What nodes that can be seen hold, of all images, also those without an object.
    pub(super) inventories: BTreeMap<ImageKey, BTreeMap<NodeName, Arc<Inventory>>>,
}

impl Seen {
    /// What came back with nodes that were away when it was deleted.
    pub(super) fn extraneous(&self) -> Vec<Extraneous> {
        let of_image = |(image, inventories): (&ImageKey, &BTreeMap<NodeName, Arc<Inventory>>)| {
            extraneous(
                image,
                inventories.iter().map(|(node, held)| (node, held.as_ref())),
            )
        };
        self.inventories.iter().flat_map(of_image).collect()
    }
}

pub(super) fn fetch(sight: &Sight) -> Seen {
    let mut jobs = Vec::new();
    let mut objects = BTreeMap::new();
    let mut namespaces = BTreeMap::new();
    for image in sight.caches.images.state() {
        if image.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut facts = sight.image_among(&image, &mut namespaces);
        let snapshots = sight.wanted(&facts);
        for (object, wanted) in &snapshots {
            objects.insert(
                (facts.key.clone(), wanted.number),
                object.uid().unwrap_or_default(),
            );
            sight.ledger.take_over(&facts, object, wanted.number);
        }
        sight.ledger.settle(&facts);
        facts.attempts = sight.ledger.of(&facts.key);
        let wanted: Vec<WantedSnapshot> = snapshots.into_iter().map(|(_, wanted)| wanted).collect();
        jobs.push(Job { facts, wanted });
    }
    sight.ledger.keep_only(&objects);
    Seen {
        jobs,
        running: sight.agents.all_running(),
        objects,
        inventories: observed(sight),
    }
}

fn observed(sight: &Sight) -> BTreeMap<ImageKey, BTreeMap<NodeName, Arc<Inventory>>> {
    let nodes = sight.nodes();
    let usable = |name: &NodeName| {
        let agent = nodes.get(name).map(|node| &node.agent);
        matches!(agent, Some(Agent::Connected(pool)) if pool.usable.is_ok())
    };
    let images = sight.agents.images().into_iter();
    images
        .map(|image| {
            let mut inventories = sight.agents.inventories(&image);
            inventories.retain(|node, _| usable(node));
            (image, inventories)
        })
        .collect()
}
