//! Keys of certificates: ECDSA on the curve P-256, which every TLS stack has.

use std::fmt;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm};

/// How long an uncompressed point is: a tag and two coordinates (SEC 1, 2.3.3).
const POINT: usize = 65;
/// The tag of an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A private key. Only whoever asks for its PEM text learns it.
pub struct Key(pub(crate) KeyPair);

/// A public key, as an uncompressed point.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; POINT]);

/// What was given is no public key.
#[derive(Debug, thiserror::Error)]
#[error(
    "a public key is an uncompressed point of P-256: 65 bytes that begin with 4; these are {length}"
)]
pub struct NoPublicKey {
    length: usize,
}

impl Key {
    /// A new key.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Self)
    }

    /// The public part, to be certified.
    ///
    /// # Errors
    /// Never, for a key that was generated here.
    pub fn public(&self) -> Result<PublicKey, NoPublicKey> {
        PublicKey::from_bytes(self.0.der_bytes())
    }

    /// The key itself: PKCS #8 as PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}

impl PublicKey {
    /// Takes a key from outside.
    ///
    /// # Errors
    /// It has not the shape of one. Whether it is a point of the curve is not looked at: a
    /// certificate for what is none is of use to nobody.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NoPublicKey> {
        match <[u8; POINT]>::try_from(bytes) {
            Ok(point) if point[0] == UNCOMPRESSED => Ok(Self(point)),
            _ => Err(NoPublicKey {
                length: bytes.len(),
            }),
        }
    }

    /// The point.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PublicKey")
    }
}
