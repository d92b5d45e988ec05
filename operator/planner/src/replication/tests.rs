//! What must hold of the transfers over all images.

use proptest::prelude::*;

use super::{plan as plan_all, *};
use crate::model::{Attempt, Ended, Refusal, TransferEnd};
use crate::notation::{at, facts, inventory, target};

const WIDE: ClusterLimits = ClusterLimits {
    transfers: 100,
    per_source: 100,
};

fn plan(jobs: &[Job], cluster: ClusterLimits, now: Timestamp) -> Plan {
    let transfers = jobs
        .iter()
        .flat_map(|job| job.facts.transfers.iter().cloned());
    let running: Vec<Transfer> = transfers.filter(|t| t.end.is_none()).collect();
    plan_all(jobs, &running, cluster, now)
}

/// A job that wants all that its primary holds.
fn job(text: &str) -> Job {
    let facts = facts(text).with_targets([target("edge")]);
    let source = facts
        .inventories
        .get(&facts.primary())
        .cloned()
        .unwrap_or_default();
    let wanted = source
        .snapshots
        .iter()
        .map(|(number, held)| WantedSnapshot {
            number: *number,
            identity: held.identity.clone(),
            taken_at: held.created_at,
        })
        .collect();
    Job { facts, wanted }
}

fn named(mut job: Job, image: &str) -> Job {
    job.facts.key.image = image.to_owned();
    job
}

/// `receiver:number<parent` of each start.
fn starts(jobs: &[Job], cluster: ClusterLimits) -> Vec<String> {
    let describe = |s: Start| {
        let parent = s
            .parent
            .map_or_else(|| "full".to_owned(), |(n, _)| n.to_string());
        format!("{}:{}<{parent}", s.receiver, s.number)
    };
    plan(jobs, cluster, at(5000))
        .starts
        .into_iter()
        .map(describe)
        .collect()
}

#[test]
fn each_replica_gets_the_oldest_snapshot_that_it_lacks() {
    assert_eq!(
        starts(&[job("n1 1a 2b 3c | n2 1a | n3")], WIDE),
        ["n3:1<full", "n2:2<1"]
    );
}

#[test]
fn one_transfer_at_once_for_a_replica_of_an_image() {
    let mut busy = job("n1 1a 2b | n2");
    busy.facts = busy.facts.moving("n2", 1, None);
    assert!(starts(&[busy], WIDE).is_empty());
}

#[test]
fn a_conflict_keeps_nothing_newer_from_going() {
    assert_eq!(starts(&[job("n1 1a 2b 3c | n2 1a 2x")], WIDE), ["n2:3<1"]);
}

#[test]
fn a_replica_away_holds_nobody_else_up() {
    assert_eq!(starts(&[job("n1 1a | n2 away | n3")], WIDE), ["n3:1<full"]);
}

#[test]
fn limits_of_receiver_source_and_cluster_hold_together_with_what_runs() {
    let jobs: Vec<Job> = (0..5)
        .map(|i| named(job("n1 1a | n2"), &format!("i{i}")))
        .collect();
    assert_eq!(starts(&jobs, WIDE).len(), 2, "maxConcurrentTransfers");
    let wide: Vec<Job> = jobs
        .iter()
        .cloned()
        .map(|mut job| {
            job.facts.targets = vec![target("edge").max_concurrent(64)];
            job
        })
        .collect();
    assert_eq!(
        starts(
            &wide,
            ClusterLimits {
                transfers: 100,
                per_source: 3
            }
        )
        .len(),
        3
    );
    assert_eq!(
        starts(
            &wide,
            ClusterLimits {
                transfers: 4,
                per_source: 100
            }
        )
        .len(),
        4
    );
    let mut running = wide;
    running[0].facts = running[0].facts.clone().moving("n2", 1, None);
    assert_eq!(
        starts(
            &running,
            ClusterLimits {
                transfers: 4,
                per_source: 100
            }
        )
        .len(),
        3
    );
}

/// With a quota of so many snapshots' bytes on each node.
fn within(mut job: Job, snapshots: u64) -> Job {
    let quota = (snapshots << 20).to_string();
    job.facts.targets = vec![target("edge").max_concurrent(64).quota(&quota)];
    job.facts = job.facts.counted();
    job
}

#[test]
fn a_quota_lets_come_what_fits_and_no_smaller_one_overtakes() {
    let text = "n1 1a 2b 3c | n2 1a | n3 1a 2b";
    assert_eq!(starts(&[within(job(text), 3)], WIDE), ["n2:2<1", "n3:3<2"]);
    assert_eq!(starts(&[within(job(text), 2)], WIDE), ["n2:2<1"]);
    let mut big = job(text);
    let primary = std::sync::Arc::make_mut(big.facts.inventories.get_mut(&"n1".into()).unwrap());
    let two = primary.snapshots.get_mut(&SnapshotNumber(2)).unwrap();
    two.bytes = Some(9 << 20);
    assert_eq!(starts(&[within(big, 3)], WIDE), ["n3:3<2"]);
}

#[test]
fn what_one_plan_starts_counts_towards_the_quota_of_the_rest() {
    let jobs: Vec<Job> = (0..5)
        .map(|i| named(within(job("n1 1a | n2"), 2), &format!("i{i}")))
        .collect();
    assert_eq!(starts(&jobs, WIDE).len(), 2);
    let elsewhere: Vec<Job> = jobs
        .into_iter()
        .enumerate()
        .map(|(i, mut job)| {
            job.facts.key.namespace = format!("ns{i}");
            job
        })
        .collect();
    assert_eq!(
        starts(&elsewhere, WIDE).len(),
        5,
        "each namespace has its own"
    );
}

