//! The objects as Kubernetes has them, mirrored in memory, and who is woken when one changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use icbd_crds::{ReplicationTarget, Snapshot, VMImage};
use icbd_planner::{ImageKey, NodeName, SnapshotNumber};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::{Api, Client, Resource, ResourceExt};
use kube_runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube_runtime::{WatchStreamExt, watcher};
use serde::de::DeserializeOwned;
use tracing::warn;

use crate::agents::Change;
use crate::wake::Wake;

/// All objects that decisions are made from.
pub(crate) struct Caches {
    pub(crate) images: Store<VMImage>,
    pub(crate) snapshots: Store<Snapshot>,
    pub(crate) targets: Store<ReplicationTarget>,
    pub(crate) nodes: Store<Node>,
    pub(crate) namespaces: Store<Namespace>,
    /// Names of the Snapshots of each image: 20,000 are too many to look through each time.
    by_image: Mutex<BTreeMap<ImageKey, BTreeSet<String>>>,
    node_version: AtomicU64,
    wake: Wake,
}

/// The image that an object in a namespace is or belongs to.
pub(crate) fn image_key(object: &impl ResourceExt, image: &str) -> ImageKey {
    ImageKey {
        namespace: object.namespace().unwrap_or_default(),
        image: image.to_owned(),
    }
}

impl Caches {
    /// The mirrors, still empty, and the work of filling them and keeping them true.
    pub(crate) fn new(client: &Client, wake: Wake) -> (Arc<Self>, Vec<BoxFuture<'static, ()>>) {
        let (images, images_in) = reflector::store();
        let (snapshots, snapshots_in) = reflector::store();
        let (targets, targets_in) = reflector::store();
        let (nodes, nodes_in) = reflector::store();
        let (namespaces, namespaces_in) = reflector::store();
        let caches = Arc::new(Caches {
            images,
            snapshots,
            targets,
            nodes,
            namespaces,
            by_image: Mutex::default(),
            node_version: AtomicU64::new(0),
            wake,
        });
        let on = |caches: &Arc<Caches>| caches.clone();
        let (i, s, t, n, ns) = (
            on(&caches),
            on(&caches),
            on(&caches),
            on(&caches),
            on(&caches),
        );
        let nodes_touched = only_when_changed(
            caches.nodes.clone(),
            |node| (node.labels().clone(), node.annotations().clone()),
            move |node| n.node(node),
        );
        let namespaces_touched = only_when_changed(
            caches.namespaces.clone(),
            |ns| {
                let going = ns.metadata.deletion_timestamp.is_some();
                (
                    ns.uid(),
                    ns.labels().clone(),
                    ns.annotations().clone(),
                    going,
                )
            },
            move |namespace| ns.namespace(namespace),
        );
        let work = vec![
            mirror(Api::all(client.clone()), images_in, move |image| {
                i.image(image)
            })
            .boxed(),
            mirror(Api::all(client.clone()), snapshots_in, move |snap| {
                s.snapshot(snap)
            })
            .boxed(),
            mirror(Api::all(client.clone()), targets_in, move |target| {
                t.target(target)
            })
            .boxed(),
            mirror(Api::all(client.clone()), nodes_in, nodes_touched).boxed(),
            mirror(Api::all(client.clone()), namespaces_in, namespaces_touched).boxed(),
        ];
        (caches, work)
    }

    /// Waits until every mirror holds all there is.
    pub(crate) async fn filled(&self) {
        // The writers live as long as the process works: there is no error to come.
        let _ = self.images.wait_until_ready().await;
        let _ = self.snapshots.wait_until_ready().await;
        let _ = self.targets.wait_until_ready().await;
        let _ = self.nodes.wait_until_ready().await;
        let _ = self.namespaces.wait_until_ready().await;
    }

    /// The Snapshot objects of an image, in order of their names.
    pub(crate) fn snapshots_of(&self, key: &ImageKey) -> Vec<Arc<Snapshot>> {
        let names = {
            let by_image = self.by_image.lock().unwrap_or_else(PoisonError::into_inner);
            by_image.get(key).cloned().unwrap_or_default()
        };
        let find = |name: &String| {
            self.snapshots
                .get(&ObjectRef::new(name).within(&key.namespace))
        };
        names.iter().filter_map(find).collect()
    }

    fn image(&self, image: &VMImage) {
        let key = image_key(image, &image.name_any());
        self.wake.image(&key);
        self.wake_snapshots(&key, |_| true);
        self.wake.replication();
    }

    fn snapshot(&self, snapshot: &Snapshot) {
        let key = image_key(snapshot, &snapshot.spec.image);
        let name = snapshot.name_any();
        {
            let mut by_image = self.by_image.lock().unwrap_or_else(PoisonError::into_inner);
            let names = by_image.entry(key.clone()).or_default();
            match self.snapshots.get(&ObjectRef::from_obj(snapshot)) {
                Some(_) => names.insert(name.clone()),
                None => names.remove(&name),
            };
            if names.is_empty() {
                by_image.remove(&key);
            }
        }
        self.wake.snapshot(&key.namespace, &name);
        self.wake.image(&key);
        self.wake.replication();
    }

    fn target(&self, target: &ReplicationTarget) {
        let name = target.name_any();
        self.wake.target(&name);
        self.wake_images(|image| image.spec.targets.iter().any(|t| t.name == name));
    }

    /// Grows with every change of a Node that matters here.
    pub(crate) fn node_version(&self) -> u64 {
        self.node_version.load(Ordering::Acquire)
    }

    fn node(&self, node: &Node) {
        self.node_version.fetch_add(1, Ordering::AcqRel);
        self.wake.node(&NodeName(node.name_any()));
        self.wake_targets();
        self.wake_images(|_| true);
    }

