//! `icbd-agent replicate` as people and scripts use it: through its arguments, its exit status and
//! its line of JSON.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use icbd_btrfs::{Access, Subvolume};
use serde_json::{Value, json};
use support::{Pool, SOON, digest, noise, run};

const MIB: usize = 1 << 20;

/// A file system with a writable subvolume `live`, of which snapshots are taken, and another with
/// a directory for the replicas.
struct Pair {
    source: Pool,
    target: Pool,
}

impl Pair {
    fn new() -> Self {
        let (source, target) = (Pool::new(), Pool::new());
        icbd_btrfs::create(source.dir(), "live").unwrap();
        fs::create_dir(target.path().join("replicas")).unwrap();
        Self { source, target }
    }

    fn write(&self, file: &str, content: &[u8]) {
        fs::write(self.source.path().join("live").join(file), content).unwrap();
    }

    fn take(&self, name: &str) -> PathBuf {
        let live = Subvolume::open(self.source.dir(), "live").unwrap();
        icbd_btrfs::snapshot(&live, self.source.dir(), name, Access::ReadOnly).unwrap();
        self.source.path().join(name)
    }

    fn dir(&self) -> PathBuf {
        self.target.path().join("replicas")
    }

    /// `icbd-agent replicate` of a snapshot into the directory.
    fn command(&self, snapshot: &Path, arguments: &[&str]) -> Command {
        let mut command = agent();
        command
            .args(arguments)
            .args([snapshot, &self.dir()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn output(&self, snapshot: &Path, arguments: &[&str]) -> Output {
        self.command(snapshot, arguments).output().unwrap()
    }

    /// Replicates a snapshot, which must succeed; what it reports.
    fn replicated(&self, snapshot: &Path, arguments: &[&str]) -> Value {
        let output = self.output(snapshot, &[&["--json"], arguments].concat());
        let report = report(&output);
        self.is_there(snapshot);
        report
    }

    /// The snapshot has its replica, and nothing stands beside the replicas.
    fn is_there(&self, snapshot: &Path) {
        let replica = self.dir().join(snapshot.file_name().unwrap());
        assert_eq!(digest(&replica), digest(snapshot));
        assert_eq!(hidden(&self.dir()), Vec::<String>::new());
    }

    /// Starts a transfer that takes some seconds, and waits until a checkpoint of it is recorded.
    fn midway(&self, snapshot: &Path, arguments: &[&str]) -> Child {
        let slow = [arguments, &["--limit", "8Mi"]].concat();
        let child = self.command(snapshot, &slow).spawn().unwrap();
        let name = snapshot.file_name().unwrap().to_str().unwrap();
        self.wait_for(&format!(".checkpoint-{name}.json"));
        child
    }

    fn wait_for(&self, name: &str) {
        let (begun, path) = (Instant::now(), self.dir().join(name));
        while !path.exists() {
            let hidden = hidden(&self.dir());
            assert!(begun.elapsed() < SOON, "no {name} among {hidden:?}");
            std::thread::yield_now();
        }
    }
}

fn agent() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_icbd-agent"));
    command.arg("replicate").env_remove("RUST_LOG");
    command
}

/// What stands in a directory and is no replica.
fn hidden(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

fn said(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// The one line of JSON of a process that succeeded.
fn report(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", said(output));
    let line = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(line.matches('\n').count(), 1, "{line:?}");
    assert!(line.ends_with('\n'), "{line:?}");
    println!("{line}");
    serde_json::from_str(line).unwrap()
}

/// What a process that was refused or failed said.
fn fails(output: &Output, status: i32) -> String {
    assert_eq!(output.status.code(), Some(status), "{}", said(output));
    assert!(output.stdout.is_empty());
    said(output).to_owned()
}

fn bytes(report: &Value, field: &str) -> u64 {
    report[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no {field} in {report}"))
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_snapshot_goes_whole_and_then_as_increments_to_the_newest_that_both_have() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 16 * MIB));
    let one = pair.take("one");
    let full = pair.replicated(&one, &["--codec", "none"]);
    let fields: Vec<_> = full.as_object().unwrap().keys().cloned().collect();
    assert_eq!(
        fields,
        [
            "bytesSent",
            "bytesTotal",
            "codec",
            "mode",
            "parent",
            "peakRssAnon",
            "resumedAt",
            "seconds",
        ]
    );
    assert_eq!(
        (&full["parent"], &full["codec"]),
        (&Value::Null, &json!("none"))
    );
    assert_eq!(
        (&full["mode"], bytes(&full, "resumedAt")),
        (&json!("extents"), 0)
    );
    assert!(
        bytes(&full, "bytesSent") > bytes(&full, "bytesTotal"),
        "{full}"
    );
    assert!(bytes(&full, "bytesTotal") > 16 * MIB as u64, "{full}");
    assert!(full["seconds"].as_f64().unwrap() > 0.0);
    let memory = bytes(&full, "peakRssAnon");
    assert!((1 << 20..128 << 20).contains(&memory), "{full}");

    pair.write("more", &noise(2, MIB));
    let two = pair.take("two");
    let increment = pair.replicated(&two, &[]);
    assert_eq!(increment["parent"], "one");
    assert!(
        bytes(&increment, "bytesTotal") < 2 * MIB as u64,
        "{increment}"
    );

    // Not the one that is named last, nor one that only the source has.
    pair.write("even more", &noise(3, MIB));
    pair.take("zero");
    let three = pair.take("three");
    let increment = pair.replicated(&three, &[]);
    assert_eq!(increment["parent"], "two");
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_increment_builds_on_the_parent_that_is_named() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 4 * MIB));
    let one = pair.take("one");
    pair.write("more", &noise(2, 4 * MIB));
    let two = pair.take("two");
    let three = pair.take("three");
    pair.replicated(&one, &[]);
    pair.replicated(&two, &[]);
    let report = pair.replicated(&three, &["--parent", one.to_str().unwrap()]);
    assert_eq!(report["parent"], "one");
    assert!(bytes(&report, "bytesTotal") > 4 * MIB as u64, "{report}");

    let four = pair.take("four");
    let lonely = pair.take("lonely");
    let lonely = lonely.to_str().unwrap();
    let why = fails(&pair.output(&four, &["--parent", lonely]), 1);
    assert!(
        why.contains("no replica of") && why.contains(lonely),
        "{why}"
    );
    assert!(!pair.dir().join("four").exists());
    assert!(hidden(&pair.dir()).is_empty());
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_is_there_already_is_not_sent_and_what_differs_stays() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, MIB));
    let one = pair.take("one");
    pair.replicated(&one, &[]);
    let again = pair.replicated(&one, &[]);
    assert_eq!(
        (bytes(&again, "bytesSent"), bytes(&again, "bytesTotal")),
        (0, 0)
    );
    let quiet = pair.output(&one, &[]);
    assert_eq!((quiet.status.code(), quiet.stdout.len()), (Some(0), 0));

    // Another snapshot, a directory, and a file of that name.
    let other = Pair::new();
    other.write("disk", &noise(2, MIB));
    let before = digest(&pair.dir().join("one"));
    for (number, what) in ["subvolume", "directory", "file"].into_iter().enumerate() {
        let name = ["one", "a directory", "a file"][number];
        match what {
            "directory" => fs::create_dir(pair.dir().join(name)).unwrap(),
            "file" => fs::write(pair.dir().join(name), "somebody's").unwrap(),
            _ => {}
        }
        let snapshot = other.take(name);
        let output = agent().args([&snapshot, &pair.dir()]).output().unwrap();
        let why = fails(&output, 3);
        assert!(why.contains("is there already"), "{why}");
    }
    assert_eq!(digest(&pair.dir().join("one")), before);
    assert_eq!(fs::read(pair.dir().join("a file")).unwrap(), b"somebody's");
    assert!(hidden(&pair.dir()).is_empty());
}

