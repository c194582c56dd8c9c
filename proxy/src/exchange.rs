//! The facts of one finished exchange or relayed connection, and the exactly-once report of a
//! connection that is none of HTTP. Exchanges are the relay's.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::outcome::Outcome;
use heddle_policy::{snapshot::ClusterName, spiffe::Peer};
use heddle_relay::{
    cluster::{EndpointState, LiveCluster, LiveEndpoint, Outstanding},
    error::{CANCELLED, ProxyError},
    relay,
    token::Token,
};
use heddle_shell::clock;

use crate::{relay::Passed, telemetry::Telemetry};

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

/// What is counted of a record, whether or not anybody wants the rest.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// As [`Record::direction`].
    pub direction: Direction,
    /// As [`Record::spoken`].
    pub spoken: Spoken,
    /// As [`Record::status`].
    pub status: Option<u16>,
    /// As [`Record::grpc_status`].
    pub grpc_status: Option<u32>,
    /// As [`Record::reason`].
    pub reason: Option<&'static str>,
    /// As [`Record::attempts`].
    pub attempts: u32,
    /// As [`Record::bytes_received`].
    pub bytes_received: u64,
    /// As [`Record::bytes_sent`].
    pub bytes_sent: u64,
    /// As [`Record::duration`].
    pub duration: Duration,
    /// Whether it has a trace that is sampled.
    pub is_sampled: bool,
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

    /// What is counted of it.
    pub fn counted(&self) -> Counted {
        Counted {
            direction: self.direction,
            spoken: self.spoken,
            status: self.status,
            grpc_status: self.grpc_status,
            reason: self.reason,
            attempts: self.attempts,
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            duration: self.duration,
            is_sampled: self.trace.is_some_and(|trace| trace.is_sampled),
        }
    }
}

/// In words, for who wants them: it allocates.
impl From<&relay::Record> for Record {
    fn from(record: &relay::Record) -> Self {
        let text = |value: Option<&[u8]>| -> Arc<str> {
            String::from_utf8_lossy(value.unwrap_or_default()).into()
        };
        let caller = &record.caller;
        let head = record.request.is_some().then_some(&record.head);
        let destination = record.destination.as_ref();
        Self {
            direction: record.direction,
            spoken: record.spoken,
            destination: match destination {
                Some(destination) => Arc::clone(&destination.config.name),
                None => name_of(&caller.dialled),
            },
            route: match &record.route {
                Some(route) => Arc::clone(&route.name),
                None => "".into(),
            },
            cluster: record.cluster.as_ref().map(|live| live.config.name.clone()),
            endpoint: record.endpoint,
            peer: record.peer.clone(),
            client: caller.address,
            method: text(head.and_then(|head| head.get(Token::Method))),
            path: record
                .request
                .map_or("", |request| request.path(&record.head))
                .into(),
            status: record.status,
            grpc_status: record.grpc_status,
            reason: record.reason,
            attempts: record.attempts,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            duration: record.duration,
            first_response: record.first_response,
            request_id: text(head.and_then(|head| head.get(Token::XRequestId))),
            trace: record.request.map(|request| request.trace),
        }
    }
}

/// What is counted of an exchange.
impl From<&relay::Record> for Counted {
    fn from(record: &relay::Record) -> Self {
        Self {
            direction: record.direction,
            spoken: record.spoken,
            status: record.status,
            grpc_status: record.grpc_status,
            reason: record.reason,
            attempts: record.attempts,
            bytes_received: record.bytes_received,
            bytes_sent: record.bytes_sent,
            duration: record.duration,
            is_sampled: record
                .request
                .is_some_and(|request| request.trace.is_sampled),
        }
    }
}

fn name_of(dialled: &relay::Dialled) -> Arc<str> {
    match dialled {
        relay::Dialled::Destination(key) => key.to_string().into(),
        relay::Dialled::Authority => "".into(),
        relay::Dialled::Port(port) => port.application.to_string().into(),
    }
}

/// One relayed connection in progress, or one that is refused before anything was spoken on it.
/// Its record is handed over when it is dropped, however that comes about.
#[derive(Debug)]
pub struct Exchange {
    /// The facts so far.
    pub record: Record,
    started: Instant,
    /// It came to an end; otherwise the client gave up.
    is_over: bool,
    /// It was none after all.
    is_retracted: bool,
    telemetry: Arc<Telemetry>,
}

/// One try against one endpoint. Reports exactly one outcome; when it is dropped without one, the
/// client gave up.
#[derive(Debug)]
pub struct Attempt {
    /// Whom it was sent to.
    pub endpoint: LiveEndpoint,
    cluster: Arc<LiveCluster>,
    is_reported: bool,
    /// Counted as load until the end of the connection.
    _outstanding: Outstanding,
}

impl Exchange {
    /// Starts the clock.
    pub fn start(record: Record, telemetry: Arc<Telemetry>) -> Self {
        telemetry.metrics.begin(record.direction, 1);
        Self {
            record,
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

    /// Another try.
    pub fn attempted(&mut self, attempt: &Attempt) {
        self.record.attempts += 1;
        self.record.endpoint = Some(attempt.endpoint.config.address);
    }

    /// A relayed connection has ended.
    pub fn relayed(&mut self, passed: &Passed) {
        self.record.bytes_sent = passed.back.get();
        self.record.bytes_received = passed.forth.get();
        self.is_over = true;
    }

    /// There is nobody to relay to, or the client may not.
    pub fn failed(&mut self, error: &ProxyError) {
        self.is_over = true;
        self.record.reason = Some(error.disposition().reason);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.telemetry.metrics.end(self.record.direction);
        if self.is_retracted {
            return;
        }
        self.record.duration = clock::now().saturating_duration_since(self.started);
        if !self.is_over {
            self.record.reason = Some(CANCELLED);
        }
        let record = &self.record;
        self.telemetry.record(&record.counted(), || record.clone());
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
