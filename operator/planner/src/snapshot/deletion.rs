//! Deleting a Snapshot whose policy is Delete: narrow, and never without its object saying so.

use std::collections::BTreeSet;

use icbd_crds::{DeletionPolicy, Reason, names};

use super::{Action, Binding, Facts, binding};
use crate::model::{ImageFacts, Inventory, NodeName, Refusal, SnapshotNumber};
use crate::quota;
use crate::replication::WantedSnapshot;
use crate::selection::{Limits, select};

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
        .running()
        .filter(|t| t.number == number)
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
    let standing = holders.filter(|(_, inventory)| match inventory.snapshots.get(&number) {
        // Other content under this number is nobody's to remove.
        Some(held) => held.identity == identity,
        None => !inventory.buried(number, identity) || inventory.partials.contains(&number),
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
    let is_parent = |t: &&crate::model::Transfer| t.parent == Some(number);
    if let Some(transfer) = image.running().find(is_parent) {
        return Some(Refusal::new(
            Reason::SnapshotBusy,
            format!(
                "snapshot {number} is the parent of the transfer of {} to node {}",
                transfer.number, transfer.receiver
            ),
        ));
    }
    if let Some(refusal) = only_link(facts, image, number) {
        return Some(refusal);
    }
    let holds = |(_, i): &(_, &Inventory)| i.holds(number, identity);
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

/// A replica that lags, and shares nothing else with its source, needs this one as a parent. Unless
/// it lags for want of room within a quota: deleting is how room is made.
fn only_link(facts: &Facts<'_>, image: &ImageFacts, number: SnapshotNumber) -> Option<Refusal> {
    let source = image.primary_inventory().ok()?;
    let lags = |(node, limits): &(NodeName, Limits)| {
        let Ok(Some(replica)) = image.observe(node) else {
            return false;
        };
        let coming = |wanted: &WantedSnapshot| {
            wanted.number != number
                && source.holds(wanted.number, &wanted.identity)
                && !replica.snapshots.contains_key(&wanted.number)
                && quota::fits(image, node, limits, wanted.number, 0)
                    .map_or_else(|refusal| refusal.reason != Reason::QuotaExceeded, |()| true)
        };
        let shared = shared(source, replica);
        shared == BTreeSet::from([number]) && facts.wanted.iter().any(coming)
    };
    let (node, _) = select(image).replicas.into_iter().find(lags)?;
    Some(Refusal::new(
        Reason::SnapshotBusy,
        format!(
            "snapshot {number} is all that node {node} shares with its source: waiting for another one to arrive there"
        ),
    ))
}

/// The source's snapshots that the replica holds too.
fn shared(source: &Inventory, replica: &Inventory) -> BTreeSet<SnapshotNumber> {
    let unchanged = replica.snapshots.values().filter(|held| !held.suspect);
    let held: BTreeSet<&str> = unchanged.map(|held| held.identity.as_str()).collect();
    let both = source
        .snapshots
        .iter()
        .filter(|(_, s)| !s.suspect && held.contains(s.identity.as_str()));
    both.map(|(number, _)| *number).collect()
}
