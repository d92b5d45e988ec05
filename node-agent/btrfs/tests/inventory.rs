//! Inventories and identities on a real btrfs: what counts as a snapshot, and whose content it has.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use icbd_btrfs::{
    Access, Identity, Inventory, NotCounted, NotCountedReason, SnapshotNumber, Subvolume,
    Suspicion, create, scan, snapshot, sync,
};
use support::{Pool, run};
use uuid::Uuid;

fn number(number: u64) -> SnapshotNumber {
    SnapshotNumber::new(number).unwrap()
}

fn identity(pool: &Pool, name: &str) -> Identity {
    Identity::of(&Subvolume::open(pool.dir(), name).unwrap().info().unwrap())
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_empty_directory_holds_nothing() {
    let pool = Pool::new();
    assert_eq!(scan(pool.dir()).unwrap(), Inventory::default());
}

#[test]
#[ignore = "needs root and btrfs"]
fn only_numbered_read_only_subvolumes_count_as_snapshots() {
    let pool = Pool::new();
    let dir = pool.dir();
    let live = create(&dir, "live").unwrap();
    let snapshots = [10, 9, 1].map(|n| {
        let made = snapshot(&live, &dir, number(n).to_string(), Access::ReadOnly).unwrap();
        (number(n), made.info().unwrap())
    });
    for odd in ["0", "007"] {
        snapshot(&live, &dir, odd, Access::ReadOnly).unwrap();
    }
    snapshot(&live, &dir, "2", Access::Writable).unwrap();
    fs::create_dir(pool.path().join("3")).unwrap();
    fs::write(pool.path().join("4"), "").unwrap();
    std::os::unix::fs::symlink("1", pool.path().join("5")).unwrap();
    fs::create_dir(pool.path().join("6")).unwrap();
    run(
        "mount",
        ["-t", "tmpfs", "none"]
            .map(OsStr::new)
            .into_iter()
            .chain([pool.path().join("6").as_os_str()]),
    );
    let partial = create(&dir, ".partial-11").unwrap().info().unwrap();
    let checkpoints = [10, 2].map(|index| {
        let name = number(11).checkpoint_name(index);
        let made = snapshot(&live, &dir, name, Access::ReadOnly).unwrap();
        (number(11), index, made.info().unwrap())
    });
    for other in [&b".meta"[..], b"notes", b"\xff1", b".partial-x"] {
        fs::create_dir(pool.path().join(OsStr::from_bytes(other))).unwrap();
    }

    let inventory = scan(&dir);
    run("umount", [pool.path().join("6").as_os_str()]);
    let Inventory {
        snapshots: counted,
        live: found,
        partials,
        checkpoints: kept,
        not_counted,
    } = inventory.unwrap();
    assert_eq!(counted, snapshots.into_iter().rev().collect::<Vec<_>>());
    assert_eq!(found, Some(live.info().unwrap()));
    assert_eq!(partials, [(number(11), partial)]);
    assert_eq!(kept, checkpoints.into_iter().rev().collect::<Vec<_>>());
    use NotCountedReason::{Mounted, NotNumber, NotSubvolume, Writable};
    let expected = [
        ("0", NotNumber),
        ("007", NotNumber),
        ("2", Writable),
        ("3", NotSubvolume),
        ("4", NotSubvolume),
        ("5", NotSubvolume),
        ("6", Mounted),
    ];
    assert_eq!(
        not_counted,
        expected.map(|(name, reason)| NotCounted {
            name: name.into(),
            reason
        })
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_live_that_is_read_only_is_none() {
    let pool = Pool::new();
    create(pool.dir(), "live")
        .unwrap()
        .set_read_only(true)
        .unwrap();
    let inventory = scan(pool.dir()).unwrap();
    assert_eq!(inventory.live, None);
    assert_eq!(inventory.not_counted[0].reason, NotCountedReason::ReadOnly);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_is_clean_however_much_its_source_changes_later() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    fs::write(pool.path().join("live/file"), vec![1; 1 << 20]).unwrap();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    fs::write(pool.path().join("live/file"), vec![2; 1 << 20]).unwrap();
    fs::read(pool.path().join("1/file")).unwrap();
    sync(pool.dir()).unwrap();
    assert_eq!(
        identity(&pool, "1"),
        Identity::Clean(first.info().unwrap().uuid)
    );
}

/// The end of a transfer: everything durable, then the mark, then one read-only snapshot.
fn receive(pool: &Pool, name: &str, uuid: Uuid) {
    let partial = create(pool.dir(), ".partial-1").unwrap();
    let file = pool.path().join(".partial-1/file");
    fs::write(&file, vec![1; 8 << 20]).unwrap();
    fs::create_dir(pool.path().join(".partial-1/dir")).unwrap();
    fs::File::open(&file).unwrap().sync_all().unwrap();
    partial.set_received(uuid, 5).unwrap();
    snapshot(&partial, pool.dir(), name, Access::ReadOnly).unwrap();
    icbd_btrfs::delete(pool.dir(), ".partial-1").unwrap();
    sync(pool.dir()).unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_received_snapshot_has_the_identity_of_its_source() {
    let pool = Pool::new();
    let uuid = Uuid::from_u128(9);
    receive(&pool, "1", uuid);
    assert_eq!(identity(&pool, "1"), Identity::Clean(uuid));
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_that_was_writable_for_a_while_is_suspect_and_so_are_snapshots_of_it() {
    let pool = Pool::new();
    let uuid = Uuid::from_u128(9);
    receive(&pool, "1", uuid);
    let first = Subvolume::open(pool.dir(), "1").unwrap();
    first.set_read_only(false).unwrap();
    fs::write(pool.path().join("1/file"), "other").unwrap();
    sync(pool.dir()).unwrap();
    first.set_read_only(true).unwrap();
    snapshot(&first, pool.dir(), "2", Access::ReadOnly).unwrap();
    for name in ["1", "2"] {
        let Identity::Suspect {
            uuid: claimed,
            because,
        } = identity(&pool, name)
        else {
            panic!("{name} is taken for clean")
        };
        assert!(claimed == uuid && matches!(because, Suspicion::Changed { .. }));
    }
}
