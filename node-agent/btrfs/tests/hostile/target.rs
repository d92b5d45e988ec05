//! A pool to attack: what must not change stands around the place that streams are received in.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use icbd_btrfs::receive::{Base, ReceiveError, Receiver};
use icbd_btrfs::stream::encode::Encoder;
use icbd_btrfs::stream::{Command, Position, Version};
use icbd_btrfs::{Access, Digest, Subvolume, create, delete, digest, snapshot};
use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use uuid::Uuid;

use super::commands::path;
use super::device::Device;
use crate::receive_pair::{PARTIAL, identity};
use crate::support::Pool;

/// What the streams call their own content.
pub const SELF: Uuid = Uuid::from_bytes([7; 16]);

const RESULT: &[u8] = b"2";

/// How a stream comes to the receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Route {
    /// As the kernel makes it.
    Whole,
    /// In blocks, whose content somebody else has checked.
    Blocks,
}

impl Route {
    pub const ALL: [Route; 2] = [Route::Whole, Route::Blocks];
}

/// The pool. In `image` streams are received, on the snapshot `base`, in which there is something of
/// everything to work with; `image/live` is its writable source, and `outside` what every attack
/// tries to reach.
pub struct Target {
    pub pool: Pool,
    pub outside: Subvolume,
    pub base: Subvolume,
    pub live: Subvolume,
    pub device: Device,
    /// The reading end of the fifo outside.
    fifo: File,
    before: State,
    content: [Digest; 3],
}

impl Target {
    pub fn new() -> Target {
        let (pool, device) = (Pool::new(), Device::new());
        let root = pool.path();
        fs::write(root.join("above"), "a canary above").unwrap();
        let outside = create(pool.dir(), "outside").unwrap();
        canaries(&root.join("outside"));
        let fifo = open_fifo(&root.join("outside/fifo")).unwrap();

        fs::create_dir(root.join("image")).unwrap();
        let image = File::open(root.join("image")).unwrap();
        let live = create(&image, "live").unwrap();
        tree(&root.join("image/live"), &root.join("outside"), &device);
        let base = snapshot(&live, &image, "base", Access::ReadOnly).unwrap();
        let canaries = [&outside, &base, &live];
        // Reading leaves its trace once; and what is written back later would count as a change.
        let content = canaries.map(|sub| digest(sub).unwrap());
        rustix::fs::syncfs(&image).unwrap();
        let before = State::of(&root, canaries);
        Target {
            pool,
            outside,
            base,
            live,
            device,
            fifo,
            before,
            content,
        }
    }

    /// Where streams are received.
    pub fn image(&self) -> PathBuf {
        self.pool.path().join("image")
    }

    /// What becomes of a stream. Whatever it is, everything else is as before; what was received is
    /// made a snapshot, and deleted.
    pub fn receive(&self, route: Route, stream: &[u8]) -> Result<(), ReceiveError> {
        self.receive_pieces(route, &[stream])
    }

    /// The same, of a stream in pieces, which are the blocks if it is to come in blocks.
    pub fn receive_pieces(&self, route: Route, pieces: &[&[u8]]) -> Result<(), ReceiveError> {
        let bases = [Base {
            identity: identity(&self.base),
            subvolume: &self.base,
        }];
        let dir = File::open(self.image()).unwrap();
        let receiver = Receiver::new(dir.as_fd(), PARTIAL.as_bytes(), &bases);

        // Whatever is written into the fifo of the partial, somebody is there to read it.
        let fifo = self.image().join(PARTIAL).join("fifo");
        let mut reader = None;
        let mut watch = |_| {
            reader = reader.take().or_else(|| open_fifo(&fifo).ok());
            ControlFlow::Continue(())
        };
        let received = match route {
            Route::Whole => receiver.run(&pieces.concat()[..], watch),
            Route::Blocks => {
                let mut arriving = receiver.begin();
                let mut blocks = pieces.iter();
                blocks
                    .try_for_each(|block| arriving.block(block, &mut watch))
                    .and_then(|()| arriving.end())
            }
        };
        let outcome = received
            .and_then(|received| received.finish(RESULT))
            .map(|_| delete(&dir, RESULT).unwrap());

        reader.iter().for_each(nothing_came);
        self.assert_untouched();
        outcome
    }

