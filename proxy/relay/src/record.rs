//! Words for the facts of an exchange.

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
