//! The HTTP port: `/health/live`, `/health/ready`, `/health/detailed` and `/metrics`. Read only.
//! Connections are bounded, and a newcomer displaces the oldest: slow clients keep nobody out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use heddle_shell::{clock, task::Tasks};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::Serialize;
use tokio::{net::TcpListener, sync::watch};
use tracing::{debug, warn};

use crate::{
    ca::Authority,
    room::{Bounds, Room},
    store::{Revision, Store},
    telemetry::Metrics,
};

/// Connections at once.
const CONNECTIONS: Bounds = Bounds {
    in_all: 64,
    per_source: 32,
};
/// For a request's head to arrive.
const HEAD_WAIT: Duration = Duration::from_secs(5);
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// After the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Serves the pages until dropped.
pub async fn serve(listener: TcpListener, pages: Router) {
    let room = Room::new(CONNECTIONS);
    let mut tasks = Tasks::new();
    loop {
        tasks.reap_ended();
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "accepting failed; is the file descriptor limit reached?");
                clock::sleep_until(clock::now() + ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some((place, sent_away)) = room.enter(peer.ip(), None) else {
            continue;
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WAIT)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(pages.clone()),
            );
        tasks.spawn("http-connection", async move {
            tokio::select! {
                biased; // What is answered already is answered.
                ended = connection => if let Err(error) = ended {
                    debug!(%error, %peer, "an HTTP connection ended early");
                },
                _ = sent_away => debug!(%peer, "an HTTP connection gave way to newer ones"),
            }
            drop(place);
        });
    }
}

impl Health {
    /// The store's revision; why not, when it cannot be read or the last write to it failed.
    async fn store(&self) -> Result<Revision, String> {
        let revision = self.store.revision().await;
        let revision = revision.map_err(|error| error.to_string())?;
        match self.store.failing() {
            None => Ok(revision),
            Some(why) => Err(format!(
                "the store cannot be written: {why}; is the disk full or failing?"
            )),
        }
    }
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    if *health.stopping.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned());
    }
    match health.store().await {
        Ok(_) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn detailed(State(health): State<Health>) -> impl IntoResponse {
    let is_stopping = *health.stopping.borrow();
    let store = match health.store().await {
        Ok(revision) => StoreHealth {
            revision: Some(revision.0),
            error: None,
        },
        Err(why) => StoreHealth {
            revision: None,
            error: Some(why),
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
