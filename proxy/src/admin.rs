//! Two small HTTP servers: health and metrics for the platform, and the admin interface for
//! people on this machine.
//!
//! | where | what |
//! |---|---|
//! | `telemetry.listen` | `/health/live`, `/health/ready`, `/health/detailed`, `/metrics` |
//! | `admin.listen` | the same and `/config`, `/clusters`, `/log-level` (GET, PUT), `/drain` (POST) |
//!
//! The admin interface has no credentials. It listens on loopback and refuses a `Host` that is
//! neither `localhost` nor a loopback address, so that a page in a browser cannot reach it under
//! a name of its own (DNS rebinding). What changes something is refused to every page: browsers
//! say so by `Origin` or `Sec-Fetch-Site`.
//!
//! A caller cannot keep others out: a body is read only where one is needed, a connection has its
//! time and one request, and of too many the oldest gives way.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_policy::snapshot::DestinationKey;
use heddle_relay::{cluster::LiveEndpoint, view::View};
use heddle_shell::{clock, log::Level, publish::Published, task::Tasks};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    health::Health,
    identity::Held,
    telemetry::{Telemetry, metrics::Text},
    xds::ClientState,
};

const SEC_FETCH_SITE: header::HeaderName = header::HeaderName::from_static("sec-fetch-site");

/// Connections of one server at once; a further one closes the oldest.
const CONNECTIONS_MAX: usize = 64;

/// Longest request body: a log filter.
const BODY_BYTES_MAX: usize = 4096;

/// For a request head to arrive.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// For the one request of a connection: whoever asks more often dials again.
const CONNECTION_WAIT: Duration = Duration::from_secs(30);

/// What may be asked where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// Anybody who reaches the pod.
    Platform,
    /// People on this machine.
    Admin,
}

/// What the answers are made of.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Readiness.
    pub health: Health,
    /// Counters.
    pub telemetry: Arc<Telemetry>,
    /// Log filter.
    pub level: Level,
    /// What `/log-level` answers.
    pub filter: Arc<Published<String>>,
    /// Turns true when a drain is asked for.
    pub drain: watch::Sender<bool>,
}

struct Asked<'a> {
    interface: Interface,
    client: IpAddr,
    host: &'a str,
    method: &'a Method,
    path: &'a str,
    /// Whether a browser says that a page asks.
    is_page: bool,
    /// Empty unless one is needed.
    body: &'a str,
}

