//! One row of a Snapshot's status for each wanted replica.

use icbd_crds::{ReplicaState, SnapshotReplica, TransferMode};
use jiff::Timestamp;

use crate::conditions::stamp;
use crate::model::{ImageFacts, NodeName, SnapshotNumber, Transfer};
use crate::replica::{Standing, Wanted, assess, row_name};
use crate::selection::Selection;

/// The rows of all wanted replicas, in order of their nodes.
pub(super) fn rows(
    image: &ImageFacts,
    selection: &Selection,
    wanted: Wanted<'_>,
    object_uid: &str,
    previous: &[SnapshotReplica],
    now: Timestamp,
) -> Vec<SnapshotReplica> {
    selection
        .replicas
        .iter()
        .map(|(node, limits)| {
            let name = row_name(node);
            let previous = previous.iter().find(|row| row.name == name);
            let standing = assess(image, node, limits, wanted, now);
            row(
                image,
                node,
                wanted.number,
                object_uid,
                &standing,
                previous,
                now,
            )
        })
        .collect()
}

fn row(
    image: &ImageFacts,
    node: &NodeName,
    number: SnapshotNumber,
    object_uid: &str,
    standing: &Standing<'_>,
    previous: Option<&SnapshotReplica>,
    now: Timestamp,
) -> SnapshotReplica {
    if matches!(standing, Standing::Unseen(_)) {
        let complete = previous.filter(|row| row.state == ReplicaState::Complete);
        if let Some(complete) = complete {
            return complete.clone();
        }
    }
    let mut row = history(image, node, number, object_uid, previous);
    let refusal = standing.refusal();
    row.state = standing.state();
    row.reason = refusal.as_ref().map(|refusal| refusal.reason.to_string());
    row.message = refusal.map(|refusal| refusal.message);
    match standing {
        Standing::Complete(_) => {
            row.completed_at = row.completed_at.or(Some(stamp(now)));
            row.mode = row.mode.or(Some(TransferMode::None));
            row.bytes_done = row.bytes_total.unwrap_or(row.bytes_done);
        }
        Standing::Moving(transfer) => {
            row.bytes_done = transfer.bytes_done;
            row.rate = Some(transfer.rate).filter(|rate| *rate > 0);
            row.remaining = remaining(transfer);
            row.completed_at = None;
        }
        _ => row.completed_at = None,
    }
    row
}

/// A row with what was counted so far, by this operator or the one before it.
fn history(
    image: &ImageFacts,
    node: &NodeName,
    number: SnapshotNumber,
    object_uid: &str,
    previous: Option<&SnapshotReplica>,
) -> SnapshotReplica {
    let mut row = previous.cloned().unwrap_or_else(|| blank(row_name(node)));
    row.rate = None;
    row.remaining = None;
    let attempt = image
        .attempts
        .get(&(node.clone(), number))
        .filter(|attempt| attempt.object_uid == object_uid);
    if let Some(attempt) = attempt {
        row.attempts = row.attempts.max(attempt.count);
        row.started_at = Some(stamp(attempt.started_at));
    }
    // An ended transfer belongs to this object only if it was begun for it: after the object is
    // deleted and applied again, agents still remember what went before.
    let unfinished = previous.is_some_and(|row| row.state != ReplicaState::Complete);
    let ours = |t: &&Transfer| {
        t.end.is_none() || unfinished || attempt.is_some_and(|attempt| attempt.transfer == t.id)
    };
    let latest = image
        .transfers
        .iter()
        .filter(|t| t.number == number && t.receiver == *node)
        .filter(ours)
        .max_by_key(|t| t.started_at);
    if let Some(transfer) = latest {
        let before = attempt
            .filter(|a| a.transfer == transfer.id)
            .map_or(0, |a| a.sent_before);
        row.attempts = row.attempts.max(1);
        row.started_at = Some(stamp(transfer.started_at));
        row.bytes_sent = row.bytes_sent.max(before + transfer.bytes_sent);
        row.bytes_done = transfer.bytes_done;
        row.bytes_total = transfer.bytes_total.or(row.bytes_total);
        row.parent = transfer.parent.map(|parent| parent.0);
        row.mode = Some(match transfer.parent {
            Some(_) => TransferMode::Incremental,
            None => TransferMode::Full,
        });
    }
    row
}

fn blank(name: String) -> SnapshotReplica {
    SnapshotReplica {
        name,
        state: ReplicaState::Pending,
        reason: None,
        message: None,
        mode: None,
        parent: None,
        bytes_sent: 0,
        bytes_done: 0,
        bytes_total: None,
        rate: None,
        remaining: None,
        started_at: None,
        completed_at: None,
        attempts: 0,
    }
}

/// Seconds that the rest takes at the present rate.
fn remaining(transfer: &Transfer) -> Option<u64> {
    let rest = transfer.bytes_total?.saturating_sub(transfer.bytes_done);
    (transfer.rate > 0).then(|| rest.div_ceil(transfer.rate))
}
