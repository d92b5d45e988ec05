//! All that can be seen of one Snapshot.

use std::sync::Arc;

use icbd_crds::{Origin, Snapshot, SnapshotStatus, VMImage, names};
use icbd_planner::replication::WantedSnapshot;
use icbd_planner::snapshot::Facts;
use icbd_planner::{ImageFacts, Refusal};
use kube::{Api, Client, ResourceExt};

use crate::caches::image_key;
use crate::facts::Sight;
use crate::scope::{get, scope_terminating};

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
    wanted: Vec<WantedSnapshot>,
}

pub(super) async fn fetch(
    object: &Arc<Snapshot>,
    sight: &Sight,
    client: &Client,
) -> kube::Result<Seen> {
    let image = sight.image_of(object);
    let facts = image.as_ref().map(|image| sight.image(image));
    Ok(Seen {
        refused: None,
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        status: object.status.clone().unwrap_or_default(),
        scope_terminating: keeps_data(client, object, image.as_deref()).await?,
        wanted: wanted(object, sight, facts.as_ref()),
        image: facts,
        highest_known: highest_known(object, sight),
        object: object.clone(),
    })
}

/// Whether the object goes only because what it belongs to does: its namespace, its CRD, or its
/// VMImage. Of the last too the API server is asked: the caches of two kinds may be apart.
async fn keeps_data(
    client: &Client,
    object: &Snapshot,
    seen: Option<&VMImage>,
) -> kube::Result<bool> {
    if object.metadata.deletion_timestamp.is_none() {
        return Ok(false);
    }
    if scope_terminating::<Snapshot>(client, object).await? {
        return Ok(true);
    }
    let images: Api<VMImage> =
        Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let image = get(&images, &object.spec.image).await?;
    Ok(image.is_none_or(|image| {
        image.metadata.deletion_timestamp.is_some()
            || seen.is_none_or(|seen| seen.metadata.uid != image.metadata.uid)
    }))
}

/// What the image's replicas are to hold; of interest only to an object that is being deleted.
fn wanted(object: &Snapshot, sight: &Sight, image: Option<&ImageFacts>) -> Vec<WantedSnapshot> {
    let image = image.filter(|_| object.metadata.deletion_timestamp.is_some());
    let wanted = image.map(|image| sight.wanted(image)).unwrap_or_default();
    wanted.into_iter().map(|(_, wanted)| wanted).collect()
}

/// The highest number that was ever given to a Snapshot object of the image. What a spec asks for
/// does not count: nobody has seen that it exists.
fn highest_known(object: &Snapshot, sight: &Sight) -> u64 {
    let siblings = sight
        .caches
        .snapshots_of(&image_key(object, &object.spec.image));
    let numbers = siblings
        .iter()
        .filter_map(|sibling| sibling.status.as_ref()?.number);
    numbers.max().unwrap_or(0)
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
            wanted: &self.wanted,
            refused: self.refused.clone(),
        }
    }
}
