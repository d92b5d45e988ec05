//! Whoever is killed and whatever the network does, at whatever instant, and however often: the
//! replica ends equal to its source, little is sent twice, and nothing is left behind.
//!
//! `KILLS` says how often, `KILLS_SEED` repeats one run.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;

use icbd_wire::control::*;
use support::operator::*;
use support::proxy::{Proxy, Weather};
use support::{Node, Pool, noise};

const MIB: u64 = 1 << 20;

/// How much each snapshot changes, and how fast that goes.
const CHANGED: u64 = 24 * MIB;
const RATE: u64 = 12 * MIB;

/// A snapshot is interrupted so often on average before it may arrive.
const PER_SNAPSHOT: u64 = 4;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap())
}

#[derive(Clone, Copy, Debug)]
enum Interruption {
    SourceKilled,
    ReceiverKilled,
    Network(Weather),
}

const INTERRUPTIONS: [Interruption; 5] = [
    Interruption::SourceKilled,
    Interruption::ReceiverKilled,
    Interruption::Network(Weather::Cut),
    Interruption::Network(Weather::Stall),
    Interruption::Network(Weather::Corrupt),
];

/// Two agents that know each other by certificates, with a network between them.
struct Ground {
    mode: &'static str,
    source: Node,
    from: Operator,
    receiver: Node,
    to: Operator,
    proxy: Proxy,
    pools: [Pool; 2],
}

impl Ground {
    async fn new(mode: &'static str) -> Self {
        let pools = [Pool::new(), Pool::new()];
        let (mut source, mut receiver) = (Node::bare("source"), Node::bare("receiver"));
        source.mount(&pools[0]);
        receiver.mount(&pools[1]);
        let from = serve(&mut source, mode).await;
        let to = serve(&mut receiver, mode).await;
        from.init_pool().await;
        to.init_pool().await;
        source.make_live();
        Self {
            mode,
            proxy: Proxy::new(receiver.data()).await,
            source,
            from,
            receiver,
            to,
            pools,
        }
    }

    /// Begins an attempt; `false` if the snapshot is there already.
    async fn begin(&self, plan: &Plan) -> bool {
        let answer = self.to.expect(self.to.expect_request(plan)).await.unwrap();
        if matches!(answer, expect_response::Answer::AlreadyThere(_)) {
            return false;
        }
        let request = self.from.send_request(plan, self.proxy.address);
        self.from.send(request).await.unwrap();
        true
    }

    async fn interrupt(&mut self, what: Interruption, plan: &Plan) {
        match what {
            Interruption::SourceKilled => {
                self.source.kill();
                self.from = serve(&mut self.source, self.mode).await;
                self.to.ended(&plan.transfer, Role::Receiver).await;
            }
            Interruption::ReceiverKilled => {
                self.receiver.kill();
                self.to = serve(&mut self.receiver, self.mode).await;
                self.proxy.lead_to(self.receiver.data());
                self.from.ended(&plan.transfer, Role::Source).await;
            }
            Interruption::Network(weather) => {
                self.proxy.set(weather);
                self.from.ended(&plan.transfer, Role::Source).await;
                self.to.ended(&plan.transfer, Role::Receiver).await;
                // Connections that were broken or stalled end with the bad weather.
                self.proxy.set(Weather::Cut);
                self.proxy.set(Weather::Fair);
            }
        }
    }

    /// Waits until the attempt has moved so much, or has ended.
    async fn moved(&self, plan: &Plan, bytes: u64) {
        let key = (plan.transfer.clone(), Role::Receiver);
        let far = |seen: &Seen| {
            let transfer = seen.transfers.get(&key);
            transfer.is_some_and(|it| it.bytes_done >= bytes || it.ended_at != 0)
        };
        self.to.wait("bytes to move", far).await;
    }

    fn nothing_is_left(&self, numbers: u64) {
        let wanted: Vec<_> = (1..=numbers).map(|number| number.to_string()).collect();
        let mut entries = self.receiver.entries();
        entries.sort_by_key(|name| name.parse::<u64>().unwrap());
        assert_eq!(entries, wanted);
        let arriving = fs::read_dir(self.receiver.meta("arriving")).unwrap();
        assert_eq!(arriving.count(), 0);
    }
}

async fn serve(node: &mut Node, mode: &str) -> Operator {
    node.start_with(&[
        "--send-mode",
        mode,
        "--checkpoint-seconds",
        "1",
        "--stall-seconds",
        "2",
    ]);
    node.operator().await
}

async fn whatever_is_killed_the_replica_is_equal(mode: &'static str) {
    let seed = number("KILLS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let kills = number("KILLS").unwrap_or(16) / 2;
    println!("KILLS_SEED={seed}, {mode} mode, {kills} interruptions");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut ground = Ground::new(mode).await;
    let (mut done, mut raw) = (0, 0);
    let mut parent: Option<SnapshotInfo> = None;
    for round in 1.. {
        if done == kills {
            break;
        }
        ground
            .source
            .write_live("disk.img", &noise(random.u64(..), CHANGED as usize));
        ground
            .source
            .write_live("note", &noise(random.u64(..), 100));
        let snapshot = ground.from.take(&format!("round-{round}")).await;
        let plan = match &parent {
            None => Plan::full(&snapshot),
            Some(parent) => Plan::increment(&snapshot, parent),
        };
        let plan = Plan {
            codec: Codec::None,
            ..plan
        }
        .limited(RATE);
        for _ in 0..random.u64(..=2 * PER_SNAPSHOT).min(kills - done) {
            let plan = plan.again();
            if !ground.begin(&plan).await {
                break;
            }
            // Anywhere between the greeting and the end, from where an earlier attempt got.
            let at = random.u64(..=CHANGED + MIB);
            ground.moved(&plan, at).await;
            let what = random.choice(INTERRUPTIONS).unwrap();
            println!("{what:?} at {at}");
            ground.interrupt(what, &plan).await;
            done += 1;
            if ground.receiver.has(snapshot.number) {
                break;
            }
        }
        let last = plan.again();
        if ground.begin(&last).await {
            succeeded(&ground.from.ended(&last.transfer, Role::Source).await);
            succeeded(&ground.to.ended(&last.transfer, Role::Receiver).await);
        }
        let number = snapshot.number;
        assert_eq!(ground.source.digest(number), ground.receiver.digest(number));
        ground.nothing_is_left(number);
        raw += CHANGED;
        parent = Some(snapshot);
    }
    let again = ground.proxy.passed().saturating_sub(raw) / kills.max(1);
    println!("sent again for each interruption: {again} bytes of {CHANGED} on average");
    assert!(again < 2 * RATE, "{again} bytes were sent again on average");
    let Ground {
        mut source,
        mut receiver,
        pools: _pools,
        ..
    } = ground;
    for node in [&mut source, &mut receiver] {
        assert_eq!(node.terminate(), Some(0));
        node.unmount();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and btrfs"]
async fn whatever_is_killed_in_extents_mode_the_replica_is_equal() {
    whatever_is_killed_the_replica_is_equal("extents").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root and btrfs"]
async fn whatever_is_killed_in_stream_mode_the_replica_is_equal() {
    whatever_is_killed_the_replica_is_equal("stream").await;
}
