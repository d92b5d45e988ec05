//! Every reason that a condition, an Event or a replica's row can carry, in one list.
//! `docs/operations.md` explains each; a test there keeps the two together.

use std::fmt;

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $name:ident, )+) => {
        /// Why a condition is as it is. The meaning of each is in `docs/operations.md`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason { $( $(#[doc = $doc])+ $name, )+ }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Reason] = &[ $( Reason::$name, )+ ];

            /// The reason as it stands in a condition.
            pub fn as_str(self) -> &'static str {
                match self { $( Reason::$name => stringify!($name), )+ }
            }

            /// Finds a reason by its name.
            pub fn from_name(name: &str) -> Option<Reason> {
                Reason::ALL.iter().copied().find(|reason| reason.as_str() == name)
            }
        }
    };
}

reasons! {
    // All is well.
    /// It is what its spec asks for.
    Available,
    /// The snapshot exists on the primary.
    Taken,
    /// Enough replicas are complete.
    Replicated,
    /// Every wanted replica holds the newest snapshot.
    UpToDate,
    /// All of the target's nodes can receive.
    NodesReady,

    // Work goes on.
    /// The snapshot is about to be taken.
    Taking,
    /// Data is moving.
    Transferring,
    /// It is queued behind other transfers of this replica, node or cluster.
    Queued,
    /// The last attempt failed; the next comes after a pause.
    BackingOff,
    /// Some replica lacks the newest snapshot.
    Lagging,
    /// The object is being deleted, and its data with it.
    Deleting,

    // Something is waited for that comes by itself, or from another object.
    /// No VMImage of that name in the namespace.
    VMImageNotFound,
    /// No ReplicationTarget of that name.
    TargetNotFound,
    /// The target does not allow this namespace.
    NamespaceNotAllowed,
    /// The target does not allow the image's primary.
    PrimaryNotAllowed,
    /// No Node of that name.
    NodeNotFound,
    /// No agent runs on the node.
    AgentNotFound,
    /// The node's agent does not answer.
    AgentUnreachable,
    /// The image directory is not on the primary's pool.
    ImageNotFound,
    /// The image directory has no `live` to take a snapshot of.
    LiveNotFound,
    /// No snapshot with the number that the Snapshot asks to be bound to.
    SnapshotNotFound,
    /// No target selects a node other than the primary.
    NoReplicasWanted,
    /// Some selected node cannot receive.
    NodesNotReady,
    /// The target selects no node.
    NoNodesSelected,
    /// The object, or its image or target, is suspended.
    Suspended,
    /// The receiver's pool would be left with less than minFree.
    InsufficientSpace,
    /// The namespace would take more on the receiver than namespaceQuota.
    QuotaExceeded,
    /// A transfer still uses the snapshot.
    SnapshotBusy,
    /// The last complete copy is only removed with consent.
    ConfirmationRequired,
    /// The source does not hold the snapshot, or holds it changed.
    SourceNotAvailable,

    // The pool.
    /// Nothing is mounted where the pool should be.
    PoolNotMounted,
    /// What is mounted there is not btrfs, or not the root of a subvolume.
    PoolNotBtrfs,
    /// The pool has content, and nobody said that it may be used.
    PoolNotInitialised,
    /// The pool belongs to another installation.
    PoolForeign,
    /// Another agent uses the pool.
    PoolLocked,
    /// The pool went away, or turned read-only, while in use.
    PoolUnavailable,
    /// The kernel is older than 6.0.
    KernelTooOld,

    // A person has to act.
    /// The number holds other content.
    Conflict,
    /// The replica shares no snapshot with the source.
    LineageBroken,
    /// The data belongs to a former namespace of this name.
    NamespaceChanged,
    /// `live` is a flipped replica, and no source of snapshots.
    LiveReceived,
    /// The number belongs to another Snapshot.
    NumberBound,
    /// The data was there and is gone.
    SnapshotLost,
    /// The agent was given something that it cannot read: versions too far apart.
    InvalidArgument,
    /// The two agents, or agent and operator, speak no common version.
    VersionMismatch,
    /// The certificate authority is gone or cannot be used.
    CALost,

    // How a transfer ended.
    /// The receiver does not hold the parent.
    ParentMissing,
    /// The receiver was not told of the transfer, or no longer knows of it.
    NotExpected,
    /// The receiver could not be reached.
    PeerUnreachable,
    /// The connection broke.
    PeerLost,
    /// The stream is not right.
    StreamInvalid,
    /// What arrived is not what was sent.
    HashMismatch,
    /// The source makes another stream than before the interruption: the transfer starts over.
    SourceChanged,
    /// A disk said no.
    IoError,
    /// No progress for a minute.
    TransferStalled,
    /// The transfer was ended on purpose.
    Cancelled,
    /// The agent is going down.
    ShuttingDown,
    /// A newer leader has spoken.
    Fenced,
    /// No reason that this version knows; the message says more.
    Unknown,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_own_name() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(Reason::from_name("conflict"), None);
    }
}
