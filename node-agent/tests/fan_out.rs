//! One source and several receivers: what they all want is read once, and nobody waits for the
//! slowest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::future::join_all;
use icbd_wire::control::*;
use rustix::fs::Advice;
use support::operator::*;
use support::proxy::{Proxy, Weather};
use support::{Node, Pool, noise};

const MIB: usize = 1 << 20;

/// Three of them get the same at the same time; the first gets everything alone before.
const RECEIVERS: [&str; 4] = ["alone", "first", "second", "third"];

/// A source whose image has one large file, and its receivers.
struct Ground {
    source: Node,
    from: Operator,
    receivers: Vec<(Node, Operator)>,
    snapshot: SnapshotInfo,
    /// The source's is the first.
    pools: [Pool; 5],
}

impl Ground {
    async fn new(bytes: usize) -> Self {
        let pools: [_; 5] = std::array::from_fn(|_| Pool::new());
        let (source, from) = Node::ready("source", &pools[0]).await;
        source.make_live();
        source.write_live("disk.img", &noise(1, bytes));
        let snapshot = from.take("one").await;
        let mut receivers = Vec::new();
        for (name, pool) in RECEIVERS.into_iter().zip(&pools[1..]) {
            receivers.push(Node::ready(name, pool).await);
        }
        Self {
            source,
            from,
            receivers,
            snapshot,
            pools,
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            codec: Codec::None,
            ..Plan::full(&self.snapshot)
        }
    }

    /// Announces a transfer to each of these receivers, then has all of them sent at once, each to
    /// where it is to be reached.
    async fn begin(&self, to: &[(usize, SocketAddr)]) -> Vec<Plan> {
        let plans: Vec<_> = to.iter().map(|_| self.plan()).collect();
        for (plan, (receiver, _)) in plans.iter().zip(to) {
            let operator = &self.receivers[*receiver].1;
            let answer = operator
                .expect(operator.expect_request(plan))
                .await
                .unwrap();
            assert!(matches!(answer, expect_response::Answer::Accepted(_)));
        }
        let sends = plans.iter().zip(to).map(|(plan, (receiver, address))| {
            let mut request = self.from.send_request(plan, *address);
            request.receiver.as_mut().unwrap().node = RECEIVERS[*receiver].into();
            self.from.send(request)
        });
        for sent in join_all(sends).await {
            sent.unwrap();
        }
        plans
    }

    fn direct(&self, receivers: &[usize]) -> Vec<(usize, SocketAddr)> {
        let address = |receiver: &usize| (*receiver, self.receivers[*receiver].0.data());
        receivers.iter().map(address).collect()
    }

    /// Waits until the snapshot is at a receiver, equal.
    async fn arrives(&self, plan: &Plan, receiver: usize) -> Transfer {
        let (_, operator) = &self.receivers[receiver];
        let sent = self.from.ended(&plan.transfer, Role::Source).await;
        succeeded(&sent);
        succeeded(&operator.ended(&plan.transfer, Role::Receiver).await);
        sent
    }

    fn is_equal(&self, receiver: usize) {
        let node = &self.receivers[receiver].0;
        assert_eq!(node.digest(1), self.source.digest(1), "{}", node.name);
        assert_eq!(node.entries(), ["1"]);
    }

    /// Sends to these receivers at once, from a disk of which nothing is in memory.
    async fn run(&self, receivers: &[usize]) -> Cost {
        self.forget_content();
        let (from_disk, asked_for) = (self.read_from_disk(), self.asked_for());
        let begun = Instant::now();
        let plans = self.begin(&self.direct(receivers)).await;
        for (plan, receiver) in plans.iter().zip(receivers) {
            self.arrives(plan, *receiver).await;
        }
        Cost {
            took: begun.elapsed(),
            from_disk: self.read_from_disk() - from_disk,
            asked_for: self.asked_for() - asked_for,
        }
    }

    /// Has the kernel forget what it has in memory of the snapshot's content.
    fn forget_content(&self) {
        let file = File::open(self.source.image().join("1/disk.img")).unwrap();
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }

    /// The loop device that the source's pool stands on.
    fn disk(&self) -> String {
        let at = self.pools[0].path();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        let disk = mounts.find_map(|mut fields| {
            let (disk, place) = (fields.next()?, fields.next()?);
            (place == at.to_str()?).then_some(disk)
        });
        disk.unwrap().trim_start_matches("/dev/").to_owned()
    }

    /// Bytes read from the source's disk so far.
    fn read_from_disk(&self) -> u64 {
        let stat = fs::read_to_string(format!("/sys/block/{}/stat", self.disk())).unwrap();
        let sectors: u64 = stat.split_whitespace().nth(2).unwrap().parse().unwrap();
        sectors * 512
    }

    /// Bytes that the source has read so far, be it from disk or from the kernel's memory.
    fn asked_for(&self) -> u64 {
        let process = self.source.process();
        let io = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: "));
        read.unwrap().parse().unwrap()
    }
}

