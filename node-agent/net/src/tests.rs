//! Connections over loopback: between two agents, and with the TLS that everybody else has.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::CertifiedKey;
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CipherSuiteCommon, CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme, SupportedCipherSuite,
    Tls13CipherSuite, sign,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::credentials::tests::pair;
use crate::stream::TlsStream;

const MIB: usize = 1 << 20;

const PROTOCOL: &[u8] = b"test/1";

/// One who dials and lets in by these credentials.
struct Network(Credentials);

impl Network {
    async fn dial(&self, address: SocketAddr, node: &str) -> io::Result<TlsStream> {
        let tcp = TcpStream::connect(address).await?;
        let peer = Name::agent(self.0.name().trust_domain(), node);
        tls::connect(tcp, &self.0, &peer, PROTOCOL).await
    }

    async fn accept(&self, tcp: TcpStream) -> Result<TlsStream, Refusal> {
        Ok(tls::accept(tcp, &self.0, PROTOCOL).await?.0)
    }
}

fn networks(nodes: [&str; 2]) -> [Network; 2] {
    pair(nodes).map(Network)
}

async fn listener() -> (TcpListener, SocketAddr) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = door::listen(any).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// What comes of an agent `from` that dials `node`, where `to` listens: at either end.
async fn meet(
    from: &Network,
    node: &str,
    to: &Network,
) -> (io::Result<TlsStream>, Result<TlsStream, Refusal>) {
    let (listener, address) = listener().await;
    let accept = async { to.accept(listener.accept().await.unwrap().0).await };
    tokio::join!(from.dial(address, node), accept)
}

/// The configurations of the first of two agents, to be bent, and the second.
async fn stock() -> (ClientConfig, ServerConfig, Network) {
    let [one, other] = networks(["one", "other"]);
    let (client, server) = (one.0.client(PROTOCOL), one.0.server(PROTOCOL));
    ((*client).clone(), (*server).clone(), other)
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..length).map(|_| random.u8(..)).collect()
}

/// Writes all of `bytes`, reads as many as are wanted, and ends together with the peer.
async fn exchange(stream: impl AsyncRead + AsyncWrite, bytes: &[u8], wanted: usize) -> Vec<u8> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut came = vec![0; wanted];
    let write = async {
        to.write_all(bytes).await.unwrap();
        to.flush().await.unwrap();
    };
    let (_, read) = tokio::join!(write, from.read_exact(&mut came));
    read.unwrap();
    to.shutdown().await.unwrap();
    assert_eq!(from.read(&mut [0; 1]).await.unwrap(), 0, "more came");
    came
}

