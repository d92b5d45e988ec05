//! The marker file in a pool: whose it is, and the newest leader that spoke to it.

use icbd_wire::control::{Fence, Reason};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

pub(super) const NAME: &str = ".icbd-pool";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Marker {
    pub(super) installation: String,
    pub(super) epoch: Epoch,
}

/// One leader's time in office, ordered: a Lease made anew is newer than any term of the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Epoch {
    lease_created: i64,
    lease_transitions: u64,
}

impl Epoch {
    pub(super) fn of(fence: &Fence) -> Self {
        Self {
            lease_created: fence.lease_created,
            lease_transitions: fence.lease_transitions,
        }
    }
}

impl Marker {
    /// Takes note of a leader; whether it is a newer one. A leader older than the newest is refused.
    pub(super) fn raise(&mut self, epoch: Epoch) -> Result<bool> {
        if epoch < self.epoch {
            let message = format!(
                "a newer leader has spoken: lease of {} with {} transitions, not of {} with {}",
                self.epoch.lease_created,
                self.epoch.lease_transitions,
                epoch.lease_created,
                epoch.lease_transitions,
            );
            return Err(Error::refused(Reason::Fenced, message));
        }
        let newer = epoch > self.epoch;
        self.epoch = epoch;
        Ok(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(lease_created: i64, lease_transitions: u64) -> Epoch {
        Epoch {
            lease_created,
            lease_transitions,
        }
    }

    #[test]
    fn an_older_leader_is_fenced_and_a_newer_one_remembered() {
        let mut marker = Marker {
            installation: "a".into(),
            epoch: epoch(10, 3),
        };
        assert!(!marker.raise(epoch(10, 3)).unwrap());
        assert!(marker.raise(epoch(10, 4)).unwrap());
        assert_eq!(
            marker.raise(epoch(10, 3)).unwrap_err().reason(),
            Reason::Fenced
        );
        assert!(
            marker.raise(epoch(11, 0)).unwrap(),
            "a Lease made anew starts at no transitions"
        );
        assert_eq!(
            marker.raise(epoch(10, 99)).unwrap_err().reason(),
            Reason::Fenced
        );
        assert_eq!(marker.epoch, epoch(11, 0));
    }
}
