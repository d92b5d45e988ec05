//! Compressed extents that travel compressed: what is sent, what stands in the replica, and that nothing
//! is taken for durable that is not. Random trees are the business of `history.rs`.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]

mod receive_pair;
mod support;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use icbd_btrfs::receive::{ReceiveError, Receiver, Refusal};
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{BlockReader, Command, Compression, Encoded, TreePath, Version};
use icbd_btrfs::{BlockBuffer, BlockError, Encoding, Errno, SendRequest, Subvolume};
use receive_pair::Mode::{StoredExtents, StoredStream};
use receive_pair::{MIB, PARTIAL, Pair, assert_equal, names, noise, remove, replicate_by};
use rustix::fs::{FallocateFlags, fallocate};
use support::{Pool, run};
use uuid::Uuid;

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Text that compresses to a few tenths of its length, and repeats nowhere.
fn text(length: usize, seed: u64) -> Vec<u8> {
    noise(length.div_ceil(4), seed)
        .into_iter()
        .flat_map(|byte| [byte; 4])
        .take(length)
        .collect()
}

fn compress_by(pool: &Pool, algorithm: &str) {
    let option = format!("remount,compress-force={algorithm}");
    let path = pool.path();
    run("mount", ["-o", &option, path.to_str().unwrap()]);
}

fn write(path: &Path, data: &[u8], offset: usize) -> File {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap();
    file.write_all_at(data, offset as u64).unwrap();
    // Extents are made as data is written back.
    file.sync_all().unwrap();
    file
}

fn punch(file: &File, offset: u64, length: u64) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, offset, length).unwrap();
}

/// Compressed files with everything in which extents can show in parts.
fn compressed_tree(live: &Path) {
    write(&live.join("whole"), &text(3 * MIB, 1), 0);
    write(&live.join("odd-end"), &text(MIB + 777, 2), 0);
    write(&live.join("off-a-boundary"), &text(2 * MIB, 3), 68 << 10);
    write(&live.join("inline"), &text(1500, 4), 0);
    write(&live.join("one-block"), &text(4096, 5), 0);
    write(&live.join("noise"), &noise(MIB, 6), 0);

    let overwritten = live.join("overwritten");
    write(&overwritten, &text(2 * MIB, 7), 0);
    write(&overwritten, b"in the middle", 70_000);
    // Little is left of one, every other block of another.
    write(&overwritten, &text(120 << 10, 8), 260 << 10);
    for block in (512..640).step_by(8) {
        write(&overwritten, &noise(4096, block), (block as usize) << 10);
    }
    let punched = write(&live.join("punched"), &text(2 * MIB, 9), 0);
    punch(&punched, 40 << 10, 20 << 10);
    punch(&punched, MIB as u64 - 5000, 300_000);
    let cut = write(&live.join("cut"), &text(MIB, 10), 0);
    cut.set_len((500 << 10) + 123).unwrap();
    let cut = write(&live.join("cut-and-longer"), &text(MIB, 11), 0);
    cut.set_len((500 << 10) + 123).unwrap();
    cut.set_len(2 << 20).unwrap();

    let part = write(&live.join("reflinked"), &text(4096, 12), 900 << 10);
    let whole = File::open(live.join("whole")).unwrap();
    for (from, length, to) in [
        (0, 256 << 10, 0),
        (64 << 10, 64 << 10, 256 << 10),
        (72 << 10, 8192, 1 << 20),
    ] {
        clone_range(&whole, from, length, &part, to);
    }
}

/// btrfs shares what lies on blocks.
fn clone_range(from: &File, mut offset: u64, length: u64, to: &File, mut to_offset: u64) {
    let (at, to_at) = (Some(&mut offset), Some(&mut to_offset));
    let copied = rustix::fs::copy_file_range(from, at, to, to_at, length as usize).unwrap();
    assert_eq!(copied as u64, length);
}

/// The encoded writes that a snapshot is sent with: path, offset, the extent's part, hash of the payload.
type Sent = Vec<(String, u64, [u64; 3], blake3::Hash)>;

fn sent_encoded(pool: &Pool, name: &str, parent: Option<&str>) -> Sent {
    let open = |name: &str| Subvolume::open(pool.dir(), name).unwrap();
    let (source, parent) = (open(name), parent.map(open));
    let request = SendRequest {
        source: &source,
        parent: parent.as_ref(),
        clone_sources: &[],
    };
    let mut sent = Sent::new();
    let (mut reader, mut bytes) = (BlockReader::begin(), BlockBuffer::default());
    for block in request.extents_as(Encoding::AsStored, go_on).unwrap() {
        block.unwrap().fill(&mut bytes).unwrap();
        let mut block = &bytes[..];
        while let Some(command) = reader.next_command(&mut block).unwrap() {
            if let Command::EncodedWrite {
                path,
                offset,
                encoded: e,
            } = command
            {
                let range = [e.file_len, e.unencoded_len, e.unencoded_offset];
                sent.push((path.to_string(), offset, range, blake3::hash(e.data)));
            }
        }
    }
    sent.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    sent
}

