//! Transfers as their two ends tell of them, put together to one view of each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use icbd_crds::Reason;
use icbd_planner::{Ended, ImageKey, NodeName, SnapshotNumber, Transfer, TransferEnd};
use icbd_wire::control as pb;
use jiff::Timestamp;

use super::convert;

/// For how long a transfer that was just asked for counts as under way though neither end has
/// spoken of it: longer than the calls that ask for it may take.
const ASKED: Duration = Duration::from_secs(180);

/// For how long an ended transfer is remembered: as long as agents do.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Transfers by id.
#[derive(Default)]
pub(super) struct Transfers {
    by_id: BTreeMap<String, Ends>,
}

/// What is known of one transfer, by who told it.
#[derive(Default)]
struct Ends {
    asked: Option<(Transfer, Instant)>,
    /// An end has spoken of it: from then on it is what the ends say, and gone when they forget it.
    spoken: bool,
    /// Since when it is known to have ended.
    ended: Option<Instant>,
    source: Option<(NodeName, pb::Transfer)>,
    receiver: Option<(NodeName, pb::Transfer)>,
}

impl Transfers {
    /// Remembers a transfer that is about to be asked for, so that nobody asks twice.
    pub(super) fn ask(&mut self, transfer: Transfer) {
        let ends = Ends {
            asked: Some((transfer.clone(), Instant::now())),
            ..Ends::default()
        };
        self.by_id.insert(transfer.id, ends);
        self.sweep();
    }

    /// Forgets a transfer that was refused.
    pub(super) fn refused(&mut self, id: &str) {
        if let Some(ends) = self.by_id.get_mut(id) {
            ends.asked = None;
        }
        self.sweep();
    }

    /// Takes in what the agent on `node` says of one transfer.
    pub(super) fn told(&mut self, node: &NodeName, transfer: pb::Transfer) {
        let ends = self.by_id.entry(transfer.id.clone()).or_default();
        ends.spoken = true;
        if convert::end(&transfer).is_some() {
            ends.ended.get_or_insert_with(Instant::now);
        }
        match transfer.role() {
            pb::Role::Source => ends.source = Some((node.clone(), transfer)),
            pb::Role::Receiver => ends.receiver = Some((node.clone(), transfer)),
            pb::Role::Unspecified => {}
        }
    }

    /// Forgets what the agent on `node` said: it was started anew, or tells all again.
    pub(super) fn forget(&mut self, node: &NodeName) {
        for ends in self.by_id.values_mut() {
            ends.source.take_if(|(teller, _)| teller == node);
            ends.receiver.take_if(|(teller, _)| teller == node);
        }
        self.sweep();
    }

    fn sweep(&mut self) {
        self.by_id.retain(|_, ends| {
            let fresh = ends.ended.is_none_or(|at| at.elapsed() < REMEMBERED);
            fresh && ends.view().is_some()
        });
    }

    /// All of one image.
    pub(super) fn of(&self, key: &ImageKey) -> Vec<Transfer> {
        let of_image = self.by_id.values().filter(|ends| ends.concerns(key));
        of_image.filter_map(Ends::view).collect()
    }

    /// All of a namespace's images, by image.
    pub(super) fn in_namespace(&self, namespace: &str) -> BTreeMap<ImageKey, Vec<Transfer>> {
        let mut found: BTreeMap<ImageKey, Vec<Transfer>> = BTreeMap::new();
        for view in self.views().filter(|v| v.image.namespace == namespace) {
            found.entry(view.image.clone()).or_default().push(view);
        }
        found
    }

    /// All that are under way.
    pub(super) fn all_running(&self) -> Vec<Transfer> {
        self.views().filter(|view| view.end.is_none()).collect()
    }

    /// How many are under way.
    pub(super) fn running(&self) -> usize {
        self.views().filter(|view| view.end.is_none()).count()
    }

