//! The source's disk half: the kernel's send stream, cut into blocks and sealed on a thread of its
//! own; and the measure of how long it will be. Where the blocks go is not known here.

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use icbd_btrfs::{SendRequest, SendStream, Subvolume};
use icbd_wire::control::Reason;
use icbd_wire::data::{Codec, Compressor, Frame, MAX_BLOCK, Sending};
use tokio::sync::mpsc;

use crate::error::{Error, Result};
use crate::transfer::link;
use crate::transfer::ticket::Ticket;

/// The snapshots of a transfer, open: while they are, they stay what they are.
pub(super) struct Opened {
    pub(super) source: Subvolume,
    pub(super) parent: Option<Subvolume>,
}

impl Opened {
    fn request(&self) -> SendRequest<'_> {
        let (source, parent) = (&self.source, self.parent.as_ref());
        SendRequest {
            source,
            parent,
            clone_sources: &[],
        }
    }
}

/// Learns how long the stream will be, while the transfer lasts; `None` if that cannot be learnt.
pub(super) async fn measure(ticket: Arc<Ticket>, opened: Arc<Opened>) -> Option<u64> {
    let measured = tokio::task::spawn_blocking(move || {
        let measured = opened.request().measure(|_| match ticket.is_over() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        match measured {
            Ok(size) => {
                ticket.set_total(size.stream);
                Some(size.stream)
            }
            Err(error) => {
                tracing::debug!(%error, "the length of the stream is not known");
                None
            }
        }
    });
    measured.await.ok().flatten()
}

/// The thread that turns the kernel's stream into sealed blocks.
pub(super) struct Sealing {
    pub(super) ticket: Arc<Ticket>,
    pub(super) sending: Arc<Mutex<Sending>>,
    pub(super) codec: Codec,
    pub(super) sealed: mpsc::Sender<Result<Vec<u8>>>,
}

impl Sealing {
    pub(super) fn run(self, opened: &Opened) {
        if let Err(error) = self.seal_all(opened) {
            // Whoever waited for blocks has gone if this fails, and knows why.
            let _ = self.sealed.blocking_send(Err(error));
        }
    }

    fn seal_all(&self, opened: &Opened) -> Result<()> {
        let at = || format!("{}/{}", self.ticket.image, self.ticket.number);
        let mut stream = opened.request().start().map_err(Error::btrfs(at()))?;
        let mut compressor = Compressor::new();
        let mut raw = vec![0; MAX_BLOCK];
        loop {
            let length = fill_block(&mut stream, &mut raw)
                .map_err(Error::io(format!("read the send stream of {}", at())))?;
            if length == 0 {
                break;
            }
            let Some(data) = raw
                .get(..length)
                .map(|raw| compressor.seal(self.codec, raw))
            else {
                break;
            };
            let data = data.map_err(|error| {
                Error::refused(Reason::IoError, format!("cannot seal a block: {error}"))
            })?;
            let sent = self
                .sending
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .block(&data);
            sent.map_err(|error| link::broken(&error))?;
            let mut frame = Vec::with_capacity(data.payload.len() + 64);
            Frame::Data(data).encode(&mut frame);
            if self.sealed.blocking_send(Ok(frame)).is_err() {
                return Ok(());
            }
            self.ticket.done.fetch_add(length as u64, Ordering::Relaxed);
            if length < MAX_BLOCK {
                break;
            }
        }
        let end = self
            .sending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .end();
        let mut frame = Vec::new();
        Frame::End(end).encode(&mut frame);
        let _ = self.sealed.blocking_send(Ok(frame));
        Ok(())
    }
}

/// Fills a block as far as the stream goes. A short one is the last.
fn fill_block(stream: &mut SendStream, block: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = block.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest)? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}
