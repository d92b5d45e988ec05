//! Where one snapshot stands on one replica. The one answer from which rows in statuses and
//! transfers to start are both made.

use std::time::Duration;

use icbd_crds::{Reason, ReplicaState};
use jiff::Timestamp;

use crate::lineage::{self, Route};
use crate::model::{Attempt, Held, ImageFacts, NodeName, Refusal, SnapshotNumber, Transfer};
use crate::quota;
use crate::selection::Limits;

/// A snapshot that replicas are to hold.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Its number.
    pub number: SnapshotNumber,
    /// What its content is.
    pub identity: &'a str,
}

/// The name of a node's row in statuses.
pub(crate) fn row_name(node: &NodeName) -> String {
    format!("node/{node}")
}

/// Where a snapshot stands on a replica.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing<'a> {
    /// Nobody can see what the node holds.
    Unseen(Refusal),
    /// The node holds it.
    Complete(&'a Held),
    /// The node holds other content under the number, or holds it changed.
    Conflict(Refusal),
    /// On its way.
    Moving(&'a Transfer),
    /// It cannot go: nothing in common, and no leave to send all.
    Broken(Refusal),
    /// It has to wait for something that is not a transfer's turn.
    Waiting(Refusal),
    /// It could go, but for the quota of its namespace.
    OverQuota(Refusal),
    /// The last attempt failed; the next may begin at this instant.
    Failed(Refusal, Timestamp),
    /// It can go this way, when its turn comes.
    Possible(Route),
}

impl Standing<'_> {
    /// The state as a row shows it.
    pub fn state(&self) -> ReplicaState {
        match self {
            Standing::Complete(_) => ReplicaState::Complete,
            Standing::Conflict(_) => ReplicaState::Conflict,
            Standing::Moving(_) => ReplicaState::Transferring,
            Standing::Broken(_) => ReplicaState::LineageBroken,
            Standing::Failed(..) => ReplicaState::Failed,
            Standing::Unseen(_)
            | Standing::Waiting(_)
            | Standing::OverQuota(_)
            | Standing::Possible(_) => ReplicaState::Pending,
        }
    }

    /// Why it is not complete; `None` when it is, or moves.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Standing::Complete(_) | Standing::Moving(_) => None,
            Standing::Unseen(refusal)
            | Standing::Conflict(refusal)
            | Standing::Broken(refusal)
            | Standing::Waiting(refusal)
            | Standing::OverQuota(refusal)
            | Standing::Failed(refusal, _) => Some(refusal.clone()),
            Standing::Possible(_) => Some(Refusal::new(
                Reason::Queued,
                "waits for older snapshots of this replica, or for a transfer of the node or cluster to end",
            )),
        }
    }
}

/// Says where a snapshot stands on a node, by checks in order of what outranks what: what is on
/// disk, then what moves, then what could.
pub fn assess<'a>(
    facts: &'a ImageFacts,
    node: &NodeName,
    limits: &Limits,
    wanted: Wanted<'_>,
    now: Timestamp,
) -> Standing<'a> {
    let empty = Default::default();
    let held = match facts.observe(node) {
        Err(refusal) => return Standing::Unseen(refusal),
        Ok(inventory) => inventory,
    };
    if let Some(standing) = held.and_then(|inventory| {
        inventory
            .snapshots
            .get(&wanted.number)
            .map(|held| on_disk(held, node, wanted))
    }) {
        return standing;
    }
    if let Some(transfer) = facts.arriving(node, wanted.number, now) {
        return Standing::Moving(transfer);
    }
    let replica = held.unwrap_or(&empty);
    if !facts.owns(replica) {
        return Standing::Waiting(Refusal::new(
            Reason::NamespaceChanged,
            format!(
                "node {node} holds data of a former namespace {}",
                facts.key.namespace
            ),
        ));
    }
    match obstacle(facts, node, limits, wanted) {
        Some(refusal) => return Standing::Waiting(refusal),
        None if replica.buried(wanted.number, wanted.identity) => {
            return Standing::Waiting(Refusal::new(
                Reason::Deleting,
                format!("snapshot {} was deleted on node {node}", wanted.number),
            ));
        }
        None => {}
    }
    // `obstacle` has seen the source; an absent inventory there shares nothing.
    let source = facts
        .observe(&facts.primary())
        .ok()
        .flatten()
        .unwrap_or(&empty);
    let route = match lineage::route(source, replica, facts.spec.full_transfers) {
        Ok(route) => route,
        Err(refusal) => return Standing::Broken(refusal),
    };
    if let Err(refusal) = quota::fits(facts, node, limits, wanted.number, 0) {
        return Standing::OverQuota(refusal);
    }
    match facts
        .attempts
        .get(&(node.clone(), wanted.number))
        .and_then(|a| pause(a, node))
    {
        Some((refusal, until)) if until > now => Standing::Failed(refusal, until),
        _ => Standing::Possible(route),
    }
}

