//! How a snapshot can get from a source to a replica: against which parent, or in full, or not at
//! all. Snapshots are the same by what their content is, never by number alone.

use std::collections::BTreeSet;

use icbd_crds::{FullTransfers, Reason};

use crate::model::{Inventory, Refusal, SnapshotNumber};

/// How one snapshot gets to one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The difference to this snapshot, which both hold.
    Incremental {
        /// Its number at the source.
        parent: SnapshotNumber,
        /// Its content.
        identity: String,
    },
    /// All of it.
    Full,
}

/// The newest snapshot that both hold with the same content, unchanged.
pub fn newest_common<'a>(
    source: &'a Inventory,
    replica: &Inventory,
) -> Option<(SnapshotNumber, &'a str)> {
    let unchanged = replica.snapshots.values().filter(|held| !held.suspect);
    let held: BTreeSet<&str> = unchanged.map(|held| held.identity.as_str()).collect();
    source
        .snapshots
        .iter()
        .rev()
        .find(|(_, snapshot)| !snapshot.suspect && held.contains(snapshot.identity.as_str()))
        .map(|(number, snapshot)| (*number, snapshot.identity.as_str()))
}

/// Finds the way to a replica that lacks the snapshot.
///
/// # Errors
/// `LineageBroken`, when the replica holds snapshots of the image but shares none with the source
/// and the image does not allow full transfers then. The message says what both hold.
pub fn route(
    source: &Inventory,
    replica: &Inventory,
    full_transfers: FullTransfers,
) -> Result<Route, Refusal> {
    if let Some((parent, identity)) = newest_common(source, replica) {
        return Ok(Route::Incremental {
            parent,
            identity: identity.to_owned(),
        });
    }
    if replica.snapshots.is_empty() || full_transfers == FullTransfers::Always {
        return Ok(Route::Full);
    }
    Err(Refusal::new(
        Reason::LineageBroken,
        format!(
            "the replica holds {} and shares none of them with the source, which holds {}: set fullTransfers: Always on the VMImage to have the snapshot sent in full, or remove the replica's snapshots",
            summary(replica),
            summary(source),
        ),
    ))
}

/// The contents of an image directory in a few words: the newest three by number and identity.
fn summary(inventory: &Inventory) -> String {
    let newest: Vec<String> = inventory
        .snapshots
        .iter()
        .rev()
        .take(3)
        .map(|(number, held)| {
            let changed = if held.suspect { ", changed since" } else { "" };
            format!("{number} ({}{changed})", held.identity)
        })
        .collect();
    match inventory.snapshots.len() {
        0 => "no snapshot".to_owned(),
        n if n > newest.len() => format!("{} and {} older", newest.join(", "), n - newest.len()),
        _ => newest.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use FullTransfers::{Always, WhenEmpty};
    use proptest::prelude::*;

    use super::*;
    use crate::notation::inventory as l;

    fn parent(route: Result<Route, Refusal>) -> Option<u64> {
        match route.unwrap() {
            Route::Incremental { parent, .. } => Some(parent.0),
            Route::Full => None,
        }
    }

    #[test]
    fn the_newest_common_snapshot_is_the_parent() {
        assert_eq!(
            parent(route(&l("1a 2b 3c 4d"), &l("1a 2b"), WhenEmpty)),
            Some(2)
        );
    }

    #[test]
    fn common_is_by_content_not_by_number() {
        // The replica's 2 has other content, its 7 is the source's 1.
        assert_eq!(
            parent(route(&l("1a 2b 3c"), &l("2x 7a"), WhenEmpty)),
            Some(1)
        );
    }

    #[test]
    fn what_was_changed_since_is_no_parent_on_either_side() {
        assert_eq!(
            parent(route(&l("1a 2b! 3c"), &l("1a 2b"), WhenEmpty)),
            Some(1)
        );
        assert_eq!(
            parent(route(&l("1a 2b 3c"), &l("1a 2b!"), WhenEmpty)),
            Some(1)
        );
    }

    #[test]
    fn an_empty_replica_gets_a_full_transfer() {
        assert_eq!(parent(route(&l("1a 2b"), &l(""), WhenEmpty)), None);
    }

    #[test]
    fn a_replica_that_shares_nothing_is_never_overwritten_unasked() {
        let refusal = route(&l("1a 2b"), &l("1x"), WhenEmpty).unwrap_err();
        assert_eq!(refusal.reason, Reason::LineageBroken);
        assert!(
            refusal.message.contains("1 (x)") && refusal.message.contains("Always"),
            "{refusal:?}"
        );
        assert_eq!(parent(route(&l("1a 2b"), &l("1x"), Always)), None);
    }

    proptest! {
        #[test]
        fn a_parent_is_held_by_both_and_nothing_newer_is(
            source in "([1-9][a-e]!? ){0,6}", replica in "([1-9][a-e]!? ){0,6}",
        ) {
            let (source, replica) = (l(&source), l(&replica));
            if let Some((number, identity)) = newest_common(&source, &replica) {
                prop_assert!(source.holds(number, identity));
                let shared = |i: &str| replica.snapshots.values().any(|h| h.identity == i && !h.suspect);
                prop_assert!(shared(identity));
                for (newer, held) in source.snapshots.range(number..).skip(1) {
                    prop_assert!(held.suspect || !shared(&held.identity), "{newer} is newer");
                }
            }
        }
    }
}
