//! The digest on a real btrfs: everything that replication must keep shows in it, and nothing else does.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use icbd_btrfs::{Access, Errno, create, delete, digest, referenced_bytes, snapshot};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use support::{Pool, run};

const MIB: u64 = 1 << 20;

/// One of everything. Times are set by `settle`.
fn populate(root: &Path) {
    rustix::process::umask(Mode::from(0o022));
    fs::create_dir_all(root.join("dir/inner/empty")).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("dir/script"), "#!/bin/sh").unwrap();
    fs::set_permissions(root.join("dir/script"), PermissionsExt::from_mode(0o4755)).unwrap();
    let big = File::create(root.join("big")).unwrap();
    big.write_all_at(&pattern(3 * MIB as usize), 0).unwrap();
    big.write_all_at(b"after a hole", 40 * MIB).unwrap();
    big.set_len(50 * MIB + 7).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"dir/\xff\x80\n")), "not UTF-8").unwrap();
    for name in ["link", "dir/link"] {
        fs::hard_link(root.join("file"), root.join(name)).unwrap();
    }
    fs::write(root.join("dir/one"), "same").unwrap();
    fs::hard_link(root.join("dir/one"), root.join("dir/two")).unwrap();
    symlink("nowhere/at/all", root.join("symlink")).unwrap();
    node(&root.join("fifo"), FileType::Fifo, 0);
    node(&root.join("socket"), FileType::Socket, 0);
    node(
        &root.join("block"),
        FileType::BlockDevice,
        rustix::fs::makedev(7, 300),
    );
    node(
        &root.join("character"),
        FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    for path in ["file", "dir", "symlink", "block", ""] {
        xattr(&root.join(path), "trusted.mark", path.as_bytes());
    }
    xattr(&root.join("dir/script"), "user.b", b"2");
    xattr(&root.join("dir/script"), "user.a", &pattern(3000));
    xattr(&root.join("dir/script"), "security.capability", &CAPABILITY);
    rustix::fs::chown(root.join("dir"), Some(owner(7)), Some(group(8))).unwrap();
}

/// cap_net_raw+ep, as `setcap` writes it.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn owner(id: u32) -> rustix::fs::Uid {
    rustix::fs::Uid::from_raw(id)
}

fn group(id: u32) -> rustix::fs::Gid {
    rustix::fs::Gid::from_raw(id)
}

fn node(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from(0o640), device).unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Gives all but `spared` the same mtime, so that it cannot stand in for the difference looked for.
fn settle(path: &Path, spared: Option<&Path>) {
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            settle(&entry.unwrap().path(), spared);
        }
    }
    if spared != Some(path) {
        set_mtime(path, 1_500_000_000, 123_456_789);
    }
}

