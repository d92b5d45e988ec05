//! Taking, binding and deleting snapshots: names that mean one content, numbers that never come
//! back, whatever dies in between.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::os::fd::OwnedFd;

use icbd_wire::control::*;
use support::operator::*;
use support::{IMAGE, Node, Pool, run};

async fn node_with_live(pool: &Pool) -> (Node, Operator) {
    let (node, operator) = Node::ready("primary", pool).await;
    node.make_live();
    node.write_live("disk.img", b"first");
    (node, operator)
}

/// Makes a read-only snapshot of `live` by hand.
fn snapshot_by_hand(node: &Node, name: &str) {
    let dir: OwnedFd = fs::File::open(node.image()).unwrap().into();
    let live = icbd_btrfs::Subvolume::open(&dir, "live").unwrap();
    icbd_btrfs::snapshot(&live, &dir, name, icbd_btrfs::Access::ReadOnly).unwrap();
}

fn delete_by_hand(node: &Node, name: &str) {
    let dir: OwnedFd = fs::File::open(node.image()).unwrap().into();
    icbd_btrfs::delete(dir, name).unwrap();
}

/// Changes a field of a record.
fn edit(node: &Node, path: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = node.meta(path);
    let mut record = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    fs::write(path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_name_taken_again_is_the_same_snapshot_after_restarts_too() {
    let pool = Pool::new();
    let (mut node, operator) = node_with_live(&pool).await;
    let first = operator.take("before-upgrade").await;
    assert_eq!(first.number, 1);
    assert!(!first.suspect);
    node.write_live("disk.img", b"second");
    assert_eq!(
        operator.take("before-upgrade").await.identity,
        first.identity
    );
    let operator = node.restart().await;
    assert_eq!(
        operator.take("before-upgrade").await.identity,
        first.identity
    );
    let second = operator.take("after-upgrade").await;
    assert_eq!(second.number, 2);
    assert_eq!(fs::read(node.image().join("1/disk.img")).unwrap(), b"first");
    assert_eq!(
        fs::read(node.image().join("2/disk.img")).unwrap(),
        b"second"
    );
    let record = second.record.unwrap();
    assert_eq!(
        (record.name.as_str(), record.origin()),
        ("after-upgrade", Origin::User)
    );
    let seen = operator.wait("both", |seen| seen.numbers() == [1, 2]).await;
    assert_eq!(seen.images[IMAGE].namespace_uid, support::NAMESPACE_UID);
    assert!(seen.images[IMAGE].live.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_crash_between_record_and_snapshot_is_finished_under_the_same_number() {
    let pool = Pool::new();
    let (mut node, operator) = node_with_live(&pool).await;
    operator.take("one").await;
    // The agent died after the record of number 2 was durable and before the snapshot was taken.
    fs::copy(node.meta("snapshots/1.json"), node.meta("snapshots/2.json")).unwrap();
    edit(&node, "snapshots/2.json", |record| {
        record["name"] = "two".into();
        record["identity"] = serde_json::Value::Null;
    });
    edit(&node, "image.json", |image| image["highest"] = 2.into());
    let operator = node.restart().await;
    assert_eq!(operator.take("two").await.number, 2);
    assert_eq!(operator.take("three").await.number, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_crash_between_snapshot_and_identity_completes_the_record() {
    let pool = Pool::new();
    let (mut node, operator) = node_with_live(&pool).await;
    let taken = operator.take("one").await;
    edit(&node, "snapshots/1.json", |record| {
        record["identity"] = serde_json::Value::Null
    });
    node.write_live("disk.img", b"changed since");
    let operator = node.restart().await;
    let again = operator.take("one").await;
    assert_eq!((again.number, &again.identity), (1, &taken.identity));
    let seen = operator.wait("the name", |seen| {
        seen.images
            .get(IMAGE)
            .is_some_and(|image| image.snapshots[0].record.is_some())
    });
    assert_eq!(seen.await.numbers(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_snapshot_whose_data_is_gone_is_lost_and_not_taken_anew() {
    let pool = Pool::new();
    let (node, operator) = node_with_live(&pool).await;
    operator.take("one").await;
    delete_by_hand(&node, "1");
    refused(
        operator.call_take(operator.take_request("one")).await,
        Reason::SnapshotLost,
    );
    operator
        .wait("the loss", |seen| seen.numbers().is_empty())
        .await;
    assert_eq!(operator.take("two").await.number, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_stands_in_the_way_of_taking_is_named() {
    let pool = Pool::new();
    let (node, operator) = Node::ready("primary", &pool).await;
    let take = || operator.call_take(operator.take_request("one"));
    let message = refused(take().await, Reason::ImageNotFound);
    assert!(
        message.contains(node.image().to_str().unwrap()),
        "{message}"
    );
    fs::create_dir_all(node.image()).unwrap();
    refused(take().await, Reason::LiveNotFound);
    fs::create_dir(node.image().join("live")).unwrap();
    refused(take().await, Reason::LiveNotFound);
    fs::remove_dir(node.image().join("live")).unwrap();
    node.make_live();
    let dir: OwnedFd = fs::File::open(node.image()).unwrap().into();
    let live = icbd_btrfs::Subvolume::open(&dir, "live").unwrap();
    live.set_received(uuid::Uuid::new_v4(), 1).unwrap();
    refused(take().await, Reason::LiveReceived);
    assert_eq!(node.entries(), ["live"]);
    for name in ["", "..", "a/b", "UPPER", "a.b"] {
        let mut request = operator.take_request("one");
        request.image = Some(ImageRef {
            namespace: "desktops".into(),
            image: name.into(),
        });
        refused(operator.call_take(request).await, Reason::InvalidArgument);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn numbers_are_never_given_out_twice() {
    let pool = Pool::new();
    let (mut node, operator) = node_with_live(&pool).await;
    let one = operator.take("one").await;
    assert!(operator.delete(1, &one.identity).await.unwrap());
    assert!(
        !operator.delete(1, &one.identity).await.unwrap(),
        "deleting is idempotent"
    );
    assert_eq!(node.entries(), ["live"]);
    let operator = node.restart().await;
    assert_eq!(
        operator.take("one").await.number,
        2,
        "the name is free again, the number is not"
    );
    // What another node knows, what was made by hand, and what is no snapshot, count as well.
    let mut request = operator.take_request("two");
    request.highest_known = 10;
    assert_eq!(operator.call_take(request).await.unwrap().number, 11);
    snapshot_by_hand(&node, "20");
    assert_eq!(operator.take("three").await.number, 21);
    fs::create_dir(node.image().join("30")).unwrap();
    assert_eq!(operator.take("four").await.number, 31);
    let seen = operator
        .wait("all", |seen| seen.numbers() == [2, 11, 20, 21, 31])
        .await;
    let image = &seen.images[IMAGE];
    assert_eq!(image.tombstones.len(), 1);
    assert_eq!(
        (image.tombstones[0].number, &image.tombstones[0].identity),
        (1, &one.identity)
    );
    assert_eq!(image.highest_number, 31);
    assert!(image.ignored[0].starts_with("30: "), "{:?}", image.ignored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_name_is_bound_to_a_snapshot_that_was_there() {
    let pool = Pool::new();
    let (node, operator) = node_with_live(&pool).await;
    snapshot_by_hand(&node, "7");
    let bind = |name: &str, number| {
        let mut request = operator.take_request(name);
        request.bind_number = number;
        operator.call_take(request)
    };
    let bound = bind("golden", 7).await.unwrap();
    assert_eq!(bound.number, 7);
    assert_eq!(bind("golden", 7).await.unwrap().identity, bound.identity);
    refused(bind("golden", 8).await, Reason::NumberBound);
    refused(bind("other", 7).await, Reason::NumberBound);
    refused(bind("other", 8).await, Reason::SnapshotNotFound);
    assert_eq!(operator.take("golden").await.identity, bound.identity);
    assert_eq!(operator.take("next").await.number, 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_namespace_made_anew_gets_the_data_only_if_it_says_so() {
    let pool = Pool::new();
    let (_node, operator) = node_with_live(&pool).await;
    let taken = operator.take("one").await;
    let mut request = operator.take_request("one");
    request.owner = Some(Owner {
        namespace_uid: "new".into(),
        adopt_from: String::new(),
    });
    let message = refused(
        operator.call_take(request.clone()).await,
        Reason::NamespaceChanged,
    );
    assert!(
        message.contains("new") && message.contains(support::NAMESPACE_UID),
        "{message}"
    );
    request.owner.as_mut().unwrap().adopt_from = "a wrong one".into();
    refused(
        operator.call_take(request.clone()).await,
        Reason::NamespaceChanged,
    );
    request.owner.as_mut().unwrap().adopt_from = support::NAMESPACE_UID.into();
    assert_eq!(
        operator.call_take(request).await.unwrap().identity,
        taken.identity
    );
    refused(
        operator.call_take(operator.take_request("one")).await,
        Reason::NamespaceChanged,
    );
    operator
        .wait("the owner", |seen| {
            seen.images[IMAGE].namespace_uid == "new"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn deleting_spares_what_was_not_meant() {
    let pool = Pool::new();
    let (node, operator) = node_with_live(&pool).await;
    let (one, two) = (operator.take("one").await, operator.take("two").await);
    let message = refused(operator.delete(1, &two.identity).await, Reason::Conflict);
    assert!(
        message.contains(&one.identity) && message.contains(&two.identity),
        "{message}"
    );
    assert_eq!(node.entries(), ["1", "2", "live"]);
    assert!(!operator.delete(9, &two.identity).await.unwrap());
    assert_eq!(operator.delete_image().await.unwrap(), [1, 2]);
    assert_eq!(operator.delete_image().await.unwrap(), [0_u64; 0]);
    assert_eq!(node.entries(), ["live"]);
    let seen = operator
        .wait("no snapshots", |seen| seen.numbers().is_empty())
        .await;
    let numbers: Vec<_> = seen.images[IMAGE]
        .tombstones
        .iter()
        .map(|it| it.number)
        .collect();
    assert_eq!(numbers, [1, 2, 9]);
    assert_eq!(operator.take("three").await.number, 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn deleting_in_an_image_that_is_not_there_makes_nothing() {
    let pool = Pool::new();
    let (node, operator) = Node::ready("replica", &pool).await;
    assert!(
        !operator
            .delete(1, &uuid::Uuid::new_v4().to_string())
            .await
            .unwrap()
    );
    assert!(operator.delete_image().await.unwrap().is_empty());
    assert!(!node.image().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_done_by_hand_is_seen() {
    let pool = Pool::new();
    let (node, operator) = node_with_live(&pool).await;
    operator
        .wait("the image", |seen| seen.images.contains_key(IMAGE))
        .await;
    snapshot_by_hand(&node, "3");
    let seen = operator
        .wait("the snapshot", |seen| seen.numbers() == [3])
        .await;
    assert!(seen.images[IMAGE].snapshots[0].record.is_none());
    // Written to while it was writable for a moment: no parent and no source any more.
    let path = node.image().join("3");
    let set = |value: &str| {
        run(
            "btrfs",
            ["property", "set", "-f", path.to_str().unwrap(), "ro", value],
        )
    };
    set("false");
    fs::write(path.join("disk.img"), "changed").unwrap();
    run("sync", ["-f", path.to_str().unwrap()]);
    set("true");
    operator
        .wait("suspicion", |seen| seen.images[IMAGE].snapshots[0].suspect)
        .await;
    delete_by_hand(&node, "3");
    operator
        .wait("the loss", |seen| seen.numbers().is_empty())
        .await;
    delete_by_hand(&node, "live");
    operator
        .wait("no live", |seen| seen.images[IMAGE].live.is_none())
        .await;
    fs::remove_dir_all(node.image()).unwrap();
    operator
        .wait("no image", |seen| !seen.images.contains_key(IMAGE))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn referenced_bytes_are_counted_and_kept() {
    let pool = Pool::new();
    let (mut node, operator) = node_with_live(&pool).await;
    node.write_live("disk.img", &support::noise(1, 4 << 20));
    operator.take("one").await;
    let counted = |seen: &Seen| {
        seen.images
            .get(IMAGE)
            .is_some_and(|image| image.snapshots[0].bytes == Some(4 << 20))
    };
    operator.wait("bytes", counted).await;
    let recorded = fs::read_to_string(node.meta("snapshots/1.json")).unwrap();
    assert!(recorded.contains("\"bytes\":4194304"), "{recorded}");
    let operator = node.restart().await;
    operator.wait("bytes after a restart", counted).await;
}
