//! What is sparse at the source is sparse at the replica: each file takes as much room, after full
//! and incremental transfers, whoever reads the data.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

use icbd_wire::control::SnapshotInfo;
use rustix::fs::FallocateFlags;
use support::operator::*;
use support::pair::Pair;
use support::{Pool, noise};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A file of `live`.
struct Image(File);

impl Image {
    fn write(&self, at: u64, bytes: u64) {
        let content = noise(at ^ bytes, bytes as usize);
        self.0.write_all_at(&content, at).unwrap();
    }

    fn punch(&self, hole: Range<u64>) {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.0, punch, hole.start, hole.end - hole.start).unwrap();
    }

    fn resize(&self, bytes: u64) {
        self.0.set_len(bytes).unwrap();
    }
}

/// A pair, and what is replicated of its image.
struct Ground {
    pair: Pair,
    last: Option<SnapshotInfo>,
}

impl Ground {
    /// The file of that name, empty if it is new.
    fn image(&self, name: &str) -> Image {
        let path = self.pair.source.image().join("live").join(name);
        let mut options = File::options();
        let file = options.write(true).create(true).truncate(false).open(path);
        Image(file.unwrap())
    }

    /// Takes a snapshot and replicates it: each of its files takes as much room at both ends.
    async fn arrives_as_sparse(&mut self, name: &str) {
        let snapshot = self.pair.from.take(name).await;
        let plan = match &self.last {
            None => Plan::full(&snapshot),
            Some(parent) => Plan::increment(&snapshot, parent),
        };
        self.pair.replicated(&plan).await;
        let number = snapshot.number.to_string();
        let [at_source, at_replica] =
            [&self.pair.source, &self.pair.receiver].map(|node| node.image().join(&number));
        for entry in fs::read_dir(&at_source).unwrap() {
            let file = entry.unwrap().file_name();
            let look = |snapshot: &std::path::Path| fs::metadata(snapshot.join(&file)).unwrap();
            let (source, replica) = (look(&at_source), look(&at_replica));
            let (wanted, found) = (source.blocks() * 512, replica.blocks() * 512);
            println!(
                "{name}: {file:?} of {} takes {wanted} and {found}",
                source.len()
            );
            assert_eq!(replica.len(), source.len(), "{name}: {file:?}");
            assert!(
                wanted.abs_diff(found) * 100 <= wanted,
                "{name}: {file:?} takes {wanted} bytes at the source and {found} at the replica"
            );
        }
        self.last = Some(snapshot);
    }
}

async fn what_is_sparse_stays_so(mode: &str) {
    let pair = Pair::new(mode, [Pool::new(), Pool::new()]).await;
    let mut ground = Ground { pair, last: None };

    let nothing = ground.image("nothing.img");
    nothing.resize(512 * MIB);
    let little = ground.image("little.img");
    little.resize(768 * MIB);
    (0..48).for_each(|part| little.write(part * 16 * MIB, 64 * KIB));
    let solid = ground.image("solid.img");
    solid.write(0, 24 * MIB);
    let punched = ground.image("punched.img");
    punched.write(0, 16 * MIB);
    punched.punch(4 * MIB..12 * MIB);
    // Not on the borders of blocks.
    punched.punch(1_000_001..2_000_003);
    let comb = ground.image("comb.img");
    (0..512).for_each(|tooth| comb.write(tooth * 16 * KIB, 4 * KIB));
    let vast = ground.image("vast.img");
    vast.resize(11 * GIB + 5);
    for at in [0, 3, 6, 10] {
        vast.write(at * GIB, MIB);
    }
    let grown = ground.image("grown.img");
    grown.write(0, 4 * MIB + 100);
    ground.arrives_as_sparse("full").await;

    nothing.write(200 * MIB, 8 * KIB);
    // Every second part goes, and some others come.
    (0..24).for_each(|part| little.punch(part * 32 * MIB..part * 32 * MIB + MIB));
    (0..8).for_each(|part| little.write(part * 96 * MIB + 8 * MIB, 128 * KIB));
    solid.punch(8 * MIB..20 * MIB + 777);
    punched.write(6 * MIB, 64 * KIB);
    (0..256).for_each(|tooth| comb.punch(tooth * 32 * KIB..tooth * 32 * KIB + 4 * KIB));
    // The parent has data in the middle of it.
    vast.punch(MIB..9 * GIB);
    grown.resize(600 * MIB);
    ground.arrives_as_sparse("punched and grown").await;

    nothing.punch(0..512 * MIB);
    little.resize(400 * MIB);
    little.resize(900 * MIB);
    solid.write(12 * MIB, MIB);
    solid.punch(0..4 * MIB);
    vast.punch(0..11 * GIB);
    vast.write(5 * GIB, MIB);
    grown.write(599 * MIB, 2 * MIB);
    grown.punch(0..2 * MIB);
    ground.arrives_as_sparse("cut and refilled").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_sparse_stays_so_in_extents_mode() {
    what_is_sparse_stays_so("extents").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn what_is_sparse_stays_so_in_stream_mode() {
    what_is_sparse_stays_so("stream").await;
}