fn on_disk<'a>(held: &'a Held, node: &NodeName, wanted: Wanted<'_>) -> Standing<'a> {
    let number = wanted.number;
    if held.identity != wanted.identity {
        return Standing::Conflict(Refusal::new(
            Reason::Conflict,
            format!(
                "node {node} holds other content under number {number}: {} there, {} at the source; nothing is overwritten. Remove or rename the one on the node to have it sent",
                held.identity, wanted.identity
            ),
        ));
    }
    if held.suspect {
        return Standing::Conflict(Refusal::new(
            Reason::Conflict,
            format!(
                "snapshot {number} ({}) on node {node} was changed after it was received; remove it there to have it sent again",
                held.identity
            ),
        ));
    }
    Standing::Complete(held)
}

/// What keeps a transfer from starting, whoever's turn it is.
fn obstacle(
    facts: &ImageFacts,
    node: &NodeName,
    limits: &Limits,
    wanted: Wanted<'_>,
) -> Option<Refusal> {
    let suspended = |what: String| {
        Refusal::new(
            Reason::Suspended,
            format!("{what} is suspended: no transfer is started"),
        )
    };
    if facts.spec.suspend {
        return Some(suspended(format!("VMImage {}", facts.key.image)));
    }
    if limits.suspended {
        return Some(suspended(format!(
            "every ReplicationTarget that selects node {node}"
        )));
    }
    let primary = facts.primary();
    match facts.observe(&primary) {
        Err(refusal) => Some(Refusal::new(
            Reason::SourceNotAvailable,
            format!("the primary cannot send: {}", refusal.message),
        )),
        Ok(inventory) if !inventory.is_some_and(|i| i.holds(wanted.number, wanted.identity)) => {
            Some(Refusal::new(
                Reason::SourceNotAvailable,
                format!(
                    "the primary {primary} does not hold snapshot {} ({}) unchanged",
                    wanted.number, wanted.identity
                ),
            ))
        }
        Ok(_) => None,
    }
}

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After a failure that another try will hardly change.
const PERMANENT_PAUSE: Duration = Duration::from_secs(600);

