//! What tells certificates apart, for people and programs.

use std::fmt;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;

/// SHA-256 of a certificate's DER form, in lower-case hexadecimal digits; `openssl x509 -fingerprint
/// -sha256` shows the same in other spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = digest::digest(&digest::SHA256, certificate);
        Self(digest.as_ref().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// One that somebody has told.
    pub fn told(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
