//! The facts of one exchange or one relayed connection, and their exactly-once report.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_policy::{snapshot::ClusterName, spiffe::Peer};

/// Relative to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the workload.
    Outbound,
    /// To the workload.
    Inbound,
}

/// What was spoken with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2 with another content type than gRPC's.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes: one record for a connection.
    Tcp,
}

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
    pub grpc_status: Option<u16>,
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

/// Ids of a span (W3C trace context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// Of the whole trace.
    pub trace_id: u128,
    /// Of this hop.
    pub span_id: u64,
    /// Of the caller's span, if there is one.
    pub parent_id: Option<u64>,
    /// The caller's decision, kept.
    pub is_sampled: bool,
}
