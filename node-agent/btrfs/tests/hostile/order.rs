//! Commands where they do not belong: before the subvolume, after the end, a second beginning.

use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Kind};

use super::case::{Case, Stage, Verdict, stages};
use super::commands::path;
use super::target::{SELF, Target, upcoming};

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = Vec::new();
    for stage in stages(target) {
        cases.push(before_the_subvolume(&stage));
        cases.push(after_the_end(&stage));
        cases.extend(second_beginnings(&stage));
    }
    cases
}

fn before_the_subvolume(stage: &Stage<'_>) -> Case {
    let mut encoder = Encoder::new(stage.version);
    let at = upcoming(&encoder, 1);
    encoder.command(&stage.command);
    let hostile = encoder.command(&stage.target.snapshot()).end();
    let verdict = Verdict::Refused(at, Some(stage.command.kind()));
    let case = stage.bytes("before the subvolume", "first", hostile);
    case.both(verdict)
}

/// The kernel's stream is read up to END and no further; a block has to end with it.
fn after_the_end(stage: &Stage<'_>) -> Case {
    let mut encoder = stage.target.begin(stage.version);
    encoder.command(&stage.command).end();
    let at = upcoming(&encoder, 4);
    let hostile = encoder.command(&stage.command).end();
    let case = stage.bytes("after END", "again", hostile);
    let case = case.blocks(Verdict::Refused(at, None));
    match stage.command.kind() {
        Kind::UpdateExtent => case.whole(Verdict::Refused(stage.at(), Some(Kind::UpdateExtent))),
        _ => case.whole(Verdict::Accepted),
    }
}

fn second_beginnings(stage: &Stage<'_>) -> [Case; 2] {
    let again = stage.target.snapshot();
    let anew = Command::Subvol {
        name: path(b"3"),
        uuid: SELF,
        ctransid: 9,
    };
    [again, anew].map(|second| {
        let what = format!("then {}", second.kind());
        let mut encoder = stage.target.begin(stage.version);
        let at = upcoming(&encoder, 2);
        let hostile = encoder.command(&second).command(&stage.command).end();
        let case = stage.bytes("second beginning", what, hostile);
        case.both(Verdict::Refused(at, Some(second.kind())))
    })
}
