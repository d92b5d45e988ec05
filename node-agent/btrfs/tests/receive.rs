//! What is sent arrives as it was: every kind of object, change and increment, from the kernel's
//! send through our receiver, compared by the digest of the whole tree.

// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

mod receive_pair;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use icbd_btrfs::receive::{Base, ReceiveError, Receiver, Refusal};
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Timestamp, TreePath, Version};
use icbd_btrfs::{Digest, SendRequest, Subvolume};
use receive_pair::{
    MIB, PARTIAL, Pair, assert_equal, btrfs_send, identity, names, noise, receive, remove,
    replicate,
};
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, XattrFlags};
use support::{Pool, run};
use uuid::Uuid;

fn xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// Makes `length` bytes of `to` share the extents of `from`; 0 is up to the end.
fn clone(from: &Path, from_offset: u64, length: u64, to: &Path, to_offset: u64) {
    let source = File::open(from).unwrap();
    let target = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(to)
        .unwrap();
    let length = if length == 0 {
        source.metadata().unwrap().len() - from_offset
    } else {
        length
    };
    // On btrfs this shares what lies on blocks.
    let (mut from, mut to) = (from_offset, to_offset);
    let end = from + length;
    while from < end {
        let left = (end - from) as usize;
        let copied =
            rustix::fs::copy_file_range(&source, Some(&mut from), &target, Some(&mut to), left);
        assert!(copied.unwrap() > 0);
    }
}

