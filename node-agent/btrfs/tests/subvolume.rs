//! Subvolumes on a real btrfs: what is created is what is found, and what must be refused is.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use icbd_btrfs::{
    Access, Errno, Error, Subvolume, create, delete, file_system_id, is_btrfs, snapshot, sync_dir,
};
use support::Pool;
use uuid::Uuid;

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_holds_what_its_source_held() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    fs::write(pool.path().join("live/file"), "one").unwrap();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    fs::write(pool.path().join("live/file"), "two").unwrap();
    sync_dir(pool.dir()).unwrap();

    assert_eq!(fs::read(pool.path().join("1/file")).unwrap(), b"one");
    let (live, first) = (live.info().unwrap(), first.info().unwrap());
    assert!(first.read_only && !live.read_only);
    assert_eq!(first.parent_uuid, Some(live.uuid));
    assert_eq!((first.received_uuid, first.rtime), (None, None));
    assert!(first.otransid >= first.ctransid && first.id > live.id);
    assert!(fs::write(pool.path().join("1/file"), "three").is_err());
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_read_only_snapshot_inherits_the_received_uuid_and_a_writable_one_does_not() {
    let pool = Pool::new();
    let partial = create(pool.dir(), ".partial-1").unwrap();
    let uuid = Uuid::from_u128(0x1234);
    let rtransid = partial.set_received(uuid, 77).unwrap();
    let kept = snapshot(&partial, pool.dir(), "1", Access::ReadOnly)
        .unwrap()
        .info()
        .unwrap();
    let lost = snapshot(&partial, pool.dir(), "w", Access::Writable)
        .unwrap()
        .info()
        .unwrap();
    assert_eq!(
        (kept.received_uuid, kept.stransid, kept.rtransid),
        (Some(uuid), 77, rtransid)
    );
    assert!(kept.ctransid <= kept.rtransid && kept.rtime.is_some());
    assert_eq!(
        (lost.received_uuid, lost.stransid, lost.rtransid),
        (None, 0, 0)
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_received_uuid_of_a_read_only_subvolume_stays() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "1").unwrap();
    subvolume.set_read_only(true).unwrap();
    let refused = subvolume.set_received(Uuid::from_u128(1), 1).unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::ROFS));
    assert_eq!(subvolume.info().unwrap().received_uuid, None);
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_existing_name_is_never_overwritten() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    fs::create_dir(pool.path().join("1")).unwrap();
    for access in [Access::ReadOnly, Access::Writable] {
        let refused = snapshot(&live, pool.dir(), "1", access).unwrap_err();
        assert_eq!(refused, Error::Exists { name: "1".into() });
    }
    assert!(matches!(
        create(pool.dir(), "live"),
        Err(Error::Exists { .. })
    ));
}

#[test]
#[ignore = "needs root and btrfs"]
fn only_a_subvolume_is_deleted() {
    let pool = Pool::new();
    create(pool.dir(), "1").unwrap();
    fs::create_dir(pool.path().join("directory")).unwrap();
    fs::write(pool.path().join("file"), "").unwrap();
    std::os::unix::fs::symlink("1", pool.path().join("link")).unwrap();
    for name in ["directory", "file", "link"] {
        let refused = delete(pool.dir(), name).unwrap_err();
        assert_eq!(refused, Error::NotSubvolume { name: name.into() });
        assert!(
            pool.path().join(name).symlink_metadata().is_ok(),
            "{name} must stay"
        );
    }
    let missing = delete(pool.dir(), "2").unwrap_err();
    assert_eq!(missing.errno(), Some(Errno::NOENT));
    assert_eq!(
        missing.to_string(),
        "cannot open \"2\": No such file or directory (os error 2)"
    );
    delete(pool.dir(), "1").unwrap();
    assert!(!pool.path().join("1").exists());
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_subvolume_that_has_subvolumes_is_not_deleted() {
    let pool = Pool::new();
    let outer = create(pool.dir(), "outer").unwrap();
    create(&outer, "inner").unwrap();
    let refused = delete(pool.dir(), "outer").unwrap_err();
    assert_eq!(
        refused,
        Error::HasSubvolumes {
            name: "outer".into()
        }
    );
    delete(&outer, "inner").unwrap();
    delete(pool.dir(), "outer").unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_deleted_subvolume_that_is_still_open_says_so() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "1").unwrap();
    delete(pool.dir(), "1").unwrap();
    assert_eq!(subvolume.info().unwrap_err().errno(), Some(Errno::NOENT));
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_onto_another_file_system_is_refused() {
    let (pool, other) = (Pool::new(), Pool::new());
    let live = create(pool.dir(), "live").unwrap();
    let refused = snapshot(&live, other.dir(), "1", Access::ReadOnly).unwrap_err();
    assert_eq!(
        refused,
        Error::OtherFileSystem {
            name: "live".into()
        }
    );
    assert_ne!(
        file_system_id(pool.dir()).unwrap(),
        file_system_id(other.dir()).unwrap()
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_mount_on_a_name_is_not_entered() {
    let (pool, other) = (Pool::new(), Pool::new());
    fs::create_dir(pool.path().join("1")).unwrap();
    let target = pool.path().join("1");
    support::run(
        "mount",
        [
            OsStr::new("--bind"),
            other.path().as_os_str(),
            target.as_os_str(),
        ],
    );
    let refused = Subvolume::open(pool.dir(), "1").unwrap_err();
    support::run("umount", [target.as_os_str()]);
    assert_eq!(refused, Error::OtherFileSystem { name: "1".into() });
}

#[test]
#[ignore = "needs root and btrfs"]
fn names_are_bytes() {
    let pool = Pool::new();
    let name = b"\xff\xfe \n\x80";
    let source = create(pool.dir(), name).unwrap();
    assert!(pool.path().join(OsStr::from_bytes(name)).is_dir());
    snapshot(&source, pool.dir(), b"\xc3\x28", Access::ReadOnly).unwrap();
    delete(pool.dir(), b"\xc3\x28").unwrap();
    delete(pool.dir(), name).unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_name_that_is_a_path_is_refused() {
    let pool = Pool::new();
    let outer = create(pool.dir(), "outer").unwrap();
    create(&outer, "inner").unwrap();
    let long = vec![b'n'; 256];
    for name in [&b""[..], b".", b"..", b"outer/inner", b"/", b"a\0b", &long] {
        let refused = |result: Result<(), Error>| matches!(result, Err(Error::InvalidName { .. }));
        assert!(refused(Subvolume::open(pool.dir(), name).map(drop)));
        assert!(refused(create(pool.dir(), name).map(drop)));
        assert!(refused(
            snapshot(&outer, pool.dir(), name, Access::ReadOnly).map(drop)
        ));
        assert!(refused(delete(pool.dir(), name)));
    }
}

#[test]
fn what_is_not_btrfs_is_told() {
    let elsewhere = fs::File::open("/proc").unwrap();
    assert!(!is_btrfs(&elsewhere).unwrap());
    let refused = Subvolume::from_fd(elsewhere.into(), "/proc").unwrap_err();
    assert_eq!(refused.to_string(), "\"/proc\" is not on btrfs");
}
