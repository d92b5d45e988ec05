//! One VMImage: what to adopt, what deleting it removes, and what to say of it.

use std::collections::BTreeSet;

use icbd_crds::{
    ConditionType, DeletionPolicy, ImageReplica, LatestSnapshot, Reason, VMImageStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions::{Verdict, merge, not_ready, stamp};
use crate::model::{ImageFacts, Inventory, NodeName, Refusal, SnapshotNumber};
use crate::replica::{Standing, Wanted, assess, row_name};
use crate::replication::WantedSnapshot;
use crate::selection::{Selection, select};
use crate::snapshot::live_obstacle;

/// Rows that a status holds at most.
const MAX_ROWS: usize = 32;

/// A Snapshot object of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// The number that its spec asks for, or that its status says.
    pub number: Option<SnapshotNumber>,
}

/// All that was seen of one VMImage object.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is wanted and what it stands on.
    pub image: &'a ImageFacts,
    /// The generation of the spec.
    pub generation: Option<i64>,
    /// What was said last.
    pub status: &'a VMImageStatus,
    /// The object carries the finalizer.
    pub finalizer: bool,
    /// The namespace or the CRD is being deleted: its objects go, their data stays.
    pub scope_terminating: bool,
    /// The names of other images' Snapshot objects in the namespace, while adoption is to come.
    pub taken_names: &'a [String],
    /// The Snapshot objects of the image.
    pub known: &'a [Known],
    /// Those of them that were taken and are not being deleted, by number, with their names.
    pub wanted: &'a [(String, WantedSnapshot)],
}

/// Something to be done for one VMImage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Keep the object until its data is gone.
    AddFinalizer,
    /// Let the object go.
    RemoveFinalizer,
    /// Create a Snapshot object for a snapshot found on the primary.
    Adopt {
        /// The object's name.
        name: String,
        /// Set where the snapshot bears no name yet.
        number: Option<SnapshotNumber>,
    },
    /// End a transfer at both of its ends.
    Cancel {
        /// Which.
        transfer: String,
        /// Its ends.
        nodes: [NodeName; 2],
    },
    /// Remove all snapshots of the image from a node; never `live`.
    DeleteImage {
        /// Where.
        node: NodeName,
    },
}

/// What is to be done now.
pub fn actions(facts: &Facts<'_>) -> Vec<Action> {
    let image = facts.image;
    if image.terminating {
        return deletion(facts);
    }
    let finalizer = match (image.spec.deletion_policy, facts.finalizer) {
        (DeletionPolicy::Delete, false) => Some(Action::AddFinalizer),
        (DeletionPolicy::Retain, true) => Some(Action::RemoveFinalizer),
        _ => None,
    };
    finalizer.into_iter().chain(adoption(facts)).collect()
}

fn deletion(facts: &Facts<'_>) -> Vec<Action> {
    if !facts.finalizer {
        return Vec::new();
    }
    let image = facts.image;
    let keep = facts.scope_terminating
        || image.namespace.terminating
        || image.spec.deletion_policy == DeletionPolicy::Retain;
    if keep {
        return vec![Action::RemoveFinalizer];
    }
    let mut actions: Vec<Action> = image
        .running()
        .map(|t| Action::Cancel {
            transfer: t.id.clone(),
            nodes: [t.source.clone(), t.receiver.clone()],
        })
        .collect();
    let holders = image
        .observed()
        .filter(|(_, i)| image.owns(i) && !(i.snapshots.is_empty() && i.partials.is_empty()));
    actions.extend(holders.map(|(node, _)| Action::DeleteImage { node: node.clone() }));
    if actions.is_empty() {
        vec![Action::RemoveFinalizer]
    } else {
        actions
    }
}