    fn views(&self) -> impl Iterator<Item = Transfer> + '_ {
        self.by_id.values().filter_map(Ends::view)
    }
}

impl Ends {
    /// Whether it is of this image; without putting a view together.
    fn concerns(&self, key: &ImageKey) -> bool {
        let told = |ends: &Option<(NodeName, pb::Transfer)>| {
            let image = ends
                .as_ref()
                .and_then(|(_, transfer)| transfer.image.as_ref());
            image.is_some_and(|i| i.namespace == key.namespace && i.image == key.image)
        };
        let asked = self
            .asked
            .as_ref()
            .is_some_and(|(transfer, _)| transfer.image == *key);
        asked || told(&self.source) || told(&self.receiver)
    }

    /// As it was asked for, while nobody had the time to speak of it.
    fn unspoken(&self) -> Option<Transfer> {
        let (asked, at) = self.asked.as_ref()?;
        (!self.spoken && at.elapsed() < ASKED).then(|| asked.clone())
    }

    /// The source knows the wire, the receiver knows what arrived. Ended at one end is ended.
    fn view(&self) -> Option<Transfer> {
        let (source, receiver) = match (&self.source, &self.receiver) {
            (None, None) => return self.unspoken(),
            (Some((node, told)), None) => (node.clone(), NodeName(told.peer_node.clone())),
            (_, Some((node, told))) => (NodeName(told.peer_node.clone()), node.clone()),
        };
        let told = |ends: &Option<(NodeName, pb::Transfer)>| ends.as_ref().map(|(_, t)| t.clone());
        let (sent, got) = (told(&self.source), told(&self.receiver));
        let first = sent.as_ref().or(got.as_ref())?;
        let parent = match &self.asked {
            Some((asked, _)) => asked.parent,
            None => Some(first.parent_number)
                .filter(|n| *n > 0)
                .map(SnapshotNumber),
        };
        Some(Transfer {
            id: first.id.clone(),
            image: convert::key(first.image.as_ref()?),
            number: SnapshotNumber(first.number),
            parent,
            source,
            receiver,
            bytes_sent: first.bytes_sent,
            bytes_done: got.as_ref().unwrap_or(first).bytes_done,
            bytes_total: [&sent, &got]
                .into_iter()
                .flatten()
                .map(|t| t.bytes_total)
                .find(|n| *n > 0),
            rate: first.rate,
            started_at: convert::time(first.started_at),
            end: ended(
                sent.as_ref().and_then(convert::end),
                got.as_ref().and_then(convert::end),
            ),
        })
    }
}

/// Of two accounts of an end the one that knows more: the receiver alone knows of success, and
/// "the peer is gone" is what the other end of every failure says.
fn ended(source: Option<TransferEnd>, receiver: Option<TransferEnd>) -> Option<TransferEnd> {
    let hearsay = |end: &TransferEnd| matches!(&end.outcome, Err(Ended { refusal, .. }) if matches!(refusal.reason, Reason::PeerLost | Reason::Cancelled));
    match (source, receiver) {
        (Some(source), Some(receiver)) if hearsay(&receiver) => Some(source),
        (_, Some(receiver)) => Some(receiver),
        (source, None) => source,
    }
}

