//! What must hold of one Snapshot.

use icbd_crds::{
    ConditionType, DeletionPolicy, Origin, Reason, ReplicaState, SnapshotSpec, SnapshotStatus,
    TransferMode, condition,
};

use super::{Action, Facts, actions, status};
use crate::model::{Attempt, ImageFacts, SnapshotNumber, TransferEnd};
use crate::notation::{at, facts as image, target};
use crate::replication::WantedSnapshot;

/// The Snapshot object `s<number>`; what its status was; what was seen.
struct Case {
    name: String,
    spec: SnapshotSpec,
    status: SnapshotStatus,
    image: Option<ImageFacts>,
    finalizer: bool,
    deleting: bool,
    confirmed: Option<String>,
    scope_terminating: bool,
    wanted: Vec<WantedSnapshot>,
}

fn case(name: &str, nodes: &str) -> Case {
    Case {
        name: name.into(),
        spec: SnapshotSpec {
            image: "win".into(),
            number: None,
            deletion_policy: DeletionPolicy::Retain,
        },
        status: SnapshotStatus::default(),
        image: Some(image(nodes).with_targets([target("edge")])),
        finalizer: false,
        deleting: false,
        confirmed: None,
        scope_terminating: false,
        wanted: Vec::new(),
    }
}

impl Case {
    fn facts(&self) -> Facts<'_> {
        Facts {
            name: &self.name,
            uid: "uid",
            generation: Some(1),
            spec: &self.spec,
            status: &self.status,
            finalizer: self.finalizer,
            deleting: self.deleting,
            confirmed: self.confirmed.as_deref(),
            origin: Origin::User,
            image: self.image.as_ref(),
            scope_terminating: self.scope_terminating,
            highest_known: 0,
            wanted: &self.wanted,
            refused: None,
        }
    }

    fn actions(&self) -> Vec<Action> {
        actions(&self.facts())
    }

    fn status(&self) -> SnapshotStatus {
        status(&self.facts(), at(100))
    }

    /// The same object after its status was published, and something else is seen.
    fn then(mut self, nodes: &str) -> Case {
        self.status = self.status();
        self.image = Some(image(nodes).with_targets([target("edge")]));
        self
    }

    fn being_deleted(mut self) -> Case {
        self.status = self.status();
        self.spec.deletion_policy = DeletionPolicy::Delete;
        self.finalizer = true;
        self.deleting = true;
        self
    }

    fn reason(&self, type_: ConditionType) -> (bool, String) {
        let status = self.status();
        let condition = condition(&status.conditions, type_).expect("a condition of this type");
        (condition.status == "True", condition.reason.clone())
    }

    /// Snapshots of the primary that have objects.
    fn wanting(mut self, numbers: &[u64]) -> Case {
        let primary = self.image_mut().inventories[&"n1".into()].clone();
        let wanted = |n: &u64| WantedSnapshot {
            number: SnapshotNumber(*n),
            identity: primary.snapshots[&SnapshotNumber(*n)].identity.clone(),
            taken_at: at(0),
        };
        self.wanted = numbers.iter().map(wanted).collect();
        self
    }

    fn image_mut(&mut self) -> &mut ImageFacts {
        self.image.as_mut().unwrap()
    }
}

fn takes(actions: &[Action]) -> Option<(u64, Option<u64>)> {
    actions.iter().find_map(|action| match action {
        Action::Take {
            highest_known,
            bind,
            ..
        } => Some((*highest_known, bind.map(|n| n.0))),
        _ => None,
    })
}

fn deletes(actions: &[Action]) -> Vec<String> {
    let on = |action: &Action| match action {
        Action::Delete { node, number, .. } => Some(format!("{node}:{number}")),
        _ => None,
    };
    actions.iter().filter_map(on).collect()
}

#[test]
fn a_new_name_is_taken_beyond_every_number_known_anywhere() {
    let case = case("new", "n1 1a | n2 1a 9z†");
    assert_eq!(takes(&case.actions()), Some((9, None)));
    assert_eq!(case.reason(ConditionType::Ready), (false, "Taking".into()));
}

#[test]
fn a_name_that_a_disk_knows_is_never_taken_again() {
    assert_eq!(takes(&case("s1", "n1 1a | n2").actions()), None);
    // Also when only a replica knows it.
    assert_eq!(takes(&case("s1", "n1 2b | n2 1a").actions()), None);
}

