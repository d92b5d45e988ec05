//! Listening and dialling: the one place that knows how a connection comes about. Whoever uses one
//! gets a stream of bytes and who is at its other end.

mod reach;
mod stream;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use icbd_wire::control::Reason;
use icbd_wire::data::ALPN;
use rustls::CommonState;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;

use crate::error::{Error, Result};
use crate::identity::{AgentName, Identity};
use tls::TlsStream;

pub(crate) use stream::Stream;

/// How long a peer may take to say who it is.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer that was told why gets to read it before the connection is gone.
pub(crate) const PARTING: Duration = Duration::from_secs(2);

/// Listens on `address`; on all addresses of IPv4 where all of IPv6 was meant and there is none.
pub(crate) async fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = match TcpListener::bind(address).await {
        Err(error) if address.ip() == IpAddr::from([0u16; 8]) && !is_taken(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    listener.map_err(Error::io(format!("listen on {address}")))
}

/// The connections that come in on a listener, as they come.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// The other agents, and how to speak with them: over mutual TLS if this agent has an identity, else
/// with whoever it is. Cheap to share.
#[derive(Clone)]
pub(crate) struct Network {
    identity: Option<Arc<Identity>>,
}

impl Network {
    pub(crate) fn new(identity: Option<Identity>) -> Self {
        Self {
            identity: identity.map(Arc::new),
        }
    }

    /// Connects to the data port of the agent on `node`, and to no other. It may be just starting.
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
        match &self.identity {
            None => Ok(Stream::plain(stream)),
            Some(identity) => connect(identity, stream, node)
                .await
                .map_err(|error| failed("be sure of", &error)),
        }
    }

    /// Takes a connection that has come in on the data port.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Result<Stream> {
        let refused = |error| {
            let message = format!("cannot be sure who it is: {error}");
            Error::refused(Reason::NotExpected, message)
        };
        match &self.identity {
            None => Ok(Stream::plain(stream)),
            Some(identity) => accept(identity, stream).await.map_err(refused),
        }
    }
}

async fn connect(identity: &Arc<Identity>, tcp: TcpStream, node: &str) -> io::Result<Stream> {
    let credentials = identity.credentials().await;
    let wanted = credentials.name.sibling(node);
    let server_name = wanted.server_name().ok_or_else(|| {
        let message = format!("{:?} cannot be a DNS name", wanted.dns());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })?;
    let stream = TlsStream::connect(tcp, Arc::clone(&credentials.client), server_name).await?;
    let name = peer(stream.state())?;
    if name != wanted {
        return Err(invalid(format!("it is {name}, not {wanted}")));
    }
    Ok(Stream::tls(stream, name.node()))
}

async fn accept(identity: &Arc<Identity>, tcp: TcpStream) -> io::Result<Stream> {
    tcp.set_nodelay(true)?;
    let credentials = identity.credentials().await;
    let stream = TlsStream::accept(tcp, Arc::clone(&credentials.server)).await?;
    let name = peer(stream.state())?;
    let here = &credentials.name;
    if name != here.sibling(name.node()) {
        return Err(invalid(format!(
            "{name} is of another installation than {here}"
        )));
    }
    Ok(Stream::tls(stream, name.node()))
}

/// Which agent a connection leads to, once its certificate has been believed.
fn peer(state: &CommonState) -> io::Result<AgentName> {
    if state.alpn_protocol() != Some(ALPN) {
        return Err(invalid("it does not speak the data protocol (ALPN)"));
    }
    let certificates = state.peer_certificates().unwrap_or_default();
    let certificate = certificates
        .first()
        .ok_or_else(|| invalid("it has shown no certificate"))?;
    AgentName::of(certificate).map_err(|error| invalid(format!("its certificate: {error}")))
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
