//! Streams that come in blocks, and checkpoints between two of them: whoever goes on from one ends
//! with the same tree as who never stopped.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

mod receive_pair;
mod support;

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use icbd_btrfs::receive::{Arriving, Base, Checkpoint, Receiver};
use icbd_btrfs::{SendRequest, Subvolume};
use receive_pair::{MIB, PARTIAL, Pair, assert_equal, identity, names};

const KEPT: &str = ".checkpoint-test";

/// A stream as its commands, the header with the first.
fn commands(pair: &Pair, name: &str, parent: Option<&str>) -> Vec<Vec<u8>> {
    let open = |name: &str| Subvolume::open(pair.source.dir(), name).unwrap();
    let (source, parent) = (open(name), parent.map(open));
    let request = SendRequest {
        source: &source,
        parent: parent.as_ref(),
        clone_sources: &[],
    };
    let mut stream = Vec::new();
    request.start().unwrap().read_to_end(&mut stream).unwrap();
    receive_pair::split(&stream)
}

fn apply(arriving: &mut Arriving<'_>, blocks: &[Vec<u8>]) {
    for block in blocks {
        arriving
            .block(block, |_| ControlFlow::Continue(()))
            .unwrap();
    }
}

fn a_tree_with_some_of_everything(pair: &Pair) {
    let live = pair.live();
    fs::create_dir(live.join("dir")).unwrap();
    let large = File::create(live.join("dir/large")).unwrap();
    large.write_all_at(&vec![7; 3 * MIB], MIB as u64).unwrap();
    for number in 0..20 {
        fs::write(live.join(format!("small-{number}")), vec![number; 5000]).unwrap();
    }
    fs::hard_link(live.join("small-1"), live.join("dir/also-1")).unwrap();
}

fn and_some_changes(pair: &Pair) {
    let live = pair.live();
    fs::rename(live.join("dir"), live.join("moved")).unwrap();
    fs::create_dir(live.join("dir")).unwrap();
    let large = File::options()
        .write(true)
        .open(live.join("moved/large"))
        .unwrap();
    large.write_all_at(&vec![9; MIB], 2 * MIB as u64).unwrap();
    fs::remove_file(live.join("small-3")).unwrap();
    fs::write(live.join("small-4"), "another").unwrap();
    fs::write(live.join("dir/new"), "new").unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn from_a_checkpoint_after_any_command_the_snapshot_ends_the_same() {
    let pair = Pair::new();
    a_tree_with_some_of_everything(&pair);
    pair.take_and_replicate("1", None);
    and_some_changes(&pair);
    let second = pair.take("2");
    let first = Subvolume::open(pair.replica.dir(), "1").unwrap();
    let bases = [Base {
        identity: identity(&first),
        subvolume: &first,
    }];

    let dir = pair.replica.dir();
    for (number, parent) in [("1", None), ("2", Some("1"))] {
        let source = Subvolume::open(pair.source.dir(), number).unwrap();
        let blocks = commands(&pair, number, parent);
        for cut in 1..blocks.len() {
            let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases);
            let mut arriving = receiver.begin();
            apply(&mut arriving, &blocks[..cut]);
            let checkpoint = arriving.checkpoint(KEPT.as_bytes()).unwrap().unwrap();
            // What comes after the checkpoint is lost with the partial.
            apply(&mut arriving, &blocks[cut..(cut + 2).min(blocks.len())]);
            drop(arriving);
            assert!(!names(&pair.replica).contains(&PARTIAL.to_owned()));

            let kept = Subvolume::open(pair.replica.dir(), KEPT).unwrap();
            let mut arriving = receiver.resume(&checkpoint, &kept).unwrap();
            assert_eq!(
                arriving.progress().bytes,
                blocks[..cut].iter().map(Vec::len).sum::<usize>() as u64
            );
            apply(&mut arriving, &blocks[cut..]);
            let received = arriving.end().unwrap().finish(b"again").unwrap();
            assert_equal(&source, &received);
            for name in ["again", KEPT] {
                receive_pair::remove(&pair.replica, name);
            }
        }
    }
    drop(second);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_stream_that_has_not_ended_is_no_snapshot_and_a_strange_checkpoint_no_start() {
    let pair = Pair::new();
    a_tree_with_some_of_everything(&pair);
    pair.take("1");
    let blocks = commands(&pair, "1", None);
    let dir = pair.replica.dir();
    let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[]);

    let mut arriving = receiver.begin();
    assert_eq!(arriving.checkpoint(KEPT.as_bytes()).unwrap(), None);
    apply(&mut arriving, &blocks[..blocks.len() - 1]);
    let checkpoint = arriving.checkpoint(KEPT.as_bytes()).unwrap().unwrap();
    let error = arriving.end().unwrap_err().to_string();
    assert!(error.contains("ends in the middle"), "{error}");

    let kept = Subvolume::open(pair.replica.dir(), KEPT).unwrap();
    let other = Checkpoint {
        uuid: uuid::Uuid::from_u128(7),
        ..checkpoint
    };
    let error = receiver.resume(&other, &kept).unwrap_err().to_string();
    assert!(error.contains("is not there"), "{error}");

    // A command that reaches over the block's end, and one after END.
    let mut arriving = receiver.begin();
    let cut = &blocks[0][..blocks[0].len() - 1];
    arriving
        .block(cut, |_| ControlFlow::Continue(()))
        .unwrap_err();
    let mut arriving = receiver.begin();
    apply(&mut arriving, &blocks);
    let after = &blocks[1];
    let error = arriving
        .block(after, |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(error.to_string().contains("after END"), "{error}");
    drop(arriving);
    assert_eq!(names(&pair.replica), [KEPT]);
}
