//! What does not arrive: refused, cut off, or stopped by a disk. The reason is told, and nothing is left.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

mod receive_pair;
mod support;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::AsFd;

use icbd_btrfs::receive::{ReceiveError, Receiver, Refusal};
use icbd_btrfs::{Access, Errno, SendRequest, Subvolume, snapshot};
use receive_pair::{MIB, PARTIAL, Pair, assert_equal, btrfs_send, identity, names, noise, receive};
use support::{Pool, run};

#[test]
#[ignore = "needs root and btrfs"]
fn streams_one_after_the_other_are_read_one_by_one() {
    let pair = Pair::new();
    let first = pair.take("1");
    fs::write(pair.live().join("a"), "a").unwrap();
    let second = pair.take("2");
    let both = [
        btrfs_send(&pair.source, &["1"]),
        btrfs_send(&pair.source, &["-p", "1", "2"]),
    ]
    .concat();
    let mut rest = &both[..];
    assert_equal(&first, &receive(&pair.replica, "1", &mut rest).unwrap());
    assert_equal(&second, &receive(&pair.replica, "2", &mut rest).unwrap());
    let end = receive(&pair.replica, "3", &mut rest).unwrap_err();
    assert!(matches!(end, ReceiveError::NoStream), "{end}");
    assert_eq!(names(&pair.replica), ["1", "2"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_taken_name_is_refused_and_stays() {
    let pair = Pair::new();
    fs::write(pair.live().join("a"), "first").unwrap();
    let first = pair.take_and_replicate("1", None);
    fs::write(pair.live().join("a"), "second").unwrap();
    pair.take("2");
    let stream = btrfs_send(&pair.source, &["2"]);
    let error = receive(&pair.replica, "1", &stream[..]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EXIST), "{error}");
    assert_eq!(fs::read(pair.replica.path().join("1/a")).unwrap(), b"first");
    drop(first);

    // A partial that somebody else made is not taken over, and not deleted.
    icbd_btrfs::create(pair.replica.dir(), PARTIAL).unwrap();
    let error = receive(&pair.replica, "2", &stream[..]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EXIST), "{error}");
    assert_eq!(names(&pair.replica), [PARTIAL, "1"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_increment_without_its_parent_is_refused() {
    let pair = Pair::new();
    let parent = pair.take("1");
    fs::write(pair.live().join("a"), "a").unwrap();
    pair.take("2");
    let stream = btrfs_send(&pair.source, &["-p", "1", "2"]);
    let error = receive(&pair.replica, "2", &stream[..]).unwrap_err();
    let wanted = identity(&parent);
    assert!(
        matches!(error, ReceiveError::Command { refusal: Refusal::NoParent(uuid), .. } if uuid == wanted),
        "{error}"
    );
    assert!(names(&pair.replica).is_empty());
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_cut_off_cancelled_or_dropped_leaves_nothing() {
    let pair = Pair::new();
    fs::write(pair.live().join("a"), noise(4 * MIB, 1)).unwrap();
    let source = pair.take("1");
    let stream = btrfs_send(&pair.source, &["--proto", "2", "1"]);
    for length in [1, 17, 100, 3 * MIB, stream.len() - 1] {
        let error = receive(&pair.replica, "1", &stream[..length]).unwrap_err();
        assert!(matches!(error, ReceiveError::Stream(_)), "{error}");
        assert!(names(&pair.replica).is_empty());
    }

    let dir = pair.replica.dir();
    let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[]);
    let cancelled = receiver.run(&stream[..], |progress| match progress.bytes {
        0..2_000_000 => ControlFlow::Continue(()),
        _ => ControlFlow::Break(()),
    });
    assert!(matches!(
        cancelled,
        Err(ReceiveError::Cancelled { bytes: 2_000_000.. })
    ));
    assert!(names(&pair.replica).is_empty());

    let mut last = None;
    let received = receiver
        .run(&stream[..], |progress| {
            last = Some(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(received.content().name, b"1");
    assert_eq!(received.content().uuid, identity(&source));
    assert_eq!(received.bytes(), stream.len() as u64);
    assert_eq!(last.unwrap().bytes, stream.len() as u64);
    assert_eq!(names(&pair.replica), [PARTIAL]);
    drop(received);
    assert!(names(&pair.replica).is_empty());
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_full_disk_is_told_with_its_path_and_leaves_nothing() {
    let source = Pool::new();
    icbd_btrfs::create(source.dir(), "live").unwrap();
    fs::write(source.path().join("live/big"), noise(300 * MIB, 1)).unwrap();
    let live = Subvolume::open(source.dir(), "live").unwrap();
    let taken = snapshot(&live, source.dir(), "1", Access::ReadOnly).unwrap();
    let small = Pool::with_size(128 << 20);
    let request = SendRequest {
        source: &taken,
        parent: None,
        clone_sources: &[],
    };
    let error = receive(&small, "1", request.start().unwrap()).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOSPC), "{error}");
    assert!(
        error.to_string().contains("on \"big\": cannot write to it"),
        "{error}"
    );
    assert!(names(&small).is_empty());
}

/// A mount, taken down again.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_disk_that_fails_while_data_is_written_back_is_told() {
    // One file is asked by fsync; very many are asked through the file system.
    for (files, length) in [(1, 96 * MIB), (96, MIB)] {
        let pair = Pair::new();
        for file in 0..files {
            fs::write(
                pair.live().join(file.to_string()),
                noise(length, file as u64),
            )
            .unwrap();
        }
        let source = pair.take("1");

        // A disk that says it has 2 GiB, on a file system with room for 48 MiB.
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("room")).unwrap();
        fs::create_dir(at("pool")).unwrap();
        let (room, pool) = (at("room"), at("pool"));
        run(
            "mount",
            [
                "-t",
                "tmpfs",
                "-o",
                "size=48m",
                "none",
                room.to_str().unwrap(),
            ],
        );
        let _room = Mounted(room.clone());
        let disk = room.join("disk");
        File::create(&disk).unwrap().set_len(2 << 30).unwrap();
        run("mkfs.btrfs", ["-q", "-m", "single", disk.to_str().unwrap()]);
        run(
            "mount",
            ["-o", "loop", disk.to_str().unwrap(), pool.to_str().unwrap()],
        );
        let _pool = Mounted(pool.clone());

        let dir = File::open(&pool).unwrap();
        let request = SendRequest {
            source: &source,
            parent: None,
            clone_sources: &[],
        };
        let outcome = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[])
            .run(request.start().unwrap(), |_| ControlFlow::Continue(()))
            .and_then(|received| received.finish(b"1"));
        let error = outcome.unwrap_err();
        let told = [Errno::IO, Errno::NOSPC, Errno::ROFS].map(Some);
        assert!(told.contains(&error.errno()), "{error}");
        assert!(!pool.join("1").exists());
    }
}
