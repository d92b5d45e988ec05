//! Where a snapshot comes to be: in which directory, on which parent, and what is recorded of it on
//! the way. How its blocks come and are applied is not known here.

use std::os::fd::BorrowedFd;

use icbd_btrfs::Subvolume;
use icbd_btrfs::receive::Received;
use uuid::Uuid;

use crate::error::Result;
use crate::image::checkpoint::CheckpointRecord;

/// The place of one arriving snapshot. Everything that is recorded is durable when a call returns.
pub(crate) trait Home: Send {
    /// The directory that the snapshot will stand in.
    fn dir(&self) -> BorrowedFd<'_>;

    /// The name of what is still arriving.
    fn partial(&self) -> String;

    /// The name of the checkpoint `index`.
    fn checkpoint(&self, index: u64) -> String;

    /// Where this is, for messages.
    fn at(&self) -> String;

    /// The content that is to come.
    fn content(&self) -> Uuid;

    /// What the stream may build on.
    fn parent(&self) -> Option<(Uuid, &Subvolume)>;

    /// Where an earlier attempt got.
    fn resume(&self) -> Option<(&CheckpointRecord, &Subvolume)>;

    /// Records a checkpoint; the one before it goes.
    fn keep(&self, checkpoint: CheckpointRecord) -> Result<()>;

    /// Makes the snapshot appear, whole, and records it; its uuid.
    fn finish(&self, received: Received<'_>) -> Result<Uuid>;

    /// Removes what has come, but for the last checkpoint.
    fn give_up(&self) -> Result<()>;

    /// Removes everything that has come: the next attempt starts anew.
    fn forget(&self) -> Result<()>;
}
