//! Values that are too large, out of range or of no meaning, and compressed data that is not what it
//! says.

use std::io::Write;

use icbd_btrfs::stream::encode::payload;
use icbd_btrfs::stream::{Attribute, Command, Kind, MAX_ENCODED, Version};

use super::case::{Case, Stage, Verdict};
use super::commands::{commands, taken_apart, with};
use super::target::Target;

const VERSION: Version = Version::V2;

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = Vec::new();
    for command in commands(VERSION) {
        let stage = Stage {
            target,
            version: VERSION,
            command,
        };
        huge(&stage, &mut cases);
        for (class, attribute, values) in odd(command.kind()) {
            for value in values {
                let shown = &value[..value.len().min(32)];
                let what = format!("{attribute} \"{}\"", shown.escape_ascii());
                let payload = with(&command, VERSION, attribute, &value);
                cases.push(stage.refused(class, what, &payload));
            }
        }
        if command.kind() == Kind::EncodedWrite {
            damaged(&stage, &mut cases);
            bombs(&stage, &mut cases);
        }
    }
    cases
}

/// Numbers beyond what a file, a mode or an owner can have.
fn huge(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    use Attribute as A;
    for (number, value) in taken_apart(&stage.command, VERSION) {
        let attribute = A::from_number(number, VERSION).unwrap();
        if !matches!(
            attribute,
            A::FileOffset
                | A::Size
                | A::CloneLen
                | A::CloneOffset
                | A::Mode
                | A::Rdev
                | A::Uid
                | A::Gid
                | A::UnencodedFileLen
                | A::UnencodedLen
                | A::UnencodedOffset
                | A::FallocateMode
                | A::Compression
        ) {
            continue;
        }
        for huge in [u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) + 4096] {
            // Of narrower numbers the upper half is what is huge.
            let huge = (huge >> (64 - 8 * value.len())).to_le_bytes();
            let payload = with(&stage.command, VERSION, attribute, &huge[..value.len()]);
            let what = format!("{attribute} {huge:x?}");
            cases.push(stage.refused("huge value", what, &payload));
        }
    }
}

