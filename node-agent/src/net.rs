//! Listening and dialling: the one place that knows how a connection comes about. Whoever uses one
//! gets a stream of bytes and the address at its other end.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use icbd_wire::control::Reason;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;

use crate::error::{Error, Result};

/// How long a peer may take to answer to a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

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

fn is_taken(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrInUse
}

/// Connects to another agent's data port.
pub(crate) async fn dial(address: SocketAddr) -> Result<TcpStream> {
    let unreachable = |why: String| {
        let message = format!("cannot connect to the receiver at {address}: {why}");
        Error::refused(Reason::PeerUnreachable, message)
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())))?
        .map_err(|error| unreachable(error.to_string()))?;
    stream
        .set_nodelay(true)
        .map_err(|error| unreachable(error.to_string()))?;
    Ok(stream)
}