#[test]
#[ignore = "needs root and btrfs"]
fn every_codec_and_both_modes_make_the_same_replica() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 2 * MIB));
    pair.write("text", "words and words ".repeat(200_000).as_bytes());
    let codecs = ["auto", "none", "snappy", "lz4", "zlib", "zstd"];
    let modes = ["extents", "stream"];
    let ways = codecs
        .iter()
        .flat_map(|codec| modes.map(|mode| (codec, mode)));
    for (codec, mode) in ways {
        // One after the other, each in full.
        let snapshot = pair.take(&format!("{codec}-{mode}"));
        let report = pair.replicated(&snapshot, &["--codec", codec, "--mode", mode]);
        assert_eq!(report["mode"], mode);
        if *codec != "auto" {
            assert_eq!(report["codec"], **codec);
            let shrunk = bytes(&report, "bytesSent") < bytes(&report, "bytesTotal") - MIB as u64;
            assert_eq!(shrunk, *codec != "none", "{report}");
        }
        icbd_btrfs::delete(
            fs::File::open(pair.dir()).unwrap(),
            snapshot.file_name().unwrap().to_str().unwrap(),
        )
        .unwrap();
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_limit_is_kept_on_the_wire() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 16 * MIB));
    let one = pair.take("one");
    let report = pair.replicated(&one, &["--limit", "4Mi", "--codec", "none"]);
    let seconds = report["seconds"].as_f64().unwrap();
    let least = bytes(&report, "bytesSent") as f64 / (4 * MIB) as f64;
    assert!(seconds > least * 0.95, "{report}");
}