type Odd = (&'static str, Attribute, Vec<Vec<u8>>);

/// What else can be wrong with a command's values.
fn odd(kind: Kind) -> Vec<Odd> {
    use Attribute as A;
    let numbers = |numbers: &[u64]| numbers.iter().map(|n| n.to_le_bytes().to_vec()).collect();
    let narrow = |numbers: &[u32]| numbers.iter().map(|n| n.to_le_bytes().to_vec()).collect();
    let names = || {
        vec![
            vec![],
            b"user.\0".to_vec(),
            b"\0".to_vec(),
            [&b"user."[..], &[b'x'; 251]].concat(),
            b"nowhere.x".to_vec(),
            b"user.".to_vec(),
        ]
    };
    match kind {
        Kind::Mknod => vec![
            (
                "mode of another type",
                A::Mode,
                numbers(&[0o644, 0o100_644, 0o040_755, 0o010_644, 0o120_777, 0o140_644]),
            ),
            ("huge value", A::Mode, numbers(&[1 << 32 | 0o020_644])),
            ("huge value", A::Rdev, numbers(&[1 << 32])),
        ],
        Kind::Mkfifo => vec![(
            "mode of another type",
            A::Mode,
            numbers(&[0o644, 0o100_644, 0o040_755, 0o020_644, 0o060_644, 0o140_644]),
        )],
        Kind::Mksock => vec![(
            "mode of another type",
            A::Mode,
            numbers(&[0o644, 0o100_644, 0o040_755, 0o010_644, 0o020_644, 0o060_644]),
        )],
        Kind::Symlink => vec![(
            "symlink's target",
            A::PathLink,
            vec![
                vec![],
                b"a\0b".to_vec(),
                vec![b't'; 4096],
                vec![b't'; 0xffff],
            ],
        )],
        Kind::SetXattr => vec![
            ("name of an extended attribute", A::XattrName, names()),
            ("huge value", A::XattrData, vec![vec![0; 0xff00]]),
        ],
        Kind::RemoveXattr => vec![("name of an extended attribute", A::XattrName, names())],
        Kind::Chown => vec![
            ("no owner", A::Uid, numbers(&[u64::from(u32::MAX), 1 << 32])),
            ("no owner", A::Gid, numbers(&[u64::from(u32::MAX), 1 << 32])),
        ],
        Kind::Utimes => [A::Atime, A::Mtime, A::Ctime]
            .map(|time| {
                let late = [&[0; 8][..], &1_000_000_000_u32.to_le_bytes()].concat();
                let later = [&[0xff; 8][..], &u32::MAX.to_le_bytes()].concat();
                ("no time", time, vec![late, later])
            })
            .into(),
        Kind::Clone => vec![
            ("range that is none", A::CloneLen, numbers(&[0])),
            (
                "range beyond the clone source",
                A::CloneLen,
                numbers(&[8193, 1 << 40, 1 << 62]),
            ),
            (
                "range beyond the clone source",
                A::CloneOffset,
                numbers(&[4097, 8192, 1 << 40, 1 << 62]),
            ),
        ],
        // More than there is room for; to punch or to reach that far takes none.
        Kind::Fallocate => vec![(
            "mode of fallocate",
            A::FallocateMode,
            narrow(&[2, 1 << 3, 1 << 3 | 1, 1 << 5, 0x12, 0x40, 0x41, 1 << 31]),
        )],
        _ => vec![],
    }
}

/// Encoded extents that do not decompress, or not within what they say.
fn damaged(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    const CLASS: &str = "damaged compressed data";
    let text = b"replicated ".repeat(1000);
    let (zlib, zstd) = (zlib(&text), zstd(&text));
    for (compression, good) in [(1, &zlib), (2, &zstd)] {
        for (what, data) in [
            ("nothing", vec![]),
            ("its first half", good[..good.len() / 2].to_vec()),
            ("zeros", vec![0; 4096]),
            ("plain text", text.clone()),
            ("the middle changed", changed(good)),
            (
                "the other algorithm's",
                if compression == 1 {
                    zstd.clone()
                } else {
                    zlib.clone()
                },
            ),
            ("more than an extent", vec![0; MAX_ENCODED + 1]),
        ] {
            let payload = encoded(stage, compression, text.len() as u64, data);
            cases.push(stage.refused(CLASS, format!("{compression}, {what}"), &payload));
        }
        for (what, [file_len, len, offset]) in [
            (
                "longer than an extent",
                [MAX_ENCODED as u64 + 1, MAX_ENCODED as u64 + 1, 0],
            ),
            ("more than there is", [11_001, 11_000, 0]),
            ("beyond what there is", [1, 11_000, 11_000]),
            ("far beyond", [1, 11_000, u64::MAX]),
        ] {
            let command = with_lengths(&stage.command, file_len, len, offset, good);
            cases.push(stage.refused(CLASS, format!("{compression}, {what}"), &command));
        }
    }
    for compression in [0, 3, 4, 5, 6, 7, 8, 255] {
        let payload = encoded(stage, compression, 1, zlib.clone());
        cases.push(stage.refused("unknown compression", compression, &payload));
    }
    for encryption in [1_u32, u32::MAX] {
        let more = super::commands::attribute(
            Attribute::Encryption.number(),
            4,
            &encryption.to_le_bytes(),
            VERSION,
        );
        let payload = [&more, &payload(&stage.command, VERSION)[..]].concat();
        cases.push(stage.refused("encryption", encryption, &payload));
    }
}

/// A little data that becomes much. What is cut at the extent's claimed length may be taken.
fn bombs(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    let zeros = vec![0; 64 << 20];
    for (compression, bomb) in [(1, zlib(&zeros)), (2, zstd(&zeros))] {
        for claimed in [1, 4096, MAX_ENCODED as u64] {
            let payload = encoded(stage, compression, claimed, bomb.clone());
            let what = format!("{compression}, {} bytes for {claimed}", bomb.len());
            cases.push(
                stage
                    .refused("compression bomb", what, &payload)
                    .both(Verdict::Contained),
            );
        }
        for claimed in [MAX_ENCODED as u64 + 1, zeros.len() as u64, u64::MAX] {
            let payload = encoded(stage, compression, claimed, bomb.clone());
            let what = format!("{compression}, {} bytes for {claimed}", bomb.len());
            cases.push(stage.refused("compression bomb", what, &payload));
        }
    }
}

fn encoded(stage: &Stage<'_>, compression: u32, length: u64, data: Vec<u8>) -> Vec<u8> {
    let mut attributes = taken_apart(&stage.command, VERSION);
    for (number, value) in &mut attributes {
        match Attribute::from_number(*number, VERSION).unwrap() {
            Attribute::Compression => *value = compression.to_le_bytes().to_vec(),
            Attribute::UnencodedLen | Attribute::UnencodedFileLen => {
                *value = length.to_le_bytes().to_vec();
            }
            Attribute::Data => value.clone_from(&data),
            _ => {}
        }
    }
    super::commands::put_together(&attributes, VERSION)
}

fn with_lengths(
    command: &Command<'_>,
    file_len: u64,
    len: u64,
    offset: u64,
    data: &[u8],
) -> Vec<u8> {
    let mut attributes = taken_apart(command, VERSION);
    for (number, value) in &mut attributes {
        match Attribute::from_number(*number, VERSION).unwrap() {
            Attribute::UnencodedFileLen => *value = file_len.to_le_bytes().to_vec(),
            Attribute::UnencodedLen => *value = len.to_le_bytes().to_vec(),
            Attribute::UnencodedOffset => *value = offset.to_le_bytes().to_vec(),
            Attribute::Data => *value = data.to_vec(),
            _ => {}
        }
    }
    super::commands::put_together(&attributes, VERSION)
}

fn changed(good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().for_each(|byte| *byte ^= 0xff);
    bytes
}

fn zlib(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 3).unwrap()
}
