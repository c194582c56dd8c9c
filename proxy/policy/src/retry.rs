//! Retries: when a failed attempt is worth another, and how long to wait before it.

use std::{num::NonZeroU32, time::Duration};

/// Retry policy of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Retries after the first attempt (`attempts`).
    pub retries_max: NonZeroU32,
    /// Time for one attempt, response headers included. `None`: only the whole deadline.
    pub attempt_timeout: Option<Duration>,
    /// What is retried.
    pub on: RetryOn,
    /// First wait.
    pub backoff_base: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

/// Conditions of `retryOn`, in the words of Envoy, Istio and gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// A connection could not be made.
    pub connect_failure: bool,
    /// HTTP/2 REFUSED_STREAM.
    pub refused_stream: bool,
    /// Disconnect, reset or attempt timeout before response headers.
    pub reset: bool,
    /// Any 5xx, and everything above.
    pub server_error: bool,
    /// 502, 503, 504.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// gRPC statuses, as bits by code.
    pub grpc: u32,
    /// The method may be repeated although HTTP does not call it idempotent. True when the
    /// route asks for conditions beyond those that prove nothing was processed.
    pub any_method: bool,
}
