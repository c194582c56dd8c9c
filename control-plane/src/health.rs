//! The HTTP port: `/health/live`, `/health/ready`, `/health/detailed` and `/metrics`. Read only.

use std::{sync::Arc, time::SystemTime};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use heddle_shell::clock;
use serde::Serialize;
use tokio::sync::watch;

use crate::{ca::Authority, store::Store, telemetry::Metrics};

/// What prometheus-client writes.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the pages are made of.
#[derive(Clone, Debug)]
pub struct Health {
    /// True when it takes no more requests.
    pub stopping: watch::Receiver<bool>,
    /// For the certificates' times.
    pub authority: Arc<Authority>,
    /// For its revision.
    pub store: Arc<dyn Store>,
    /// The counters.
    pub metrics: Arc<Metrics>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Detailed {
    is_stopping: bool,
    version: &'static str,
    store: StoreHealth,
    hours_until_first_certificate_expiry: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StoreHealth {
    revision: Option<u64>,
    error: Option<String>,
}

/// The pages.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/health/live", get(|| async { "live\n" }))
        .route("/health/ready", get(ready))
        .route("/health/detailed", get(detailed))
        .route("/metrics", get(metrics))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    if *health.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match health.store.revision().await {
        Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

async fn detailed(State(health): State<Health>) -> impl IntoResponse {
    let is_stopping = *health.stopping.borrow();
    let store = match health.store.revision().await {
        Ok(revision) => StoreHealth {
            revision: Some(revision.0),
            error: None,
        },
        Err(error) => StoreHealth {
            revision: None,
            error: Some(error.to_string()),
        },
    };
    let detailed = Detailed {
        is_stopping,
        version: env!("CARGO_PKG_VERSION"),
        store,
        hours_until_first_certificate_expiry: hours(health.authority.not_after(), clock::wall()),
    };
    let body = serde_json::to_string(&detailed).expect("strings and numbers are JSON");
    ([(CONTENT_TYPE, "application/json")], body)
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    if let Ok(revision) = health.store.revision().await {
        health.metrics.store_revision.set(revision.0);
    }
    health
        .metrics
        .expires(health.authority.not_after(), clock::wall());
    ([(CONTENT_TYPE, METRICS_TYPE)], health.metrics.encoded())
}

fn hours(not_after: SystemTime, wall: SystemTime) -> f64 {
    not_after
        .duration_since(wall)
        .unwrap_or_default()
        .as_secs_f64()
        / 3600.0
}
