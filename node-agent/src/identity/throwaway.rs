//! Identities for transfers between two ends of one process: made in memory, by an authority that
//! nobody else knows, and gone with the process.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

use super::{AgentName, Credentials, Identity, Pem, unusable};
use crate::error::Result;

/// The installation that such agents are of. They trust nobody of another of this name: each pair
/// has an authority of its own.
const TRUST_DOMAIN: &str = "standalone";

/// Two agents that trust each other, and nobody else.
///
/// # Errors
/// A name that no DNS name can be made of.
pub(crate) fn pair(nodes: [&str; 2]) -> Result<[Identity; 2]> {
    let made = Authority::new().and_then(|authority| {
        let [a, b] = nodes.map(|node| authority.identity(node));
        Ok([a?, b?])
    });
    made.map_err(unusable("make identities for this process".into()))
}

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self(issuer))
    }

    fn identity(&self, node: &str) -> Result<Identity, Error> {
        let name = AgentName::new(TRUST_DOMAIN, node);
        // It is valid for as long as its key lives, whatever becomes of the clock: a process.
        let mut params = CertificateParams::new([name.dns()])?;
        params.distinguished_name = DistinguishedName::new();
        let uri = SanType::URI(name.to_string().try_into()?);
        params.subject_alt_names.push(uri);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate()?;
        let pem = Pem {
            chain: params.signed_by(&key, &self.0)?.pem().into_bytes(),
            key: key.serialize_pem().into_bytes(),
            authorities: self.0.pem().into_bytes(),
        };
        let credentials = Credentials::new(pem, node)?;
        Ok(Identity::of(node, None, credentials))
    }
}
