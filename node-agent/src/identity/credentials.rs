//! An agent's certificate, key and certificate authority, and what TLS makes of them.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use icbd_wire::data::ALPN;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::name::{AgentName, NameError};

/// What an identity is made of, as PEM texts; as files they are called as in a Kubernetes Secret of
/// type `kubernetes.io/tls`.
#[derive(PartialEq, Eq)]
pub(crate) struct Pem {
    /// `tls.crt`: the agent's certificate, then those between it and the authority.
    pub(crate) chain: Vec<u8>,
    /// `tls.key`: its private key.
    pub(crate) key: Vec<u8>,
    /// `ca.crt`: the authorities that are believed; two while one replaces the other.
    pub(crate) authorities: Vec<u8>,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("cannot read {file}: {source}")]
    Read {
        file: &'static str,
        source: io::Error,
    },
    #[error("{file} is not PEM: {source}")]
    Pem {
        file: &'static str,
        source: rustls::pki_types::pem::Error,
    },
    #[error("{0} holds no certificate")]
    Empty(&'static str),
    #[error("the certificate in tls.crt: {0}")]
    Name(#[from] NameError),
    #[error("the certificate in tls.crt is that of {name}, and this node is {node:?}")]
    OtherNode { name: AgentName, node: String },
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    #[error("ca.crt: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

impl Pem {
    /// Reads the three files of a directory.
    pub(super) fn read(dir: &Path) -> Result<Self, CredentialsError> {
        let read = |file| {
            fs::read(dir.join(file)).map_err(|source| CredentialsError::Read { file, source })
        };
        Ok(Self {
            chain: read("tls.crt")?,
            key: read("tls.key")?,
            authorities: read("ca.crt")?,
        })
    }
}

/// An identity that can be used: mutual TLS 1.3 with the data protocol's ALPN, at both ends.
pub(crate) struct Credentials {
    pub(super) pem: Pem,
    pub(crate) name: AgentName,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Credentials {
    /// The credentials of the agent on `node`.
    pub(super) fn new(pem: Pem, node: &str) -> Result<Self, CredentialsError> {
        let chain = certificates("tls.crt", &pem.chain)?;
        let leaf = chain.first().ok_or(CredentialsError::Empty("tls.crt"))?;
        let name = AgentName::of(leaf)?;
        if name.node() != node {
            let node = node.to_owned();
            return Err(CredentialsError::OtherNode { name, node });
        }
        let mut roots = RootCertStore::empty();
        for authority in certificates("ca.crt", &pem.authorities)? {
            roots.add(authority)?;
        }
        if roots.is_empty() {
            return Err(CredentialsError::Empty("ca.crt"));
        }
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|source| {
            let file = "tls.key";
            CredentialsError::Pem { file, source }
        })?;
        let (roots, provider) = (Arc::new(roots), Arc::new(provider()));
        Ok(Self {
            client: Arc::new(client(&provider, &roots, chain.clone(), key.clone_key())?),
            server: Arc::new(server(&provider, &roots, chain, key)?),
            name,
            pem,
        })
    }
}

/// The cryptography, with the cipher that costs least first, which both ends then take.
fn provider() -> CryptoProvider {
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    CryptoProvider {
        cipher_suites: vec![
            TLS13_AES_128_GCM_SHA256,
            TLS13_AES_256_GCM_SHA384,
            TLS13_CHACHA20_POLY1305_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    }
}

fn certificates(
    file: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|source| CredentialsError::Pem { file, source })
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, CredentialsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, CredentialsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Each connection proves anew who is there. Tickets would also lie unread in the socket of a
    // source that only sends, and reset its connection when it closes.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
