//! Leadership by Lease: one operator acts, the others wait. The Lease also yields the epoch by which
//! agents tell a leader from one that was paused and overtaken.
//!
//! As other Kubernetes programs do it: a Lease counts as held until its `renewTime` has not changed
//! for its duration *on the observer's own clock*, so that no two clocks are compared. A leader that
//! cannot renew for two thirds of the duration stops; whoever calls is to end the process then.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

const DURATION: Duration = Duration::from_secs(15);
const RENEW_WITHIN: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);

/// When a leader became one; a later one is higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Epoch {
    /// Unix seconds of the Lease's creation.
    pub(crate) created: i64,
    /// How often it has changed hands since.
    pub(crate) transitions: u64,
}

/// Leadership is over.
#[derive(Debug, Error)]
pub(crate) enum Lost {
    /// Somebody else holds the Lease.
    #[error("the Lease is held by {0:?} now")]
    Overtaken(String),
    /// It could not be renewed in time.
    #[error("the Lease could not be renewed in time: {0}")]
    NotRenewed(String),
}

/// One contender for one Lease.
pub(crate) struct Contender {
    api: Api<Lease>,
    name: String,
    identity: String,
}

impl Contender {
    /// `identity` must differ between any two processes: a restarted one is another.
    pub(crate) fn new(client: Client, namespace: &str, name: &str, identity: String) -> Self {
        Contender {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity,
        }
    }

    /// Waits until this process leads.
    pub(crate) async fn acquire(&self) -> Held<'_> {
        let mut seen: Option<(Option<MicroTime>, Instant)> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(Some(lease)) => {
                    info!(identity = self.identity, "leading");
                    return Held {
                        contender: self,
                        lease,
                    };
                }
                Ok(None) => {}
                Err(error) => warn!(%error, lease = self.name, "cannot read or write the Lease"),
            }
            sleep(RETRY).await;
        }
    }

    async fn try_acquire(
        &self,
        seen: &mut Option<(Option<MicroTime>, Instant)>,
    ) -> kube::Result<Option<Lease>> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let fresh = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..Default::default()
                },
                spec: Some(self.claim(0)),
            };
            return conflict_is_none(self.api.create(&PostParams::default(), &fresh).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() {
            let since = match seen {
                Some((renewed, since)) if *renewed == spec.renew_time => *since,
                _ => {
                    *seen = Some((spec.renew_time, Instant::now()));
                    return Ok(None);
                }
            };
            let duration = spec
                .lease_duration_seconds
                .map_or(DURATION, |s| Duration::from_secs(s.max(1) as u64));
            if since.elapsed() < duration {
                return Ok(None);
            }
            info!(holder, "the leader has not renewed its Lease");
        }
        let transitions = spec.lease_transitions.unwrap_or(0).saturating_add(1);
        let taken = Lease {
            spec: Some(self.claim(transitions)),
            ..lease
        };
        // The resource version in it makes this fail when somebody was faster.
        conflict_is_none(
            self.api
                .replace(&self.name, &PostParams::default(), &taken)
                .await,
        )
    }

    fn claim(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..Default::default()
        }
    }
}

/// How one try to renew went.
enum Renewal {
    Written,
    /// Somebody wrote to it; the next try knows what.
    Again,
    /// This one holds it now.
    Overtaken(String),
}

/// The Lease, held.
pub(crate) struct Held<'a> {
    contender: &'a Contender,
    lease: Lease,
}

impl Held<'_> {
    /// The epoch of this leadership.
    pub(crate) fn epoch(&self) -> Epoch {
        let created = self.lease.metadata.creation_timestamp.as_ref();
        let transitions = self
            .lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_transitions);
        Epoch {
            created: created.map_or(0, |time| time.0.as_second()),
            transitions: transitions.unwrap_or(0).max(0) as u64,
        }
    }

    /// Renews until that fails for good.
    pub(crate) async fn renew(&mut self) -> Lost {
        let mut renewed = Instant::now();
        loop {
            sleep(RETRY).await;
            let deadline = renewed + RENEW_WITHIN;
            // From before the request: others count from when it was written, not answered.
            let asked = Instant::now();
            match timeout_at(deadline, self.renew_once()).await {
                Ok(Ok(Renewal::Written)) => renewed = asked,
                Ok(Ok(Renewal::Overtaken(holder))) => return Lost::Overtaken(holder),
                Ok(Ok(Renewal::Again)) if Instant::now() >= deadline => {
                    return Lost::NotRenewed("the Lease kept changing".to_owned());
                }
                Ok(Ok(Renewal::Again)) => {}
                Ok(Err(error)) if Instant::now() >= deadline => {
                    return Lost::NotRenewed(error.to_string());
                }
                Ok(Err(error)) => warn!(%error, "cannot renew the Lease"),
                Err(_) => return Lost::NotRenewed("no answer from the API server".to_owned()),
            }
        }
    }

    async fn renew_once(&mut self) -> kube::Result<Renewal> {
        let Contender {
            api,
            name,
            identity,
        } = self.contender;
        let mut lease = self.lease.clone();
        if let Some(spec) = &mut lease.spec {
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match api.replace(name, &PostParams::default(), &lease).await {
            Ok(lease) => {
                self.lease = lease;
                Ok(Renewal::Written)
            }
            Err(kube::Error::Api(answer)) if answer.code == 409 => {
                // Written by somebody, or by ourselves with an answer that got lost.
                let current = api.get(name).await?;
                let holder = current
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.holder_identity.clone());
                if holder.as_deref() != Some(identity.as_str()) {
                    return Ok(Renewal::Overtaken(holder.unwrap_or_default()));
                }
                self.lease = current;
                Ok(Renewal::Again)
            }
            Err(error) => Err(error),
        }
    }

    /// Lets the next one lead at once.
    pub(crate) async fn release(mut self) {
        if let Some(spec) = &mut self.lease.spec {
            spec.holder_identity = Some(String::new());
        }
        let Contender { api, name, .. } = self.contender;
        let params = PostParams::default();
        let released = api.replace(name, &params, &self.lease);
        match timeout_at(Instant::now() + RETRY, released).await {
            Ok(Ok(_)) => info!("the Lease is released"),
            Ok(Err(error)) => warn!(%error, "the Lease could not be released and will expire"),
            Err(_) => warn!("the Lease could not be released in time and will expire"),
        }
    }
}

fn conflict_is_none(result: kube::Result<Lease>) -> kube::Result<Option<Lease>> {
    match result {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(answer)) if answer.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}
