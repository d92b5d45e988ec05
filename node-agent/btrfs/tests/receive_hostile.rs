//! Streams that mean harm: every class of harm with every command that can carry it, each beside the
//! same stream without the harm. The harmful is refused, nothing outside is touched, nothing is left;
//! the harmless is accepted. And some stories that take more than one odd command.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]
// How many cases there are is for whoever reads the output.
#![allow(clippy::print_stdout)]

mod hostile;
mod receive_pair;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;

use hostile::{Route, SELF, Target, path};
use icbd_btrfs::Errno;
use icbd_btrfs::receive::{ReceiveError, Refusal};
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Version};
use uuid::Uuid;

/// What a receiver may take, whatever comes.
const MEMORY: usize = 128 << 20;

#[test]
#[ignore = "needs root and btrfs"]
fn a_thousand_hostile_streams_do_no_harm_and_their_controls_are_taken() {
    let target = Target::new();
    let cases = hostile::cases(&target);
    let baseline = Peak::begin();
    let mut controls = HashSet::new();
    let mut classes: BTreeMap<_, (usize, usize)> = BTreeMap::new();
    for case in &cases {
        for route in Route::ALL {
            let _named = OnPanic(format!("{}: {}, by {route:?}", case.class, case.what));
            if case.open.contains(&route) && controls.insert((route, &case.control)) {
                let control = target.receive(route, &case.control);
                control.unwrap_or_else(|error| panic!("control of {}: {error}", case.what));
            }
            case.judge(route, &target.receive(route, &case.hostile));
        }
        let (all, refused) = classes.entry(case.class).or_default();
        *all += 1;
        *refused += usize::from(case.is_refused());
    }
    target.assert_same_content();
    let grown = baseline.grown();

    for (class, (all, refused)) in &classes {
        println!("{class:50} {all:5} cases, {refused:5} of them refused");
    }
    let (all, refused) = classes
        .values()
        .fold((0, 0), |(a, r), (all, refused)| (a + all, r + refused));
    println!(
        "{all} cases by {} routes, {refused} refused; {} controls; memory grew by {} KiB",
        Route::ALL.len(),
        controls.len(),
        grown >> 10
    );
    assert!(refused >= 1000, "{refused} cases");
    assert!(grown < MEMORY, "memory grew by {grown} bytes");
}

/// Says which case it was.
struct OnPanic(String);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the case was {}", self.0);
        }
    }
}

/// The most memory that this process has had since it began to look.
struct Peak {
    begun: usize,
}

impl Peak {
    fn begin() -> Peak {
        // 5 sets the peak back to what is in use (proc(5)).
        fs::write("/proc/self/clear_refs", "5").unwrap();
        Peak {
            begun: status("VmRSS:"),
        }
    }

    /// How much more that was than when it began.
    fn grown(self) -> usize {
        status("VmHWM:").saturating_sub(self.begun)
    }
}

/// A figure of `/proc/self/status`, in bytes.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
#[ignore = "needs root and btrfs"]
fn an_empty_stream_is_none() {
    let target = Target::new();
    let empty = target.receive(Route::Whole, b"").unwrap_err();
    assert!(matches!(empty, ReceiveError::NoStream), "{empty}");
    let empty = target.receive(Route::Blocks, b"").unwrap_err();
    assert!(matches!(empty, ReceiveError::Stream(_)), "{empty}");
    for route in Route::ALL {
        let error = target
            .receive(route, &Encoder::new(Version::V2).end())
            .unwrap_err();
        let ReceiveError::Command { refusal, .. } = error else {
            panic!("{error}");
        };
        assert!(matches!(refusal, Refusal::BeforeSubvolume), "{refusal}");
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_error_says_where_and_what() {
    let target = Target::new();
    let begin = Command::Subvol {
        name: path(b"1"),
        uuid: SELF,
        ctransid: 9,
    };
    let remove = Command::Unlink {
        path: path(b"a\nb"),
    };
    let stream = Encoder::new(Version::V2)
        .command(&begin)
        .command(&remove)
        .end();
    assert_eq!(
        target
            .receive(Route::Whole, &stream)
            .unwrap_err()
            .to_string(),
        "send stream, command 2 at byte 64 (UNLINK) on \"a\\nb\": cannot remove it: No such file \
         or directory (os error 2)"
    );
    let nil = Command::Subvol {
        name: path(b"1"),
        uuid: Uuid::nil(),
        ctransid: 9,
    };
    let error = target
        .receive(Route::Whole, &Encoder::new(Version::V2).command(&nil).end())
        .unwrap_err();
    assert!(
        matches!(
            error,
            ReceiveError::Command {
                refusal: Refusal::NilUuid,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_tiny_stream_cannot_make_for_endless_work() {
    let target = Target::new();
    // A file of nearly 8 EiB, all hole, cloned off the blocks so that it has to be copied.
    let (huge, copy) = (path(b"huge"), path(b"copy"));
    let stream = target.stream(|encoder| {
        encoder.command(&Command::Mkfile { path: huge, ino: 0 });
        encoder.command(&Command::Truncate {
            path: huge,
            size: (1 << 62) + 77,
        });
        encoder.command(&Command::Mkfile { path: copy, ino: 0 });
        encoder.command(&Command::Clone {
            path: copy,
            offset: 1,
            length: 1 << 62,
            source: SELF,
            source_ctransid: 9,
            source_path: huge,
            source_offset: 3,
        });
    });
    target.receive(Route::Whole, &stream).unwrap();

    let reserve = Command::Fallocate {
        path: path(b"file"),
        mode: 0,
        offset: 0,
        length: 1 << 50,
    };
    let error = target
        .receive(
            Route::Whole,
            &target.stream(|encoder| {
                encoder.command(&reserve);
            }),
        )
        .unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOSPC), "{error}");
}

#[test]
#[ignore = "needs root and btrfs"]
fn a_name_that_changes_its_meaning_is_looked_up_again() {
    let target = Target::new();
    let (file, other, moved) = (path(b"dir/file"), path(b"file"), path(b"moved"));
    let data = |byte: u8| [byte; 8];
    let stream = target.stream(|encoder| {
        encoder
            .command(&Command::Write {
                path: file,
                offset: 0,
                data: &data(b'1'),
            })
            .command(&Command::Rename {
                path: path(b"dir"),
                to: moved,
            })
            .command(&Command::Rename {
                path: path(b"out"),
                to: path(b"dir"),
            })
            // Was a file of the stream's own; through the symlink it is the canary.
            .command(&Command::Write {
                path: file,
                offset: 0,
                data: &data(b'2'),
            });
    });
    let error = target.receive(Route::Whole, &stream).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::LOOP), "{error}");

    let stream = target.stream(|encoder| {
        encoder
            .command(&Command::Write {
                path: other,
                offset: 0,
                data: &data(b'1'),
            })
            .command(&Command::Unlink { path: other })
            .command(&Command::Rename {
                path: path(b"to file"),
                to: other,
            })
            .command(&Command::Write {
                path: other,
                offset: 0,
                data: &data(b'2'),
            });
    });
    let error = target.receive(Route::Whole, &stream).unwrap_err();
    assert!(
        matches!(
            error,
            ReceiveError::Command {
                refusal: Refusal::NotAFile,
                ..
            }
        ),
        "{error}"
    );
}
