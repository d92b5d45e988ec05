//! Why somebody is not let in: one word for metrics, and a sentence for the log. What the stranger
//! hears is another matter, and says less.

use std::error::Error as _;
use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

/// Why a connection was refused.
#[derive(Debug)]
pub struct Refusal {
    /// One word, one of few: what metrics count by.
    pub reason: &'static str,
    /// What there is to know about it.
    pub why: String,
}

impl Refusal {
    /// Refused for this reason.
    pub fn new(reason: &'static str, why: impl Into<String>) -> Self {
        Self {
            reason,
            why: why.into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refusal {}

/// Why a handshake failed.
impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        let reason = match (tls, error.kind()) {
            (Some(tls), _) => reason(tls),
            (None, io::ErrorKind::TimedOut) => "TooSlow",
            (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => "HungUp",
            (None, io::ErrorKind::InvalidData) => "NotTls",
            (None, _) => "Broken",
        };
        let why = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self { reason, why }
    }
}

fn reason(error: &TlsError) -> &'static str {
    match error {
        TlsError::NoCertificatesPresented => "NoCertificate",
        TlsError::InvalidCertificate(certificate) => match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => "ExpiredCertificate",
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "UnknownAuthority",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "OtherName"
            }
            _ => "BadCertificate",
        },
        TlsError::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError,
        ) => "RefusedByPeer",
        TlsError::NoApplicationProtocol | TlsError::PeerIncompatible(_) => "OtherProtocol",
        TlsError::InvalidMessage(_) | TlsError::InappropriateMessage { .. } => "NotTls",
        _ => "BadHandshake",
    }
}
