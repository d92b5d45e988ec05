//! The measure of a stream beside the stream itself, on a real btrfs.
#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::copy;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use icbd_btrfs::{Access, BlockError, Encoding, Error, SendRequest, Subvolume, create, snapshot};
use rustix::fs::FallocateFlags;
use support::Pool;

const MIB: u64 = 1 << 20;

/// How long a send is.
#[derive(Debug)]
struct Measured {
    /// The kernel's stream.
    stream: u64,
    /// The blocks of extents mode.
    extents: u64,
}

/// Measures a request in both modes and checks the measures: the stream's length to a hundredth, less
/// 4 KiB, the blocks' exactly. What was told on the way became ever more exact.
fn measured(request: &SendRequest<'_>) -> Measured {
    let mut told = Vec::new();
    let mut watch = |total| {
        told.push(total);
        ControlFlow::Continue(())
    };
    let stream = request.measure(&mut watch).unwrap();
    becomes_exact(&std::mem::take(&mut told), stream);
    let mut watch = |total| {
        told.push(total);
        ControlFlow::Continue(())
    };
    let extents = request
        .measure_extents(Encoding::Plain, &mut watch)
        .unwrap();
    becomes_exact(&told, extents);
    let actual = copy(&mut request.start().unwrap(), &mut std::io::sink()).unwrap();
    assert!(
        actual.abs_diff(stream) <= 4096 + actual / 100,
        "{actual} bytes, not {stream}"
    );
    let blocks = request.extents(|_| ControlFlow::Continue(())).unwrap();
    let actual: usize = blocks.map(|block| block.unwrap().len()).sum();
    assert_eq!(extents, actual as u64);
    Measured { stream, extents }
}

/// Each is no further from the last than the one before, but for what commands take beside their data.
fn becomes_exact(told: &[u64], last: u64) {
    let off = |total: &u64| total.abs_diff(last);
    let known: Vec<_> = told.iter().skip_while(|total| **total == 0).collect();
    for pair in known.windows(2) {
        assert!(
            off(pair[1]) <= off(pair[0]) + 4096 + last / 50,
            "{last} after {told:?}"
        );
    }
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
fn increment(pool: &Pool, live: &Subvolume, parent: &Subvolume) -> Measured {
    let second = snapshot(live, pool.dir(), "2", Access::ReadOnly).unwrap();
    measured(&SendRequest {
        source: &second,
        parent: Some(parent),
        clone_sources: &[],
    })
}

/// That so many bytes of data are in both, and little else.
fn has(measured: &Measured, data: u64) {
    for length in [measured.stream, measured.extents] {
        let metadata = length.checked_sub(data);
        assert!(
            metadata.is_some_and(|metadata| metadata < 4096 + data / 50),
            "{data} in {measured:?}"
        );
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_full_stream_is_as_long_as_measured() {
    let (_pool, _live, first) = pool();
    has(&measured(&full(&first)), 20 * MIB);
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_first_that_is_told_of_a_full_stream_is_what_its_files_have() {
    let (pool, live, _first) = pool();
    clone_image(&pool);
    let second = snapshot(&live, pool.dir(), "2", Access::ReadOnly).unwrap();
    let mut most = 0;
    let watch = |total| {
        most = most.max(total);
        ControlFlow::Continue(())
    };
    let total = full(&second)
        .measure_extents(Encoding::Plain, watch)
        .unwrap();
    assert!((40 * MIB..41 * MIB).contains(&most), "{most}");
    // One of the two is a clone of the other.
    assert!((20 * MIB..21 * MIB).contains(&total), "{total}");
    measured(&full(&second));
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
    let size = increment(&pool, &live, &first);
    let data = 64 * 4096 + 1000 * 1024;
    assert!(size.stream > data && size.extents > data, "{size:?}");
}

#[test]
#[ignore = "needs root and btrfs"]
fn nothing_changed_is_next_to_nothing() {
    let (pool, live, first) = pool();
    has(&increment(&pool, &live, &first), 0);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_a_guest_trims_is_not_measured_as_data() {
    let (pool, live, first) = pool();
    let image = write(&pool, "disk.img", &noise(MIB), 700 * MIB);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&image, punch, 6 * MIB, 17 * MIB).unwrap();
    rustix::fs::fallocate(&image, punch, 900 * MIB, 100 * MIB).unwrap();
    has(&increment(&pool, &live, &first), MIB);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_only_allocated_is_data_to_the_kernel_alone() {
    let (pool, live, first) = pool();
    let image = write(&pool, "disk.img", &noise(MIB), 700 * MIB);
    let allocate = FallocateFlags::empty();
    rustix::fs::fallocate(&image, allocate, 800 * MIB, 64 * MIB).unwrap();
    let size = increment(&pool, &live, &first);
    assert!(size.stream > 65 * MIB, "{size:?}");
    assert!(size.extents < 2 * MIB, "{size:?}");
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_compressed_is_measured_as_it_is_stored() {
    let (pool, live, first) = pool();
    pool.remount("compress-force=zstd:1");
    let text = b"words and words and words ".repeat(200_000);
    write(&pool, "text", &text, 0).sync_all().unwrap();
    let second = snapshot(&live, pool.dir(), "2", Access::ReadOnly).unwrap();
    let request = SendRequest {
        source: &second,
        parent: Some(&first),
        clone_sources: &[],
    };
    let go_on = |_| ControlFlow::Continue(());
    let size = request.measure_extents(Encoding::AsStored, go_on).unwrap();
    let blocks = request.extents_as(Encoding::AsStored, go_on).unwrap();
    let actual: usize = blocks.map(|block| block.unwrap().len()).sum();
    assert_eq!(size, actual as u64);
    assert!(size < text.len() as u64 / 10, "{size}");
}

fn clone_image(pool: &Pool) {
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
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_cloned_is_not_measured_as_data() {
    let (pool, live, first) = pool();
    clone_image(&pool);
    has(&increment(&pool, &live, &first), 0);
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_watcher_breaks_it_off() {
    let (_pool, _live, first) = pool();
    for enough in [1, 4] {
        let mut asked = 0;
        let broken = full(&first).measure_extents(Encoding::Plain, |_| {
            asked += 1;
            match asked {
                asked if asked == enough => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert!(matches!(broken, Err(BlockError::BrokenOff)), "{broken:?}");
        assert_eq!(asked, enough);
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_writable_is_not_measured() {
    let (_pool, live, _first) = pool();
    let expected = Error::Writable {
        name: "live".into(),
    };
    let go_on = |_| ControlFlow::Continue(());
    for refused in [
        full(&live).measure(go_on),
        full(&live).measure_extents(Encoding::Plain, go_on),
    ] {
        let refused = refused.unwrap_err();
        assert!(
            matches!(&refused, BlockError::Send(error) if *error == expected),
            "{refused:?}"
        );
    }
}
