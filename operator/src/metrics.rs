//! Metrics. Series of images are made from the objects when somebody asks, so that they end with
//! their object.

use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use icbd_crds::VMImage;
use jiff::Timestamp;
use kube::ResourceExt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::facts::Sight;

/// Counters of this process, and the registry that everything is served from.
pub(crate) struct Metrics {
    registry: Registry,
    reconciles: Family<Reconcile, Counter>,
    seconds: Family<Kind, Histogram>,
    refused_connections: Family<Refused, Counter>,
    refused_enrolments: Family<Reason, Counter>,
    expiry: Family<Certificate, Gauge>,
    /// Set once this process leads.
    sight: Arc<OnceLock<Arc<Sight>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    kind: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    port: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Certificate {
    kind: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("icbd");
        let reconciles = Family::<Reconcile, Counter>::default();
        registry.register(
            "reconciles",
            "Objects looked at, by kind and result",
            reconciles.clone(),
        );
        let seconds = Family::<Kind, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 4.0, 8))
        });
        registry.register_with_unit(
            "reconcile_duration",
            "How long looking at an object took",
            Unit::Seconds,
            seconds.clone(),
        );
        let refused_connections = Family::<Refused, Counter>::default();
        registry.register(
            "refused_connections",
            "Connections that were refused, by port and reason",
            refused_connections.clone(),
        );
        let refused_enrolments = Family::<Reason, Counter>::default();
        registry.register(
            "enrolments_refused",
            "Requests for a certificate that were refused, by reason",
            refused_enrolments.clone(),
        );
        let expiry = Family::<Certificate, Gauge>::default();
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When the operator's own certificate, and the certificate authority's, expires, in seconds since the Unix epoch; 0: there is none",
            expiry.clone(),
        );
        let sight = Arc::<OnceLock<Arc<Sight>>>::default();
        registry.register_collector(Box::new(State(sight.clone())));
        Metrics {
            registry,
            reconciles,
            seconds,
            refused_connections,
            refused_enrolments,
            expiry,
            sight,
        }
    }

    /// A connection was refused.
    pub(crate) fn connection_refused(&self, port: &'static str, reason: &'static str) {
        let refused = Refused { port, reason };
        self.refused_connections.get_or_create(&refused).inc();
    }

    /// A request for a certificate was refused.
    pub(crate) fn enrolment_refused(&self, reason: &'static str) {
        self.refused_enrolments
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// Until when a certificate is valid: `operator`, this replica's own, or `ca`.
    pub(crate) fn set_expiry(&self, kind: &'static str, until: Option<SystemTime>) {
        let since = until.and_then(|until| until.duration_since(SystemTime::UNIX_EPOCH).ok());
        let seconds = since.map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        });
        self.expiry
            .get_or_create(&Certificate { kind })
            .set(seconds);
    }

    /// From now on this process leads, and knows this.
    pub(crate) fn leading(&self, sight: Arc<Sight>) {
        let _ = self.sight.set(sight);
    }

    pub(crate) fn reconcile_started(&self, kind: &str) -> Timer<'_> {
        Timer {
            metrics: self,
            kind: kind.to_owned(),
            since: Instant::now(),
        }
    }

    /// All metrics in OpenMetrics' text format.
    pub(crate) fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

pub(crate) struct Timer<'a> {
    metrics: &'a Metrics,
    kind: String,
    since: Instant,
}

impl Timer<'_> {
    pub(crate) fn ended(self, well: bool) {
        let Timer {
            metrics,
            kind,
            since,
        } = self;
        metrics
            .seconds
            .get_or_create(&Kind { kind: kind.clone() })
            .observe(since.elapsed().as_secs_f64());
        let result = if well { "ok" } else { "error" };
        metrics
            .reconciles
            .get_or_create(&Reconcile { kind, result })
            .inc();
    }
}

/// What is seen when somebody asks.
struct State(Arc<OnceLock<Arc<Sight>>>);

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, series: &[(Vec<(&str, String)>, f64)]| {
            let gauge = ConstGauge::new(0.0);
            let mut metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (labels, value) in series {
                ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
            }
            Ok::<(), std::fmt::Error>(())
        };
        let none = Vec::new;
        let leads = if self.0.get().is_some() { 1.0 } else { 0.0 };
        gauge("leader", "1 while this replica leads", &[(none(), leads)])?;
        let Some(sight) = self.0.get() else {
            return Ok(());
        };
        let (answering, known) = sight.agents.answering();
        gauge(
            "agents",
            "Nodes on which an agent runs",
            &[(none(), known as f64)],
        )?;
        gauge(
            "agents_answering",
            "Nodes whose agent answers",
            &[(none(), answering as f64)],
        )?;
        let running = sight.agents.running() as f64;
        gauge(
            "transfers_running",
            "Transfers under way",
            &[(none(), running)],
        )?;
        let images = sight.caches.images.state();
        gauge(
            "replica_behind_snapshots",
            "Snapshots that a replica lacks",
            &behind(&images),
        )?;
        gauge(
            "replica_lag_seconds",
            "Age of the newest snapshot that every replica of the image holds; 0 while all hold the newest",
            &lags(&images, Timestamp::now()),
        )
    }
}

type Series = Vec<(Vec<(&'static str, String)>, f64)>;

fn of(image: &VMImage) -> Vec<(&'static str, String)> {
    vec![
        ("namespace", image.namespace().unwrap_or_default()),
        ("image", image.name_any()),
    ]
}

fn behind(images: &[Arc<VMImage>]) -> Series {
    let rows = images.iter().flat_map(|image| {
        let rows = image.status.iter().flat_map(|status| &status.replicas);
        rows.map(move |row| {
            let mut labels = of(image);
            labels.push(("replica", row.name.clone()));
            (labels, f64::from(row.behind))
        })
    });
    rows.collect()
}

fn lags(images: &[Arc<VMImage>], now: Timestamp) -> Series {
    let lag = |image: &Arc<VMImage>| {
        let status = image.status.as_ref()?;
        let synced = status.synced_through.as_ref()?;
        let newest = status.latest.as_ref()?.taken_at.as_ref()?;
        let age = now.duration_since(synced.0).as_secs_f64().max(0.0);
        Some((of(image), if synced.0 >= newest.0 { 0.0 } else { age }))
    };
    images.iter().filter_map(lag).collect()
}