fn words<T>(result: Result<T, impl Display>) -> String {
    match result {
        Ok(_) => panic!("this is to be refused"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn bytes_go_both_ways_at_once_and_end_together() {
    let [one, other] = networks(["one", "other"]);
    let (here, there) = meet(&one, "other", &other).await;
    let (here, there) = (here.unwrap(), there.unwrap());
    let (request, answer) = (noise(1, 5 * MIB + 17), noise(2, 3 * MIB + 1));
    let (answered, requested) = tokio::join!(
        exchange(here, &request, answer.len()),
        exchange(there, &answer, request.len())
    );
    assert!(requested == request && answered == answer);
}

#[tokio::test]
async fn an_end_without_goodbye_is_a_loss_and_not_an_end() {
    let (client, _, other) = stock().await;
    let (listener, address) = listener().await;
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = "other.agent.standalone".try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, tcp)
            .await
            .unwrap();
        stream.write_all(b"half a").await.unwrap();
        stream.flush().await.unwrap();
        // The socket alone is closed.
        drop(stream.into_inner());
    };
    let accept = async { other.accept(listener.accept().await.unwrap().0).await };
    let (_, stream) = tokio::join!(connect, accept);
    let mut came = Vec::new();
    let error = stream.unwrap().read_to_end(&mut came).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(came, b"half a");
}

#[tokio::test]
async fn a_stranger_from_another_authority_is_refused_at_both_ends() {
    let [one, _] = networks(["one", "other"]);
    let [_, other] = networks(["one", "other"]);
    let (here, there) = meet(&one, "other", &other).await;
    let (here, there) = (words(here), words(there));
    assert!(here.contains("invalid peer certificate"), "{here}");
    assert!(there.contains("alert"), "{there}");
}

#[tokio::test]
async fn another_node_than_the_one_that_was_dialled_is_refused() {
    let [one, other] = networks(["one", "other"]);
    let (here, there) = meet(&one, "third", &other).await;
    let here = words(here);
    assert!(
        here.contains("third.agent.standalone") && here.contains("other.agent.standalone"),
        "{here}"
    );
    words(there);
    for no_name in ["", "a/b"] {
        let (here, there) = meet(&one, no_name, &other).await;
        assert!(words(here).contains("cannot be a DNS name"));
        words(there);
    }
}

/// What an agent says of a client with this configuration, and what the client hears at last.
async fn refused(client: ClientConfig, by: &Network) -> (String, String) {
    let (listener, address) = listener().await;
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = "other.agent.standalone".try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, tcp)
            .await?;
        stream.read_u8().await
    };
    let accept = async { by.accept(listener.accept().await.unwrap().0).await };
    let (heard, accepted) = tokio::join!(connect, accept);
    (words(accepted), heard.unwrap_err().to_string())
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_client_without_certificate_or_with_another_protocol_is_refused_by_an_alert() {
    let (client, _, other) = stock().await;
    let mut bare = client.clone();
    bare.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (why, heard) = refused(bare, &other).await;
    assert!(why.contains("no certificates"), "{why}");
    assert!(heard.contains("CertificateRequired"), "{heard}");

    let mut wrong = client.clone();
    wrong.alpn_protocols = vec![b"h2".to_vec()];
    let (why, heard) = refused(wrong, &other).await;
    assert!(why.contains("any known protocol"), "{why}");
    assert!(heard.contains("NoApplicationProtocol"), "{heard}");

    let mut none = client;
    none.alpn_protocols.clear();
    let (why, _) = refused(none, &other).await;
    assert!(why.contains("ALPN"), "{why}");
}

#[tokio::test]
async fn what_is_no_tls_is_refused() {
    let [_, other] = networks(["one", "other"]);
    let (listener, address) = listener().await;
    let speak = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\x89ICBD and so on").await.unwrap();
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let accept = async { other.accept(listener.accept().await.unwrap().0).await };
    let (heard, accepted) = tokio::join!(speak, accept);
    assert!(words(accepted).contains("corrupt message"));
    // One alert record, and nothing else.
    assert_eq!((heard.first(), heard.len()), (Some(&0x15), 7));
}

#[tokio::test]
async fn stock_tls_gets_along_with_it_whatever_its_records_and_keys() {
    let (mut client, mut server, other) = stock().await;
    client.max_fragment_size = Some(100);
    server.max_fragment_size = Some(64);
    server.send_tls13_tickets = 4;
    let (request, answer) = (noise(3, MIB / 4), noise(4, MIB / 4));

    let (listener, address) = listener().await;
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = "other.agent.standalone".try_into().unwrap();
        let mut stream = TlsConnector::from(Arc::new(client))
            .connect(name, tcp)
            .await
            .unwrap();
        // Asks for new keys in both directions.
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        exchange(stream, &request, answer.len()).await
    };
    let accept = async {
        let stream = other.accept(listener.accept().await.unwrap().0).await;
        exchange(stream.unwrap(), &answer, request.len()).await
    };
    let (answered, requested) = tokio::join!(connect, accept);
    assert!(requested == request && answered == answer);

    let accept = async {
        let tcp = listener.accept().await.unwrap().0;
        let mut stream = TlsAcceptor::from(Arc::new(server))
            .accept(tcp)
            .await
            .unwrap();
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        exchange(stream, &answer, request.len()).await
    };
    let connect = async {
        let stream = other.dial(address, "one").await;
        exchange(stream.unwrap(), &request, answer.len()).await
    };
    let (answered, requested) = tokio::join!(connect, accept);
    assert!(requested == request && answered == answer);
}