    fn namespace(&self, namespace: &Namespace) {
        let name = namespace.name_any();
        self.wake_images(|image| image.namespace().as_deref() == Some(&name));
    }

    /// Wakes all targets.
    pub(crate) fn wake_targets(&self) {
        self.targets
            .state()
            .iter()
            .for_each(|target| self.wake.target(&target.name_any()));
    }

    fn wake_images(&self, which: impl Fn(&VMImage) -> bool) {
        for image in self.images.state().iter().filter(|image| which(image)) {
            let key = image_key(image.as_ref(), &image.name_any());
            self.wake.image(&key);
            self.wake_snapshots(&key, |_| true);
        }
        self.wake.replication();
    }

    /// Wakes the images of a namespace that a quota may concern: what one of them takes, or frees,
    /// the others wait for.
    fn wake_sharing(&self, namespace: &str) {
        let limited: BTreeSet<String> = self
            .targets
            .state()
            .iter()
            .filter(|target| target.spec.namespace_quota.is_some())
            .map(|target| target.name_any())
            .collect();
        if limited.is_empty() {
            return;
        }
        for image in self.images.state() {
            let key = image_key(image.as_ref(), &image.name_any());
            let mut targets = image.spec.targets.iter();
            if key.namespace == namespace && targets.any(|t| limited.contains(&t.name)) {
                self.wake.image(&key);
                self.wake_snapshots(&key, |snapshot| !settled(snapshot));
            }
        }
    }

    fn wake_snapshots(&self, key: &ImageKey, which: impl Fn(&Snapshot) -> bool) {
        for snapshot in self
            .snapshots_of(key)
            .iter()
            .filter(|snapshot| which(snapshot))
        {
            self.wake.snapshot(&key.namespace, &snapshot.name_any());
        }
    }

    /// Wakes the Snapshot whose transfer did not start.
    pub(crate) fn transfer_failed(&self, key: &ImageKey, number: SnapshotNumber) {
        self.wake_snapshots(key, |snapshot| concerns(snapshot, number));
    }

    /// Wakes whom a change at an agent concerns.
    pub(crate) fn agent_changed(&self, change: Change) {
        match change {
            Change::Node(node) => {
                self.wake.node(&node);
                self.wake_targets();
                self.wake_images(|_| true);
            }
            Change::Space(_) => {
                self.wake_targets();
            }
            Change::Image { key, numbers } => {
                self.wake.image(&key);
                self.wake_targets();
                self.wake_snapshots(&key, |s| {
                    numbers.iter().any(|n| concerns(s, *n)) || !settled(s)
                });
                self.wake_sharing(&key.namespace);
                self.wake.replication();
            }
            Change::Transfer { key, number, ended } => {
                self.wake_snapshots(&key, |s| concerns(s, number));
                if ended {
                    self.wake.replication();
                }
            }
        }
    }
}

/// A Snapshot without a number is waiting for anything that happens to its image.
fn concerns(snapshot: &Snapshot, number: SnapshotNumber) -> bool {
    let known = snapshot.status.as_ref().and_then(|status| status.number);
    known.is_none_or(|known| known == number.0)
}

/// Whether nothing is left to do for a Snapshot but to keep it.
fn settled(snapshot: &Snapshot) -> bool {
    use icbd_crds::{ConditionType, condition};
    let conditions = snapshot
        .status
        .as_ref()
        .map_or(&[][..], |status| &status.conditions);
    let ready = condition(conditions, ConditionType::Ready).is_some_and(|c| c.status == "True");
    ready && snapshot.metadata.deletion_timestamp.is_none()
}

/// Passes on objects of which something changed that matters here: Nodes are written all the time,
/// by their heartbeats.
fn only_when_changed<K, H: PartialEq>(
    store: Store<K>,
    what_matters: impl Fn(&K) -> H,
    mut touched: impl FnMut(&K),
) -> impl FnMut(&K)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let mut seen: HashMap<ObjectRef<K>, H> = HashMap::new();
    move |object| {
        let key = ObjectRef::from_obj(object);
        let changed = match store.get(&key) {
            Some(stored) => {
                let now = what_matters(&stored);
                let same = seen.get(&key) == Some(&now);
                seen.insert(key, now);
                !same
            }
            None => seen.remove(&key).is_some(),
        };
        if changed {
            touched(object);
        }
    }
}

/// Fills a store and keeps it true; names every object that came, changed or went. Of a kind that
/// is no more there are no objects: whoever deletes the kinds waits for others' finalizers.
async fn mirror<K>(api: Api<K>, mut writer: Writer<K>, mut touched: impl FnMut(&K))
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let store = writer.as_reader();
    let events = watcher(api, watcher::Config::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear());
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let event = event.or_else(|error| {
            warn!(%error, kind = %K::kind(&()), "cannot watch");
            if !is_gone(&error) {
                return Err(error);
            }
            writer.apply_watcher_event(&watcher::Event::Init);
            Ok(watcher::Event::InitDone)
        });
        let Ok(event) = event else { continue };
        let before = match event {
            watcher::Event::InitDone => store.state(),
            _ => Vec::new(),
        };
        writer.apply_watcher_event(&event);
        match event {
            watcher::Event::Init | watcher::Event::InitApply(_) => {}
            watcher::Event::InitDone => {
                before
                    .into_iter()
                    .chain(store.state())
                    .for_each(|object| touched(&object));
            }
            watcher::Event::Apply(object) | watcher::Event::Delete(object) => touched(&object),
        }
    }
}

/// Whether the API server does not know the kind.
fn is_gone(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(answer)) if answer.code == 404
    )
}