fn set_mtime(path: &Path, tv_sec: i64, tv_nsec: i64) {
    let time = Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The digest of a full tree, and of the same after `change`.
fn before_and_after(change: impl FnOnce(&Path)) -> [String; 2] {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let root = pool.path().join("s");
    populate(&root);
    settle(&root, None);
    let before = digest(&subvolume).unwrap();
    change(&root);
    settle(&root, None);
    [before.to_string(), digest(&subvolume).unwrap().to_string()]
}

macro_rules! shows {
    ($($name:ident: $change:expr;)*) => {$(
        #[test]
        #[ignore = "needs root and btrfs"]
        fn $name() {
            let [before, after] = before_and_after($change);
            assert_ne!(before, after);
        }
    )*};
}

macro_rules! does_not_show {
    ($($name:ident: $change:expr;)*) => {$(
        #[test]
        #[ignore = "needs root and btrfs"]
        fn $name() {
            let [before, after] = before_and_after($change);
            assert_eq!(before, after);
        }
    )*};
}

shows! {
    a_name_shows: |root| fs::rename(root.join("empty"), root.join("empti")).unwrap();
    a_missing_file_shows: |root| fs::remove_file(root.join("empty")).unwrap();
    an_empty_directory_shows: |root| fs::create_dir(root.join("dir/inner/empty/more")).unwrap();
    a_place_in_the_tree_shows: |root| {
        fs::rename(root.join("dir/inner/empty"), root.join("dir/empty")).unwrap();
    };
    a_mode_shows: |root| {
        fs::set_permissions(root.join("file"), PermissionsExt::from_mode(0o600)).unwrap();
    };
    a_mode_bit_beyond_permissions_shows: |root| {
        fs::set_permissions(root.join("dir/script"), PermissionsExt::from_mode(0o755)).unwrap();
    };
    the_mode_of_the_root_shows: |root| {
        fs::set_permissions(root, PermissionsExt::from_mode(0o700)).unwrap();
    };
    an_owner_shows: |root| rustix::fs::chown(root.join("big"), Some(owner(1)), None).unwrap();
    a_group_shows: |root| rustix::fs::chown(root.join("big"), None, Some(group(1))).unwrap();
    one_byte_shows: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        file.write_all_at(&[0xff], 2 * MIB + 77).unwrap();
    };
    one_byte_in_a_hole_shows: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        file.write_all_at(&[1], 20 * MIB).unwrap();
    };
    a_size_that_differs_by_a_hole_shows: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        file.set_len(50 * MIB + 8).unwrap();
    };
    data_at_another_place_shows: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        file.write_all_at(&[0; 12], 40 * MIB).unwrap();
        file.write_all_at(b"after a hole", 41 * MIB).unwrap();
    };
    an_xattr_shows: |root| xattr(&root.join("file"), "user.new", b"");
    the_value_of_an_xattr_shows: |root| xattr(&root.join("dir/script"), "user.b", b"3");
    a_capability_shows: |root| {
        rustix::fs::lremovexattr(root.join("dir/script"), "security.capability").unwrap();
    };
    an_xattr_of_a_symlink_shows: |root| xattr(&root.join("symlink"), "trusted.mark", b"other");
    an_xattr_of_a_device_shows: |root| xattr(&root.join("block"), "trusted.mark", b"other");
    an_xattr_of_a_directory_shows: |root| xattr(&root.join("dir"), "trusted.mark", b"other");
    an_xattr_of_the_root_shows: |root| xattr(root, "trusted.mark", b"other");
    the_target_of_a_symlink_shows: |root| {
        fs::remove_file(root.join("symlink")).unwrap();
        symlink("nowhere/at/al", root.join("symlink")).unwrap();
        xattr(&root.join("symlink"), "trusted.mark", b"symlink");
    };
    a_type_shows: |root| {
        fs::remove_file(root.join("fifo")).unwrap();
        node(&root.join("fifo"), FileType::Socket, 0);
    };
    a_device_number_shows: |root| {
        fs::remove_file(root.join("character")).unwrap();
        node(&root.join("character"), FileType::CharacterDevice, rustix::fs::makedev(1, 4));
    };
    a_hard_link_that_became_a_copy_shows: |root| {
        fs::remove_file(root.join("dir/two")).unwrap();
        fs::copy(root.join("dir/one"), root.join("dir/two")).unwrap();
    };
}

#[test]
#[ignore = "needs root and btrfs"]
fn which_file_a_hard_link_belongs_to_shows() {
    let pool = Pool::new();
    let digests = ["12", "14"].map(|pair| {
        // Four names of two equal files, paired in one way or another.
        let subvolume = create(pool.dir(), pair).unwrap();
        let root = pool.path().join(pair);
        let (with_first, rest): (Vec<_>, Vec<_>) = ["1", "2", "3", "4"]
            .into_iter()
            .partition(|name| pair.contains(*name));
        for names in [with_first, rest] {
            fs::write(root.join(names[0]), "same").unwrap();
            fs::hard_link(root.join(names[0]), root.join(names[1])).unwrap();
        }
        settle(&root, None);
        digest(&subvolume).unwrap()
    });
    assert_ne!(digests[0], digests[1]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_mtime_shows_to_the_nanosecond_for_every_type() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let root = pool.path().join("s");
    populate(&root);
    settle(&root, None);
    let before = digest(&subvolume).unwrap();
    for name in [
        "",
        "empty",
        "dir",
        "dir/inner",
        "symlink",
        "fifo",
        "socket",
        "block",
    ] {
        let changed = root.join(name);
        set_mtime(&changed, 1_500_000_000, 123_456_790);
        settle(&root, Some(&changed));
        assert_ne!(digest(&subvolume).unwrap(), before, "{name}");
    }
    settle(&root, None);
    assert_eq!(digest(&subvolume).unwrap(), before);
}

does_not_show! {
    nothing_does_not_show: |_| {};
    an_atime_does_not_show: |root| {
        let times = fs::FileTimes::new().set_accessed(std::time::SystemTime::UNIX_EPOCH);
        File::open(root.join("big")).unwrap().set_times(times).unwrap();
    };
    a_ctime_does_not_show: |root| {
        let mode = fs::metadata(root.join("file")).unwrap().permissions();
        fs::set_permissions(root.join("file"), PermissionsExt::from_mode(0o777)).unwrap();
        fs::set_permissions(root.join("file"), mode).unwrap();
    };
    an_inode_number_does_not_show: |root| {
        let before = fs::metadata(root.join("empty")).unwrap().ino();
        fs::remove_file(root.join("empty")).unwrap();
        fs::write(root.join("empty"), "").unwrap();
        assert_ne!(fs::metadata(root.join("empty")).unwrap().ino(), before);
    };
    the_nocow_flag_does_not_show: |root| {
        fs::remove_file(root.join("empty")).unwrap();
        fs::write(root.join("empty"), "").unwrap();
        run("chattr", [OsStr::new("+C"), root.join("empty").as_os_str()]);
    };
    zeros_for_a_hole_do_not_show: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        file.write_all_at(&vec![0; 36 * MIB as usize], 3 * MIB).unwrap();
        file.write_all_at(&[0; 7], 50 * MIB).unwrap();
    };
    a_preallocated_range_does_not_show: |root| {
        let file = File::options().write(true).open(root.join("big")).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 4 * MIB, 9 * MIB)
            .unwrap();
    };
    a_reflink_for_a_copy_does_not_show: |root| {
        fs::rename(root.join("big"), root.join("old")).unwrap();
        run("cp", ["-a", "--reflink=always"].map(OsStr::new).into_iter()
            .chain([root.join("old").as_os_str(), root.join("big").as_os_str()]));
        fs::remove_file(root.join("old")).unwrap();
    };
    compression_does_not_show: |root| {
        run("btrfs", ["filesystem", "defragment", "-czstd"].map(OsStr::new).into_iter()
            .chain([root.join("big").as_os_str()]));
    };
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_tree_that_was_copied_to_another_file_system_has_the_same_digest() {
    let (pool, other) = (Pool::new(), Pool::new());
    let source = create(pool.dir(), "source").unwrap();
    populate(&pool.path().join("source"));
    let copy = create(other.dir(), "copy").unwrap();
    run(
        "cp",
        [
            OsStr::new("-aT"),
            OsStr::new("--reflink=never"),
            OsStr::new("--sparse=never"),
            pool.path().join("source").as_os_str(),
            other.path().join("copy").as_os_str(),
        ],
    );
    assert_eq!(digest(&source).unwrap(), digest(&copy).unwrap());
}

