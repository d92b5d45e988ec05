//! What was announced is awaited until it comes or its time is over, whatever becomes of the
//! receiver's agent meanwhile; and it comes once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use icbd_wire::control::*;
use support::operator::*;
use support::{Node, Pool, noise};

const MIB: usize = 1 << 20;

/// Two nodes, and a snapshot on one of them.
struct Pair {
    source: Node,
    from: Operator,
    receiver: Node,
    to: Operator,
    snapshot: SnapshotInfo,
    pools: [Pool; 2],
}

impl Pair {
    async fn new() -> Self {
        let pools = [Pool::new(), Pool::new()];
        let (source, from) = Node::ready("source", &pools[0]).await;
        let (receiver, to) = Node::ready("receiver", &pools[1]).await;
        source.make_live();
        source.write_live("disk.img", &noise(1, 32 * MIB));
        let snapshot = from.take("one").await;
        Self {
            source,
            from,
            receiver,
            to,
            snapshot,
            pools,
        }
    }

    /// Announces the snapshot.
    async fn announce(&self) -> Plan {
        let plan = Plan::full(&self.snapshot);
        self.expect(&plan).await;
        plan
    }

    /// Announces a transfer; what the receiver has of it.
    async fn expect(&self, plan: &Plan) -> u64 {
        let answer = self.to.expect(self.to.expect_request(plan)).await.unwrap();
        let expect_response::Answer::Accepted(accepted) = answer else {
            panic!("{answer:?}")
        };
        accepted.resume_at
    }

    /// Tells the source to send.
    async fn send(&self, plan: &Plan) {
        let request = self.from.send_request(plan, self.receiver.data());
        self.from.send(request).await.unwrap();
    }

    /// What was announced comes.
    async fn comes(&self, plan: &Plan) -> Transfer {
        self.send(plan).await;
        let sent = self.from.ended(&plan.transfer, Role::Source).await;
        succeeded(&sent);
        succeeded(&self.to.ended(&plan.transfer, Role::Receiver).await);
        assert_eq!(self.source.digest(1), self.receiver.digest(1));
        assert_eq!(self.receiver.entries(), ["1"]);
        self.nothing_is_recorded();
        sent
    }

    /// Nobody waits for it.
    async fn is_not_expected(&self, plan: &Plan) {
        self.send(plan).await;
        let ended = self.from.ended(&plan.transfer, Role::Source).await;
        failed(&ended, Reason::NotExpected);
    }

    /// The source does not know any more what it sent.
    async fn source_forgets(&mut self) {
        self.from = self.source.restart().await;
    }

    /// As a crash would.
    async fn receiver_is_killed(&mut self) {
        self.to = self.receiver.restart().await;
    }

    /// What the receiver's agent has just said of a transfer.
    fn told(&self, plan: &Plan) -> Option<Transfer> {
        let key = (plan.transfer.clone(), Role::Receiver);
        self.to.seen().transfers.get(&key).cloned()
    }

    fn is_awaited(&self, plan: &Plan) {
        let told = self.told(plan).expect("it is awaited");
        assert_eq!(told.state(), TransferState::Expected);
        assert_eq!(told.peer_node, "source");
    }

    fn record(&self) -> std::path::PathBuf {
        self.receiver.meta("expected/1.json")
    }

    fn nothing_is_recorded(&self) {
        for table in ["expected", "arriving"] {
            let left = fs::read_dir(self.receiver.meta(table)).unwrap();
            assert_eq!(left.count(), 0, "{table}");
        }
    }

    /// Says until when what is recorded counts, in seconds from now.
    fn set_deadline(&self, seconds: i64) {
        let record = fs::read(self.record()).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["deadline"] = (now() + seconds * 1000).into();
        fs::write(self.record(), record.to_string()).unwrap();
    }

    fn deadline(&self) -> i64 {
        let record = fs::read(self.record()).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["deadline"].as_i64().unwrap()
    }

    /// An attempt that its source leaves: what came of it is kept.
    async fn is_interrupted(&mut self) -> Plan {
        let plan = Plan::full(&self.snapshot).limited(8 * MIB as u64);
        self.expect(&plan).await;
        self.send(&plan).await;
        let role = Role::Receiver;
        self.to.moved(&plan.transfer, role, 3 * MIB as u64).await;
        self.source_forgets().await;
        failed(&self.to.ended(&plan.transfer, role).await, Reason::PeerLost);
        self.is_kept();
        Plan {
            limit: None,
            ..plan
        }
    }

    fn is_kept(&self) {
        let entries = self.receiver.entries();
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert!(entries[0].starts_with(".checkpoint-1-"), "{entries:?}");
        assert!(self.receiver.meta("arriving/1.json").exists());
    }
}

