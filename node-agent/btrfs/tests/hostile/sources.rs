//! Parents and clone sources that the receiver was not given, and clone sources that are no files.

use icbd_btrfs::stream::{Attribute, Command, Kind, Version};
use uuid::Uuid;

use super::case::{Case, Stage, Verdict};
use super::commands::{attackable, path, with};
use super::target::{SELF, Target, upcoming};
use crate::receive_pair::identity;
use icbd_btrfs::stream::encode::{Encoder, payload};

const VERSION: Version = Version::V2;

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = Vec::new();
    for (command, ..) in attackable() {
        if command.kind() == Kind::Clone {
            let stage = Stage {
                target,
                version: VERSION,
                command,
            };
            foreign(&stage, &mut cases);
            of_the_base(target, &mut cases);
            break;
        }
    }
    for version in [Version::V1, Version::V2] {
        beginnings(target, version, &mut cases);
    }
    cases
}

/// Everything that the receiver was not given.
fn strangers(target: &Target) -> Vec<Uuid> {
    let mut strangers = vec![
        Uuid::nil(),
        Uuid::max(),
        Uuid::from_bytes([1; 16]),
        target.outside.info().unwrap().uuid,
        target.live.info().unwrap().uuid,
    ];
    // Identities with one bit wrong.
    for bit in (0..128).step_by(9) {
        strangers.push(Uuid::from_u128(
            identity(&target.base).as_u128() ^ (1 << bit),
        ));
        strangers.push(Uuid::from_u128(SELF.as_u128() ^ (1 << bit)));
    }
    strangers
}

fn foreign(stage: &Stage<'_>, cases: &mut Vec<Case>) {
    for stranger in strangers(stage.target) {
        let payload = with(
            &stage.command,
            VERSION,
            Attribute::CloneUuid,
            stranger.as_bytes(),
        );
        cases.push(stage.refused("foreign clone source", stranger, &payload));
    }
}

/// What is not a file in the base.
fn of_the_base(target: &Target, cases: &mut Vec<Case>) {
    let clone = |from: &'static [u8]| Command::Clone {
        path: path(b"file"),
        offset: 0,
        length: 4096,
        source: identity(&target.base),
        source_ctransid: 9,
        source_path: path(from),
        source_offset: 0,
    };
    let stage = Stage {
        target,
        version: VERSION,
        command: clone(b"dir/file"),
    };
    for name in [
        "",
        "dir",
        "fifo",
        "sock",
        "null",
        "disk",
        "to file",
        "up to file",
        "in to file",
        "to disk",
        "loop",
        "out/file",
        "up/file",
        "in/file",
        "file/file",
        "absent",
        "dir/absent",
    ] {
        let payload = payload(&clone(name.as_bytes()), VERSION);
        cases.push(stage.refused("clone source that is no file", name, &payload));
    }
}

/// First commands: names that are none, contents without identity, parents that are not here.
fn beginnings(target: &Target, version: Version, cases: &mut Vec<Case>) {
    let subvol = Command::Subvol {
        name: path(b"2"),
        uuid: SELF,
        ctransid: 9,
    };
    for first in [subvol, target.snapshot()] {
        let beginning = Beginning { version, first };
        for name in [
            &b""[..],
            b"/",
            b"/2",
            b"2/",
            b".",
            b"..",
            b"../2",
            b"a/b",
            b"2\0",
            b"\0",
            &[b'n'; 256],
        ] {
            let payload = with(&first, version, Attribute::Path, name);
            let what = format!("\"{}\"", name.escape_ascii());
            cases.push(beginning.refused("name of the subvolume", what, &payload));
        }
        let nil = with(&first, version, Attribute::Uuid, Uuid::nil().as_bytes());
        cases.push(beginning.refused("content without identity", "nil", &nil));
        if first.kind() == Kind::Snapshot {
            for stranger in strangers(target).into_iter().chain([SELF]) {
                let payload = with(&first, version, Attribute::CloneUuid, stranger.as_bytes());
                cases.push(beginning.refused("foreign parent", stranger, &payload));
            }
        }
    }
}

struct Beginning<'a> {
    version: Version,
    first: Command<'a>,
}

impl Beginning<'_> {
    fn refused(&self, class: &'static str, what: impl std::fmt::Display, payload: &[u8]) -> Case {
        let kind = self.first.kind();
        let mut hostile = Encoder::new(self.version);
        let at = upcoming(&hostile, 1);
        let hostile = hostile.raw(kind.number(), payload).end();
        Case::new(
            class,
            format!("{kind} {what}, {:?}", self.version),
            Encoder::new(self.version).command(&self.first).end(),
            hostile,
            Verdict::Refused(at, Some(kind)),
        )
    }
}
