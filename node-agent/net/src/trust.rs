//! Whose certificates are believed.

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::fingerprint::Fingerprint;

/// The authorities that are believed; two while one replaces the other.
#[derive(Debug, Clone)]
pub struct Trust {
    pub(crate) roots: Arc<RootCertStore>,
    certificates: Vec<CertificateDer<'static>>,
}

/// Why nobody is believed.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The text is broken.
    #[error("it is not PEM: {0}")]
    Pem(rustls::pki_types::pem::Error),
    /// There is none.
    #[error("it holds no certificate")]
    Empty,
    /// One cannot be used.
    #[error("a certificate in it: {0}")]
    Certificate(rustls::Error),
}

impl Trust {
    /// The authorities whose certificates stand in a PEM text, one after the other.
    ///
    /// # Errors
    /// There is none, or one that is not what it should be.
    pub fn from_pem(bundle: &[u8]) -> Result<Self, TrustError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(bundle)
            .collect::<Result<_, _>>()
            .map_err(TrustError::Pem)?;
        if certificates.is_empty() {
            return Err(TrustError::Empty);
        }
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots
                .add(certificate.clone())
                .map_err(TrustError::Certificate)?;
        }
        Ok(Self {
            roots: Arc::new(roots),
            certificates,
        })
    }

    /// Which they are, as they stand there.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.certificates.iter().map(Fingerprint::of).collect()
    }

    /// Each of them as PEM, with its fingerprint.
    pub fn certificates(&self) -> impl Iterator<Item = (Fingerprint, String)> {
        let each = self.certificates.iter();
        each.map(|certificate| (Fingerprint::of(certificate), crate::pem(certificate)))
    }
}
