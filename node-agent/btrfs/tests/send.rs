//! Sending from a real btrfs: what arrives is what was sent, and a send that fails is never taken for a whole one.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, copy};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use icbd_btrfs::{Access, Errno, Error, SendRequest, Subvolume, create, delete, digest, snapshot};
use support::Pool;

const MIB: usize = 1 << 20;

/// A pool with a `live` that holds a disk image and some more.
fn pool_with_live() -> (Pool, Subvolume) {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    let root = pool.path().join("live");
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/notes"), "some notes").unwrap();
    fs::write(root.join("disk.img"), noise(24 * MIB)).unwrap();
    (pool, live)
}

/// Bytes that no two blocks have in common.
fn noise(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..length / 8)
        .flat_map(|_| random.u64(..).to_le_bytes())
        .collect()
}

fn full(source: &Subvolume) -> SendRequest<'_> {
    SendRequest {
        source,
        parent: None,
        clone_sources: &[],
    }
}

fn increment<'a>(source: &'a Subvolume, parent: &'a Subvolume) -> SendRequest<'a> {
    SendRequest {
        source,
        parent: Some(parent),
        clone_sources: &[],
    }
}

/// The stream of a request, at once.
fn stream(request: &SendRequest<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    request.start().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Has the stream received by btrfs-progs.
fn receive(pool: &Pool, request: &SendRequest<'_>) {
    let mut receiver = Command::new("btrfs")
        .args([
            OsStr::new("receive"),
            OsStr::new("-q"),
            pool.path().as_os_str(),
        ])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    copy(
        &mut request.start().unwrap(),
        &mut receiver.stdin.take().unwrap(),
    )
    .unwrap();
    assert!(receiver.wait().unwrap().success());
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_arrives_in_full_and_then_as_an_increment_is_what_was_sent() {
    let (pool, live) = pool_with_live();
    let other = Pool::new();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    receive(&other, &full(&first));

    let image = File::options()
        .write(true)
        .open(pool.path().join("live/disk.img"))
        .unwrap();
    image.write_all_at(&noise(MIB), 3 << 20).unwrap();
    fs::rename(
        pool.path().join("live/dir"),
        pool.path().join("live/renamed"),
    )
    .unwrap();
    let second = snapshot(&live, pool.dir(), "2", Access::ReadOnly).unwrap();
    let request = increment(&second, &first);
    assert!(stream(&request).len() < 2 * MIB);
    receive(&other, &request);

    for (source, name) in [(&first, "1"), (&second, "2")] {
        let replica = Subvolume::open(other.dir(), name).unwrap();
        assert_eq!(digest(&replica).unwrap(), digest(source).unwrap(), "{name}");
        assert_eq!(
            replica.info().unwrap().received_uuid,
            Some(source.info().unwrap().uuid)
        );
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_stream_is_of_version_2() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    assert_eq!(stream(&full(&first))[..17], *b"btrfs-stream\0\x02\0\0\0");
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_hole_of_many_gigabytes_costs_nothing() {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    let image = File::create(pool.path().join("live/disk.img")).unwrap();
    image.set_len(40 << 30).unwrap();
    image.write_all_at(b"end", 39 << 30).unwrap();
    image.write_all_at(b"start", 0).unwrap();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&image, punch, 0, 40 << 30).unwrap();
    let second = snapshot(&live, pool.dir(), "2", Access::ReadOnly).unwrap();
    assert!(stream(&full(&first)).len() < 64 << 10);
    assert!(stream(&increment(&second, &first)).len() < 64 << 10);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_the_parent_has_is_cloned_and_not_sent() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let image = pool.path().join("live/disk.img");
    support::run(
        "cp",
        [
            OsStr::new("--reflink=always"),
            image.as_os_str(),
            pool.path().join("live/copy.img").as_os_str(),
        ],
    );
    let second = snapshot(&live, pool.dir(), "2", Access::ReadOnly).unwrap();
    let other = Pool::new();
    receive(&other, &full(&first));
    let request = increment(&second, &first);
    assert!(stream(&request).len() < MIB);
    receive(&other, &request);
    let replica = Subvolume::open(other.dir(), "2").unwrap();
    assert_eq!(digest(&replica).unwrap(), digest(&second).unwrap());
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_a_clone_source_has_is_cloned_and_not_sent() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let unrelated = create(pool.dir(), "unrelated").unwrap();
    support::run(
        "cp",
        [
            OsStr::new("--reflink=always"),
            pool.path().join("1/disk.img").as_os_str(),
            pool.path().join("unrelated/copy.img").as_os_str(),
        ],
    );
    unrelated.set_read_only(true).unwrap();
    assert!(stream(&full(&unrelated)).len() > 24 * MIB);
    let request = SendRequest {
        clone_sources: &[&first],
        ..full(&unrelated)
    };
    assert!(stream(&request).len() < MIB);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_writable_is_not_sent() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let refused = Error::Writable {
        name: "live".into(),
    };
    let null = File::options().write(true).open("/dev/null").unwrap();
    assert_eq!(full(&live).send_to(&null), Err(refused.clone()));
    assert_eq!(
        increment(&first, &live).send_to(&null),
        Err(refused.clone())
    );
    let request = SendRequest {
        clone_sources: &[&live],
        ..full(&first)
    };
    assert_eq!(request.send_to(&null), Err(refused));
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_send_that_fails_has_no_end_that_could_be_taken_for_one() {
    let (_pool, live) = pool_with_live();
    let mut sending = full(&live).start().unwrap();
    for _ in 0..2 {
        let failed = sending.read(&mut [0; 64]).unwrap_err();
        let error = failed
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<Error>());
        assert_eq!(
            error,
            Some(&Error::Writable {
                name: "live".into()
            })
        );
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_reader_that_leaves_ends_the_send() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let ended = std::thread::scope(|scope| {
        let kernel = scope.spawn(|| full(&first).send_to(&writer));
        let mut start = [0; 17];
        File::from(reader).read_exact(&mut start).unwrap();
        kernel.join().unwrap()
    });
    let failed = ended.unwrap_err();
    assert_eq!(failed.errno(), Some(Errno::PIPE));
    assert_eq!(
        failed.to_string(),
        "cannot send \"1\": Broken pipe (os error 32)"
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_that_is_being_sent_stays() {
    let (pool, live) = pool_with_live();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let mut sending = full(&first).start().unwrap();
    // The pipe holds less than the stream: from the first byte to the last the kernel is at it.
    sending.read_exact(&mut [0; 17]).unwrap();
    assert_eq!(
        delete(pool.dir(), "1").unwrap_err().errno(),
        Some(Errno::PERM)
    );
    assert_eq!(
        first.set_read_only(false).unwrap_err().errno(),
        Some(Errno::PERM)
    );
    copy(&mut sending, &mut std::io::sink()).unwrap();
    delete(pool.dir(), "1").unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_parent_on_another_file_system_is_refused() {
    let ((pool, live), (other, foreign)) = (pool_with_live(), pool_with_live());
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let parent = snapshot(&foreign, other.dir(), "1", Access::ReadOnly).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let refused = increment(&first, &parent).send_to(&null).unwrap_err();
    assert_eq!(refused, Error::OtherFileSystem { name: "1".into() });
}
