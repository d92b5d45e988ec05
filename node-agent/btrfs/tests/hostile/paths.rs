//! Paths that lead elsewhere: by what they say, by what stands in the way, by what stands at the end.

use icbd_btrfs::stream::{Attribute, Command, Kind, Version};

use super::case::{Case, Stage, Verdict};
use super::commands::{attackable, is_about_data, path, with};
use super::target::{Target, upcoming};

const VERSION: Version = Version::V2;

pub fn cases(target: &Target) -> Vec<Case> {
    let mut cases = Vec::new();
    for (command, attribute, decent) in attackable() {
        let stage = Stage {
            target,
            version: VERSION,
            command,
        };
        let attack = Attack {
            stage,
            attribute,
            name: decent.strip_prefix("dir/").unwrap(),
        };
        attack.said(&mut cases);
        attack.in_the_way(&mut cases);
        attack.at_the_end(&mut cases);
        attack.the_root(&mut cases);
    }
    cases
}

/// One path of one command.
struct Attack<'a> {
    stage: Stage<'a>,
    attribute: Attribute,
    /// The last name of the path that does no harm.
    name: &'static str,
}

impl Attack<'_> {
    fn refused(&self, class: &'static str, hostile: &[u8]) -> Case {
        let what = format!("{} \"{}\"", self.attribute, hostile.escape_ascii());
        self.stage.refused(class, what, &self.payload(hostile))
    }

    fn payload(&self, hostile: &[u8]) -> Vec<u8> {
        with(&self.stage.command, VERSION, self.attribute, hostile)
    }

    fn number(&self) -> u16 {
        self.stage.command.kind().number()
    }

    fn is_about_data(&self) -> bool {
        is_about_data(self.stage.command.kind(), self.attribute)
    }

    /// Paths that no file system has to be asked about.
    fn said(&self, cases: &mut Vec<Case>) {
        let name = self.name;
        let outside = self.stage.target.pool.path().join("outside").join(name);
        let absolute = outside.into_os_string().into_encoded_bytes();
        let text = |path: String| path.into_bytes();
        let classes: [(&'static str, Vec<Vec<u8>>); 5] = [
            (
                "absolute path",
                vec![
                    absolute,
                    text(format!("/{name}")),
                    text(format!("//dir/{name}")),
                    b"/".to_vec(),
                ],
            ),
            (
                "dots in the path",
                vec![
                    text(format!("../../outside/{name}")),
                    text(format!("dir/../../../outside/{name}")),
                    text(format!("dir/../{name}")),
                    text(format!("dir/./{name}")),
                    text(format!("./{name}")),
                    b"dir/..".to_vec(),
                    b"..".to_vec(),
                    b".".to_vec(),
                ],
            ),
            (
                "empty name in the path",
                vec![text(format!("dir//{name}")), text(format!("dir/{name}/"))],
            ),
            (
                "NUL in the path",
                vec![
                    text(format!("dir/{name}\0")),
                    text(format!("dir\0/{name}")),
                    text(format!("\0dir/{name}")),
                    b"\0".to_vec(),
                ],
            ),
            (
                "overlong path",
                vec![
                    vec![b'n'; 256],
                    [&b"dir/"[..], &[b'n'; 4000]].concat(),
                    b"dir/".repeat(1024),
                    b"d/".repeat(30_000),
                ],
            ),
        ];
        for (class, paths) in classes {
            cases.extend(paths.iter().map(|hostile| self.refused(class, hostile)));
        }
    }

    /// Paths through what is no directory.
    fn in_the_way(&self, cases: &mut Vec<Case>) {
        let name = self.name;
        for through in ["out", "up", "in", "self", "loop", "to out", "to nothing"] {
            let hostile = format!("{through}/{name}");
            cases.push(self.refused("symlink in the way", hostile.as_bytes()));
        }
        for through in ["file", "fifo", "sock", "null", "disk", "absent"] {
            let hostile = format!("{through}/{name}");
            cases.push(self.refused("no directory in the way", hostile.as_bytes()));
        }
        let outside = self.stage.target.pool.path().join("outside");
        for way in [outside.to_str().unwrap(), "../../outside", "dir"] {
            let link = Command::Symlink {
                path: path(b"way"),
                ino: 0,
                target: way.as_bytes(),
            };
            let hostile = format!("way/{name}");
            cases.push(self.after("symlink of its own in the way", &link, hostile.as_bytes()));
        }
    }

    /// The case that the command is refused which comes after `first`, a harmless one.
    fn after(&self, class: &'static str, first: &Command<'_>, hostile: &[u8]) -> Case {
        let what = format!(
            "{} \"{}\" after {first:?}",
            self.attribute,
            hostile.escape_ascii()
        );
        let mut place = self.stage.target.begin(VERSION);
        let at = upcoming(place.command(first), 3);
        self.stage
            .raw(class, what, |encoder| {
                encoder
                    .command(first)
                    .raw(self.number(), &self.payload(hostile));
            })
            .both(Verdict::Refused(at, Some(self.stage.command.kind())))
    }

    /// Paths to what has no data, or has it elsewhere. Whoever does not go for data may change the
    /// symlink or device as such.
    fn at_the_end(&self, cases: &mut Vec<Case>) {
        for (class, names) in [
            (
                "symlink at the end",
                &[
                    "to file",
                    "up to file",
                    "in to file",
                    "to nothing",
                    "to fifo",
                    "to disk",
                    "loop",
                    "out",
                ][..],
            ),
            (
                "device, fifo, socket or directory at the end",
                &["fifo", "sock", "null", "disk", "dir"],
            ),
        ] {
            for name in names {
                let case = self.refused(class, name.as_bytes());
                cases.push(match self.is_about_data() {
                    true => case,
                    false => case.both(Verdict::Contained),
                });
            }
        }
        if self.is_about_data() {
            self.at_the_end_of_its_own(cases);
        }
    }

    /// The same, of devices and links that the stream makes.
    fn at_the_end_of_its_own(&self, cases: &mut Vec<Case>) {
        let (own, rdev) = (path(b"own"), self.stage.target.device.stream_number());
        let outside = self.stage.target.pool.path().join("outside/file");
        for first in [
            Command::Mknod {
                path: own,
                ino: 0,
                mode: 0o060_666,
                rdev,
            },
            Command::Mknod {
                path: own,
                ino: 0,
                mode: 0o020_666,
                rdev: 0x103,
            },
            Command::Mkfifo {
                path: own,
                ino: 0,
                mode: 0o010_666,
                rdev: 0,
            },
            Command::Mksock {
                path: own,
                ino: 0,
                mode: 0o140_666,
                rdev: 0,
            },
            Command::Link {
                path: own,
                existing: path(b"disk"),
            },
            Command::Link {
                path: own,
                existing: path(b"fifo"),
            },
            Command::Link {
                path: own,
                existing: path(b"to file"),
            },
            Command::Rename {
                path: path(b"disk"),
                to: own,
            },
            Command::Rename {
                path: path(b"fifo"),
                to: own,
            },
            Command::Rename {
                path: path(b"up to file"),
                to: own,
            },
            Command::Symlink {
                path: own,
                ino: 0,
                target: outside.as_os_str().as_encoded_bytes(),
            },
        ] {
            let class = "device, fifo or link of its own at the end";
            cases.push(self.after(class, &first, b"own"));
        }
    }

    /// The root directory has attributes and times, and that is all that can be changed of it.
    fn the_root(&self, cases: &mut Vec<Case>) {
        let case = self.refused("the root directory", b"");
        cases.push(match self.stage.command.kind() {
            Kind::SetXattr | Kind::Chmod | Kind::Chown | Kind::Utimes | Kind::Fileattr => {
                case.both(Verdict::Accepted)
            }
            _ => case,
        });
    }
}
