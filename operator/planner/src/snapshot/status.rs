//! What to say of a Snapshot.

use icbd_crds::{
    Condition, ConditionType, Reason, ReplicaState, SnapshotReplica, SnapshotStatus, condition,
};
use jiff::Timestamp;

use super::{Binding, Facts, binding, deletion, rows};
use crate::conditions::{Verdict, merge, not_ready, stamp};
use crate::model::{Held, ImageFacts, Refusal, SnapshotNumber};
use crate::replica::Wanted;
use crate::selection::{Selection, select};

/// Rows that a status holds at most.
const MAX_ROWS: usize = 32;

/// The status to publish.
pub fn status(facts: &Facts<'_>, now: Timestamp) -> SnapshotStatus {
    let mut status = SnapshotStatus {
        conditions: Vec::new(),
        observed_generation: facts.generation,
        progress: None,
        rate: None,
        remaining: None,
        ..facts.status.clone()
    };
    let bound = binding(facts);
    let verdicts = match &bound {
        Binding::Bound {
            number,
            held,
            on_primary,
        } => {
            describe(&mut status, *number, held);
            replicate(
                facts,
                &mut status,
                *number,
                &held.identity,
                *on_primary,
                now,
            )
        }
        Binding::Remembered {
            number,
            identity,
            refusal,
        } => match facts.image {
            Some(_) => {
                let mut verdicts = replicate(facts, &mut status, *number, identity, true, now);
                if !is_true(&verdicts, ConditionType::Ready) {
                    verdicts.retain(|v| {
                        v.type_ == ConditionType::Taken || v.type_ == ConditionType::Replicated
                    });
                    verdicts.extend(not_ready(refusal));
                }
                verdicts
            }
            None => [carried(facts), not_ready(refusal)].concat(),
        },
        Binding::Lost { refusal, .. } => {
            status.replicas.clear();
            status.replicated = None;
            let gone = [
                Verdict::fails(ConditionType::Taken, refusal),
                Verdict::holds(
                    ConditionType::Expired,
                    refusal.reason,
                    refusal.message.clone(),
                ),
            ];
            let mut verdicts = carried(facts);
            verdicts.retain(|v| v.type_ != ConditionType::Taken);
            [verdicts, gone.to_vec(), not_ready(refusal)].concat()
        }
        Binding::ToTake | Binding::ToBind(_) => {
            let taking = || {
                Refusal::new(
                    Reason::Taking,
                    "the primary's agent is asked to take the snapshot",
                )
            };
            untaken(&facts.refused.clone().unwrap_or_else(taking))
        }
        Binding::Waiting(refusal) => untaken(refusal),
    };
    let verdicts = if facts.deleting {
        leaving(facts, verdicts)
    } else {
        verdicts
    };
    status.conditions = merge(&facts.status.conditions, verdicts, facts.generation, now);
    shorten(&mut status.replicas);
    status
}

fn describe(status: &mut SnapshotStatus, number: SnapshotNumber, held: &Held) {
    status.number = Some(number.0);
    status.uuid = Some(held.identity.clone());
    status.bytes = held.bytes.or(status.bytes);
    if let Some(record) = &held.record {
        status.origin = Some(record.origin);
        status.taken_at = Some(stamp(record.taken_at));
    }
}

fn untaken(refusal: &Refusal) -> Vec<Verdict> {
    let fails = [ConditionType::Taken, ConditionType::Replicated]
        .map(|type_| Verdict::fails(type_, refusal));
    [fails.to_vec(), not_ready(refusal)].concat()
}

