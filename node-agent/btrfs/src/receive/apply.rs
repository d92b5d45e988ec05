//! What each command does to the partial. Paths become descriptors in `tree.rs`, data goes through
//! `files.rs`.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use uuid::Uuid;

use super::decode::{Decoder, is_as_btrfs_writes};
use super::files::Files;
use super::inspect::Inspection;
use super::making::{Making, Object};
use super::tree::{Node, Tree};
use super::{Base, ReceiveError, Receiver, Refusal};
use crate::encoding::Encoding;
use crate::stream::{Command, Encoded, Position, Timestamp, TreePath};
use crate::subvolume::Subvolume;

/// Applies commands to one partial.
pub(super) struct Applier<'a> {
    tree: Tree,
    files: Files,
    /// What the last command makes.
    making: Option<Making>,
    decoder: Decoder,
    /// What is known of the block at hand.
    inspection: Inspection,
    /// The root directory's times as the stream has last said them, or as they were before it.
    root_times: Timestamps,
    /// Identity of what is being received, by which it names itself as a clone source.
    uuid: Uuid,
    bases: &'a [Base<'a>],
    /// Identity of what the partial was made as a snapshot of, if nothing was changed in it since.
    parent: Option<Uuid>,
    announcements: Announcements,
    encoding: Encoding,
}

/// What UPDATE_EXTENT means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcements {
    /// The stream was made without file data, and is refused.
    Refused,
    /// The range's data and holes follow as commands of their own, and the file reaches to its end.
    Kept,
}

