//! The operator's view of an agent: the code generated from `agent.proto`, and how a refusal
//! carries its reason through gRPC. Knows no transport; who dials or listens brings it.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

#[allow(missing_docs, unreachable_pub, clippy::all)] // generated; documented in agent.proto
mod generated {
    tonic::include_proto!("icbd.agent.v1");
}
pub use generated::*;

/// The metadata key that carries a [`Reason`] beside a gRPC status.
pub const REASON_KEY: &str = "icbd-reason";

/// Builds the status by which an agent refuses a call: a gRPC code for machines that know gRPC,
/// a [`Reason`] for the operator, a message for people.
pub fn refusal(reason: Reason, message: impl Into<String>) -> Status {
    let code = match reason {
        Reason::InvalidArgument => Code::InvalidArgument,
        Reason::Fenced => Code::PermissionDenied,
        Reason::ImageNotFound | Reason::LiveNotFound | Reason::SnapshotNotFound => Code::NotFound,
        Reason::Conflict | Reason::NumberBound => Code::AlreadyExists,
        Reason::SnapshotLost => Code::DataLoss,
        Reason::InsufficientSpace => Code::ResourceExhausted,
        Reason::ShuttingDown | Reason::SnapshotBusy | Reason::PoolUnavailable => Code::Unavailable,
        Reason::IoError | Reason::Unspecified => Code::Internal,
        _ => Code::FailedPrecondition,
    };
    let mut status = Status::new(code, message);
    status
        .metadata_mut()
        .insert(REASON_KEY, MetadataValue::from_static(reason.as_str_name()));
    status
}

/// The reason in a refusal, if its sender was an agent and gave one that this version knows.
pub fn reason_of(status: &Status) -> Option<Reason> {
    Reason::from_str_name(status.metadata().get(REASON_KEY)?.to_str().ok()?)
}

impl Reason {
    /// Whether another try may succeed without anybody changing anything.
    pub fn is_transient(self) -> bool {
        !matches!(
            self,
            Reason::InvalidArgument
                | Reason::Fenced
                | Reason::NamespaceChanged
                | Reason::SnapshotLost
                | Reason::LiveReceived
                | Reason::NumberBound
                | Reason::Conflict
                | Reason::VersionMismatch
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_its_reason_through_the_metadata() {
        let status = refusal(Reason::Conflict, "number 3 holds other content");
        assert_eq!(reason_of(&status), Some(Reason::Conflict));
        assert_eq!(status.code(), Code::AlreadyExists);
    }

    #[test]
    fn a_status_of_somebody_else_has_no_reason() {
        assert_eq!(reason_of(&Status::unavailable("connection refused")), None);
    }
}