/// cap_net_raw+ep and cap_net_admin+ep, as setcap writes them.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const OTHER_CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
#[ignore = "needs root and btrfs"]
fn every_kind_of_object_arrives() {
    let pair = Pair::new();
    let live = pair.live();
    fs::create_dir_all(live.join("dir/inner/empty")).unwrap();
    fs::write(live.join("file"), "content").unwrap();
    fs::write(live.join("empty"), "").unwrap();
    fs::write(live.join("big"), noise(5 * MIB + 3, 1)).unwrap();
    fs::write(live.join(OsStr::from_bytes(b"dir/\xff\x80\n")), "not UTF-8").unwrap();
    fs::hard_link(live.join("file"), live.join("dir/another name")).unwrap();
    symlink("../nowhere/at/all", live.join("dir/symlink")).unwrap();
    symlink("/etc/passwd", live.join("absolute")).unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        (
            "block",
            FileType::BlockDevice,
            rustix::fs::makedev(259, 70_000),
        ),
        (
            "character",
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        ),
    ] {
        rustix::fs::mknodat(CWD, live.join(name), kind, Mode::from(0o640), device).unwrap();
        rustix::fs::chown(live.join(name), Some(rustix::fs::Uid::from_raw(7)), None).unwrap();
        xattr(&live.join(name), "trusted.mark", name.as_bytes());
    }
    xattr(
        &live.join("dir/symlink"),
        "trusted.mark",
        b"of the symlink itself",
    );
    xattr(&live.join("dir"), "user.empty", b"");
    xattr(&live.join("dir"), "user.long", &noise(12_000, 2));
    xattr(&live, "user.root", b"root");
    fs::set_permissions(live.join("dir"), Permissions::from_mode(0o3751)).unwrap();
    fs::set_permissions(live.join("empty"), Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(&live, Permissions::from_mode(0o750)).unwrap();
    let old = File::open(live.join("file")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500))
        .unwrap();

    let received = pair.take_and_replicate("1", None);
    assert_eq!(received.info().unwrap().stransid, {
        Subvolume::open(pair.source.dir(), "1")
            .unwrap()
            .info()
            .unwrap()
            .ctransid
    });
    assert_eq!(names(&pair.replica), ["1"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn increments_arrive_on_their_parent() {
    let pair = Pair::new();
    let live = pair.live();
    for directory in ["a", "b", "b/c", "gone", "swapped"] {
        fs::create_dir_all(live.join(directory)).unwrap();
        fs::write(live.join(directory).join("file"), directory).unwrap();
    }
    fs::write(live.join("big"), noise(3 * MIB, 1)).unwrap();
    fs::hard_link(live.join("big"), live.join("a/link")).unwrap();
    pair.take_and_replicate("1", None);

    fs::rename(live.join("b/c"), live.join("a/moved")).unwrap();
    fs::rename(live.join("b"), live.join("a/moved/b")).unwrap();
    fs::remove_dir_all(live.join("gone")).unwrap();
    // One directory in another's place, under its name.
    fs::rename(live.join("swapped"), live.join("old")).unwrap();
    fs::create_dir(live.join("swapped")).unwrap();
    fs::write(live.join("swapped/file"), "another file of the same name").unwrap();
    fs::rename(live.join("old/file"), live.join("swapped/was old")).unwrap();
    let big = File::options().write(true).open(live.join("big")).unwrap();
    big.write_all_at(b"changed", MIB as u64 + 5).unwrap();
    fs::remove_file(live.join("big")).unwrap();
    pair.take_and_replicate("2", Some("1"));

    rustix::fs::renameat_with(
        CWD,
        live.join("swapped"),
        CWD,
        live.join("old"),
        rustix::fs::RenameFlags::EXCHANGE,
    )
    .unwrap();
    big.set_len(MIB as u64).unwrap();
    big.write_all_at(b"end", 2 * MIB as u64).unwrap();
    pair.take_and_replicate("3", Some("2"));
    // Nothing changed at all, and not from the newest.
    pair.take_and_replicate("4", Some("3"));
    pair.take_and_replicate("5", Some("1"));
    assert_eq!(names(&pair.replica), ["1", "2", "3", "4", "5"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_replica_stays_as_it_is_over_a_remount() {
    let pair = Pair::new();
    fs::write(pair.live().join("kept"), noise(MIB, 1)).unwrap();
    fs::write(pair.live().join("gone"), noise(MIB, 2)).unwrap();
    pair.take_and_replicate("1", None);
    // Data goes into a file that the same stream removes again, as one name of two.
    fs::hard_link(pair.live().join("gone"), pair.live().join("other")).unwrap();
    fs::write(pair.live().join("other"), noise(MIB, 3)).unwrap();
    fs::remove_file(pair.live().join("gone")).unwrap();
    pair.take_and_replicate("2", Some("1"));
    let before = Subvolume::open(pair.replica.dir(), "2")
        .unwrap()
        .info()
        .unwrap();
    let path = pair.replica.path();
    run("mount", ["-o", "remount,ro", path.to_str().unwrap()]);
    run("mount", ["-o", "remount,rw", path.to_str().unwrap()]);
    let after = Subvolume::open(pair.replica.dir(), "2").unwrap();
    assert_eq!(after.info().unwrap(), before);
    assert_equal(&Subvolume::open(pair.source.dir(), "2").unwrap(), &after);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_replica_can_be_sent_on() {
    let pair = Pair::new();
    let third = Pool::new();
    fs::write(pair.live().join("file"), noise(MIB, 1)).unwrap();
    pair.take_and_replicate("1", None);
    fs::write(pair.live().join("more"), noise(MIB, 2)).unwrap();
    pair.take_and_replicate("2", Some("1"));
    replicate(&pair.replica, &third, "1", None);
    replicate(&pair.replica, &third, "2", Some("1"));
    let first = Subvolume::open(pair.source.dir(), "2").unwrap();
    assert_equal(&first, &Subvolume::open(third.dir(), "2").unwrap());
}

#[test]
#[ignore = "needs root and btrfs"]
fn capabilities_and_setuid_survive_writes_and_changes_of_owner() {
    let pair = Pair::new();
    let path = pair.live().join("program");
    fs::write(&path, noise(MIB, 1)).unwrap();
    xattr(&path, "security.capability", &CAPABILITY);
    fs::write(pair.live().join("setuid"), "x").unwrap();
    fs::set_permissions(pair.live().join("setuid"), Permissions::from_mode(0o6755)).unwrap();
    pair.take_and_replicate("1", None);

    fs::write(&path, noise(MIB, 2)).unwrap();
    rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(5)), None).unwrap();
    xattr(&path, "security.capability", &CAPABILITY);
    rustix::fs::chown(
        pair.live().join("setuid"),
        Some(rustix::fs::Uid::from_raw(5)),
        None,
    )
    .unwrap();
    fs::set_permissions(pair.live().join("setuid"), Permissions::from_mode(0o6755)).unwrap();
    pair.take_and_replicate("2", Some("1"));
    xattr(&path, "security.capability", &OTHER_CAPABILITY);
    pair.take_and_replicate("3", Some("2"));
    rustix::fs::lremovexattr(&path, "security.capability").unwrap();
    pair.take_and_replicate("4", Some("3"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_root_directory_keeps_its_times_when_only_others_change() {
    let pair = Pair::new();
    fs::create_dir(pair.live().join("dir")).unwrap();
    let first = pair.take_and_replicate("1", None);
    // The new file comes into being in the root directory, and moves.
    fs::write(pair.live().join("dir/new"), "new").unwrap();
    let second = pair.take_and_replicate("2", Some("1"));
    let mtime = |subvolume: &Subvolume| {
        let stat = rustix::fs::fstat(subvolume).unwrap();
        (stat.st_mtime, stat.st_mtime_nsec)
    };
    assert_eq!(mtime(&first), mtime(&second));
}

/// user::rwx, user:7:rwx, group::r-x, mask::rwx, other::r-x, as the kernel takes it.
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 7, 0, 7, 0, 0, 0, 4, 0, 5, 0, 255, 255, 255,
    255, 16, 0, 7, 0, 255, 255, 255, 255, 32, 0, 5, 0, 255, 255, 255, 255,
];

#[test]
#[ignore = "needs root and btrfs"]
fn what_new_files_inherit_is_not_kept() {
    let pair = Pair::new();
    let live = pair.live();
    // Files that are older than the ACL and the property of the directory that they are made in.
    fs::write(live.join("plain file"), noise(MIB, 1)).unwrap();
    fs::create_dir(live.join("plain directory")).unwrap();
    rustix::fs::mknodat(CWD, live.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    xattr(&live, "system.posix_acl_default", &ACL);
    xattr(&live, "system.posix_acl_access", &ACL);
    xattr(&live, "btrfs.compression", b"zstd");
    fs::write(live.join("file with both"), noise(MIB, 2)).unwrap();
    fs::create_dir(live.join("directory with both")).unwrap();
    // And of the directory that the replica is in.
    xattr(&pair.replica.path(), "system.posix_acl_default", &ACL);
    xattr(&pair.replica.path(), "btrfs.compression", b"zlib");
    pair.take_and_replicate("1", None);

    rustix::fs::lremovexattr(live.join("directory with both"), "system.posix_acl_default").unwrap();
    fs::write(live.join("later"), "text").unwrap();
    rustix::fs::lremovexattr(live.join("later"), "system.posix_acl_access").unwrap();
    pair.take_and_replicate("2", Some("1"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn sparse_files_and_punched_holes_arrive_sparse() {
    let pair = Pair::new();
    let disk = File::create(pair.live().join("disk.img")).unwrap();
    disk.set_len(20 << 30).unwrap();
    for at in [0, 1 << 30, 7 << 30, 19 << 30] {
        disk.write_all_at(&noise(2 * MIB, at + 1), at).unwrap();
    }
    File::create(pair.live().join("no data"))
        .unwrap()
        .set_len(6 << 30)
        .unwrap();
    let blocks = |pool: &Pool, name: &str| {
        fs::metadata(pool.path().join(name).join("disk.img"))
            .unwrap()
            .blocks()
    };
    pair.take_and_replicate("1", None);
    assert_eq!(blocks(&pair.source, "1"), blocks(&pair.replica, "1"));

    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&disk, punch, (1 << 30) + 4096, 6 << 30).unwrap();
    disk.set_len(18 << 30).unwrap();
    disk.set_len(25 << 30).unwrap();
    pair.take_and_replicate("2", Some("1"));
    assert_eq!(blocks(&pair.source, "2"), blocks(&pair.replica, "2"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn reflinks_within_and_across_files_and_snapshots_arrive() {
    let pair = Pair::new();
    let at = |name: &str| pair.live().join(name);
    fs::write(at("a"), noise(2 * MIB + 1000, 1)).unwrap();
    clone(&at("a"), 0, 0, &at("whole copy"), 0);
    clone(&at("a"), 4096, 65536, &at("part"), 8192);
    clone(&at("a"), 0, 131_072, &at("a"), 4 << 20);
    pair.take_and_replicate("1", None);

    clone(&at("a"), 65536, 1 << 20, &at("from the parent"), 0);
    fs::rename(at("whole copy"), at("renamed")).unwrap();
    clone(&at("renamed"), 0, 0, &at("of renamed"), 4096);
    clone(&at("part"), 8192, 4096, &at("a"), 0);
    pair.take_and_replicate("2", Some("1"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_clone_that_the_kernel_refuses_becomes_a_copy() {
    let pair = Pair::new();
    fs::write(pair.live().join("a"), noise(MIB, 1)).unwrap();
    fs::write(pair.live().join("nocow"), "").unwrap();
    pair.take_and_replicate("1", None);
    // On the replica new files get no checksums, and clones between the two kinds are refused.
    let plain = pair.replica.path();
    run(
        "mount",
        ["-o", "remount,nodatasum", plain.to_str().unwrap()],
    );
    clone(&pair.live().join("a"), 0, 0, &pair.live().join("b"), 0);
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let sparse = File::create(pair.live().join("sparse")).unwrap();
    sparse.write_all_at(&noise(MIB, 2), 0).unwrap();
    rustix::fs::fallocate(&sparse, hole, 65536, 131_072).unwrap();
    clone(&pair.live().join("sparse"), 0, 0, &pair.live().join("c"), 0);
    pair.take_and_replicate("2", Some("1"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn nocow_and_preallocated_files_arrive() {
    let pair = Pair::new();
    let live = pair.live();
    fs::write(live.join("nocow"), "").unwrap();
    run("chattr", ["+C", live.join("nocow").to_str().unwrap()]);
    let nocow = File::options()
        .write(true)
        .open(live.join("nocow"))
        .unwrap();
    nocow.write_all_at(&noise(MIB, 1), 0).unwrap();
    let reserved = File::create(live.join("reserved")).unwrap();
    rustix::fs::fallocate(&reserved, FallocateFlags::empty(), 0, 4 << 20).unwrap();
    reserved.write_all_at(&noise(MIB, 2), 1 << 20).unwrap();
    pair.take_and_replicate("1", None);
    nocow.write_all_at(&noise(MIB, 3), 4096).unwrap();
    let more = FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&reserved, more, 0, 8 << 20).unwrap();
    rustix::fs::fallocate(&reserved, FallocateFlags::empty(), 0, 6 << 20).unwrap();
    pair.take_and_replicate("2", Some("1"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn flags_of_a_file_do_not_stand_in_the_way_of_the_next_increment() {
    let pair = Pair::new();
    let file = pair.live().join("file");
    fs::write(&file, "first").unwrap();
    pair.take_and_replicate("1", None);
    run("chattr", ["+i", file.to_str().unwrap()]);
    pair.take_and_replicate("2", Some("1"));
    run("chattr", ["-i", file.to_str().unwrap()]);
    fs::write(&file, "second").unwrap();
    pair.take_and_replicate("3", Some("2"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn many_small_files_arrive() {
    let pair = Pair::new();
    for directory in 0..20 {
        let directory = pair.live().join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..150 {
            fs::write(
                directory.join(format!("f{file}")),
                noise(file * 7, file as u64),
            )
            .unwrap();
        }
    }
    pair.take_and_replicate("1", None);
    for directory in 0..20 {
        fs::remove_file(pair.live().join(format!("d{directory}/f{directory}"))).unwrap();
        fs::rename(
            pair.live().join(format!("d{directory}")),
            pair.live().join(format!("e{directory}")),
        )
        .unwrap();
    }
    pair.take_and_replicate("2", Some("1"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn deep_and_long_paths_arrive() {
    let pair = Pair::new();
    let name = "n".repeat(255);
    let mut path = pair.live();
    // A path below the subvolume of just under 4 KiB; the whole is too long to be named at once.
    let mut dir = rustix::fs::open(&path, rustix::fs::OFlags::PATH, Mode::empty()).unwrap();
    for depth in 0..15 {
        rustix::fs::mkdirat(&dir, name.as_str(), Mode::from(0o700)).unwrap();
        dir = rustix::fs::openat(&dir, name.as_str(), rustix::fs::OFlags::PATH, Mode::empty())
            .unwrap();
        path.push(depth.to_string());
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    let file = rustix::fs::openat(&dir, "file", flags, Mode::from(0o600)).unwrap();
    rustix::io::write(&file, b"deep down").unwrap();
    pair.take_and_replicate("1", None);
}

#[test]
#[ignore = "needs root and btrfs"]
fn compressed_extents_are_decompressed() {
    for (algorithm, accepted) in [("zlib", true), ("zstd", true), ("lzo", false)] {
        let pair = Pair::new();
        let live = pair.live();
        xattr(&live, "btrfs.compression", algorithm.as_bytes());
        let text: Vec<u8> = (0..40_000u32)
            .flat_map(|n| format!("line {n}\n").into_bytes())
            .collect();
        fs::write(live.join("text"), &text).unwrap();
        fs::write(live.join("inline"), &text[..2000]).unwrap();
        rustix::fs::syncfs(pair.source.dir()).unwrap();
        let file = File::options().write(true).open(live.join("text")).unwrap();
        // Leaves the extent around it in place: parts of it show on either side.
        file.write_all_at(b"overwritten", 70_000).unwrap();
        let source = pair.take("1");
        let stream = btrfs_send(&pair.source, &["--proto", "2", "--compressed-data", "1"]);
        assert!(
            stream.len() < text.len() * 2 / 3,
            "{} bytes: not compressed",
            stream.len()
        );
        match receive(&pair.replica, "1", &stream[..]) {
            Ok(received) => {
                assert!(accepted);
                assert_equal(&source, &received);
            }
            Err(ReceiveError::Command {
                refusal: Refusal::Lzo,
                ..
            }) => assert!(!accepted),
            Err(error) => panic!("{algorithm}: {error}"),
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn version_1_streams_arrive_too() {
    let pair = Pair::new();
    fs::write(pair.live().join("a"), noise(MIB, 1)).unwrap();
    let source = pair.take("1");
    let stream = btrfs_send(&pair.source, &["--proto", "1", "1"]);
    assert_equal(&source, &receive(&pair.replica, "1", &stream[..]).unwrap());
    fs::write(pair.live().join("b"), noise(MIB, 2)).unwrap();
    let source = pair.take("2");
    let stream = btrfs_send(&pair.source, &["--proto", "1", "-p", "1", "2"]);
    assert_equal(&source, &receive(&pair.replica, "2", &stream[..]).unwrap());
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_source_that_names_another_of_its_snapshots_can_be_cloned_from() {
    let pair = Pair::new();
    fs::write(pair.live().join("a"), noise(MIB, 1)).unwrap();
    pair.take_and_replicate("1", None);
    fs::remove_file(pair.live().join("a")).unwrap();
    pair.take_and_replicate("2", Some("1"));
    // What 1 still has comes back, on the parent 2.
    clone(
        &pair.source.path().join("1/a"),
        0,
        0,
        &pair.live().join("b"),
        0,
    );
    let source = pair.take("3");
    let parent = Subvolume::open(pair.source.dir(), "2").unwrap();
    let other = Subvolume::open(pair.source.dir(), "1").unwrap();
    let request = SendRequest {
        source: &source,
        parent: Some(&parent),
        clone_sources: &[&other],
    };
    let mut stream = Vec::new();
    std::io::Read::read_to_end(&mut request.start().unwrap(), &mut stream).unwrap();
    assert!(
        stream.len() < MIB / 2,
        "{} bytes: sent, not cloned",
        stream.len()
    );
    assert_equal(&source, &receive(&pair.replica, "3", &stream[..]).unwrap());

    remove(&pair.replica, "3");
    remove(&pair.replica, "1");
    let error = receive(&pair.replica, "3", &stream[..]).unwrap_err();
    assert!(
        matches!(
            error,
            ReceiveError::Command {
                refusal: Refusal::NoCloneSource(_),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(names(&pair.replica), ["2"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_base_is_named_by_its_identity() {
    let pair = Pair::new();
    pair.take_and_replicate("1", None);
    fs::write(pair.live().join("a"), "a").unwrap();
    let source = pair.take("2");
    let stream = btrfs_send(&pair.source, &["-p", "1", "2"]);
    let parent = Subvolume::open(pair.replica.dir(), "1").unwrap();
    let bases = [Base {
        identity: identity(&parent),
        subvolume: &parent,
    }];
    let dir = pair.replica.dir();
    let received = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases)
        .run(&stream[..], |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(received.content().parent, Some(identity(&parent)));
    assert_equal(&source, &received.finish(b"2").unwrap());
}

/// What becomes of a new object that is renamed from one path to another, in a tree that has
/// everything which could be in its way or be inherited: the tree, or what was refused.
fn made_and_renamed(
    pool: &Pool,
    new: &Command<'_>,
    to: &str,
    at_once: bool,
) -> Result<Digest, String> {
    let path = |path| TreePath::new(path).unwrap();
    let (path, to) = (
        |name: &'static str| path(name.as_bytes()),
        path(to.as_bytes()),
    );
    let long_ago = Timestamp {
        seconds: 1,
        nanoseconds: 2,
    };
    let utimes = |path| Command::Utimes {
        path,
        atime: long_ago,
        mtime: long_ago,
        ctime: long_ago,
        otime: None,
    };
    let mut stream = Encoder::new(Version::V2);
    let mut then = |command: &Command<'_>| {
        stream.command(command);
    };
    then(&Command::Subvol {
        name: path("1"),
        uuid: Uuid::from_u128(1),
        ctransid: 1,
    });
    for directory in ["plain", "heir", "full"] {
        let path = path(directory);
        then(&Command::Mkdir { path, ino: 0 });
    }
    for file in ["occupied", "full/file"] {
        let path = path(file);
        then(&Command::Mkfile { path, ino: 0 });
    }
    // All that its content inherits.
    let default_acl = [
        2, 0, 0, 0, 1, 0, 0, 0, 255, 255, 255, 255, 4, 0, 5, 0, 255, 255, 255, 255,
    ];
    let default_acl = [&default_acl[..], &[32, 0, 0, 0, 255, 255, 255, 255]].concat();
    let heir = path("heir");
    then(&Command::Chown {
        path: heir,
        uid: 1,
        gid: 77,
    });
    then(&Command::Chmod {
        path: heir,
        mode: 0o2775,
    });
    for (name, value) in [
        ("system.posix_acl_default", &default_acl[..]),
        ("btrfs.compression", b"zstd"),
    ] {
        then(&Command::SetXattr {
            path: heir,
            name: name.as_bytes(),
            value,
        });
    }
    let rename = Command::Rename {
        path: new.path().unwrap(),
        to,
    };
    // A command between the two makes that nothing is done at once.
    let unrelated = utimes(TreePath::ROOT);
    match at_once {
        true => [&unrelated, new, &rename].map(&mut then),
        false => [new, &unrelated, &rename].map(&mut then),
    };
    // As the kernel goes on.
    then(&Command::Chown {
        path: to,
        uid: 3,
        gid: 4,
    });
    if !matches!(new, Command::Symlink { .. }) {
        then(&Command::Chmod {
            path: to,
            mode: 0o640,
        });
    }
    if matches!(new, Command::Mkfile { .. }) {
        then(&Command::Write {
            path: to,
            offset: 5000,
            data: b"data",
        });
    }
    then(&utimes(to));
    for path in ["plain", "heir", "full", "occupied", "full/file"].map(path) {
        // What was renamed over is not there any more, and neither is what was to stand in a file.
        if path != to {
            then(&utimes(path));
        }
    }
    let received = receive(pool, "1", &stream.end()[..]);
    let outcome = match &received {
        Ok(received) => Ok(icbd_btrfs::digest(received).unwrap()),
        Err(ReceiveError::Command {
            command,
            path,
            refusal,
            ..
        }) => Err(format!("{command} on {path}: {refusal}")),
        Err(error) => panic!("{error}"),
    };
    if received.is_ok() {
        remove(pool, "1");
    }
    assert!(names(pool).is_empty());
    outcome
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_made_and_renamed_at_once_is_as_if_it_had_been_made_and_then_renamed() {
    let pool = Pool::new();
    let path = |name: &'static str| TreePath::new(name.as_bytes()).unwrap();
    let made: [fn(TreePath<'static>) -> Command<'static>; 5] = [
        |path| Command::Mkfile { path, ino: 0 },
        |path| Command::Mkdir { path, ino: 0 },
        |path| Command::Mkfifo {
            path,
            ino: 0,
            mode: 0o010_644,
            rdev: 0,
        },
        |path| Command::Mknod {
            path,
            ino: 0,
            mode: 0o020_600,
            rdev: 0x103,
        },
        |path| Command::Symlink {
            path,
            ino: 0,
            target: b"nowhere",
        },
    ];
    let (mut accepted, mut refused) = (0, 0);
    for make in made {
        for at in ["o257-1-0", "occupied", "plain", "plain/new", "missing/new"] {
            for to in [
                "name",
                "plain/name",
                "heir/name",
                "o257-1-0",
                "o257-1-0/name",
                "occupied",
                "occupied/name",
                "plain",
                "full",
                "full/file",
                "missing/name",
                "",
            ] {
                let new = make(path(at));
                let [at_once, then] =
                    [true, false].map(|at_once| made_and_renamed(&pool, &new, to, at_once));
                assert_eq!(at_once, then, "{new:?} as {to}");
                match at_once {
                    Ok(_) => accepted += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    }
    assert!(accepted > 50 && refused > 100, "{accepted}, {refused}");
}

/// What a stream clones from where the parent has it is so afterwards, whatever came before.
#[test]
#[ignore = "needs root and btrfs"]
fn what_is_cloned_from_its_own_place_in_the_parent_is_as_it_was() {
    const LENGTH: usize = 256 << 10;
    let pair = Pair::new();
    let original = noise(LENGTH, 1);
    fs::write(pair.live().join("file"), &original).unwrap();
    fs::write(pair.live().join("other"), noise(LENGTH, 2)).unwrap();
    let parent = pair.take("1");
    let path = |name: &'static str| TreePath::new(name.as_bytes()).unwrap();
    let file = path("file");
    let write = |offset| Command::Write {
        path: file,
        offset,
        data: &[7; 8192],
    };
    let punch = Command::Fallocate {
        path: file,
        mode: 3,
        offset: 0,
        length: 65536,
    };
    let clone = |source_path, source_offset| Command::Clone {
        path: file,
        offset: 0,
        length: 128 << 10,
        source: identity(&parent),
        source_ctransid: 1,
        source_path,
        source_offset,
    };
    let truncate = |size| Command::Truncate { path: file, size };
    let replace = [
        Command::Unlink { path: file },
        Command::Rename {
            path: path("other"),
            to: file,
        },
    ];
    let befores: [&[Command<'_>]; 8] = [
        &[],
        &[write(200 << 10)],
        &[write(0)],
        &[write(120 << 10)],
        &[punch],
        &[clone(path("other"), 4096)],
        &[truncate(10_000), truncate(LENGTH as u64)],
        &replace,
    ];
    for before in befores {
        // More files than are held are between what changed it and the clone.
        for others in [0, 100] {
            let mut encoder = Encoder::new(Version::V2);
            encoder.command(&Command::Snapshot {
                name: path("2"),
                uuid: Uuid::from_u128(2),
                ctransid: 2,
                clone_uuid: identity(&parent),
                clone_ctransid: 1,
            });
            for command in before {
                encoder.command(command);
            }
            for number in 0..others {
                let name = format!("file-{number}");
                let path = TreePath::new(name.as_bytes()).unwrap();
                encoder.command(&Command::Mkfile { path, ino: 1000 });
                let (offset, data) = (0, &b"other"[..]);
                encoder.command(&Command::Write { path, offset, data });
            }
            encoder.command(&clone(file, 0));
            let stream = encoder.end();
            let dir = pair.source.dir();
            let bases = [Base {
                identity: identity(&parent),
                subvolume: &parent,
            }];
            Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases)
                .run(&stream[..], |_| ControlFlow::Continue(()))
                .unwrap()
                .finish(b"2")
                .unwrap();
            let content = fs::read(pair.source.path().join("2/file")).unwrap();
            assert!(content[..128 << 10] == original[..128 << 10], "{before:?}");
            remove(&pair.source, "2");
        }
    }
}
