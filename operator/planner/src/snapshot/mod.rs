//! One Snapshot: whether it is to be taken, bound or deleted, and what to say of it.

mod deletion;
mod rows;
mod status;

use icbd_crds::{DeletionPolicy, Origin, Reason, SnapshotSpec, SnapshotStatus};

use crate::model::{Held, ImageFacts, NodeName, Refusal, SnapshotNumber};
use crate::replication::WantedSnapshot;
use crate::selection::select;

pub use status::status;

/// All that was seen of one Snapshot.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The object's name.
    pub name: &'a str,
    /// The object's uid.
    pub uid: &'a str,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// What is wanted.
    pub spec: &'a SnapshotSpec,
    /// What was said last.
    pub status: &'a SnapshotStatus,
    /// The object carries the finalizer.
    pub finalizer: bool,
    /// The object is being deleted.
    pub deleting: bool,
    /// The value of the annotation that consents to removing the last copy.
    pub confirmed: Option<&'a str>,
    /// The label that tells who created the object.
    pub origin: Origin,
    /// Unset: there is no such VMImage.
    pub image: Option<&'a ImageFacts>,
    /// The namespace or the CRD is being deleted: its objects go, their data stays.
    pub scope_terminating: bool,
    /// The highest number that any Snapshot of the image was ever given.
    pub highest_known: u64,
    /// What the image's replicas are to hold, while this object is being deleted.
    pub wanted: &'a [WantedSnapshot],
    /// What an agent answered when the plan was carried out, if it refused.
    pub refused: Option<Refusal>,
}

/// Something to be done for one Snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Keep the object until its data is gone.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Take the snapshot, or bind the name to one that exists. Safe to repeat.
    Take {
        /// The primary.
        node: NodeName,
        /// Who asked.
        origin: Origin,
        /// The new number is beyond this.
        highest_known: u64,
        /// Bind to this one instead of taking a new one.
        bind: Option<SnapshotNumber>,
    },
    /// End a transfer at both of its ends.
    Cancel {
        /// Which.
        transfer: String,
        /// Its ends.
        nodes: [NodeName; 2],
    },
    /// Remove the snapshot from a node and leave a tombstone.
    Delete {
        /// Where.
        node: NodeName,
        /// Its number.
        number: SnapshotNumber,
        /// What its content is.
        identity: String,
    },
}

/// What is to be done now.
pub fn actions(facts: &Facts<'_>) -> Vec<Action> {
    if facts.deleting {
        return deletion::actions(facts);
    }
    let finalizer = match (facts.spec.deletion_policy, facts.finalizer) {
        (DeletionPolicy::Delete, false) => Some(Action::AddFinalizer),
        (DeletionPolicy::Retain, true) => Some(Action::RemoveFinalizer),
        _ => None,
    };
    let bind = match binding(facts) {
        Binding::ToTake => None,
        Binding::ToBind(number) => Some(number),
        Binding::Bound { .. }
        | Binding::Remembered { .. }
        | Binding::Lost { .. }
        | Binding::Waiting(_) => {
            return finalizer.into_iter().collect();
        }
    };
    let Some(image) = facts.image else {
        return finalizer.into_iter().collect();
    };
    let take = Action::Take {
        node: image.primary(),
        origin: facts.origin,
        highest_known: highest(facts, image),
        bind,
    };
    finalizer.into_iter().chain([take]).collect()
}

fn highest(facts: &Facts<'_>, image: &ImageFacts) -> u64 {
    let seen = image
        .inventories
        .values()
        .map(|inventory| inventory.highest);
    seen.chain([facts.highest_known]).max().unwrap_or(0)
}

/// What the Snapshot's name stands for on the disks.
#[derive(Debug, PartialEq)]
pub(crate) enum Binding<'a> {
    /// This content.
    Bound {
        number: SnapshotNumber,
        held: &'a Held,
        on_primary: bool,
    },
    /// Content seen before, that nobody can see now.
    Remembered {
        number: SnapshotNumber,
        identity: &'a str,
        refusal: Refusal,
    },
    /// Content seen before, that is nowhere.
    Lost {
        number: SnapshotNumber,
        refusal: Refusal,
    },
    /// Nothing yet.
    ToTake,
    /// Nothing yet, but this snapshot is to bear the name.
    ToBind(SnapshotNumber),
    /// Nothing yet, and something stands in the way.
    Waiting(Refusal),
}

/// The disk is the truth: a record on the primary that bears the name, else one elsewhere; else
/// what the status remembers; only a name that none of them knows is taken.
pub(crate) fn binding<'a>(facts: &Facts<'a>) -> Binding<'a> {
    let remembered = facts
        .status
        .number
        .zip(facts.status.uuid.as_deref())
        .map(|(number, identity)| (SnapshotNumber(number), identity));
    let Some(image) = facts.image else {
        let message = format!(
            "there is no VMImage {} in this namespace: waiting for it to be applied",
            facts.spec.image
        );
        let refusal = Refusal::new(Reason::VMImageNotFound, message);
        return match remembered {
            Some((number, identity)) => Binding::Remembered {
                number,
                identity,
                refusal,
            },
            None => Binding::Waiting(refusal),
        };
    };
    let primary = match image.primary_inventory() {
        Ok(inventory) => inventory,
        Err(refusal) => {
            return match (elsewhere(facts, image, remembered), remembered) {
                (Some(bound), _) => bound,
                (None, Some((number, identity))) => Binding::Remembered {
                    number,
                    identity,
                    refusal,
                },
                (None, None) => Binding::Waiting(refusal),
            };
        }
    };
    if let Some((number, held)) = primary.named(facts.name) {
        if let Some((_, identity)) = remembered.filter(|(_, identity)| *identity != held.identity) {
            let message = format!(
                "the name {} stood for {identity}, and the primary holds {} under it now; nothing is done to either",
                facts.name, held.identity
            );
            return Binding::Waiting(Refusal::new(Reason::Conflict, message));
        }
        return bound(facts, image, number, held, true);
    }
    match remembered {
        Some((number, identity)) => {
            let nameless = |held: &Held| held.identity == identity && held.record.is_none();
            if primary.snapshots.get(&number).is_some_and(nameless) {
                return Binding::ToBind(number);
            }
            elsewhere(facts, image, remembered).unwrap_or_else(|| missing(image, number, identity))
        }
        None => elsewhere(facts, image, None).unwrap_or_else(|| fresh(facts, image)),
    }
}

