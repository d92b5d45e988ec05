//! Identities for transfers between two ends of one process: made in memory, by an authority that
//! nobody else knows, and gone with the process.

use std::time::{Duration, SystemTime};

use icbd_net::{Authority, Credentials, Identity, Key, Name, Pem, Validity};

use super::unusable;
use crate::error::Result;

/// The installation that such agents are of. They trust nobody of another of this name: each pair
/// has an authority of its own.
const TRUST_DOMAIN: &str = "standalone";

/// It is valid for as long as its key lives, whatever becomes of the clock: a process.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Two agents that trust each other, and nobody else.
///
/// # Errors
/// A name that no DNS name can be made of.
pub(crate) fn pair(nodes: [&str; 2]) -> Result<[Identity; 2]> {
    let made = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let validity = Validity {
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now() + CENTURY,
        };
        let authority = Authority::generate(TRUST_DOMAIN, validity)?;
        let [a, b] = nodes.map(
            |node| -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
                let key = Key::generate()?;
                let name = Name::agent(TRUST_DOMAIN, node);
                let credentials = Credentials::new(Pem {
                    chain: authority.issue(&name, &key.public()?, validity)?.into(),
                    key: key.pem().into(),
                    authorities: authority.certificate_pem().into(),
                })?;
                Ok(Identity::new(credentials))
            },
        );
        Ok([a?, b?])
    };
    made().map_err(unusable("make identities for this process".into()))
}
