//! Two agents and the snapshots that go from one to the other.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use icbd_wire::control::*;
use support::operator::*;
use support::{Node, Pool, noise};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_snapshot_and_its_increment_arrive_with_every_codec() {
    let (source_pool, receiver_pool) = (Pool::new(), Pool::new());
    let (source, from) = Node::ready("source", &source_pool).await;
    let (receiver, to) = Node::ready("receiver", &receiver_pool).await;
    source.make_live();
    source.write_live("disk.img", &noise(1, 16 * MIB));
    source.write_live(
        "text",
        "words and words and words ".repeat(100_000).as_bytes(),
    );
    let mut parent: Option<SnapshotInfo> = None;
    let codecs = [
        Codec::Auto,
        Codec::None,
        Codec::Snappy,
        Codec::Lz4,
        Codec::Zlib,
        Codec::Zstd,
    ];
    for (round, codec) in codecs.into_iter().enumerate() {
        source.write_live("changed", &noise(round as u64, MIB));
        source.write_live(
            "changed-text",
            format!("words of round {round} ").repeat(50_000).as_bytes(),
        );
        let snapshot = from.take(&format!("snapshot-{round}")).await;
        let plan = match &parent {
            None => Plan::full(&snapshot),
            Some(parent) => Plan::increment(&snapshot, parent),
        };
        let plan = Plan { codec, ..plan };
        let (sent, received) = transfer(&plan, &from, &to, &receiver).await;
        succeeded(&sent);
        succeeded(&received);
        assert_eq!(
            source.digest(snapshot.number),
            receiver.digest(snapshot.number),
            "{codec:?}"
        );
        assert_eq!(sent.bytes_done, received.bytes_done);
        assert_eq!(sent.codec(), received.codec());
        // What Auto chooses, its own tests say.
        if codec != Codec::Auto {
            assert_eq!(sent.codec(), codec);
            let shrunk = sent.bytes_sent < sent.bytes_done;
            assert_eq!(shrunk, codec != Codec::None, "{codec:?}: {sent:?}");
        }
        assert!(
            sent.bytes_total.abs_diff(sent.bytes_done) < sent.bytes_done / 50,
            "{sent:?}"
        );
        if parent.is_some() {
            assert!(
                sent.bytes_sent < 3 * MIB as u64,
                "an increment of {} bytes",
                sent.bytes_sent
            );
        }
        parent = Some(snapshot);
    }
    assert_eq!(receiver.entries(), ["1", "2", "3", "4", "5", "6"]);
    let seen = to
        .wait("all snapshots", |seen| seen.numbers() == [1, 2, 3, 4, 5, 6])
        .await;
    let first = &seen.images[support::IMAGE].snapshots[0];
    assert_eq!(first.record.as_ref().unwrap().name, "snapshot-0");
}

/// A source and a receiver with a snapshot of this many bytes to be sent.
async fn pair(
    pools: &(Pool, Pool),
    bytes: usize,
) -> ((Node, Operator), (Node, Operator), SnapshotInfo) {
    let (source, from) = Node::ready("source", &pools.0).await;
    let receiver = Node::ready("receiver", &pools.1).await;
    source.make_live();
    source.write_live("disk.img", &noise(1, bytes));
    let snapshot = from.take("one").await;
    ((source, from), receiver, snapshot)
}

