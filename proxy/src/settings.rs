//! What the data plane is told at its start, validated. `config.rs` makes it from files.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use heddle_policy::{
    path::Strictness,
    snapshot::{DestinationKey, Protocol},
};

/// Settings of the data plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// Where applications' connections arrive.
    pub outbound: OutboundListeners,
    /// Where peers' connections arrive.
    pub inbound: InboundListeners,
    /// Bounds and patience.
    pub bounds: Bounds,
}

/// Listeners for the workload's own connections.
#[derive(Clone, Debug, Default)]
pub struct OutboundListeners {
    /// Behind the redirect rules: the destination is the original one.
    pub intercepted: Option<SocketAddr>,
    /// HTTP, routed by authority (`host/<authority>:<port>`, port 80 when the authority has
    /// none).
    pub http: Option<SocketAddr>,
    /// One fixed destination each.
    pub fixed: Vec<OutboundPort>,
}

/// `outbound: [{listen, destination}]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundPort {
    /// Where the application dials.
    pub listen: SocketAddr,
    /// Where that leads.
    pub destination: DestinationKey,
}

/// Listeners for connections to the workload.
#[derive(Clone, Debug, Default)]
pub struct InboundListeners {
    /// Behind the redirect rules: the original destination names the port.
    pub intercepted: Option<SocketAddr>,
    /// One port of the workload each.
    pub ports: Vec<InboundForward>,
}

/// `inbound: [{listen, forward, protocol}]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboundForward {
    /// The application's port as services (`targetPort`), modes and rules name it: what the
    /// original destination would say. That of `forward` unless set.
    pub port: u16,
    /// Where peers dial; what is registered for `port`.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub forward: SocketAddr,
    /// What the port carries when the control plane has not said (`Detect` there).
    pub protocol: Protocol,
}

/// Bounds of memory, patience and tolerance. The defaults are those of `Default`.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Accepted connections of the whole process in each direction; further ones wait in the
    /// kernel's backlog. Apart, so that no peer can keep the workload from calling others.
    pub connections_max: usize,
    /// For the answer to a destination nobody asked for before.
    pub lookup_wait: Duration,
    /// For the first bytes of a connection whose protocol is not declared.
    pub detect_wait: Duration,
    /// For a TLS handshake or a request head to arrive whole.
    pub header_wait: Duration,
    /// For a new certificate when ours has ended before its renewal was due, as by a jump of the
    /// clock; from then on meshed connections fail at once.
    pub renewal_wait: Duration,
    /// An accepted HTTP/1.1 connection without a request is closed after this.
    pub idle: Duration,
    /// A connection to an endpoint without a request is closed after this. A server may have
    /// closed it earlier: then the request is repeated on another.
    pub endpoint_idle: Duration,
    /// An HTTP/1.1 connection without a request for this long is not used for a request that may
    /// not be repeated, because the endpoint may be closing it by now; servers do after as little
    /// as 2 s (gunicorn), 5 s (Node, uvicorn). Sidecars do after `idle`, and are not meant.
    pub unrepeatable_idle: Duration,
    /// A connection to an endpoint is retired at this age, give or take 20 %.
    pub connection_age: Duration,
    /// Request bytes kept for a retry, each exchange.
    pub replay_bytes_max: usize,
    /// Bytes of messages that the whole process keeps for those who read slowly. Near it new
    /// streams get small windows; beyond it new requests are refused, and what runs goes on.
    pub kept_bytes_max: usize,
    /// Share of traces that are sampled when this sidecar begins them; the caller's own
    /// decision is kept.
    pub sampled_share: f64,
    /// What is let through of paths that servers disagree about, in both directions.
    pub paths: Strictness,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 8 * 1024,
            lookup_wait: Duration::from_secs(2),
            detect_wait: Duration::from_millis(100),
            header_wait: Duration::from_secs(10),
            renewal_wait: Duration::from_secs(5),
            idle: Duration::from_hours(1),
            endpoint_idle: Duration::from_mins(5),
            unrepeatable_idle: Duration::from_secs(1),
            connection_age: Duration::from_hours(1),
            replay_bytes_max: 64 * 1024,
            kept_bytes_max: 32 * 1024 * 1024,
            sampled_share: 0.01,
            paths: Strictness::default(),
        }
    }
}
