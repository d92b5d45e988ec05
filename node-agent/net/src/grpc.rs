//! gRPC over these connections, as the one who calls.

use std::io;
use std::net::SocketAddr;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, ToSocketAddrs};
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

use crate::identity::Identity;
use crate::name::Name;
use crate::tls;
use crate::trust::Trust;

/// The protocol that both ends agree on in the handshake (ALPN): HTTP/2.
pub const PROTOCOL: &[u8] = b"h2";

/// Whom calls are addressed to, in their headers. Who is really called is settled by the handshake.
pub fn endpoint() -> Endpoint {
    Endpoint::from_static("http://icbd")
}

/// Connects to `peer` at an address, with mutual proof; also each time that the connection is made
/// anew, with the credentials that count then.
///
/// # Errors
/// It cannot be reached, or is somebody else, or does not believe this end.
pub async fn dial(
    endpoint: Endpoint,
    address: SocketAddr,
    identity: Identity,
    peer: Name,
) -> Result<Channel, Error> {
    let connect = move |_: Uri| {
        let (identity, peer) = (identity.clone(), peer.clone());
        async move {
            let tcp = reach(address).await?;
            let stream = tls::connect(tcp, &identity.current(), &peer, PROTOCOL).await?;
            io::Result::Ok(TokioIo::new(stream))
        }
    };
    endpoint.connect_with_connector(service_fn(connect)).await
}

/// Connects to `peer` at `HOST:PORT`, and proves nothing to it.
///
/// # Errors
/// It cannot be reached, or is somebody else.
pub async fn dial_unproved(
    endpoint: Endpoint,
    address: String,
    trust: Trust,
    peer: Name,
) -> Result<Channel, Error> {
    let connect = move |_: Uri| {
        let (address, trust, peer) = (address.clone(), trust.clone(), peer.clone());
        async move {
            let tcp = reach(&address).await?;
            let stream = tls::connect_unproved(tcp, &trust, &peer, PROTOCOL).await?;
            io::Result::Ok(TokioIo::new(stream))
        }
    };
    endpoint.connect_with_connector(service_fn(connect)).await
}

/// What is behind an error: tonic's own words for all of them are "transport error".
pub fn explain(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

async fn reach(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
