//! The connections between agents: whom this one dials, and whom it lets in. Whoever uses one gets a
//! stream of bytes, and knows who is at its other end.

mod reach;

use std::net::SocketAddr;

use icbd_net::{Identity, Name, Refusal, TlsStream, tls};
use icbd_wire::control::Reason;
use icbd_wire::data::ALPN;
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Error, Result};

/// Listens on `address`.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = icbd_net::door::listen(address).await;
    listener.map_err(Error::io(format!("listen on {address}")))
}

/// A connection to another agent. Bytes that were written are sent for certain only after a flush.
///
/// For both directions side by side there is `tokio::io::split`: its lock costs nothing that could
/// be measured where one direction carries nearly everything.
pub(crate) type Stream = TlsStream;

/// The other agents, and how to speak with them. Cheap to share.
#[derive(Clone)]
pub(crate) struct Network {
    identity: Identity,
}

impl Network {
    pub(crate) fn new(identity: Identity) -> Self {
        Self { identity }
    }

    /// Connects to the data port of the agent on `node`, and to no other.
    pub(crate) async fn dial(&self, address: SocketAddr, node: &str) -> Result<Stream> {
        let failed = |what: &str, why: &dyn std::fmt::Display| {
            let message = format!("cannot {what} the receiver {node:?} at {address}: {why}");
            Error::refused(Reason::PeerUnreachable, message)
        };
        let unreachable = |why: &dyn std::fmt::Display| failed("connect to", why);
        let stream = reach::reach(address)
            .await
            .map_err(|error| unreachable(&error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| unreachable(&error))?;
        let credentials = self.identity.current();
        let wanted = Name::agent(credentials.name().trust_domain(), node);
        tls::connect(stream, &credentials, &wanted, ALPN)
            .await
            .map_err(|error| failed("be sure of", &error))
    }

    /// Takes a connection that has come in on the data port: it, and the node whose agent it is.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<(Stream, String), Refusal> {
        let credentials = self.identity.current();
        let (stream, name) = tls::accept(stream, &credentials, ALPN).await?;
        match name.node() {
            Some(node) => Ok((stream, node.to_owned())),
            None => {
                let why = format!("{name} is not an agent");
                Err(Refusal::new("NotAnAgent", why))
            }
        }
    }
}