/// `Taken` and `Replicated` as they were last.
fn carried(facts: &Facts<'_>) -> Vec<Verdict> {
    let latched = |type_, reason| {
        let last = condition(&facts.status.conditions, type_)?;
        (last.status == "True").then(|| Verdict::holds(type_, reason, last.message.clone()))
    };
    [
        latched(ConditionType::Taken, Reason::Taken),
        latched(ConditionType::Replicated, Reason::Replicated),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Rows, counters and conditions of a snapshot that was taken.
fn replicate(
    facts: &Facts<'_>,
    status: &mut SnapshotStatus,
    number: SnapshotNumber,
    identity: &str,
    on_primary: bool,
    now: Timestamp,
) -> Vec<Verdict> {
    let Some(image) = facts.image else {
        return carried(facts);
    };
    let selection = select(image);
    let wanted = Wanted { number, identity };
    status.replicas = rows::rows(
        image,
        &selection,
        wanted,
        facts.uid,
        &facts.status.replicas,
        now,
    );
    let complete = status
        .replicas
        .iter()
        .filter(|r| r.state == ReplicaState::Complete)
        .count();
    status.replicated = Some(format!("{complete}/{}", status.replicas.len()));
    progress(status);
    let taken = Verdict::holds(
        ConditionType::Taken,
        Reason::Taken,
        format!("snapshot {number} of {}", image.key.image),
    );
    let replicated = replicated(facts, image, &selection, &status.replicas, complete);
    let ready = match (&replicated, on_primary) {
        (Ok(_), true) => vec![Verdict::holds(
            ConditionType::Ready,
            Reason::Replicated,
            "taken and replicated",
        )],
        (Err(refusal), _) => not_ready(refusal),
        (Ok(_), false) => not_ready(&Refusal::new(
            Reason::SourceNotAvailable,
            format!(
                "the primary {} does not hold snapshot {number} ({identity}); replicas do",
                image.primary()
            ),
        )),
    };
    let replicated = match replicated {
        Ok(message) => Verdict::holds(ConditionType::Replicated, Reason::Replicated, message),
        Err(refusal) => Verdict::fails(ConditionType::Replicated, &refusal),
    };
    [vec![taken, replicated], ready].concat()
}

/// Whether enough replicas are complete, or once were.
fn replicated(
    facts: &Facts<'_>,
    image: &ImageFacts,
    selection: &Selection,
    rows: &[SnapshotReplica],
    complete: usize,
) -> Result<String, Refusal> {
    let needed = image.spec.min_replicas.map_or(rows.len(), |n| n as usize);
    let said = condition(&facts.status.conditions, ConditionType::Replicated);
    if let Some(Condition { message, .. }) = said.filter(|said| said.status == "True") {
        return Ok(message.clone());
    }
    if rows.is_empty() {
        let none = || {
            Refusal::new(
                Reason::NoReplicasWanted,
                "no target selects a node other than the primary",
            )
        };
        return Err(selection.refusals.first().cloned().unwrap_or_else(none));
    }
    if complete >= needed && selection.refusals.is_empty() {
        return Ok(format!(
            "{complete} of {} replicas were complete",
            rows.len()
        ));
    }
    let first = |wanted: &dyn Fn(ReplicaState) -> bool| {
        rows.iter().find(|row| wanted(row.state)).and_then(|row| {
            let reason = Reason::from_name(row.reason.as_deref()?)?;
            Some(Refusal::new(
                reason,
                format!("{}: {}", row.name, row.message.as_deref()?),
            ))
        })
    };
    let worst = first(&|s| matches!(s, ReplicaState::Conflict | ReplicaState::LineageBroken))
        .or_else(|| selection.refusals.first().cloned());
    let moving = rows
        .iter()
        .any(|row| row.state == ReplicaState::Transferring);
    let going = moving.then(|| {
        Refusal::new(
            Reason::Transferring,
            format!("{complete} of {needed} replicas complete"),
        )
    });
    Err(worst
        .or(going)
        .or_else(|| first(&|s| s == ReplicaState::Failed))
        .or_else(|| first(&|s| s == ReplicaState::Pending))
        .unwrap_or_else(|| {
            let message = format!(
                "{complete} complete, minReplicas is {needed}, and targets select {}",
                rows.len()
            );
            Refusal::new(Reason::Lagging, message)
        }))
}

/// An object on its way out says what its going waits for.
fn leaving(facts: &Facts<'_>, verdicts: Vec<Verdict>) -> Vec<Verdict> {
    let kept = |v: &Verdict| matches!(v.type_, ConditionType::Taken | ConditionType::Replicated);
    let gone = || {
        Refusal::new(
            Reason::Deleting,
            "the snapshot is being removed from all nodes that can be reached",
        )
    };
    let why = facts
        .refused
        .clone()
        .or_else(|| deletion::waiting(facts))
        .unwrap_or_else(gone);
    [verdicts.into_iter().filter(kept).collect(), not_ready(&why)].concat()
}

/// The three columns of the slowest replica still moving.
fn progress(status: &mut SnapshotStatus) {
    let percent = |row: &SnapshotReplica| {
        let total = row.bytes_total.filter(|total| *total > 0)?;
        Some(u128::from(row.bytes_done.min(total)) * 100 / u128::from(total))
    };
    let moving = status
        .replicas
        .iter()
        .filter(|row| row.state == ReplicaState::Transferring);
    let Some(slowest) = moving.min_by_key(|row| percent(row).unwrap_or(0)) else {
        return;
    };
    status.progress = Some(percent(slowest).map_or_else(|| "0%".to_owned(), |p| format!("{p}%")));
    status.rate = slowest.rate.map(|rate| format!("{}/s", human_bytes(rate)));
    status.remaining = slowest.remaining.map(human_seconds);
}

fn human_bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

fn human_seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Complete rows leave first; what is left keeps its order.
fn shorten(rows: &mut Vec<SnapshotReplica>) {
    let mut surplus = rows.len().saturating_sub(MAX_ROWS);
    rows.retain(|row| {
        let leaves = surplus > 0 && row.state == ReplicaState::Complete;
        surplus -= usize::from(leaves);
        !leaves
    });
    rows.truncate(MAX_ROWS);
}

fn is_true(verdicts: &[Verdict], type_: ConditionType) -> bool {
    verdicts
        .iter()
        .any(|v| v.type_ == type_ && v.status == crate::conditions::Status::True)
}