#[test]
fn what_cannot_be_taken_says_what_it_waits_for() {
    assert_eq!(
        case("new", "n1 away | n2").reason(ConditionType::Taken),
        (false, "AgentUnreachable".into())
    );
    let mut no_live = case("new", "n1 | n2");
    std::sync::Arc::make_mut(
        no_live
            .image_mut()
            .inventories
            .get_mut(&"n1".into())
            .unwrap(),
    )
    .live = None;
    assert_eq!(
        no_live.reason(ConditionType::Ready),
        (false, "LiveNotFound".into())
    );
    assert!(no_live.actions().is_empty());
    let mut no_directory = case("new", "n1 | n2");
    no_directory.image_mut().inventories.clear();
    assert_eq!(
        no_directory.reason(ConditionType::Ready),
        (false, "ImageNotFound".into())
    );
    let mut no_image = case("new", "n1");
    no_image.image = None;
    assert_eq!(
        no_image.reason(ConditionType::Reconciling),
        (true, "VMImageNotFound".into())
    );
}

#[test]
fn data_of_a_former_namespace_is_not_inherited_without_consent() {
    let mut changed = case("s1", "n1 1a | n2");
    changed.image_mut().namespace.uid = "another".into();
    assert_eq!(
        changed.reason(ConditionType::Stalled),
        (true, "NamespaceChanged".into())
    );
    assert!(changed.actions().is_empty());
    changed.image_mut().namespace.adopt_from = Some("ns-uid".into());
    assert_eq!(changed.reason(ConditionType::Taken), (true, "Taken".into()));
}

#[test]
fn a_number_is_bound_only_if_it_is_there_and_nameless() {
    let mut bind = case("by-number", "n1 7a | n2");
    bind.spec.number = Some(8);
    assert_eq!(
        bind.reason(ConditionType::Taken),
        (false, "SnapshotNotFound".into())
    );
    bind.spec.number = Some(7);
    assert_eq!(
        bind.reason(ConditionType::Stalled),
        (true, "NumberBound".into())
    );
    let primary = bind.image_mut().inventories.get_mut(&"n1".into()).unwrap();
    std::sync::Arc::make_mut(primary)
        .snapshots
        .get_mut(&SnapshotNumber(7))
        .unwrap()
        .record = None;
    assert_eq!(takes(&bind.actions()), Some((7, Some(7))));
}

#[test]
fn lost_data_is_expired_and_never_taken_anew() {
    let lost = case("s1", "n1 1a | n2").then("n1 | n2");
    assert!(lost.actions().is_empty());
    assert_eq!(
        lost.reason(ConditionType::Expired),
        (true, "SnapshotLost".into())
    );
    assert!(!lost.reason(ConditionType::Taken).0);
}

#[test]
fn data_out_of_sight_is_not_lost() {
    let mut hidden = case("s1", "n1 1a | n2 1a").then("n1 | n2 1a");
    assert_eq!(
        hidden.reason(ConditionType::Ready),
        (false, "SourceNotAvailable".into())
    );
    let nodes = image("n1 | n2 away").nodes;
    hidden.image_mut().nodes = nodes;
    let status = hidden.status();
    assert!(
        condition(&status.conditions, ConditionType::Expired).is_none(),
        "{status:?}"
    );
}

#[test]
fn replicated_latches_and_is_never_vacuous() {
    let done = case("s1", "n1 1a | n2 1a");
    assert_eq!(
        done.reason(ConditionType::Replicated),
        (true, "Replicated".into())
    );
    assert_eq!(
        done.reason(ConditionType::Ready),
        (true, "Replicated".into())
    );
    let joined = done.then("n1 1a | n2 1a | n3");
    assert!(joined.reason(ConditionType::Replicated).0);
    assert_eq!(joined.status().replicated.as_deref(), Some("1/2"));
    let alone = case("s1", "n1 1a");
    assert_eq!(
        alone.reason(ConditionType::Replicated),
        (false, "NoReplicasWanted".into())
    );
}

