//! All that can be seen of one VMImage.

use icbd_crds::{VMImage, VMImageStatus, names};
use icbd_planner::image::{Facts, Known};
use icbd_planner::replication::WantedSnapshot;
use icbd_planner::{ImageFacts, SnapshotNumber};
use kube::{Client, ResourceExt};

use crate::facts::Sight;
use crate::scope::scope_terminating;

pub(super) struct Seen {
    pub(super) image: ImageFacts,
    status: VMImageStatus,
    scope_terminating: bool,
    taken_names: Vec<String>,
    known: Vec<Known>,
    wanted: Vec<(String, WantedSnapshot)>,
}

pub(super) async fn fetch(object: &VMImage, sight: &Sight, client: &Client) -> kube::Result<Seen> {
    let image = sight.image(object);
    let snapshots = sight.caches.snapshots_of(&image.key);
    let known = snapshots.iter().map(|snapshot| Known {
        name: snapshot.name_any(),
        number: snapshot
            .spec
            .number
            .or_else(|| snapshot.status.as_ref()?.number)
            .map(SnapshotNumber),
    });
    let wanted = sight.wanted(&image);
    Ok(Seen {
        taken_names: taken_names(object, sight),
        known: known.collect(),
        wanted: wanted
            .into_iter()
            .map(|(object, wanted)| (object.name_any(), wanted))
            .collect(),
        status: object.status.clone().unwrap_or_default(),
        scope_terminating: scope_terminating::<VMImage>(client, object).await?,
        image,
    })
}

/// Of interest only once, before adoption: looking through all Snapshots takes its time.
fn taken_names(object: &VMImage, sight: &Sight) -> Vec<String> {
    if object
        .status
        .as_ref()
        .is_some_and(|status| status.adopted_through.is_some())
    {
        return Vec::new();
    }
    let namespace = object.namespace();
    let all = sight.caches.snapshots.state();
    all.iter()
        .filter(|s| s.namespace() == namespace)
        .map(|s| s.name_any())
        .collect()
}

impl Seen {
    pub(super) fn facts<'a>(&'a self, object: &VMImage) -> Facts<'a> {
        Facts {
            image: &self.image,
            generation: object.metadata.generation,
            status: &self.status,
            finalizer: object.finalizers().iter().any(|f| f == names::FINALIZER),
            scope_terminating: self.scope_terminating,
            taken_names: &self.taken_names,
            known: &self.known,
            wanted: &self.wanted,
        }
    }
}
