//! All that can be seen of one Snapshot.

use std::sync::Arc;

use icbd_crds::{Origin, Snapshot, SnapshotStatus, names};
use icbd_planner::snapshot::Facts;
use icbd_planner::{ImageFacts, Refusal};
use kube::{Client, ResourceExt};

use crate::caches::image_key;
use crate::facts::Sight;
use crate::scope::scope_terminating;

pub(super) struct Seen {
    pub(super) object: Arc<Snapshot>,
    pub(super) image: Option<ImageFacts>,
    /// An agent's answer, once one has refused.
    pub(super) refused: Option<Refusal>,
    name: String,
    uid: String,
    status: SnapshotStatus,
    scope_terminating: bool,
    highest_known: u64,
}

pub(super) async fn fetch(
    object: &Arc<Snapshot>,
    sight: &Sight,
    client: &Client,
) -> kube::Result<Seen> {
    let image = sight.image_of(object);
    Ok(Seen {
        image: image.as_ref().map(|image| sight.image(image)),
        refused: None,
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        status: object.status.clone().unwrap_or_default(),
        scope_terminating: scope_terminating::<Snapshot>(client, object).await?,
        highest_known: highest_known(object, sight),
        object: object.clone(),
    })
}

/// The highest number that any Snapshot object of the image speaks of.
fn highest_known(object: &Snapshot, sight: &Sight) -> u64 {
    let siblings = sight
        .caches
        .snapshots_of(&image_key(object, &object.spec.image));
    let numbers = siblings.iter().flat_map(|sibling| {
        [
            sibling.spec.number,
            sibling.status.as_ref().and_then(|status| status.number),
        ]
    });
    numbers.flatten().max().unwrap_or(0)
}

impl Seen {
    pub(super) fn facts(&self) -> Facts<'_> {
        let object = &self.object;
        let origin = match object.labels().get(names::ORIGIN_LABEL).map(String::as_str) {
            Some("Adopted") => Origin::Adopted,
            Some("Schedule") => Origin::Schedule,
            _ => Origin::User,
        };
        Facts {
            name: &self.name,
            uid: &self.uid,
            generation: object.metadata.generation,
            spec: &object.spec,
            status: &self.status,
            finalizer: object.finalizers().iter().any(|f| f == names::FINALIZER),
            deleting: object.metadata.deletion_timestamp.is_some(),
            confirmed: object
                .annotations()
                .get(names::CONFIRM_DELETE)
                .map(String::as_str),
            origin,
            image: self.image.as_ref(),
            scope_terminating: self.scope_terminating,
            highest_known: self.highest_known,
            refused: self.refused.clone(),
        }
    }
}
