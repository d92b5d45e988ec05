//! Who is who: the certificate authority of the installation, the operator's own certificate, and
//! how agents get theirs. Every replica holds the authority and gives certificates; the one that
//! leads keeps it in its Secret, and tells all whom to believe by a ConfigMap.
//!
//! Each folder or file is one step: [`store`] reads and writes, [`plan`] decides, [`keeper`] does it,
//! [`own`] is the operator's certificate, [`enrolment`] the port where agents ask for theirs.

mod enrolment;
mod keeper;
mod own;
mod plan;
mod store;

use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, select_all};
use icbd_net::{Name, Refused};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::agents::Agents;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::publish::{News, Publisher};
use keeper::{Keeper, Role, lasting};
use own::OwnKeeper;
use store::Store;

pub(crate) use keeper::Standing;
pub(crate) use own::Own;

/// How many Events may wait to be written; more are only logged.
const EVENTS: usize = 32;

/// Who this replica is, and what it has of the authority.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) own: Own,
    pub(crate) standing: watch::Receiver<Standing>,
    role: Arc<watch::Sender<Role>>,
    events: mpsc::Sender<(&'static str, String)>,
}

impl Identity {
    /// What is lost and needs a person, if it is.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        self.standing.borrow().problem.clone()
    }

    /// From now on this replica leads: it writes, and hears from `agents` whom they believe. What they
    /// say counts once `all_asked`. `changed` is called when the authority is lost or found.
    pub(crate) async fn lead(
        self,
        agents: Arc<Agents>,
        all_asked: impl Future<Output = ()>,
        changed: impl Fn(),
    ) {
        self.role.send_replace(Role::Leads(None));
        let listen = async {
            all_asked.await;
            let mut trust = agents.trust();
            loop {
                trust.borrow_and_update();
                let told = Role::Leads(Some(agents.trusted()));
                self.role.send_if_modified(|role| {
                    let news = *role != told;
                    *role = told;
                    news
                });
                // The sender lives in `agents`: there is no error to come.
                let _ = trust.changed().await;
            }
        };
        let tell = async {
            let mut standing = self.standing.clone();
            let mut said = None;
            loop {
                let problem = standing.borrow_and_update().problem.clone();
                if problem != said {
                    if let Some(problem) = &problem {
                        let _ = self.events.try_send(("CALost", problem.to_string()));
                    }
                    said = problem;
                    changed();
                }
                let _ = standing.changed().await;
            }
        };
        let ((), ()) = tokio::join!(listen, tell);
    }
}

/// Starts to keep the authority, the operator's certificate and the enrolment port: what the others
/// know of it, and the work, which never ends.
pub(crate) fn keep(
    config: &Config,
    client: Client,
    listener: TcpListener,
    metrics: &Arc<Metrics>,
    refused: Arc<Refused>,
    closing: CancellationToken,
) -> (Identity, BoxFuture<'static, ()>) {
    let (standing, seen) = watch::channel(Standing::default());
    let (role, role_seen) = watch::channel(Role::default());
    let (events, events_in) = mpsc::channel(EVENTS);
    let lifetime = lasting(config.certificate_lifetime);
    let name = Name::operator(&config.trust_domain);
    let (own_keeper, own) = OwnKeeper::new(name, lifetime, seen.clone());
    let keeper = Keeper {
        store: Store::new(
            client.clone(),
            &config.namespace,
            config.ca_secret.clone(),
            config.trust_config_map.clone(),
        ),
        rules: plan::Rules {
            secret: config.ca_secret.clone(),
            external: config.ca_is_external,
            config_map: config.trust_config_map.clone(),
            certificate: config.certificate_lifetime,
        },
        trust_domain: config.trust_domain.clone(),
        lifetime: lasting(config.ca_lifetime),
        standing: Arc::new(standing),
        role: role_seen,
    };
    let told = events.clone();
    let counted = Arc::clone(metrics);
    let office = enrolment::Office {
        client: client.clone(),
        rules: enrolment::Rules {
            namespace: config.namespace.clone(),
            service_account: config.agent_service_account.clone(),
            daemon_set: config.agent_daemon_set.clone(),
        },
        trust_domain: config.trust_domain.clone(),
        lifetime,
        standing: seen.clone(),
        refused: Refused::new(move |_, reason| counted.enrolment_refused(reason)),
        news: Box::new(move |reason, note| {
            // More than can be written are in the log.
            let _ = told.try_send((reason, note));
        }),
    };
    let port = enrolment::serve(office, listener, own.clone(), refused, closing);
    let port = async move {
        match port.await {
            // The process ends; what else it has to do for that comes first.
            Ok(()) => std::future::pending().await,
            Err(error) => warn!(%error, "the enrolment port is no longer served"),
        }
    };
    let publisher = Publisher::new(client, &config.identity);
    let identity = Identity {
        own: own.clone(),
        standing: seen.clone(),
        role: Arc::new(role),
        events,
    };
    let work = select_all([
        keeper.run().boxed(),
        own_keeper.run().boxed(),
        port.boxed(),
        tell_expiry(seen, own, Arc::clone(metrics)).boxed(),
        tell_people(
            publisher,
            config.namespace.clone(),
            config.deployment.clone(),
            events_in,
        )
        .boxed(),
    ]);
    (identity, work.map(drop).boxed())
}

/// Keeps the metrics of what expires.
async fn tell_expiry(mut standing: watch::Receiver<Standing>, own: Own, metrics: Arc<Metrics>) {
    loop {
        let signer = standing.borrow_and_update().signer.clone();
        let until = signer.map(|signer| signer.validity().not_after);
        metrics.set_expiry("ca", until);
        let identity = own.identity(Duration::ZERO).await;
        let mut follow = identity.map(|identity| identity.follow());
        let credentials = follow.as_mut().map(|it| it.borrow_and_update().clone());
        metrics.set_expiry("operator", credentials.map(|it| it.not_after()));
        let renewed = async {
            match &mut follow {
                Some(follow) => {
                    let _ = follow.changed().await;
                }
                None => {
                    let _ = own.identity(Duration::MAX).await;
                }
            }
        };
        tokio::select! {
            _ = standing.changed() => {}
            () = renewed => {}
        }
    }
}

/// Writes Events on the operator's Deployment.
async fn tell_people(
    publisher: Publisher,
    namespace: String,
    deployment: String,
    mut events: mpsc::Receiver<(&'static str, String)>,
) {
    let deployments: Api<Deployment> = Api::namespaced(publisher.client(), &namespace);
    while let Some((reason, note)) = events.recv().await {
        match deployments.get(&deployment).await {
            Ok(deployment) => {
                let news = News {
                    warning: true,
                    reason,
                    note,
                };
                publisher.news(&deployment, vec![news]).await;
            }
            Err(error) => warn!(%error, deployment, reason, note, "cannot record an Event"),
        }
    }
}
