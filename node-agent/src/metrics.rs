//! What Prometheus is told. Labels are few and bounded: nothing in them comes from outside.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use icbd_wire::control::{PoolState, PoolStatus};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Role {
    role: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    role: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    port: &'static str,
    reason: &'static str,
}

/// This agent's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    transfer_bytes: Family<Role, Counter>,
    transfer_duration: Family<Outcome, Histogram>,
    transfers_running: Family<Role, Gauge>,
    refused_connections: Family<Refusal, Counter>,
    certificate_expiry: Gauge,
    pool_capacity: Gauge,
    pool_free: Gauge,
    pool_ready: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        // From a small increment to an image of many terabytes.
        let duration =
            || Histogram::new([0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 43200.0]);
        let mut metrics = Self {
            registry: Registry::with_prefix("icbd"),
            transfer_bytes: Family::default(),
            transfer_duration: Family::new_with_constructor(duration),
            transfers_running: Family::default(),
            refused_connections: Family::default(),
            certificate_expiry: Gauge::default(),
            pool_capacity: Gauge::default(),
            pool_free: Gauge::default(),
            pool_ready: Gauge::default(),
        };
        let Self {
            registry,
            transfer_bytes,
            transfer_duration,
            transfers_running,
            refused_connections,
            certificate_expiry,
            pool_capacity,
            pool_free,
            pool_ready,
        } = &mut metrics;
        registry.register_with_unit(
            "transfer",
            "Bytes of transfers on the wire, by this agent's role",
            Unit::Bytes,
            transfer_bytes.clone(),
        );
        registry.register_with_unit(
            "transfer_duration",
            "How long ended transfers took, from their announcement",
            Unit::Seconds,
            transfer_duration.clone(),
        );
        registry.register(
            "transfers_running",
            "Transfers announced or under way",
            transfers_running.clone(),
        );
        registry.register(
            "refused_connections",
            "Connections that were refused, by port and reason",
            refused_connections.clone(),
        );
        registry.register(
            "certificate_expiry_timestamp_seconds",
            "When this agent's certificate expires, in seconds since the Unix epoch; 0: it has none",
            certificate_expiry.clone(),
        );
        registry.register(
            "pool_capacity_bytes",
            "Room in the pool, used or not",
            pool_capacity.clone(),
        );
        registry.register(
            "pool_free_bytes",
            "Room in the pool that is free",
            pool_free.clone(),
        );
        registry.register(
            "pool_ready",
            "Whether the pool can be used: 1 or 0",
            pool_ready.clone(),
        );
        metrics
    }

    pub(crate) fn set_pool(&self, status: &PoolStatus) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.pool_capacity.set(gauge(status.capacity));
        self.pool_free.set(gauge(status.free));
        self.pool_ready
            .set((status.state() == PoolState::Ready).into());
    }

    pub(crate) fn set_certificate_expiry(&self, at: SystemTime) {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = since.unwrap_or_default().as_secs();
        self.certificate_expiry
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    pub(crate) fn refused(&self, port: &'static str, reason: &'static str) {
        self.refused_connections
            .get_or_create(&Refusal { port, reason })
            .inc();
    }

    /// Counts one transfer, from here to its end.
    pub(crate) fn transfer(&self, role: &'static str) -> TransferMeter<'_> {
        self.transfers_running.get_or_create(&Role { role }).inc();
        TransferMeter {
            metrics: self,
            role,
            counted: AtomicU64::new(0),
        }
    }

    /// All of them, in the OpenMetrics text format.
    pub(crate) fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// One transfer's share in the metrics.
pub(crate) struct TransferMeter<'a> {
    metrics: &'a Metrics,
    role: &'static str,
    counted: AtomicU64,
}

impl TransferMeter<'_> {
    /// So many bytes have been on the wire.
    pub(crate) fn moved(&self, bytes: u64) {
        let before = self.counted.swap(bytes, Ordering::Relaxed);
        let role = Role { role: self.role };
        let counter = self.metrics.transfer_bytes.get_or_create(&role);
        counter.inc_by(bytes.saturating_sub(before));
    }

    /// The transfer took so many milliseconds.
    pub(crate) fn ended(&self, milliseconds: i64, succeeded: bool) {
        let result = if succeeded { "succeeded" } else { "failed" };
        let outcome = Outcome {
            role: self.role,
            result,
        };
        let histogram = self.metrics.transfer_duration.get_or_create(&outcome);
        histogram.observe(milliseconds as f64 / 1000.0);
    }
}

impl Drop for TransferMeter<'_> {
    fn drop(&mut self) {
        self.metrics
            .transfers_running
            .get_or_create(&Role { role: self.role })
            .dec();
    }
}
