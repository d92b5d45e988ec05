//! A walk over everything in a subvolume: each directory before its entries, entries in the order of their bytes.
//! Not recursive, two descriptors open however deep the tree; what to do with an entry is the visitor's business.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::btrfs::{BTRFS_EMPTY_SUBVOL_DIR_OBJECTID, BTRFS_FIRST_FREE_OBJECTID};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;

use crate::error::Error;
use crate::subvolume::Subvolume;

/// Reading leaves no trace (the owner's or CAP_FOWNER's right), follows no symlink, and does not
/// block on a fifo.
pub(crate) const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOATIME)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC);

/// What the walk has come to.
pub(crate) enum Visit<'a> {
    /// The root directory, or an entry of the directory that was entered last and not yet left.
    Entry(Entry<'a>),
    /// The end of a directory.
    Leave,
}

/// A file or directory of the tree.
pub(crate) struct Entry<'a> {
    /// Empty for the root.
    pub(crate) name: &'a [u8],
    pub(crate) stat: &'a Statx,
    pub(crate) kind: FileType,
    /// If this is another name of a file that was visited before: which one of the files with more
    /// than one name, counted from 0 in the order of their first visits.
    pub(crate) link_of: Option<u64>,
    /// A directory itself, or the directory that the entry is in.
    pub(crate) dir: BorrowedFd<'a>,
}

/// Why a visitor gave up; the walk adds the path.
pub(crate) struct Failure {
    pub(crate) doing: &'static str,
    pub(crate) errno: Errno,
}

impl Failure {
    pub(crate) fn of(doing: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { doing, errno }
    }
}

/// Shows `visit` the whole tree. Nested subvolumes are left out, and so are the empty directories
/// that stand for them in a snapshot (inode 2): send does not carry them.
pub(crate) fn walk(
    root: &Subvolume,
    mut visit: impl FnMut(Visit<'_>) -> Result<(), Failure>,
) -> Result<(), Error> {
    let mut levels = Vec::new();
    Walk {
        levels: &mut levels,
        links: HashMap::new(),
        linked: 0,
    }
    .run(root.as_fd(), &mut visit)
    .map_err(|Failure { doing, errno }| {
        let mut path = root.name().to_vec();
        for name in levels.iter().filter_map(Level::current) {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Error::system(doing, &path)(errno)
    })
}

struct Walk<'a> {
    /// The directories from the root down to the one that is being read.
    levels: &'a mut Vec<Level>,
    /// Files with names still to come, by inode.
    links: HashMap<u64, Linked>,
    /// How many files with more than one name were met.
    linked: u64,
}

struct Linked {
    number: u64,
    names_to_come: u32,
}

impl Walk<'_> {
    fn run(
        mut self,
        root: BorrowedFd<'_>,
        visit: &mut impl FnMut(Visit<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut dir = open_directory(root, b".")?;
        let root = stat(dir.as_fd(), b"")?;
        visit(Visit::Entry(Entry {
            name: b"",
            stat: &root,
            kind: FileType::Directory,
            link_of: None,
            dir: dir.as_fd(),
        }))?;
        self.levels.push(Level::read(dir.as_fd(), root.stx_ino)?);

        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.advance() else {
                visit(Visit::Leave)?;
                self.levels.pop();
                if let Some(parent) = self.levels.last() {
                    dir = parent.reopen(dir.as_fd())?;
                }
                continue;
            };
            let stat = stat(dir.as_fd(), name)?;
            if is_nested_subvolume(&stat, &root)? {
                continue;
            }
            let kind = FileType::from_raw_mode(stat.stx_mode.into());
            let child = match kind {
                FileType::Directory => Some(open_directory(dir.as_fd(), name)?),
                _ => None,
            };
            let link_of = match &child {
                None => link_of(&mut self.links, &mut self.linked, &stat),
                Some(_) => None,
            };
            let at = child.as_ref().unwrap_or(&dir).as_fd();
            visit(Visit::Entry(Entry {
                name,
                stat: &stat,
                kind,
                link_of,
                dir: at,
            }))?;
            if let Some(child) = child {
                dir = child;
                self.levels.push(Level::read(dir.as_fd(), stat.stx_ino)?);
            }
        }
        Ok(())
    }
}

