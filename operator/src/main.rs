//! The operator: watches, decides (icbd-planner), tells agents, publishes. One replica leads; the
//! others stand by. It moves no data itself and knows no file system.

mod agents;
mod caches;
mod config;
mod control;
mod facts;
mod health;
mod identity;
mod image;
mod lease;
mod ledger;
mod metrics;
mod node;
mod publish;
mod replication;
mod scope;
mod snapshot;
mod target;
mod wake;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures::future::{BoxFuture, FutureExt, select_all};
use icbd_net::Refused;
use icbd_net::door::listen;
use icbd_planner::replication::ClusterLimits;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, ResourceExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use agents::{Agents, Speaker, discover};
use caches::Caches;
use config::{Config, LogFormat};
use control::{Context, Retries};
use facts::Sight;
use identity::Identity;
use lease::{Contender, Epoch};
use ledger::Ledger;
use metrics::Metrics;
use publish::Publisher;
use wake::{Queues, queues};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    let config = Config::parse();
    let ready = config
        .check()
        .map_err(Failure::from)
        .and_then(|()| log(&config));
    if let Err(error) = ready {
        // There is no log to write to yet.
        #[allow(clippy::print_stderr)]
        {
            eprintln!("icbd-operator: {error}");
        }
        return ExitCode::from(2);
    }
    match operate(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %error, "the operator ends");
            ExitCode::FAILURE
        }
    }
}

fn log(config: &Config) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|error| format!("--log {:?} is no filter: {error}", config.log))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter);
    match config.log_format {
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .try_init(),
        LogFormat::Text => lines.try_init(),
    }
}

/// Stands by, leads, and ends: with an error when leadership is lost, since nothing that was begun
/// as a leader may go on.
async fn operate(config: Config) -> Result<(), Failure> {
    let stop = stop_on_signals()?;
    let client = Client::try_default().await?;
    let metrics = Arc::new(Metrics::new());
    let counted = metrics.clone();
    let refused = Arc::new(Refused::new(move |port, reason| {
        counted.connection_refused(port, reason);
    }));
    let listen = async |address| {
        let listener = listen(address).await;
        listener.map_err(|error| format!("cannot listen on {address}: {error}"))
    };
    let health = listen(config.health_listen).await?;
    let enrolment = listen(config.enrolment_listen).await?;
    let (identity, keep) = identity::keep(
        &config,
        client.clone(),
        enrolment,
        &metrics,
        refused.clone(),
        stop.clone(),
    );
    tokio::select! {
        ended = stand_by_and_lead(&config, client, metrics.clone(), identity, stop.clone()) => ended,
        ended = health::serve(health, metrics, refused, stop) => {
            Err(format!("health and metrics are no longer served: {ended:?}").into())
        }
        () = keep => Err("certificates are no longer kept".into()),
    }
}

async fn stand_by_and_lead(
    config: &Config,
    client: Client,
    metrics: Arc<Metrics>,
    identity: Identity,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let replica = format!("{}_{}", config.identity, Uuid::new_v4());
    let contender = Contender::new(client.clone(), &config.namespace, &config.lease, replica);
    let mut held = tokio::select! {
        held = contender.acquire() => held,
        () = stop.cancelled() => return Ok(()),
    };
    let epoch = held.epoch();
    tokio::select! {
        lost = held.renew() => return Err(lost.into()),
        ended = lead(config, client, metrics, identity, epoch) => return ended,
        () = stop.cancelled() => {}
    }
    // Whatever was begun has been dropped: the next leader may begin at once.
    held.release().await;
    Ok(())
}

/// Cancelled at the first SIGTERM or SIGINT.
fn stop_on_signals() -> Result<CancellationToken, Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("ending on a signal");
        stopping.cancel();
    });
    Ok(stop)
}

/// Does the operator's work, for as long as this replica leads.
async fn lead(
    config: &Config,
    client: Client,
    metrics: Arc<Metrics>,
    identity: Identity,
    epoch: Epoch,
) -> Result<(), Failure> {
    let speaker = Speaker {
        installation: installation(&client, &config.namespace).await?,
        epoch,
    };
    info!(
        installation = speaker.installation,
        ?epoch,
        "starting to work"
    );
    let (
        wake,
        Queues {
            images,
            snapshots,
            targets,
            nodes,
            replication,
        },
    ) = queues();
    let (caches, mut work) = Caches::new(&client, wake);
    let concerned = caches.clone();
    let own = identity.own.clone();
    let agents = Agents::new(speaker, own, move |change| concerned.agent_changed(change));
    let sight = Arc::new(Sight::new(
        caches.clone(),
        agents.clone(),
        Arc::<Ledger>::default(),
        identity.clone(),
    ));
    metrics.leading(sight.clone());
    let context = Arc::new(Context {
        sight,
        agents: agents.clone(),
        publisher: Publisher::new(client.clone(), &config.identity),
        metrics,
        retries: Retries::default(),
    });
    let limits = ClusterLimits {
        transfers: config.max_transfers as usize,
        per_source: config.max_transfers_per_source as usize,
    };
    let (found, all_found) = oneshot::channel::<()>();
    let asked = agents.clone();
    let all_asked = async move {
        let _ = all_found.await;
        asked.all_tried().await;
    }
    .shared();
    let woken = caches.clone();
    let authority = identity.lead(agents.clone(), all_asked.clone(), move || {
        woken.wake_targets()
    });
    work.push(Box::pin(authority));
    let discovery = discover(
        agents.clone(),
        client,
        config.namespace.clone(),
        config.agent_service.clone(),
        move || {
            let _ = found.send(());
        },
    );
    work.push(Box::pin(discovery));
    let controllers: BoxFuture<'static, ()> = Box::pin(async move {
        caches.filled().await;
        // Nobody is to be told that agents are away that were only not asked yet.
        let _ = tokio::time::timeout(FIRST_ANSWERS, all_asked).await;
        info!("objects and agents are known; reconciling");
        let caches = caches.as_ref();
        select_all([
            control::run(
                caches.images.clone(),
                images,
                context.clone(),
                image::reconcile,
            ),
            control::run(
                caches.snapshots.clone(),
                snapshots,
                context.clone(),
                snapshot::reconcile,
            ),
            control::run(
                caches.targets.clone(),
                targets,
                context.clone(),
                target::reconcile,
            ),
            control::run(
                caches.nodes.clone(),
                nodes,
                context.clone(),
                node::reconcile,
            ),
            Box::pin(replication::run(context, replication, limits)) as BoxFuture<'static, ()>,
        ])
        .await;
    });
    work.push(controllers);
    select_all(work).await;
    Err("a part of the operator that never ends has ended".into())
}

/// For how long the first answers of agents are waited for before statuses are written.
const FIRST_ANSWERS: Duration = Duration::from_secs(6);

/// Which installation this is: one cluster, one release. A pool belongs to one.
async fn installation(client: &Client, namespace: &str) -> Result<String, Failure> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let system = namespaces.get("kube-system").await?;
    Ok(format!("{}/{namespace}", system.uid().unwrap_or_default()))
}
