//! Disks that are full, fail or turn read-only in the middle of a transfer: it ends with the
//! errno and the path, what had come is kept at its last checkpoint, and goes on when the disk is
//! well again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use icbd_wire::control::*;
use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::io::Errno;
use support::operator::*;
use support::pair::Pair;
use support::{Pool, SOON, noise};

const MIB: u64 = 1 << 20;

/// The image of these tests, how fast it is sent, and when something happens to the disk: long before
/// its end.
const IMAGE: u64 = 64 * MIB;
const RATE: u64 = 4 * MIB;
const MIDWAY: u64 = 8 * MIB;

/// Asserts that a transfer failed for this reason, with these words in its message.
fn failed_with(transfer: &Transfer, reason: Reason, words: &[&str]) {
    println!("{:?}: {}", transfer.role(), transfer.message);
    failed(transfer, reason);
    for words in words {
        assert!(
            transfer.message.contains(words),
            "no {words:?} in {:?}",
            transfer.message
        );
    }
}

const NO_SPACE: &str = "No space left on device (os error 28)";
const IO_ERROR: &str = "Input/output error (os error 5)";

/// Takes all room that file data can have on a pool, and that metadata could still get.
fn fill(pool: &Pool) {
    let ballast = File::create(pool.path().join("ballast")).unwrap();
    let (mut at, mut step) = (0, 16 * MIB);
    while step >= 4096 {
        match rustix::fs::fallocate(&ballast, FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(Errno::NOSPC) => step /= 2,
            Err(errno) => panic!("{errno}"),
        }
    }
}

/// A transfer to a receiver whose disk becomes full in the middle of it.
async fn a_disk_that_becomes_full_is_told(pair: Pair, path: &str) {
    let snapshot = pair.from.take("one").await;
    let plan = Plan::full(&snapshot).limited(RATE);
    pair.midway(&plan, MIDWAY).await;
    fill(&pair.pools[1]);
    for ended in pair.ended(&plan).await {
        let words = ["desktops/win11/", path, NO_SPACE];
        failed_with(&ended, Reason::InsufficientSpace, &words);
        assert!(ended.transient);
    }
    pair.is_kept(1);
    // There is no point in another attempt before there is room.
    let again = pair.to.expect_request(&plan.again());
    refused(pair.to.expect(again).await, Reason::InsufficientSpace);
    pair.is_kept(1);
    pair.pools[1].grow(1024 * MIB);
    pair.resumes(&plan).await;
}