#[test]
#[ignore = "needs root and btrfs"]
fn extents_stand_in_the_replica_as_they_stood_in_the_source() {
    for algorithm in ["zlib", "zstd:1"] {
        let pair = Pair::new();
        compress_by(&pair.source, algorithm);
        compressed_tree(&pair.live());
        pair.take("1");
        let sent = sent_encoded(&pair.source, "1", None);
        let bytes: u64 = sent.iter().map(|(_, _, [shown, ..], _)| shown).sum();
        assert!(bytes > 9 * MIB as u64, "{algorithm}: {bytes} encoded");
        assert!(sent == sent_encoded(&pair.source, "1", None));
        assert!(!sent.iter().any(|(path, ..)| path == "inline"));
        for mode in [StoredExtents, StoredStream] {
            replicate_by(mode, (&pair.source, "1"), None, (&pair.replica, "1"));
            let again = sent_encoded(&pair.replica, "1", None);
            if mode == StoredExtents {
                assert_eq!(again, sent, "{algorithm}");
            }
            assert!(again.len() * 10 > sent.len() * 9, "{algorithm}");
            remove(&pair.replica, "1");
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn increments_arrive_compressed_too() {
    for mode in [StoredExtents, StoredStream] {
        let pair = Pair::new();
        let live = pair.live();
        compress_by(&pair.source, "zstd:1");
        compressed_tree(&live);
        pair.take("1");
        write(&live.join("whole"), &text(300 << 10, 20), 1 << 20);
        write(&live.join("odd-end"), &text(MIB, 21), MIB - 3333);
        let punched = write(&live.join("punched"), &text(200 << 10, 22), 50 << 10);
        punch(&punched, 100 << 10, 50 << 10);
        punched.set_len(MIB as u64 + 1).unwrap();
        write(&live.join("cut"), &text(400 << 10, 23), 200 << 10);
        compressed_tree_elsewhere(&live);
        pair.take("2");
        assert!(sent_encoded(&pair.source, "2", Some("1")).len() > 10);
        for (name, parent) in [("1", None), ("2", Some("1"))] {
            replicate_by(mode, (&pair.source, name), parent, (&pair.replica, name));
        }
    }
}

fn compressed_tree_elsewhere(live: &Path) {
    fs::create_dir(live.join("more")).unwrap();
    compressed_tree(&live.join("more"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn from_a_checkpoint_compressed_extents_go_on_arriving() {
    let pair = Pair::new();
    compress_by(&pair.source, "zstd:1");
    compressed_tree(&pair.live());
    write(&pair.live().join("large"), &text(20 * MIB, 30), 0);
    let source = pair.take("1");
    let request = SendRequest {
        source: &source,
        parent: None,
        clone_sources: &[],
    };
    let blocks = request.extents_as(Encoding::AsStored, go_on).unwrap();
    let blocks: Vec<_> = blocks
        .map(|block| {
            let mut bytes = BlockBuffer::default();
            block.unwrap().fill(&mut bytes).unwrap();
            bytes
        })
        .collect();
    assert!(blocks.len() > 3, "{}", blocks.len());
    let dir = pair.replica.dir();
    let receiver =
        Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[]).with_encoding(Encoding::AsStored);
    for cut in 1..blocks.len() {
        let mut arriving = receiver.begin();
        for block in &blocks[..cut] {
            arriving.block(block, |_| go_on(0)).unwrap();
        }
        let checkpoint = arriving.checkpoint(b".kept").unwrap().unwrap();
        drop(arriving);
        let kept = Subvolume::open(pair.replica.dir(), ".kept").unwrap();
        let mut arriving = receiver.resume(&checkpoint, &kept).unwrap();
        for block in &blocks[cut..] {
            arriving.block(block, |_| go_on(0)).unwrap();
        }
        let received = arriving.end().unwrap().finish(b"1").unwrap();
        assert_equal(&source, &received);
        for name in ["1", ".kept"] {
            remove(&pair.replica, name);
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn lzo_is_sent_plain_or_not_at_all() {
    let pair = Pair::new();
    compress_by(&pair.source, "lzo");
    compressed_tree(&pair.live());
    let source = pair.take("1");
    assert_eq!(sent_encoded(&pair.source, "1", None), []);
    replicate_by(
        StoredExtents,
        (&pair.source, "1"),
        None,
        (&pair.replica, "1"),
    );
    let request = SendRequest {
        source: &source,
        parent: None,
        clone_sources: &[],
    };
    let mut blocks = request.blocks_as(Encoding::AsStored, go_on).unwrap();
    let error = blocks.find_map(Result::err).unwrap();
    assert!(matches!(error, BlockError::Lzo { .. }), "{error}");
}

#[test]
#[ignore = "needs root and btrfs"]
fn files_that_cannot_have_compressed_extents_get_plain_data() {
    let pair = Pair::new();
    compress_by(&pair.source, "zstd");
    compressed_tree(&pair.live());
    let path = pair.replica.path();
    run("mount", ["-o", "remount,nodatasum", path.to_str().unwrap()]);
    pair.take("1");
    for mode in [StoredExtents, StoredStream] {
        replicate_by(mode, (&pair.source, "1"), None, (&pair.replica, "1"));
        assert_eq!(sent_encoded(&pair.replica, "1", None), []);
        remove(&pair.replica, "1");
    }
}

/// More files than are held open until they are synced.
#[test]
#[ignore = "needs root and btrfs"]
fn many_small_compressed_files_arrive() {
    let pair = Pair::new();
    compress_by(&pair.source, "zstd");
    for number in 0..300 {
        let data = text(20_000 + number * 7, number as u64);
        fs::write(pair.live().join(number.to_string()), data).unwrap();
    }
    pair.take("1");
    let sent = sent_encoded(&pair.source, "1", None);
    assert!(sent.len() > 150, "{}", sent.len());
    for mode in [StoredExtents, StoredStream] {
        replicate_by(mode, (&pair.source, "1"), None, (&pair.replica, "1"));
        assert_eq!(sent_encoded(&pair.replica, "1", None), sent);
        remove(&pair.replica, "1");
    }
}

fn path(name: &str) -> TreePath<'_> {
    TreePath::new(name.as_bytes()).unwrap()
}

/// A stream that makes the file "a", and does this.
fn stream(commands: impl FnOnce(&mut Encoder)) -> Vec<u8> {
    let mut encoder = Encoder::new(Version::V2);
    encoder.command(&Command::Subvol {
        name: path("1"),
        uuid: Uuid::from_u128(1),
        ctransid: 1,
    });
    encoder.command(&Command::Mkfile {
        path: path("a"),
        ino: 257,
    });
    commands(&mut encoder);
    encoder.end()
}

fn receive_as(encoding: Encoding, pool: &Pool, stream: &[u8]) -> Result<Subvolume, ReceiveError> {
    let dir = pool.dir();
    Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[])
        .with_encoding(encoding)
        .run(stream, |_| ControlFlow::Continue(()))?
        .finish(b"1")
}

fn zstd(data: &[u8]) -> Vec<u8> {
    // As btrfs does it: a window of no more than an extent.
    let mut packed = zstd::bulk::compress(data, 1).unwrap();
    packed.resize(packed.len().next_multiple_of(4096), 0);
    packed
}

fn write_encoded(encoder: &mut Encoder, name: &str, offset: u64, data: &[u8], file_len: u64) {
    encoder.command(&Command::EncodedWrite {
        path: path(name),
        offset,
        encoded: Encoded {
            compression: Compression::Zstd,
            data,
            unencoded_len: 128 << 10,
            unencoded_offset: 0,
            file_len,
        },
    });
}

/// The name of each file with its length and a hash of what is in it.
fn contents(root: &Path) -> Vec<(String, u64, blake3::Hash)> {
    let entries = fs::read_dir(root).unwrap().map(Result::unwrap);
    let mut contents: Vec<_> = entries
        .map(|entry| {
            let mut hasher = blake3::Hasher::new();
            let file = File::open(entry.path()).unwrap();
            let length = std::io::copy(&mut &file, &mut hasher).unwrap();
            (
                entry.file_name().into_string().unwrap(),
                length,
                hasher.finalize(),
            )
        })
        .collect();
    contents.sort_by(|one, other| one.0.cmp(&other.0));
    contents
}

/// What comes after an extent and changes it again. The kernel sends nothing of that kind.
#[test]
#[ignore = "needs root and btrfs"]
fn what_is_changed_again_is_read_back_before() {
    const EXTENT: u64 = 128 << 10;
    let pool = Pool::new();
    let packed = zstd(&text(EXTENT as usize, 1));
    let fallocate = |mode, offset, length| Command::Fallocate {
        path: path("a"),
        mode,
        offset,
        length,
    };
    let changes = [
        Command::Write {
            path: path("a"),
            offset: 5000,
            data: b"over it",
        },
        Command::Write {
            path: path("a"),
            offset: 5 * EXTENT,
            data: b"far behind it",
        },
        Command::Truncate {
            path: path("a"),
            size: EXTENT + 4097,
        },
        Command::Truncate {
            path: path("a"),
            size: 8 << 20,
        },
        fallocate(3, 8192, EXTENT),
        fallocate(16, 8192, EXTENT),
        Command::Clone {
            path: path("a"),
            offset: 16384,
            length: 8192,
            source: Uuid::from_u128(1),
            source_ctransid: 1,
            source_path: path("a"),
            source_offset: EXTENT,
        },
        Command::Unlink { path: path("a") },
    ];
    for change in &changes {
        for last in [EXTENT, EXTENT - 1000] {
            let blocks = stream(|encoder| {
                write_encoded(encoder, "a", 0, &packed, EXTENT);
                write_encoded(encoder, "a", EXTENT, &packed, last);
                encoder.command(change);
                // Another file for each that is held.
                for number in 0..70 {
                    let name = format!("b{number}");
                    let ino = 258 + number;
                    encoder.command(&Command::Mkfile {
                        path: path(&name),
                        ino,
                    });
                    write_encoded(encoder, &name, 0, &packed, EXTENT);
                }
                if !matches!(change, Command::Unlink { .. }) {
                    write_encoded(encoder, "a", 8192, &packed, 16384);
                }
            });
            let contents = [Encoding::Plain, Encoding::AsStored].map(|encoding| {
                receive_as(encoding, &pool, &blocks)
                    .unwrap_or_else(|error| panic!("{change:?}, {encoding:?}: {error}"));
                let content = contents(&pool.path().join("1"));
                remove(&pool, "1");
                content
            });
            assert_eq!(contents[0], contents[1], "{change:?}");
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_does_not_decompress_is_refused_however_it_is_to_be_written() {
    let pool = Pool::new();
    let good = zstd(&text(128 << 10, 1));
    let mut cut = good[..good.len() / 2].to_vec();
    cut.resize(cut.len().next_multiple_of(4096), 0);
    let mut garbled = good.clone();
    garbled[64..].copy_from_slice(&noise(good.len() - 64, 2));
    let no_frame = vec![0; 4096];
    for damaged in [cut, garbled, no_frame] {
        for encoding in [Encoding::Plain, Encoding::AsStored] {
            let blocks = stream(|encoder| {
                write_encoded(encoder, "a", 0, &good, 128 << 10);
                write_encoded(encoder, "a", 128 << 10, &damaged, 128 << 10);
            });
            let error = receive_as(encoding, &pool, &blocks).unwrap_err();
            let decode = matches!(
                error,
                ReceiveError::Command {
                    refusal: Refusal::Decode(_),
                    ..
                }
            );
            assert!(decode, "{error}");
            assert_eq!(names(&pool), [""; 0]);
        }
    }
}

/// The kernel takes payloads of any kind and any place, and these it would take wrongly or not at all.
#[test]
#[ignore = "needs root and btrfs"]
fn extents_of_unusual_shape_become_plain_data() {
    let pool = Pool::new();
    let data = text(128 << 10, 1);
    let packed = zstd::bulk::compress(&data, 1).unwrap();
    let shapes = [
        // Off a block in the file, off one in the extent, shorter and longer than whole blocks, nothing.
        (100, 0, 128 << 10, 128 << 10),
        (0, 100, 8192, 128 << 10),
        (0, 0, 100, 128 << 10),
        (0, 0, 60_000, 60_000),
        (4096, 4096, 0, 128 << 10),
    ];
    for (offset, unencoded_offset, file_len, unencoded_len) in shapes {
        for blocks in [4096, 1] {
            let mut packed = packed.clone();
            packed.resize(packed.len().next_multiple_of(blocks), 0);
            let bytes = stream(|encoder| {
                encoder.command(&Command::Truncate {
                    path: path("a"),
                    size: 1 << 20,
                });
                encoder.command(&Command::EncodedWrite {
                    path: path("a"),
                    offset,
                    encoded: Encoded {
                        compression: Compression::Zstd,
                        data: &packed,
                        unencoded_len,
                        unencoded_offset,
                        file_len,
                    },
                });
            });
            let received = receive_as(Encoding::AsStored, &pool, &bytes).unwrap();
            drop(received);
            let mut expected = vec![0; 1 << 20];
            let (from, length) = (unencoded_offset as usize, file_len as usize);
            expected[offset as usize..][..length].copy_from_slice(&data[from..from + length]);
            assert!(fs::read(pool.path().join("1/a")).unwrap() == expected);
            remove(&pool, "1");
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_full_file_system_is_told_and_leaves_nothing() {
    let pair = Pair::new();
    compress_by(&pair.source, "zstd:1");
    write(&pair.live().join("big"), &text(400 * MIB, 1), 0);
    let source = pair.take("1");
    let small = Pool::with_size(120 << 20);
    let error = receive_stored(small.dir(), &source).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOSPC), "{error}");
    assert!(error.to_string().contains("\"big\""), "{error}");
    assert_eq!(names(&small), [""; 0]);
}

/// A mount, taken down again.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new(options: &[&str]) -> Mounted {
        let directory = tempfile::tempdir().unwrap();
        run(
            "mount",
            options.iter().copied().chain(directory.path().to_str()),
        );
        Mounted(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", ["-l".as_ref(), self.path()]);
    }
}

/// A disk that says it has 2 GiB, and has room for 48 MiB: the kernel takes every encoded write.
#[test]
#[ignore = "needs root and btrfs"]
fn a_disk_that_fails_after_the_write_is_told() {
    // Files that are held until they are synced, and more of them than can be.
    for (files, length) in [(1, 220 * MIB), (100, 5 * MIB / 2)] {
        let pair = Pair::new();
        compress_by(&pair.source, "zstd:1");
        for file in 0..files {
            write(&pair.live().join(file.to_string()), &text(length, file), 0);
        }
        let source = pair.take("1");
        let room = Mounted::new(&["-t", "tmpfs", "-o", "size=48m", "none"]);
        let disk = room.path().join("disk");
        File::create(&disk).unwrap().set_len(2 << 30).unwrap();
        let disk = disk.to_str().unwrap();
        run("mkfs.btrfs", ["-q", "-m", "single", disk]);
        let pool = Mounted::new(&["-o", "loop", disk]);
        let dir = File::open(pool.path()).unwrap();
        let error = receive_stored(dir, &source).unwrap_err();
        let told = [Errno::IO, Errno::NOSPC, Errno::ROFS].map(Some);
        assert!(told.contains(&error.errno()), "{error}");
        assert!(!pool.path().join("1").exists());
    }
}

/// As if the disk had lost it, and the kernel told nobody.
#[test]
#[ignore = "needs root and btrfs"]
fn data_that_is_not_there_when_it_is_read_back_is_missed() {
    let pool = Pool::new();
    let packed = zstd(&text(128 << 10, 1));
    // Of files that are held until they are synced, and of such that are not.
    for (files, lost) in [(1, 0), (100, 99), (100, 0)] {
        let blocks = stream(|encoder| {
            for number in 0..files {
                let (name, ino) = (format!("b{number}"), 258 + number);
                encoder.command(&Command::Mkfile {
                    path: path(&name),
                    ino,
                });
                for extent in 0..3 {
                    write_encoded(encoder, &name, extent << 17, &packed, 128 << 10);
                }
            }
        });
        let others: [fn(&File); 4] = [
            |file| punch(file, 1 << 17, 128 << 10),
            |file| punch(file, 2 << 17, 4096),
            |file| file.write_all_at(b"else", 300_000).unwrap(),
            |file| file.set_len(300_000).unwrap(),
        ];
        for lose in others {
            let dir = pool.dir();
            let received = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[])
                .with_encoding(Encoding::AsStored)
                .run(&blocks[..], |_| ControlFlow::Continue(()))
                .unwrap();
            let file = pool.path().join(PARTIAL).join(format!("b{lost}"));
            lose(&File::options().write(true).open(file).unwrap());
            let error = received.finish(b"1").unwrap_err();
            assert!(error.to_string().contains("is not there"), "{error}");
            assert_eq!(error.errno(), Some(Errno::NOSPC));
            assert_eq!(names(&pool), [""; 0]);
        }
    }
}

fn receive_stored(dir: impl AsFd, source: &Subvolume) -> Result<Subvolume, ReceiveError> {
    let request = SendRequest {
        source,
        parent: None,
        clone_sources: &[],
    };
    let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &[]);
    let mut arriving = receiver.with_encoding(Encoding::AsStored).begin();
    let mut bytes = BlockBuffer::default();
    for block in request.extents_as(Encoding::AsStored, go_on).unwrap() {
        block.unwrap().fill(&mut bytes).unwrap();
        arriving.block(&bytes, |_| ControlFlow::Continue(()))?;
    }
    arriving.end()?.finish(b"1")
}
