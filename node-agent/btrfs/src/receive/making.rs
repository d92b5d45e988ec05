//! The objects that a stream makes. Kernels have each made under a name of its own in the root
//! directory, and renamed at once. So it waits here for the next command, and is made under the name
//! that it keeps: a rename costs more than all else about a small file.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags};

use super::tree::{Node, Tree, disinherit};
use super::{ReceiveError, Refusal};
use crate::stream::{Kind, Position, TreePath, TreePathBuf};

/// An object that the last command is to make.
pub(super) struct Making {
    position: Position,
    command: Kind,
    path: TreePathBuf,
    object: Object,
}

/// What it is.
pub(super) enum Object {
    File,
    Directory,
    /// Of the type that is in `mode`; devices have a number.
    Special {
        mode: u32,
        rdev: u32,
    },
    Symlink {
        target: Vec<u8>,
    },
}

impl Making {
    /// What the command of this kind, at this place in the stream, is to make at `path`.
    pub(super) fn new(
        (position, command): (Position, Kind),
        path: TreePath<'_>,
        object: Object,
    ) -> Self {
        Self {
            position,
            command,
            path: path.into(),
            object,
        }
    }

    /// Makes it.
    pub(super) fn make(&self, tree: &mut Tree) -> Result<(), ReceiveError> {
        let path = self.path.as_path();
        self.object.make(tree, path).map_err(ReceiveError::command(
            self.position,
            self.command,
            path,
        ))
    }

    /// Makes it as a rename from `path` to `to` would leave it, if that is its own and nothing is in
    /// the way; whether it did. If not, making and renaming it succeeds, or says what is wrong:
    /// whatever a failure has left at `to` is replaced.
    pub(super) fn make_renamed(
        &self,
        tree: &mut Tree,
        path: TreePath<'_>,
        to: TreePath<'_>,
    ) -> bool {
        self.path.as_path() == path && tree.is_free(path) && self.object.make(tree, to).is_ok()
    }
}

impl Object {
    /// Makes it where nothing is.
    fn make(&self, tree: &mut Tree, path: TreePath<'_>) -> Result<(), Refusal> {
        let (dir, name) = tree.place(path)?;
        let failed = Refusal::system("create it");
        match self {
            Object::File => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))
                    .map_err(failed)?;
                disinherit(file.as_fd())?;
                tree.remember(path, Node::new_file(file)?);
                return Ok(());
            }
            Object::Directory => rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700)),
            Object::Special { mode, rdev } => rustix::fs::mknodat(
                &dir,
                name,
                FileType::from_raw_mode(*mode),
                Mode::from_raw_mode(0o600),
                device(*rdev),
            ),
            // It inherits nothing.
            Object::Symlink { target } => {
                return rustix::fs::symlinkat(target.as_slice(), &dir, name).map_err(failed);
            }
        }
        .map_err(failed)?;
        disinherit(tree.node(path)?.as_fd())
    }
}

/// The kernel's 32-bit encoding of a device's number, taken apart (`new_decode_dev`).
fn device(rdev: u32) -> rustix::fs::Dev {
    let major = (rdev & 0x000f_ff00) >> 8;
    let minor = (rdev & 0xff) | ((rdev >> 12) & 0x000f_ff00);
    rustix::fs::makedev(major, minor)
}