/// Once for each VMImage object: every snapshot on the primary that no Snapshot object stands for.
fn adoption(facts: &Facts<'_>) -> Vec<Action> {
    if facts.status.adopted_through.is_some() {
        return Vec::new();
    }
    let Ok(primary) = facts.image.primary_inventory() else {
        return Vec::new();
    };
    let mut names: BTreeSet<&str> = facts
        .known
        .iter()
        .map(|known| known.name.as_str())
        .collect();
    let numbers: BTreeSet<SnapshotNumber> = facts
        .known
        .iter()
        .filter_map(|known| known.number)
        .collect();
    let recorded: Vec<&str> = primary
        .snapshots
        .values()
        .filter_map(|held| held.record.as_ref())
        .map(|record| record.name.as_str())
        .collect();
    names.extend(&recorded);
    names.extend(facts.taken_names.iter().map(String::as_str));
    primary
        .snapshots
        .iter()
        .filter(|(number, held)| {
            !numbers.contains(number) && !facts.image.buried(**number, &held.identity)
        })
        .filter_map(|(number, held)| match &held.record {
            Some(record) => {
                let applied = facts.known.iter().any(|known| known.name == record.name);
                (!applied).then(|| Action::Adopt {
                    name: record.name.clone(),
                    number: None,
                })
            }
            None => {
                let name = free_name(&facts.image.key.image, *number, &names);
                Some(Action::Adopt {
                    name,
                    number: Some(*number),
                })
            }
        })
        .collect()
}

/// `<image>-<number>`, with a letter behind it where somebody has that name already.
fn free_name(image: &str, number: SnapshotNumber, taken: &BTreeSet<&str>) -> String {
    let plain = format!("{image}-{number}");
    let lettered = ('a'..='z').map(|letter| format!("{plain}{letter}"));
    let mut names = std::iter::once(plain.clone()).chain(lettered);
    names
        .find(|name| !taken.contains(name.as_str()))
        .unwrap_or(plain)
}

/// The status to publish. `adopted` says that every action of adoption was carried out.
pub fn status(facts: &Facts<'_>, adopted: bool, now: Timestamp) -> VMImageStatus {
    let image = facts.image;
    let selection = select(image);
    let primary = image.primary_inventory();
    let newest = facts.wanted.last();
    let replicas: Vec<ImageReplica> = selection
        .replicas
        .iter()
        .map(|(node, limits)| {
            let previous = facts
                .status
                .replicas
                .iter()
                .find(|row| row.name == row_name(node));
            let latest_of = |s: &WantedSnapshot| {
                let wanted = Wanted {
                    number: s.number,
                    identity: &s.identity,
                };
                assess(image, node, limits, wanted, now)
            };
            row(node, facts.wanted, previous, latest_of)
        })
        .collect();
    let up_to_date = replicas.iter().filter(|row| row.up_to_date).count();
    let verdicts = [
        ready(facts, &selection, &primary),
        vec![fresh(&replicas, up_to_date, newest.map(|(_, s)| s.number))],
    ]
    .concat();
    let adopted_now = primary.as_ref().ok().filter(|_| adopted).map(|primary| {
        primary
            .snapshots
            .keys()
            .next_back()
            .map_or(0, |number| number.0)
    });
    let mut status = VMImageStatus {
        conditions: merge(&facts.status.conditions, verdicts, facts.generation, now),
        observed_generation: facts.generation,
        latest: newest.map(|(name, snapshot)| LatestSnapshot {
            number: snapshot.number.0,
            name: name.clone(),
            taken_at: Some(stamp(snapshot.taken_at)),
        }),
        snapshots: primary
            .ok()
            .map(|p| p.snapshots.len() as u32)
            .or(facts.status.snapshots),
        up_to_date: Some(format!("{up_to_date}/{}", replicas.len())),
        synced_through: synced_through(facts.wanted, &replicas),
        adopted_through: facts.status.adopted_through.or(adopted_now),
        replicas,
    };
    shorten(&mut status.replicas);
    status
}