#[test]
fn min_replicas_is_how_many_make_it_replicated() {
    let mut one = case("s1", "n1 1a | n2 1a | n3 away");
    assert_eq!(
        one.reason(ConditionType::Replicated),
        (false, "AgentUnreachable".into())
    );
    one.image_mut().spec.min_replicas = Some(1);
    assert!(one.reason(ConditionType::Replicated).0);
    one.image_mut().spec.min_replicas = Some(3);
    assert!(!one.reason(ConditionType::Replicated).0);
}

#[test]
fn a_conflict_is_shown_with_both_contents_and_needs_a_person() {
    let conflict = case("s1", "n1 1a | n2 1x");
    assert_eq!(
        conflict.reason(ConditionType::Stalled),
        (true, "Conflict".into())
    );
    let row = &conflict.status().replicas[0];
    assert_eq!(row.state, ReplicaState::Conflict);
    let message = row.message.as_deref().unwrap();
    assert!(
        message.contains("x there") && message.contains("a at the source"),
        "{message}"
    );
}

#[test]
fn a_quota_that_is_reached_is_told_with_both_figures_and_waited_for() {
    let over = |quota: &str| {
        let mut case = case("s2", "n1 1a 2b | n2 1a");
        let limited = |image: ImageFacts| image.with_targets([target("edge").quota(quota)]);
        case.image = case.image.map(|image| limited(image).counted());
        case
    };
    let waiting = over("1536Ki");
    let row = waiting.status().replicas.remove(0);
    assert_eq!(
        (row.state, row.reason.as_deref()),
        (ReplicaState::Pending, Some("QuotaExceeded"))
    );
    let message = row.message.unwrap();
    assert!(
        message.contains("takes 1048576 on node n2") && message.contains("edge is 1572864"),
        "{message}"
    );
    for type_ in [ConditionType::Replicated, ConditionType::Ready] {
        assert_eq!(waiting.reason(type_), (false, "QuotaExceeded".into()));
    }
    assert_eq!(
        waiting.reason(ConditionType::Reconciling),
        (true, "QuotaExceeded".into())
    );
    assert_eq!(
        over("2Mi").reason(ConditionType::Ready),
        (false, "Queued".into())
    );
    // What is there already stays what it is.
    let mut there = over("0");
    there.name = "s1".into();
    assert_eq!(
        there.reason(ConditionType::Ready),
        (true, "Replicated".into())
    );
}

#[test]
fn a_replica_away_keeps_its_row_and_counts_as_it_was_last_seen() {
    let away = case("s1", "n1 1a | n2 1a").then("n1 1a | n2 away");
    assert_eq!(away.status().replicas[0].state, ReplicaState::Complete);
    assert_eq!(away.status().replicated.as_deref(), Some("1/1"));
}

#[test]
fn progress_is_of_the_slowest_replica_still_moving() {
    let mut moving = case("s2", "n1 1a 2b | n2 1a");
    moving.image = moving.image.map(|image| image.moving("n2", 2, Some(1)));
    let status = moving.status();
    assert_eq!(status.progress.as_deref(), Some("50%"));
    assert_eq!(
        (status.rate.as_deref(), status.remaining.as_deref()),
        (Some("10 B/s"), Some("5s"))
    );
    let row = &status.replicas[0];
    assert_eq!(
        (row.mode, row.parent, row.attempts),
        (Some(TransferMode::Incremental), Some(1), 1)
    );
    assert_eq!(
        moving.reason(ConditionType::Ready),
        (false, "Transferring".into())
    );
}

#[test]
fn what_moved_for_an_earlier_object_of_the_name_is_not_counted_for_this_one() {
    let mut again = case("s1", "n1 1a | n2 1a");
    again.image = again.image.map(|image| image.moving("n2", 1, None));
    let ended = TransferEnd {
        at: at(50),
        outcome: Ok(()),
    };
    again.image_mut().transfers[0].end = Some(ended);
    let row = again.status().replicas.remove(0);
    assert_eq!(
        (row.mode, row.bytes_sent, row.attempts),
        (Some(TransferMode::None), 0, 0)
    );
    let attempt = Attempt {
        object_uid: "uid".into(),
        count: 2,
        sent_before: 70,
        transfer: "t-n2-1".into(),
        started_at: at(40),
        failure: None,
    };
    again
        .image_mut()
        .attempts
        .insert(("n2".into(), SnapshotNumber(1)), attempt);
    let row = again.status().replicas.remove(0);
    assert_eq!(
        (row.mode, row.bytes_sent, row.attempts),
        (Some(TransferMode::Full), 100, 2)
    );
}

