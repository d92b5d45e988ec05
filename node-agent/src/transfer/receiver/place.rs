//! The home of a snapshot that the operator announced: an image of the pool, with its records.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use icbd_btrfs::receive::Received;
use icbd_btrfs::{SnapshotNumber, Subvolume};
use icbd_wire::control::Reason;
use uuid::Uuid;

use super::home::Home;
use crate::error::{Error, Result};
use crate::image::arrival::{self, Verdict};
use crate::image::checkpoint::CheckpointRecord;
use crate::image::{Arrival, ImageDir, Images, Meta, expectation};
use crate::pool::OpenPool;
use crate::transfer::expect::Announced;
use crate::transfer::now;

/// A place for a snapshot in its image: recorded, and empty but for a checkpoint.
pub(super) struct Place {
    image: ImageDir,
    meta: Meta,
    images: Images,
    number: SnapshotNumber,
    pub(super) parent: Option<(Uuid, SnapshotNumber, Subvolume)>,
    resume: Option<(CheckpointRecord, Subvolume)>,
    /// What is recorded of the arrival.
    arrival: Mutex<Arrival>,
}

impl Place {
    /// Makes the place, under the image's lock; `None` if the snapshot is there already. Whatever
    /// comes of it, what was announced is used up.
    pub(super) fn make(
        pool: &OpenPool,
        images: &Images,
        announced: &Announced,
        bytes: u64,
    ) -> Result<Option<Self>> {
        if !images.is_settled(pool) {
            let message = "the pool has just come and is being looked at";
            return Err(Error::refused(Reason::PoolUnavailable, message));
        }
        let image = ImageDir::make(pool, &announced.image)?;
        let meta = Meta::make(&image)?;
        let (number, transfer) = (announced.number, announced.expected.transfer);
        if !expectation::consume(&meta, number, transfer, now())? {
            let message = "what was announced counts no more: it was withdrawn, or took too long";
            return Err(Error::refused(Reason::NotExpected, message));
        }
        if announced.judge(pool, &image, &meta, bytes)? == Verdict::AlreadyThere {
            return Ok(None);
        }
        let parent = announced.expected.parent.map(|parent| {
            let number = arrival::find(&image, parent)?;
            let subvolume = Subvolume::open(&image, number.to_string())
                .map_err(Error::btrfs(image.at(number)))?;
            Ok::<_, Error>((parent, number, subvolume))
        });
        let parent = parent.transpose()?;
        let mut arrival = announced.expected.arrival();
        let on = announced.expected.parent;
        let kept = arrival::begin(&image, &meta, number, &mut arrival, on)?;
        Ok(Some(Self {
            resume: arrival.checkpoint.clone().zip(kept),
            image,
            meta,
            images: images.clone(),
            number,
            parent,
            arrival: Mutex::new(arrival),
        }))
    }

    fn arrival(&self) -> Arrival {
        self.arrival
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Home for Place {
    fn dir(&self) -> BorrowedFd<'_> {
        self.image.as_fd()
    }

    fn partial(&self) -> String {
        self.number.partial_name()
    }

    fn checkpoint(&self, index: u64) -> String {
        self.number.checkpoint_name(index)
    }

    fn at(&self) -> String {
        self.image.at(self.number)
    }

    fn content(&self) -> Uuid {
        self.arrival().identity
    }

    fn parent(&self) -> Option<(Uuid, &Subvolume)> {
        let parent = self.parent.as_ref();
        parent.map(|(identity, _, subvolume)| (*identity, subvolume))
    }

    fn resume(&self) -> Option<(&CheckpointRecord, &Subvolume)> {
        let resume = self.resume.as_ref();
        resume.map(|(record, subvolume)| (record, subvolume))
    }

    fn keep(&self, checkpoint: CheckpointRecord) -> Result<()> {
        let mut arrival = self.arrival.lock().unwrap_or_else(PoisonError::into_inner);
        arrival.checkpoint = Some(checkpoint);
        arrival::keep(&self.image, &self.meta, self.number, &arrival)
    }

    fn finish(&self, received: Received<'_>) -> Result<Uuid> {
        let (number, arrival) = (self.number, self.arrival());
        let parent = self.parent().map(|(identity, _)| identity);
        let _alone = self.images.alone_blocking(self.image.id());
        // The tombstone of a snapshot that was deleted meanwhile forbids it to appear.
        arrival::judge(&self.image, &self.meta, number, arrival.identity, parent)?;
        let snapshot = received
            .finish(number.to_string().as_bytes())
            .map_err(Error::receive(self.at()))?;
        arrival::complete(&self.image, &self.meta, number, &arrival)?;
        Ok(snapshot.info().map_err(Error::btrfs(self.at()))?.uuid)
    }

    fn give_up(&self) -> Result<()> {
        let _alone = self.images.alone_blocking(self.image.id());
        arrival::give_up(&self.image, &self.meta, self.number)
    }

    fn forget(&self) -> Result<()> {
        let _alone = self.images.alone_blocking(self.image.id());
        arrival::forget(&self.image, &self.meta, self.number)
    }
}
