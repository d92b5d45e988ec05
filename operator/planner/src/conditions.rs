//! Conditions: from what a decision says to the list in a status, times of transition kept.

use icbd_crds::{Condition, ConditionType, Reason, condition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::model::Refusal;

/// What a condition says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell now.
    Unknown,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::True => "True",
            Status::False => "False",
            Status::Unknown => "Unknown",
        }
    }
}

/// One condition as a decision states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which condition.
    pub type_: ConditionType,
    /// Whether it holds.
    pub status: Status,
    /// Why.
    pub reason: Reason,
    /// Why, for people.
    pub message: String,
}

impl Verdict {
    pub(crate) fn holds(type_: ConditionType, reason: Reason, message: impl Into<String>) -> Self {
        Verdict {
            type_,
            status: Status::True,
            reason,
            message: message.into(),
        }
    }

    pub(crate) fn fails(type_: ConditionType, refusal: &Refusal) -> Self {
        let Refusal { reason, message } = refusal.clone();
        Verdict {
            type_,
            status: Status::False,
            reason,
            message,
        }
    }
}

/// An instant as it stands in a status: whole seconds, which is what the API server keeps. With
/// more, no status would ever equal the one that was published.
pub(crate) fn stamp(instant: Timestamp) -> Time {
    Time(Timestamp::from_second(instant.as_second()).unwrap_or(instant))
}

/// Longest message that a condition may carry (Kubernetes' own bound is 32768).
const MESSAGE_MAX: usize = 1024;

/// Whether nothing but an edit or a documented act by a person helps against this.
pub(crate) fn needs_a_person(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Conflict
            | Reason::LineageBroken
            | Reason::NamespaceChanged
            | Reason::LiveReceived
            | Reason::NumberBound
            | Reason::SnapshotLost
            | Reason::InvalidArgument
            | Reason::VersionMismatch
            | Reason::ConfirmationRequired
            | Reason::CALost
    )
}

/// `Ready=False` with what kstatus wants beside it: `Stalled` where a person has to act, else
/// `Reconciling`.
pub(crate) fn not_ready(refusal: &Refusal) -> Vec<Verdict> {
    let beside = match needs_a_person(refusal.reason) {
        true => ConditionType::Stalled,
        false => ConditionType::Reconciling,
    };
    vec![
        Verdict::fails(ConditionType::Ready, refusal),
        Verdict::holds(beside, refusal.reason, refusal.message.clone()),
    ]
}

/// The list for a status. A condition that keeps its status keeps its time; those that no verdict
/// names are left out, so `Reconciling`, `Stalled` and `Expired` stand there only while they hold.
pub(crate) fn merge(
    previous: &[Condition],
    verdicts: Vec<Verdict>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut merged: Vec<Condition> = verdicts
        .into_iter()
        .map(
            |Verdict {
                 type_,
                 status,
                 reason,
                 message,
             }| {
                let since = condition(previous, type_)
                    .filter(|old| old.status == status.as_str())
                    .map_or_else(|| stamp(now), |old| old.last_transition_time.clone());
                Condition {
                    type_: type_.as_str().to_owned(),
                    status: status.as_str().to_owned(),
                    reason: reason.as_str().to_owned(),
                    message: clip(message),
                    observed_generation: generation,
                    last_transition_time: since,
                }
            },
        )
        .collect();
    merged.sort_by(|a, b| a.type_.cmp(&b.type_));
    merged
}

fn clip(mut message: String) -> String {
    if message.len() > MESSAGE_MAX {
        let end = (0..=MESSAGE_MAX - 3)
            .rev()
            .find(|&i| message.is_char_boundary(i))
            .unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_condition_that_keeps_its_status_keeps_its_time() {
        let waits = |m: &str| not_ready(&Refusal::new(Reason::AgentNotFound, m));
        let first = merge(&[], waits("a"), Some(1), at(10));
        let second = merge(&first, waits("b"), Some(2), at(20));
        assert!(
            second
                .iter()
                .all(|c| c.last_transition_time.0 == at(10) && c.message == "b")
        );
        let ready = vec![Verdict::holds(
            ConditionType::Ready,
            Reason::Available,
            "serves",
        )];
        let third = merge(&second, ready, Some(2), at(30));
        assert_eq!(third.len(), 1, "Reconciling is gone: {third:?}");
        assert_eq!(third[0].last_transition_time.0, at(30));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let cut = clip("ü".repeat(2000));
        assert!(cut.len() <= MESSAGE_MAX && cut.ends_with('…'));
    }
}