/// Whether a file was met before, and as which one; remembers it until its last name.
fn link_of(links: &mut HashMap<u64, Linked>, count: &mut u64, stat: &Statx) -> Option<u64> {
    if stat.stx_nlink < 2 {
        return None;
    }
    match links.entry(stat.stx_ino) {
        Slot::Vacant(slot) => {
            slot.insert(Linked {
                number: *count,
                names_to_come: stat.stx_nlink - 1,
            });
            *count += 1;
            None
        }
        Slot::Occupied(mut slot) => {
            let number = slot.get().number;
            slot.get_mut().names_to_come -= 1;
            if slot.get().names_to_come == 0 {
                slot.remove();
            }
            Some(number)
        }
    }
}

fn is_nested_subvolume(stat: &Statx, root: &Statx) -> Result<bool, Failure> {
    let device = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor);
    if stat.stx_ino == u64::from(BTRFS_EMPTY_SUBVOL_DIR_OBJECTID) {
        return Ok(true);
    }
    if device(stat) == device(root) {
        return Ok(false);
    }
    if stat.stx_ino == u64::from(BTRFS_FIRST_FREE_OBJECTID) {
        return Ok(true);
    }
    // Something is mounted there, and hides what the tree holds.
    Err(Failure {
        doing: "enter",
        errno: Errno::XDEV,
    })
}

fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Failure> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).map_err(Failure::of("stat"))
}

fn open_directory(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(dir, name, READ | OFlags::DIRECTORY, Mode::empty())
        .map_err(Failure::of("open directory"))
}

/// A directory's names, sorted, and how far the walk is in them.
struct Level {
    inode: u64,
    /// All names, one after the other, as they were read.
    bytes: Vec<u8>,
    sorted: Vec<Span>,
    visited: usize,
}

/// Where in `bytes` a name is. Eight bytes, for directories of millions.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    length: u8,
}

impl Level {
    fn read(dir: BorrowedFd<'_>, inode: u64) -> Result<Self, Failure> {
        let mut level = Self {
            inode,
            bytes: Vec::new(),
            sorted: Vec::new(),
            visited: 0,
        };
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(Failure::of("list"))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                level.add(name)?;
            }
        }
        let Self { bytes, sorted, .. } = &mut level;
        sorted.sort_unstable_by(|a, b| a.of(bytes).cmp(b.of(bytes)));
        Ok(level)
    }

    fn add(&mut self, name: &[u8]) -> Result<(), Failure> {
        let overflow = |_| Failure {
            doing: "list",
            errno: Errno::OVERFLOW,
        };
        let start = u32::try_from(self.bytes.len()).map_err(overflow)?;
        let length = u8::try_from(name.len()).map_err(overflow)?;
        self.bytes.extend_from_slice(name);
        self.sorted.push(Span { start, length });
        Ok(())
    }

    /// The next name to visit.
    fn advance(&mut self) -> Option<&[u8]> {
        let span = self.sorted.get(self.visited)?;
        self.visited += 1;
        Some(span.of(&self.bytes))
    }

    /// The name being visited.
    fn current(&self) -> Option<&[u8]> {
        let last = self.visited.checked_sub(1)?;
        self.sorted.get(last).map(|span| span.of(&self.bytes))
    }

    /// Opens this directory again, from one that is in it.
    fn reopen(&self, child: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
        let dir = open_directory(child, b"..")?;
        if stat(dir.as_fd(), b"")?.stx_ino != self.inode {
            // Only in a writable tree: the child was moved elsewhere meanwhile.
            return Err(Failure {
                doing: "walk back from",
                errno: Errno::STALE,
            });
        }
        Ok(dir)
    }
}

impl Span {
    fn of(self, bytes: &[u8]) -> &[u8] {
        let start = self.start as usize;
        &bytes[start..start + usize::from(self.length)]
    }
}