async fn a_disk_that_data_fills_is_told(mode: &str) {
    let pair = Pair::new(mode, [Pool::new(), Pool::with_size(384 * MIB)]).await;
    pair.write_noise("disk.img", IMAGE);
    a_disk_that_becomes_full_is_told(pair, "\"disk.img\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_disk_that_data_fills_is_told_in_extents_mode() {
    a_disk_that_data_fills_is_told("extents").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_disk_that_data_fills_is_told_in_stream_mode() {
    a_disk_that_data_fills_is_told("stream").await;
}

/// Files without data and with much metadata.
fn write_metadata(pair: &Pair, files: u64) {
    let value = noise(3, 3000);
    for number in 0..files {
        let path = pair
            .source
            .image()
            .join("live")
            .join(format!("file-{number}"));
        let file = File::create(path).unwrap();
        rustix::fs::fsetxattr(&file, "user.much", &value, XattrFlags::empty()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_disk_that_metadata_fills_is_told() {
    let pair = Pair::new("extents", [Pool::new(), Pool::with_size(384 * MIB)]).await;
    write_metadata(&pair, 20_000);
    // It may as well be a checkpoint that fails, or its record.
    a_disk_that_becomes_full_is_told(pair, "").await;
}

/// Changes a byte of what the source's disk holds of a file, which begins so; once more, and it is
/// what it was.
fn flip(pool: &Pool, begin: &[u8]) {
    let disk = File::options()
        .read(true)
        .write(true)
        .open(pool.disk())
        .unwrap();
    let mut part = vec![0; MIB as usize];
    for at in (0..).step_by(part.len()) {
        let read = disk.read_at(&mut part, at).unwrap();
        assert!(read > 0, "it is not on the disk");
        let blocks = part[..read].chunks(4096);
        let found = blocks
            .zip(0..)
            .find(|(block, _)| block[16..].starts_with(begin));
        if let Some((block, number)) = found {
            return disk.write_all_at(&[!block[0]], at + number * 4096).unwrap();
        }
    }
}

async fn a_checksum_that_does_not_match_ends_a_transfer(mode: &str, path: &str) {
    let pair = Pair::new(mode, [Pool::with_size(512 * MIB), Pool::new()]).await;
    pair.write_noise("disk.img", IMAGE);
    let mark = noise(9, 4096);
    let disk = pair.source.image().join("live/disk.img");
    let disk = File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&mark, 3 * IMAGE / 4).unwrap();
    let snapshot = pair.from.take("one").await;
    let damage = || flip(&pair.pools[0], &mark[16..80]);
    damage();
    let plan = Plan::full(&snapshot);
    pair.start(&plan).await;
    for ended in pair.ended(&plan).await {
        failed_with(
            &ended,
            Reason::IoError,
            &["desktops/win11/1", path, IO_ERROR],
        );
        assert!(!ended.transient, "{:?}", ended.role());
    }
    pair.is_kept(1);
    damage();
    pair.resumes(&plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_checksum_that_does_not_match_ends_a_transfer_in_extents_mode() {
    a_checksum_that_does_not_match_ends_a_transfer("extents", "\"disk.img\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_checksum_that_does_not_match_ends_a_transfer_in_stream_mode() {
    // The kernel reads, and says no more.
    a_checksum_that_does_not_match_ends_a_transfer("stream", "\"1\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_disk_that_fails_to_write_is_told() {
    let pair = Pair::new("extents", [Pool::new(), Pool::with_size(512 * MIB)]).await;
    pair.write_noise("disk.img", IMAGE);
    let snapshot = pair.from.take("one").await;
    let plan = Plan::full(&snapshot).limited(RATE);
    pair.midway(&plan, MIDWAY).await;
    pair.pools[1].cut_disk(MIB);
    for ended in pair.ended(&plan).await {
        let words = ["desktops/win11/1", "\"disk.img\"", IO_ERROR];
        failed_with(&ended, Reason::IoError, &words);
        assert!(!ended.transient, "{:?}", ended.role());
    }
    pair.is_kept(1);
    pair.pools[1].mend_disk();
    pair.resumes(&plan).await;
}

/// Mounts a pool read-only, as soon as nothing is open for writing on it.
async fn turn_read_only(pool: &Pool) {
    let begun = Instant::now();
    loop {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,ro"]).arg(pool.path());
        if mount.stderr(Stdio::null()).status().unwrap().success() {
            return;
        }
        assert!(begun.elapsed() < SOON, "the pool is always busy");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "needs root and btrfs"]
async fn a_disk_that_turns_read_only_is_told() {
    let pair = Pair::new("extents", [Pool::new(), Pool::new()]).await;
    // The kernel lets no file be open for writing then: these have no data.
    write_metadata(&pair, 10_000);
    let snapshot = pair.from.take("one").await;
    let plan = Plan {
        codec: Codec::None,
        ..Plan::full(&snapshot).limited(RATE / 2)
    };
    pair.midway(&plan, MIDWAY).await;
    turn_read_only(&pair.pools[1]).await;
    for ended in pair.ended(&plan).await {
        failed_with(&ended, Reason::PoolUnavailable, &[]);
        // Whoever sees it first: a command that fails, a checkpoint or its record, or the agent that
        // looks at its pool.
        let says = |words: &str| ended.message.contains(words);
        let written = [
            "desktops/win11/1",
            "desktops/win11/.checkpoint-1-",
            "in desktops/win11/.meta",
        ];
        let failed = written.into_iter().any(says) && says("Read-only file system (os error 30)");
        let seen = says("/pool") && says("is mounted read-only");
        assert!(failed || seen, "{}", ended.message);
        assert!(ended.transient);
    }
    assert!(!pair.receiver.has(1));
    pair.to.wait_pool(PoolState::Unavailable).await;
    pair.pools[1].remount("rw");
    pair.to.wait_pool(PoolState::Ready).await;
    pair.is_kept(1);
    pair.resumes(&plan).await;
}
