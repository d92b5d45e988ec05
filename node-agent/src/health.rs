//! The port for probes and Prometheus: alive, ready (and if not, why not), metrics.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use icbd_wire::control::PoolState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::pool::reason_for;
use crate::watch::Facts;

#[derive(Clone)]
struct Health {
    facts: Facts,
    metrics: Arc<Metrics>,
}

/// Serves the health port until `closing`.
pub(crate) async fn serve(
    listener: TcpListener,
    facts: Facts,
    metrics: Arc<Metrics>,
    closing: CancellationToken,
) -> Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(Health { facts, metrics });
    axum::serve(listener, router)
        .with_graceful_shutdown(closing.cancelled_owned())
        .await
        .map_err(Error::io("serve the health port"))
}

async fn ready(State(health): State<Health>) -> Response {
    let pool = health.facts.pool();
    match pool.state() {
        PoolState::Ready => "ok\n".into_response(),
        state => {
            let reason = reason_for(state).as_str_name();
            let body = format!("{reason}: {}\n", pool.message);
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn metrics_text(State(health): State<Health>) -> Response {
    let kind = [(
        header::CONTENT_TYPE,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )];
    match health.metrics.encode() {
        Ok(text) => (kind, text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
