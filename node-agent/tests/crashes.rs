//! Agents that die, end, lose each other or talk to strangers: nothing half-made is ever visible,
//! and the next attempt succeeds.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::io::Write;
use std::net::TcpStream;

use icbd_net::{Name, TlsStream, tls};
use icbd_wire::control::*;
use icbd_wire::data;
use support::authority::{TRUST_DOMAIN, USUAL};
use support::operator::*;
use support::{Node, Pool, noise};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: usize = 1 << 20;

/// Two nodes, and a snapshot that takes some seconds to send.
struct Pair {
    source: Node,
    from: Operator,
    receiver: Node,
    to: Operator,
    snapshot: SnapshotInfo,
    pools: (Pool, Pool),
}

impl Pair {
    async fn new() -> Self {
        let pools = (Pool::new(), Pool::new());
        let (source, from) = Node::ready("source", &pools.0).await;
        let (receiver, to) = Node::ready("receiver", &pools.1).await;
        source.make_live();
        source.write_live("disk.img", &noise(1, 64 * MIB));
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

    /// Starts a slow transfer and waits until it is well under way.
    async fn midway(&self) -> Plan {
        let plan = Plan::full(&self.snapshot).limited(8 * MIB as u64);
        start(&plan, &self.from, &self.to, &self.receiver).await;
        self.to
            .moved(&plan.transfer, Role::Receiver, 3 * MIB as u64)
            .await;
        let entries = self.receiver.entries();
        assert!(entries.contains(&".partial-1".to_owned()), "{entries:?}");
        assert!(!self.receiver.has(1));
        plan
    }

    /// What an interrupted attempt has left: a checkpoint, and nothing half-made.
    fn is_kept(&self) {
        let entries = self.receiver.entries();
        assert_eq!(entries.len(), 1, "{entries:?}");
        assert!(entries[0].starts_with(".checkpoint-1-"), "{entries:?}");
    }

    /// The next attempt succeeds without what had come before, and leaves nothing but the snapshot.
    async fn resumes(&self, before: u64) {
        let plan = Plan::full(&self.snapshot);
        let request = self.to.expect_request(&plan);
        let answer = self.to.expect(request).await.unwrap();
        let expect_response::Answer::Accepted(accepted) = answer else {
            panic!("{answer:?}")
        };
        assert!(accepted.resume_at >= before, "{accepted:?}");
        self.from
            .send(self.from.send_request(&plan, self.receiver.data()))
            .await
            .unwrap();
        let sent = self.from.ended(&plan.transfer, Role::Source).await;
        succeeded(&sent);
        succeeded(&self.to.ended(&plan.transfer, Role::Receiver).await);
        assert!(
            sent.bytes_sent + accepted.resume_at < sent.bytes_done + MIB as u64,
            "{sent:?}"
        );
        self.is_there();
    }

    /// A fresh attempt succeeds, and leaves nothing but the snapshot.
    async fn recovers(&self) {
        let plan = Plan::full(&self.snapshot);
        let (sent, received) = transfer(&plan, &self.from, &self.to, &self.receiver).await;
        succeeded(&sent);
        succeeded(&received);
        self.is_there();
    }

    fn is_there(&self) {
        assert_eq!(self.source.digest(1), self.receiver.digest(1));
        assert_eq!(self.receiver.entries(), ["1"]);
        assert_eq!(
            fs::read_dir(self.receiver.meta("arriving"))
                .unwrap()
                .count(),
            0
        );
        assert!(self.receiver.meta("snapshots/1.json").exists());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_killed_midway_leaves_nothing_half_made_and_what_came_is_kept() {
    let mut pair = Pair::new().await;
    let plan = pair.midway().await;
    pair.from = pair.source.restart().await;
    failed(
        &pair.to.ended(&plan.transfer, Role::Receiver).await,
        Reason::PeerLost,
    );
    pair.is_kept();
    pair.resumes(3 * MIB as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_receiver_killed_midway_goes_on_from_its_last_checkpoint() {
    let mut pair = Pair::new().await;
    pair.receiver.kill();
    pair.receiver.start_with(&["--checkpoint-seconds", "1"]);
    pair.to = pair.receiver.operator().await;
    let plan = Plan::full(&pair.snapshot).limited(8 * MIB as u64);
    start(&plan, &pair.from, &pair.to, &pair.receiver).await;
    pair.to
        .moved(&plan.transfer, Role::Receiver, 24 * MIB as u64)
        .await;
    pair.to = pair.receiver.restart().await;
    pair.from.ended(&plan.transfer, Role::Source).await;
    pair.resumes(8 * MIB as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_checkpoint_that_another_parent_or_hand_has_made_useless_is_not_gone_on_from() {
    let mut pair = Pair::new().await;
    let plan = pair.midway().await;
    pair.from = pair.source.restart().await;
    pair.to.ended(&plan.transfer, Role::Receiver).await;
    let record = pair.receiver.meta("arriving/1.json");
    let mut arrival: serde_json::Value =
        serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    // The source cannot make a stream with this hash: it says so, and the next attempt starts anew.
    arrival["checkpoint"]["chain"][0] = 0.into();
    arrival["checkpoint"]["chain"][1] = 0.into();
    fs::write(&record, arrival.to_string()).unwrap();
    let plan = Plan::full(&pair.snapshot);
    let (sent, received) = transfer(&plan, &pair.from, &pair.to, &pair.receiver).await;
    failed(&sent, Reason::SourceChanged);
    failed(&received, Reason::SourceChanged);
    assert!(sent.transient && received.transient);
    assert!(pair.receiver.entries().is_empty());
    pair.recovers().await;
}

/// Says that a record of the receiver was written so many days ago.
fn date(pair: &Pair, record: &str, days_ago: f64) {
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    let at = match days_ago >= 0.0 {
        true => now - day.mul_f64(days_ago),
        false => now + day.mul_f64(-days_ago),
    };
    let record = fs::File::open(pair.receiver.meta(record)).unwrap();
    record.set_modified(at).unwrap();
}

/// Restarts the receiver's agent, which then looks at its records for what is old; waits until it has.
async fn looks(pair: &mut Pair) {
    let other = pair.receiver.meta("arriving/2.json");
    fs::copy(pair.receiver.meta("arriving/1.json"), &other).unwrap();
    // As if the clock had been put back since.
    date(pair, "arriving/2.json", -1.0);
    pair.to = pair.receiver.restart().await;
    eventually("a look", || {
        let written = fs::metadata(&other).unwrap().modified();
        written.unwrap() <= std::time::SystemTime::now()
    })
    .await;
    // It works on the image until it has looked at all of them.
    let request = InventoryRequest {
        image: Some(image()),
    };
    pair.to.client.inventory(request).await.unwrap();
    fs::remove_file(other).unwrap();
}

async fn eventually(what: &str, done: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < support::SOON, "waiting for {what}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_checkpoint_that_nothing_goes_on_from_expires() {
    let mut pair = Pair::new().await;
    let plan = pair.midway().await;
    pair.from = pair.source.restart().await;
    pair.to.ended(&plan.transfer, Role::Receiver).await;
    pair.is_kept();
    // A week has not passed.
    date(&pair, "arriving/1.json", 6.9);
    looks(&mut pair).await;
    pair.is_kept();
    // An attempt has been announced: it is awaited by the next agent as well.
    let plan = Plan::full(&pair.snapshot);
    pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
    date(&pair, "arriving/1.json", 7.1);
    looks(&mut pair).await;
    pair.is_kept();
    // Nobody awaits one any more.
    assert!(pair.to.cancel(&plan.transfer).await);
    looks(&mut pair).await;
    assert!(pair.receiver.entries().is_empty());
    assert!(!pair.receiver.meta("arriving/1.json").exists());
    pair.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_receiver_killed_midway_cleans_up_when_it_is_back() {
    let mut pair = Pair::new().await;
    let plan = pair.midway().await;
    pair.to = pair.receiver.restart().await;
    failed(
        &pair.from.ended(&plan.transfer, Role::Source).await,
        Reason::PeerLost,
    );
    pair.to
        .wait("a clean pool", |seen| {
            seen.images
                .get(support::IMAGE)
                .is_some_and(|image| image.partials.is_empty())
        })
        .await;
    assert!(!pair.receiver.has(1));
    pair.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_snapshot_that_was_whole_when_the_receiver_died_gets_its_record() {
    let mut pair = Pair::new().await;
    pair.recovers().await;
    // The agent died after the snapshot had appeared and before its record was durable.
    let record = fs::read(pair.receiver.meta("snapshots/1.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let arrival = serde_json::json!({
        "transfer": uuid::Uuid::new_v4(), "identity": pair.snapshot.identity, "record": record,
    });
    fs::write(pair.receiver.meta("arriving/1.json"), arrival.to_string()).unwrap();
    fs::remove_file(pair.receiver.meta("snapshots/1.json")).unwrap();
    pair.to = pair.receiver.restart().await;
    let named = |seen: &Seen| {
        let image = seen.images.get(support::IMAGE);
        image.is_some_and(|image| image.snapshots.iter().any(|it| it.record.is_some()))
    };
    pair.to.wait("the record", named).await;
    assert_eq!(
        fs::read_dir(pair.receiver.meta("arriving"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn an_agent_asked_to_end_tells_why_and_keeps_what_came() {
    let mut pair = Pair::new().await;
    let plan = pair.midway().await;
    assert_eq!(pair.receiver.terminate(), Some(0));
    failed(
        &pair.from.ended(&plan.transfer, Role::Source).await,
        Reason::ShuttingDown,
    );
    pair.is_kept();
    pair.receiver.start();
    pair.to = pair.receiver.operator().await;
    let plan = Plan::full(&pair.snapshot).limited(8 * MIB as u64);
    start(&plan, &pair.from, &pair.to, &pair.receiver).await;
    pair.to
        .moved(&plan.transfer, Role::Receiver, 8 * MIB as u64)
        .await;
    assert_eq!(pair.source.terminate(), Some(0));
    failed(
        &pair.to.ended(&plan.transfer, Role::Receiver).await,
        Reason::ShuttingDown,
    );
    pair.source.start();
    pair.from = pair.source.operator().await;
    pair.is_kept();
    pair.resumes(6 * MIB as u64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_transfer_without_progress_is_stalled() {
    let mut pair = Pair::new().await;
    pair.receiver.kill();
    pair.receiver.start_with(&["--stall-seconds", "1"]);
    pair.to = pair.receiver.operator().await;
    let plan = Plan::full(&pair.snapshot);
    pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
    let _silent = greet(&pair, &plan).await;
    failed(
        &pair.to.ended(&plan.transfer, Role::Receiver).await,
        Reason::TransferStalled,
    );
    assert!(pair.receiver.entries().is_empty());
    pair.recovers().await;
}

/// Connects as the source of an announced transfer, and is welcome.
async fn greet(pair: &Pair, plan: &Plan) -> TlsStream {
    let tcp = tokio::net::TcpStream::connect(pair.receiver.data()).await;
    let [source, receiver] = ["source", "receiver"].map(|node| Name::agent(TRUST_DOMAIN, node));
    let credentials = USUAL.credentials(&source);
    let stream = tls::connect(tcp.unwrap(), &credentials, &receiver, data::ALPN).await;
    let mut stream = stream.unwrap();
    let (namespace, image) = support::IMAGE.split_once('/').unwrap();
    let hello = data::Hello {
        versions: data::VersionRange::OURS,
        transfer: plan.transfer.parse().unwrap(),
        namespace: namespace.parse().unwrap(),
        image: image.parse().unwrap(),
        snapshot: plan.snapshot.number.try_into().unwrap(),
        content: plan.snapshot.identity.parse().unwrap(),
        parent: None,
        mode: data::Mode::Stream,
        codecs: data::CodecSet::ALL,
        expected_raw: None,
    };
    let mut message = Vec::new();
    hello.encode(&mut message);
    send(&mut stream, &message).await;
    let mut preface = [0; data::PREFACE_LEN];
    stream.read_exact(&mut preface).await.unwrap();
    let preface = data::Preface::decode(&preface).unwrap();
    let mut body = vec![0; preface.body_len.into()];
    stream.read_exact(&mut body).await.unwrap();
    let answer = data::Answer::decode(preface, &body).unwrap();
    assert!(matches!(answer, data::Answer::Welcome(_)), "{answer:?}");
    stream
}

async fn send(stream: &mut TlsStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_source_that_lies_is_refused_and_leaves_nothing() {
    let pair = Pair::new().await;
    let block = noise(9, MIB);
    let sealed = |raw: &[u8]| {
        let mut frame = Vec::new();
        let mut compressor = data::Compressor::new();
        data::Frame::Data(compressor.seal(data::Codec::Lz4, raw).unwrap()).encode(&mut frame);
        frame
    };
    let mut altered = sealed(&block);
    *altered.last_mut().unwrap() ^= 1;
    let mut early_end = Vec::new();
    let end = data::End {
        position: data::Position::START,
    };
    data::Frame::End(end).encode(&mut early_end);
    let cases = [
        (
            "a block that its hash does not match",
            altered,
            Reason::HashMismatch,
        ),
        (
            "a block that is no send stream",
            sealed(&block),
            Reason::StreamInvalid,
        ),
        ("no stream at all", early_end, Reason::StreamInvalid),
        (
            "no frame",
            b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n".to_vec(),
            Reason::StreamInvalid,
        ),
        (
            "a frame of four GiB",
            [vec![1, 0, 0, 0], vec![0xff; 8]].concat(),
            Reason::StreamInvalid,
        ),
    ];
    for (case, bytes, reason) in cases {
        println!("{case}");
        let plan = Plan::full(&pair.snapshot);
        pair.to.expect(pair.to.expect_request(&plan)).await.unwrap();
        let mut stream = greet(&pair, &plan).await;
        send(&mut stream, &bytes).await;
        failed(&pair.to.ended(&plan.transfer, Role::Receiver).await, reason);
        assert!(
            pair.receiver.entries().is_empty(),
            "{case}: {:?}",
            pair.receiver.entries()
        );
    }
    pair.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn garbage_on_the_ports_is_refused_and_costs_no_memory() {
    let mut pair = Pair::new().await;
    let before = pair.receiver.memory();
    let garbage = noise(5, 64 << 10);
    let mut held = Vec::new();
    for round in 0..300 {
        for port in [pair.receiver.data(), pair.receiver.control()] {
            let mut stream = TcpStream::connect(port).unwrap();
            // It may be refused before all of it is written.
            let _ = match round % 3 {
                0 => stream.write_all(&garbage),
                1 => stream.write_all(b"\x89ICBD\x01\xff\x0f half a handshake"),
                _ => {
                    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n garbage after the preface")
                }
            };
            if round % 10 == 0 {
                held.push(stream);
            }
        }
    }
    pair.receiver.logged("NotTls");
    assert!(pair.receiver.lives());
    let grown = pair.receiver.memory().saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    let metrics = pair.receiver.health("/metrics").1;
    for port in ["data", "control"] {
        let counted =
            format!("icbd_refused_connections_total{{port=\"{port}\",reason=\"NotTls\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
    drop(held);
    pair.recovers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_transfer_that_nobody_announced_is_refused() {
    let pair = Pair::new().await;
    let plan = Plan::full(&pair.snapshot);
    pair.from
        .send(pair.from.send_request(&plan, pair.receiver.data()))
        .await
        .unwrap();
    failed(
        &pair.from.ended(&plan.transfer, Role::Source).await,
        Reason::NotExpected,
    );
    // One that was announced as something else is refused as well, and only once expected.
    let mut announced = pair.to.expect_request(&plan.again());
    announced.transfer = Plan::full(&pair.snapshot).transfer;
    announced.number = 9;
    let transfer = announced.transfer.clone();
    pair.to.expect(announced).await.unwrap();
    let other = Plan { transfer, ..plan };
    pair.from
        .send(pair.from.send_request(&other, pair.receiver.data()))
        .await
        .unwrap();
    failed(
        &pair.from.ended(&other.transfer, Role::Source).await,
        Reason::NotExpected,
    );
    failed(
        &pair.to.ended(&other.transfer, Role::Receiver).await,
        Reason::NotExpected,
    );
    assert!(pair.receiver.entries().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn memory_stays_flat_while_a_large_snapshot_moves() {
    let pair = Pair::new().await;
    let part = noise(2, 32 * MIB);
    for number in 0..16 {
        pair.source.write_live(&format!("disk-{number}.img"), &part);
    }
    let snapshot = pair.from.take("large").await;
    let plan = Plan::full(&snapshot);
    start(&plan, &pair.from, &pair.to, &pair.receiver).await;
    let mut most = 0;
    for part in 1..8_u64 {
        pair.to
            .moved(&plan.transfer, Role::Receiver, part * 64 * MIB as u64)
            .await;
        most = most.max(pair.source.memory()).max(pair.receiver.memory());
    }
    succeeded(&pair.to.ended(&plan.transfer, Role::Receiver).await);
    assert!(most < 64 << 20, "{most} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_pool_that_goes_while_a_snapshot_arrives_ends_the_transfer() {
    let pair = Pair::new().await;
    let plan = pair.midway().await;
    let pool = pair.receiver.pool();
    support::run("umount", ["-l".as_ref(), pool.as_os_str()]);
    failed(
        &pair.to.ended(&plan.transfer, Role::Receiver).await,
        Reason::PoolNotMounted,
    );
    failed(
        &pair.from.ended(&plan.transfer, Role::Source).await,
        Reason::PoolUnavailable,
    );
    pair.receiver.mount(&pair.pools.1);
    pair.to.wait_pool(PoolState::Ready).await;
    pair.recovers().await;
}
