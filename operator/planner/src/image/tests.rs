//! What must hold of one VMImage.

use icbd_crds::condition;

use super::*;
use crate::notation::{at, facts as image, target};

fn wanted(image: &ImageFacts) -> Vec<(String, WantedSnapshot)> {
    let Some(primary) = image.inventories.get(&image.primary()) else {
        return Vec::new();
    };
    let snapshot = |(number, held): (&SnapshotNumber, &crate::model::Held)| {
        let wanted = WantedSnapshot {
            number: *number,
            identity: held.identity.clone(),
            taken_at: held.created_at,
        };
        (format!("s{number}"), wanted)
    };
    primary.snapshots.iter().map(snapshot).collect()
}

fn with<R>(
    image: &ImageFacts,
    status: &VMImageStatus,
    known: &[Known],
    f: impl FnOnce(&Facts<'_>) -> R,
) -> R {
    f(&Facts {
        image,
        generation: Some(1),
        status,
        finalizer: image.terminating,
        scope_terminating: false,
        taken_names: &[],
        known,
        wanted: &wanted(image),
    })
}

fn planned(text: &str) -> VMImageStatus {
    let image = image(text).with_targets([target("edge")]);
    with(&image, &Default::default(), &[], |facts| {
        status(facts, true, at(100))
    })
}

#[test]
fn one_replica_away_leaves_the_image_ready_and_not_up_to_date() {
    let status = planned("n1 1a 2b | n2 1a 2b | n3 away");
    assert_eq!(
        condition(&status.conditions, ConditionType::Ready)
            .unwrap()
            .status,
        "True"
    );
    let fresh = condition(&status.conditions, ConditionType::UpToDate).unwrap();
    assert_eq!(
        (fresh.status.as_str(), fresh.reason.as_str()),
        ("False", "Lagging")
    );
    assert_eq!(status.up_to_date.as_deref(), Some("1/2"));
    assert!(fresh.message.contains("node/n3"));
}

#[test]
fn synced_through_is_the_newest_that_all_replicas_hold() {
    let status = planned("n1 1a 2b 3c | n2 1a 2b | n3 1a 2b 3c");
    assert_eq!(status.synced_through, Some(Time(at(2))));
    assert_eq!(status.replicas[0].behind, 1);
    assert_eq!(planned("n1 1a | n2 1a | n3").synced_through, None);
}

#[test]
fn a_replica_out_of_sight_keeps_what_it_was_seen_to_hold() {
    let before = planned("n1 1a 2b | n2 1a 2b");
    let after = image("n1 1a 2b | n2 away").with_targets([target("edge")]);
    let status = with(&after, &before, &[], |facts| status(facts, true, at(200)));
    assert_eq!(status.up_to_date.as_deref(), Some("1/1"));
    assert_eq!(status.synced_through, before.synced_through);
}

#[test]
fn snapshots_on_the_primary_are_adopted_once() {
    let mut image = image("n1 1a 2b 3c | n2 9z").with_targets([target("edge")]);
    let primary = std::sync::Arc::make_mut(image.inventories.get_mut(&"n1".into()).unwrap());
    primary
        .snapshots
        .get_mut(&SnapshotNumber(2))
        .unwrap()
        .record = None;
    let known = [Known {
        name: "s1".into(),
        number: None,
    }];
    let adopted = with(&image, &Default::default(), &known, actions);
    let expected = [
        Action::Adopt {
            name: "win-2".into(),
            number: Some(SnapshotNumber(2)),
        },
        Action::Adopt {
            name: "s3".into(),
            number: None,
        },
    ];
    assert_eq!(adopted, expected);
    let status = with(&image, &Default::default(), &known, |facts| {
        status(facts, true, at(1))
    });
    assert_eq!(status.adopted_through, Some(3));
    assert!(with(&image, &status, &known, actions).is_empty());
}

#[test]
fn adoption_takes_no_name_that_somebody_has() {
    let mut image = image("n1 2b").with_targets([target("edge")]);
    let primary = std::sync::Arc::make_mut(image.inventories.get_mut(&"n1".into()).unwrap());
    primary
        .snapshots
        .get_mut(&SnapshotNumber(2))
        .unwrap()
        .record = None;
    let known = [Known {
        name: "win-2".into(),
        number: Some(SnapshotNumber(7)),
    }];
    let adopted = with(&image, &Default::default(), &known, actions);
    assert_eq!(
        adopted,
        [Action::Adopt {
            name: "win-2a".into(),
            number: Some(SnapshotNumber(2))
        }]
    );
}

#[test]
fn deleting_an_image_removes_data_only_where_its_own_policy_says_so() {
    let mut image = image("n1 1a | n2 1a | n3 | n4 away").with_targets([target("edge")]);
    image.terminating = true;
    assert_eq!(
        with(&image, &Default::default(), &[], actions),
        [Action::RemoveFinalizer]
    );
    image.spec.deletion_policy = DeletionPolicy::Delete;
    let on = |node: &str| Action::DeleteImage { node: node.into() };
    assert_eq!(
        with(&image, &Default::default(), &[], actions),
        [on("n1"), on("n2")]
    );
    image.namespace.terminating = true;
    assert_eq!(
        with(&image, &Default::default(), &[], actions),
        [Action::RemoveFinalizer]
    );
}

#[test]
fn an_image_that_cannot_serve_says_what_it_waits_for() {
    let reason = |text: &str| {
        let status = planned(text);
        condition(&status.conditions, ConditionType::Ready)
            .unwrap()
            .reason
            .clone()
    };
    assert_eq!(reason("n1 absent | n2"), "AgentNotFound");
    assert_eq!(reason("n1 away | n2"), "AgentUnreachable");
}

#[test]
fn a_target_that_does_not_allow_the_primary_makes_the_image_wait() {
    let image = image("n1 1a | n2").with_targets([target("edge").allows_primary("trusted", "yes")]);
    let status = with(&image, &Default::default(), &[], |facts| {
        status(facts, true, at(1))
    });
    for type_ in [ConditionType::Ready, ConditionType::Reconciling] {
        let said = condition(&status.conditions, type_).unwrap();
        assert_eq!(said.reason, "PrimaryNotAllowed");
        assert!(said.message.contains("allowedPrimaries"), "{said:?}");
    }
    assert_eq!(status.replicas, []);
}

#[test]
fn the_same_sight_gives_the_same_status() {
    let text = "n1 1a 2b | n2 1a | n3 away";
    let first = planned(text);
    let image = image(text).with_targets([target("edge")]);
    assert_eq!(
        with(&image, &first, &[], |facts| status(facts, false, at(999))),
        first
    );
}
