//! The receiver's disk half: blocks are opened and checked side by side, applied one after the
//! other, kept at checkpoints, and become a snapshot once the last has proved to be the last.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Instant;

use icbd_btrfs::Encoding;
use icbd_btrfs::receive::{Arriving, Base, Inspection, Inspector, Receiver};
use icbd_wire::control::Reason;
use icbd_wire::data::{
    BLOCK_HASH_LEN, Codec, Data, Decompressor, Frame, Mode, Position, Receiving, Welcome,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::converse::Reception;
use super::home::Home;
use super::rhythm::Rhythm;
use super::starving::Starving;
use crate::error::{Error, Result};
use crate::image::checkpoint::CheckpointRecord;
use crate::transfer::link::{self, RawFrame};
use crate::transfer::pipeline;

impl Reception {
    /// Applies the stream and makes it a snapshot, whose uuid it returns. Blocks; on failure
    /// nothing is left but a checkpoint.
    pub(super) fn apply(
        &self,
        queue: mpsc::Receiver<RawFrame>,
        welcome: &Welcome,
        home: &dyn Home,
    ) -> Result<Uuid> {
        let result = self.apply_all(queue, welcome, home);
        if let Err(error) = &result {
            let cleared = match is_useless(self.why(error)) {
                true => home.forget(),
                false => home.give_up(),
            };
            if let Err(error) = cleared {
                tracing::error!(%error, "cannot remove what came of the snapshot");
            }
        }
        result
    }

    /// Why it ended, if this is what the disk ended with.
    fn why(&self, error: &Error) -> Reason {
        self.broken_off.get().copied().unwrap_or(error.reason())
    }

    fn apply_all(
        &self,
        queue: mpsc::Receiver<RawFrame>,
        welcome: &Welcome,
        home: &dyn Home,
    ) -> Result<Uuid> {
        let parent = home.parent();
        let bases: Vec<_> = parent
            .iter()
            .map(|(identity, subvolume)| Base {
                identity: *identity,
                subvolume,
            })
            .collect();
        let partial = home.partial();
        let receiver = Receiver::new(home.dir(), partial.as_bytes(), &bases)
            .with_encoding(encoding(welcome.mode));
        let arriving = match home.resume().filter(|_| welcome.resume != Position::START) {
            None => receiver.begin(),
            Some((record, subvolume)) => {
                let checkpoint = record.checkpoint().ok_or_else(|| {
                    let message = "the checkpoint is from another version of the agent";
                    Error::refused(Reason::StreamInvalid, message)
                })?;
                receiver
                    .resume(&checkpoint, subvolume)
                    .map_err(Error::receive(home.at()))?
            }
        };
        let mut applying = Applying {
            rhythm: Rhythm::new(self.pace.checkpoint, arriving.progress(), Instant::now()),
            reception: self,
            home,
            welcome,
            arriving,
            position: welcome.resume,
            index: home.resume().map_or(0, |(record, _)| record.index + 1),
        };
        applying.blocks(queue)?;
        applying.finish()
    }
}

/// What becomes of extents that come compressed: only a source that reads them itself sends such.
fn encoding(mode: Mode) -> Encoding {
    match mode {
        Mode::Stream => Encoding::Plain,
        Mode::Extents => Encoding::AsStored,
    }
}

/// Whether what came is of no use to another attempt: there will be none, or going on from it would
/// fail again.
fn is_useless(why: Reason) -> bool {
    matches!(
        why,
        Reason::Cancelled | Reason::SourceChanged | Reason::StreamInvalid
    )
}

/// The blocks of one stream on their way to the disk.
struct Applying<'a> {
    reception: &'a Reception,
    home: &'a dyn Home,
    welcome: &'a Welcome,
    arriving: Arriving<'a>,
    /// Behind the last block that was applied.
    position: Position,
    /// Of the next checkpoint.
    index: u64,
    /// When to make it.
    rhythm: Rhythm,
}

