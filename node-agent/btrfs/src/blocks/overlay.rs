//! The tree as a stream has changed it so far: which file a path of the stream means, while the
//! stream is on its way from the parent snapshot to the one that is sent. Pure; looking into the
//! snapshots is `files.rs`' business.
//!
//! A path of the stream may be another file's in either snapshot: directories are renamed and new
//! ones put in their place, and what is in the way of a name is moved to the root for a while, as
//! `o<inode>-<generation>-<number>`.
//!
//! # What is not remembered
//!
//! That a name is gone. In a valid stream nothing is looked up that is not there, so a name that the
//! overlay does not know stands for what the parent has under it.
//!
//! Files that are done with. The kernel sends inode by inode, and ends each with the UTIMES of it;
//! after that its names come up no more, but in clone sources. So memory is taken by directories, and by
//! files that were moved out of the way, not by all that there are.

use std::collections::HashMap;

use super::BlockError;
use crate::stream::{Command, TreePath};

/// What a path stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// What the parent has at this path, wherever it has been moved to since.
    Old(Box<[u8]>),
    /// A directory that the stream made, by its inode. The parent may have something else of that number.
    Directory(u64),
    /// Anything else that the stream made.
    File(u64),
}

/// The names that the stream has moved, added or taken over.
#[derive(Debug)]
pub(super) struct Overlay {
    root: Node,
    names: HashMap<Name, Node>,
    /// The names that things other than directories got since the last one was done with.
    given: Vec<Name>,
}

/// A name in a directory: what tells the directory, then the name.
///
/// For an old directory it is the path that the parent has for such a name, so all old directories
/// are told by one string together with what is in them.
type Name = Box<[u8]>;

const IN_OLD: u8 = b'o';
const IN_NEW: u8 = b'n';

/// The inode of every subvolume's root directory (`BTRFS_FIRST_FREE_OBJECTID`).
const ROOT: u64 = 256;

impl Overlay {
    /// The tree before the first command: that of the parent, or an empty one.
    pub(super) fn new(has_parent: bool) -> Self {
        Self {
            root: match has_parent {
                true => Node::Old(Box::default()),
                false => Node::Directory(ROOT),
            },
            names: HashMap::new(),
            given: Vec::new(),
        }
    }

    /// What stands at `path`.
    pub(super) fn find(&self, path: TreePath<'_>) -> Result<Node, BlockError> {
        if path.is_root() {
            return Ok(self.root.clone());
        }
        let name = self.name(path)?;
        match (self.names.get(&*name), &*name) {
            (Some(node), _) => Ok(node.clone()),
            (None, [IN_OLD, path @ ..]) => Ok(Node::Old(path.into())),
            (None, _) => Err(BlockError::unknown(path.as_bytes())),
        }
    }

    /// Carries out what a command does to names. `is_directory` says whether the parent has a
    /// directory at a path.
    pub(super) fn apply(
        &mut self,
        command: &Command<'_>,
        is_directory: impl FnOnce(&[u8]) -> Result<bool, BlockError>,
    ) -> Result<(), BlockError> {
        match *command {
            Command::Mkdir { path, ino } => self.give(path, Node::Directory(ino)),
            Command::Mkfile { path, ino }
            | Command::Mknod { path, ino, .. }
            | Command::Mkfifo { path, ino, .. }
            | Command::Mksock { path, ino, .. }
            | Command::Symlink { path, ino, .. } => self.give(path, Node::File(ino)),
            Command::Rename { path, to } => {
                let node = self.find(path)?;
                self.take(path)?;
                self.give(to, node)
            }
            Command::Link { path, existing } => self.give(path, self.find(existing)?),
            Command::Unlink { path } | Command::Rmdir { path } => self.take(path),
            Command::Utimes { path, .. } => self.done(path, is_directory),
            _ => Ok(()),
        }
    }

    fn give(&mut self, path: TreePath<'_>, node: Node) -> Result<(), BlockError> {
        let name = self.name(path)?;
        if !matches!(node, Node::Directory(_)) {
            self.given.push(name.clone());
        }
        self.names.insert(name, node);
        Ok(())
    }

    fn take(&mut self, path: TreePath<'_>) -> Result<(), BlockError> {
        let name = self.name(path)?;
        self.names.remove(&name);
        Ok(())
    }

    /// Forgets what stands at `path`, unless it is a directory: their times are set while there is
    /// still something to come below them.
    fn done(
        &mut self,
        path: TreePath<'_>,
        is_directory: impl FnOnce(&[u8]) -> Result<bool, BlockError>,
    ) -> Result<(), BlockError> {
        if path.is_root() {
            return Ok(());
        }
        let name = self.name(path)?;
        if self.given.is_empty() && !self.names.contains_key(&name) {
            return Ok(());
        }
        let node = self.find(path)?;
        let stays = match &node {
            Node::Directory(_) => true,
            Node::File(_) => false,
            Node::Old(path) => is_directory(path)?,
        };
        if !stays {
            for name in self.given.drain(..).chain([name]) {
                if self.names.get(&name) == Some(&node) {
                    self.names.remove(&name);
                }
            }
        }
        Ok(())
    }

    /// The name that `path` leads to, whether or not something is there.
    fn name(&self, path: TreePath<'_>) -> Result<Name, BlockError> {
        let unknown = || BlockError::unknown(path.as_bytes());
        let mut walked = Vec::with_capacity(path.as_bytes().len() + 10);
        enter(&mut walked, &self.root).ok_or_else(unknown)?;
        let mut names = path.as_bytes().split(|&byte| byte == b'/').peekable();
        while let Some(name) = names.next() {
            walked.extend_from_slice(name);
            if names.peek().is_none() {
                break;
            }
            match self.names.get(&*walked) {
                Some(node) => enter(&mut walked, node).ok_or_else(unknown)?,
                None if walked.first() == Some(&IN_OLD) => walked.push(b'/'),
                None => return Err(unknown()),
            }
        }
        Ok(walked.into_boxed_slice())
    }
}

/// Begins a name in a directory; nothing if it is not one.
fn enter(name: &mut Vec<u8>, directory: &Node) -> Option<()> {
    name.clear();
    match directory {
        Node::Old(path) => {
            name.push(IN_OLD);
            name.extend_from_slice(path);
            if !path.is_empty() {
                name.push(b'/');
            }
        }
        Node::Directory(inode) => {
            name.push(IN_NEW);
            name.extend_from_slice(&inode.to_le_bytes());
        }
        Node::File(_) => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests;
