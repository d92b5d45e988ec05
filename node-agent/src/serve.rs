//! `icbd-agent serve`: puts the parts together, runs them, and ends them in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use icbd_net::Refused;
use icbd_net::door::{Door, Limits, Share};
use icbd_wire::control::agent_server::AgentServer;
use icbd_wire::control::{DescribeResponse, Reason};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::control::{self, Control};
use crate::error::{Error, Result};
use crate::health::{self, Health};
use crate::identity::{self, Directory, Enrolment, Origin, Standing};
use crate::image::{ImageId, Images};
use crate::metrics::Metrics;
use crate::net::{self, Network};
use crate::pool::{self, Pool};
use crate::supervise::Supervisor;
use crate::transfer::{ModeChoice, Pace, Transfers};
use crate::watch::Facts;

/// How long calls and transfers get to end when the agent does: what has arrived is kept first, and
/// Kubernetes waits for 30 s.
const CLOSE_WITHIN: Duration = Duration::from_secs(20);

/// How often the operator's connection is asked whether it is still there, and how long it may take
/// to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The name of the Kubernetes node that this agent runs on.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Where the pool is mounted. Its parent directory takes the lock file.
    #[arg(long, env = "ICBD_POOL", default_value = "/var/lib/icbd/pool")]
    pool: PathBuf,
    /// Where the operator calls.
    #[arg(long, env = "ICBD_CONTROL_LISTEN", default_value = "[::]:7440")]
    control_listen: SocketAddr,
    /// Where other agents send snapshots to.
    #[arg(long, env = "ICBD_DATA_LISTEN", default_value = "[::]:7441")]
    data_listen: SocketAddr,
    /// Where probes and Prometheus ask.
    #[arg(long, env = "ICBD_HEALTH_LISTEN", default_value = "[::]:9440")]
    health_listen: SocketAddr,
    /// A transfer that shows no progress for so many seconds is ended.
    #[arg(long, env = "ICBD_STALL_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    stall_seconds: u64,
    /// What arrives is kept, against crashes, no more often than every so many seconds.
    #[arg(long, env = "ICBD_CHECKPOINT_SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    checkpoint_seconds: u64,
    /// The source of an announced transfer has so many seconds to connect. What was announced is
    /// recorded and outlives this agent, its time does not stop meanwhile.
    #[arg(long, env = "ICBD_EXPECT_SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=600))]
    expect_seconds: u64,
    /// Who reads the data of snapshots that this agent sends: itself, or the kernel.
    #[arg(long, env = "ICBD_SEND_MODE", value_enum, default_value_t = ModeChoice::Extents)]
    send_mode: ModeChoice,
    #[command(flatten)]
    origin: OriginOptions,
}

/// Where this agent's certificate comes from. Nobody is spoken with, but over mutual TLS.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct OriginOptions {
    /// Where the certificate is, if somebody else keeps it: tls.crt, tls.key and ca.crt, which are
    /// read again when they change.
    #[arg(
        long,
        env = "ICBD_IDENTITY_DIR",
        value_name = "DIR",
        conflicts_with = "enrol_at"
    )]
    identity_dir: Option<PathBuf>,
    /// Whom to ask for a certificate: the operator.
    #[arg(long, env = "ICBD_ENROL_AT", value_name = "HOST:PORT", requires_all = ["trust_dir", "token_file", "trust_domain"])]
    enrol_at: Option<String>,
    /// Where ca.crt is, the certificates of the authorities that are believed; it is read again
    /// when it changes.
    #[arg(
        long,
        env = "ICBD_TRUST_DIR",
        value_name = "DIR",
        requires = "enrol_at"
    )]
    trust_dir: Option<PathBuf>,
    /// The ServiceAccount token that says which pod this is.
    #[arg(
        long,
        env = "ICBD_TOKEN_FILE",
        value_name = "FILE",
        requires = "enrol_at"
    )]
    token_file: Option<PathBuf>,
    /// The installation that operator and agents are of, as certificates name it.
    #[arg(long, env = "ICBD_TRUST_DOMAIN", requires = "enrol_at")]
    trust_domain: Option<String>,
}

impl OriginOptions {
    fn origin(&self, node: &str) -> Option<Origin> {
        let node = node.to_owned();
        if let Some(dir) = self.identity_dir.clone() {
            return Some(Origin::Directory(Directory { dir, node }));
        }
        Some(Origin::Enrolment(Enrolment {
            at: self.enrol_at.clone()?,
            trust_dir: self.trust_dir.clone()?,
            token_file: self.token_file.clone()?,
            trust_domain: self.trust_domain.clone()?,
            node,
        }))
    }
}

/// Who may be connected to the control port: operators, one of which leads.
const CONTROL: Limits = Limits {
    greeting: Share { all: 64, each: 16 },
    connected: Share { all: 32, each: 8 },
    within: Duration::from_secs(15),
    lasting: None,
};

