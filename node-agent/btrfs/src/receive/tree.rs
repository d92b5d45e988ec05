//! The tree that a stream is applied to: every path of the stream becomes a descriptor here, and
//! nowhere else, so that nothing outside the tree can be reached. What is done with the
//! descriptors is in `apply.rs`; data goes through `files.rs`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Refusal;
use crate::stream::{TreePath, TreePathBuf};
use crate::subvolume::Subvolume;

/// A file, directory or whatever else stands at a path: open as a place (`O_PATH`), which has no
/// effect on it even if it is a device or a fifo. A file that was just made is open for its data.
#[derive(Debug)]
pub(super) struct Node {
    fd: Arc<OwnedFd>,
    pub(super) ino: u64,
    pub(super) size: u64,
    kind: FileType,
    /// Whether it is open for reading and writing.
    is_open: bool,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Node {
    /// Opens what stands at `path` below `root`: not through a symlink anywhere, not out of the
    /// tree, not into another mount. If the last name is a symlink, the node is that symlink.
    pub(super) fn open(root: BorrowedFd<'_>, path: TreePath<'_>) -> Result<Node, Refusal> {
        let fd = beneath(root, path, OFlags::NOFOLLOW).map_err(Refusal::system("open it"))?;
        Self::of(fd, false)
    }

    /// A regular file that was made, and is open for reading and writing.
    pub(super) fn new_file(fd: OwnedFd) -> Result<Node, Refusal> {
        Self::of(fd, true)
    }

    fn of(fd: OwnedFd, is_open: bool) -> Result<Node, Refusal> {
        let stat = rustix::fs::fstat(&fd).map_err(Refusal::system("look at it"))?;
        Ok(Node {
            fd: Arc::new(fd),
            ino: stat.st_ino,
            size: stat.st_size.cast_unsigned(),
            kind: FileType::from_raw_mode(stat.st_mode),
            is_open,
        })
    }

    /// The file, open for reading and writing.
    pub(super) fn open_file(&self) -> Result<Arc<OwnedFd>, Refusal> {
        match self.is_open {
            true => Ok(Arc::clone(&self.fd)),
            false => self.open_data(OFlags::RDWR).map(Arc::new),
        }
    }

    /// Opens the file for its data; anything but a regular file is refused before it is opened.
    pub(super) fn open_data(&self, flags: OFlags) -> Result<OwnedFd, Refusal> {
        if self.kind != FileType::RegularFile {
            return Err(Refusal::NotAFile);
        }
        rustix::fs::open(self.proc_path(), flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(Refusal::system("open its data"))
    }

    /// Sets its mode, without the type.
    pub(super) fn set_mode(&self, mode: Mode) -> Result<(), Refusal> {
        match self.is_open {
            true => rustix::fs::fchmod(&self.fd, mode),
            false => rustix::fs::chmod(self.proc_path(), mode),
        }
        .map_err(Refusal::system("set its mode"))
    }

    /// A path that leads to this very node, for the calls that take no `O_PATH` descriptor. The
    /// kernel jumps from it to the node, and follows nothing further, were the node a symlink.
    pub(super) fn proc_path(&self) -> String {
        proc_path(self.as_fd())
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Takes away the extended attributes that a new object got from the directory it was made in:
/// default ACLs, and btrfs' properties.
pub(super) fn disinherit(new: BorrowedFd<'_>) -> Result<(), Refusal> {
    let path = proc_path(new);
    let doing = "take inherited attributes from it";
    let length = rustix::fs::listxattr_query(&path).map_err(Refusal::system(doing))?;
    if length == 0 {
        return Ok(());
    }
    let mut names = vec![0; length];
    let length = rustix::fs::listxattr(&path, &mut names[..]).map_err(Refusal::system(doing))?;
    for name in names[..length].split(|&byte| byte == 0) {
        // A security module's label is not inherited but assigned, and cannot be taken away.
        if !name.is_empty() && !name.starts_with(b"security.") {
            rustix::fs::removexattr(&path, name).map_err(Refusal::system(doing))?;
        }
    }
    Ok(())
}

/// A directory of the tree, open.
#[derive(Clone, Debug)]
pub(super) enum Directory {
    Root(Arc<Subvolume>),
    Below(Arc<OwnedFd>),
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Directory::Root(root) => root.as_fd(),
            Directory::Below(directory) => directory.as_fd(),
        }
    }
}

/// The subvolume that the stream is applied to.
#[derive(Debug)]
pub(super) struct Tree {
    root: Arc<Subvolume>,
    /// The node used last, for the commands about one path come in a row. Goes whenever a name
    /// may come to mean something else.
    last: Option<(TreePathBuf, Node)>,
    /// The directory used last, for most of what is in one is made in a row. Goes likewise.
    directory: Option<(TreePathBuf, Arc<OwnedFd>)>,
}

impl Tree {
    pub(super) fn new(root: Subvolume) -> Tree {
        Tree {
            root: Arc::new(root),
            last: None,
            directory: None,
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What stands at `path`.
    pub(super) fn node(&mut self, path: TreePath<'_>) -> Result<&Node, Refusal> {
        let last = match self.last.take() {
            Some(last) if last.0.as_path() == path => last,
            _ => (path.into(), Node::open(self.root(), path)?),
        };
        Ok(&self.last.insert(last).1)
    }

    /// What was just made at `path`.
    pub(super) fn remember(&mut self, path: TreePath<'_>, node: Node) {
        self.last = Some((path.into(), node));
    }

    /// Whether nothing stands at `path`, which is one in the root directory.
    pub(super) fn is_free(&self, path: TreePath<'_>) -> bool {
        path.split().is_some_and(|(directory, name)| {
            let found = || rustix::fs::statat(self.root(), name, AtFlags::SYMLINK_NOFOLLOW);
            directory.is_root() && found().err() == Some(Errno::NOENT)
        })
    }

    /// The directory that `path` stands in, and its name there.
    pub(super) fn place<'p>(
        &mut self,
        path: TreePath<'p>,
    ) -> Result<(Directory, &'p [u8]), Refusal> {
        let (directory, name) = path.split().ok_or(Refusal::Root)?;
        if directory.is_root() {
            return Ok((Directory::Root(Arc::clone(&self.root)), name));
        }
        let fd = match &self.directory {
            Some((last, fd)) if last.as_path() == directory => Arc::clone(fd),
            _ => {
                let fd = beneath(self.root(), directory, OFlags::DIRECTORY)
                    .map_err(Refusal::system("open its directory"))?;
                let fd = Arc::new(fd);
                self.directory = Some((directory.into(), Arc::clone(&fd)));
                fd
            }
        };
        Ok((Directory::Below(fd), name))
    }

    /// To be called after names were moved or removed.
    pub(super) fn forget_names(&mut self) {
        self.last = None;
        self.directory = None;
    }
}

fn beneath(root: BorrowedFd<'_>, path: TreePath<'_>, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.is_root() {
        b"."
    } else {
        path.as_bytes()
    };
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC | flags,
        Mode::empty(),
        ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV,
    )
}
