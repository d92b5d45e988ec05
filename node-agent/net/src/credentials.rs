//! A certificate, its key and whom to believe, and what TLS makes of them: TLS 1.3, both ends proved
//! anew on every connection.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use webpki::KeyUsage;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Validity;
use crate::fingerprint::Fingerprint;
use crate::name::{Name, NameError};
use crate::trust::{Trust, TrustError};

/// What credentials are made of, as PEM texts; as files they are called as in a Kubernetes Secret of
/// type `kubernetes.io/tls`.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// `tls.crt`: the certificate, then those between it and the authority.
    pub chain: Vec<u8>,
    /// `tls.key`: its private key.
    pub key: Vec<u8>,
    /// `ca.crt`: the authorities that are believed.
    pub authorities: Vec<u8>,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A text is broken.
    #[error("{file} is not PEM: {source}")]
    Pem {
        /// Which one.
        file: &'static str,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate.
    #[error("tls.crt holds no certificate")]
    Empty,
    /// The certificate does not decode.
    #[error("the certificate in tls.crt does not decode: {0}")]
    Certificate(String),
    /// The certificate is nobody's.
    #[error("the certificate in tls.crt: {0}")]
    Name(#[from] NameError),
    /// Nobody would be believed.
    #[error("ca.crt: {0}")]
    Trust(#[from] TrustError),
    /// Certificate and key do not go together, for instance.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("ca.crt: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Credentials that can be used.
pub struct Credentials {
    pem: Pem,
    name: Name,
    validity: Validity,
    trust: Trust,
    chain: Vec<CertificateDer<'static>>,
    client: ClientConfig,
    server: ServerConfig,
    open: ServerConfig,
}

impl Credentials {
    /// The credentials that these are.
    ///
    /// # Errors
    /// One is not what it should be, or they do not go together.
    pub fn new(pem: Pem) -> Result<Self, CredentialsError> {
        let broken = |file| move |source| CredentialsError::Pem { file, source };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem.chain)
            .collect::<Result<_, _>>()
            .map_err(broken("tls.crt"))?;
        let leaf = chain.first().ok_or(CredentialsError::Empty)?;
        let name = Name::of(leaf)?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| CredentialsError::Certificate(error.to_string()))?;
        let validity = Validity::of(&parsed);
        let trust = Trust::from_pem(&pem.authorities)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(broken("tls.key"))?;
        let provider = Arc::new(provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&trust.roots),
            Arc::clone(&provider),
        );
        let server = || {
            ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&TLS13])
        };
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&trust.roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        Ok(Self {
            client: anew(client),
            server: proved_anew(
                server()?
                    .with_client_cert_verifier(verifier.build()?)
                    .with_single_cert(chain.clone(), key.clone_key())?,
            ),
            open: proved_anew(
                server()?
                    .with_no_client_auth()
                    .with_single_cert(chain.clone(), key)?,
            ),
            chain,
            name,
            validity,
            trust,
            pem,
        })
    }

    /// What they are made of.
    pub fn pem(&self) -> &Pem {
        &self.pem
    }

    /// Whose they are.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What tells the certificate from others.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.chain.first().map(Fingerprint::of)
    }

    /// Until when others believe them.
    pub fn not_after(&self) -> SystemTime {
        self.validity.not_after
    }

    /// Whom they believe.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Whether those whom they believe would believe them: they are vouched for, and valid now.
    pub fn stands(&self, now: SystemTime) -> bool {
        let Some((leaf, between)) = self.chain.split_first() else {
            return false;
        };
        let Ok(leaf) = webpki::EndEntityCert::try_from(leaf) else {
            return false;
        };
        let Ok(since) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let verified = leaf.verify_for_usage(
            provider().signature_verification_algorithms.all,
            &self.trust.roots.roots,
            between,
            UnixTime::since_unix_epoch(since),
            KeyUsage::client_auth(),
            None,
            None,
        );
        verified.is_ok()
    }

    /// For dialling, with mutual proof.
    pub(crate) fn client(&self, protocol: &[u8]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }

    /// For listening, with mutual proof.
    pub(crate) fn server(&self, protocol: &[u8]) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }

    /// For listening, where only this end proves who it is.
    pub(crate) fn open(&self, protocol: &[u8]) -> Arc<ServerConfig> {
        let mut config = self.open.clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }
}

