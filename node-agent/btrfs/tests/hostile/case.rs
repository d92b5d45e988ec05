//! One hostile stream, the harmless one that it was made from, and what must become of both.

use icbd_btrfs::receive::ReceiveError;
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Kind, Position, Version};

use super::commands::commands;
use super::target::{Route, Target, upcoming};

/// A hostile stream.
#[derive(Clone, Debug)]
pub struct Case {
    pub class: &'static str,
    /// What it tries, for whoever has to look for it.
    pub what: String,
    /// The same stream without the harm.
    pub control: Vec<u8>,
    /// The routes that take the control.
    pub open: &'static [Route],
    pub hostile: Vec<u8>,
    whole: Verdict,
    blocks: Verdict,
}

/// What must become of a hostile stream, beside nothing.
#[derive(Clone, Copy, Debug)]
pub enum Verdict {
    /// Refused, by an error that says where and at which command, if that can be known.
    Refused(Position, Option<Kind>),
    /// Refused, at whatever command of the stream it first shows.
    RefusedSomewhere,
    /// What is odd about it is no harm, or not to be seen.
    Accepted,
    /// It may be either: the harm would be in what it does outside.
    Contained,
}

impl Case {
    pub fn new(
        class: &'static str,
        what: impl Into<String>,
        control: Vec<u8>,
        hostile: Vec<u8>,
        verdict: Verdict,
    ) -> Case {
        Case {
            class,
            what: what.into(),
            control,
            open: &Route::ALL,
            hostile,
            whole: verdict,
            blocks: verdict,
        }
    }

    /// On the kernel's own stream another verdict.
    pub fn whole(self, whole: Verdict) -> Case {
        Case { whole, ..self }
    }

    /// On both routes another verdict.
    pub fn both(self, verdict: Verdict) -> Case {
        self.whole(verdict).blocks(verdict)
    }

    /// In blocks another verdict.
    pub fn blocks(self, blocks: Verdict) -> Case {
        Case { blocks, ..self }
    }

    /// Fails unless `outcome` is what must become of the hostile stream.
    pub fn judge(&self, route: Route, outcome: &Result<(), ReceiveError>) {
        let verdict = match route {
            Route::Whole => self.whole,
            Route::Blocks => self.blocks,
        };
        let said = outcome.as_ref().err().map(ToString::to_string);
        let right = match (verdict, &said) {
            (Verdict::Refused(position, kind), Some(said)) => {
                said.contains(&position.to_string())
                    && kind.is_none_or(|kind| said.contains(&format!("({kind})")))
            }
            (Verdict::RefusedSomewhere, Some(said)) => said.contains("command "),
            (Verdict::Accepted, None) | (Verdict::Contained, _) => true,
            _ => false,
        };
        assert!(
            right,
            "{}: {} by {route:?}: {verdict:?} was due, and it got {said:?}",
            self.class, self.what
        );
    }

    /// Whether it counts as refused by at least one route.
    pub fn is_refused(&self) -> bool {
        let refused = |verdict| matches!(verdict, Verdict::Refused(..) | Verdict::RefusedSomewhere);
        refused(self.whole) || refused(self.blocks)
    }
}

/// What the cases about one command begin with.
pub struct Stage<'a> {
    pub target: &'a Target,
    pub version: Version,
    /// The command that does no harm.
    pub command: Command<'a>,
}

/// A stage for every command; in version 1 for WRITE alone, which is where the versions differ.
pub fn stages(target: &Target) -> impl Iterator<Item = Stage<'_>> {
    [Version::V1, Version::V2]
        .into_iter()
        .flat_map(move |version| {
            commands(version).map(move |command| Stage {
                target,
                version,
                command,
            })
        })
        .filter(|stage| stage.version == Version::V2 || stage.command.kind() == Kind::Write)
}

impl Stage<'_> {
    /// The stream whose second command does no harm.
    pub fn control(&self) -> Vec<u8> {
        self.target.begin(self.version).command(&self.command).end()
    }

    /// Of every route that takes the command.
    pub fn open(&self) -> &'static [Route] {
        match self.command.kind() {
            Kind::UpdateExtent => &[Route::Blocks],
            _ => &Route::ALL,
        }
    }

    /// Where its command stands.
    pub fn at(&self) -> Position {
        upcoming(&self.target.begin(self.version), 2)
    }

    /// The case that the same command with another payload is refused, for itself.
    pub fn refused(
        &self,
        class: &'static str,
        what: impl std::fmt::Display,
        payload: &[u8],
    ) -> Case {
        let kind = self.command.kind();
        self.raw(class, what, |encoder| {
            encoder.raw(kind.number(), payload);
        })
        .both(Verdict::Refused(self.at(), Some(kind)))
    }

    /// The case of anything in the command's place. The verdict is still to be said.
    pub fn raw(
        &self,
        class: &'static str,
        what: impl std::fmt::Display,
        attack: impl FnOnce(&mut Encoder),
    ) -> Case {
        let mut encoder = self.target.begin(self.version);
        attack(&mut encoder);
        self.bytes(class, what, encoder.end())
    }

    /// The case of any bytes in the stream's place. The verdict is still to be said.
    pub fn bytes(
        &self,
        class: &'static str,
        what: impl std::fmt::Display,
        hostile: Vec<u8>,
    ) -> Case {
        let what = format!("{} {what}, {:?}", self.command.kind(), self.version);
        let case = Case::new(class, what, self.control(), hostile, Verdict::Contained);
        Case {
            open: self.open(),
            ..case
        }
    }
}
