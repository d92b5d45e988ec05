//! The codec that an agent chooses itself, on a slow line and on none that is slow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::net::SocketAddr;

use futures::future::join_all;
use icbd_wire::control::*;
use support::operator::*;
use support::proxy::{Proxy, Weather};
use support::{Node, Pool, noise};

const MIB: usize = 1 << 20;

/// Content of which one of so many bytes is of no use, in each 4 KiB.
fn compressible(length: usize, one_of: usize) -> Vec<u8> {
    let mut content = noise(1, length);
    for block in content.chunks_mut(4096) {
        let count = block.len() / one_of;
        block[..count].fill(0);
    }
    content
}

/// Sends an image of this content over a line that may be slow; what the source says in the end.
async fn sent(content: &[u8], codec: Codec, weather: Weather) -> Transfer {
    let pools = (Pool::new(), Pool::new());
    let (source, from) = Node::ready("source", &pools.0).await;
    let (receiver, to) = Node::ready("receiver", &pools.1).await;
    source.make_live();
    source.write_live("disk.img", content);
    let snapshot = from.take("one").await;
    let plan = Plan {
        codec,
        ..Plan::full(&snapshot)
    };
    let line = Proxy::new(receiver.data()).await;
    line.set(weather);
    to.expect(to.expect_request(&plan)).await.unwrap();
    from.send(from.send_request(&plan, line.address))
        .await
        .unwrap();
    let story = from.story(&plan.transfer, Role::Source).await;
    let sent = story.last().unwrap().clone();
    succeeded(&sent);
    assert_eq!(source.digest(1), receiver.digest(1));
    println!(
        "{codec:?}, {weather:?}: {} of {}",
        sent.bytes_sent, sent.bytes_done
    );
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn on_a_slow_line_it_compresses() {
    let content = compressible(24 * MIB, 2);
    let auto = sent(&content, Codec::Auto, Weather::Slow).await;
    let none = sent(&content, Codec::None, Weather::Fair).await;
    assert!(none.bytes_sent >= none.bytes_done);
    assert!(matches!(auto.codec(), Codec::Lz4 | Codec::Zstd), "{auto:?}");
    // All of it would be half.
    assert!(auto.bytes_sent * 100 < none.bytes_sent * 65, "{auto:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_hardly_gets_smaller_goes_as_it_is() {
    // A codec would leave 95 % of it.
    let content = compressible(96 * MIB, 20);
    let lz4 = sent(&content, Codec::Lz4, Weather::Fair).await;
    let auto = sent(&content, Codec::Auto, Weather::Fair).await;
    assert!(lz4.bytes_sent * 100 < lz4.bytes_done * 97, "{lz4:?}");
    let saved = |it: &Transfer| it.bytes_done.saturating_sub(it.bytes_sent);
    assert!(saved(&auto) * 3 < saved(&lz4), "{auto:?}");
}

/// A source, and receivers that it sends to again and again.
struct Ground {
    source: Node,
    from: Operator,
    receivers: Vec<(Node, Operator)>,
    _pools: Vec<Pool>,
}

/// A receiver by its number, and where it is to be reached.
type To = (usize, SocketAddr);

impl Ground {
    async fn new(receivers: &[&'static str]) -> Self {
        let pools: Vec<_> = (0..=receivers.len()).map(|_| Pool::new()).collect();
        let (source, from) = Node::ready("source", &pools[0]).await;
        source.make_live();
        let mut nodes = Vec::new();
        for (name, pool) in receivers.iter().zip(&pools[1..]) {
            nodes.push(Node::ready(name, pool).await);
        }
        Self {
            source,
            from,
            receivers: nodes,
            _pools: pools,
        }
    }

    fn direct(&self, receiver: usize) -> To {
        (receiver, self.receivers[receiver].0.data())
    }

    /// Takes a snapshot with a file that has this content.
    async fn with(&self, name: &str, file: &str, content: &[u8]) -> SnapshotInfo {
        self.source.write_live(file, content);
        self.from.take(name).await
    }

    /// Sends to each of these receivers at the same time; what the source says of each in the end.
    async fn sent(&self, plan: impl Fn() -> Plan, to: &[To]) -> Vec<Transfer> {
        let plans: Vec<_> = to.iter().map(|_| plan()).collect();
        for (plan, (receiver, _)) in plans.iter().zip(to) {
            let operator = &self.receivers[*receiver].1;
            operator
                .expect(operator.expect_request(plan))
                .await
                .unwrap();
        }
        let sends = plans.iter().zip(to).map(|(plan, (receiver, address))| {
            let mut request = self.from.send_request(plan, *address);
            let node = &mut request.receiver.as_mut().unwrap().node;
            *node = self.receivers[*receiver].0.name.into();
            self.from.send(request)
        });
        join_all(sends).await.into_iter().for_each(Result::unwrap);
        let mut sent = Vec::new();
        for (plan, (receiver, _)) in plans.iter().zip(to) {
            let (node, operator) = &self.receivers[*receiver];
            let transfer = self.from.ended(&plan.transfer, Role::Source).await;
            succeeded(&transfer);
            succeeded(&operator.ended(&plan.transfer, Role::Receiver).await);
            let (wire, raw) = (transfer.bytes_sent, transfer.bytes_done);
            println!("{}: {wire} of {raw}", node.name);
            sent.push(transfer);
        }
        sent
    }

    /// Sends snapshots until one goes uncompressed from its first block on; the last of them. Both ends have
    /// to share the processors with whatever else runs, and at times it is the line that seems to be slow.
    async fn until_it_is_known_to_be_fast(&self, to: To) -> SnapshotInfo {
        let mut parent = self.with("first", "first", &[1]).await;
        self.sent(|| Plan::full(&parent), &[to]).await;
        for round in 0..20 {
            // Long enough to tell, and no codec has to be given up first.
            let (long, content) = (format!("long-{round}"), noise(round, 40 * MIB));
            let long = self.with(&long, "long", &content).await;
            self.sent(|| Plan::increment(&long, &parent), &[to]).await;
            let (short, content) = (format!("short-{round}"), compressible(SHORT, 2));
            let short = self.with(&short, "short", &content).await;
            let sent = self.sent(|| Plan::increment(&short, &long), &[to]).await;
            if share(&sent[0]) >= 100 {
                return short;
            }
            parent = short;
        }
        panic!("it never goes uncompressed");
    }
}

/// So much goes as a transfer begins, to its end: nothing tells yet what the line is like.
const SHORT: usize = 12 * MIB;

/// How much of it went over the line, in per cent.
fn share(transfer: &Transfer) -> u64 {
    transfer.bytes_sent * 100 / transfer.bytes_done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_transfer_begins_with_what_the_last_one_saw_of_the_line() {
    let ground = Ground::new(&["receiver"]).await;
    let line = Proxy::new(ground.direct(0).1).await;
    let slow = (0, line.address);
    line.set(Weather::Slow);
    let fast = ground.until_it_is_known_to_be_fast(ground.direct(0)).await;
    let next = ground
        .with("next", "next", &compressible(32 * MIB, 2))
        .await;
    let sent = ground.sent(|| Plan::increment(&next, &fast), &[slow]).await;
    assert!(share(&sent[0]) < 95, "slow now: {sent:?}");
    let last = ground.with("last", "last", &compressible(SHORT, 2)).await;
    let sent = ground.sent(|| Plan::increment(&last, &next), &[slow]).await;
    assert!(share(&sent[0]) < 60, "slow before: {sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_several_get_at_once_begins_with_what_holds_for_all_lines() {
    let ground = Ground::new(&["known", "new"]).await;
    let (known, new) = (ground.direct(0), ground.direct(1));
    let content = compressible(64 * MIB, 2);
    ground.source.write_live("disk.img", &content);
    ground.until_it_is_known_to_be_fast(known).await;
    // The line to the new one may be slow, and what both get is made once.
    let next = ground.with("next", "next", &[1]).await;
    let sent = ground.sent(|| Plan::full(&next), &[known, new]).await;
    assert!(share(&sent[0]).abs_diff(share(&sent[1])) <= 1, "{sent:?}");
    assert!(share(&sent[0]) < 97, "{sent:?}");
}
