//! How long a transfer will be, for who watches it. Nothing depends on it.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::feed::Opened;
use crate::transfer::ticket::Ticket;

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
