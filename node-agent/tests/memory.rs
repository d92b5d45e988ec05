//! How much memory a transfer takes, both ends of it in one process: little, and no more for a
//! large image or for very many files.
//!
//! `ICBD_TEST_IMAGE_MIB` and `ICBD_TEST_FILES` say how large and how many.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod support;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};

use icbd_btrfs::Access;
use support::pair::{MODES, write_noise};
use support::{Pool, digest};

const MIB: u64 = 1 << 20;

/// What a transfer may take.
const ENOUGH: u64 = 128 * MIB;

/// Files of one directory.
const TOGETHER: u64 = 10_000;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |value| value.parse().unwrap())
}

/// Replicates a snapshot in both modes; `room` is what its content takes at most.
fn memory_suffices(room: u64, fill: impl FnOnce(&Path)) {
    let room = room + (1 << 30);
    let (source, target) = (Pool::with_size(room), Pool::with_size(room));
    let live = icbd_btrfs::create(source.dir(), "live").unwrap();
    fill(&source.path().join("live"));
    icbd_btrfs::snapshot(&live, source.dir(), "one", Access::ReadOnly).unwrap();
    let snapshot = source.path().join("one");
    for mode in MODES {
        let dir = target.path().join(mode);
        fs::create_dir(&dir).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_icbd-agent"))
            .args(["replicate", "--json", "--mode", mode])
            .args([&snapshot, &dir])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        println!("{report}");
        assert_eq!(report["mode"], mode);
        let peak = report["peakRssAnon"].as_u64().unwrap();
        assert!((MIB..ENOUGH).contains(&peak), "{peak} bytes in {mode} mode");
        assert_eq!(digest(&dir.join("one")), digest(&snapshot));
        icbd_btrfs::delete(File::open(&dir).unwrap().as_fd(), "one").unwrap();
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_large_image_takes_little_memory() {
    let bytes = number("ICBD_TEST_IMAGE_MIB", 1024) * MIB;
    memory_suffices(2 * bytes, |live| write_noise(&live.join("disk.img"), bytes));
}

#[test]
#[ignore = "needs root and btrfs"]
fn very_many_small_files_take_little_memory() {
    let files = number("ICBD_TEST_FILES", 20_000);
    memory_suffices(files * 4096, |live| {
        for number in 0..files {
            let directory = live.join((number / TOGETHER).to_string());
            if number % TOGETHER == 0 {
                fs::create_dir(&directory).unwrap();
            }
            fs::write(directory.join(number.to_string()), number.to_le_bytes()).unwrap();
        }
    });
}