/// Serves one interface until the task is dropped.
pub async fn serve(admin: Arc<Admin>, listener: TcpListener, interface: Interface) {
    let mut tasks = Tasks::new();
    // Dropping one closes its connection.
    let mut open: VecDeque<oneshot::Sender<()>> = VecDeque::new();
    loop {
        match tasks.reaping(listener.accept()).await {
            Ok((stream, client)) => {
                open.retain(|connection| !connection.is_closed());
                if open.len() >= CONNECTIONS_MAX {
                    // Whoever holds connections must not keep the platform's probes out.
                    open.pop_front();
                }
                let (keep, closed) = oneshot::channel();
                open.push_back(keep);
                let admin = Arc::clone(&admin);
                let service = service_fn(move |request| {
                    let admin = Arc::clone(&admin);
                    async move { Ok::<_, Infallible>(admin.answer(request, client, interface).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_WAIT)
                    .keep_alive(false)
                    .max_buf_size(16 * 1024)
                    .serve_connection(TokioIo::new(stream), service);
                tasks.spawn("admin-connection", async move {
                    tokio::select! {
                        biased;
                        ended = timeout(CONNECTION_WAIT, connection) => {
                            if let Ok(Err(error)) = ended {
                                debug!(%error, "admin connection ended early");
                            }
                        }
                        _ = closed => debug!("admin connection gave way to another"),
                    }
                });
            }
            Err(error) => {
                warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Admin {
    async fn answer(
        &self,
        request: Request<Incoming>,
        client: SocketAddr,
        interface: Interface,
    ) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        // Nobody needs another's, and reading it would wait for it.
        let is_read = interface == Interface::Admin && head.method == Method::PUT;
        let body = if is_read {
            match Limited::new(body, BODY_BYTES_MAX).collect().await {
                Ok(body) => body.to_bytes(),
                Err(_too_long) => {
                    return text(StatusCode::PAYLOAD_TOO_LARGE, "the body is too long");
                }
            }
        } else {
            Bytes::new()
        };
        let Ok(body) = std::str::from_utf8(&body) else {
            return text(StatusCode::BAD_REQUEST, "the body is not text");
        };
        let host = head
            .headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        self.decide(&Asked {
            interface,
            // An IPv4 client of a listener for both families.
            client: client.ip().to_canonical(),
            host: host.unwrap_or_default(),
            method: &head.method,
            path: head.uri.path(),
            is_page: [header::ORIGIN, SEC_FETCH_SITE]
                .iter()
                .any(|name| head.headers.contains_key(name)),
            body,
        })
    }

    fn decide(&self, asked: &Asked<'_>) -> Response<Full<Bytes>> {
        if asked.interface == Interface::Admin && !is_local_host(asked.host) {
            return text(StatusCode::FORBIDDEN, "the host is not this machine");
        }
        if asked.is_page && *asked.method != Method::GET {
            return text(
                StatusCode::FORBIDDEN,
                "a page in a browser may not ask this",
            );
        }
        let is_admin = asked.interface == Interface::Admin;
        let is_local = asked.client.is_loopback() && is_local_host(asked.host);
        match (asked.path, asked.method) {
            ("/health/live", &Method::GET) => text(StatusCode::OK, "live"),
            ("/health/ready", &Method::GET) => self.ready(),
            ("/health/detailed", &Method::GET) if is_local => json_of(&self.health.detailed()),
            ("/health/detailed", &Method::GET) => self.ready(),
            ("/metrics", &Method::GET) => self.metrics(),
            ("/config", &Method::GET) if is_admin => json_of(&config(&self.health.views.load())),
            ("/clusters", &Method::GET) if is_admin => {
                json_of(&clusters(&self.health.views.load(), clock::now()))
            }
            ("/log-level", &Method::GET) if is_admin => text(StatusCode::OK, &self.filter.load()),
            ("/log-level", &Method::PUT) if is_admin => self.set_level(asked.body.trim()),
            ("/drain", &Method::POST) if is_admin => {
                self.drain.send_replace(true);
                text(StatusCode::ACCEPTED, "draining")
            }
            ("/log-level" | "/drain" | "/config" | "/clusters", _) if is_admin => text(
                StatusCode::METHOD_NOT_ALLOWED,
                "this method is not for this path",
            ),
            _ => text(StatusCode::NOT_FOUND, "there is no such page"),
        }
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let obstacles = self.health.obstacles();
        if obstacles.is_empty() {
            text(StatusCode::OK, "ready")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, &obstacles.join(", "))
        }
    }

    fn set_level(&self, directives: &str) -> Response<Full<Bytes>> {
        match self.level.set(directives) {
            Ok(()) => {
                self.filter.publish(Arc::new(directives.to_owned()));
                text(StatusCode::OK, directives)
            }
            Err(why) => text(StatusCode::BAD_REQUEST, &why),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut body = Text::default();
        self.telemetry.metrics.write(&mut body);
        let view = self.health.views.load();
        write_state(
            &mut body,
            &view,
            &self.health.client.load(),
            &self.health.held.load(),
        );
        respond(
            StatusCode::OK,
            "text/plain; version=0.0.4; charset=utf-8",
            body.0,
        )
    }
}

fn write_state(body: &mut Text, view: &View, client: &ClientState, held: &Held) {
    let destinations = view.destinations.len();
    body.gauge(
        "heddle_destinations",
        "Destinations in force.",
        destinations,
    );
    let help = "Destinations that the control plane does not know.";
    body.gauge("heddle_destinations_absent", help, view.absent.len());
    let help = "Destinations that wait for a part of their newest version.";
    body.gauge("heddle_destinations_held", help, client.held);
    let help = "Whether the configuration stream is open.";
    body.gauge("heddle_xds_connected", help, u8::from(client.is_connected));
    body.gauge(
        "heddle_xds_subscribed",
        "Resources subscribed.",
        client.subscribed,
    );
    let name = "heddle_xds_responses_total";
    body.family(name, "counter", "Configuration responses by result.");
    body.sample(name, &[("result", "acknowledged")], client.acknowledged);
    body.sample(name, &[("result", "refused")], client.refused);
    let help = "Configuration fields outside the subset; they had no effect.";
    body.counter("heddle_xds_ignored_fields_total", help, client.ignored);
    let help = "Configuration streams that ended.";
    body.counter("heddle_xds_disconnects_total", help, client.disconnects);
    let left = held.identity.as_ref().map_or(0.0, |identity| {
        let left = identity.not_after().duration_since(clock::wall());
        left.unwrap_or_default().as_secs_f64()
    });
    let help = "Time until the certificate ends; 0 without one.";
    body.gauge("heddle_certificate_remaining_seconds", help, left);
    let revision = held.trust.as_ref().map_or(0, |bundle| bundle.revision);
    let help = "Revision of the trust bundle in force.";
    body.gauge("heddle_trust_bundle_revision", help, revision);
}

/// Addresses and names only: nothing in a snapshot is a secret.
fn config(view: &View) -> Value {
    let destinations: Vec<Value> = view
        .destinations
        .iter()
        .map(|(key, live)| {
            json!({
                "listener": key.listener_name(),
                "name": &*live.config.name,
                "protocol": format!("{:?}", live.config.protocol),
                "target": format!("{:?}", live.config.target),
            })
        })
        .collect();
    let absent: Vec<String> = view
        .absent
        .iter()
        .map(DestinationKey::listener_name)
        .collect();
    let outbound = view.outbound.as_deref();
    let mesh_cidrs = outbound.map(|outbound| outbound.mesh_cidrs.iter().map(ToString::to_string));
    json!({
        "generation": view.generation,
        "mesh_cidrs": mesh_cidrs.map(Iterator::collect::<Vec<_>>),
        "unknown": outbound.map(|outbound| format!("{:?}", outbound.unknown)),
        "hosts": outbound.map(|outbound| outbound.hosts.len()),
        "inbound": view.inbound.as_ref().map(|inbound| format!("{inbound:?}")),
        "destinations": destinations,
        "absent": absent,
    })
}

fn clusters(view: &View, now: Instant) -> Value {
    let mut all = serde_json::Map::new();
    for destination in view.destinations.values() {
        for (name, cluster) in &destination.clusters {
            let endpoint = |endpoint: &LiveEndpoint| {
                json!({
                    "address": endpoint.config.address.to_string(),
                    "transport": format!("{:?}", endpoint.config.transport),
                    "weight": endpoint.config.weight,
                    "health": format!("{:?}", endpoint.config.health),
                    "outstanding": endpoint.state.outstanding(),
                    "is_ejected": endpoint.state.is_ejected(now),
                })
            };
            let endpoints: Vec<Value> = cluster.endpoints.iter().map(endpoint).collect();
            let config = &cluster.config;
            all.insert(
                name.to_string(),
                json!({
                    "balancing": format!("{:?}", config.balancing),
                    "outlier": config.outlier.map(|outlier| format!("{outlier:?}")),
                    "limits": format!("{:?}", config.limits),
                    "endpoints": endpoints,
                }),
            );
        }
    }
    Value::Object(all)
}

/// `localhost` or a loopback address, with any port.
fn is_local_host(host: &str) -> bool {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return address.ip().is_loopback();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, port)| {
        if port.parse::<u16>().is_ok() {
            name
        } else {
            host
        }
    });
    let name = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn text(status: StatusCode, body: &str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", format!("{body}\n"))
}

fn json_of(value: &Value) -> Response<Full<Bytes>> {
    respond(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn respond(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        http::HeaderValue::from_static(content_type),
    );
    headers.insert(
        "x-content-type-options",
        http::HeaderValue::from_static("nosniff"),
    );
    response
}

#[cfg(test)]
mod tests;
