//! The names of operator and agents, as certificates carry them. Whether a certificate can be believed
//! at all is not decided here.

use std::fmt;

use rustls::pki_types::{CertificateDer, ServerName};

/// What somebody is in an installation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one that commands.
    Operator,
    /// The agent of the node of this name.
    Agent(String),
}

/// Who somebody is, in one installation.
///
/// A certificate says it twice. As its one URI SAN, `spiffe://<trust domain>/operator` or
/// `spiffe://<trust domain>/agent/<node>`, which is what is compared; and as the DNS SAN
/// `operator.<trust domain>` or `<node>.agent.<trust domain>`, so that the verification that every
/// TLS stack has refuses somebody else's certificate by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Name {
    trust_domain: String,
    role: Role,
}

/// Why a certificate is nobody's of an installation.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// It is no certificate.
    #[error("it does not decode: {0}")]
    Malformed(webpki::Error),
    /// It says who it is in none or several ways.
    #[error("it has {0} URI names and not one")]
    NotOne(usize),
    /// It is somebody else's.
    #[error("its name {0:?} is neither an operator's nor an agent's")]
    Unknown(String),
}

impl Name {
    /// The operator of an installation.
    pub fn operator(trust_domain: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            role: Role::Operator,
        }
    }

    /// The agent of a node in an installation.
    pub fn agent(trust_domain: &str, node: &str) -> Self {
        Self {
            trust_domain: trust_domain.to_owned(),
            role: Role::Agent(node.to_owned()),
        }
    }

    /// The installation whose certificate authority vouches for it.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What it is there.
    pub fn role(&self) -> &Role {
        &self.role
    }

    /// The node, if it is an agent.
    pub fn node(&self) -> Option<&str> {
        match &self.role {
            Role::Operator => None,
            Role::Agent(node) => Some(node),
        }
    }

    /// Whom a certificate names.
    ///
    /// # Errors
    /// It names nobody of an installation, or several.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NameError> {
        let certificate =
            webpki::EndEntityCert::try_from(certificate).map_err(NameError::Malformed)?;
        let uris: Vec<_> = certificate.valid_uri_names().collect();
        match uris[..] {
            [uri] => Self::from_uri(uri).ok_or_else(|| NameError::Unknown(uri.to_owned())),
            _ => Err(NameError::NotOne(uris.len())),
        }
    }

    fn from_uri(uri: &str) -> Option<Self> {
        let (trust_domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let name = match path.strip_prefix("agent/") {
            Some(node) => Self::agent(trust_domain, node),
            None if path == "operator" => Self::operator(trust_domain),
            None => return None,
        };
        let is_named = is_name(trust_domain) && name.node().is_none_or(is_name);
        is_named.then_some(name)
    }

    /// The DNS name that its certificate must be valid for; `None` if it cannot be one, as DNS
    /// names have at most 253 characters.
    pub fn server_name(&self) -> Option<ServerName<'static>> {
        ServerName::try_from(self.dns()).ok()
    }

    /// The DNS SAN.
    pub fn dns(&self) -> String {
        let domain = &self.trust_domain;
        match &self.role {
            Role::Operator => format!("operator.{domain}"),
            Role::Agent(node) => format!("{node}.agent.{domain}"),
        }
    }
}

/// Whether this can be a trust domain, or a node in a name: lower-case letters, digits, `-`, `.`, `_`.
pub fn is_name(text: &str) -> bool {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
    !text.is_empty() && text.bytes().all(plain)
}

/// The URI SAN.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.role {
            Role::Operator => f.write_str("operator"),
            Role::Agent(node) => write!(f, "agent/{node}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_an_agent_the_operator_or_nobody() {
        let name = Name::from_uri("spiffe://icbd.example/agent/node-1.rack").unwrap();
        assert_eq!(name.node(), Some("node-1.rack"));
        assert_eq!(name.to_string(), "spiffe://icbd.example/agent/node-1.rack");
        assert_eq!(name.dns(), "node-1.rack.agent.icbd.example");
        let name = Name::from_uri("spiffe://icbd.example/operator").unwrap();
        assert_eq!(name, Name::operator("icbd.example"));
        assert_eq!(name.to_string(), "spiffe://icbd.example/operator");
        assert_eq!(name.dns(), "operator.icbd.example");
        for uri in [
            "",
            "spiffe://icbd.example/operators",
            "spiffe://icbd.example/operator/",
            "spiffe://icbd.example/agent",
            "spiffe://icbd.example/agent/",
            "spiffe:///agent/node-1",
            "spiffe:///operator",
            "spiffe://icbd.example/agent/node-1/",
            "spiffe://icbd.example/agent/node-1/agent/node-2",
            "spiffe://icbd.example/agent/Node-1",
            "spiffe://icbd.example/agent/node-1\n",
            "spiffe://icbd.example:1/agent/node-1",
            "https://icbd.example/agent/node-1",
        ] {
            assert_eq!(Name::from_uri(uri), None, "{uri:?}");
        }
    }

    #[test]
    fn a_name_beyond_what_dns_can_say_has_no_server_name() {
        assert!(Name::agent("icbd", "n").server_name().is_some());
        let long = ["a234567890"; 25].join(".");
        for node in [&*long, "", "a/b"] {
            assert!(Name::agent("icbd", node).server_name().is_none());
        }
    }
}
