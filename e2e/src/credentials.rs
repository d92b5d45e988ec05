//! What the administrator of a cluster can make of an installation's identity: certificates, with the
//! authority in its Secret, and tokens of anybody.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use icbd_net::{Authority, Credentials, Fingerprint, Key, Name, Pem, Trust, Validity};
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use kube::Resource;
use kube::api::{Api, PostParams};

use crate::stranger::Shown;
use crate::{Cluster, Failure, Outcome, SYSTEM_NAMESPACE};

/// The Secret in which the operator keeps the authority that it makes.
pub const CA_SECRET: &str = "icbd-ca";
/// The ConfigMap that says whom agents believe.
pub const TRUST: &str = "icbd-trust";

/// An installation's authority, in the hands of its administrator.
pub struct Installation {
    /// What its certificates are called after.
    pub trust_domain: String,
    /// Who vouches for them.
    pub authority: Authority,
}

impl Cluster {
    /// The product's installation, by the authority that signs at the moment.
    ///
    /// # Errors
    /// When there is none.
    pub async fn installation(&self) -> Outcome<Installation> {
        let secret = self.secrets().get(CA_SECRET).await?;
        let trust_domain = format!("{SYSTEM_NAMESPACE}.icbd");
        let authority = authority_in(&secret)?;
        Ok(Installation {
            trust_domain,
            authority,
        })
    }

    /// The Secrets in the product's namespace.
    pub fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
    }

    /// The ConfigMaps in the product's namespace.
    pub fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE)
    }

    /// The authority that signs at the moment; `None` while there is no Secret.
    ///
    /// # Errors
    /// When what is in the Secret is none.
    pub async fn signing(&self) -> Outcome<Option<Fingerprint>> {
        let secret = self.secrets().get_opt(CA_SECRET).await?;
        let authority = secret.as_ref().map(authority_in).transpose()?;
        Ok(authority.map(|authority| authority.fingerprint()))
    }

    /// The authorities that agents are told to believe; none while there is no ConfigMap.
    ///
    /// # Errors
    /// When it says nothing of use.
    pub async fn trusted(&self) -> Outcome<Vec<Fingerprint>> {
        let Some(map) = self.config_maps().get_opt(TRUST).await? else {
            return Ok(Vec::new());
        };
        let bundle = map.data.unwrap_or_default().remove("ca.crt");
        let trust = Trust::from_pem(bundle.unwrap_or_default().as_bytes());
        let trust = trust.map_err(|error| Failure::Unexpected(format!("{TRUST}: {error}")))?;
        Ok(trust.fingerprints())
    }

    /// A token of a ServiceAccount, of that pod if one is given.
    ///
    /// # Errors
    /// When the API server does not make it.
    pub async fn token(
        &self,
        (namespace, account): (&str, &str),
        audience: &str,
        pod: Option<&Pod>,
    ) -> Outcome<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let bound = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.meta().name.clone(),
            uid: pod.meta().uid.clone(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref: bound,
                expiration_seconds: Some(600),
            },
            ..TokenRequest::default()
        };
        let made = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        let token = made.status.map(|status| status.token);
        token.ok_or_else(|| Failure::Unexpected(format!("no token of {namespace}/{account}")))
    }
}

/// The authority that a Secret holds.
///
/// # Errors
/// When it holds none.
fn authority_in(secret: &Secret) -> Outcome<Authority> {
    let empty = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&empty);
    let text = |key: &str| data.get(key).map_or(&[][..], |ByteString(bytes)| bytes);
    Authority::load(text("tls.crt"), text("tls.key"))
        .map_err(|error| Failure::Unexpected(format!("{:?}: {error}", secret.metadata.name)))
}

impl Installation {
    /// An installation that the test makes up, with an authority of its own.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn made_up(trust_domain: &str) -> Outcome<Self> {
        let validity = Validity::from(SystemTime::now(), Duration::from_secs(3600));
        Ok(Self {
            trust_domain: trust_domain.to_owned(),
            authority: Authority::generate(trust_domain, validity).map_err(unexpected)?,
        })
    }

    /// A certificate, valid now.
    ///
    /// # Errors
    /// When no certificate can carry the name.
    pub fn vouches_for(&self, name: &Name) -> Outcome<Shown> {
        self.vouches_until(name, SystemTime::now() + Duration::from_secs(3600))
    }

    /// A certificate that is valid until then.
    ///
    /// # Errors
    /// When no certificate can carry the name.
    pub fn vouches_until(&self, name: &Name, not_after: SystemTime) -> Outcome<Shown> {
        let key = Key::generate().map_err(unexpected)?;
        let validity = Validity {
            not_before: SystemTime::now() - Duration::from_secs(7200),
            not_after,
        };
        let public = key.public().map_err(unexpected)?;
        let chain = self.authority.issue(name, &public, validity);
        Ok(Shown {
            chain: chain.map_err(unexpected)?,
            key: key.pem(),
        })
    }

    /// The name of the operator.
    pub fn operator(&self) -> Name {
        Name::operator(&self.trust_domain)
    }

    /// The name of a node's agent.
    pub fn agent(&self, node: &str) -> Name {
        Name::agent(&self.trust_domain, node)
    }

    /// Whose a certificate is that this installation's authority vouches for.
    ///
    /// # Errors
    /// When it does not.
    pub fn name_in(&self, shown: &Shown) -> Outcome<Name> {
        let credentials = Credentials::new(Pem {
            chain: shown.chain.clone().into_bytes(),
            key: shown.key.clone().into_bytes(),
            authorities: self.authority.certificate_pem().into(),
        })
        .map_err(unexpected)?;
        if !credentials.stands(SystemTime::now()) {
            return Err(unexpected("the authority does not vouch for it"));
        }
        Ok(credentials.name().clone())
    }
}

fn unexpected(error: impl std::fmt::Display) -> Failure {
    Failure::Unexpected(error.to_string())
}