impl Applying<'_> {
    /// Applies all blocks.
    fn blocks(&mut self, queue: mpsc::Receiver<RawFrame>) -> Result<()> {
        let reception = self.reception;
        let mut failed = None;
        let frames = Frames {
            queue,
            starving: &reception.starving,
            receiving: Receiving::new(self.welcome),
            failed: false,
        };
        pipeline::in_order(
            frames,
            || Opener::new(encoding(self.welcome.mode)),
            |opener, admitted: Result<Admitted>| opener.open(admitted?, reception),
            |opened| match opened
                .map_err(Failed::Coming)
                .and_then(|block| self.block(block))
            {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    reception.given_up.cancel();
                    ControlFlow::Break(())
                }
            },
        );
        match failed {
            None => Ok(()),
            Some(Failed::Applying(error)) => Err(error),
            Some(Failed::Coming(error)) => {
                self.keep_on_the_way_out(&error);
                Err(error)
            }
        }
    }

    fn block(&mut self, block: Opened) -> Result<(), Failed> {
        let reception = self.reception;
        if let Some(stop) = reception.ticket.asked_to_stop() {
            return Err(Failed::Coming(stop));
        }
        let raw = block.buffer.get(block.from..).unwrap_or_default();
        self.arriving
            .inspected_block(raw, block.inspection, |progress| {
                reception.applied.store(progress.bytes, Ordering::Relaxed);
                reception.movement.moved();
                ControlFlow::Continue(())
            })
            .map_err(Error::receive(self.home.at()))
            .map_err(Failed::Applying)?;
        self.position = block.behind;
        reception.give_back(block.buffer);
        let done = self.arriving.progress();
        if self.rhythm.is_due(done, Instant::now()) {
            self.checkpoint().map_err(Failed::Applying)?;
        }
        Ok(())
    }

    /// Makes what has come survive a crash.
    fn checkpoint(&mut self) -> Result<()> {
        let begun = Instant::now();
        let name = self.home.checkpoint(self.index);
        let made = self
            .arriving
            .checkpoint(name.as_bytes())
            .map_err(Error::receive(self.home.at()))?;
        if let Some(made) = made {
            let (mode, position) = (self.welcome.mode, self.position);
            let record = CheckpointRecord::new(self.index, mode, position, made);
            self.home.keep(record)?;
            self.index += 1;
            let durable = &self.reception.durable;
            durable.store(position.raw, Ordering::Release);
            self.reception.movement.moved();
            tracing::debug!(raw = position.raw, took = ?begun.elapsed(), "checkpoint");
        }
        let done = self.arriving.progress();
        self.rhythm.made(done, begun, Instant::now());
        Ok(())
    }

    /// No more blocks come, through no fault of theirs: keeps those that did.
    fn keep_on_the_way_out(&mut self, error: &Error) {
        let why = self.reception.why(error);
        // Nothing is written to a pool that is not this agent's any more.
        let keep = !is_useless(why) && !link::is_about_the_pool(why);
        let durable = self.reception.durable.load(Ordering::Relaxed);
        if !keep || self.position.raw == durable {
            return;
        }
        if let Err(error) = self.checkpoint() {
            tracing::warn!(%error, "cannot keep what came since the last checkpoint");
        }
    }

    fn finish(self) -> Result<Uuid> {
        let Self {
            reception,
            home,
            arriving,
            ..
        } = self;
        let received = arriving.end().map_err(Error::receive(home.at()))?;
        let (content, wanted) = (received.content().uuid, home.content());
        if content != wanted {
            let message = format!("the stream carries {content}, not {wanted}");
            return Err(Error::refused(Reason::StreamInvalid, message));
        }
        reception.finishing.store(true, Ordering::Relaxed);
        reception.movement.be_patient(link::FINISHING);
        // This may take minutes: nobody else is to wait for the image meanwhile.
        let received = received.sync().map_err(Error::receive(home.at()))?;
        home.finish(received)
    }
}

/// Why there is no going on.
enum Failed {
    /// A block did not come, or not whole: what was applied before it is good.
    Coming(Error),
    /// A block could not be applied whole: what is on disk is not what any position says.
    Applying(Error),
}

/// The frames with blocks, each with the position behind it, up to the end of the stream.
struct Frames<'a> {
    queue: mpsc::Receiver<RawFrame>,
    starving: &'a Starving,
    receiving: Receiving,
    failed: bool,
}

impl Frames<'_> {
    /// The next block; `None` at the end of the stream.
    fn admit(&mut self) -> Result<Option<Admitted>> {
        while !self.receiving.is_complete() {
            self.starving.begins(Instant::now());
            let raw = self.queue.blocking_recv();
            self.starving.ends(Instant::now());
            let Some(raw) = raw else {
                return Err(Error::refused(Reason::PeerLost, "the stream broke off"));
            };
            let frame = raw.frame()?;
            self.receiving
                .admit(&frame)
                .map_err(|error| link::broken(&error))?;
            if let Frame::Data(_) = frame {
                let behind = self.receiving.position();
                return Ok(Some(Admitted { raw, behind }));
            }
        }
        Ok(None)
    }
}

impl Iterator for Frames<'_> {
    type Item = Result<Admitted>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let admitted = self.admit().transpose();
        self.failed = matches!(admitted, Some(Err(_)));
        admitted
    }
}

/// A block that may come, and how far the stream is behind it.
struct Admitted {
    raw: RawFrame,
    behind: Position,
}

/// What a thread keeps from one block to the next.
struct Opener {
    decompressor: Decompressor,
    /// `None` where no compressed extents are to come.
    inspector: Option<Inspector>,
}

impl Opener {
    fn new(encoding: Encoding) -> Self {
        Self {
            decompressor: Decompressor::new(),
            inspector: (encoding == Encoding::AsStored).then(Inspector::default),
        }
    }

    /// Decompresses a block, makes sure that it is what was sealed, and inspects it.
    fn open(&mut self, admitted: Admitted, reception: &Reception) -> Result<Opened> {
        let Admitted { raw, behind } = admitted;
        let Frame::Data(data) = raw.frame()? else {
            let message = "a frame without a block";
            return Err(Error::refused(Reason::StreamInvalid, message));
        };
        let Data { codec, .. } = data;
        let block = self
            .decompressor
            .open(&data)
            .map_err(|error| link::broken(&error))?;
        reception.received.fetch_max(behind.raw, Ordering::Relaxed);
        reception
            .ticket
            .done
            .fetch_max(behind.raw, Ordering::Relaxed);
        let inspector = self.inspector.as_mut();
        let inspection = inspector.map_or_else(Inspection::default, |it| it.inspect(block));
        // What was not compressed stays where it was read.
        let (buffer, from) = match codec {
            Codec::None => (raw.body, BLOCK_HASH_LEN),
            _ => {
                let mut buffer = reception.take_buffer();
                buffer.clear();
                buffer.extend_from_slice(block);
                reception.give_back(raw.body);
                (buffer, 0)
            }
        };
        Ok(Opened {
            buffer,
            from,
            inspection,
            behind,
        })
    }
}

/// A block's raw bytes.
struct Opened {
    buffer: Vec<u8>,
    /// Where in the buffer they begin.
    from: usize,
    inspection: Inspection,
    behind: Position,
}