/// Until when the last failure keeps the next attempt waiting.
fn pause(attempt: &Attempt, node: &NodeName) -> Option<(Refusal, Timestamp)> {
    let (at, ended) = attempt.failure.as_ref()?;
    let pause = match ended.transient {
        false => PERMANENT_PAUSE,
        true => {
            let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.count.saturating_sub(1).min(16));
            doubled.min(LONGEST_PAUSE)
        }
    };
    // Up to a quarter more, told apart by node and attempt, so that what failed together does not
    // come back together.
    let spread = node.0.bytes().fold(u64::from(attempt.count), |sum, b| {
        sum * 31 % 1009 + u64::from(b)
    });
    let jitter = pause.mul_f64((spread % 256) as f64 / 1024.0);
    let until = at.checked_add(pause + jitter).unwrap_or(*at);
    let tries = if attempt.count == 1 {
        "1 try".to_owned()
    } else {
        format!("{} tries", attempt.count)
    };
    let message = format!("{} ({tries} so far)", ended.refusal.message);
    Some((Refusal::new(ended.refusal.reason, message), until))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Ended;
    use crate::notation::{at, facts, target};

    fn standing(
        facts: &ImageFacts,
        node: &str,
        number: u64,
        identity: &str,
    ) -> (ReplicaState, Option<Reason>) {
        let node = NodeName::from(node);
        let limits = crate::selection::select(facts).replicas[&node].clone();
        let wanted = Wanted {
            number: SnapshotNumber(number),
            identity,
        };
        let standing = assess(facts, &node, &limits, wanted, at(0));
        (standing.state(), standing.refusal().map(|r| r.reason))
    }

    #[test]
    fn what_is_on_disk_outranks_all_else() {
        let facts = facts("n1 1a 2b | n2 1a 2x").with_targets([target("edge").suspended()]);
        assert_eq!(
            standing(&facts, "n2", 1, "a"),
            (ReplicaState::Complete, None)
        );
        assert_eq!(
            standing(&facts, "n2", 2, "b"),
            (ReplicaState::Conflict, Some(Reason::Conflict))
        );
    }

    #[test]
    fn a_conflict_names_both_contents() {
        let facts = facts("n1 2b | n2 2x").with_targets([target("edge")]);
        let node = NodeName::from("n2");
        let limits = crate::selection::select(&facts).replicas[&node].clone();
        let wanted = Wanted {
            number: SnapshotNumber(2),
            identity: "b",
        };
        let refusal = assess(&facts, &node, &limits, wanted, at(0))
            .refusal()
            .unwrap();
        assert!(
            refusal.message.contains("x there, b at the source"),
            "{}",
            refusal.message
        );
    }

    #[test]
    fn what_was_changed_on_the_replica_is_a_conflict_too() {
        let facts = facts("n1 1a | n2 1a!").with_targets([target("edge")]);
        assert_eq!(
            standing(&facts, "n2", 1, "a"),
            (ReplicaState::Conflict, Some(Reason::Conflict))
        );
    }

    #[test]
    fn a_node_that_cannot_be_seen_says_why() {
        let facts = facts("n1 1a | n2 away | n3 absent").with_targets([target("edge")]);
        assert_eq!(
            standing(&facts, "n2", 1, "a"),
            (ReplicaState::Pending, Some(Reason::AgentUnreachable))
        );
        assert_eq!(
            standing(&facts, "n3", 1, "a"),
            (ReplicaState::Pending, Some(Reason::AgentNotFound))
        );
    }

    #[test]
    fn what_has_just_arrived_is_not_sent_again_before_the_inventory_shows_it() {
        let mut facts = facts("n1 1a | n2")
            .with_targets([target("edge")])
            .moving("n2", 1, None);
        let ended = |at| {
            Some(crate::model::TransferEnd {
                at,
                outcome: Ok(()),
            })
        };
        facts.transfers[0].end = ended(at(-5));
        assert_eq!(standing(&facts, "n2", 1, "a").0, ReplicaState::Transferring);
        facts.transfers[0].end = ended(at(-60));
        assert_eq!(standing(&facts, "n2", 1, "a").0, ReplicaState::Pending);
    }

    #[test]
    fn a_source_that_lost_the_snapshot_cannot_send_it() {
        let facts = facts("n1 2b | n2").with_targets([target("edge")]);
        assert_eq!(
            standing(&facts, "n2", 1, "a"),
            (ReplicaState::Pending, Some(Reason::SourceNotAvailable))
        );
    }

    #[test]
    fn pauses_grow_to_a_cap_and_never_shrink() {
        let node = NodeName::from("n2");
        let until = |count, transient| {
            let refusal = Refusal::new(Reason::PeerLost, "gone");
            let attempt = Attempt {
                object_uid: "uid".into(),
                count,
                sent_before: 0,
                transfer: "t".into(),
                started_at: at(0),
                failure: Some((at(0), Ended { refusal, transient })),
            };
            pause(&attempt, &node)
                .unwrap()
                .1
                .duration_since(at(0))
                .as_secs_f64()
        };
        assert!((1.0..=1.25).contains(&until(1, true)));
        assert!((4.0..=5.0).contains(&until(3, true)));
        for count in [8, 100, u32::MAX] {
            assert!((30.0..=37.5).contains(&until(count, true)), "{count}");
        }
        assert!(until(1, false) >= 600.0);
    }
}
