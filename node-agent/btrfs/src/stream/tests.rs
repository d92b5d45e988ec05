//! Every command goes through the encoder and the reader unchanged; whatever is not exactly right
//! is refused, at the right place, and no bytes make the reader panic.

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use super::encode::{Encoder, Payload};
use super::*;

/// Owned parts from which any command can be borrowed.
#[derive(Clone, Debug)]
struct Parts {
    path: Vec<u8>,
    other: Vec<u8>,
    name: Vec<u8>,
    text: Vec<u8>,
    data: Vec<u8>,
    uuids: [[u8; 16]; 2],
    numbers: [u64; 3],
    narrow: [u32; 2],
    time: (i64, u32),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(
        any::<u8>().prop_map(|b| if b == 0 || b == b'/' { b'x' } else { b }),
        1..=255,
    )
    .prop_filter("dots", |name| name != b"." && name != b"..")
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(name(), 0..6).prop_map(|names| names.join(&b'/'))
}

fn parts() -> impl Strategy<Value = Parts> {
    (
        (path(), path(), name()),
        (vec(1..=255u8, 1..=255), vec(any::<u8>(), 0..3000)),
        any::<[[u8; 16]; 2]>(),
        [
            0..=MAX_FILE_SIZE / 2,
            0..=MAX_FILE_SIZE / 2,
            1..=MAX_FILE_SIZE / 2,
        ],
        any::<[u32; 2]>(),
        (any::<i64>(), 0..1_000_000_000u32),
    )
        .prop_map(
            |((path, other, name), (text, data), uuids, numbers, narrow, time)| Parts {
                path,
                other,
                name,
                text,
                data,
                uuids,
                numbers,
                narrow,
                time,
            },
        )
}

/// One command of every kind.
fn commands(parts: &Parts) -> Vec<Command<'_>> {
    let path = TreePath::new(&parts.path).unwrap();
    let other = TreePath::new(&parts.other).unwrap();
    let name = TreePath::single(&parts.name).unwrap();
    let [uuid, clone_uuid] = parts.uuids.map(Uuid::from_bytes);
    let [ino, offset, length] = parts.numbers;
    let [rdev, permissions] = parts.narrow;
    let permissions = permissions & 0o7777;
    let time = Timestamp {
        seconds: parts.time.0,
        nanoseconds: parts.time.1,
    };
    let (data, text) = (&parts.data[..], &parts.text[..]);
    let encoded = |compression| Encoded {
        compression,
        data,
        unencoded_len: 100_000,
        unencoded_offset: 4096,
        file_len: 95_904,
    };
    vec![
        Command::Subvol {
            name,
            uuid,
            ctransid: ino,
        },
        Command::Snapshot {
            name,
            uuid,
            ctransid: ino,
            clone_uuid,
            clone_ctransid: offset,
        },
        Command::Mkfile { path, ino },
        Command::Mkdir { path, ino },
        Command::Mknod {
            path,
            ino,
            mode: 0o020_000 | permissions,
            rdev,
        },
        Command::Mknod {
            path,
            ino,
            mode: 0o060_000 | permissions,
            rdev,
        },
        Command::Mkfifo {
            path,
            ino,
            mode: 0o010_000 | permissions,
            rdev,
        },
        Command::Mksock {
            path,
            ino,
            mode: 0o140_000 | permissions,
            rdev,
        },
        Command::Symlink {
            path,
            ino,
            target: text,
        },
        Command::Rename { path, to: other },
        Command::Link {
            path,
            existing: other,
        },
        Command::Unlink { path },
        Command::Rmdir { path },
        Command::SetXattr {
            path,
            name: text,
            value: data,
        },
        Command::RemoveXattr { path, name: text },
        Command::Write { path, offset, data },
        Command::Clone {
            path,
            offset,
            length,
            source: clone_uuid,
            source_ctransid: ino,
            source_path: other,
            source_offset: ino,
        },
        Command::Truncate { path, size: length },
        Command::Chmod {
            path,
            mode: permissions,
        },
        Command::Chown {
            path,
            uid: rdev,
            gid: permissions,
        },
        Command::Utimes {
            path,
            atime: time,
            mtime: time,
            ctime: time,
            otime: None,
        },
        Command::Utimes {
            path,
            atime: time,
            mtime: time,
            ctime: time,
            otime: Some(time),
        },
        Command::UpdateExtent {
            path,
            offset,
            length,
        },
        Command::Fallocate {
            path,
            mode: 3,
            offset,
            length,
        },
        Command::Fileattr { path, flags: ino },
        Command::EncodedWrite {
            path,
            offset,
            encoded: encoded(Compression::Zlib),
        },
        Command::EncodedWrite {
            path,
            offset,
            encoded: encoded(Compression::Zstd),
        },
        Command::EncodedWrite {
            path,
            offset,
            encoded: encoded(Compression::Lzo { sector: 65536 }),
        },
    ]
}

