//! `icbd-agent receive` as scripts use it: streams of the kernel on its standard input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use icbd_btrfs::{Access, Identity, SendRequest, Subvolume};
use support::{Pool, digest, noise, run};

const MIB: usize = 1 << 20;

/// A file system with a writable subvolume `live`, of which snapshots are taken.
struct Source(Pool);

impl Source {
    fn new() -> Self {
        let pool = Pool::new();
        icbd_btrfs::create(pool.dir(), "live").unwrap();
        Self(pool)
    }

    fn write(&self, file: &str, content: &[u8]) {
        fs::write(self.0.path().join("live").join(file), content).unwrap();
    }

    fn take(&self, name: &str) -> Subvolume {
        let live = Subvolume::open(self.0.dir(), "live").unwrap();
        icbd_btrfs::snapshot(&live, self.0.dir(), name, Access::ReadOnly).unwrap()
    }

    fn digest(&self, name: &str) -> icbd_btrfs::Digest {
        digest(&self.0.path().join(name))
    }
}

/// The stream of a snapshot, as the kernel makes it.
fn stream(source: &Subvolume, parent: Option<&Subvolume>, clones: &[&Subvolume]) -> Vec<u8> {
    let request = SendRequest {
        source,
        parent,
        clone_sources: clones,
    };
    let mut bytes = Vec::new();
    request.start().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

fn start(dir: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
        .arg("receive")
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Gives bytes to `icbd-agent receive`.
fn receive(dir: &Path, bytes: &[u8]) -> Output {
    let mut child = start(dir);
    // It may stop reading when it fails, which its exit status tells.
    let _ = child.stdin.take().unwrap().write_all(bytes);
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty());
    output
}

fn received(dir: &Path, bytes: &[u8]) -> String {
    let output = receive(dir, bytes);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    said
}

fn refused(dir: &Path, bytes: &[u8]) -> String {
    let output = receive(dir, bytes);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// What is in a directory, sorted.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn identity(path: &Path) -> Identity {
    let subvolume = fs::File::open(path).unwrap();
    let subvolume = Subvolume::from_fd(subvolume.into(), "subvolume").unwrap();
    Identity::of(&subvolume.info().unwrap())
}

#[test]
#[ignore = "needs root and btrfs"]
fn streams_become_snapshots_under_their_own_names() {
    let (source, target) = (Source::new(), Pool::new());
    let dir = target.path().join("a directory");
    fs::create_dir(&dir).unwrap();
    source.write("disk", &noise(1, 8 * MIB));
    let one = source.take("one");
    source.write("disk", &noise(2, 8 * MIB));
    source.write("more", b"more");
    let two = source.take("two");
    source.write("more", b"even more");
    let three = source.take("three");

    let said = received(&dir, &stream(&one, None, &[]));
    assert!(said.contains("a directory/one: received in full"), "{said}");
    // Of what follows the parents came in another process, and in the same.
    let both = [
        stream(&two, Some(&one), &[]),
        stream(&three, Some(&two), &[]),
    ];
    let said = received(&dir, &both.concat());
    assert_eq!(
        said.matches("received as an increment").count(),
        2,
        "{said}"
    );
    assert_eq!(names(&dir), ["one", "three", "two"]);
    for name in ["one", "two", "three"] {
        assert_eq!(digest(&dir.join(name)), source.digest(name), "{name}");
        let sent = identity(&source.0.path().join(name));
        assert_eq!(identity(&dir.join(name)), sent, "{name}");
        assert!(sent.clean().is_some());
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn extents_are_cloned_from_any_snapshot_that_is_there() {
    let (source, target) = (Source::new(), Pool::new());
    source.write("disk", &noise(1, 8 * MIB));
    let one = source.take("one");
    let live = source.0.path().join("live");
    run(
        "cp",
        [
            "--reflink=always".into(),
            live.join("disk"),
            live.join("copy"),
        ],
    );
    fs::remove_file(live.join("disk")).unwrap();
    let other = source.take("other");
    let clones = stream(&other, None, &[&one]);
    assert!(clones.len() < MIB, "{} bytes", clones.len());
    received(&target.path(), &stream(&one, None, &[]));
    received(&target.path(), &clones);
    assert_eq!(digest(&target.path().join("other")), source.digest("other"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_name_that_is_taken_is_refused_and_stays() {
    let (source, target) = (Source::new(), Pool::new());
    source.write("file", b"content");
    let one = stream(&source.take("one"), None, &[]);
    source.write("file", b"other content");
    let two = stream(&source.take("two"), None, &[]);
    fs::write(target.path().join("two"), "a file of somebody's").unwrap();
    let said = refused(&target.path(), &[&one[..], &two[..]].concat());
    assert!(said.contains("two is there already"), "{said}");
    let said = refused(&target.path(), &one);
    assert!(
        said.contains("one is there already, and is a subvolume"),
        "{said}"
    );
    // What came before the refusal stays, as does what was in its way.
    assert_eq!(names(&target.path()), ["one", "two"]);
    assert_eq!(digest(&target.path().join("one")), source.digest("one"));
    assert!(target.path().join("two").is_file());
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_increment_without_its_parent_is_refused() {
    let (source, target) = (Source::new(), Pool::new());
    let one = source.take("one");
    source.write("file", b"content");
    let two = stream(&source.take("two"), Some(&one), &[]);
    let said = refused(&target.path(), &two);
    let parent = identity(&source.0.path().join("one")).uuid();
    assert!(said.contains(&parent.to_string()), "{said}");
    assert!(names(&target.path()).is_empty());
    // One that was changed since, or still can be, is none.
    received(&target.path(), &stream(&one, None, &[]));
    let replica = target.path().join("one");
    let opened = Subvolume::open(target.dir(), "one").unwrap();
    opened.set_read_only(false).unwrap();
    refused(&target.path(), &two);
    fs::write(replica.join("by hand"), "changed").unwrap();
    opened.set_read_only(true).unwrap();
    refused(&target.path(), &two);
    assert_eq!(names(&target.path()), ["one"]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_cut_off_or_garbage_leaves_only_what_was_whole() {
    let (source, target) = (Source::new(), Pool::new());
    source.write("disk", &noise(1, 4 * MIB));
    let one = stream(&source.take("one"), None, &[]);
    let end = one.len();
    for length in [1, 16, 17, 30, 100, MIB, 3 * MIB, end - 10, end - 1] {
        let said = refused(&target.path(), &one[..length]);
        assert!(said.contains("send stream"), "{length}: {said}");
        assert!(names(&target.path()).is_empty(), "{length}");
    }
    for garbage in [noise(3, MIB), b"btrfs-streak\0\x02\0\0\0".to_vec()] {
        refused(&target.path(), &garbage);
        assert!(names(&target.path()).is_empty());
    }
    let mut flipped = one.clone();
    flipped[end / 2] ^= 1;
    refused(&target.path(), &flipped);
    assert!(names(&target.path()).is_empty());
    // After a whole one.
    refused(&target.path(), &[&one[..], b"and more"].concat());
    assert_eq!(names(&target.path()), ["one"]);
    assert_eq!(digest(&target.path().join("one")), source.digest("one"));
}

#[test]
#[ignore = "needs root and btrfs"]
fn asked_to_end_it_removes_what_is_not_whole() {
    let (source, target) = (Source::new(), Pool::new());
    source.write("disk", &noise(1, 4 * MIB));
    let one = stream(&source.take("one"), None, &[]);
    for signal in ["-TERM", "-INT"] {
        let mut child = start(&target.path());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&one[..3 * MIB]).unwrap();
        // It waits for more when it has taken what there is.
        let begun = Instant::now();
        while names(&target.path()).is_empty() {
            assert!(begun.elapsed() < support::SOON);
            std::thread::yield_now();
        }
        run("kill", [signal.to_owned(), child.id().to_string()]);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("asked to end"), "{said}");
        assert!(names(&target.path()).is_empty());
        drop(stdin);
    }
    received(&target.path(), &one);
}

#[test]
#[ignore = "needs root and btrfs"]
fn nothing_to_read_and_nowhere_to_write_are_failures() {
    let target = Pool::new();
    let said = refused(&target.path(), b"");
    assert!(said.contains("no stream"), "{said}");
    let source = Source::new();
    let one = stream(&source.take("one"), None, &[]);
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    refused(elsewhere.path(), &one);
    assert!(names(elsewhere.path()).is_empty());
    let said = refused(&target.path().join("missing"), &one);
    assert!(said.contains("missing"), "{said}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let agent = env!("CARGO_BIN_EXE_icbd-agent");
    let output = Command::new(agent).arg("receive").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}
