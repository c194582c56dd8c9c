//! Everything a client can observe to go wrong, and the one table that says how it looks.

use std::time::Duration;

use heddle_policy::outcome::{Outcome, grpc};
use thiserror::Error;

/// Reason word of what broke after its response had begun, and of bytes.
pub const RESET: &str = "reset";
const HEADERS_TOO_LARGE: u16 = 431;

/// Reason word of what took too long, before or after its response had begun.
pub const DEADLINE: &str = "deadline";
/// Reason word of a client that gave up.
pub const CANCELLED: &str = "cancelled";

/// Why the proxy answers in place of an endpoint.
#[derive(Debug, Error)]
pub enum ProxyError {
    /// Nothing describes what the client dialled, and policy refuses the unknown.
    #[error("nothing is known about this destination")]
    UnknownDestination,
    /// The control plane has not answered in time about a destination inside the mesh.
    #[error("the control plane has not described this destination within {0:?}")]
    Undescribed(Duration),
    /// It would go there in plaintext, where mutual TLS was spoken before.
    #[error("{0} was meshed and is not described so any more; nothing goes there in plaintext")]
    OnceMeshed(std::net::SocketAddr),
    /// No route matches.
    #[error("no route matches this request")]
    NoRoute,
    /// The cluster has no endpoint that takes requests.
    #[error("cluster {0} has no endpoint that takes requests")]
    NoEndpoint(heddle_policy::snapshot::ClusterName),
    /// No connection to an endpoint.
    #[error("connecting to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: std::net::SocketAddr,
        /// Why not.
        source: ConnectError,
    },
    /// The endpoint refused the stream and there was no other to try.
    #[error("the endpoint refused the stream: {0}")]
    Refused(String),
    /// The connection broke before a response.
    #[error("the connection to the endpoint broke before a response: {0}")]
    Reset(String),
    /// The route's or the caller's time ran out.
    #[error("the deadline passed before the response was complete")]
    Deadline,
    /// As [`ProxyError::Deadline`], or the time for one attempt, but spent waiting for a
    /// connection to be free.
    #[error("the deadline passed while every allowed connection was in use")]
    Queued,
    /// One attempt's time ran out, and no other was allowed.
    #[error("the endpoint did not answer in the time for one attempt")]
    AttemptTimeout,
    /// A limit of the cluster or of the process.
    #[error("{0}")]
    Overloaded(String),
    /// Rules refuse the peer or what it asks for.
    #[error("the rules of this workload do not allow this")]
    Denied,
    /// Plaintext where mutual TLS is required.
    #[error("this workload accepts mutual TLS only; the caller spoke plaintext")]
    PlaintextRefused,
    /// The request is not one that may be forwarded.
    #[error("{0}")]
    BadRequest(&'static str),
    /// The endpoint's response is not one that may be forwarded.
    #[error("{0}")]
    BadResponse(&'static str),
    /// What came is not HTTP/1.1.
    #[error("{}", .0.reason)]
    Malformed(#[from] crate::h1::Malformed),
    /// Too many or too long headers.
    #[error("the request's headers are larger than this proxy accepts")]
    HeadersTooLarge,
    /// `CONNECT`, which would make this an open relay.
    #[error("CONNECT is not forwarded")]
    ConnectRefused,
}

/// Why there is no connection. Shared by all who waited for it.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// TCP.
    #[error("{0}")]
    Tcp(String),
    /// TLS: handshake, wrong identity.
    #[error("{0}")]
    Tls(String),
    /// Our own certificate has run out.
    #[error("this sidecar's certificate has expired; is the control plane reachable?")]
    CertificateExpired,
    /// The endpoint's has.
    #[error("the endpoint's certificate has expired; does its sidecar reach the control plane?")]
    PeerExpired,
    /// We have none yet.
    #[error("this sidecar has no certificate yet; is the control plane reachable?")]
    NoCertificate,
    /// Neither within the connect timeout.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// This process or machine has no room for another connection.
    #[error("this sidecar has no room for another connection: {0}")]
    Local(String),
    /// As many connections as are allowed, all full.
    #[error("every allowed connection is in use")]
    Full,
}

/// How a failure looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disposition {
    /// For HTTP.
    pub status: u16,
    /// For gRPC.
    pub grpc: u32,
    /// `x-heddle-reason`, and the label in metrics.
    pub reason: &'static str,
}

