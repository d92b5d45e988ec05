//! Who is to be looked at again: queues of objects, one a kind. Asking twice is looking once.

use std::sync::Arc;

use icbd_crds::{ReplicationTarget, Snapshot, VMImage};
use icbd_planner::{ImageKey, NodeName};
use k8s_openapi::api::core::v1::Node;
use kube_runtime::reflector::ObjectRef;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Asks for objects to be looked at. The queues hold names only and are read at once, so that
/// their length is no concern; a queue whose reader is gone belongs to a process that ends.
#[derive(Clone)]
pub(crate) struct Wake {
    images: UnboundedSender<ObjectRef<VMImage>>,
    snapshots: UnboundedSender<ObjectRef<Snapshot>>,
    targets: UnboundedSender<ObjectRef<ReplicationTarget>>,
    nodes: UnboundedSender<ObjectRef<Node>>,
    replication: Arc<Notify>,
}

/// The other ends.
pub(crate) struct Queues {
    pub(crate) images: UnboundedReceiver<ObjectRef<VMImage>>,
    pub(crate) snapshots: UnboundedReceiver<ObjectRef<Snapshot>>,
    pub(crate) targets: UnboundedReceiver<ObjectRef<ReplicationTarget>>,
    pub(crate) nodes: UnboundedReceiver<ObjectRef<Node>>,
    pub(crate) replication: Arc<Notify>,
}

/// Makes both ends.
pub(crate) fn queues() -> (Wake, Queues) {
    let (images, images_rx) = unbounded_channel();
    let (snapshots, snapshots_rx) = unbounded_channel();
    let (targets, targets_rx) = unbounded_channel();
    let (nodes, nodes_rx) = unbounded_channel();
    let replication = Arc::new(Notify::new());
    let queues = Queues {
        images: images_rx,
        snapshots: snapshots_rx,
        targets: targets_rx,
        nodes: nodes_rx,
        replication: replication.clone(),
    };
    (
        Wake {
            images,
            snapshots,
            targets,
            nodes,
            replication,
        },
        queues,
    )
}

impl Wake {
    pub(crate) fn image(&self, key: &ImageKey) {
        let _ = self
            .images
            .send(ObjectRef::new(&key.image).within(&key.namespace));
    }

    pub(crate) fn snapshot(&self, namespace: &str, name: &str) {
        let _ = self.snapshots.send(ObjectRef::new(name).within(namespace));
    }

    pub(crate) fn target(&self, name: &str) {
        let _ = self.targets.send(ObjectRef::new(name));
    }

    pub(crate) fn node(&self, name: &NodeName) {
        let _ = self.nodes.send(ObjectRef::new(&name.0));
    }

    pub(crate) fn replication(&self) {
        self.replication.notify_one();
    }
}