/// Milliseconds since the Unix epoch.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_was_announced_comes_to_a_receiver_that_was_killed_since() {
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    for _ in 0..2 {
        pair.receiver_is_killed().await;
        pair.is_awaited(&plan);
    }
    pair.comes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_was_announced_comes_to_a_receiver_that_was_ended_since_and_has_not_failed_meanwhile()
{
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    pair.to.moved(&plan.transfer, Role::Receiver, 0).await;
    assert_eq!(pair.receiver.terminate(), Some(0));
    pair.is_awaited(&plan);
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.is_awaited(&plan);
    pair.comes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_that_is_told_to_send_while_the_receiver_is_away_waits_for_it() {
    let mut pair = Pair::new().await;
    // An address of its own, where nobody else listens meanwhile.
    let address = SocketAddr::from(([127, 65, 1, 1], 7441));
    pair.receiver.kill();
    pair.receiver.listen_at(address);
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    let plan = pair.announce().await;
    pair.receiver.kill();
    let request = pair.from.send_request(&plan, address);
    pair.from.send(request).await.unwrap();
    pair.source.logged("trying again");
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    succeeded(&pair.from.ended(&plan.transfer, Role::Source).await);
    succeeded(&pair.to.ended(&plan.transfer, Role::Receiver).await);
    assert_eq!(pair.source.digest(1), pair.receiver.digest(1));

    // Told that it need not, it waits no longer.
    pair.receiver.kill();
    pair.snapshot = pair.from.take("two").await;
    let plan = Plan::full(&pair.snapshot);
    let request = pair.from.send_request(&plan, address);
    pair.from.send(request).await.unwrap();
    assert!(pair.from.cancel(&plan.transfer).await);
    let ended = pair.from.ended(&plan.transfer, Role::Source).await;
    failed(&ended, Reason::Cancelled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_was_announced_is_awaited_again_when_the_pool_comes_after_the_agent() {
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    pair.receiver.kill();
    pair.receiver.unmount();
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.to.wait_pool(PoolState::NotMounted).await;
    assert_eq!(pair.told(&plan), None);
    pair.receiver.mount(&pair.pools[1]);
    pair.to.wait_pool(PoolState::Ready).await;
    pair.is_awaited(&plan);
    pair.comes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_that_comes_before_the_pool_is_let_in_when_that_is_there() {
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    pair.receiver.kill();
    pair.receiver.unmount();
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.to.wait_pool(PoolState::NotMounted).await;
    pair.send(&plan).await;
    pair.source.logged("\"sending\"");
    pair.receiver.mount(&pair.pools[1]);
    succeeded(&pair.from.ended(&plan.transfer, Role::Source).await);
    assert_eq!(pair.source.digest(1), pair.receiver.digest(1));

    // It does not wait for ever.
    let lazily = ["-l".into(), pair.receiver.pool().into_os_string()];
    support::run("umount", lazily);
    pair.to.wait_pool(PoolState::NotMounted).await;
    let plan = plan.again();
    pair.send(&plan).await;
    let ended = pair.from.ended(&plan.transfer, Role::Source).await;
    failed(&ended, Reason::PoolUnavailable);
    assert!(ended.transient);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_failed_because_the_pool_went_is_not_awaited_again_when_it_is_back() {
    let pair = Pair::new().await;
    let plan = pair.announce().await;
    // Whoever looks at the pool at this instant holds it.
    let lazily = ["-l".into(), pair.receiver.pool().into_os_string()];
    support::run("umount", lazily);
    pair.to.wait_pool(PoolState::NotMounted).await;
    let ended = pair.to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::PoolNotMounted);
    pair.receiver.mount(&pair.pools[1]);
    pair.to.wait_pool(PoolState::Ready).await;
    pair.nothing_is_recorded();
    pair.is_not_expected(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn who_comes_too_late_is_not_expected() {
    let mut pair = Pair::new().await;
    // While the agent runs.
    pair.receiver.kill();
    pair.receiver.start_with(&["--expect-seconds", "1"]);
    pair.to = pair.receiver.operator().await;
    let plan = pair.announce().await;
    let ended = pair.to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::TransferStalled);
    pair.nothing_is_recorded();
    pair.is_not_expected(&plan).await;

    // While it was away.
    pair.receiver_is_killed().await;
    let plan = pair.announce().await;
    pair.receiver.kill();
    pair.set_deadline(-1);
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    assert_eq!(pair.told(&plan), None);
    pair.nothing_is_recorded();
    pair.is_not_expected(&plan).await;

    // While it slept: the clock has gone on.
    let plan = pair.announce().await;
    pair.set_deadline(-1);
    pair.is_not_expected(&plan).await;
    pair.nothing_is_recorded();

    // What is no record is none.
    let plan = pair.announce().await;
    pair.receiver.kill();
    fs::write(pair.record(), "half a re").unwrap();
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.nothing_is_recorded();
    pair.is_not_expected(&plan).await;
    let plan = pair.announce().await;
    pair.comes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_clock_that_was_put_back_does_not_keep_it_for_ever() {
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    pair.receiver.kill();
    pair.set_deadline(24 * 3600);
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.is_awaited(&plan);
    let deadline = pair.deadline();
    assert!(deadline <= now() + 120_000);
    // It is counted from the first start on.
    pair.receiver_is_killed().await;
    assert_eq!(pair.deadline(), deadline);
    pair.comes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_has_ended_does_not_come_again() {
    let mut pair = Pair::new().await;

    // Cancelled. It is durable when the operator hears of it.
    let cancelled = pair.announce().await;
    assert!(pair.to.cancel(&cancelled.transfer).await);
    pair.receiver.kill();
    pair.nothing_is_recorded();
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.is_not_expected(&cancelled).await;

    // Failed before the first byte.
    let full = Plan::full(&pair.snapshot);
    let mut request = pair.to.expect_request(&full);
    request.min_free = pair.to.seen().pool.free - MIB as u64;
    pair.to.expect(request).await.unwrap();
    pair.send(&full).await;
    let ended = pair.from.ended(&full.transfer, Role::Source).await;
    failed(&ended, Reason::InsufficientSpace);
    pair.to.ended(&full.transfer, Role::Receiver).await;
    pair.nothing_is_recorded();

    // Failed midway: what had come is kept, for another.
    let midway = pair.is_interrupted().await;
    for _ in 0..2 {
        for ended in [&cancelled, &full, &midway] {
            pair.source_forgets().await;
            pair.is_not_expected(ended).await;
        }
        pair.is_kept();
        pair.receiver_is_killed().await;
    }

    // Finished.
    let finished = Plan::full(&pair.snapshot);
    assert!(pair.expect(&finished).await > 0);
    pair.comes(&finished).await;
    for _ in 0..2 {
        pair.source_forgets().await;
        pair.is_not_expected(&finished).await;
        pair.receiver_is_killed().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn of_a_number_that_is_announced_anew_the_last_counts_after_a_restart_too() {
    let mut pair = Pair::new().await;
    let first = pair.announce().await;
    let second = pair.announce().await;
    // Said twice, it is said once.
    pair.expect(&second).await;
    pair.receiver_is_killed().await;
    assert_eq!(pair.told(&first), None);
    pair.is_not_expected(&first).await;
    pair.comes(&second).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn another_snapshot_than_was_announced_is_refused_after_a_restart_too() {
    let mut pair = Pair::new().await;
    let two = pair.from.take("two").await;
    let plan = pair.announce().await;
    pair.receiver_is_killed().await;
    let other = Plan {
        snapshot: two,
        ..plan.clone()
    };
    pair.is_not_expected(&other).await;
    let ended = pair.to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::NotExpected);
    assert!(
        ended.message.contains("another snapshot"),
        "{}",
        ended.message
    );
    // It has come, if not as announced: that was it.
    pair.source_forgets().await;
    pair.is_not_expected(&plan).await;
    pair.nothing_is_recorded();
    assert!(pair.receiver.entries().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_had_come_before_is_gone_on_from_after_announcements_that_nobody_followed() {
    let mut pair = Pair::new().await;
    let interrupted = pair.is_interrupted().await;
    // One that is forgotten, ...
    let forgotten = interrupted.again();
    assert!(pair.expect(&forgotten).await > 0);
    pair.receiver.kill();
    pair.set_deadline(-1);
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    pair.is_kept();
    // ... one that is cancelled, ...
    let cancelled = interrupted.again();
    assert!(pair.expect(&cancelled).await > 0);
    pair.receiver_is_killed().await;
    assert!(pair.to.cancel(&cancelled.transfer).await);
    pair.is_kept();
    // ... and one that is followed.
    let plan = interrupted.again();
    let resume_at = pair.expect(&plan).await;
    assert!(resume_at > 0);
    pair.receiver_is_killed().await;
    pair.is_kept();
    let sent = pair.comes(&plan).await;
    assert!(
        sent.bytes_sent + resume_at < sent.bytes_done + MIB as u64,
        "from {resume_at}: {sent:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_deleted_is_not_awaited_any_more() {
    let mut pair = Pair::new().await;
    let plan = pair.announce().await;
    pair.receiver_is_killed().await;
    assert!(pair.to.delete_image().await.unwrap().is_empty());
    let ended = pair.to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::Cancelled);
    pair.nothing_is_recorded();
    let plan = pair.announce().await;
    pair.receiver_is_killed().await;
    let identity = &pair.snapshot.identity;
    assert!(!pair.to.delete(1, identity).await.unwrap());
    let ended = pair.to.ended(&plan.transfer, Role::Receiver).await;
    failed(&ended, Reason::Cancelled);
    pair.nothing_is_recorded();
    pair.receiver_is_killed().await;
    pair.is_not_expected(&plan).await;
}
