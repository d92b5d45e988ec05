//! The data port: connections come in, prove whose they are, say which announced transfer they are,
//! and are handed to it. Whoever is or says anything else is told no more than that, and is gone;
//! nothing is allocated for them.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use icbd_wire::control::Reason;
use icbd_wire::data::{Answer, Hello};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use super::{SETTLE, Transfers, link};
use crate::error::{Error, Result};
use crate::net::Stream;

/// Connections that have not said yet who they are, at most.
const MAX_HANDSHAKES: usize = 64;

/// How long to wait when the system has no descriptor left for a connection.
const BREATHER: Duration = Duration::from_millis(200);

/// A source that has connected and named an announced transfer.
pub(super) struct Incoming {
    pub(super) stream: Stream,
    pub(super) hello: Hello,
}

/// An announced transfer that waits for its source.
pub(super) struct Awaited {
    /// The node that it is to come from.
    pub(super) source: String,
    pub(super) connected: oneshot::Sender<Incoming>,
}

impl Transfers {
    /// Serves the data port until the transfers are closed.
    pub(crate) async fn listen(self, listener: TcpListener) {
        let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        loop {
            let accepted = tokio::select! {
                () = self.0.closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the data port");
                    tokio::time::sleep(BREATHER).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&handshakes).try_acquire_owned() else {
                self.refused(
                    peer,
                    &Error::refused(Reason::SnapshotBusy, "too many handshakes"),
                );
                continue;
            };
            let transfers = self.clone();
            tokio::spawn(async move {
                let greeted = transfers.greet(stream).await;
                drop(permit);
                if let Err(error) = greeted {
                    transfers.refused(peer, &error);
                }
            });
        }
    }

    async fn greet(&self, stream: TcpStream) -> Result<()> {
        let mut stream = self.0.network.accept(stream).await?;
        let hello = match link::read_hello(&mut stream).await {
            Ok(hello) => self.know(&hello).await.map(|()| hello),
            Err(error) => Err(error),
        };
        let claimed = hello.and_then(|hello| Ok((self.claim(&hello, stream.peer())?, hello)));
        let (connected, hello) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                refuse(&mut stream, &error).await;
                return Err(error);
            }
        };
        connected.send(Incoming { stream, hello }).map_err(|_| {
            Error::refused(
                Reason::NotExpected,
                "the transfer ended before its source connected",
            )
        })
    }

    /// Waits until it can be said whether a transfer is awaited: just started, this agent has not
    /// found yet what was announced before.
    async fn know(&self, hello: &Hello) -> Result<()> {
        let is_known = self.expected().contains_key(&hello.transfer);
        if is_known || self.0.images.settled_within(SETTLE).await {
            return Ok(());
        }
        let message = "there is no pool here that is ready";
        Err(Error::refused(Reason::PoolUnavailable, message))
    }

    /// Finds the transfer that a source says it is, and leaves it to others if that is not whom it
    /// is to come from. Which transfers there are, only the right source learns.
    fn claim(&self, hello: &Hello, peer: Option<&str>) -> Result<oneshot::Sender<Incoming>> {
        match (self.expected().entry(hello.transfer), peer) {
            (Entry::Occupied(found), Some(peer)) if found.get().source != peer => {
                let (transfer, announced) = (hello.transfer, &found.get().source);
                tracing::warn!(%transfer, announced, peer, "a transfer comes from the wrong node");
            }
            (Entry::Occupied(found), _) => return Ok(found.remove().connected),
            (Entry::Vacant(_), _) => {}
        }
        let message = "nobody announced this transfer here";
        Err(Error::refused(Reason::NotExpected, message))
    }

    fn refused(&self, peer: SocketAddr, error: &Error) {
        let reason = error.reason().as_str_name();
        self.0.metrics.refused(reason);
        tracing::warn!(%peer, reason, %error, "refused a connection on the data port");
    }
}

/// Tells a source why there will be no transfer.
pub(super) async fn refuse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), error: &Error) {
    let mut answer = Vec::new();
    Answer::Refused(link::told(error)).encode(&mut answer);
    let (mut from, mut to) = tokio::io::split(stream);
    if tokio::time::timeout(link::HANDSHAKE, link::write(&mut to, &answer))
        .await
        .is_ok()
    {
        link::part(&mut from, &mut to).await;
    }
}
