//! What became of an attempt, and what that means to ejection, balancing and retries.
//!
//! An [`Outcome`] is reported once per attempt, also when the attempt is dropped. For a gRPC
//! exchange the status usually arrives in trailers, so the outcome of a response that was
//! already committed is known only at the end of its body.

use crate::{
    outlier::FailureKind,
    retry::{RetryOn, StatusSet},
};

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The endpoint answered.
    Response {
        /// HTTP status.
        status: u16,
        /// `grpc-status` of the headers (trailers-only) or the trailers. `None`: not gRPC, or
        /// not known yet.
        grpc: Option<u32>,
    },
    /// No connection could be made: nothing was sent.
    ConnectFailed,
    /// The endpoint's sidecar could not connect to its application: nothing was processed.
    Unreached,
    /// REFUSED_STREAM, or a GOAWAY below the stream's id: nothing was processed
    /// (RFC 9113 sections 6.8 and 8.7).
    Refused,
    /// The connection or stream broke; the endpoint may have processed the request.
    Reset,
    /// The attempt's time, or the whole deadline, ran out.
    TimedOut,
    /// The client gave up.
    Cancelled,
}

/// What an outcome says about the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It works.
    Success,
    /// It failed.
    Failure,
    /// Nothing.
    Neutral,
}

impl Outcome {
    /// A response whose `grpc-status`, if any, is this header's value. A status that is no
    /// number is UNKNOWN, as gRPC clients see it.
    pub fn response(status: u16, grpc_status: Option<&[u8]>) -> Self {
        let grpc = grpc_status.map(|text| {
            let text = std::str::from_utf8(text).unwrap_or_default();
            text.parse().unwrap_or(grpc::UNKNOWN)
        });
        Self::Response { status, grpc }
    }

    /// For ejection.
    pub fn blame(self, counts: FailureKind) -> Blame {
        match self {
            Self::Response { status, grpc } => {
                let status = effective(status, grpc);
                let is_failure = match counts {
                    FailureKind::GatewayErrors => matches!(status, 502..=504),
                    FailureKind::ServerErrors => status >= 500,
                };
                if is_failure {
                    Blame::Failure
                } else {
                    Blame::Success
                }
            }
            Self::ConnectFailed | Self::Unreached | Self::Reset | Self::TimedOut => Blame::Failure,
            // A draining endpoint refuses streams and is well; one that refuses them all is
            // avoided by balancing.
            Self::Refused => Blame::Neutral,
            // The client gave up; that says nothing about the endpoint.
            Self::Cancelled => Blame::Neutral,
        }
    }

    /// For balancing: whether the endpoint got rid of the attempt without doing its work, so
    /// that a low number of outstanding requests says nothing good about it.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Response { status, grpc } => effective(status, grpc) >= 500,
            Self::ConnectFailed
            | Self::Unreached
            | Self::Refused
            | Self::Reset
            | Self::TimedOut => true,
            Self::Cancelled => false,
        }
    }

    /// Whether it is proven that no application code saw the request.
    pub fn is_unprocessed(self) -> bool {
        match self {
            Self::ConnectFailed | Self::Unreached | Self::Refused => true,
            Self::Response { .. } | Self::Reset | Self::TimedOut | Self::Cancelled => false,
        }
    }

    /// Whether a route that retries `on` these conditions would retry this.
    pub fn is_retried(self, on: &RetryOn) -> bool {
        match self {
            Self::Response { status, grpc } => match grpc {
                // Envoy's and gRPC's rule: a gRPC status decides, not the 200 that carries it.
                Some(code) => {
                    code != grpc::OK
                        && (code < u32::BITS && on.grpc & (1 << code) != 0
                            || response_is_retried(effective(status, grpc), on))
                }
                None => response_is_retried(status, on),
            },
            Self::ConnectFailed | Self::Unreached => on.connect_failure || on.server_error,
            Self::Refused => on.refused_stream || on.server_error,
            Self::Reset | Self::TimedOut => on.reset || on.server_error || on.gateway_error,
            Self::Cancelled => false,
        }
    }
}