#[test]
fn the_same_sight_gives_the_same_status() {
    let first = case("s1", "n1 1a | n2 1a | n3 1x").then("n1 1a | n2 1a | n3 1x");
    let published = first.status();
    let second = Case {
        status: published.clone(),
        ..first
    };
    assert_eq!(status(&second.facts(), at(999)), published);
}

#[test]
fn a_status_equals_itself_after_the_api_server_has_kept_it() {
    let mut case = case("s1", "n1 1a | n2 1a | n3 away");
    let image = case.image_mut();
    let primary = std::sync::Arc::make_mut(image.inventories.get_mut(&"n1".into()).unwrap());
    let held = primary.snapshots.get_mut(&SnapshotNumber(1)).unwrap();
    held.record.as_mut().unwrap().taken_at = jiff::Timestamp::from_millisecond(1_234).unwrap();
    let now = jiff::Timestamp::from_millisecond(99_999).unwrap();
    let status = status(&case.facts(), now);
    let kept = serde_json::to_string(&status).unwrap();
    assert_eq!(
        serde_json::from_str::<SnapshotStatus>(&kept).unwrap(),
        status
    );
}

#[test]
fn a_status_holds_32_rows_and_complete_ones_leave_first() {
    let nodes = (2..40).fold("n1 1a".to_owned(), |text, i| {
        format!(
            "{text} | n{i:02} {}",
            if i % 2 == 0 { "1a" } else { "away" }
        )
    });
    let status = case("s1", &nodes).status();
    assert_eq!(status.replicas.len(), 32);
    assert_eq!(
        status
            .replicas
            .iter()
            .filter(|r| r.state == ReplicaState::Pending)
            .count(),
        19
    );
    assert_eq!(status.replicated.as_deref(), Some("19/38"));
}