/// A change of the format is a change of what every recorded digest means: it needs a new number in
/// its first line, and a new value here.
#[test]
#[ignore = "needs root and btrfs"]
fn the_format_stays() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let root = pool.path().join("s");
    populate(&root);
    fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).unwrap();
    settle(&root, None);
    assert_eq!(
        digest(&subvolume).unwrap().to_string(),
        "95b3bb5aacfc9972324d98b0764c8a5e3e1d3ccdbb58a9859fa36431f13cfa8d"
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_nested_subvolume_is_left_out_of_live_and_snapshot_alike() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    let root = pool.path().join("live");
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("file"), "content").unwrap();
    let without = {
        settle(&root, None);
        digest(&live).unwrap()
    };
    let dir = File::open(root.join("dir")).unwrap();
    create(&dir, "nested").unwrap();
    fs::write(root.join("dir/nested/file"), "more").unwrap();
    settle(&root, None);
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    assert_eq!(
        fs::metadata(pool.path().join("1/dir/nested"))
            .unwrap()
            .ino(),
        2
    );
    assert_eq!(
        [digest(&live).unwrap(), digest(&first).unwrap()],
        [without; 2]
    );
    delete(&dir, "nested").unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_sparse_terabyte_is_digested_without_reading_it() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let file = File::create(pool.path().join("s/disk.img")).unwrap();
    file.set_len(1 << 40).unwrap();
    let empty = digest(&subvolume).unwrap();
    file.write_all_at(&[1], (1 << 40) - 1).unwrap();
    assert_ne!(digest(&subvolume).unwrap(), empty);
    assert!(referenced_bytes(&subvolume).unwrap() <= 4096);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_tree_deeper_than_descriptors_and_paths_go_is_digested() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let mut dir = subvolume.as_fd().try_clone_to_owned().unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&dir, "directory", Mode::from(0o755)).unwrap();
        dir = rustix::fs::openat(&dir, "directory", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let before = digest(&subvolume).unwrap();
    rustix::fs::mkdirat(&dir, "x", Mode::from(0o755)).unwrap();
    assert_ne!(digest(&subvolume).unwrap(), before);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_cannot_be_read_is_named_with_its_path() {
    let pool = Pool::new();
    let subvolume = create(pool.dir(), "s").unwrap();
    let mount = pool.path().join("s/a/b");
    fs::create_dir_all(&mount).unwrap();
    run(
        "mount",
        ["-t", "tmpfs", "none"]
            .map(OsStr::new)
            .into_iter()
            .chain([mount.as_os_str()]),
    );
    let failed = digest(&subvolume).unwrap_err();
    run("umount", [mount.as_os_str()]);
    assert_eq!(failed.errno(), Some(Errno::XDEV));
    assert!(
        failed.to_string().starts_with("cannot enter \"s/a/b\": "),
        "{failed}"
    );
}