/// What a run has cost the source.
#[derive(Debug)]
struct Cost {
    took: Duration,
    from_disk: u64,
    /// The kernel may have had some of it in memory since another read of the same.
    asked_for: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_three_receivers_get_at_once_is_read_once() {
    let ground = Ground::new(128 * MIB).await;
    let alone = ground.run(&[0]).await;
    let together = ground.run(&[1, 2, 3]).await;
    println!("one receiver: {alone:?}, three at once: {together:?}");
    assert!(alone.from_disk >= 128 * MIB as u64);
    assert!(alone.asked_for >= 128 * MIB as u64);
    assert!(together.from_disk * 100 <= alone.from_disk * 105);
    assert!(together.asked_for * 100 <= alone.asked_for * 105);
    (0..4).for_each(|receiver| ground.is_equal(receiver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and btrfs"]
async fn a_slow_and_a_silent_receiver_keep_nobody_waiting_and_get_theirs_later() {
    let ground = Ground::new(128 * MIB).await;
    let mut to = ground.direct(&[1, 2, 3]);
    let lines = [Proxy::new(to[1].1).await, Proxy::new(to[2].1).await];
    (to[1].1, to[2].1) = (lines[0].address, lines[1].address);
    lines[0].set(Weather::Slow);
    let plans = ground.begin(&to).await;
    let silent = &ground.receivers[3].1;
    silent
        .moved(&plans[2].transfer, Role::Receiver, MIB as u64)
        .await;
    lines[1].set(Weather::Stall);
    ground.arrives(&plans[0], 1).await;
    for plan in &plans[1..] {
        let seen = ground.from.seen();
        let other = &seen.transfers[&(plan.transfer.clone(), Role::Source)];
        assert_eq!(other.state(), TransferState::Running, "{}", other.message);
    }
    lines[0].set(Weather::Fair);
    lines[1].set(Weather::Fair);
    ground.arrives(&plans[1], 2).await;
    ground.arrives(&plans[2], 3).await;
    ground
        .source
        .logged("others go on: reading the snapshot again");
    (1..4).for_each(|receiver| ground.is_equal(receiver));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and btrfs"]
async fn a_receiver_that_dies_takes_nobody_along_and_goes_on_later() {
    let mut ground = Ground::new(128 * MIB).await;
    let to = ground.direct(&[1, 2, 3]);
    let plans = ground.begin(&to).await;
    let dying = &ground.receivers[3].1;
    dying
        .moved(&plans[2].transfer, Role::Receiver, MIB as u64)
        .await;
    ground.receivers[3].0.kill();
    ground.arrives(&plans[0], 1).await;
    ground.arrives(&plans[1], 2).await;
    let lost = ground.from.ended(&plans[2].transfer, Role::Source).await;
    failed(&lost, Reason::PeerLost);
    let (node, operator) = &mut ground.receivers[3];
    node.start();
    *operator = node.operator().await;
    let later = ground.begin(&ground.direct(&[3])).await;
    ground.arrives(&later[0], 3).await;
    (1..4).for_each(|receiver| ground.is_equal(receiver));
}

/// What the processes in it read from a disk, they read no faster than a rate.
struct Throttle(PathBuf);

impl Throttle {
    /// `None` where the kernel has no such controller at hand.
    fn new(process: u32, disk: &str, bytes_per_second: usize) -> Option<Self> {
        let controller = PathBuf::from("/sys/fs/cgroup/blkio");
        if !controller.join("blkio.throttle.read_bps_device").exists() {
            return None;
        }
        let throttle = Self(controller.join(format!("icbd-fan-out-{process}")));
        fs::create_dir(&throttle.0).unwrap();
        let number = fs::read_to_string(format!("/sys/block/{disk}/dev")).unwrap();
        let rule = format!("{} {bytes_per_second}", number.trim());
        fs::write(throttle.0.join("blkio.throttle.read_bps_device"), rule).unwrap();
        fs::write(throttle.0.join("cgroup.procs"), process.to_string()).unwrap();
        Some(throttle)
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for process in processes.lines() {
            let _ = fs::write(self.0.with_file_name("cgroup.procs"), process);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn from_a_slow_disk_three_receivers_take_little_longer_than_one() {
    let ground = Ground::new(96 * MIB).await;
    let process = ground.source.process();
    let Some(_throttle) = Throttle::new(process, &ground.disk(), 16 * MIB) else {
        println!("SKIPPED: no cgroup v1 controller blkio to make a disk slow with");
        return;
    };
    let alone = ground.run(&[0]).await.took;
    let together = ground.run(&[1, 2, 3]).await.took;
    let ratio = together.as_secs_f64() / alone.as_secs_f64();
    println!("one receiver: {alone:?}, three at once: {together:?}, ratio {ratio:.2}");
    assert!(alone.as_secs_f64() > 4.0, "the disk is not slow: {alone:?}");
    assert!(ratio <= 1.3, "{ratio}");
    (0..4).for_each(|receiver| ground.is_equal(receiver));
}
