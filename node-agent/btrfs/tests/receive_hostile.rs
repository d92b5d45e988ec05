//! Streams that mean harm: every command that takes a path, with every way we know to lead it out of
//! the subvolume or into something that must not be opened. Each is refused, nothing outside is
//! touched, nothing is left; and the same command with a decent path is accepted.
// A test fails by panicking, and so do the functions that it is made of.
#![allow(clippy::unwrap_used, clippy::panic)]
// Seeds are for whoever reads the output.
#![allow(clippy::print_stdout)]

mod receive_pair;
mod receive_target;
mod support;

use icbd_btrfs::Errno;
use icbd_btrfs::receive::{ReceiveError, Refusal};
use icbd_btrfs::stream::encode::{Encoder, payload};
use icbd_btrfs::stream::{Command, Kind, Version};
use receive_pair::identity;
use receive_target::{SELF, Target, attackable, is_about_data, path, with_path};
use uuid::Uuid;

#[test]
#[ignore = "needs root and btrfs"]
fn no_path_leads_out_of_the_subvolume() {
    let target = Target::new();
    let outside = target.pool.path().join("outside");
    for (command, attribute, decent) in attackable() {
        let name = decent.strip_prefix("dir/").unwrap();
        let attempt = |hostile: &[u8]| {
            target.receive(&target.stream(|encoder| {
                with_path(encoder, &command, attribute, decent, hostile);
            }))
        };
        attempt(decent.as_bytes())
            .unwrap_or_else(|error| panic!("the decent {command:?}: {error}"));

        let absolute = outside.join(name).into_os_string().into_encoded_bytes();
        for hostile in [
            absolute,
            format!("../outside/{name}").into_bytes(),
            format!("dir/../../outside/{name}").into_bytes(),
            format!("dir/./{name}").into_bytes(),
            format!("dir//{name}").into_bytes(),
            format!("dir/{name}/").into_bytes(),
            format!("dir/{name}\0").into_bytes(),
            b"..".to_vec(),
            b"/".to_vec(),
        ] {
            let error = attempt(&hostile).unwrap_err();
            assert!(
                matches!(error, ReceiveError::Stream(_)),
                "{command:?}: {error}"
            );
        }
        for (through, errno) in [
            ("out", Errno::LOOP),
            ("up", Errno::LOOP),
            ("in", Errno::LOOP),
            ("self", Errno::LOOP),
            ("loop", Errno::LOOP),
            ("file", Errno::NOTDIR),
            ("fifo", Errno::NOTDIR),
            ("absent", Errno::NOENT),
        ] {
            let error = attempt(format!("{through}/{name}").as_bytes()).unwrap_err();
            assert_eq!(
                error.errno(),
                Some(errno),
                "{command:?} through {through}: {error}"
            );
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn symlinks_and_special_files_are_not_opened_for_data() {
    let target = Target::new();
    for (command, attribute, decent) in attackable() {
        for name in [
            "to file",
            "up to file",
            "in to file",
            "to nothing",
            "loop",
            "fifo",
            "sock",
            "null",
            "loop0",
            "dir",
            "",
        ] {
            // Nothing outside changes, whatever is done to the symlink or the device itself.
            let outcome = target.receive(&target.stream(|encoder| {
                with_path(encoder, &command, attribute, decent, name.as_bytes());
            }));
            if is_about_data(command.kind(), attribute) {
                let Err(ReceiveError::Command {
                    refusal: Refusal::NotAFile,
                    ..
                }) = outcome
                else {
                    panic!("{command:?} on {name:?}: {outcome:?}");
                };
            }
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn the_root_directory_can_be_changed_but_not_replaced() {
    let target = Target::new();
    for (command, attribute, decent) in attackable() {
        let outcome = target.receive(&target.stream(|encoder| {
            with_path(encoder, &command, attribute, decent, b"");
        }));
        match command.kind() {
            Kind::SetXattr | Kind::Chmod | Kind::Chown | Kind::Utimes | Kind::Fileattr => {
                outcome.unwrap();
            }
            _ => drop(outcome.unwrap_err()),
        }
    }
}

#[test]
#[ignore = "needs root and btrfs"]
fn nothing_comes_before_the_subvolume_and_it_comes_once() {
    let target = Target::new();
    let begin = Command::Subvol {
        name: path(b"1"),
        uuid: SELF,
        ctransid: 9,
    };
    let again = Command::Snapshot {
        name: path(b"2"),
        uuid: SELF,
        ctransid: 9,
        clone_uuid: identity(&target.base),
        clone_ctransid: 9,
    };
    for (command, ..) in attackable() {
        let stream = Encoder::new(Version::V2)
            .command(&command)
            .command(&begin)
            .end();
        let error = target.receive(&stream).unwrap_err();
        assert!(
            matches!(
                error,
                ReceiveError::Command {
                    refusal: Refusal::BeforeSubvolume,
                    ..
                }
            ),
            "{error}"
        );
    }
    let empty = target
        .receive(&Encoder::new(Version::V2).end())
        .unwrap_err();
    assert!(
        matches!(
            empty,
            ReceiveError::Command {
                refusal: Refusal::BeforeSubvolume,
                ..
            }
        ),
        "{empty}"
    );
    for second in [begin, again] {
        let stream = Encoder::new(Version::V2)
            .command(&begin)
            .command(&second)
            .end();
        let error = target.receive(&stream).unwrap_err();
        assert!(
            matches!(
                error,
                ReceiveError::Command {
                    refusal: Refusal::SecondSubvolume,
                    ..
                }
            ),
            "{error}"
        );
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
        target.receive(&stream).unwrap_err().to_string(),
        "send stream, command 2 at byte 64 (UNLINK) on \"a\\nb\": cannot remove it: No such file \
         or directory (os error 2)"
    );
    let nil = Command::Subvol {
        name: path(b"1"),
        uuid: Uuid::nil(),
        ctransid: 9,
    };
    let error = target
        .receive(&Encoder::new(Version::V2).command(&nil).end())
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
fn clone_sources_are_the_subvolume_itself_and_its_bases() {
    let target = Target::new();
    let clone = |source: Uuid, source_path: &'static [u8], source_offset, length| {
        let command = Command::Clone {
            path: path(b"file"),
            offset: 8192,
            length,
            source,
            source_ctransid: 9,
            source_path: path(source_path),
            source_offset,
        };
        target.receive(&target.stream(|encoder| {
            encoder.command(&command);
        }))
    };
    let base = identity(&target.base);
    let outside = target.outside.info().unwrap().uuid;
    clone(SELF, b"dir/file", 0, 4096).unwrap();
    clone(base, b"file", 0, 8).unwrap();
    for foreign in [outside, Uuid::nil(), Uuid::from_bytes([1; 16])] {
        let error = clone(foreign, b"file", 0, 8).unwrap_err();
        assert!(
            matches!(
                error,
                ReceiveError::Command {
                    refusal: Refusal::NoCloneSource(_),
                    ..
                }
            ),
            "{error}"
        );
    }
    for link in [&b"link"[..], b"absolute"] {
        let error = clone(base, link, 0, 8).unwrap_err();
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
    for (offset, length) in [(0, 9), (8, 1), (1 << 40, 8), (0, 1 << 62)] {
        let error = clone(base, b"file", offset, length).unwrap_err();
        assert!(
            matches!(
                error,
                ReceiveError::Command {
                    refusal: Refusal::CloneBeyondEnd { .. },
                    ..
                }
            ),
            "{error}"
        );
    }
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
    target.receive(&stream).unwrap();

    let reserve = Command::Fallocate {
        path: path(b"file"),
        mode: 0,
        offset: 0,
        length: 1 << 50,
    };
    let error = target
        .receive(&target.stream(|encoder| {
            encoder.command(&reserve);
        }))
        .unwrap_err();
    assert_eq!(error.errno(), Some(Errno::NOSPC), "{error}");
    for mode in [1 << 3, 1 << 5, 2, 0x40, u32::MAX] {
        let odd = Command::Fallocate {
            path: path(b"file"),
            mode,
            offset: 0,
            length: 4096,
        };
        let error = target
            .receive(&target.stream(|encoder| {
                encoder.command(&odd);
            }))
            .unwrap_err();
        assert!(
            matches!(error, ReceiveError::Command { refusal: Refusal::FallocateMode(m), .. } if m == mode),
            "{error}"
        );
    }
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
    let error = target.receive(&stream).unwrap_err();
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
    let error = target.receive(&stream).unwrap_err();
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

#[test]
#[ignore = "needs root and btrfs"]
fn damaged_streams_with_right_checksums_do_no_harm() {
    let target = Target::new();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let commands = attackable();
    for _ in 0..600 {
        // Whole commands in any order, some with a byte or two of their payload changed.
        let stream = target.stream(|encoder| {
            for _ in 0..random.usize(1..8) {
                let (command, ..) = commands[random.usize(..commands.len())];
                let mut bytes = payload(&command, Version::V2);
                for _ in 0..random.usize(..3) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = match random.bool() {
                        true => random.u8(..),
                        false => *random.choice(b"./\0").unwrap(),
                    };
                }
                encoder.raw(command.kind().number(), &bytes);
            }
        });
        let _ = target.receive(&stream);
    }
}