/// The content under this name, or the remembered content, on another node than the primary.
fn elsewhere<'a>(
    facts: &Facts<'a>,
    image: &'a ImageFacts,
    remembered: Option<(SnapshotNumber, &str)>,
) -> Option<Binding<'a>> {
    let owned = || {
        image
            .observed()
            .filter(|(_, inventory)| image.owns(inventory))
    };
    // Other content of the same name is not what the name stood for.
    let meant = |held: &Held| remembered.is_none_or(|(_, identity)| held.identity == identity);
    let named = owned()
        .filter_map(|(_, inventory)| inventory.named(facts.name))
        .find(|(_, held)| meant(held));
    let same = || {
        let (number, identity) = remembered?;
        owned().find_map(|(_, inventory)| {
            let held = inventory.snapshots.get(&number)?;
            (held.identity == identity).then_some((number, held))
        })
    };
    let (number, held) = named.or_else(same)?;
    Some(bound(facts, image, number, held, false))
}

/// Content that bears the name is what the name stands for; unless it was deleted on purpose and
/// its node has not heard of it yet, or the spec asks for another number.
fn bound<'a>(
    facts: &Facts<'_>,
    image: &ImageFacts,
    number: SnapshotNumber,
    held: &'a Held,
    on_primary: bool,
) -> Binding<'a> {
    if let Some(asked) = facts.spec.number.filter(|asked| *asked != number.0) {
        let message = format!(
            "the name {} stands for snapshot {number}, not for {asked}; a name has one number",
            facts.name
        );
        return Binding::Waiting(Refusal::new(Reason::NumberBound, message));
    }
    if !facts.deleting && image.buried(number, &held.identity) {
        let message = format!(
            "snapshot {number}, which bore the name {}, was deleted and is about to be removed from a node that was away",
            facts.name
        );
        return Binding::Waiting(Refusal::new(Reason::Deleting, message));
    }
    Binding::Bound {
        number,
        held,
        on_primary,
    }
}

/// Content that was seen and is on no node that can be seen: lost, unless some node is out of sight.
fn missing<'a>(image: &ImageFacts, number: SnapshotNumber, identity: &'a str) -> Binding<'a> {
    let replicas = select(image).replicas;
    let known = image.inventories.keys().chain(replicas.keys());
    let hidden = known.into_iter().find(|node| image.observe(node).is_err());
    if let Some(node) = hidden {
        let message = format!(
            "the primary no longer holds snapshot {number} ({identity}), and node {node} cannot be seen"
        );
        return Binding::Remembered {
            number,
            identity,
            refusal: Refusal::new(Reason::SourceNotAvailable, message),
        };
    }
    let message = format!(
        "snapshot {number} ({identity}) was taken and is on no node any more; it is never taken anew. Delete this object, and apply it under another name for a new snapshot"
    );
    Binding::Lost {
        number,
        refusal: Refusal::new(Reason::SnapshotLost, message),
    }
}

/// A name that no disk knows.
fn fresh<'a>(facts: &Facts<'_>, image: &'a ImageFacts) -> Binding<'a> {
    // `binding` has seen it.
    let Ok(primary) = image.primary_inventory() else {
        return Binding::ToTake;
    };
    let wait = |reason, message: String| Binding::Waiting(Refusal::new(reason, message));
    let node = image.primary();
    if let Some(number) = facts.spec.number.map(SnapshotNumber) {
        return match primary.snapshots.get(&number).map(|held| &held.record) {
            None => wait(
                Reason::SnapshotNotFound,
                format!(
                    "node {node} holds no snapshot {number} of {}: waiting for it to appear",
                    image.key
                ),
            ),
            Some(Some(record)) => wait(
                Reason::NumberBound,
                format!(
                    "snapshot {number} bears the name {} already; a number has one name",
                    record.name
                ),
            ),
            Some(None) => Binding::ToBind(number),
        };
    }
    if image.terminating {
        return wait(
            Reason::Deleting,
            format!("VMImage {} is being deleted", image.key.image),
        );
    }
    if image.spec.suspend {
        return wait(
            Reason::Suspended,
            format!(
                "VMImage {} is suspended: no snapshot is taken",
                image.key.image
            ),
        );
    }
    match live_obstacle(image, primary) {
        Some(refusal) => Binding::Waiting(refusal),
        None => Binding::ToTake,
    }
}

/// Why no snapshot can be taken of an image's `live`.
pub(crate) fn live_obstacle(
    image: &ImageFacts,
    primary: &crate::model::Inventory,
) -> Option<Refusal> {
    let node = image.primary();
    match primary.live {
        Some(live) if !live.received => None,
        Some(_) => Some(Refusal::new(
            Reason::LiveReceived,
            format!(
                "live of {} on node {node} carries a received-uuid: it is a replica that was made writable. Replace it by a writable snapshot of a numbered one",
                image.key
            ),
        )),
        None => Some(Refusal::new(
            Reason::LiveNotFound,
            format!(
                "{} on node {node} has no subvolume live: waiting for it to appear",
                image.key
            ),
        )),
    }
}

#[cfg(test)]
mod tests;
