//! An identity from the operator: a key that is made here and never leaves the process, and a
//! certificate for it, for which this agent's pod is vouched for by Kubernetes.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use icbd_net::{Credentials, Identity, Key, Name, Pauses, Pem, Trust, grpc, renewal_at};
use icbd_wire::enrolment::EnrolRequest;
use icbd_wire::enrolment::enrolment_client::EnrolmentClient;
use tokio::fs;
use tokio::time::{Instant, sleep};

use super::{Obstacle, READ_AGAIN, Standing, renewed, unusable};
use crate::error::{Error, Result};

/// How long the operator may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Between tries that fail.
fn pauses() -> Pauses {
    Pauses::new(Duration::from_millis(500), Duration::from_secs(10))
}

/// The file with the authorities' certificates.
const AUTHORITIES: &str = "ca.crt";

/// How to get a certificate.
pub(crate) struct Enrolment {
    /// `HOST:PORT` of the operator.
    pub(crate) at: String,
    /// The directory with the authorities that are believed: a mounted ConfigMap.
    pub(crate) trust_dir: PathBuf,
    /// The file with the token by which Kubernetes vouches for this pod.
    pub(crate) token_file: PathBuf,
    /// The installation.
    pub(crate) trust_domain: String,
    pub(crate) node: String,
}

impl Enrolment {
    /// Asks for a certificate until there is one.
    pub(super) async fn first(&self, standing: &Standing) -> Credentials {
        let mut pauses = pauses();
        loop {
            let enrolled = match self.authorities().await {
                Ok(authorities) => self.enrol(authorities).await,
                Err(error) => Err(error),
            };
            match enrolled {
                Ok(credentials) => {
                    renewed(&credentials);
                    return credentials;
                }
                Err(error) => {
                    tracing::warn!(%error, "this agent has no certificate yet");
                    standing.lack(error.to_string());
                }
            }
            sleep(pauses.after_failure()).await;
        }
    }

    /// Renews the certificate at two thirds of its life, and when the authorities that are believed
    /// no longer vouch for it; takes new authorities into use at once.
    pub(super) async fn keep(&self, identity: &Identity) {
        let mut pauses = pauses();
        let mut renew_at = renewal(&identity.current());
        let mut obstacle = Obstacle::default();
        loop {
            sleep(READ_AGAIN).await;
            match self.believing(&identity.current()).await {
                Ok(None) => obstacle.gone(),
                Ok(Some(credentials)) => {
                    tracing::info!("other authorities are believed from now on");
                    if !credentials.stands(SystemTime::now()) {
                        renew_at = Instant::now();
                    }
                    identity.replace(credentials);
                    obstacle.gone();
                }
                Err(error) => {
                    obstacle.met(&error, "the authorities that were believed still are");
                }
            }
            if Instant::now() < renew_at {
                continue;
            }
            let authorities = identity.current().pem().authorities.clone();
            match self.enrol(authorities).await {
                Ok(credentials) => {
                    renew_at = renewal(&credentials);
                    renewed(&credentials);
                    identity.replace(credentials);
                    pauses.start_over();
                }
                Err(error) => {
                    let pause = pauses.after_failure();
                    let counts = identity.current().stands(SystemTime::now());
                    tracing::warn!(%error, counts, "the certificate was not renewed; trying again");
                    renew_at = Instant::now() + pause;
                }
            }
        }
    }

    /// The credentials in use with the authorities that are to be believed now; `None` if those are
    /// the same.
    async fn believing(&self, used: &Credentials) -> Result<Option<Credentials>> {
        let authorities = self.authorities().await?;
        let pem = used.pem();
        if authorities == pem.authorities {
            return Ok(None);
        }
        let believing = Pem {
            authorities,
            ..pem.clone()
        };
        let credentials = Credentials::new(believing);
        credentials.map(Some).map_err(unusable(self.using()))
    }

    /// What an error about the authorities says it was about.
    fn using(&self) -> String {
        let path = self.trust_dir.join(AUTHORITIES);
        format!("use the authorities in {}", path.display())
    }

    async fn authorities(&self) -> Result<Vec<u8>> {
        let path = self.trust_dir.join(AUTHORITIES);
        let doing = format!("read the authorities in {}", path.display());
        fs::read(&path).await.map_err(Error::io(doing))
    }

    async fn enrol(&self, authorities: Vec<u8>) -> Result<Credentials> {
        let doing = || format!("get a certificate from {}", self.at);
        let path = self.token_file.display();
        let token = fs::read_to_string(&self.token_file)
            .await
            .map_err(Error::io(format!("read the token in {path}")))?;
        let trust = Trust::from_pem(&authorities).map_err(unusable(self.using()))?;
        let key = Key::generate().map_err(unusable("make a key".to_owned()))?;
        let request = EnrolRequest {
            token: token.trim().to_owned(),
            node: self.node.clone(),
            public_key: key.public().map_err(unusable(doing()))?.as_bytes().to_vec(),
        };
        let endpoint = grpc::endpoint().connect_timeout(ANSWER).timeout(ANSWER);
        let operator = Name::operator(&self.trust_domain);
        let channel = grpc::dial_unproved(endpoint, self.at.clone(), trust, operator)
            .await
            .map_err(|error| unusable(doing())(grpc::explain(&error)))?;
        let enrolled = EnrolmentClient::new(channel).enrol(request).await;
        let enrolled = enrolled.map_err(|status| unusable(doing())(status.message().to_owned()))?;
        let credentials = Credentials::new(Pem {
            chain: enrolled.into_inner().chain.into_bytes(),
            key: key.pem().into_bytes(),
            authorities,
        })
        .map_err(unusable(doing()))?;
        let wanted = Name::agent(&self.trust_domain, &self.node);
        if *credentials.name() != wanted {
            let name = credentials.name();
            let why = format!("it is one for {name}, not for {wanted}");
            return Err(Error::io(doing())(io::Error::other(why)));
        }
        Ok(credentials)
    }
}

/// When to renew a certificate.
fn renewal(credentials: &Credentials) -> Instant {
    let now = SystemTime::now();
    let at = renewal_at(now, credentials.not_after(), fastrand::f64());
    Instant::now() + at.duration_since(now).unwrap_or_default()
}
