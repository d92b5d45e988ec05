//! A certificate authority: what vouches for the names of one installation. Where its key is kept,
//! and when it is replaced, is the operator's business.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fingerprint::Fingerprint;
use crate::key::{Key, PublicKey};
use crate::name::Name;

/// Clocks of nodes differ: what is issued is valid from so long before; a tenth of its life where that
/// is less, for when it is replaced is reckoned from its whole life.
const SKEW: Duration = Duration::from_secs(300);

/// From when to when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From here on; whole seconds count.
    pub not_before: SystemTime,
    /// Until here.
    pub not_after: SystemTime,
}

/// A certificate authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key_pem: String,
    validity: Validity,
}

/// Why there is no authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// It is no certificate.
    #[error("the certificate does not decode: {0}")]
    Certificate(String),
    /// The certificate is of another kind.
    #[error("the certificate is not one of an authority: {0}")]
    NotAnAuthority(&'static str),
    /// It is no private key.
    #[error("the key does not decode: {0}")]
    Key(rcgen::Error),
    /// Key and certificate do not belong together.
    #[error("the key is not that of the certificate")]
    OtherKey,
    /// It does not sign.
    #[error("cannot sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// There are names that no certificate can carry.
    #[error("{0} cannot be the name in a certificate: as a DNS name it would be {1:?}")]
    Name(Name, String),
}

impl Validity {
    /// From now on for so long; clocks that are a little behind see it as valid too.
    pub fn from(now: SystemTime, lifetime: Duration) -> Self {
        Self {
            not_before: now - SKEW.min(lifetime / 10),
            not_after: now + lifetime,
        }
    }

    /// Of a certificate.
    pub(crate) fn of(certificate: &X509Certificate<'_>) -> Self {
        let time = |seconds: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let validity = certificate.validity();
        Self {
            not_before: time(validity.not_before.timestamp()),
            not_after: time(validity.not_after.timestamp()),
        }
    }
}

impl Authority {
    /// A new authority for an installation, which vouches for itself.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate(trust_domain: &str, validity: Validity) -> Result<Self, AuthorityError> {
        let mut params = params(validity);
        let mut called = DistinguishedName::new();
        called.push(DnType::CommonName, format!("icbd {trust_domain}"));
        params.distinguished_name = called;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = Key::generate()?;
        let certificate = params.self_signed(&key.0)?;
        Self::load(certificate.pem().as_bytes(), key.pem().as_bytes())
    }

    /// The authority with this certificate, the first in `certificate`, and this key, both PEM.
    /// Whether it is still valid is not looked at.
    ///
    /// # Errors
    /// They are not what they should be, or do not belong together.
    pub fn load(certificate: &[u8], key: &[u8]) -> Result<Self, AuthorityError> {
        let undecoded = |why: &dyn std::fmt::Display| AuthorityError::Certificate(why.to_string());
        let der = CertificateDer::from_pem_slice(certificate).map_err(|error| undecoded(&error))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| undecoded(&error))?;
        check(&parsed)?;
        let key_pem = String::from_utf8_lossy(key).into_owned();
        let key = KeyPair::from_pem(&key_pem).map_err(AuthorityError::Key)?;
        if *parsed.public_key().subject_public_key.data != *key.der_bytes() {
            return Err(AuthorityError::OtherKey);
        }
        Ok(Self {
            validity: Validity::of(&parsed),
            certificate_pem: crate::pem(&der),
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            certificate: der,
            key_pem,
        })
    }

    /// Its certificate: what whoever believes it has to know.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key: whoever knows it is the authority.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What tells it from others.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }

    /// From when to when what it vouches for can be believed.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// A certificate that says whose this key is, for both ends of a connection; PEM.
    ///
    /// # Errors
    /// The name is one that no certificate can carry.
    pub fn issue(
        &self,
        name: &Name,
        key: &PublicKey,
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        let dns = name.dns();
        let nameless = || AuthorityError::Name(name.clone(), dns.clone());
        if name.server_name().is_none() {
            return Err(nameless());
        }
        let mut params = params(validity);
        params.subject_alt_names = vec![
            SanType::DnsName(dns.as_str().try_into().map_err(|_| nameless())?),
            SanType::URI(name.to_string().try_into().map_err(|_| nameless())?),
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

/// When to renew a certificate: at two thirds of what is left of it, give or take by `chance`, from 0
/// to 1, so that those who began together do not renew together.
pub fn renewal_at(now: SystemTime, not_after: SystemTime, chance: f64) -> SystemTime {
    let left = not_after.duration_since(now).unwrap_or_default();
    now + left.mul_f64(0.6 + chance.clamp(0.0, 1.0) * 0.13)
}

fn params(validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params
}

/// Whether a certificate lets its key sign others.
fn check(certificate: &X509Certificate<'_>) -> Result<(), AuthorityError> {
    let malformed = |error: x509_parser::error::X509Error| {
        AuthorityError::Certificate(format!("its extensions: {error}"))
    };
    let is_ca = certificate
        .basic_constraints()
        .map_err(malformed)?
        .is_some_and(|constraints| constraints.value.ca);
    if !is_ca {
        let why = "it does not say CA:TRUE in its basic constraints";
        return Err(AuthorityError::NotAnAuthority(why));
    }
    let usage = certificate.key_usage().map_err(malformed)?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        let why = "its key usage leaves out keyCertSign";
        return Err(AuthorityError::NotAnAuthority(why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_about_two_thirds_of_its_life() {
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        for chance in [0.0, 0.3, 1.0] {
            let at = renewal_at(now, now + 3 * hour, chance);
            let at = at.duration_since(now).unwrap();
            assert!(at > hour + hour / 2 && at < 2 * hour + hour / 2, "{at:?}");
        }
        assert_eq!(renewal_at(now, now - hour, 1.0), now, "it is over");
    }
}
