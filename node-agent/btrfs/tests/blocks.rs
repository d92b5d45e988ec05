//! Snapshots sent in blocks, from a real btrfs: what the blocks hold, that they are always the same, and
//! that nothing happens to the snapshots meanwhile. Random trees are the business of `history.rs`.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

mod receive_pair;
mod support;

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use icbd_btrfs::stream::{BlockReader, Command, MAX_BLOCK};
use icbd_btrfs::{
    Access, Block, BlockBuffer, BlockError, Errno, Error, SendRequest, Subvolume, create, delete,
    digest, punches_large_holes, snapshot,
};
use receive_pair::Mode::{Extents, Stream};
use receive_pair::{MIB, Pair, noise, replicate_by};
use rustix::fs::{FallocateFlags, fallocate};
use support::Pool;

/// What to send of a pair's source: a snapshot and its parent.
struct Job {
    source: Subvolume,
    parent: Option<Subvolume>,
}

impl Job {
    fn new(pair: &Pair, source: &str, parent: Option<&str>) -> Job {
        let open = |name: &str| Subvolume::open(pair.source.dir(), name).unwrap();
        Job {
            source: open(source),
            parent: parent.map(open),
        }
    }

    fn request(&self) -> SendRequest<'_> {
        SendRequest {
            source: &self.source,
            parent: self.parent.as_ref(),
            clone_sources: &[],
        }
    }

    fn extents(&self) -> impl Iterator<Item = Result<Block, BlockError>> {
        self.request().extents(go_on).unwrap()
    }
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn filled(blocks: impl Iterator<Item = Result<Block, BlockError>>) -> Vec<Vec<u8>> {
    blocks
        .map(|block| {
            let mut bytes = BlockBuffer::default();
            block.unwrap().fill(&mut bytes).unwrap();
            bytes.to_vec()
        })
        .collect()
}

/// Shows every command of the blocks.
fn commands(blocks: &[Vec<u8>], mut see: impl FnMut(Command<'_>)) {
    let mut reader = BlockReader::begin();
    for block in blocks {
        let mut block = block.as_slice();
        while let Some(command) = reader.next_command(&mut block).unwrap() {
            see(command);
        }
    }
    assert!(reader.is_ended());
}

fn punch(file: &File, offset: usize, length: usize) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, offset as u64, length as u64).unwrap();
}

fn write(path: &Path, data: &[u8], offset: usize) -> File {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.write_all_at(data, offset as u64).unwrap();
    file
}

/// A disk image of 5 MiB of data in 1 GiB, and 600 small files, in snapshot 1; all of them changed a
/// little in snapshot 2.
fn image_and_small_files() -> Pair {
    let pair = Pair::new();
    let live = pair.live();
    let image = write(&live.join("image"), &noise(5 * MIB, 1), 3 * MIB + 4096);
    image.set_len(1 << 30).unwrap();
    fs::create_dir(live.join("dir")).unwrap();
    let small = |change: usize| {
        for number in 0..600 {
            let data = noise(number * 7 + 1, (number + change) as u64);
            fs::write(live.join(format!("dir/{number}")), data).unwrap();
        }
    };
    small(0);
    pair.take("1");
    small(1);
    for part in 0..40 {
        image.write_all_at(&noise(4096, part), part << 18).unwrap();
    }
    punch(&image, 4 * MIB, MIB);
    pair.take("2");
    pair
}