    fn assert_untouched(&self) {
        nothing_came(&self.fifo);
        assert!(self.device.is_untouched(), "a device was written to");
        let after = State::of(&self.pool.path(), self.canaries());
        assert_eq!(after, self.before, "something outside changed");
    }

    /// Every change of a subvolume shows in its ctransid; what that does not tell, its content does.
    pub fn assert_same_content(&self) {
        let after = self.canaries().map(|sub| digest(sub).unwrap());
        assert_eq!(after, self.content, "content outside changed");
    }

    fn canaries(&self) -> [&Subvolume; 3] {
        [&self.outside, &self.base, &self.live]
    }

    /// Begins a stream: an increment to the base.
    pub fn begin(&self, version: Version) -> Encoder {
        let mut encoder = Encoder::new(version);
        encoder.command(&self.snapshot());
        encoder
    }

    /// The command that every stream here begins with.
    pub fn snapshot(&self) -> Command<'static> {
        Command::Snapshot {
            name: path(b"2"),
            uuid: SELF,
            ctransid: 9,
            clone_uuid: identity(&self.base),
            clone_ctransid: 9,
        }
    }

    /// A stream that begins, and goes on with `attack` and END.
    pub fn stream(&self, attack: impl FnOnce(&mut Encoder)) -> Vec<u8> {
        let mut encoder = self.begin(Version::V2);
        attack(&mut encoder);
        encoder.end()
    }
}

/// Where the command will stand that is number `command` of the stream.
pub fn upcoming(encoder: &Encoder, command: u64) -> Position {
    let offset = encoder.bytes().len() as u64;
    Position { command, offset }
}

/// Everything that a stream must leave alone.
#[derive(Debug, PartialEq)]
struct State {
    above: Vec<String>,
    image: Vec<String>,
    file_above: Vec<u8>,
    /// The last change of each.
    subvolumes: [u64; 3],
}

impl State {
    fn of(root: &Path, subvolumes: [&Subvolume; 3]) -> State {
        State {
            above: names(root),
            image: names(&root.join("image")),
            file_above: fs::read(root.join("above")).unwrap(),
            subvolumes: subvolumes.map(|sub| sub.info().unwrap().ctransid),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn open_fifo(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOATIME;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
    match kind {
        FileType::Fifo => Ok(fd.into()),
        _ => Err(rustix::io::Errno::NOENT),
    }
}

/// The end of file is what the reader of a fifo sees to which nobody writes.
fn nothing_came(mut fifo: &File) {
    assert_eq!(fifo.read(&mut [0; 16]).unwrap(), 0, "a fifo was written to");
}

/// Something of every name that the attacks go for.
fn canaries(dir: &Path) {
    for name in ["file", "marked"] {
        fs::write(dir.join(name), "a canary").unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o640)).unwrap();
        mark(&dir.join(name));
    }
    fs::create_dir(dir.join("empty")).unwrap();
    special(&dir.join("fifo"), FileType::Fifo, 0);
}

/// What is in the base.
fn tree(root: &Path, outside: &Path, device: &Device) {
    for dir in ["dir", "dir/empty", "empty"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for file in ["file", "dir/file", "dir/marked"] {
        fs::write(root.join(file), [b'x'; 8192]).unwrap();
        mark(&root.join(file));
    }
    for (name, target) in [
        ("out", outside),
        ("up", Path::new("../../outside")),
        ("in", Path::new("dir")),
        ("self", Path::new(".")),
        ("loop", Path::new("loop")),
        ("to out", Path::new("out")),
        ("to file", &outside.join("file")),
        ("up to file", Path::new("../../outside/file")),
        ("in to file", Path::new("file")),
        ("to nothing", &outside.join("new")),
        ("to fifo", &outside.join("fifo")),
        ("to disk", Path::new("disk")),
    ] {
        symlink(target, root.join(name)).unwrap();
    }
    special(&root.join("fifo"), FileType::Fifo, 0);
    special(&root.join("sock"), FileType::Socket, 0);
    special(
        &root.join("null"),
        FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    );
    special(&root.join("disk"), FileType::BlockDevice, device.number());
}

fn mark(path: &Path) {
    rustix::fs::setxattr(path, "user.mark", b"1", XattrFlags::empty()).unwrap();
}

fn special(path: &Path, kind: FileType, device: u64) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device).unwrap();
}
