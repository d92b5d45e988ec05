//! How long a transfer will be, for who watches it. Nothing depends on it.

use std::ops::ControlFlow;
use std::sync::Arc;

use icbd_btrfs::BlockError;
use icbd_wire::data::Mode;
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::feed::{ENCODING, Opened};
use crate::transfer::ticket::Ticket;

/// A pass over the metadata while the data flows. The ticket is told what it has come to. Broken off
/// when this is dropped.
pub(crate) struct Measuring {
    length: oneshot::Receiver<u64>,
    _guard: DropGuard,
}

impl Measuring {
    /// Begins to measure what a transfer in this mode is going to be.
    pub(crate) fn start(ticket: &Arc<Ticket>, opened: &Arc<Opened>, mode: Mode) -> Self {
        let dropped = CancellationToken::new();
        let _guard = dropped.clone().drop_guard();
        let (learnt, length) = oneshot::channel();
        let (ticket, opened) = (Arc::clone(ticket), Arc::clone(opened));
        tokio::task::spawn_blocking(move || {
            let watch = |total| match dropped.is_cancelled() {
                true => ControlFlow::Break(()),
                false => {
                    ticket.estimate_total(total);
                    ControlFlow::Continue(())
                }
            };
            let measured = match mode {
                Mode::Stream => opened.request().measure(watch),
                Mode::Extents => opened.request().measure_extents(ENCODING, watch),
            };
            match measured {
                Ok(total) => {
                    ticket.estimate_total(total);
                    // Nobody may be waiting for it any more.
                    let _ = learnt.send(total);
                }
                Err(BlockError::BrokenOff) => {}
                Err(error) => tracing::debug!(%error, "the length of the stream is not known"),
            }
        });
        Self { length, _guard }
    }

    /// Waits until the pass is over; `None` if the length cannot be learnt.
    pub(super) async fn length(&mut self) -> Option<u64> {
        (&mut self.length).await.ok()
    }
}
