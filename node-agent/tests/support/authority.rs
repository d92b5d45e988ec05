//! Certificate authorities, and what they give agents, operators and strangers.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use icbd_net::{Credentials, Fingerprint, Identity, Name, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;

/// The installation that tests are of, in certificates.
pub const TRUST_DOMAIN: &str = "icbd.test";

/// The authority of all in a test who need no other.
pub static USUAL: LazyLock<Authority> = LazyLock::new(|| Authority::new("usual"));

pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// A certificate with these names.
    pub fn issue(&self, uri: &str, dns: &str) -> Issued {
        let mut params = CertificateParams::new([dns.to_owned()]).unwrap();
        params.distinguished_name = called(dns);
        let uri = SanType::URI(uri.try_into().unwrap());
        params.subject_alt_names.push(uri);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { certificate, key }
    }

    /// What the agent on `node` shows.
    pub fn agent(&self, node: &str) -> Issued {
        self.issue(
            &format!("spiffe://{TRUST_DOMAIN}/agent/{node}"),
            &format!("{node}.agent.{TRUST_DOMAIN}"),
        )
    }

    /// What somebody of this name shows and believes.
    pub fn credentials(&self, name: &Name) -> Credentials {
        let Issued { certificate, key } = self.issue(&name.to_string(), &name.dns());
        let credentials = Credentials::new(Pem {
            chain: certificate.pem().into(),
            key: key.serialize_pem().into(),
            authorities: self.0.pem().into(),
        });
        credentials.unwrap()
    }

    /// What an operator shows and believes.
    pub fn operator(&self) -> Identity {
        Identity::new(self.credentials(&Name::operator(TRUST_DOMAIN)))
    }

    /// The identity directory of the agent on `node`.
    pub fn identity(&self, node: &str) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        self.renew(dir.path(), node, &[self]);
        dir
    }

    /// Gives the agent on `node` a new identity, with which it believes these authorities.
    pub fn renew(&self, dir: &Path, node: &str, believed: &[&Self]) -> Fingerprint {
        let Issued { certificate, key } = self.agent(node);
        let believed: String = believed.iter().map(|authority| authority.0.pem()).collect();
        fs::write(dir.join("ca.crt"), believed).unwrap();
        fs::write(dir.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(dir.join("tls.key"), key.serialize_pem()).unwrap();
        Fingerprint::of(certificate.der())
    }

    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }
}

impl Issued {
    pub fn for_tls(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).unwrap();
        (vec![self.certificate.der().clone()], key)
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}