#[test]
fn a_begun_transfer_goes_on_within_a_quota_that_it_fills() {
    assert_eq!(
        starts(&[within(job("n1 1a | n2 ~1"), 1)], WIDE),
        ["n2:1<full"]
    );
    assert!(starts(&[within(job("n1 1a | n2 ~1"), 0)], WIDE).is_empty());
}

#[test]
fn under_a_quota_a_snapshot_waits_to_be_counted() {
    let mut fresh = job("n1 1a | n2");
    let primary = std::sync::Arc::make_mut(fresh.facts.inventories.get_mut(&"n1".into()).unwrap());
    primary.snapshots.get_mut(&SnapshotNumber(1)).unwrap().bytes = None;
    assert!(starts(&[within(fresh.clone(), 9)], WIDE).is_empty());
    assert_eq!(starts(&[fresh], WIDE), ["n2:1<full"], "without one it goes");
}

#[test]
fn the_largest_lag_goes_first() {
    let cluster = ClusterLimits {
        transfers: 1,
        per_source: 1,
    };
    let fresh = named(job("n1 8a | n2"), "fresh");
    let stale = named(job("n1 3a | n2"), "stale");
    assert_eq!(
        plan(&[fresh, stale], cluster, at(5000)).starts[0]
            .image
            .image,
        "stale"
    );
}

#[test]
fn a_failed_transfer_waits_for_its_time_and_then_goes() {
    let mut failed = job("n1 1a 2b | n2");
    let refusal = Refusal::new(icbd_crds::Reason::PeerLost, "connection reset");
    let attempt = Attempt {
        object_uid: "uid".into(),
        count: 1,
        sent_before: 0,
        transfer: "t".into(),
        started_at: at(90),
        failure: Some((
            at(100),
            Ended {
                refusal,
                transient: true,
            },
        )),
    };
    failed
        .facts
        .attempts
        .insert(("n2".into(), SnapshotNumber(1)), attempt);
    let waiting = plan(std::slice::from_ref(&failed), WIDE, at(100));
    assert!(
        waiting.starts.is_empty() && waiting.wake_at > Some(at(100)),
        "{waiting:?}"
    );
    let woken = plan(&[failed], WIDE, waiting.wake_at.unwrap());
    assert_eq!(woken.starts.len(), 1);
}

#[test]
fn what_arrived_and_was_removed_at_once_is_sent_again_without_another_event() {
    let mut removed = job("n1 1a | n2");
    removed.facts = removed.facts.moving("n2", 1, None);
    removed.facts.transfers[0].end = Some(TransferEnd {
        at: at(100),
        outcome: Ok(()),
    });
    let waiting = plan(std::slice::from_ref(&removed), WIDE, at(101));
    assert_eq!(waiting.starts, []);
    let woken = plan(&[removed], WIDE, waiting.wake_at.unwrap());
    assert_eq!(woken.starts.len(), 1);
}

#[test]
fn what_was_deleted_while_a_node_was_away_is_found_on_its_return() {
    let (here, back) = (inventory("1a 2b†"), inventory("1a 2b 3c"));
    let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
    let image = ImageKey {
        namespace: "vms".into(),
        image: "win".into(),
    };
    let found = extraneous(&image, [(&n1, &here), (&n2, &back)].into_iter());
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].node, found[0].number), (&n2, SnapshotNumber(2)));
}

#[test]
fn a_tombstone_speaks_of_one_content_and_one_owner_only() {
    let (n1, n2) = (NodeName::from("n1"), NodeName::from("n2"));
    let image = ImageKey {
        namespace: "vms".into(),
        image: "win".into(),
    };
    let (grave, other_content) = (inventory("2b†"), inventory("2x"));
    assert!(extraneous(&image, [(&n1, &grave), (&n2, &other_content)].into_iter()).is_empty());
    let mut stranger = inventory("2b");
    stranger.namespace_uid = Some("another".into());
    assert!(extraneous(&image, [(&n1, &grave), (&n2, &stranger)].into_iter()).is_empty());
}

proptest! {
    // Whatever the nodes hold: no start for what is there, none from or to a node that is
    // away, every parent held by both ends, and never two for one replica.
    #[test]
    fn every_start_is_one_that_can_succeed(
        source in "([1-6][a-f]!? ){0,5}",
        replicas in proptest::collection::vec("(away|([1-6][a-f]!? ){0,5})", 1..4),
        per_source in 1usize..4,
    ) {
        let text = replicas.iter().enumerate().fold(format!("n0 {source}"), |text, (i, r)| {
            format!("{text} | n{} {r}", i + 1)
        });
        let job = job(&text);
        let cluster = ClusterLimits { transfers: 100, per_source };
        let starts = plan(std::slice::from_ref(&job), cluster, at(5000)).starts;
        prop_assert!(starts.len() <= per_source);
        let mut receivers = BTreeSet::new();
        for start in starts {
            prop_assert!(receivers.insert(start.receiver.clone()));
            let source = &job.facts.inventories[&start.source];
            let replica = &job.facts.inventories[&start.receiver];
            prop_assert!(source.holds(start.number, &start.identity));
            prop_assert!(!replica.snapshots.contains_key(&start.number));
            match start.parent {
                Some((number, identity)) => {
                    prop_assert!(source.holds(number, &identity));
                    prop_assert!(replica.snapshots.values().any(|h| h.identity == identity && !h.suspect));
                }
                None => prop_assert!(replica.snapshots.is_empty()),
            }
        }
    }
}