/// A transfer as it is asked for.
pub(super) fn asked(
    id: &str,
    image: &ImageKey,
    number: SnapshotNumber,
    parent: Option<SnapshotNumber>,
    [source, receiver]: [&NodeName; 2],
) -> Transfer {
    Transfer {
        id: id.to_owned(),
        image: image.clone(),
        number,
        parent,
        source: source.clone(),
        receiver: receiver.clone(),
        bytes_sent: 0,
        bytes_done: 0,
        bytes_total: None,
        rate: 0,
        started_at: Timestamp::now(),
        end: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(role: pb::Role, state: pb::TransferState, reason: pb::Reason) -> pb::Transfer {
        let peer = if role == pb::Role::Source { "n2" } else { "n1" };
        pb::Transfer {
            id: "t".into(),
            image: Some(pb::ImageRef {
                namespace: "vms".into(),
                image: "win".into(),
            }),
            number: 2,
            parent_number: if role == pb::Role::Source { 1 } else { 0 },
            role: role.into(),
            peer_node: peer.into(),
            state: state.into(),
            bytes_sent: 10,
            bytes_done: 30,
            reason: reason.into(),
            ..Default::default()
        }
    }

    fn view(transfers: &Transfers) -> Transfer {
        let key = ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        };
        transfers.of(&key).pop().unwrap()
    }

    const N1: fn() -> NodeName = || "n1".into();
    const N2: fn() -> NodeName = || "n2".into();

    #[test]
    fn two_ends_are_one_transfer() {
        let mut transfers = Transfers::default();
        transfers.told(
            &N1(),
            told(
                pb::Role::Source,
                pb::TransferState::Running,
                pb::Reason::Unspecified,
            ),
        );
        transfers.told(
            &N2(),
            told(
                pb::Role::Receiver,
                pb::TransferState::Running,
                pb::Reason::Unspecified,
            ),
        );
        assert_eq!(transfers.running(), 1);
        let view = view(&transfers);
        assert_eq!((view.source, view.receiver), (N1(), N2()));
        assert_eq!(view.parent, Some(SnapshotNumber(1)));
    }

    #[test]
    fn the_end_that_knows_why_is_believed() {
        let mut transfers = Transfers::default();
        transfers.told(
            &N1(),
            told(
                pb::Role::Source,
                pb::TransferState::Failed,
                pb::Reason::IoError,
            ),
        );
        transfers.told(
            &N2(),
            told(
                pb::Role::Receiver,
                pb::TransferState::Failed,
                pb::Reason::PeerLost,
            ),
        );
        let end = view(&transfers).end.unwrap();
        assert_eq!(end.outcome.unwrap_err().refusal.reason, Reason::IoError);
    }

    #[test]
    fn a_transfer_ends_when_the_end_that_remains_says_so() {
        let mut transfers = Transfers::default();
        transfers.told(
            &N1(),
            told(
                pb::Role::Source,
                pb::TransferState::Running,
                pb::Reason::Unspecified,
            ),
        );
        transfers.told(
            &N2(),
            told(
                pb::Role::Receiver,
                pb::TransferState::Failed,
                pb::Reason::PeerLost,
            ),
        );
        assert_eq!(transfers.running(), 0);
    }

    #[test]
    fn what_an_agent_that_was_started_anew_no_longer_knows_is_forgotten() {
        let mut transfers = Transfers::default();
        transfers.told(
            &N1(),
            told(
                pb::Role::Source,
                pb::TransferState::Running,
                pb::Reason::Unspecified,
            ),
        );
        transfers.forget(&N1());
        assert_eq!(transfers.running(), 0);
    }

    #[test]
    fn a_transfer_that_both_ends_have_forgotten_is_gone_though_it_was_asked_for() {
        let mut transfers = Transfers::default();
        let key = ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        };
        transfers.ask(asked("t", &key, SnapshotNumber(2), None, [&N1(), &N2()]));
        transfers.told(
            &N2(),
            told(
                pb::Role::Receiver,
                pb::TransferState::Running,
                pb::Reason::Unspecified,
            ),
        );
        transfers.forget(&N2());
        assert_eq!(transfers.running(), 0);
    }

    #[test]
    fn a_transfer_just_asked_for_counts_before_anybody_speaks_of_it() {
        let mut transfers = Transfers::default();
        let key = ImageKey {
            namespace: "vms".into(),
            image: "win".into(),
        };
        transfers.ask(asked("t", &key, SnapshotNumber(2), None, [&N1(), &N2()]));
        transfers.forget(&N2());
        assert_eq!(transfers.running(), 1);
        transfers.refused("t");
        assert_eq!(transfers.running(), 0);
    }
}
