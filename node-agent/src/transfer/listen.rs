//! The data port: connections come in, prove whose they are, say which announced transfer they are,
//! and are handed to it. Whoever is or says anything else is told no more than that, and is gone;
//! nothing is allocated for them.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use icbd_net::door::{Door, Limits, Share};
use icbd_net::{Refusal, Refused};
use icbd_wire::control::Reason;
use icbd_wire::data::{Answer, Hello};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::{SETTLE, Transfers, link};
use crate::error::{Error, Result};
use crate::net::Stream;

/// Connections that have not said yet which transfer they are. Those that have are as many as were
/// announced.
const LIMITS: Limits = Limits {
    greeting: Share { all: 64, each: 16 },
    connected: Share { all: 0, each: 0 },
    // The TLS handshake, that of the data protocol, finding what was announced to the agent before
    // this one, and the time to read a refusal.
    within: Duration::from_secs(35),
    lasting: None,
};

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
    pub(crate) async fn listen(self, listener: TcpListener, refused: Arc<Refused>) {
        let closing = self.0.closing.clone();
        let door = Door::new(listener, "data", LIMITS, refused);
        door.serve(closing, move |stream, _, entry| {
            let transfers = self.clone();
            async move {
                let greeted = transfers.greet(stream).await;
                drop(entry);
                greeted
            }
        })
        .await;
    }

    async fn greet(&self, stream: TcpStream) -> Result<(), Refusal> {
        let (mut stream, peer) = self.0.network.accept(stream).await?;
        let hello = match link::read_hello(&mut stream).await {
            Ok(hello) => self.know(&hello).await.map(|()| hello),
            Err(error) => Err(error),
        };
        let claimed = hello.and_then(|hello| Ok((self.claim(&hello, &peer)?, hello)));
        let (connected, hello) = match claimed {
            Ok(claimed) => claimed,
            Err(error) => {
                refuse(&mut stream, &error).await;
                let why = format!("the agent of {peer}: {error}");
                return Err(Refusal::new(error.reason().as_str_name(), why));
            }
        };
        connected.send(Incoming { stream, hello }).map_err(|_| {
            let why = "the transfer ended before its source connected";
            Refusal::new(Reason::NotExpected.as_str_name(), why)
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
    fn claim(&self, hello: &Hello, peer: &str) -> Result<oneshot::Sender<Incoming>> {
        match self.expected().entry(hello.transfer) {
            Entry::Occupied(found) if found.get().source != peer => {
                let (transfer, announced) = (hello.transfer, &found.get().source);
                tracing::warn!(%transfer, announced, peer, "a transfer comes from the wrong node");
            }
            Entry::Occupied(found) => return Ok(found.remove().connected),
            Entry::Vacant(_) => {}
        }
        let message = "nobody announced this transfer here";
        Err(Error::refused(Reason::NotExpected, message))
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
