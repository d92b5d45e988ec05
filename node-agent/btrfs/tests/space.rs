//! What a file system has room for, and what a snapshot refers to, on a real btrfs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::fs::{self, File};

use icbd_btrfs::{Access, create, referenced_bytes, snapshot, space, sync};
use support::Pool;

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_written_is_no_longer_free() {
    let pool = Pool::with_size(2 << 30);
    let before = space(pool.dir()).unwrap();
    assert_eq!(before.capacity, 2 << 30);
    assert!(
        before.free > 1 << 30 && before.free < before.capacity,
        "{before:?}"
    );
    fs::write(pool.path().join("file"), vec![1; 256 * MIB as usize]).unwrap();
    sync(pool.dir()).unwrap();
    let after = space(pool.dir()).unwrap();
    assert_eq!(after.capacity, before.capacity);
    assert!(
        (240 * MIB..300 * MIB).contains(&(before.free - after.free)),
        "{before:?} {after:?}"
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn referenced_bytes_are_those_of_the_data_with_hard_links_counted_once() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    let root = pool.path().join("live");
    fs::write(root.join("disk.img"), vec![1; 8 * MIB as usize]).unwrap();
    fs::hard_link(root.join("disk.img"), root.join("again")).unwrap();
    File::create(root.join("sparse"))
        .unwrap()
        .set_len(MIB << 10)
        .unwrap();
    File::open(root.join("disk.img"))
        .unwrap()
        .sync_all()
        .unwrap();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    assert_eq!(referenced_bytes(&first).unwrap(), 8 * MIB);
}
