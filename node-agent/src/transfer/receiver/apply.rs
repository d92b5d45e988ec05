//! The receiver's disk half: blocks are checked and applied on a thread of its own, and become a
//! snapshot once the last has proved to be the last.

use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use icbd_btrfs::receive::{Base, Receiver};
use icbd_wire::control::Reason;
use icbd_wire::data::{Decompressor, Frame, Receiving, Welcome};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Place;
use super::converse::Arriving;
use crate::error::{Error, Result};
use crate::image::Images;
use crate::image::arrival;
use crate::transfer::expect::Announced;
use crate::transfer::link::{self, RawFrame};

impl Arriving {
    /// Applies the stream and makes it a snapshot, whose uuid it returns. Blocks; on failure
    /// nothing is left.
    pub(super) fn apply(
        &self,
        mut blocks: Blocks,
        place: &Place,
        announced: &Announced,
        images: &Images,
    ) -> Result<Uuid> {
        let result = self.apply_all(&mut blocks, place, announced, images);
        if result.is_err()
            && let Err(error) = arrival::give_up(&place.image, &place.meta, announced.number)
        {
            tracing::error!(%error, "cannot remove what came of the snapshot");
        }
        result.map_err(|error| blocks.broken.take().unwrap_or(error))
    }

    fn apply_all(
        &self,
        blocks: &mut Blocks,
        Place {
            image,
            meta,
            parent,
        }: &Place,
        announced: &Announced,
        images: &Images,
    ) -> Result<Uuid> {
        let (number, identity) = (announced.number, announced.arrival.identity);
        let bases: Vec<_> = parent
            .iter()
            .map(|(identity, _, subvolume)| Base {
                identity: *identity,
                subvolume,
            })
            .collect();
        let partial = number.partial_name();
        let received = Receiver::new(image.as_fd(), partial.as_bytes(), &bases)
            .run(&mut *blocks, |progress| {
                self.applied.store(progress.bytes, Ordering::Relaxed);
                self.movement.moved();
                match self.ticket.asked_to_stop() {
                    Some(_) => ControlFlow::Break(()),
                    None => ControlFlow::Continue(()),
                }
            })
            .map_err(Error::receive(image.at(number)))?;
        blocks.expect_end()?;
        let content = received.content().uuid;
        if content != identity {
            let message = format!("the stream carries {content}, not {identity}");
            return Err(Error::refused(Reason::StreamInvalid, message));
        }
        self.finishing.store(true, Ordering::Relaxed);
        self.movement.be_patient(link::FINISHING);
        // This may take minutes: nobody else is to wait for the image meanwhile.
        let received = received.sync().map_err(Error::receive(image.at(number)))?;
        let _alone = images.alone_blocking(image.id());
        // The tombstone of a snapshot that was deleted meanwhile forbids it to appear.
        arrival::judge(image, meta, number, identity, announced.parent)?;
        let snapshot = received
            .finish(number.to_string().as_bytes())
            .map_err(Error::receive(image.at(number)))?;
        arrival::complete(meta, number, &announced.arrival)?;
        Ok(snapshot
            .info()
            .map_err(Error::btrfs(image.at(number)))?
            .uuid)
    }
}

/// The blocks as a stream of raw bytes, each opened and checked before any of it is given out.
pub(super) struct Blocks {
    arriving: Arc<Arriving>,
    queue: mpsc::Receiver<RawFrame>,
    receiving: Receiving,
    decompressor: Decompressor,
    raw: Vec<u8>,
    at: usize,
    /// Why there is no next block: an I/O error cannot say it well.
    broken: Option<Error>,
}

impl Blocks {
    pub(super) fn new(
        arriving: Arc<Arriving>,
        queue: mpsc::Receiver<RawFrame>,
        welcome: &Welcome,
    ) -> Self {
        Self {
            arriving,
            queue,
            receiving: Receiving::new(welcome),
            decompressor: Decompressor::new(),
            raw: Vec::new(),
            at: 0,
            broken: None,
        }
    }

    /// Opens the next block; `false` at the end of the stream.
    fn next_block(&mut self) -> Result<bool> {
        loop {
            if self.receiving.is_complete() {
                return Ok(false);
            }
            let Some(frame) = self.queue.blocking_recv() else {
                return Err(Error::refused(Reason::PeerLost, "the stream broke off"));
            };
            let opened = self.open(&frame)?;
            self.arriving.spare().push_back(frame.body);
            if opened {
                return Ok(true);
            }
        }
    }

    fn open(&mut self, raw: &RawFrame) -> Result<bool> {
        let frame = raw.frame()?;
        self.receiving
            .admit(&frame)
            .map_err(|error| link::broken(&error))?;
        let Frame::Data(data) = frame else {
            return Ok(false);
        };
        let block = self
            .decompressor
            .open(&data)
            .map_err(|error| link::broken(&error))?;
        self.raw.clear();
        self.raw.extend_from_slice(block);
        self.at = 0;
        let received = self.receiving.position().raw;
        self.arriving.received.store(received, Ordering::Relaxed);
        self.arriving.ticket.done.store(received, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes sure that the source has said all, and that all of it was the stream.
    fn expect_end(&mut self) -> Result<()> {
        if self.at < self.raw.len() || self.next_block()? {
            let message = "bytes follow the end of the send stream";
            return Err(Error::refused(Reason::StreamInvalid, message));
        }
        Ok(())
    }
}

impl Read for Blocks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.raw.len() {
            match self.next_block() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(error) => {
                    let message = error.to_string();
                    self.broken = Some(error);
                    return Err(io::Error::other(message));
                }
            }
        }
        let rest = self.raw.get(self.at..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
