//! A bandwidth limit holds for what really passes between two agents, TLS included, whoever reads
//! the data and however many transfers share it.
//!
//! Measured for 30 s from the middle of a transfer. That too much passes is a failure at once; that
//! too little does may be a busy machine's doing, and is measured again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::time::{Duration, Instant};

use icbd_wire::control::*;
use support::Pool;
use support::operator::*;
use support::pair::Pair;
use support::proxy::Proxy;

const MIB: u64 = 1 << 20;

const RATE: u64 = 4 * MIB;
const MEASURED: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;

/// More than passes while it is measured.
const IMAGE: u64 = RATE * 40;

/// A pair, and a network between that counts.
async fn ground(mode: &str) -> (Pair, Proxy) {
    let pair = Pair::new(mode, [Pool::new(), Pool::new()]).await;
    let proxy = Proxy::new(pair.receiver.data()).await;
    pair.write_noise("disk.img", IMAGE);
    (pair, proxy)
}

/// What part of the rate passes while these are sent, and how much of each.
async fn measure(pair: &Pair, proxy: &Proxy, plans: &[Plan]) -> (f64, Vec<u64>) {
    for plan in plans {
        let answer = pair.to.expect(pair.to.expect_request(plan)).await.unwrap();
        assert!(matches!(answer, expect_response::Answer::Accepted(_)));
        let request = pair.from.send_request(plan, proxy.address);
        pair.from.send(request).await.unwrap();
    }
    for plan in plans {
        pair.to.moved(&plan.transfer, Role::Receiver, 2 * MIB).await;
    }
    let (begun, before) = (Instant::now(), proxy.passed());
    tokio::time::sleep(MEASURED).await;
    let (took, passed) = (begun.elapsed(), proxy.passed() - before);
    let seen = pair.from.seen();
    let sent = plans.iter().map(|plan| {
        let transfer = &seen.transfers[&(plan.transfer.clone(), Role::Source)];
        assert_eq!(transfer.ended_at, 0, "it ended while it was measured");
        transfer.bytes_sent
    });
    let sent = sent.collect();
    for plan in plans {
        pair.from.cancel(&plan.transfer).await;
        pair.ended(plan).await;
    }
    let share = passed as f64 / took.as_secs_f64() / RATE as f64;
    println!("{passed} bytes in {took:?}, {share:.4} of the limit; {sent:?}");
    assert!(share <= 1.05, "{share} of the limit");
    (share, sent)
}

/// Measures until the rate is reached.
async fn is_reached(pair: &Pair, proxy: &Proxy, plans: &[Plan]) -> Vec<u64> {
    for _ in 0..ATTEMPTS {
        let plans: Vec<_> = plans.iter().map(Plan::again).collect();
        let (share, sent) = measure(pair, proxy, &plans).await;
        if share >= 0.95 {
            return sent;
        }
    }
    panic!("the limit was never reached");
}

fn plan(snapshot: &SnapshotInfo) -> Plan {
    Plan {
        codec: Codec::None,
        ..Plan::full(snapshot).limited(RATE)
    }
}

async fn a_limit_is_what_passes(mode: &str) {
    let (pair, proxy) = ground(mode).await;
    let one = pair.from.take("one").await;
    is_reached(&pair, &proxy, &[plan(&one)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_limit_is_what_passes_in_both_modes() {
    tokio::join!(
        a_limit_is_what_passes("extents"),
        a_limit_is_what_passes("stream")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn two_transfers_to_one_target_share_its_limit_evenly() {
    let (pair, proxy) = ground("extents").await;
    let plans = [
        plan(&pair.from.take("one").await),
        plan(&pair.from.take("two").await),
    ];
    let sent = is_reached(&pair, &proxy, &plans).await;
    let (less, more) = (sent[0].min(sent[1]), sent[0].max(sent[1]));
    assert!(less * 3 >= more * 2, "{sent:?}");
}
