//! The facts of one exchange or one relayed connection, and their exactly-once report; and one
//! attempt of an exchange, with its exactly-once outcome.
//!
//! ```text
//! Exchange ── failed ──────────────► response made here ─┐
//!     └── commit(Attempt) ─► Ending, inside the body ────┴─ drop ─► Telemetry::record
//! ```

use std::{
    cell::Cell,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_policy::{
    admission::Slot,
    outcome::{Outcome, grpc},
    route::Route,
    snapshot::ClusterName,
    spiffe::Peer,
};
use heddle_relay::{
    cluster::{EndpointState, LiveCluster, LiveEndpoint, Outstanding},
    error::{CANCELLED, DEADLINE, ProxyError, RESET},
    view::{InUse, LiveDestination},
};
use heddle_shell::clock;
use http::{HeaderMap, Response};
use http_body::Frame;

use crate::{body::Body, channel::Lease, error, relay::Passed, telemetry::Telemetry};

pub use heddle_relay::record::{Direction, Spoken, Trace};

/// The facts of one finished exchange (HTTP) or connection (TCP).
#[derive(Clone, Debug)]
pub struct Record {
    /// Which side of the sidecar.
    pub direction: Direction,
    /// What was spoken.
    pub spoken: Spoken,
    /// Name of the destination, or the address where it has none.
    pub destination: Arc<str>,
    /// Name of the route; empty where it has none.
    pub route: Arc<str>,
    /// The cluster that was chosen.
    pub cluster: Option<ClusterName>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// The other side: the client inbound, the endpoint outbound.
    pub peer: Peer,
    /// The client's address.
    pub client: SocketAddr,
    /// Request method; empty for TCP.
    pub method: Arc<str>,
    /// Normalised path without query; empty for TCP.
    pub path: Arc<str>,
    /// Status sent to the client; `None` when none was sent.
    pub status: Option<u16>,
    /// gRPC status, from headers or trailers.
    pub grpc_status: Option<u32>,
    /// The reason word of `error.rs` when the proxy itself answered or cut; from a closed set.
    pub reason: Option<&'static str>,
    /// Attempts made, re-picks included.
    pub attempts: u32,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// From the request head to the end of the response.
    pub duration: Duration,
    /// From the request head to the response head.
    pub first_response: Option<Duration>,
    /// `x-request-id`; empty for TCP.
    pub request_id: Arc<str>,
    /// W3C trace context of this hop; `None` for TCP.
    pub trace: Option<Trace>,
}

impl Record {
    /// The facts that are known at the start.
    pub fn new(
        direction: Direction,
        spoken: Spoken,
        destination: Arc<str>,
        client: SocketAddr,
    ) -> Self {
        let empty: Arc<str> = "".into();
        Self {
            direction,
            spoken,
            destination,
            route: Arc::clone(&empty),
            cluster: None,
            endpoint: None,
            peer: Peer::Anonymous,
            client,
            method: Arc::clone(&empty),
            path: Arc::clone(&empty),
            status: None,
            grpc_status: None,
            reason: None,
            attempts: 0,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            first_response: None,
            request_id: empty,
            trace: None,
        }
    }
}

/// One exchange or connection in progress. Its record is handed over when it is dropped, however
/// that comes about.
#[derive(Debug)]
pub struct Exchange {
    /// The facts so far. Boxed: it moves from the service to the body.
    pub record: Box<Record>,
    /// What came of the request's body, noted where it passes.
    pub received: Rc<Received>,
    started: Instant,
    /// It came to an end; otherwise the client gave up.
    is_over: bool,
    /// It was none after all.
    is_retracted: bool,
    telemetry: Arc<Telemetry>,
}

/// What came of a request's body.
#[derive(Debug, Default)]
pub struct Received {
    /// How much.
    pub bytes: Cell<u64>,
    /// The client broke it off: what follows from that is not the endpoint's doing.
    pub is_broken: Cell<bool>,
}

/// One try against one endpoint. Reports exactly one outcome; when it is dropped without one, the
/// client gave up.
#[derive(Debug)]
pub struct Attempt {
    /// Whom it was sent to.
    pub endpoint: LiveEndpoint,
    cluster: Arc<LiveCluster>,
    is_reported: bool,
    /// Counted as load until the end of the response.
    _outstanding: Outstanding,
}

/// What waits for the end of a response body.
#[derive(Debug)]
pub struct Ending {
    exchange: Exchange,
    attempt: Option<Attempt>,
    status: u16,
    is_over: bool,
    /// Released with the end.
    _held: Held,
}

/// What an exchange holds until the end of its response.
#[derive(Debug, Default)]
pub struct Held {
    /// The connection, or a stream of it.
    pub lease: Option<Lease>,
    /// A request in flight.
    pub request: Option<Slot>,
    /// A retry in flight.
    pub retry: Option<Slot>,
    /// The destination, also when nothing else of its connection says so.
    pub in_use: Option<InUse>,
}

impl Exchange {
    /// Starts the clock.
    pub fn start(record: Record, telemetry: Arc<Telemetry>) -> Self {
        telemetry.metrics.begin(record.direction);
        Self {
            record: Box::new(record),
            received: Rc::default(),
            started: clock::now(),
            is_over: false,
            is_retracted: false,
            telemetry,
        }
    }

    /// The connection carries HTTP, or has carried nothing: its requests are the exchanges.
    pub fn retract(mut self) {
        self.is_retracted = true;
    }

    /// Where it goes.
    pub fn routed(&mut self, destination: &LiveDestination, route: &Route, cluster: &LiveCluster) {
        self.record.destination = Arc::clone(&destination.config.name);
        self.record.route = Arc::clone(&route.name);
        self.record.cluster = Some(cluster.config.name.clone());
    }

    /// Another try.
    pub fn attempted(&mut self, attempt: &Attempt) {
        self.record.attempts += 1;
        self.record.endpoint = Some(attempt.endpoint.config.address);
    }

    /// A relayed connection has ended.
    pub fn relayed(&mut self, passed: &Passed) {
        self.record.bytes_sent = passed.back.get();
        self.received.bytes.set(passed.forth.get());
        self.is_over = true;
    }

    /// The proxy answers itself.
    pub fn failed(&mut self, error: &ProxyError) {
        self.is_over = true;
        self.record.reason = Some(error.disposition().reason);
    }

    /// The response head is on its way.
    pub fn responded(&mut self, status: u16, headers: &HeaderMap) {
        self.is_over = true;
        self.record.status = Some(status);
        self.record.grpc_status = grpc_status(headers);
        self.record.first_response = Some(clock::now().saturating_duration_since(self.started));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.telemetry.metrics.end(self.record.direction);
        if self.is_retracted {
            return;
        }
        self.record.duration = clock::now().saturating_duration_since(self.started);
        self.record.bytes_received = self.received.bytes.get();
        if !self.is_over {
            self.record.reason = Some(CANCELLED);
        }
        self.telemetry.record(&self.record);
    }
}

impl Attempt {
    /// Counts the endpoint as one more in flight.
    pub fn start(cluster: &Arc<LiveCluster>, index: usize) -> Self {
        let endpoint = cluster.endpoints[index].clone();
        Self {
            _outstanding: endpoint.state.begin(),
            endpoint,
            cluster: Arc::clone(cluster),
            is_reported: false,
        }
    }

    /// Whose endpoint it is.
    pub fn cluster(&self) -> &Arc<LiveCluster> {
        &self.cluster
    }

    /// How it ended. Later reports are ignored.
    pub fn report(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.is_reported, true) {
            let endpoint: &EndpointState = &self.endpoint.state;
            self.cluster.observe(endpoint, outcome, clock::now());
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.report(Outcome::Cancelled);
    }
}

impl Ending {
    /// Waits for the end of a response with this status.
    pub fn new(exchange: Exchange, attempt: Option<Attempt>, status: u16, held: Held) -> Self {
        Self {
            exchange,
            attempt,
            status,
            is_over: false,
            _held: held,
        }
    }

    /// The other side of the mesh.
    pub fn peer(&self) -> &Peer {
        &self.exchange.record.peer
    }

    /// A frame passes.
    pub fn saw(&mut self, frame: &Frame<Bytes>) {
        let record = &mut self.exchange.record;
        record.bytes_sent += frame.data_ref().map_or(0, Bytes::len) as u64;
        if let Some(trailers) = frame.trailers_ref() {
            record.grpc_status = grpc_status(trailers).or(record.grpc_status);
        }
    }

    /// The response is complete.
    pub fn completed(&mut self) {
        let outcome = Outcome::Response {
            status: self.status,
            grpc: self.exchange.record.grpc_status,
        };
        self.over(outcome);
    }

    /// An upgraded connection has ended.
    pub fn relayed(&mut self, passed: &Passed) {
        self.exchange.relayed(passed);
        self.completed();
    }

    /// The endpoint's side broke.
    pub fn broke(&mut self) -> &'static str {
        if self.exchange.received.is_broken.get() {
            self.exchange.record.reason = Some(CANCELLED);
            self.over(Outcome::Cancelled);
            return CANCELLED;
        }
        self.exchange.record.reason = Some(RESET);
        self.over(Outcome::Reset);
        RESET
    }

    /// The endpoint's response may not be passed on: the proxy answers in its place.
    pub fn refused(mut self, error: ProxyError) -> Response<Body> {
        self.over(error.outcome());
        self.exchange.failed(&error);
        let response = error::response(&error, self.exchange.record.spoken);
        self.exchange
            .responded(response.status().as_u16(), response.headers());
        response
    }

    /// The deadline passed.
    pub fn timed_out(&mut self) -> &'static str {
        self.exchange.record.reason = Some(DEADLINE);
        self.over(Outcome::TimedOut);
        DEADLINE
    }

    fn over(&mut self, outcome: Outcome) {
        self.is_over = true;
        if let Some(attempt) = &mut self.attempt {
            attempt.report(outcome);
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // A gRPC response is whole once its status was seen: hyper may drop the body right then.
        if !self.is_over && self.exchange.record.grpc_status.is_some() {
            self.completed();
        }
        if !self.is_over {
            self.exchange.record.reason = Some(CANCELLED);
        }
    }
}

/// `grpc-status` of headers or trailers.
fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    let status = headers.get("grpc-status")?;
    let known = status.to_str().ok().and_then(|text| text.parse().ok());
    Some(known.unwrap_or(grpc::UNKNOWN))
}