#[test]
fn the_finalizer_follows_the_policy() {
    let mut kept = case("s1", "n1 1a");
    kept.spec.deletion_policy = DeletionPolicy::Delete;
    assert_eq!(kept.actions(), [Action::AddFinalizer]);
    kept.finalizer = true;
    kept.spec.deletion_policy = DeletionPolicy::Retain;
    assert_eq!(kept.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn deletion_reaches_every_node_in_sight_and_then_lets_the_object_go() {
    let gone = case("s1", "n1 1a 2b | n2 1a 2b | n3").being_deleted();
    assert_eq!(deletes(&gone.actions()), ["n1:1", "n2:1", "n3:1"]);
    assert_eq!(
        gone.reason(ConditionType::Ready),
        (false, "Deleting".into())
    );
    let half = gone.then("n1 1a† 2b | n2 1a 2b | n3 1a†");
    assert_eq!(deletes(&half.actions()), ["n2:1"]);
    let done = half.then("n1 1a† 2b | n2 1a† 2b | n3 1a†");
    assert_eq!(done.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn a_node_out_of_sight_does_not_block_deletion() {
    let gone = case("s1", "n1 1a† 2b | n2 away").being_deleted();
    let mut gone = gone;
    gone.status.number = Some(1);
    gone.status.uuid = Some("a".into());
    assert_eq!(gone.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn a_namespace_crd_or_image_that_goes_takes_no_data_with_it() {
    let mut scope = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    scope.scope_terminating = true;
    assert_eq!(scope.actions(), [Action::RemoveFinalizer]);
    let mut namespace = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    namespace.image_mut().namespace.terminating = true;
    assert_eq!(namespace.actions(), [Action::RemoveFinalizer]);
    let mut terminating = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    terminating.image_mut().terminating = true;
    assert_eq!(terminating.actions(), [Action::RemoveFinalizer]);
    let mut missing = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    missing.image = None;
    assert_eq!(missing.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn the_last_snapshot_of_an_image_is_only_removed_with_consent() {
    let mut last = case("s1", "n1 1a | n2 1a").being_deleted();
    assert!(last.actions().is_empty());
    assert_eq!(
        last.reason(ConditionType::Ready),
        (false, "ConfirmationRequired".into())
    );
    last.confirmed = Some("other".into());
    assert!(last.actions().is_empty());
    last.confirmed = Some("win".into());
    assert_eq!(deletes(&last.actions()), ["n1:1", "n2:1"]);
    // Half way through it still knows.
    let half = last.then("n1 1a† | n2 1a");
    assert_eq!(deletes(&half.actions()), ["n2:1"]);
}

#[test]
fn deletion_cancels_the_snapshots_own_transfer_and_waits_for_those_that_build_on_it() {
    let mut own = case("s2", "n1 1a 2b | n2 1a ~2").being_deleted();
    own.image = own.image.map(|image| image.moving("n2", 2, Some(1)));
    let cancelled = own
        .actions()
        .iter()
        .any(|a| matches!(a, Action::Cancel { transfer, .. } if transfer == "t-n2-2"));
    assert!(cancelled, "{:?}", own.actions());
    assert_eq!(deletes(&own.actions()), ["n1:2", "n2:2"]);
    let mut parent = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    parent.image = parent.image.map(|image| image.moving("n2", 2, Some(1)));
    assert!(parent.actions().is_empty());
    assert_eq!(
        parent.reason(ConditionType::Reconciling),
        (true, "SnapshotBusy".into())
    );
}

#[test]
fn a_lagging_replicas_only_link_to_its_source_is_kept_until_it_has_another() {
    let link = case("s1", "n1 1a 2b | n2 1a").being_deleted().wanting(&[2]);
    assert!(link.actions().is_empty());
    assert_eq!(
        link.reason(ConditionType::Ready),
        (false, Reason::SnapshotBusy.to_string())
    );
    let caught_up = link.then("n1 1a 2b | n2 1a 2b");
    assert_eq!(deletes(&caught_up.actions()), ["n1:1", "n2:1"]);
}

#[test]
fn a_replica_that_lags_for_want_of_room_keeps_nothing_from_making_room() {
    let mut link = case("s1", "n1 1a 2b | n2 1a").being_deleted().wanting(&[2]);
    let limited = |image: ImageFacts| image.with_targets([target("edge").quota("1Mi")]);
    link.image = link.image.map(|image| limited(image).counted());
    assert_eq!(deletes(&link.actions()), ["n1:1", "n2:1"]);
}

#[test]
fn a_link_to_what_nobody_wants_keeps_nothing() {
    let unwanted = case("s1", "n1 1a 2b | n2 1a").being_deleted();
    assert_eq!(deletes(&unwanted.actions()), ["n1:1", "n2:1"]);
    let conflict = case("s1", "n1 1a 2b | n2 1a 2x")
        .being_deleted()
        .wanting(&[2]);
    assert_eq!(deletes(&conflict.actions()), ["n1:1", "n2:1"]);
}

#[test]
fn other_content_under_the_number_does_not_hold_a_deletion_up() {
    let conflict = case("s1", "n1 1a 2b | n2 1x | n3 1a†").being_deleted();
    assert_eq!(deletes(&conflict.actions()), ["n1:1"]);
    let done = conflict.then("n1 1a† 2b | n2 1x | n3 1a†");
    assert_eq!(done.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn a_transfer_between_nodes_out_of_sight_does_not_hold_a_deletion_up() {
    let mut off = case("s2", "n1 1a 2b | n2 away | n3 1a† 2b†").being_deleted();
    off.image = Some(image("n1 away | n2 away | n3 1a† 2b†").moving("n2", 2, Some(1)));
    assert_eq!(off.actions(), [Action::RemoveFinalizer]);
}

#[test]
fn what_was_deleted_while_its_node_was_away_is_not_bound_again() {
    let back = case("s1", "n1 1a | n2 1a†");
    assert_eq!(
        back.reason(ConditionType::Taken),
        (false, "Deleting".into())
    );
    assert!(back.actions().is_empty());
    // Once it is removed there, the name is free.
    assert_eq!(
        takes(&case("s1", "n1 1a† | n2 1a†").actions()),
        Some((1, None))
    );
}

#[test]
fn a_name_that_stands_for_another_number_is_not_bound_to_the_one_asked_for() {
    let mut other = case("s1", "n1 1a 5e | n2");
    other.spec.number = Some(5);
    assert_eq!(
        other.reason(ConditionType::Stalled),
        (true, "NumberBound".into())
    );
    assert_eq!(other.being_deleted().actions(), [Action::RemoveFinalizer]);
}
