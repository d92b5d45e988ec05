//! The port for probes and Prometheus: alive, ready (and if not, why not), metrics.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use icbd_net::Refused;
use icbd_net::door;
use icbd_wire::control::PoolState;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::identity::Standing;
use crate::metrics::Metrics;
use crate::pool::reason_for;
use crate::watch::Facts;

#[derive(Clone)]
pub(crate) struct Health {
    pub(crate) facts: Facts,
    pub(crate) standing: Standing,
    pub(crate) metrics: Arc<Metrics>,
}

/// Serves the health port until `closing`.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    refused: Arc<Refused>,
    closing: CancellationToken,
) -> Result<()> {
    let guests = door::for_health(listener, refused, closing.clone());
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .with_state(health);
    axum::serve(guests, router)
        .with_graceful_shutdown(closing.cancelled_owned())
        .await
        .map_err(Error::io("serve the health port"))
}

async fn ready(State(health): State<Health>) -> Response {
    let pool = health.facts.pool();
    if let Some(why) = health.standing.missing(SystemTime::now()) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response();
    }
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
