//! The names of agents, as certificates carry them. Whether a certificate can be believed at all is
//! not decided here.

use std::fmt;

use rustls::pki_types::{CertificateDer, ServerName};

/// An agent's name: its node, in one installation.
///
/// A certificate says it twice. As its one URI SAN, `spiffe://<trust domain>/agent/<node>`, which is
/// what is compared; and as the DNS SAN `<node>.agent.<trust domain>`, so that the verification that
/// every TLS stack has refuses another node's certificate by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AgentName {
    /// The installation whose certificate authority vouches for the agent.
    trust_domain: String,
    node: String,
}

/// Why a certificate is not that of an agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NameError {
    #[error("it does not decode: {0}")]
    Malformed(webpki::Error),
    #[error("it has {0} URI names and not one")]
    NotOne(usize),
    #[error("its name {0:?} is not that of an agent")]
    NotAnAgent(String),
}

impl AgentName {
    pub(super) fn new(trust_domain: &str, node: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            node: node.to_owned(),
        }
    }

    /// The agent of another node in the same installation.
    pub(crate) fn sibling(&self, node: &str) -> Self {
        Self::new(&self.trust_domain, node)
    }

    /// Whom a certificate names.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, NameError> {
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(NameError::Malformed)?;
        let uris: Vec<_> = certificate.valid_uri_names().collect();
        match uris[..] {
            [uri] => Self::from_uri(uri).ok_or_else(|| NameError::NotAnAgent(uri.to_owned())),
            _ => Err(NameError::NotOne(uris.len())),
        }
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (trust_domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let node = path.strip_prefix("agent/")?;
        let is_name = |name: &str| {
            let plain = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte)
            };
            !name.is_empty() && name.bytes().all(plain)
        };
        (is_name(trust_domain) && is_name(node)).then(|| Self::new(trust_domain, node))
    }

    /// The node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// The DNS name that its certificate must be valid for; `None` if it cannot be one, as DNS
    /// names have at most 253 characters.
    pub(crate) fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.dns()).ok()
    }

    /// The DNS SAN.
    pub(crate) fn dns(&self) -> String {
        format!("{}.agent.{}", self.node, self.trust_domain)
    }
}

/// The URI SAN.
impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/agent/{}", self.trust_domain, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_agents_uri_is_an_agents_name() {
        let name = AgentName::from_uri("spiffe://icbd.example/agent/node-1.rack").unwrap();
        assert_eq!(name.node(), "node-1.rack");
        assert_eq!(name.to_string(), "spiffe://icbd.example/agent/node-1.rack");
        assert_eq!(name.dns(), "node-1.rack.agent.icbd.example");
        for uri in [
            "",
            "spiffe://icbd.example/operator",
            "spiffe://icbd.example/agent",
            "spiffe://icbd.example/agent/",
            "spiffe:///agent/node-1",
            "spiffe://icbd.example/agent/node-1/",
            "spiffe://icbd.example/agent/node-1/agent/node-2",
            "spiffe://icbd.example/agent/Node-1",
            "spiffe://icbd.example/agent/node-1\n",
            "spiffe://icbd.example:1/agent/node-1",
            "https://icbd.example/agent/node-1",
        ] {
            assert_eq!(AgentName::from_uri(uri), None, "{uri:?}");
        }
    }

    #[test]
    fn a_name_beyond_what_dns_can_say_has_no_server_name() {
        let name = AgentName::from_uri("spiffe://icbd/agent/n").unwrap();
        assert!(name.server_name().is_some());
        let long = ["a234567890"; 25].join(".");
        assert!(name.sibling(&long).server_name().is_none());
        assert!(name.sibling("").server_name().is_none());
        assert!(name.sibling("a/b").server_name().is_none());
    }
}
