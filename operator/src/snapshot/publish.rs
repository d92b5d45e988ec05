//! Says what was seen of one Snapshot. Progress is written at its own pace.

use icbd_crds::{Reason, ReplicaState, SnapshotReplica, SnapshotStatus};
use icbd_planner::snapshot::status;
use jiff::Timestamp;
use kube::{Api, ResourceExt};
use kube_runtime::controller::Action;

use super::fetch::Seen;
use crate::control::Context;
use crate::publish::{News, news};

pub(super) async fn publish(seen: &Seen, context: &Context) -> kube::Result<Action> {
    let object = seen.object.as_ref();
    let before = object.status.clone().unwrap_or_default();
    let after = status(&seen.facts(), Timestamp::now());
    if before == after {
        return Ok(Action::await_change());
    }
    let uid = object.uid().unwrap_or_default();
    if without_progress(&before) == without_progress(&after)
        && let Err(wait) = context.publisher.pace(&uid, decile(&after))
    {
        return Ok(Action::requeue(wait));
    }
    let mut news = news(&before.conditions, &after.conditions);
    news.extend(failures(&before.replicas, &after.replicas));
    let api = Api::namespaced(
        context.publisher.client(),
        &object.namespace().unwrap_or_default(),
    );
    context.publisher.status(&api, object, &after).await?;
    context.publisher.news(object, news).await;
    Ok(Action::await_change())
}

/// The status without what changes from second to second while data moves.
fn without_progress(status: &SnapshotStatus) -> SnapshotStatus {
    let mut still = SnapshotStatus {
        progress: None,
        rate: None,
        remaining: None,
        ..status.clone()
    };
    for row in &mut still.replicas {
        if row.state == ReplicaState::Transferring {
            row.bytes_sent = 0;
            row.bytes_done = 0;
            row.bytes_total = None;
            row.rate = None;
            row.remaining = None;
        }
    }
    still
}

/// Tenths of the slowest replica still moving.
fn decile(status: &SnapshotStatus) -> u64 {
    let percent = status
        .progress
        .as_deref()
        .and_then(|p| p.trim_end_matches('%').parse().ok());
    percent.unwrap_or(0u64) / 10
}

/// Transfers that failed for a reason that was not said before.
fn failures(before: &[SnapshotReplica], after: &[SnapshotReplica]) -> Vec<News> {
    let failed = after.iter().filter(|row| row.state == ReplicaState::Failed);
    let new = failed.filter(|row| {
        before
            .iter()
            .find(|old| old.name == row.name)
            .is_none_or(|old| old.reason != row.reason)
    });
    new.filter_map(|row| {
        let reason = Reason::from_name(row.reason.as_deref()?)?;
        let note = format!(
            "{}: {}",
            row.name,
            row.message.as_deref().unwrap_or_default()
        );
        Some(News {
            warning: true,
            reason: reason.as_str(),
            note,
        })
    })
    .collect()
}