impl<'a> Applier<'a> {
    /// For a stream of the content `uuid`. The partial is an untouched snapshot of `parent`, if any.
    pub(super) fn new(
        partial: &Subvolume,
        receiver: Receiver<'a>,
        (uuid, parent): (Uuid, Option<Uuid>),
        announcements: Announcements,
    ) -> Result<Applier<'a>, Refusal> {
        let stat = rustix::fs::fstat(partial).map_err(Refusal::system("look at the subvolume"))?;
        let since = partial.info()?.otransid;
        Ok(Applier {
            tree: Tree::new(partial.try_clone()?),
            files: Files::new(since, parent.is_some()),
            making: None,
            decoder: Decoder::default(),
            inspection: Inspection::default(),
            root_times: Timestamps {
                last_access: Timespec {
                    tv_sec: stat.st_atime,
                    tv_nsec: stat.st_atime_nsec as _,
                },
                last_modification: Timespec {
                    tv_sec: stat.st_mtime,
                    tv_nsec: stat.st_mtime_nsec as _,
                },
            },
            uuid,
            bases: receiver.bases,
            parent,
            announcements,
            encoding: receiver.encoding,
        })
    }

    /// The files that were written to and may not be durable yet.
    pub(super) fn files(&mut self) -> &mut Files {
        &mut self.files
    }

    /// The next commands are those of a block of which this is known.
    pub(super) fn rely_on(&mut self, inspection: Inspection) {
        self.inspection = inspection;
    }

    /// Carries out the command that stands at `position`; what it makes is there no later than the
    /// next command, or [`Applier::settle`].
    pub(super) fn apply(
        &mut self,
        position: Position,
        command: &Command<'_>,
    ) -> Result<(), ReceiveError> {
        if let Some(making) = self.making.take() {
            if let Command::Rename { path, to } = *command
                && making.make_renamed(&mut self.tree, path, to)
            {
                return Ok(());
            }
            making.make(&mut self.tree)?;
        }
        let (kind, path) = (command.kind(), command.path().unwrap_or(TreePath::ROOT));
        self.carry_out(position, command)
            .map_err(ReceiveError::command(position, kind, path))
    }

    fn carry_out(&mut self, position: Position, command: &Command<'_>) -> Result<(), Refusal> {
        let at = (position, command.kind());
        let mut make = |path, object| {
            self.making = Some(Making::new(at, path, object));
            Ok(())
        };
        match *command {
            Command::Subvol { .. } | Command::Snapshot { .. } => Err(Refusal::SecondSubvolume),
            Command::End => self.settle_root_times(),

            Command::Mkfile { path, .. } => make(path, Object::File),
            Command::Mkdir { path, .. } => make(path, Object::Directory),
            Command::Mknod {
                path, mode, rdev, ..
            }
            | Command::Mkfifo {
                path, mode, rdev, ..
            }
            | Command::Mksock {
                path, mode, rdev, ..
            } => make(path, Object::Special { mode, rdev }),
            Command::Symlink { path, target, .. } => {
                let target = target.to_vec();
                make(path, Object::Symlink { target })
            }

            Command::Rename { path, to } => self.rename(path, to),
            Command::Link { path, existing } => self.link(path, existing),
            Command::Unlink { path } => self.remove(path, AtFlags::empty()),
            Command::Rmdir { path } => self.remove(path, AtFlags::REMOVEDIR),

            Command::SetXattr { path, name, value } => self.set_xattr(path, name, value),
            Command::RemoveXattr { path, name } => self.remove_xattr(path, name),
            Command::Chmod { path, mode } => self.set_mode(path, mode),
            Command::Chown { path, uid, gid } => self.set_owner(path, uid, gid),
            Command::Utimes {
                path, atime, mtime, ..
            } => self.set_times(path, atime, mtime),
            // Full streams do not say an object's flags, so no replica can rely on them; and an
            // immutable file in one snapshot could not be changed on the way to the next.
            Command::Fileattr { path, .. } => self.tree.node(path).map(drop),

            Command::Write { path, offset, data } => self
                .files
                .open(self.tree.node(path)?, path)?
                .write(offset, data),
            Command::EncodedWrite {
                path,
                offset,
                encoded,
            } => self.write_encoded(path, offset, &encoded),
            Command::Truncate { path, size } => {
                self.files.open(self.tree.node(path)?, path)?.truncate(size)
            }
            Command::Fallocate {
                path,
                mode,
                offset,
                length,
            } => self
                .files
                .open(self.tree.node(path)?, path)?
                .allocate(mode, offset, length),
            Command::Clone {
                path,
                offset,
                length,
                source,
                source_path,
                source_offset,
                ..
            } => self.clone((path, offset), (source, source_path, source_offset), length),
            Command::UpdateExtent { .. } if self.announcements == Announcements::Refused => {
                Err(Refusal::NoFileData)
            }
            Command::UpdateExtent {
                path,
                offset,
                length,
            } => self
                .files
                .open(self.tree.node(path)?, path)?
                .reach(offset + length),
        }
    }

    fn rename(&mut self, path: TreePath<'_>, to: TreePath<'_>) -> Result<(), Refusal> {
        let (old_dir, old_name) = self.tree.place(path)?;
        let (new_dir, new_name) = self.tree.place(to)?;
        self.tree.forget_names();
        rustix::fs::renameat(&old_dir, old_name, &new_dir, new_name)
            .map_err(Refusal::system("rename it"))
    }

    fn link(&mut self, path: TreePath<'_>, existing: TreePath<'_>) -> Result<(), Refusal> {
        let (old_dir, old_name) = self.tree.place(existing)?;
        let (new_dir, new_name) = self.tree.place(path)?;
        rustix::fs::linkat(&old_dir, old_name, &new_dir, new_name, AtFlags::empty())
            .map_err(Refusal::system("link it"))
    }

    fn remove(&mut self, path: TreePath<'_>, flags: AtFlags) -> Result<(), Refusal> {
        let (dir, name) = self.tree.place(path)?;
        self.tree.forget_names();
        rustix::fs::unlinkat(&dir, name, flags).map_err(Refusal::system("remove it"))
    }

    fn set_xattr(&mut self, path: TreePath<'_>, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let node = self.tree.node(path)?.proc_path();
        rustix::fs::setxattr(node, name, value, XattrFlags::empty())
            .map_err(Refusal::system("set an extended attribute of it"))
    }

    fn remove_xattr(&mut self, path: TreePath<'_>, name: &[u8]) -> Result<(), Refusal> {
        let node = self.tree.node(path)?.proc_path();
        rustix::fs::removexattr(node, name)
            .map_err(Refusal::system("remove an extended attribute of it"))
    }

    fn set_mode(&mut self, path: TreePath<'_>, mode: u32) -> Result<(), Refusal> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        self.tree.node(path)?.set_mode(mode)
    }

    fn set_owner(&mut self, path: TreePath<'_>, uid: u32, gid: u32) -> Result<(), Refusal> {
        let node = self.tree.node(path)?;
        let stat = rustix::fs::fstat(node).map_err(Refusal::system("look at it"))?;
        rustix::fs::chownat(
            node,
            c"",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )
        .map_err(Refusal::system("set its owner"))?;
        // The kernel takes setuid and setgid away with the owner. If the source gave them back,
        // the mode is what it was, and the stream does not say it again.
        if stat.st_mode & 0o6000 != 0 && FileType::from_raw_mode(stat.st_mode) != FileType::Symlink
        {
            self.set_mode(path, stat.st_mode)?;
        }
        Ok(())
    }

    fn set_times(
        &mut self,
        path: TreePath<'_>,
        atime: Timestamp,
        mtime: Timestamp,
    ) -> Result<(), Refusal> {
        let times = Timestamps {
            last_access: timespec(atime),
            last_modification: timespec(mtime),
        };
        if path.is_root() {
            self.root_times = times.clone();
        }
        set_times(self.tree.node(path)?, &times)
    }

    /// Makes the tree what all commands up to here have made it.
    pub(super) fn settle(&mut self) -> Result<(), ReceiveError> {
        if let Some(making) = self.making.take() {
            making.make(&mut self.tree)?;
        }
        self.settle_root_times().map_err(ReceiveError::settle)
    }

    /// New objects are made in the root directory, under names that they do not keep. That changes
    /// its times, and where nothing else changed in it the stream does not set them right again.
    fn settle_root_times(&mut self) -> Result<(), Refusal> {
        set_times(self.tree.node(TreePath::ROOT)?, &self.root_times)
    }

    fn write_encoded(
        &mut self,
        path: TreePath<'_>,
        offset: u64,
        encoded: &Encoded<'_>,
    ) -> Result<(), Refusal> {
        // Even if it is written as it is: the kernel stores what does not decompress.
        let data = match self.inspection.next_is_sound() {
            true => None,
            false => Some(self.decoder.decode(encoded)?),
        };
        let since = self.files.since;
        let file = self.files.open(self.tree.node(path)?, path)?;
        if self.encoding == Encoding::AsStored
            && is_as_btrfs_writes(encoded)
            && file.write_encoded(since, offset, encoded)?
        {
            return self.files.one_more_kept(self.tree.root());
        }
        let data = match data {
            Some(data) => data,
            None => self.decoder.decode(encoded)?,
        };
        file.write(offset, data)
    }

    fn clone(
        &mut self,
        (path, offset): (TreePath<'_>, u64),
        (source, source_path, source_offset): (Uuid, TreePath<'_>, u64),
        length: u64,
    ) -> Result<(), Refusal> {
        let base = self.bases.iter().find(|base| base.identity == source);
        let root = match base {
            _ if source == self.uuid => self.tree.root(),
            Some(base) => base.subvolume.as_fd(),
            None => return Err(Refusal::NoCloneSource(source)),
        };
        let of_parent = self.parent.is_some() && self.parent == base.map(|base| base.identity);
        let source = Node::open(root, source_path)?;
        let end = source_offset + length;
        if end > source.size {
            return Err(Refusal::CloneBeyondEnd {
                size: source.size,
                end,
            });
        }
        let node = self.tree.node(path)?;
        let same_file = of_parent && source.ino == node.ino;
        let file = self.files.open(node, path)?;
        // Kernels say of what lies beside a change that it is as before. Sharing it anew costs as much as changing it.
        if same_file && source_offset == offset && file.is_as_parent(offset) {
            return Ok(());
        }
        let data = source.open_data(OFlags::RDONLY | OFlags::NOATIME)?;
        file.clone_range(&data, source_offset, length, offset)
    }
}

fn set_times(node: &Node, times: &Timestamps) -> Result<(), Refusal> {
    rustix::fs::utimensat(node, c"", times, AtFlags::EMPTY_PATH)
        .map_err(Refusal::system("set its times"))
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds.into(),
    }
}