impl Trust {
    /// For dialling, where only the other end proves who it is.
    pub(crate) fn client(&self, protocol: &[u8]) -> Result<Arc<ClientConfig>, rustls::Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        let mut config = anew(config);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Arc::new(config))
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

fn anew(mut config: ClientConfig) -> ClientConfig {
    config.resumption = Resumption::disabled();
    config
}

/// Each connection proves anew who is there. Tickets would also lie unread in the socket of a source
/// that only sends, and reset its connection when it closes.
fn proved_anew(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::authority::Authority;
    use crate::key::Key;

    const DAY: Duration = Duration::from_secs(86_400);

    pub(crate) fn authority(now: SystemTime) -> Authority {
        Authority::generate("standalone", Validity::from(now, 10 * DAY)).unwrap()
    }

    pub(crate) fn issued(by: &Authority, name: &Name, believed: &[&Authority]) -> Credentials {
        let key = Key::generate().unwrap();
        let validity = Validity::from(SystemTime::now(), DAY);
        let believed: String = believed.iter().map(|it| it.certificate_pem()).collect();
        let chain = by.issue(name, &key.public().unwrap(), validity).unwrap();
        Credentials::new(Pem {
            chain: chain.into(),
            key: key.pem().into(),
            authorities: believed.into(),
        })
        .unwrap()
    }

    /// The agents of two nodes that believe one authority, which is nobody else's.
    pub(crate) fn pair(nodes: [&str; 2]) -> [Credentials; 2] {
        let authority = authority(SystemTime::now());
        nodes.map(|node| issued(&authority, &Name::agent("standalone", node), &[&authority]))
    }

    #[test]
    fn credentials_stand_while_they_are_valid_and_their_authority_is_believed() {
        let now = SystemTime::now();
        let (old, new) = (authority(now), authority(now));
        let name = Name::agent("standalone", "node-1");
        let believed = issued(&old, &name, &[&new, &old]);
        assert!(believed.stands(now));
        assert!(believed.stands(now + DAY / 2));
        assert!(!believed.stands(now + DAY + Duration::from_secs(2)));
        assert!(!issued(&old, &name, &[&new]).stands(now));
        let left = believed.not_after().duration_since(now).unwrap();
        assert!(left > DAY - Duration::from_secs(60) && left < DAY + Duration::from_secs(60));
        assert_eq!(believed.name(), &name);
    }

    #[test]
    fn an_authority_is_what_its_texts_say_and_nothing_else_is_one() {
        let now = SystemTime::now();
        let (one, other) = (authority(now), authority(now));
        let load = |certificate: &str, key: &str| {
            Authority::load(certificate.as_bytes(), key.as_bytes()).map(|it| it.fingerprint())
        };
        let again = load(one.certificate_pem(), one.key_pem()).unwrap();
        assert_eq!(again, one.fingerprint());
        assert_ne!(again, other.fingerprint());
        let trust = Trust::from_pem(one.certificate_pem().as_bytes()).unwrap();
        assert_eq!(trust.fingerprints(), [again]);

        let key = Key::generate().unwrap();
        let validity = Validity::from(now, DAY);
        let name = Name::operator("standalone");
        let leaf = one.issue(&name, &key.public().unwrap(), validity).unwrap();
        for (certificate, key, why) in [
            (
                one.certificate_pem(),
                other.key_pem(),
                "not that of the certificate",
            ),
            (one.certificate_pem(), "no key", "key does not decode"),
            (
                "no certificate",
                one.key_pem(),
                "certificate does not decode",
            ),
            (&*leaf, &*key.pem(), "not one of an authority"),
        ] {
            let message = load(certificate, key).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
        let endless = ["a234567890"; 25].join(".");
        let endless = Name::agent("standalone", &endless);
        let refused = one.issue(&endless, &key.public().unwrap(), validity);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("cannot be the name")
        );
    }
}
