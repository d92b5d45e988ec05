//! What the operator is told at its start.

use std::net::SocketAddr;

use clap::{Parser, ValueEnum};
use jiff::SignedDuration;

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
    /// The installation, as certificates name it: spiffe://<trust domain>/operator.
    #[arg(long, value_parser = trust_domain)]
    pub(crate) trust_domain: String,
    /// Secret with the certificate authority.
    #[arg(long, default_value = "icbd-ca")]
    pub(crate) ca_secret: String,
    /// Somebody else makes that Secret and replaces what is in it: it is never written.
    #[arg(long)]
    pub(crate) ca_is_external: bool,
    /// ConfigMap that tells agents which authorities to believe.
    #[arg(long, default_value = "icbd-trust")]
    pub(crate) trust_config_map: String,
    /// How long a certificate authority lives that is made here; its successor is made at two
    /// thirds of it. At least four times the lifetime of certificates.
    #[arg(long, default_value = "8760h", value_parser = lifetime)]
    pub(crate) ca_lifetime: SignedDuration,
    /// How long the certificates of operator and agents live; they are renewed at two thirds of it.
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    pub(crate) certificate_lifetime: SignedDuration,
    /// Where agents ask for their certificates.
    #[arg(long, default_value = "[::]:7442")]
    pub(crate) enrolment_listen: SocketAddr,
    /// ServiceAccount of the agents.
    #[arg(long, default_value = "icbd-agent")]
    pub(crate) agent_service_account: String,
    /// DaemonSet whose pods are the agents.
    #[arg(long, default_value = "icbd-agent")]
    pub(crate) agent_daemon_set: String,
    /// Deployment of this operator, on which Events tell what concerns all of it.
    #[arg(long, default_value = "icbd-operator")]
    pub(crate) deployment: String,
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

/// An authority outlives what it signs by so much that it can be replaced without haste.
const LIVES_OF_CERTIFICATES: i32 = 4;

/// Below this nothing is renewed in time.
const SHORTEST: SignedDuration = SignedDuration::from_secs(60);
/// So that nothing computed from it leaves the calendar: a hundred years.
const LONGEST: SignedDuration = SignedDuration::from_secs(100 * 365 * 24 * 3600);

impl Config {
    /// What no argument can be checked for alone.
    ///
    /// # Errors
    /// Two of them do not go together.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (ca, certificate) = (self.ca_lifetime, self.certificate_lifetime);
        let least = certificate * LIVES_OF_CERTIFICATES;
        if ca < least {
            return Err(format!(
                "--ca-lifetime {ca:#} is too short for --certificate-lifetime {certificate:#}: it must be at \
                 least {LIVES_OF_CERTIFICATES} times as long, {least:#}"
            ));
        }
        Ok(())
    }
}

fn lifetime(text: &str) -> Result<SignedDuration, String> {
    let lifetime: SignedDuration = text
        .parse()
        .map_err(|error| format!("it is no duration, such as 24h or 90m: {error}"))?;
    match (SHORTEST..=LONGEST).contains(&lifetime) {
        true => Ok(lifetime),
        false => Err(format!("it must be from {SHORTEST:#} to {LONGEST:#}")),
    }
}

fn trust_domain(text: &str) -> Result<String, String> {
    match icbd_net::is_name(text) && text.len() <= 128 {
        true => Ok(text.to_owned()),
        false => {
            Err("it must be at most 128 lower-case letters, digits, '-', '.' and '_'".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Config, String> {
        let all = [
            "icbd-operator",
            "--namespace",
            "icbd-system",
            "--identity",
            "o",
        ];
        let all = all.iter().chain(arguments);
        let config = Config::try_parse_from(all).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_is_said_of_the_identity_is_checked_at_the_start() {
        let domain = ["--trust-domain", "icbd-system.icbd"];
        let with = |more: &[&str]| parsed(&[&domain[..], more].concat());
        let usual = with(&[]).unwrap();
        assert_eq!(usual.ca_lifetime, SignedDuration::from_hours(8760));
        assert_eq!(usual.certificate_lifetime, SignedDuration::from_hours(24));
        let quick = ["--ca-lifetime", "8m", "--certificate-lifetime", "2m"];
        assert!(with(&quick).is_ok());
        for (wrong, why) in [
            (
                vec!["--ca-lifetime", "95h"],
                "at least 4 times as long, 96h",
            ),
            (vec!["--certificate-lifetime", "30s"], "from 1m to"),
            (vec!["--certificate-lifetime=-1h"], "from 1m to"),
            (vec!["--ca-lifetime", "a while"], "it is no duration"),
        ] {
            let error = with(&wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let error = parsed(&["--trust-domain", "Icbd/System"]).unwrap_err();
        assert!(error.contains("lower-case"), "{error}");
    }
}
