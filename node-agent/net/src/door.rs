//! Doors: ports that take connections in under limits, so that whoever floods them costs bounded
//! memory, and keeps off nobody who comes from another address.

mod entry;
mod guest;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::name::Name;
use crate::refusal::Refusal;
use crate::refused::Refused;

use entry::Entries;
pub use entry::Entry;
pub use guest::{Caller, Guest, Guests};

/// How long to wait when the system has no descriptor left for a connection.
const BREATHER: Duration = Duration::from_millis(200);

/// How many guests may wait to be served.
const WAITING: usize = 16;

/// How many are let in.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Who have not said yet who they are, at a time: in all, and from one address. Beyond those in
    /// all the longest waiting gives way.
    pub greeting: Share,
    /// Who have, and are connected, at a time.
    pub connected: Share,
    /// How long somebody may take to say who it is.
    pub within: Duration,
    /// How long a connection lasts at most; `None`: as long as it likes.
    pub lasting: Option<Duration>,
}

/// A number in all, and from one address.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// In all.
    pub all: usize,
    /// From one address.
    pub each: usize,
}

/// A port that takes connections in.
pub struct Door {
    listener: TcpListener,
    /// What logs and metrics call it.
    port: &'static str,
    limits: Limits,
    refused: Arc<Refused>,
}

/// Of the port for health and metrics. Anybody may ask; a connection that is kept is made anew now
/// and then.
const HEALTH: Limits = Limits {
    greeting: Share { all: 64, each: 32 },
    connected: Share { all: 128, each: 32 },
    within: Duration::from_secs(1),
    lasting: Some(Duration::from_secs(30)),
};

/// Opens the port for health and metrics: those who ask, and nobody is asked who it is.
pub fn for_health(
    listener: TcpListener,
    refused: Arc<Refused>,
    closing: CancellationToken,
) -> Guests<TcpStream> {
    let door = Door::new(listener, "health", HEALTH, refused);
    door.guests(closing, |stream| async { Ok((stream, None)) })
}

/// Listens on `address`; on all addresses of IPv4 where all of IPv6 was meant and there is none.
///
/// # Errors
/// The address is taken, or not one of this machine.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error)
            if address.ip() == IpAddr::from([0u16; 8])
                && error.kind() != io::ErrorKind::AddrInUse =>
        {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

impl Door {
    /// Opens a port; `port` is what logs and metrics call it.
    pub fn new(
        listener: TcpListener,
        port: &'static str,
        limits: Limits,
        refused: Arc<Refused>,
    ) -> Self {
        Self {
            listener,
            port,
            limits,
            refused,
        }
    }

    /// Greets everybody who comes, each on a task of its own, until `closing`. Who is not through
    /// with it in time is sent away. `greet` keeps the entry for as long as it is to count.
    pub async fn serve<F>(
        self,
        closing: CancellationToken,
        greet: impl Fn(TcpStream, SocketAddr, Entry) -> F,
    ) where
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let Self {
            listener,
            port,
            limits,
            refused,
        } = self;
        let entries = Arc::new(Entries::new(limits));
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let (tcp, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, port, "cannot accept a connection");
                    tokio::time::sleep(BREATHER).await;
                    continue;
                }
            };
            let entry = match entries.enter(peer.ip()) {
                Ok(entry) => entry,
                Err(refusal) => {
                    refused.tell(port, peer, &refusal);
                    continue;
                }
            };
            // Small messages go at once, both ways; without it things are slower, and right.
            let _ = tcp.set_nodelay(true);
            let displaced = entry.displaced();
            let greeted = timeout(limits.within, greet(tcp, peer, entry));
            let refused = Arc::clone(&refused);
            tokio::spawn(async move {
                let greeted = tokio::select! {
                    greeted = greeted => greeted.unwrap_or_else(|_| {
                        let seconds = limits.within.as_secs();
                        let why = format!("it took more than {seconds} s to say who it is");
                        Err(Refusal::new("TooSlow", why))
                    }),
                    () = displaced.cancelled() => {
                        let why = "others came while it did not say who it is";
                        Err(Refusal::new("Displaced", why))
                    }
                };
                if let Err(refusal) = greeted {
                    refused.tell(port, peer, &refusal);
                }
            });
        }
    }

    /// Those who have been greeted, as they come, until `closing`: streams of bytes of whatever kind
    /// `greet` makes of their connections, with the name that it has found them to have, if any.
    pub fn guests<S, F>(
        self,
        closing: CancellationToken,
        greet: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> Guests<S>
    where
        S: Send + 'static,
        F: Future<Output = Result<(S, Option<Name>), Refusal>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(WAITING);
        let address = self.listener.local_addr();
        let lasting = self.limits.lasting;
        let welcome = move |tcp, address, entry: Entry| -> BoxFuture<'static, _> {
            let (sender, greeted) = (sender.clone(), greet(tcp));
            Box::pin(async move {
                let (stream, name) = greeted.await?;
                let entry = entry.admit()?;
                let guest = Guest::new(stream, Caller { address, name }, entry, lasting);
                // Nobody serves any more: the agent ends.
                let _ = sender.send(guest).await;
                Ok(())
            })
        };
        tokio::spawn(self.serve(closing, welcome));
        Guests::new(receiver, address)
    }
}