fn pools() -> (Pool, Pool) {
    (Pool::new(), Pool::new())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_empty_image_arrives_and_what_is_there_is_not_sent_again() {
    let pools = pools();
    let (source, from) = Node::ready("source", &pools.0).await;
    let (receiver, to) = Node::ready("receiver", &pools.1).await;
    source.make_live();
    let snapshot = from.take("one").await;
    let plan = Plan::full(&snapshot);
    let (sent, received) = transfer(&plan, &from, &to, &receiver).await;
    succeeded(&sent);
    succeeded(&received);
    assert_eq!(source.digest(1), receiver.digest(1));
    let again = to.expect(to.expect_request(&plan.again())).await.unwrap();
    assert!(
        matches!(again, expect_response::Answer::AlreadyThere(_)),
        "{again:?}"
    );
    // Asked once more for a transfer that has ended, the source does not send it again.
    from.send(from.send_request(&plan, receiver.data()))
        .await
        .unwrap();
    assert_eq!(from.ended(&plan.transfer, Role::Source).await, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_chain_goes_on_from_a_replica_to_a_second_one() {
    let pools = pools();
    let ((source, from), (middle, through), one) = pair(&pools, 4 * MIB).await;
    succeeded(
        &transfer(&Plan::full(&one), &from, &through, &middle)
            .await
            .1,
    );
    source.write_live("disk.img", &noise(2, 4 * MIB));
    let two = from.take("two").await;
    succeeded(
        &transfer(&Plan::increment(&two, &one), &from, &through, &middle)
            .await
            .1,
    );
    let last_pool = Pool::new();
    let (last, to) = Node::ready("last", &last_pool).await;
    succeeded(&transfer(&Plan::full(&one), &through, &to, &last).await.1);
    succeeded(
        &transfer(&Plan::increment(&two, &one), &through, &to, &last)
            .await
            .1,
    );
    assert_eq!(source.digest(1), last.digest(1));
    assert_eq!(source.digest(2), last.digest(2));
    let seen = to.wait("both", |seen| seen.numbers() == [1, 2]).await;
    let identities: Vec<_> = seen.images[support::IMAGE]
        .snapshots
        .iter()
        .map(|it| it.identity.clone())
        .collect();
    assert_eq!(identities, [one.identity, two.identity]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_number_that_holds_other_content_is_a_conflict_and_stays() {
    let pools = pools();
    let ((_source, from), (receiver, to), snapshot) = pair(&pools, MIB).await;
    receiver.make_live();
    receiver.write_live("other", b"other content");
    let other = to.take("other").await;
    assert_eq!(other.number, snapshot.number);
    let before = receiver.digest(1);
    let plan = Plan::full(&snapshot);
    let message = refused(to.expect(to.expect_request(&plan)).await, Reason::Conflict);
    assert!(
        message.contains(&snapshot.identity) && message.contains(&other.identity),
        "{message}"
    );
    from.send(from.send_request(&plan, receiver.data()))
        .await
        .unwrap();
    failed(
        &from.ended(&plan.transfer, Role::Source).await,
        Reason::NotExpected,
    );
    assert_eq!(receiver.digest(1), before);
    // Deleted, its number is used up as well.
    to.delete(1, &other.identity).await.unwrap();
    refused(to.expect(to.expect_request(&plan)).await, Reason::Conflict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_receiver_refuses_before_the_first_byte() {
    let pools = pools();
    let ((source, from), (receiver, to), one) = pair(&pools, MIB).await;
    source.write_live("more", b"more");
    let two = from.take("two").await;
    let increment = Plan::increment(&two, &one);
    let message = refused(
        to.expect(to.expect_request(&increment)).await,
        Reason::ParentMissing,
    );
    assert!(message.contains(&one.identity), "{message}");
    let full = Plan::full(&one);
    let mut request = to.expect_request(&full);
    request.bytes = 1 << 40;
    let message = refused(to.expect(request.clone()).await, Reason::InsufficientSpace);
    let free = to.seen().pool.free;
    assert!(
        message.contains(&(1_u64 << 40).to_string()) && free > 0,
        "{message}"
    );
    // Nobody knew the size at first: the source tells, and is refused then.
    request.bytes = 0;
    request.min_free = free - (MIB / 2) as u64;
    to.expect(request).await.unwrap();
    from.send(from.send_request(&full, receiver.data()))
        .await
        .unwrap();
    failed(
        &from.ended(&full.transfer, Role::Source).await,
        Reason::InsufficientSpace,
    );
    failed(
        &to.ended(&full.transfer, Role::Receiver).await,
        Reason::InsufficientSpace,
    );
    assert!(receiver.entries().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_refuses_what_it_does_not_have() {
    let pools = pools();
    let ((_source, from), (receiver, _to), one) = pair(&pools, MIB).await;
    let send = |snapshot: &SnapshotInfo| {
        from.send(from.send_request(&Plan::full(snapshot), receiver.data()))
    };
    refused(
        send(&SnapshotInfo {
            number: 5,
            ..one.clone()
        })
        .await,
        Reason::SnapshotNotFound,
    );
    let identity = uuid::Uuid::new_v4().to_string();
    refused(
        send(&SnapshotInfo {
            identity,
            ..one.clone()
        })
        .await,
        Reason::Conflict,
    );
    let mut request = from.send_request(&Plan::full(&one), receiver.data());
    request.receiver.as_mut().unwrap().address = "not an address".into();
    refused(from.send(request).await, Reason::InvalidArgument);
    // Nobody listens there.
    let plan = Plan::full(&one);
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    from.send(from.send_request(&plan, closed)).await.unwrap();
    let ended = from.ended(&plan.transfer, Role::Source).await;
    failed(&ended, Reason::PeerUnreachable);
    assert!(ended.transient);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_full_disk_ends_a_transfer_with_the_errno_and_the_path() {
    let pools = (Pool::new(), Pool::with_size(256 * MIB as u64));
    let ((_source, from), (receiver, to), one) = pair(&pools, 400 * MIB).await;
    let plan = Plan::full(&one);
    let (hello, expected) = (to.expect_request(&plan), 0);
    to.expect(ExpectRequest {
        bytes: expected,
        ..hello
    })
    .await
    .unwrap();
    from.send(from.send_request(&plan, receiver.data()))
        .await
        .unwrap();
    let ended = to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::InsufficientSpace);
    failed(
        &from.ended(&plan.transfer, Role::Source).await,
        Reason::InsufficientSpace,
    );
    assert!(receiver.entries().is_empty(), "{:?}", receiver.entries());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_cancelled_transfer_leaves_nothing_at_either_end() {
    let pools = pools();
    let ((_source, from), (receiver, to), one) = pair(&pools, 32 * MIB).await;
    for side in [Role::Source, Role::Receiver] {
        let plan = Plan::full(&one).limited(4 * MIB as u64);
        start(&plan, &from, &to, &receiver).await;
        to.moved(&plan.transfer, Role::Receiver, 2 * MIB as u64)
            .await;
        assert_eq!(receiver.entries(), [".partial-1"]);
        let operator = if side == Role::Source { &from } else { &to };
        assert!(operator.cancel(&plan.transfer).await);
        failed(
            &from.ended(&plan.transfer, Role::Source).await,
            Reason::Cancelled,
        );
        failed(
            &to.ended(&plan.transfer, Role::Receiver).await,
            Reason::Cancelled,
        );
        assert!(receiver.entries().is_empty(), "{:?}", receiver.entries());
        assert!(!operator.cancel(&plan.transfer).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_limit_holds_for_all_transfers_to_its_target() {
    let pools = pools();
    let ((_source, from), (receiver, to), one) = pair(&pools, 16 * MIB).await;
    let two = from.take("two").await;
    let rate = 8 * MIB as u64;
    let plans = [
        Plan::full(&one).limited(rate),
        Plan::full(&two).limited(rate),
    ];
    let start_time = std::time::Instant::now();
    for plan in &plans {
        start(plan, &from, &to, &receiver).await;
    }
    let mut wire = 0;
    for plan in &plans {
        let sent = from.ended(&plan.transfer, Role::Source).await;
        succeeded(&sent);
        wire += sent.bytes_sent;
    }
    let least = wire as f64 / rate as f64 * 0.95;
    assert!(
        start_time.elapsed().as_secs_f64() > least,
        "{wire} bytes in {:?}",
        start_time.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_snapshot_in_use_is_not_deleted_and_one_that_arrives_is() {
    let pools = pools();
    let ((source, from), (receiver, to), one) = pair(&pools, 32 * MIB).await;
    let plan = Plan::full(&one).limited(4 * MIB as u64);
    start(&plan, &from, &to, &receiver).await;
    to.moved(&plan.transfer, Role::Receiver, MIB as u64).await;
    refused(from.delete(1, &one.identity).await, Reason::SnapshotBusy);
    assert!(source.has(1));
    assert!(
        !to.delete(1, &one.identity).await.unwrap(),
        "it was not whole"
    );
    failed(
        &to.ended(&plan.transfer, Role::Receiver).await,
        Reason::Cancelled,
    );
    failed(
        &from.ended(&plan.transfer, Role::Source).await,
        Reason::Cancelled,
    );
    assert!(receiver.entries().is_empty());
    refused(
        to.expect(to.expect_request(&plan.again())).await,
        Reason::Conflict,
    );
    assert!(from.delete(1, &one.identity).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_announced_anew_replaces_what_was_announced_before() {
    let pools = pools();
    let ((source, from), (receiver, to), one) = pair(&pools, 32 * MIB).await;
    let first = Plan::full(&one).limited(4 * MIB as u64);
    start(&first, &from, &to, &receiver).await;
    to.moved(&first.transfer, Role::Receiver, MIB as u64).await;
    let second = first.again();
    let second = Plan {
        limit: None,
        ..second
    };
    let (sent, received) = transfer(&second, &from, &to, &receiver).await;
    succeeded(&sent);
    succeeded(&received);
    failed(
        &to.ended(&first.transfer, Role::Receiver).await,
        Reason::PeerLost,
    );
    assert_eq!(source.digest(1), receiver.digest(1));
}