#[test]
#[ignore = "needs root and btrfs"]
fn stream_blocks_are_the_kernels_stream_and_as_full_as_they_can_be() {
    let pair = image_and_small_files();
    for (source, parent) in [("1", None), ("2", Some("1"))] {
        let job = Job::new(&pair, source, parent);
        let mut stream = Vec::new();
        job.request()
            .start()
            .unwrap()
            .read_to_end(&mut stream)
            .unwrap();
        let blocks = filled(job.request().blocks(go_on).unwrap());
        assert!(blocks.concat() == stream);
        commands(&blocks, |_| {});
        for two in blocks.windows(2) {
            let length = u32::from_le_bytes(two[1][..4].try_into().unwrap());
            assert!(two[0].len() <= MAX_BLOCK);
            assert!(two[0].len() + 10 + length as usize > MAX_BLOCK);
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_same_snapshots_make_the_same_blocks() {
    let pair = image_and_small_files();
    for (source, parent) in [("1", None), ("2", Some("1"))] {
        let job = Job::new(&pair, source, parent);
        let first = filled(job.extents());
        assert!(first.iter().all(|block| block.len() <= MAX_BLOCK));
        assert!(first == filled(job.extents()));
        let first = filled(job.request().blocks(go_on).unwrap());
        assert!(first == filled(job.request().blocks(go_on).unwrap()));
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn blocks_are_filled_by_several_threads_at_once() {
    let pair = image_and_small_files();
    let job = Job::new(&pair, "1", None);
    let blocks: Vec<_> = job.extents().map(Result::unwrap).collect();
    let parallel = std::thread::scope(|scope| {
        let threads: Vec<_> = blocks
            .into_iter()
            .map(|block| {
                scope.spawn(|| {
                    let (length, mut bytes) = (block.len(), BlockBuffer::from(vec![7; 3]));
                    block.fill(&mut bytes).unwrap();
                    assert_eq!(bytes.len(), length);
                    bytes.to_vec()
                })
            })
            .collect();
        let filled = threads.into_iter().map(|thread| thread.join().unwrap());
        filled.collect::<Vec<_>>()
    });
    assert!(parallel == filled(job.extents()));
}

#[test]
#[ignore = "needs root and btrfs"]
fn data_is_written_by_whole_mebibytes_however_small_its_extents() {
    let pair = Pair::new();
    let live = pair.live();
    pair.source.remount("compress-force=zstd");
    // Starts off a boundary, and compresses: extents of 128 KiB.
    let text: Vec<u8> = noise(MIB, 1)
        .into_iter()
        .flat_map(|byte| [byte; 5])
        .collect();
    write(&live.join("image"), &text, 512 << 10);
    pair.take("1");
    let job = Job::new(&pair, "1", None);
    let mut writes = Vec::new();
    commands(&filled(job.extents()), |command| {
        if let Command::Write { offset, data, .. } = command {
            writes.push((offset as usize, data.len()));
        }
    });
    let mut expected = vec![(MIB / 2, MIB / 2)];
    expected.extend((1..5).map(|at| (at * MIB, MIB)));
    expected.push((5 * MIB, MIB / 2));
    assert_eq!(writes, expected);
    replicate_by(Extents, (&pair.source, "1"), None, (&pair.replica, "1"));
}

/// Bytes that files take, all together.
fn allocated(root: &Path) -> u64 {
    let entries = fs::read_dir(root).unwrap();
    let files = entries.map(|entry| entry.unwrap().metadata().unwrap());
    files.map(|file| file.blocks() * 512).sum()
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_sparse_stays_so_and_allocation_costs_nothing() {
    let pair = Pair::new();
    let live = pair.live();
    let image = write(&live.join("image"), &noise(8 * MIB, 1), 2 * MIB);
    image.set_len(64 << 20).unwrap();
    fs::write(live.join("grows"), noise(5000, 2)).unwrap();
    fs::write(live.join("shrinks"), noise(3 * MIB, 3)).unwrap();
    pair.take("1");

    punch(&image, 3 * MIB, 2 * MIB);
    punch(&image, 7 * MIB - 100, 8192);
    // Over data, over a hole, and beyond the end.
    let allocate = |file: &File, offset: usize, length: usize| {
        fallocate(file, FallocateFlags::empty(), offset as u64, length as u64).unwrap();
    };
    allocate(&image, 9 * MIB, 5 * MIB);
    allocate(&image, 60 * MIB, 200 * MIB + 77);
    image.write_all_at(&noise(MIB, 4), 100 << 20).unwrap();
    allocate(&write(&live.join("grows"), b"more", 6000), 5000, 300_000);
    let shrinks = write(&live.join("shrinks"), b"another start", 0);
    shrinks.set_len(2 << 20).unwrap();
    allocate(&write(&live.join("allocated"), b"", 0), 0, 10 * MIB);
    pair.take("2");

    for (name, parent) in [("1", None), ("2", Some("1"))] {
        let to = (&pair.replica, name);
        replicate_by(Extents, (&pair.source, name), parent, to);
    }
    let sent: usize = Job::new(&pair, "2", Some("1"))
        .extents()
        .map(|block| block.unwrap().len())
        .sum();
    assert!(sent < 2 * MIB, "{sent}");
    // The source also has what was allocated and never written, 211 MiB of it.
    let source = allocated(&pair.source.path().join("1"));
    assert_eq!(allocated(&pair.replica.path().join("1")), source);
    let replica = allocated(&pair.replica.path().join("2"));
    assert!((8 << 20..12 << 20).contains(&replica), "{replica}");
}

/// Inode after inode is sent: these files, older than their directories, while the directories have
/// still their old names. In the snapshot something else has them.
#[test]
#[ignore = "needs root and btrfs"]
fn a_file_is_found_where_something_else_has_its_path() {
    let pair = Pair::new();
    let live = pair.live();
    let dirs = ["one", "two", "three", "four"];
    for dir in dirs {
        fs::write(live.join("file"), "old").unwrap();
        fs::create_dir(live.join(dir)).unwrap();
        fs::rename(live.join("file"), live.join(dir).join("file")).unwrap();
    }
    // Where one inode item cannot hold all names in a directory, further ones are kept elsewhere;
    // then only those are left.
    let link = |number: usize| live.join(format!("one/{}-{number}", "x".repeat(220)));
    for number in 0..200 {
        fs::hard_link(live.join("one/file"), link(number)).unwrap();
    }
    fs::remove_file(live.join("one/file")).unwrap();
    for number in 0..150 {
        fs::remove_file(link(number)).unwrap();
    }
    pair.take("1");

    for dir in dirs {
        fs::rename(live.join(dir), live.join(format!("{dir}-moved"))).unwrap();
        let file = fs::read_dir(live.join(format!("{dir}-moved"))).unwrap();
        let file = file.last().unwrap().unwrap().path();
        write(&file, &noise(MIB, dir.len() as u64), 4096);
    }
    // Another file, first, so that one path is announced for two files in a row; a symlink to a
    // directory with another file; a file where the path has a directory; nothing.
    fs::create_dir(live.join("four")).unwrap();
    fs::write(live.join("four/file"), noise(2 * MIB, 7)).unwrap();
    std::os::unix::fs::symlink("four", live.join("two")).unwrap();
    fs::write(live.join("three"), "a file").unwrap();
    pair.take("2");

    let mut written = Vec::new();
    let job = Job::new(&pair, "2", Some("1"));
    commands(&filled(job.extents()), |command| {
        if let Command::Write { path, .. } = command {
            written.push(path.to_string());
        }
    });
    written.dedup();
    assert!(written[0].starts_with("one/xxx"), "{written:?}");
    assert_eq!(
        written[1..],
        ["two/file", "three/file", "four/file", "three"]
    );
    for (name, parent) in [("1", None), ("2", Some("1"))] {
        let to = (&pair.replica, name);
        replicate_by(Extents, (&pair.source, name), parent, to);
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn data_that_does_not_match_its_checksum_is_told_with_its_path() {
    let pool = Pool::with_size(512 << 20);
    let live = create(pool.dir(), "live").unwrap();
    let data = noise(MIB, 1);
    fs::write(pool.path().join("live/image"), &data).unwrap();
    let source = snapshot(&live, pool.dir(), "1", Access::ReadOnly).unwrap();
    let disk = File::options().read(true).write(true).open(pool.disk());
    damage(&disk.unwrap(), &data[MIB / 2..][..64]);

    let request = SendRequest {
        source: &source,
        parent: None,
        clone_sources: &[],
    };
    let mut blocks = request.extents(go_on).unwrap().map(Result::unwrap);
    let told = blocks.find_map(|block| block.fill(&mut BlockBuffer::default()).err());
    let told = told.unwrap();
    assert_eq!(told.errno(), Some(Errno::IO));
    assert!(told.to_string().contains("read \"image\""), "{told}");
    let told = request.blocks(go_on).unwrap().find_map(Result::err);
    assert_eq!(told.unwrap().errno(), Some(Errno::IO));
}

/// Changes what a disk has where these bytes are.
fn damage(disk: &File, bytes: &[u8]) {
    let mut chunk = vec![0; 2 * MIB];
    for at in (0..).step_by(MIB) {
        let read = disk.read_at(&mut chunk, at).unwrap();
        assert!(read > 0);
        if let Some(found) = chunk[..read]
            .windows(bytes.len())
            .step_by(bytes.len())
            .position(|window| window == bytes)
        {
            let at = at + (found * bytes.len()) as u64;
            return disk.write_all_at(b"damage", at).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn nothing_happens_to_the_snapshots_until_the_last_data_is_read() {
    let pair = image_and_small_files();
    let job = Job::new(&pair, "2", Some("1"));
    let refused = || {
        for (name, snapshot) in [("2", &job.source), ("1", job.parent.as_ref().unwrap())] {
            let deleted = delete(pair.source.dir(), name).unwrap_err();
            assert_eq!(deleted.errno(), Some(Errno::PERM));
            let opened = snapshot.set_read_only(false).unwrap_err();
            assert_eq!(opened.errno(), Some(Errno::PERM));
        }
    };
    let mut blocks: Vec<_> = job.extents().map(Result::unwrap).collect();
    refused();
    let last = blocks.pop().unwrap();
    drop(blocks);
    // It has the image's last changes, or some of the small files.
    refused();
    last.fill(&mut BlockBuffer::default()).unwrap();
    delete(pair.source.dir(), "2").unwrap();
    job.parent.unwrap().set_read_only(false).unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_hold_lasts_as_long_as_it_is_wanted_however_little_there_is_to_send() {
    let pair = Pair::new();
    let source = pair.take("1");
    let request = SendRequest {
        source: &source,
        parent: None,
        clone_sources: &[],
    };
    let (one, another) = (request.hold().unwrap(), request.hold().unwrap());
    drop(one);
    let refused = delete(pair.source.dir(), "1").unwrap_err();
    assert_eq!(refused.errno(), Some(Errno::PERM));
    drop(another);
    delete(pair.source.dir(), "1").unwrap();
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_writable_is_neither_held_nor_sent() {
    let pair = Pair::new();
    let live = Subvolume::open(pair.source.dir(), "live").unwrap();
    let request = SendRequest {
        source: &live,
        parent: None,
        clone_sources: &[],
    };
    let expected = Error::Writable {
        name: "live".into(),
    };
    assert_eq!(request.hold().unwrap_err(), expected);
    let extents = request.extents(go_on).err().unwrap();
    let mut blocks = request.blocks(go_on).unwrap();
    let stream = blocks.next().unwrap().unwrap_err();
    assert!(blocks.next().is_none());
    for error in [extents, stream] {
        assert!(
            matches!(&error, BlockError::Send(error) if *error == expected),
            "{error:?}"
        );
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_watcher_sees_what_the_kernel_sends_and_breaks_it_off() {
    let pair = image_and_small_files();
    let job = Job::new(&pair, "1", None);
    let mut most = 0;
    let extents = job.request().extents(|bytes| {
        most = bytes;
        ControlFlow::Continue(())
    });
    let blocks = extents.unwrap().map(|block| block.unwrap().len());
    // 600 files with some commands each, and no data.
    assert!(blocks.sum::<usize>() > 5 * MIB);
    assert!((60_000..MIB as u64).contains(&most), "{most}");

    let stop = |_| ControlFlow::Break(());
    let (mut extents, mut blocks) = (
        job.request().extents(stop).unwrap(),
        job.request().blocks(stop).unwrap(),
    );
    for (error, after) in [
        (extents.next(), extents.next()),
        (blocks.next(), blocks.next()),
    ] {
        let error = error.unwrap().unwrap_err();
        assert!(matches!(error, BlockError::BrokenOff), "{error:?}");
        assert!(after.is_none());
    }
    drop((extents, blocks));
    deleted_in_the_end(&pair, "1");
}

/// Deletes a snapshot that the kernel is still to let go of, at its next write.
fn deleted_in_the_end(pair: &Pair, name: &str) {
    let begun = Instant::now();
    while let Err(error) = delete(pair.source.dir(), name) {
        assert_eq!(error.errno(), Some(Errno::PERM));
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_pass_that_is_given_up_lets_go_of_the_snapshots() {
    let pair = image_and_small_files();
    let mut blocks = Job::new(&pair, "1", None)
        .request()
        .extents(go_on)
        .map(|blocks| blocks.take(2).collect::<Vec<_>>())
        .unwrap();
    blocks.truncate(1);
    drop(blocks);
    let mut stream = Job::new(&pair, "1", None).request().blocks(go_on).unwrap();
    stream.next().unwrap().unwrap();
    drop(stream);
    deleted_in_the_end(&pair, "1");
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_kernel_that_tells_large_holes_tells_them_in_extents_mode() {
    let pair = Pair::new();
    let scratch = File::open(pair.live()).unwrap();
    let answer = punches_large_holes(&scratch).unwrap();
    assert_eq!(fs::read_dir(pair.live()).unwrap().count(), 0);
    if !answer {
        return;
    }
    let image = write(&pair.live().join("image"), &noise(MIB, 1), 9 << 30);
    image.write_all_at(&noise(MIB, 2), 1 << 30).unwrap();
    image.write_all_at(&noise(MIB, 3), 0).unwrap();
    pair.take("1");
    punch(&image, 4096, 8 << 30);
    pair.take("2");
    for (name, parent) in [("1", None), ("2", Some("1"))] {
        for (mode, to) in [(Extents, name), (Stream, "again")] {
            replicate_by(mode, (&pair.source, name), parent, (&pair.replica, to));
        }
        assert_eq!(
            digest(&Subvolume::open(pair.replica.dir(), name).unwrap()).unwrap(),
            digest(&Subvolume::open(pair.source.dir(), name).unwrap()).unwrap(),
        );
        receive_pair::remove(&pair.replica, "again");
    }
}
