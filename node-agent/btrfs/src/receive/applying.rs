//! The partial of one stream, from the command that makes it to the last. How a command changes
//! the tree is in `apply.rs`, where commands come from in `mod.rs`.

use std::os::fd::{AsFd, BorrowedFd};

use uuid::Uuid;

use super::apply::{Announcements, Applier};
use super::{Checkpoint, Content, Inspection, ReceiveError, Received, Receiver, Refusal, tree};
use crate::stream::{Command, Position, TreePath};
use crate::subvolume::{self, Access, Subvolume};

/// Carries out the commands of one stream. Dropping it deletes the partial.
pub(super) struct Applying<'a> {
    receiver: Receiver<'a>,
    announcements: Announcements,
    /// `None` before the first command.
    begun: Option<Begun<'a>>,
}

struct Begun<'a> {
    applier: Applier<'a>,
    partial: Partial<'a>,
    content: Content,
}

impl<'a> Applying<'a> {
    pub(super) fn new(receiver: Receiver<'a>, announcements: Announcements) -> Self {
        Self {
            receiver,
            announcements,
            begun: None,
        }
    }

    /// Goes on from a checkpoint, of which `subvolume` is what it kept.
    pub(super) fn resume(
        receiver: Receiver<'a>,
        checkpoint: &Checkpoint,
        subvolume: &Subvolume,
    ) -> Result<Self, ReceiveError> {
        let info = subvolume.info().map_err(ReceiveError::Checkpoint)?;
        if info.uuid != checkpoint.uuid || !info.read_only {
            return Err(ReceiveError::OtherCheckpoint(checkpoint.uuid));
        }
        let Receiver { dir, partial, .. } = receiver;
        let made = subvolume::snapshot(subvolume, dir, partial, Access::Writable)
            .map_err(ReceiveError::Checkpoint)?;
        let partial = Partial {
            dir,
            name: partial,
            subvolume: made,
        };
        let content = checkpoint.content.clone();
        let announcements = Announcements::Kept;
        let stream = (content.uuid, None);
        let applier = Applier::new(&partial.subvolume, receiver, stream, announcements)
            .map_err(ReceiveError::settle)?;
        Ok(Self {
            receiver,
            announcements,
            begun: Some(Begun {
                applier,
                partial,
                content,
            }),
        })
    }

    /// The next commands are those of a block of which this is known.
    pub(super) fn rely_on(&mut self, inspection: Inspection) {
        if let Some(begun) = &mut self.begun {
            begun.applier.rely_on(inspection);
        }
    }

    /// Carries out the command that stands at `position`.
    pub(super) fn command(
        &mut self,
        position: Position,
        command: &Command<'_>,
    ) -> Result<(), ReceiveError> {
        if let Some(begun) = &mut self.begun {
            return begun.applier.apply(position, command);
        }
        let path = command.path().unwrap_or(TreePath::ROOT);
        let begun =
            self.begin(command)
                .map_err(ReceiveError::command(position, command.kind(), path))?;
        self.begun = Some(begun);
        Ok(())
    }

    /// Makes the partial that the first command asks for.
    fn begin(&self, first: &Command<'_>) -> Result<Begun<'a>, Refusal> {
        let (name, uuid, ctransid, parent) = match *first {
            Command::Subvol {
                name,
                uuid,
                ctransid,
            } => (name, uuid, ctransid, None),
            Command::Snapshot {
                name,
                uuid,
                ctransid,
                clone_uuid,
                ..
            } => (name, uuid, ctransid, Some(clone_uuid)),
            _ => return Err(Refusal::BeforeSubvolume),
        };
        if uuid.is_nil() {
            return Err(Refusal::NilUuid);
        }
        let Receiver {
            dir,
            partial,
            bases,
            ..
        } = self.receiver;
        let subvolume = match parent {
            None => subvolume::create(dir, partial)?,
            Some(parent) => {
                let base = bases.iter().find(|base| base.identity == parent);
                let base = base.ok_or(Refusal::NoParent(parent))?;
                subvolume::snapshot(base.subvolume, dir, partial, Access::Writable)?
            }
        };
        let partial = Partial {
            dir,
            name: partial,
            subvolume,
        };
        if parent.is_none() {
            tree::disinherit(partial.subvolume.as_fd())?;
        }
        Ok(Begun {
            applier: Applier::new(
                &partial.subvolume,
                self.receiver,
                (uuid, parent),
                self.announcements,
            )?,
            partial,
            content: Content {
                name: name.as_bytes().to_vec(),
                uuid,
                stransid: ctransid,
                parent,
            },
        })
    }

    /// Keeps what there is as a read-only snapshot whose data is known to be durable; its uuid.
    ///
    /// The snapshot comes first: it writes all data back, but tells nothing of errors, which the
    /// files then do.
    pub(super) fn keep(&mut self, name: &[u8]) -> Result<Option<(Uuid, Content)>, ReceiveError> {
        let Some(begun) = &mut self.begun else {
            return Ok(None);
        };
        let Partial { dir, subvolume, .. } = &begun.partial;
        // Whoever goes on from here takes the root's times for those that the stream has said.
        begun.applier.settle()?;
        let kept = subvolume::snapshot(subvolume, *dir, name, Access::ReadOnly)
            .map_err(ReceiveError::Checkpoint)?;
        let durable = begun.applier.files().sync(subvolume.as_fd());
        let uuid = durable.map_err(ReceiveError::from).and_then(|()| {
            kept.info()
                .map(|info| info.uuid)
                .map_err(ReceiveError::Checkpoint)
        });
        match uuid {
            Ok(uuid) => Ok(Some((uuid, begun.content.clone()))),
            Err(error) => {
                let _ = subvolume::delete(*dir, name);
                Err(error)
            }
        }
    }

    /// The stream has ended, after so many bytes.
    pub(super) fn end(self, bytes: u64) -> Result<Received<'a>, ReceiveError> {
        let Begun {
            mut applier,
            partial,
            content,
        } = self.begun.ok_or(ReceiveError::NoStream)?;
        Ok(Received {
            files: std::mem::take(applier.files()),
            partial,
            content,
            bytes,
        })
    }
}

/// The writable subvolume that a stream is applied to; it goes when this does.
#[derive(Debug)]
pub(super) struct Partial<'a> {
    dir: BorrowedFd<'a>,
    name: &'a [u8],
    pub(super) subvolume: Subvolume,
}

impl Partial<'_> {
    /// Makes it a read-only snapshot under its final name.
    pub(super) fn become_snapshot(&self, name: &[u8]) -> Result<Subvolume, crate::Error> {
        subvolume::snapshot(&self.subvolume, self.dir, name, Access::ReadOnly)
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        // What cannot be deleted now is still called a partial, and found as one later.
        let _ = subvolume::delete(self.dir, self.name);
        let _ = subvolume::sync_dir(self.dir);
    }
}
