//! What the operator is told at its start.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};

/// Keeps VM images replicated between btrfs hosts.
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub(crate) struct Config {
    /// Namespace of this installation, where the agents' Service and the Lease are.
    #[arg(long, env = "POD_NAMESPACE")]
    pub(crate) namespace: String,
    /// Name of this replica, for the Lease and in Events.
    #[arg(long, env = "POD_NAME")]
    pub(crate) identity: String,
    /// Headless Service whose EndpointSlices say where the agents are.
    #[arg(long, default_value = "icbd-agents")]
    pub(crate) agent_service: String,
    /// Lease by which one replica leads.
    #[arg(long, default_value = "icbd-operator")]
    pub(crate) lease: String,
    /// Where health and metrics are served.
    #[arg(long, default_value = "[::]:9440")]
    pub(crate) health_listen: SocketAddr,
    /// Most transfers at once in the whole installation.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) max_transfers: u32,
    /// Most transfers at once from one source node.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) max_transfers_per_source: u32,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Json)]
    pub(crate) log_format: LogFormat,
    /// Which log lines are written, in tracing's filter syntax.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub(crate) log: String,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
