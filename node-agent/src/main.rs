//! `icbd-agent`: runs on each node that lends a btrfs pool, serves the operator, and moves
//! snapshots to and from other agents. It knows nothing of Kubernetes.

mod control;
mod directory;
mod durable;
mod error;
mod health;
mod identity;
mod image;
mod metrics;
mod net;
mod pool;
mod receive;
mod replicate;
mod serve;
mod supervise;
mod transfer;
mod watch;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use icbd_btrfs::Subvolume;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// How long threads that are in the kernel get to come back when the process ends.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Keeps snapshots of VM images replicated between btrfs hosts: the agent on each node.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the operator and other agents, until asked to end.
    Serve {
        #[command(flatten)]
        options: Box<serve::Options>,
        /// How log lines look; what is logged is said by RUST_LOG.
        #[arg(long, env = "ICBD_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
        log_format: LogFormat,
    },
    /// Receive send streams from standard input, until it ends: each becomes a read-only snapshot
    /// under its own name. What a stream builds on must stand in the same directory.
    Receive {
        /// A directory on btrfs.
        dir: PathBuf,
    },
    /// Replicate one read-only snapshot into another btrfs directory: what hosts without Kubernetes
    /// use. Run again after an interruption, it goes on where it was.
    Replicate(#[command(flatten)] replicate::Options),
    /// Print the digest of a subvolume's whole tree: equal for equal trees, on any host.
    Digest {
        /// The subvolume.
        subvolume: PathBuf,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Json,
    Text,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve {
            options,
            log_format,
        } => run(*options, log_format),
        Command::Receive { dir } => receive::run(dir),
        Command::Replicate(options) => {
            start_log_quietly();
            return replicate::run(&options);
        }
        Command::Digest { subvolume } => digest(&subvolume),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "icbd-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: serve::Options, log_format: LogFormat) -> Result<()> {
    start_log(log_format);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Error::io("start threads"))?;
    let served = runtime.block_on(serve::serve(options));
    runtime.shutdown_timeout(END_WITHIN);
    served
}

/// For who runs one command and reads its messages.
fn start_log_quietly() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(io::stderr).init();
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    match format {
        LogFormat::Json => log.json().flatten_event(true).with_span_list(false).init(),
        LogFormat::Text => log.init(),
    }
}

fn digest(path: &Path) -> Result<()> {
    let name = path.display().to_string();
    let opened = File::open(path).map_err(Error::io(format!("open {name}")))?;
    let digest = Subvolume::from_fd(opened.into(), &name)
        .and_then(|subvolume| icbd_btrfs::digest(&subvolume))
        .map_err(Error::btrfs(name))?;
    writeln!(io::stdout(), "{digest}").map_err(Error::io("write to standard output"))
}
