//! The measure of a stream beside the stream itself, on a real btrfs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::copy;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use icbd_btrfs::{
    Access, Error, MeasureError, SendRequest, StreamSize, Subvolume, create, snapshot,
};
use rustix::fs::FallocateFlags;
use support::Pool;

const MIB: u64 = 1 << 20;

/// Measures a request and checks the measure: the stream's length to a hundredth, less 4 KiB.
fn measured(request: &SendRequest<'_>) -> StreamSize {
    let size = request.measure(|_| ControlFlow::Continue(())).unwrap();
    let actual = copy(&mut request.start().unwrap(), &mut std::io::sink()).unwrap();
    assert!(
        actual.abs_diff(size.stream) <= 4096 + actual / 100,
        "{actual} bytes, not {size:?}"
    );
    size
}

fn noise(length: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length);
    (0..length / 8)
        .flat_map(|_| random.u64(..).to_le_bytes())
        .collect()
}

fn write(pool: &Pool, path: &str, data: &[u8], offset: u64) -> File {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(pool.path().join("live").join(path))
        .unwrap();
    file.write_all_at(data, offset).unwrap();
    file
}

/// A `live` with a disk image of 20 MiB of data and 1 GiB in size, and its snapshot 1.
fn pool() -> (Pool, Subvolume, Subvolume) {
    let pool = Pool::new();
    let live = create(pool.dir(), "live").unwrap();
    write(&pool, "disk.img", &noise(20 * MIB), 5 * MIB)
        .set_len(1 << 30)
        .unwrap();
    let first = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    (pool, live, first)
}

fn full(source: &Subvolume) -> SendRequest<'_> {
    SendRequest {
        source,
        parent: None,
        clone_sources: &[],
    }
}

/// What changed between `parent` and a snapshot of `live` taken now.
fn increment(pool: &Pool, live: &Subvolume, parent: &Subvolume) -> StreamSize {
    let second = snapshot(live, pool.dir(), "2", Access::ReadOnly).unwrap();
    measured(&SendRequest {
        source: &second,
        parent: Some(parent),
        clone_sources: &[],
    })
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_full_stream_is_as_long_as_measured() {
    let (_pool, _live, first) = pool();
    assert_eq!(measured(&full(&first)).data, 20 * MIB);
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_increment_is_as_long_as_measured() {
    let (pool, live, first) = pool();
    for at in 0..64 {
        write(&pool, "disk.img", &noise(4096), at * 16 * MIB);
    }
    fs::create_dir(pool.path().join("live/dir")).unwrap();
    for at in 0..1000 {
        write(&pool, &format!("dir/file-{at}"), &noise(1024), 0);
    }
    assert_eq!(
        increment(&pool, &live, &first).data,
        64 * 4096 + 1000 * 1024
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn nothing_changed_is_next_to_nothing() {
    let (pool, live, first) = pool();
    let size = increment(&pool, &live, &first);
    assert!(size.data == 0 && size.stream < 1024, "{size:?}");
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_a_guest_trims_is_not_measured_as_data() {
    let (pool, live, first) = pool();
    let image = write(&pool, "disk.img", &noise(MIB), 700 * MIB);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&image, punch, 6 * MIB, 17 * MIB).unwrap();
    rustix::fs::fallocate(&image, punch, 900 * MIB, 100 * MIB).unwrap();
    assert_eq!(increment(&pool, &live, &first).data, MIB);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_cloned_is_not_measured_as_data() {
    let (pool, live, first) = pool();
    let image = pool.path().join("live/disk.img");
    let copy = pool.path().join("live/copy.img");
    support::run(
        "cp",
        [
            OsStr::new("--reflink=always"),
            image.as_os_str(),
            copy.as_os_str(),
        ],
    );
    assert_eq!(increment(&pool, &live, &first).data, 0);
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_watcher_breaks_it_off() {
    let (_pool, _live, first) = pool();
    let mut asked = 0;
    let broken = full(&first).measure(|_| {
        asked += 1;
        ControlFlow::Break(())
    });
    assert!(matches!(broken, Err(MeasureError::BrokenOff)), "{broken:?}");
    assert_eq!(asked, 1);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_writable_is_not_measured() {
    let (_pool, live, _first) = pool();
    let refused = full(&live)
        .measure(|_| ControlFlow::Continue(()))
        .unwrap_err();
    let expected = Error::Writable {
        name: "live".into(),
    };
    assert!(
        matches!(&refused, MeasureError::Send(error) if *error == expected),
        "{refused:?}"
    );
}
