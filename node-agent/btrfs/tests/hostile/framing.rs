//! Streams that are wrong before any attribute is looked at: cut short, of unknown versions and
//! commands, with lengths and checksums that lie.

use icbd_btrfs::stream::encode::payload;
use icbd_btrfs::stream::{Command, MAX_BLOCK, Position, Version};

use super::case::{Case, Stage, Verdict, stages};
use super::commands::{commands, has_length, is_known, taken_apart};
use super::target::{Target, upcoming};

/// Bytes before a command's payload: length, number, checksum.
const HEADER: usize = 10;

/// Bytes before the first command.
const STREAM_HEADER: usize = 17;

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = headers(target);
    for stage in stages(target) {
        unknown(&stage, &mut cases);
        lengths(&stage, &mut cases);
        checksums(&stage, &mut cases);
        cuts(&stage, &mut cases);
    }
    for command in commands(Version::V2).filter(|command| !is_known(command, Version::V1)) {
        cases.push(later(target, command));
    }
    cases
}

/// Streams that do not begin as streams do.
fn headers(target: &Target) -> Vec<Case> {
    let control = target.begin(Version::V2).end();
    let at = Position {
        command: 0,
        offset: 0,
    };
    let case = |class, what: String, hostile| {
        Case::new(
            class,
            what,
            control.clone(),
            hostile,
            Verdict::Refused(at, None),
        )
    };
    let mut cases = Vec::new();
    for version in [0, 3, 4, 0x100, 1 << 16, 1 << 31, u32::MAX] {
        let mut hostile = control.clone();
        hostile[13..STREAM_HEADER].copy_from_slice(&version.to_le_bytes());
        cases.push(case("unknown version", version.to_string(), hostile));
    }
    for byte in 0..13 {
        let mut hostile = control.clone();
        hostile[byte] ^= 0x20;
        cases.push(case(
            "no send stream",
            format!("byte {byte} changed"),
            hostile,
        ));
    }
    for length in 1..STREAM_HEADER {
        let what = format!("{length} bytes of its header");
        cases.push(case("cut short", what, control[..length].to_vec()));
    }
    cases
}

/// Numbers of no command, with the payload of one.
fn unknown(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    let payload = payload(&stage.command, stage.version);
    // 26 is fs-verity's, of version 3.
    for number in [
        0,
        26,
        27,
        0xff,
        0x8000 | stage.command.kind().number(),
        0xffff,
    ] {
        let case = stage.raw("unknown command", number, |encoder| {
            encoder.raw(number, &payload);
        });
        cases.push(case.both(Verdict::Refused(stage.at(), None)));
    }
}

/// A command of version 2 in a stream of version 1.
fn later(target: &Target, command: Command<'_>) -> Case {
    let mut encoder = target.begin(Version::V1);
    let at = upcoming(&encoder, 2);
    let hostile = encoder.command(&command).end();
    let stage = Stage {
        target,
        version: Version::V2,
        command,
    };
    stage
        .bytes("command of a later version", "in a stream of V1", hostile)
        .both(Verdict::Refused(at, None))
}

/// The stream with changed bytes in its second command, whose checksum stays as it was.
fn changed(stage: &Stage<'_>, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut hostile = stage.control();
    change(&mut hostile[stage.at().offset as usize..]);
    hostile
}

fn lengths(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    const CLASS: &str = "command lying about its length";
    let kind = stage.command.kind();
    let length = payload(&stage.command, stage.version).len() as u32;
    let refused = Verdict::Refused(stage.at(), Some(kind));
    let mut case = |lie: u32, blocks| {
        let what = format!("{lie} for {length}");
        let hostile = changed(stage, |bytes| {
            bytes[..4].copy_from_slice(&lie.to_le_bytes())
        });
        let case = stage.bytes(CLASS, what, hostile);
        cases.push(case.whole(refused).blocks(blocks));
    };
    for lie in [
        u32::MAX,
        1 << 31,
        1 << 24,
        MAX_BLOCK as u32 + 1,
        MAX_BLOCK as u32,
        length + 11,
    ] {
        case(lie, refused);
    }
    // DATA goes as far as its command says, so that in blocks it may be a later one that fails.
    for lie in [length + 10, length + 1, length - 1, length / 2, 0] {
        case(lie, Verdict::RefusedSomewhere);
    }
}

/// Whoever sends blocks answers for them by a better checksum: there, the commands' own are not
/// looked at.
fn checksums(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    let refused = Verdict::Refused(stage.at(), Some(stage.command.kind()));
    let mut case = |what: String, hostile, blocks| {
        let case = stage.bytes("wrong checksum", what, hostile);
        cases.push(case.whole(refused).blocks(blocks));
    };
    for bit in [0, 7, 31] {
        let hostile = changed(stage, |bytes| bytes[6 + bit / 8] ^= 1 << (bit % 8));
        case(format!("bit {bit}"), hostile, Verdict::Accepted);
    }
    let inverted = changed(stage, |bytes| {
        bytes[6..HEADER].iter_mut().for_each(|b| *b = !*b)
    });
    case("inverted".into(), inverted, Verdict::Accepted);
    let payload = payload(&stage.command, stage.version).len();
    for at in [0, payload / 2, payload - 1] {
        let hostile = changed(stage, |bytes| bytes[HEADER + at] ^= 0x10);
        case(format!("payload's byte {at}"), hostile, Verdict::Contained);
    }
}

/// The stream's first bytes, up to the ends of what the second command is made of, and around them.
fn cuts(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    let (control, at, kind) = (stage.control(), stage.at(), stage.command.kind());
    let start = at.offset as usize;
    let end = control.len() - HEADER;
    let mut ends = vec![
        start,
        start + 4,
        start + 6,
        start + HEADER,
        end,
        end + 4,
        end + 9,
    ];
    let mut attribute = start + HEADER;
    for (number, value) in taken_apart(&stage.command, stage.version) {
        let head = if has_length(number, stage.version) {
            4
        } else {
            2
        };
        ends.extend([attribute + 1, attribute + head]);
        attribute += head + value.len();
        ends.extend([attribute - 1, attribute]);
    }
    ends.sort();
    ends.dedup();
    for cut in ends {
        let verdict = match cut {
            // What announces extents is refused by the kernel's route before the cut shows.
            _ if cut >= end => Verdict::RefusedSomewhere,
            _ if cut < start + HEADER => Verdict::Refused(at, None),
            _ => Verdict::Refused(at, Some(kind)),
        };
        let case = stage.bytes(
            "cut short",
            format!("after {} bytes", cut - start),
            control[..cut].to_vec(),
        );
        cases.push(case.both(verdict));
    }
}
