//! A snapshot whose metadata takes the kernel long: its data flows meanwhile, how much there will be
//! grows more exact, and nobody takes the pass for a standstill.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;

use icbd_wire::control::*;
use support::operator::*;
use support::{Node, Pool, noise};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;

/// Extents of the parent's file, and how often each is cloned. For each clone the kernel goes through all
/// places where the extent is.
const EXTENTS: u64 = 40;
const CLONES: u64 = 512;

/// What comes before the clones.
const DATA: u64 = 4 * MIB;

/// Shorter than the kernel takes for a block of clones. Nothing but the pass moves meanwhile.
const STALL: &str = "4";

/// Makes a range of one file the same as one of another.
fn clone(from: &File, at: u64, to: &File, to_at: u64, length: u64) {
    let (mut at, mut to_at) = (at, to_at);
    let cloned =
        rustix::fs::copy_file_range(from, Some(&mut at), to, Some(&mut to_at), length as usize);
    assert_eq!(cloned.unwrap() as u64, length);
}

/// An image whose second snapshot has some data and then a file made of clones of what the first has.
async fn slow_image(node: &Node, operator: &Operator) -> (SnapshotInfo, SnapshotInfo) {
    node.make_live();
    let file = |name: &str| {
        let path = node.image().join("live").join(name);
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(false);
        options.open(path).unwrap()
    };
    // Every other block, so that each is an extent of its own.
    let base = file("base");
    for extent in 0..EXTENTS {
        let content = noise(extent, BLOCK as usize);
        base.write_all_at(&content, extent * 2 * BLOCK).unwrap();
    }
    base.sync_all().unwrap();
    let one = operator.take("one").await;
    file("data")
        .write_all_at(&noise(1, DATA as usize), 0)
        .unwrap();
    let many = file("many");
    for extent in 0..EXTENTS {
        // No two that are neighbours become neighbours.
        let other = extent * 7 % EXTENTS;
        clone(&base, other * 2 * BLOCK, &many, extent * BLOCK, BLOCK);
    }
    let (mut length, whole) = (EXTENTS * BLOCK, EXTENTS * CLONES * BLOCK);
    while length < whole {
        clone(&many, 0, &many, length, length.min(whole - length));
        length *= 2;
    }
    (one, operator.take("two").await)
}

async fn data_flows_and_totals_grow_exact(mode: &str) {
    let (source_pool, receiver_pool) = (Pool::new(), Pool::new());
    let serve = async |name, pool: &Pool| {
        let mut node = Node::bare(name);
        node.mount(pool);
        let pace = ["--stall-seconds", STALL, "--checkpoint-seconds", "3600"];
        node.start_with(&[pace.as_slice(), &["--send-mode", mode]].concat());
        let operator = node.operator().await;
        operator.init_pool().await;
        (node, operator)
    };
    let (source, from) = serve("source", &source_pool).await;
    let (receiver, to) = serve("receiver", &receiver_pool).await;
    let (one, two) = slow_image(&source, &from).await;
    succeeded(&transfer(&Plan::full(&one), &from, &to, &receiver).await.1);

    let plan = Plan::increment(&two, &one);
    start(&plan, &from, &to, &receiver).await;
    let early = async {
        to.moved(&plan.transfer, Role::Receiver, DATA / 2).await;
        from.moved(&plan.transfer, Role::Source, DATA / 2).await
    };
    let (early, sent, received) = tokio::join!(
        early,
        from.story(&plan.transfer, Role::Source),
        to.story(&plan.transfer, Role::Receiver),
    );
    let whole = sent.last().unwrap().bytes_done;
    println!("{mode}: {whole} bytes; when data had come: {early:?}");
    assert_eq!(early.state(), TransferState::Running);
    assert!(
        early.bytes_total < whole - MIB / 2,
        "the pass was over already"
    );
    for story in [&sent, &received] {
        let last = story.last().unwrap();
        succeeded(last);
        assert_eq!((last.bytes_done, last.bytes_total), (whole, whole));
        let mut totals: Vec<_> = story.iter().map(|it| it.bytes_total).collect();
        totals.retain(|total| *total > 0);
        totals.dedup();
        println!("{mode}, {:?}: {totals:?}", last.role());
        assert!(totals.len() > 3, "{totals:?}");
        let off = |total: &u64| total.abs_diff(whole);
        assert!(totals.windows(2).all(|two| off(&two[1]) <= off(&two[0])));
        assert!(
            story
                .iter()
                .all(|it| it.bytes_total == 0 || it.bytes_done <= it.bytes_total)
        );
    }
    assert_eq!(source.digest(2), receiver.digest(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn data_flows_while_the_kernel_goes_through_clones_in_extents_mode() {
    data_flows_and_totals_grow_exact("extents").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn data_flows_while_the_kernel_goes_through_clones_in_stream_mode() {
    data_flows_and_totals_grow_exact("stream").await;
}
