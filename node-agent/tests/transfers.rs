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

#[tokio::test]
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
        let wanted = if codec == Codec::Auto {
            Codec::Lz4
        } else {
            codec
        };
        assert_eq!((sent.codec(), received.codec()), (wanted, wanted));
        if parent.is_some() {
            assert!(
                sent.bytes_sent < 2 * MIB as u64,
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