/// Serves until the process is asked to end.
pub(crate) async fn serve(options: Options) -> Result<()> {
    let origin = options.origin.origin(&options.node_name).ok_or_else(|| {
        let message = "say where the certificate comes from: --identity-dir or --enrol-at";
        Error::refused(Reason::InvalidArgument, message)
    })?;
    let control = net::listen(options.control_listen).await?;
    let data = net::listen(options.data_listen).await?;
    let health = net::listen(options.health_listen).await?;
    let port = |listener: &tokio::net::TcpListener| {
        listener
            .local_addr()
            .map(|address| address.port())
            .map_err(Error::io("read a port"))
    };
    let (control_port, data_port, health_port) = (port(&control)?, port(&data)?, port(&health)?);
    tracing::info!(
        node = options.node_name, pool = %options.pool.display(),
        control_port, data_port, health_port,
        "listening",
    );

    let pool = Arc::new(Pool::at(&options.pool));
    let metrics = Arc::new(Metrics::new());
    let facts = Facts::new(DescribeResponse {
        node: options.node_name,
        agent_version: env!("CARGO_PKG_VERSION").into(),
        kernel_release: pool::kernel_release(),
        data_port: data_port.into(),
        pool: None,
    });
    let counted = Arc::clone(&metrics);
    let refused = Arc::new(Refused::new(move |port, reason| {
        counted.refused(port, reason)
    }));
    let (closing, tasks) = (CancellationToken::new(), TaskTracker::new());
    let standing = Standing::new();
    let state = Health {
        facts: facts.clone(),
        standing: standing.clone(),
        metrics: Arc::clone(&metrics),
    };
    let health = tasks.spawn(health::serve(
        health,
        state,
        Arc::clone(&refused),
        closing.clone(),
    ));
    let identity = tokio::select! {
        asked = asked_to_end() => {
            closing.cancel();
            return asked;
        }
        obtained = origin.obtain(&standing) => obtained?,
    };
    tasks.spawn(origin.keep(identity.clone(), closing.clone()));
    tasks.spawn(identity::publish(
        identity.clone(),
        facts.clone(),
        Arc::clone(&metrics),
        standing,
        closing.clone(),
    ));

    let images = Images::new(Arc::clone(&pool), facts.clone());
    let pace = Pace {
        stall: Duration::from_secs(options.stall_seconds),
        checkpoint: Duration::from_secs(options.checkpoint_seconds),
        expect: Duration::from_secs(options.expect_seconds),
    };
    let transfers = Transfers::new(
        images.clone(),
        facts.clone(),
        Arc::clone(&metrics),
        Network::new(identity.clone()),
        pace,
        options.send_mode,
    );
    let look = Arc::new(Notify::new());
    let supervisor = Supervisor {
        pool: Arc::clone(&pool),
        images: images.clone(),
        transfers: transfers.clone(),
        facts: facts.clone(),
        metrics,
        look: Arc::clone(&look),
    };
    tasks.spawn(supervisor.run(closing.clone()));
    let awaiting = transfers.clone();
    let is_awaited = move |image: &ImageId, number| awaiting.awaits(image, number);
    tasks.spawn(images.clone().keep(is_awaited, closing.clone()));
    tasks.spawn(transfers.clone().listen(data, Arc::clone(&refused)));
    let service = Control {
        pool,
        images,
        transfers: transfers.clone(),
        facts,
        look,
        closing: closing.clone(),
    };
    let door = Door::new(control, "control", CONTROL, refused);
    let operators = door.guests(closing.clone(), move |stream| {
        control::greet(stream, identity.clone())
    });
    let operator = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .add_service(AgentServer::new(service))
        .serve_with_incoming_shutdown(operators, closing.clone().cancelled_owned());
    let operator = tasks.spawn(operator);

    let ended = tokio::select! {
        asked = asked_to_end() => asked,
        served = operator => Err(ended_early("control", served.map_err(|error| error.to_string()))),
        served = health => Err(ended_early("health", served.map_err(|error| error.to_string()))),
    };
    tracing::info!("ending");
    // The operator still hears how the transfers end; then its calls end too.
    let in_order = async {
        transfers.close().await;
        closing.cancel();
        tasks.close();
        tasks.wait().await;
    };
    if tokio::time::timeout(CLOSE_WITHIN, in_order).await.is_err() {
        tracing::warn!("something did not end in time");
    }
    ended
}

fn ended_early(port: &str, why: impl std::fmt::Debug) -> Error {
    Error::Io {
        doing: format!("serve the {port} port"),
        source: std::io::Error::other(format!("{why:?}")),
    }
}

/// Returns when the process is asked to end.
pub(crate) async fn asked_to_end() -> Result<()> {
    let listen = |kind| signal(kind).map_err(Error::io("listen for signals"));
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