fn response_is_retried(status: u16, on: &RetryOn) -> bool {
    (on.server_error && status >= 500)
        || (on.gateway_error && matches!(status, 502..=504))
        || (on.retriable_4xx && status == 409)
        || StatusSet::contains(&on.statuses, status)
}

/// The HTTP status that a gRPC status stands for, by the table Envoy's outlier detection and
/// gRPC's own gateways use; the HTTP status itself where there is none.
fn effective(status: u16, grpc: Option<u32>) -> u16 {
    let Some(code) = grpc else { return status };
    match code {
        grpc::OK => 200,
        grpc::UNKNOWN | grpc::INTERNAL | grpc::DATA_LOSS => 500,
        grpc::UNIMPLEMENTED => 501,
        grpc::UNAVAILABLE => 503,
        grpc::DEADLINE_EXCEEDED => 504,
        // The caller's fault, or a state both sides expect.
        _ => 400,
    }
}

/// gRPC status codes that policies name.
pub mod grpc {
    /// Success.
    pub const OK: u32 = 0;
    /// The caller gave up.
    pub const CANCELLED: u32 = 1;
    /// No better code.
    pub const UNKNOWN: u32 = 2;
    /// Time ran out.
    pub const DEADLINE_EXCEEDED: u32 = 4;
    /// The caller is known and may not.
    pub const PERMISSION_DENIED: u32 = 7;
    /// A quota, or an overload.
    pub const RESOURCE_EXHAUSTED: u32 = 8;
    /// No such method.
    pub const UNIMPLEMENTED: u32 = 12;
    /// An invariant broke.
    pub const INTERNAL: u32 = 13;
    /// Try again.
    pub const UNAVAILABLE: u32 = 14;
    /// Unrecoverable.
    pub const DATA_LOSS: u32 = 15;
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn http(status: u16) -> Outcome {
        Outcome::Response { status, grpc: None }
    }

    const fn code(code: u32) -> Outcome {
        Outcome::Response {
            status: 200,
            grpc: Some(code),
        }
    }

    /// Blame when gateway errors count, when server errors count, and the balancer's view.
    #[track_caller]
    fn check(outcome: Outcome, gateway: Blame, server: Blame, is_failure: bool) {
        assert_eq!(outcome.blame(FailureKind::GatewayErrors), gateway);
        assert_eq!(outcome.blame(FailureKind::ServerErrors), server);
        assert_eq!(outcome.is_failure(), is_failure);
    }

    #[test]
    fn a_gateway_error_is_a_failure_of_the_endpoint() {
        for outcome in [
            http(502),
            http(503),
            http(504),
            code(grpc::UNAVAILABLE),
            code(grpc::DEADLINE_EXCEEDED),
            Outcome::ConnectFailed,
            Outcome::Unreached,
            Outcome::Reset,
            Outcome::TimedOut,
        ] {
            check(outcome, Blame::Failure, Blame::Failure, true);
        }
    }

    #[test]
    fn another_server_error_counts_only_when_asked() {
        for outcome in [http(500), http(501), code(grpc::INTERNAL), code(2)] {
            check(outcome, Blame::Success, Blame::Failure, true);
        }
    }

    #[test]
    fn the_callers_own_errors_are_successes_of_the_endpoint() {
        for outcome in [http(200), http(404), http(429), code(0), code(5), code(99)] {
            check(outcome, Blame::Success, Blame::Success, false);
        }
    }

    #[test]
    fn a_refused_stream_and_a_cancellation_blame_nobody() {
        check(Outcome::Refused, Blame::Neutral, Blame::Neutral, true);
        check(Outcome::Cancelled, Blame::Neutral, Blame::Neutral, false);
    }

    #[test]
    fn a_grpc_status_that_is_no_number_is_unknown() {
        assert_eq!(Outcome::response(200, Some(b"14")), code(14));
        assert_eq!(Outcome::response(200, Some(b"x")), code(grpc::UNKNOWN));
        assert_eq!(Outcome::response(200, Some(b"\xff")), code(grpc::UNKNOWN));
        assert_eq!(Outcome::response(503, None), http(503));
    }
}
