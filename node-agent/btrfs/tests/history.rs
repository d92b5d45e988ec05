//! Random file-system histories, replicated snapshot by snapshot: whatever happened to a tree, its
//! replica is equal, and so is a replica's replica, however the snapshots travel. `btrfs receive` gets
//! the same streams; where only it differs, that is printed, for it is known to misapply some.
//!
//! `HISTORY_SEED` repeats one history; `HISTORIES` says how many there shall be.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]
// Seeds are for whoever reads the output.
#![allow(clippy::print_stdout)]

mod random_history;
mod receive_pair;
mod support;

use std::io::Read;

use icbd_btrfs::{SendRequest, Subvolume, digest};
use random_history::History;
use receive_pair::Mode::{Extents, StoredExtents, StoredStream, Stream, Whole};
use receive_pair::{btrfs_receive, remove, replicate_by};
use support::Pool;

const SNAPSHOTS: usize = 5;
const CHANGES: usize = 40;

struct Pools {
    source: Pool,
    replica: Pool,
    /// Receives from the replica.
    second: Pool,
    /// Both as these, but in extents mode.
    extents: Pool,
    extents_second: Pool,
    /// And with compressed extents as they are stored.
    stored: Pool,
    stored_second: Pool,
    /// `btrfs receive`.
    witness: Pool,
}

#[test]
#[ignore = "needs root and btrfs"]
fn whatever_happened_the_replica_is_equal() {
    let pools = Pools {
        source: Pool::new(),
        replica: Pool::new(),
        second: Pool::new(),
        extents: Pool::new(),
        extents_second: Pool::new(),
        stored: Pool::new(),
        stored_second: Pool::new(),
        witness: Pool::new(),
    };
    if let Some(seed) = number("HISTORY_SEED") {
        return replay(&pools, seed);
    }
    for _ in 0..number("HISTORIES").unwrap_or(30) {
        replay(&pools, fastrand::u64(..1 << 32));
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|value| value.parse().unwrap())
}

fn replay(pools: &Pools, seed: u64) {
    println!("HISTORY_SEED={seed}");
    let options = [
        "datasum,compress=no",
        "datasum,compress-force=zstd",
        "compress=no,nodatasum",
    ];
    pools.source.remount(options[seed as usize % options.len()]);
    let mut history = History::new(&pools.source, seed);
    let mut witness_agrees = true;
    for number in 1..=SNAPSHOTS {
        for _ in 0..CHANGES {
            history.change();
        }
        let name = number.to_string();
        let source = history.take(&name);
        let before = (number > 1).then(|| (number - 1).to_string());
        for (mode, from, to) in [
            (Whole, &pools.source, &pools.replica),
            (Stream, &pools.replica, &pools.second),
            (Extents, &pools.source, &pools.extents),
            (Extents, &pools.extents, &pools.extents_second),
            (StoredExtents, &pools.source, &pools.stored),
            (StoredStream, &pools.stored, &pools.stored_second),
        ] {
            replicate_by(mode, (from, &name), before.as_deref(), (to, &name));
        }

        witness_agrees = witness_agrees && {
            let stream = stream(&pools.source, &source, before.as_deref());
            let outcome = btrfs_receive(&pools.witness, &stream);
            let agrees = outcome.is_ok() && {
                let received = Subvolume::open(pools.witness.dir(), &name).unwrap();
                digest(&received).unwrap() == digest(&source).unwrap()
            };
            if !agrees {
                println!("btrfs receive differs: seed {seed}, snapshot {name}: {outcome:?}");
            }
            agrees
        };
    }
    // The last one once more, in full, and as one large increment; from a replica too, where inode
    // numbers came about in another way.
    let last = SNAPSHOTS.to_string();
    for parent in [None, Some("1")] {
        for (mode, from) in [
            (Stream, &pools.source),
            (Extents, &pools.source),
            (Extents, &pools.replica),
            (StoredExtents, &pools.stored),
            (StoredStream, &pools.stored),
        ] {
            replicate_by(mode, (from, &last), parent, (&pools.second, "again"));
            remove(&pools.second, "again");
        }
    }
    let Pools {
        source,
        replica,
        second,
        extents,
        extents_second,
        stored,
        stored_second,
        witness,
    } = pools;
    for pool in [
        source,
        replica,
        second,
        extents,
        extents_second,
        stored,
        stored_second,
        witness,
    ] {
        for name in receive_pair::names(pool) {
            remove(pool, &name);
        }
    }
}

fn stream(pool: &Pool, source: &Subvolume, parent: Option<&str>) -> Vec<u8> {
    let parent = parent.map(|parent| Subvolume::open(pool.dir(), parent).unwrap());
    let request = SendRequest {
        source,
        parent: parent.as_ref(),
        clone_sources: &[],
    };
    let mut bytes = Vec::new();
    request.start().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}
