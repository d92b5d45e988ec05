//! Deleting a Snapshot whose policy is Delete: narrow, and never without its object saying so.

use icbd_crds::{DeletionPolicy, Reason, names};

use super::{Action, Binding, Facts, binding};
use crate::lineage::newest_common;
use crate::model::{ImageFacts, Refusal, SnapshotNumber};
use crate::selection::select;

/// What is to be done for an object that is being deleted.
pub(super) fn actions(facts: &Facts<'_>) -> Vec<Action> {
    if !facts.finalizer {
        return Vec::new();
    }
    let Some((image, number, identity)) = doomed(facts) else {
        return vec![Action::RemoveFinalizer];
    };
    if obstacle(facts, image, number, identity).is_some() {
        return Vec::new();
    }
    let mut actions: Vec<Action> = image
        .transfers
        .iter()
        .filter(|t| t.end.is_none() && t.number == number)
        .map(|t| Action::Cancel {
            transfer: t.id.clone(),
            nodes: [t.source.clone(), t.receiver.clone()],
        })
        .collect();
    // Every node that has a directory of the image gets a tombstone, whether it holds the snapshot
    // or not: one that is out of reach now learns of it by any of them.
    let holders = image
        .observed()
        .filter(|(_, inventory)| image.owns(inventory));
    let standing = holders.filter(|(_, inventory)| {
        !inventory.buried(number, identity)
            || inventory
                .snapshots
                .get(&number)
                .is_some_and(|held| held.identity == identity)
            || inventory.partials.contains(&number)
    });
    actions.extend(standing.map(|(node, _)| Action::Delete {
        node: node.clone(),
        number,
        identity: identity.to_owned(),
    }));
    match actions.is_empty() {
        true => vec![Action::RemoveFinalizer],
        false => actions,
    }
}

/// Why the data is not deleted yet; `None` when it is, or is to stay.
pub(super) fn waiting(facts: &Facts<'_>) -> Option<Refusal> {
    let (image, number, identity) = doomed(facts)?;
    obstacle(facts, image, number, identity)
}

/// The content that goes with the object. None, when it is to stay or was never there: a
/// namespace, CRD or VMImage that goes makes its Snapshots Retain.
fn doomed<'a>(facts: &Facts<'a>) -> Option<(&'a ImageFacts, SnapshotNumber, &'a str)> {
    let image = facts.image.filter(|image| !image.terminating)?;
    if facts.scope_terminating
        || image.namespace.terminating
        || facts.spec.deletion_policy == DeletionPolicy::Retain
    {
        return None;
    }
    match binding(facts) {
        Binding::Bound { number, held, .. } => Some((image, number, &held.identity)),
        Binding::Remembered {
            number, identity, ..
        } => Some((image, number, identity)),
        // Gone from every disk, or half way there: the nodes still get their tombstones.
        Binding::Lost { number, .. } => Some((image, number, facts.status.uuid.as_deref()?)),
        Binding::ToTake | Binding::ToBind(_) | Binding::Waiting(_) => None,
    }
}

/// What keeps the data for now.
fn obstacle(
    facts: &Facts<'_>,
    image: &ImageFacts,
    number: SnapshotNumber,
    identity: &str,
) -> Option<Refusal> {
    let is_parent = |t: &&crate::model::Transfer| t.end.is_none() && t.parent == Some(number);
    if let Some(transfer) = image.transfers.iter().find(is_parent) {
        return Some(Refusal::new(
            Reason::SnapshotBusy,
            format!(
                "snapshot {number} is the parent of the transfer of {} to node {}",
                transfer.number, transfer.receiver
            ),
        ));
    }
    if let Some(refusal) = only_link(image, number, identity) {
        return Some(refusal);
    }
    let holds = |(_, i): &(_, &crate::model::Inventory)| i.holds(number, identity);
    let others = image
        .observed()
        .any(|(_, i)| i.snapshots.values().any(|h| h.identity != identity));
    if !others
        && image.observed().any(|seen| holds(&seen))
        && facts.confirmed != Some(&image.key.image)
    {
        return Some(Refusal::new(
            Reason::ConfirmationRequired,
            format!(
                "snapshot {number} is the last of image {}: annotate this Snapshot with {}={} to have it removed",
                image.key.image,
                names::CONFIRM_DELETE,
                image.key.image
            ),
        ));
    }
    None
}

/// A replica that lags, and shares nothing else with its source, needs this one as a parent.
fn only_link(image: &ImageFacts, number: SnapshotNumber, identity: &str) -> Option<Refusal> {
    let source = image.primary_inventory().ok()?;
    let lags = |node: &&crate::model::NodeName| {
        let Ok(Some(replica)) = image.observe(node) else {
            return false;
        };
        let mut newer = source.snapshots.range(number..).skip(1);
        newest_common(source, replica).is_some_and(|(common, _)| common == number)
            && newer.any(|(_, held)| held.identity != identity)
            && !shares_another(source, replica, number)
    };
    let node = select(image)
        .replicas
        .into_keys()
        .find(|node| lags(&node))?;
    Some(Refusal::new(
        Reason::SnapshotBusy,
        format!(
            "snapshot {number} is all that node {node} shares with its source: waiting for a newer one to arrive there"
        ),
    ))
}

fn shares_another(
    source: &crate::model::Inventory,
    replica: &crate::model::Inventory,
    number: SnapshotNumber,
) -> bool {
    source.snapshots.iter().any(|(other, held)| {
        *other != number
            && replica
                .snapshots
                .values()
                .any(|r| r.identity == held.identity && !r.suspect)
    })
}
