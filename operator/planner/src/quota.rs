//! How much a namespace takes on each node, and whether one more snapshot may come on top of that.
//! What a target allows is in [`Limits`]; which node holds what, in the inventories.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use icbd_crds::Reason;
use jiff::Timestamp;

use crate::model::{ImageFacts, Inventory, NodeName, Refusal, SnapshotNumber, Transfer};
use crate::selection::Limits;

/// Bytes that a namespace takes, by node.
pub type Taken = BTreeMap<NodeName, u64>;

/// Adds up what the images of a namespace take, each given by its inventories and its transfers.
///
/// A snapshot counts with all the bytes that it refers to, whatever it shares: what it shares
/// today it may be alone with tomorrow, and no quota groups are needed to know. One that is
/// arriving, or of which an attempt has left a part, counts with what it will refer to when it is
/// whole, as another node knows it. What nobody has counted yet counts nothing.
///
/// The directory counts, whoever's data it is: that of a former namespace takes room too.
pub fn taken<'a>(
    images: impl IntoIterator<Item = (&'a BTreeMap<NodeName, Arc<Inventory>>, &'a [Transfer])>,
    now: Timestamp,
) -> Taken {
    let mut taken = Taken::new();
    for (inventories, transfers) in images {
        add(&mut taken, inventories, transfers, now);
    }
    taken
}

fn add(
    taken: &mut Taken,
    inventories: &BTreeMap<NodeName, Arc<Inventory>>,
    transfers: &[Transfer],
    now: Timestamp,
) {
    let mut sizes: BTreeMap<SnapshotNumber, u64> = BTreeMap::new();
    for (number, held) in inventories.values().flat_map(|i| &i.snapshots) {
        let size = sizes.entry(*number).or_default();
        *size = held.bytes.unwrap_or(0).max(*size);
    }
    // By node and number, so that what arrives and what has arrived count once.
    let mut partials: BTreeSet<(&NodeName, SnapshotNumber)> = BTreeSet::new();
    for (node, inventory) in inventories {
        let whole = inventory.snapshots.iter();
        let bytes = whole.map(|(number, held)| held.bytes.unwrap_or(sizes[number]));
        let sum = bytes.fold(0, u64::saturating_add);
        grow(taken, node, sum);
        partials.extend(inventory.partials.iter().map(|number| (node, *number)));
    }
    let arriving = transfers.iter().filter(|transfer| transfer.arrives(now));
    partials.extend(arriving.map(|transfer| (&transfer.receiver, transfer.number)));
    for (node, number) in partials {
        let whole = inventories.get(node).map(|i| &i.snapshots);
        if whole.is_none_or(|snapshots| !snapshots.contains_key(&number)) {
            grow(taken, node, sizes.get(&number).copied().unwrap_or(0));
        }
    }
}

fn grow(taken: &mut Taken, node: &NodeName, bytes: u64) {
    let sum = taken.entry(node.clone()).or_default();
    *sum = sum.saturating_add(bytes);
}

/// Bytes that a snapshot of the primary would add on a node: none where a part of it is there, for
/// that counts as all of it. `None` while the primary has not counted them.
pub(crate) fn adds(facts: &ImageFacts, node: &NodeName, number: SnapshotNumber) -> Option<u64> {
    let of = |node: &NodeName| facts.inventories.get(node);
    let bytes = of(&facts.primary())?.snapshots.get(&number)?.bytes?;
    let begun = of(node).is_some_and(|replica| replica.partials.contains(&number));
    Some(if begun { 0 } else { bytes })
}

/// Whether the namespace stays within its quota on a node when a snapshot comes on top of what is
/// there and of `adding` bytes more.
///
/// # Errors
/// `QuotaExceeded` with both figures; `Queued` while the snapshot has not been counted.
pub(crate) fn fits(
    facts: &ImageFacts,
    node: &NodeName,
    limits: &Limits,
    number: SnapshotNumber,
    adding: u64,
) -> Result<(), Refusal> {
    let Some((target, quota)) = &limits.quota else {
        return Ok(());
    };
    let Some(bytes) = adds(facts, node, number) else {
        return Err(Refusal::new(
            Reason::Queued,
            format!(
                "waits until the primary has counted the bytes of snapshot {number}: ReplicationTarget {target} has a namespaceQuota"
            ),
        ));
    };
    let there = facts.taken.get(node).copied().unwrap_or(0);
    let taken = there.saturating_add(adding);
    if taken.saturating_add(bytes) <= *quota {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::QuotaExceeded,
        format!(
            "{bytes} bytes are to come, namespace {} takes {taken} on node {node}, and namespaceQuota of ReplicationTarget {target} is {quota}",
            facts.key.namespace
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TransferEnd;
    use crate::notation::{at, facts};

    // A snapshot of the notation takes 1 MiB.
    const MIB: u64 = 1 << 20;

    fn taken_by(facts: &ImageFacts) -> BTreeMap<String, u64> {
        let all = [(&facts.inventories, facts.transfers.as_slice())];
        let taken = taken(all, at(5000));
        let in_mib = |(node, bytes): (NodeName, u64)| (node.0, bytes / MIB);
        taken.into_iter().map(in_mib).collect()
    }

    fn is(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let owned = |(node, mib): &(&str, u64)| ((*node).to_owned(), *mib);
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn whole_snapshots_arriving_ones_and_parts_count_once_each() {
        let facts = facts("n1 1a 2b 3c | n2 1a ~2 | n3 3c ~3")
            .moving("n2", 2, None)
            .moving("n2", 3, None);
        assert_eq!(taken_by(&facts), is(&[("n1", 3), ("n2", 3), ("n3", 1)]));
    }

    #[test]
    fn what_failed_and_left_nothing_counts_nothing_and_what_has_just_come_counts() {
        let mut facts = facts("n1 1a | n2").moving("n2", 1, None);
        let mut ended = |at| {
            let outcome = Ok(());
            facts.transfers[0].end = Some(TransferEnd { at, outcome });
            taken_by(&facts)
        };
        assert_eq!(ended(at(4999)), is(&[("n1", 1), ("n2", 1)]));
        assert_eq!(ended(at(4000)), is(&[("n1", 1), ("n2", 0)]));
    }

    #[test]
    fn what_one_node_has_not_counted_another_knows() {
        let mut facts = facts("n1 1a | n2 1a");
        let replica = Arc::make_mut(facts.inventories.get_mut(&NodeName::from("n2")).unwrap());
        let held = replica.snapshots.get_mut(&SnapshotNumber(1)).unwrap();
        held.bytes = None;
        assert_eq!(taken_by(&facts), is(&[("n1", 1), ("n2", 1)]));
    }

    #[test]
    fn images_of_a_namespace_add_up() {
        let (one, two) = (facts("n1 1a 2b | n2 1a"), facts("n2 1x | n3"));
        let both = [&one, &two].map(|f| (&f.inventories, f.transfers.as_slice()));
        let taken = taken(both, at(0));
        let on = |node: &str| taken[&NodeName::from(node)];
        assert_eq!((on("n1"), on("n2")), (2 * MIB, 2 * MIB));
    }
}