/// Interrupted in mid-transfer, it goes on from its checkpoint when it is run again.
fn goes_on_after(interrupt: impl Fn(&mut Child), status: Option<i32>, mode: &str) {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 64 * MIB));
    let one = pair.take("one");
    let mode = ["--mode", mode];
    let mut child = pair.midway(&one, &mode);
    interrupt(&mut child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), status, "{}", said(&output));
    assert!(!pair.dir().join("one").exists());
    let report = pair.replicated(&one, &mode);
    let resumed_at = bytes(&report, "resumedAt");
    assert!(resumed_at > 0, "{report}");
    assert!(
        bytes(&report, "bytesSent") + resumed_at < bytes(&report, "bytesTotal") + MIB as u64,
        "{report}"
    );

    // An increment too.
    pair.write("more", &noise(2, 64 * MIB));
    let two = pair.take("two");
    let mut child = pair.midway(&two, &mode);
    interrupt(&mut child);
    child.wait().unwrap();
    let report = pair.replicated(&two, &mode);
    assert_eq!(report["parent"], "one");
    assert!(bytes(&report, "resumedAt") > 0, "{report}");
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
}

fn terminate(child: &mut Child) {
    run("kill", ["-TERM".to_owned(), child.id().to_string()]);
}

#[test]
#[ignore = "needs root and btrfs"]
fn killed_in_extents_mode_it_goes_on_when_run_again() {
    goes_on_after(kill, None, "extents");
}

#[test]
#[ignore = "needs root and btrfs"]
fn killed_in_stream_mode_it_goes_on_when_run_again() {
    goes_on_after(kill, None, "stream");
}

#[test]
#[ignore = "needs root and btrfs"]
fn asked_to_end_in_extents_mode_it_goes_on_when_run_again() {
    goes_on_after(terminate, Some(1), "extents");
}

#[test]
#[ignore = "needs root and btrfs"]
fn asked_to_end_in_stream_mode_it_goes_on_when_run_again() {
    goes_on_after(terminate, Some(1), "stream");
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_second_process_is_refused_while_one_replicates_into_the_directory() {
    let pair = Pair::new();
    pair.write("disk", &noise(1, 32 * MIB));
    let one = pair.take("one");
    let slow = pair.command(&one, &["--limit", "4Mi"]).spawn().unwrap();
    pair.wait_for(".partial-one");
    let why = fails(&pair.output(&one, &[]), 1);
    assert!(why.contains("another process"), "{why}");
    assert_eq!(slow.wait_with_output().unwrap().status.code(), Some(0));
    pair.is_there(&one);
}

#[test]
#[ignore = "needs root and btrfs"]
fn what_cannot_be_replicated_is_refused_and_leaves_nothing() {
    let pair = Pair::new();
    pair.write("disk", b"content");
    let one = pair.take("one");
    let live = pair.source.path().join("live");
    let missing = pair.source.path().join("missing");
    for snapshot in [&live, &missing, &live.join("disk")] {
        let why = fails(&pair.output(snapshot, &[]), 1);
        assert!(why.contains(snapshot.to_str().unwrap()), "{why}");
    }
    let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
    for dir in [elsewhere.path(), &pair.dir().join("missing")] {
        let output = agent().args([one.as_path(), dir]).output().unwrap();
        fails(&output, 1);
    }
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(fs::read_dir(pair.dir()).unwrap().count(), 0);
}

#[test]
fn wrong_usage_ends_with_2() {
    let wrong: [&[&str]; 8] = [
        &[],
        &["a"],
        &["a", "b", "c"],
        &["--codec", "gzip", "a", "b"],
        &["--mode", "fast", "a", "b"],
        &["--limit", "0", "a", "b"],
        &["--limit", "fast", "a", "b"],
        &["--unknown", "a", "b"],
    ];
    for arguments in wrong {
        let output = agent().args(arguments).output().unwrap();
        fails(&output, 2);
    }
}