impl ProxyError {
    /// The one place a failure becomes a status and a label.
    pub fn disposition(&self) -> Disposition {
        let (status, grpc, reason) = match self {
            Self::UnknownDestination => (502, grpc::UNAVAILABLE, "unknown_destination"),
            Self::Undescribed(_) => (503, grpc::UNAVAILABLE, "undescribed"),
            Self::OnceMeshed(_) => (503, grpc::UNAVAILABLE, "once_meshed"),
            Self::NoRoute => (404, grpc::UNIMPLEMENTED, "no_route"),
            Self::NoEndpoint(_) => (503, grpc::UNAVAILABLE, "no_endpoint"),
            Self::Connect { source, .. } => (503, grpc::UNAVAILABLE, source.reason()),
            Self::Refused(_) => (503, grpc::UNAVAILABLE, "refused"),
            Self::Reset(_) => (503, grpc::UNAVAILABLE, RESET),
            Self::Deadline => (504, grpc::DEADLINE_EXCEEDED, DEADLINE),
            Self::Queued => (504, grpc::DEADLINE_EXCEEDED, DEADLINE),
            Self::AttemptTimeout => (504, grpc::DEADLINE_EXCEEDED, "attempt_timeout"),
            Self::Overloaded(_) => (503, grpc::UNAVAILABLE, "overloaded"),
            Self::Denied => (403, grpc::PERMISSION_DENIED, "denied"),
            Self::PlaintextRefused => (403, grpc::PERMISSION_DENIED, "plaintext_refused"),
            Self::BadRequest(_) => (400, grpc::INTERNAL, "bad_request"),
            Self::BadResponse(_) => (502, grpc::UNAVAILABLE, "bad_response"),
            Self::Malformed(malformed) if malformed.status == HEADERS_TOO_LARGE => (
                HEADERS_TOO_LARGE,
                grpc::RESOURCE_EXHAUSTED,
                "headers_too_large",
            ),
            Self::Malformed(malformed) => (malformed.status, grpc::INTERNAL, "bad_request"),
            Self::HeadersTooLarge => (
                HEADERS_TOO_LARGE,
                grpc::RESOURCE_EXHAUSTED,
                "headers_too_large",
            ),
            Self::ConnectRefused => (405, grpc::UNIMPLEMENTED, "connect_refused"),
        };
        Disposition {
            status,
            grpc,
            reason,
        }
    }

    /// What it says about the endpoint of the attempt that ended with it.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Connect { source, .. } => source.outcome(),
            Self::Refused(_) => Outcome::Refused,
            Self::Reset(_) | Self::BadResponse(_) => Outcome::Reset,
            Self::Deadline | Self::AttemptTimeout => Outcome::TimedOut,
            // Made before any endpoint was asked.
            Self::Queued
            | Self::UnknownDestination
            | Self::Undescribed(_)
            | Self::OnceMeshed(_)
            | Self::NoRoute
            | Self::NoEndpoint(_)
            | Self::Overloaded(_)
            | Self::Denied
            | Self::PlaintextRefused
            | Self::BadRequest(_)
            | Self::Malformed(_)
            | Self::HeadersTooLarge
            | Self::ConnectRefused => Outcome::Cancelled,
        }
    }

    /// What the reason word of another sidecar proves: its application has not seen the
    /// request, so another endpoint may be tried whatever the method.
    pub fn unseen(reason: &[u8]) -> Option<Outcome> {
        match reason {
            b"connect" | b"connect_timeout" => Some(Outcome::Unreached),
            b"refused" => Some(Outcome::Refused),
            _ => None,
        }
    }

    /// Whether the request is not what HTTP allows.
    pub fn is_malformed(&self) -> bool {
        matches!(
            self,
            Self::BadRequest(_) | Self::Malformed(_) | Self::HeadersTooLarge
        )
    }

    /// In words, with the cause.
    pub fn text(&self) -> String {
        match self {
            Self::Connect { source, .. } => format!("{self}: {source}"),
            Self::UnknownDestination
            | Self::Undescribed(_)
            | Self::OnceMeshed(_)
            | Self::NoRoute
            | Self::NoEndpoint(_)
            | Self::Refused(_)
            | Self::Reset(_)
            | Self::Deadline
            | Self::Queued
            | Self::AttemptTimeout
            | Self::Overloaded(_)
            | Self::Denied
            | Self::PlaintextRefused
            | Self::BadRequest(_)
            | Self::BadResponse(_)
            | Self::Malformed(_)
            | Self::HeadersTooLarge
            | Self::ConnectRefused => self.to_string(),
        }
    }

    /// The answer to an HTTP/1.1 connection that is closed before HTTP is spoken on it.
    pub fn http1_bytes(&self) -> String {
        let Disposition { status, reason, .. } = self.disposition();
        let text = format!("{}\n", self.text());
        format!(
            "HTTP/1.1 {status} \r\nx-heddle-reason: {reason}\r\nconnection: close\r\n\
             content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        )
    }
}

impl ConnectError {
    /// What it says about the endpoint: nothing, where it was not asked.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Tcp(_) | Self::Tls(_) | Self::PeerExpired | Self::Timeout(_) => {
                Outcome::ConnectFailed
            }
            Self::CertificateExpired | Self::NoCertificate | Self::Local(_) | Self::Full => {
                Outcome::Cancelled
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "connect",
            Self::Tls(_) => "tls",
            Self::CertificateExpired | Self::PeerExpired => "certificate_expired",
            Self::NoCertificate => "no_certificate",
            Self::Timeout(_) => "connect_timeout",
            Self::Full | Self::Local(_) => "overloaded",
        }
    }
}

/// A `grpc-message`: percent-encoded outside printable ASCII (gRPC HTTP/2 specification).
pub fn grpc_message(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_survives_percent_encoding() {
        assert_eq!(grpc_message("50 % für\n"), "50 %25 f%C3%BCr%0A");
    }
}