/// Cryptography whose keys are worn out after a few records, and not after hundreds of GiB.
fn short_lived_keys() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384;
    let suite = suite.tls13().unwrap();
    let suite = Tls13CipherSuite {
        common: CipherSuiteCommon {
            suite: suite.common.suite,
            hash_provider: suite.common.hash_provider,
            confidentiality_limit: 50,
        },
        ..*suite
    };
    provider.cipher_suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))];
    Arc::new(provider)
}

#[tokio::test]
async fn keys_are_renewed_before_they_are_worn_out() {
    let CertifiedKey {
        cert: certificate,
        signing_key,
    } = rcgen::generate_simple_self_signed(["server".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(short_lived_keys())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(short_lived_keys())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();

    let (listener, address) = listener().await;
    let (request, answer) = (noise(5, 20 * MIB), noise(6, 10 * MIB));
    let connect = async {
        let tcp = TcpStream::connect(address).await.unwrap();
        let name = "server".try_into().unwrap();
        let stream = TlsStream::connect(tcp, Arc::new(client), name).await;
        exchange(stream.unwrap(), &request, answer.len()).await
    };
    let accept = async {
        let tcp = listener.accept().await.unwrap().0;
        let stream = TlsStream::accept(tcp, Arc::new(server)).await;
        exchange(stream.unwrap(), &answer, request.len()).await
    };
    let (answered, requested) = tokio::join!(connect, accept);
    assert!(requested == request && answered == answer);
}

/// Passes bytes on, but for one that it alters.
async fn pass_on(mut from: TcpStream, to: SocketAddr, altered: usize) {
    let mut to = TcpStream::connect(to).await.unwrap();
    let ((mut from, mut back), (mut answers, mut on)) = (from.split(), to.split());
    let forwards = async {
        let mut at = 0;
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            if let Some(byte) = altered
                .checked_sub(at)
                .and_then(|at| buffer[..count].get_mut(at))
            {
                *byte ^= 0x10;
            }
            at += count;
            if on.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = on.shutdown().await;
    };
    let backwards = async {
        let _ = tokio::io::copy(&mut answers, &mut back).await;
        let _ = back.shutdown().await;
    };
    tokio::join!(forwards, backwards);
}

#[tokio::test]
async fn an_altered_byte_is_an_error_and_never_other_bytes() {
    let [one, other] = networks(["one", "other"]);
    let sent = noise(7, 200_000);
    for seed in 0..60 {
        // The handshake takes less than this, and what follows more.
        let altered = fastrand::Rng::with_seed(seed).usize(4096..sent.len());
        let (proxy, through) = listener().await;
        let (target, address) = listener().await;
        let send = async {
            let stream = one.dial(through, "other").await.unwrap();
            let (mut from, mut to) = tokio::io::split(stream);
            // The other end may have hung up already.
            let _ = to.write_all(&sent).await;
            let _ = to.shutdown().await;
            let _ = from.read_to_end(&mut Vec::new()).await;
        };
        let receive = async {
            let tcp = target.accept().await.unwrap().0;
            let mut came = Vec::new();
            // What comes close behind the handshake is decrypted with its end.
            if let Ok(mut stream) = other.accept(tcp).await {
                stream.read_to_end(&mut came).await.unwrap_err();
            }
            came
        };
        let proxy = async { pass_on(proxy.accept().await.unwrap().0, address, altered).await };
        let ((), came, ()) = tokio::join!(send, receive, proxy);
        assert!(sent.starts_with(&came), "seed {seed}");
    }
}
