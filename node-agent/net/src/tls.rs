//! Handshakes: a TCP connection in, and out comes a stream of bytes and who is at its other end.

use std::io;

use rustls::CommonState;
use tokio::net::TcpStream;

use crate::credentials::Credentials;
use crate::name::Name;
use crate::refusal::Refusal;
use crate::stream::TlsStream;
use crate::trust::Trust;

/// Proves to a server who this is, and that it is `peer`.
///
/// # Errors
/// It cannot be reached, does not believe this end, or is somebody else.
pub async fn connect(
    tcp: TcpStream,
    credentials: &Credentials,
    peer: &Name,
    protocol: &[u8],
) -> io::Result<TlsStream> {
    let stream = TlsStream::connect(tcp, credentials.client(protocol), server_name(peer)?).await?;
    is(&stream, peer, protocol)?;
    Ok(stream)
}

/// Makes sure that a server is `peer`, and proves nothing to it.
///
/// # Errors
/// It cannot be reached, or is somebody else.
pub async fn connect_unproved(
    tcp: TcpStream,
    trust: &Trust,
    peer: &Name,
    protocol: &[u8],
) -> io::Result<TlsStream> {
    let config = trust.client(protocol).map_err(io::Error::other)?;
    let stream = TlsStream::connect(tcp, config, server_name(peer)?).await?;
    is(&stream, peer, protocol)?;
    Ok(stream)
}

/// Lets somebody of this installation in; who it is.
///
/// # Errors
/// It is nobody of it, or proves nothing, or speaks another protocol.
pub async fn accept(
    tcp: TcpStream,
    credentials: &Credentials,
    protocol: &[u8],
) -> Result<(TlsStream, Name), Refusal> {
    let stream = TlsStream::accept(tcp, credentials.server(protocol)).await?;
    speaks(stream.state(), protocol)?;
    let name = shown(stream.state())?;
    if name.trust_domain() != credentials.name().trust_domain() {
        let here = credentials.name();
        let why = format!("{name} is of another installation than {here}");
        return Err(Refusal::new("OtherInstallation", why));
    }
    Ok((stream, name))
}

/// Lets anybody in, to whom this end proves who it is.
///
/// # Errors
/// It speaks another protocol, or does not believe this end.
pub async fn accept_unproved(
    tcp: TcpStream,
    credentials: &Credentials,
    protocol: &[u8],
) -> Result<TlsStream, Refusal> {
    let stream = TlsStream::accept(tcp, credentials.open(protocol)).await?;
    speaks(stream.state(), protocol)?;
    Ok(stream)
}

fn server_name(peer: &Name) -> io::Result<rustls::pki_types::ServerName<'static>> {
    peer.server_name().ok_or_else(|| {
        let message = format!("{:?} cannot be a DNS name", peer.dns());
        io::Error::new(io::ErrorKind::InvalidInput, message)
    })
}

/// The URI is what counts; the DNS name has been compared by the verification.
fn is(stream: &TlsStream, peer: &Name, protocol: &[u8]) -> io::Result<()> {
    speaks(stream.state(), protocol).map_err(invalid)?;
    let name = shown(stream.state()).map_err(invalid)?;
    if name != *peer {
        return Err(invalid(format!("it is {name}, not {peer}")));
    }
    Ok(())
}

fn speaks(state: &CommonState, protocol: &[u8]) -> Result<(), Refusal> {
    if state.alpn_protocol() == Some(protocol) {
        return Ok(());
    }
    let protocol = String::from_utf8_lossy(protocol);
    let why = format!("it does not say that it speaks {protocol} (ALPN)");
    Err(Refusal::new("OtherProtocol", why))
}

/// Whom a certificate that has been believed names.
fn shown(state: &CommonState) -> Result<Name, Refusal> {
    let certificates = state.peer_certificates().unwrap_or_default();
    let certificate = certificates
        .first()
        .ok_or_else(|| Refusal::new("NoCertificate", "it has shown no certificate"))?;
    Name::of(certificate)
        .map_err(|error| Refusal::new("BadCertificate", format!("its certificate: {error}")))
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
