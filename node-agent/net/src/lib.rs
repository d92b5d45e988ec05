//! Who is at the other end of a connection, and who is let in: names, certificates and the authority
//! that issues them, mutual TLS, and doors that a flood does not break. Operator and agents meet here
//! as they meet in icbd-wire, which says what they then tell each other.
//!
//! Not known here: where credentials come from and are kept, and which peer may do what.

mod authority;
mod credentials;
pub mod door;
mod fingerprint;
pub mod grpc;
mod identity;
mod key;
mod name;
mod pauses;
mod refusal;
mod refused;
mod stream;
#[cfg(test)]
mod tests;
pub mod tls;
mod trust;

use std::time::Duration;

use rustls::pki_types::CertificateDer;

pub use authority::{Authority, AuthorityError, Validity, renewal_at};
pub use credentials::{Credentials, CredentialsError, Pem};
pub use fingerprint::Fingerprint;
pub use identity::Identity;
pub use key::{Key, NoPublicKey, PublicKey};
pub use name::{Name, NameError, Role, is_name};
pub use pauses::Pauses;
pub use refusal::Refusal;
pub use refused::Refused;
pub use stream::TlsStream;
pub use trust::{Trust, TrustError};

/// How long a peer may take for the handshake.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer that was told why gets to read it before the connection is gone.
pub const PARTING: Duration = Duration::from_secs(2);

/// A certificate as PEM (RFC 7468).
pub(crate) fn pem(certificate: &CertificateDer<'_>) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", certificate.to_vec()), lines)
}