fn sample() -> Parts {
    Parts {
        path: b"dir/file".to_vec(),
        other: b"other".to_vec(),
        name: b"17".to_vec(),
        text: b"user.name".to_vec(),
        data: b"some data".to_vec(),
        uuids: [[1; 16], [2; 16]],
        numbers: [257, 4096, 8192],
        narrow: [0x801, 0o644],
        time: (1_700_000_000, 5),
    }
}

fn known(command: &Command<'_>, version: Version) -> bool {
    Kind::from_number(command.kind().number(), version).is_some()
}

/// Reads a whole stream; the number of its commands, or what was wrong.
fn read(mut bytes: &[u8]) -> Result<u64, StreamError> {
    let Some(mut reader) = Reader::begin(&mut bytes)? else {
        return Ok(0);
    };
    while reader.next_command()?.is_some() {}
    Ok(reader.upcoming().command - 1)
}

fn problem_of(version: Version, number: u16, payload: &[u8]) -> Problem {
    let stream = Encoder::new(version).raw(number, payload).end();
    let error = read(&stream).unwrap_err();
    assert_eq!(
        error.position,
        Position {
            command: 1,
            offset: STREAM_HEADER as u64
        }
    );
    error.problem
}

proptest! {
    #[test]
    fn every_command_comes_back_as_it_was_written(
        parts in parts(),
        version in prop_oneof![Just(Version::V1), Just(Version::V2)],
    ) {
        let mut encoder = Encoder::new(version);
        let mut wanted = commands(&parts);
        wanted.retain(|command| known(command, version));
        for command in &wanted {
            encoder.command(command);
        }
        let stream = encoder.end();
        let mut reader = Reader::begin(&stream[..]).unwrap().unwrap();
        for command in &wanted {
            prop_assert_eq!(reader.next_command().unwrap(), Some(*command));
        }
        prop_assert_eq!(reader.next_command().unwrap(), Some(Command::End));
        prop_assert_eq!(reader.next_command().unwrap(), None);
        prop_assert_eq!(reader.upcoming().offset, stream.len() as u64);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        // The same past the checks of header and checksum.
        for version in [Version::V1, Version::V2] {
            for kind in Kind::ALL {
                let _ = read(&Encoder::new(version).raw(kind.number(), &bytes).end());
            }
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error(bit in 0..8u8, at in any::<prop::sample::Index>()) {
        let parts = sample();
        let mut encoder = Encoder::new(Version::V2);
        for command in commands(&parts) {
            encoder.command(&command);
        }
        let mut stream = encoder.end();
        let at = at.index(stream.len());
        stream[at] ^= 1 << bit;
        prop_assert!(read(&stream).is_err());
    }
}

#[test]
fn a_stream_cut_anywhere_is_an_error() {
    let parts = sample();
    let mut encoder = Encoder::new(Version::V2);
    for command in commands(&parts) {
        encoder.command(&command);
    }
    let stream = encoder.end();
    assert!(read(&stream).is_ok());
    for length in 1..stream.len() {
        let error = read(&stream[..length]).unwrap_err();
        assert!(
            matches!(error.problem, Problem::Truncated),
            "cut at {length}: {error}"
        );
    }
}

#[test]
fn nothing_is_not_an_error_and_the_next_stream_stays_unread() {
    assert!(Reader::begin(&b""[..]).unwrap().is_none());
    let two = [
        Encoder::new(Version::V1).end(),
        Encoder::new(Version::V2).end(),
    ]
    .concat();
    let mut source = &two[..];
    for version in [Version::V1, Version::V2] {
        let mut reader = Reader::begin(&mut source).unwrap().unwrap();
        assert_eq!(reader.version(), version);
        assert_eq!(reader.next_command().unwrap(), Some(Command::End));
        assert_eq!(reader.next_command().unwrap(), None);
    }
    assert!(Reader::begin(&mut source).unwrap().is_none());
}

#[test]
fn an_attribute_missing_or_there_twice_or_too_many_is_refused() {
    let parts = sample();
    for version in [Version::V1, Version::V2] {
        for command in commands(&parts).iter().filter(|c| known(c, version)) {
            let number = command.kind().number();
            let attributes = split(&encode::payload(command, version), version);
            for left_out in 0..attributes.len() {
                let optional = [Attribute::Otime.number(), Attribute::Encryption.number()];
                if optional.contains(&attributes[left_out].0) {
                    continue;
                }
                let mut some = attributes.clone();
                some.remove(left_out);
                let problem = problem_of(version, number, &join(&some));
                assert!(
                    matches!(problem, Problem::Missing(_)),
                    "{command:?}: {problem}"
                );

                let mut more = attributes.clone();
                more.insert(0, attributes[left_out].clone());
                let problem = problem_of(version, number, &join(&more));
                let data_first = version == Version::V2 && attributes[left_out].0 == 19;
                assert!(
                    data_first || matches!(problem, Problem::Repeated(_)),
                    "{problem}"
                );
            }
            let mut foreign = attributes.clone();
            let stranger = match command.kind() {
                Kind::Chmod | Kind::Mknod | Kind::Mkfifo | Kind::Mksock => Attribute::Uid,
                _ => Attribute::Mode,
            };
            foreign.insert(
                0,
                (stranger.number(), with_length(stranger.number(), &[0; 8])),
            );
            let problem = problem_of(version, number, &join(&foreign));
            assert!(
                matches!(problem, Problem::Unexpected(a) if a == stranger),
                "{problem}"
            );
        }
    }
}

fn with_length(number: u16, value: &[u8]) -> Vec<u8> {
    [
        &number.to_le_bytes(),
        &(value.len() as u16).to_le_bytes(),
        value,
    ]
    .concat()
}

/// A payload's attributes: number, and all bytes with the header.
fn split(mut payload: &[u8], version: Version) -> Vec<(u16, Vec<u8>)> {
    let mut attributes = Vec::new();
    while !payload.is_empty() {
        let number = u16::from_le_bytes([payload[0], payload[1]]);
        let length = if number == Attribute::Data.number() && version == Version::V2 {
            payload.len()
        } else {
            4 + usize::from(u16::from_le_bytes([payload[2], payload[3]]))
        };
        attributes.push((number, payload[..length].to_vec()));
        payload = &payload[length..];
    }
    attributes
}

fn join(attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
    attributes
        .iter()
        .flat_map(|(_, bytes)| bytes.clone())
        .collect()
}

#[test]
fn every_path_attribute_refuses_what_leads_elsewhere() {
    let parts = sample();
    for command in commands(&parts) {
        let attributes = split(&encode::payload(&command, Version::V2), Version::V2);
        for (at, (number, _)) in attributes.iter().enumerate() {
            let link_target = command.kind() == Kind::Symlink && *number == 17;
            if ![15, 16, 17, 22].contains(number) || link_target {
                continue;
            }
            for path in [
                &b"/etc/passwd"[..],
                b"..",
                b"a/../../b",
                b"a//b",
                b"a/",
                b"a\0b",
                b".",
            ] {
                let mut hostile = attributes.clone();
                hostile[at].1 = with_length(*number, path);
                let problem = problem_of(Version::V2, command.kind().number(), &join(&hostile));
                assert!(
                    matches!(problem, Problem::Path { .. }),
                    "{command:?}: {problem}"
                );
            }
        }
    }
}

#[test]
fn lengths_are_capped_before_anything_is_read() {
    let mut stream = Encoder::new(Version::V2).bytes().to_vec();
    stream.extend(u32::MAX.to_le_bytes());
    stream.extend(Kind::Write.number().to_le_bytes());
    stream.extend([0; 4]);
    let error = read(&stream).unwrap_err();
    assert!(
        matches!(
            error.problem,
            Problem::TooLong {
                length: 0xffff_ffff,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(
        error.to_string(),
        "send stream, command 1 at byte 17 (WRITE): it claims a payload of 4294967295 bytes; \
         262144 is the most"
    );

    for version in [Version::V1, Version::V2] {
        let most = vec![0; version.max_payload()];
        let problem = problem_of(version, Kind::Write.number(), &most);
        assert!(!matches!(problem, Problem::TooLong { .. }), "{problem}");
        let more = vec![0; version.max_payload() + 1];
        let problem = problem_of(version, Kind::Write.number(), &more);
        assert!(matches!(problem, Problem::TooLong { .. }), "{problem}");
    }
}

#[test]
fn versions_and_what_they_do_not_know_are_refused() {
    let bytes = |version: u32| [&MAGIC[..], &version.to_le_bytes()].concat();
    for version in [0, 3, 0x0100_0000] {
        let error = read(&bytes(version)).unwrap_err();
        assert!(
            matches!(error.problem, Problem::Version(v) if v == version),
            "{error}"
        );
    }
    let error = read(b"not a send stream at all").unwrap_err();
    assert!(matches!(error.problem, Problem::NotASendStream), "{error}");
    for number in [0, 27, u16::MAX] {
        let problem = problem_of(Version::V2, number, &[]);
        assert!(
            matches!(problem, Problem::UnknownCommand(n) if n == number),
            "{problem}"
        );
    }
    assert!(matches!(problem_of(Version::V2, 26, &[]), Problem::Verity));
    let fallocate = Kind::Fallocate.number();
    assert!(matches!(
        problem_of(Version::V1, fallocate, &[]),
        Problem::UnknownCommand(23)
    ));
    let unknown = problem_of(Version::V2, 12, &with_length(32, b"x"));
    assert!(
        matches!(unknown, Problem::UnknownAttribute(32)),
        "{unknown}"
    );
    let later = problem_of(Version::V1, 12, &with_length(26, &[0; 8]));
    assert!(matches!(later, Problem::UnknownAttribute(26)), "{later}");
}

#[test]
fn values_that_no_file_system_has_are_refused() {
    use Attribute as A;
    let text = |p: Payload| p.attribute(A::Path, b"f");
    let number = |p: Payload, a, n: u64| p.attribute(a, &n.to_le_bytes());
    let refused = |kind: Kind, payload: Payload| {
        problem_of(Version::V2, kind.number(), &payload.into_bytes()).to_string()
    };

    let past_the_end = text(Payload::default());
    let past_the_end = number(past_the_end, A::FileOffset, MAX_FILE_SIZE).data(Version::V2, b"xy");
    assert!(refused(Kind::Write, past_the_end).contains("largest file"));
    let huge = number(text(Payload::default()), A::Size, MAX_FILE_SIZE + 1);
    assert!(refused(Kind::Truncate, huge).contains("largest file"));
    let wide = number(number(text(Payload::default()), A::Uid, 1 << 32), A::Gid, 0);
    assert!(refused(Kind::Chown, wide).contains("less than 2^32"));
    let nanoseconds = text(Payload::default())
        .attribute(A::Atime, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0xca, 0x9a, 0x3b])
        .attribute(A::Mtime, &[0; 12])
        .attribute(A::Ctime, &[0; 12]);
    assert!(refused(Kind::Utimes, nanoseconds).contains("less than a second"));
    let short = text(Payload::default()).attribute(A::Size, &[0; 7]);
    assert!(refused(Kind::Truncate, short).contains("has 7 bytes; 8 is right"));
    let target = number(text(Payload::default()), A::Ino, 1).attribute(A::PathLink, b"a\0b");
    assert!(refused(Kind::Symlink, target).contains("NUL"));
    let no_name = text(Payload::default()).attribute(A::XattrName, b"");
    assert!(refused(Kind::RemoveXattr, no_name).contains("1 to 255"));
    let a_fifo_as_device = number(number(text(Payload::default()), A::Ino, 1), A::Rdev, 0);
    let a_fifo_as_device = number(a_fifo_as_device, A::Mode, 0o010_644);
    assert!(refused(Kind::Mknod, a_fifo_as_device).contains("type that the command makes"));
}

#[test]
fn encoded_writes_lie_within_their_extent() {
    use Attribute as A;
    let encoded = |file_len: u64, unencoded_len: u64, unencoded_offset: u64, compression: u32| {
        let payload = Payload::default()
            .attribute(A::Path, b"f")
            .attribute(A::FileOffset, &0u64.to_le_bytes())
            .attribute(A::UnencodedFileLen, &file_len.to_le_bytes())
            .attribute(A::UnencodedLen, &unencoded_len.to_le_bytes())
            .attribute(A::UnencodedOffset, &unencoded_offset.to_le_bytes())
            .attribute(A::Compression, &compression.to_le_bytes())
            .attribute(A::Encryption, &0u32.to_le_bytes())
            .data(Version::V2, b"data");
        let stream = Encoder::new(Version::V2)
            .raw(Kind::EncodedWrite.number(), &payload.into_bytes())
            .end();
        read(&stream).map_err(|error| error.problem)
    };
    let most = MAX_ENCODED as u64;
    assert!(encoded(most, most, 0, 1).is_ok());
    assert!(encoded(0, most, most, 2).is_ok());
    assert!(matches!(
        encoded(most, most, 1, 1),
        Err(Problem::EncodedRange(..))
    ));
    assert!(matches!(
        encoded(2, most, u64::MAX, 1),
        Err(Problem::EncodedRange(..))
    ));
    assert!(matches!(
        encoded(1, most + 1, 0, 1),
        Err(Problem::Value { .. })
    ));
    assert!(matches!(encoded(1, most, 0, 0), Err(Problem::Value { .. })));
    assert!(matches!(encoded(1, most, 0, 8), Err(Problem::Value { .. })));
}