fn row<'a>(
    node: &NodeName,
    wanted: &[(String, WantedSnapshot)],
    previous: Option<&ImageReplica>,
    standing: impl Fn(&WantedSnapshot) -> Standing<'a>,
) -> ImageReplica {
    let standings: Vec<(SnapshotNumber, Standing<'a>)> = wanted
        .iter()
        .map(|(_, snapshot)| (snapshot.number, standing(snapshot)))
        .collect();
    let unseen = standings
        .iter()
        .any(|(_, standing)| matches!(standing, Standing::Unseen(_)));
    // What a node out of sight was seen to hold, it holds for all that anybody knows.
    let remembered = previous
        .and_then(|row| row.latest)
        .filter(|_| unseen)
        .map(SnapshotNumber);
    let holds = |number: SnapshotNumber, standing: &Standing<'_>| {
        matches!(standing, Standing::Complete(_))
            || remembered.is_some_and(|latest| number <= latest)
    };
    let lacking: Vec<&(SnapshotNumber, Standing<'a>)> = standings
        .iter()
        .filter(|(number, standing)| !holds(*number, standing))
        .collect();
    let latest = standings
        .iter()
        .rev()
        .find(|(number, standing)| holds(*number, standing));
    let refusal = lacking.iter().find_map(|(_, standing)| standing.refusal());
    ImageReplica {
        name: row_name(node),
        up_to_date: standings
            .last()
            .is_some_and(|(number, standing)| holds(*number, standing)),
        latest: latest.map(|(number, _)| number.0),
        behind: lacking.len() as u32,
        reason: refusal.as_ref().map(|refusal| refusal.reason.to_string()),
        message: refusal.map(|refusal| refusal.message),
    }
}

/// Accepted, and the primary serves. Freshness is not its business: a replica away must not fail a
/// GitOps sync.
fn ready(
    facts: &Facts<'_>,
    selection: &Selection,
    primary: &Result<&Inventory, Refusal>,
) -> Vec<Verdict> {
    let image = facts.image;
    if image.terminating {
        return not_ready(&Refusal::new(
            Reason::Deleting,
            "the image's snapshots are being removed from all nodes that can be reached",
        ));
    }
    let refusal = match primary {
        Err(refusal) => Some(refusal.clone()),
        Ok(primary) => selection
            .refusals
            .first()
            .cloned()
            .or_else(|| live_obstacle(image, primary)),
    };
    if let Some(refusal) = refusal {
        return not_ready(&refusal);
    }
    let message = match image.spec.suspend {
        true => "suspended: no snapshot is taken, no transfer is started",
        false => "the primary serves",
    };
    let reason = if image.spec.suspend {
        Reason::Suspended
    } else {
        Reason::Available
    };
    vec![Verdict::holds(ConditionType::Ready, reason, message)]
}

fn fresh(replicas: &[ImageReplica], up_to_date: usize, newest: Option<SnapshotNumber>) -> Verdict {
    let fails = |reason, message: String| {
        Verdict::fails(ConditionType::UpToDate, &Refusal::new(reason, message))
    };
    let Some(newest) = newest else {
        return fails(Reason::Lagging, "no snapshot has been taken yet".to_owned());
    };
    if replicas.is_empty() {
        return fails(
            Reason::NoReplicasWanted,
            "no target selects a node other than the primary".to_owned(),
        );
    }
    if up_to_date == replicas.len() {
        return Verdict::holds(
            ConditionType::UpToDate,
            Reason::UpToDate,
            format!("every replica holds snapshot {newest}"),
        );
    }
    let late = replicas
        .iter()
        .filter(|row| !row.up_to_date)
        .map(|row| row.name.as_str());
    let named: Vec<&str> = late.take(5).collect();
    let more = replicas.len() - up_to_date - named.len();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    fails(
        Reason::Lagging,
        format!("snapshot {newest} is missing on {}{more}", named.join(", ")),
    )
}

/// When the newest snapshot was taken that every wanted replica holds.
fn synced_through(wanted: &[(String, WantedSnapshot)], replicas: &[ImageReplica]) -> Option<Time> {
    let everywhere = replicas.iter().map(|row| row.latest).min()??;
    let synced = wanted
        .iter()
        .rev()
        .find(|(_, snapshot)| snapshot.number.0 <= everywhere)?;
    Some(stamp(synced.1.taken_at))
}

/// Replicas that are up to date leave first; what is left keeps its order.
fn shorten(rows: &mut Vec<ImageReplica>) {
    let mut surplus = rows.len().saturating_sub(MAX_ROWS);
    rows.retain(|row| {
        let leaves = surplus > 0 && row.up_to_date;
        surplus -= usize::from(leaves);
        !leaves
    });
    rows.truncate(MAX_ROWS);
}

#[cfg(test)]
mod tests;
