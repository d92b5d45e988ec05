//! Health and metrics over HTTP: read-only, for the kubelet and Prometheus.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use icbd_net::Refused;
use icbd_net::door;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Serves until `closing`. Every replica is ready: those that do not lead stand by.
pub(crate) async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    refused: Arc<Refused>,
    closing: CancellationToken,
) -> io::Result<()> {
    let guests = door::for_health(listener, refused, closing);
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/metrics", get(text))
        .with_state(metrics);
    axum::serve(guests, router).await
}

async fn text(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    match metrics.text() {
        Ok(text) => (
            StatusCode::OK,
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        ),
        Err(error) => {
            let text = format!("cannot write metrics: {error}\n");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(CONTENT_TYPE, "text/plain")],
                text,
            )
        }
    }
}
