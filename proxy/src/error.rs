//! Everything a client can observe to go wrong, and the one table that says how it looks.

use std::{io, time::Duration};

use heddle_policy::outcome::{Outcome, grpc};
use heddle_shell::causes::chain;
use http::{HeaderValue, Response, StatusCode, header};
use rustls::{AlertDescription, CertificateError, OtherError};
use thiserror::Error;

use crate::{
    body::Body,
    exchange::{Exchange, Spoken},
    tls::TlsError,
};

/// Carries the reason word of an answer that the proxy made itself. Nobody else may set it: it
/// is stripped where traffic enters.
pub const REASON: http::HeaderName = http::HeaderName::from_static("x-heddle-reason");

/// Reason word of what broke after its response had begun, and of bytes.
pub const RESET: &str = "reset";
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
    #[error("the endpoint refused the stream")]
    Refused(#[source] hyper::Error),
    /// The connection broke before a response.
    #[error("the connection to the endpoint broke before a response")]
    Reset(#[source] hyper::Error),
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
    pub status: StatusCode,
    /// For gRPC.
    pub grpc: u32,
    /// `x-heddle-reason`, and the label in metrics.
    pub reason: &'static str,
}

impl ProxyError {
    /// The one place a failure becomes a status and a label.
    pub fn disposition(&self) -> Disposition {
        let (status, code, reason) = match self {
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
            Self::HeadersTooLarge => (431, grpc::RESOURCE_EXHAUSTED, "headers_too_large"),
            Self::ConnectRefused => (405, grpc::UNIMPLEMENTED, "connect_refused"),
        };
        Disposition {
            status: StatusCode::from_u16(status).expect("the table holds valid codes"),
            grpc: code,
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
    fn is_malformed(&self) -> bool {
        matches!(self, Self::BadRequest(_) | Self::HeadersTooLarge)
    }

    /// Answers an exchange.
    pub fn answer(self, mut exchange: Exchange) -> Response<Body> {
        exchange.failed(&self);
        let response = self.into_response(exchange.record.spoken);
        exchange.responded(response.status().as_u16(), response.headers());
        response
    }

    /// The answer: trailers-only for gRPC, a short text otherwise.
    pub fn into_response(self, spoken: Spoken) -> Response<Body> {
        let Disposition {
            status,
            grpc,
            reason,
        } = self.disposition();
        let text = chain(&self);
        let mut response = if spoken == Spoken::Grpc {
            let mut response = Response::new(Body::Empty);
            let headers = response.headers_mut();
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/grpc"),
            );
            headers.insert("grpc-status", HeaderValue::from(grpc));
            headers.insert("grpc-message", grpc_message(&text));
            response
        } else {
            let mut response = Response::new(Body::full(format!("{text}\n")));
            *response.status_mut() = status;
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            response
        };
        let headers = response.headers_mut();
        headers.insert(REASON, HeaderValue::from_static(reason));
        if spoken == Spoken::Http1 && self.is_malformed() {
            // Where the next request of such a client begins is anybody's guess.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The answer to an HTTP/1.1 connection that is closed before HTTP is spoken on it.
    pub fn http1_bytes(&self) -> String {
        let Disposition { status, reason, .. } = self.disposition();
        let text = format!("{}\n", chain(self));
        format!(
            "HTTP/1.1 {status}\r\n{REASON}: {reason}\r\nconnection: close\r\n\
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

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            // No descriptor, no memory, no free port.
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE,
            ) => Self::Local(error.to_string()),
            _ => Self::Tcp(error.to_string()),
        }
    }
}

impl From<TlsError> for ConnectError {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::NoCertificate => Self::NoCertificate,
            TlsError::CertificateExpired => Self::CertificateExpired,
            TlsError::Configuration(error) => Self::Tls(error.to_string()),
            TlsError::Handshake(error) if is_expiry(&error) => Self::PeerExpired,
            TlsError::Handshake(error) => Self::Tls(in_words(&error)),
        }
    }
}

/// rustls wraps what our verifiers say.
fn in_words(error: &io::Error) -> String {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(refusal)))) => {
            refusal.to_string()
        }
        _ => error.to_string(),
    }
}

fn is_expiry(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(error) = inner else { return false };
    match error {
        rustls::Error::InvalidCertificate(error) => matches!(
            error,
            CertificateError::Expired | CertificateError::ExpiredContext { .. }
        ),
        rustls::Error::AlertReceived(alert) => *alert == AlertDescription::CertificateExpired,
        _ => false,
    }
}

/// A `grpc-message`: percent-encoded outside printable ASCII (gRPC HTTP/2 specification).
pub fn grpc_message(text: &str) -> HeaderValue {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    HeaderValue::try_from(encoded).expect("only printable ASCII is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_client_gets_status_and_message_in_the_headers() {
        let response = ProxyError::Deadline.into_response(Spoken::Grpc);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()[&REASON], "deadline");
    }

    #[test]
    fn an_http_client_gets_a_status_and_the_reason() {
        let response = ProxyError::Denied.into_response(Spoken::Http1);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()[&REASON], "denied");
    }

    #[test]
    fn what_this_side_lacks_is_no_endpoints_failure() {
        let os = |code| ConnectError::from(io::Error::from_raw_os_error(code));
        let wait = Duration::from_secs(2);
        for (source, expected) in [
            (ConnectError::Full, Outcome::Cancelled),
            (ConnectError::NoCertificate, Outcome::Cancelled),
            (ConnectError::CertificateExpired, Outcome::Cancelled),
            (os(libc::EMFILE), Outcome::Cancelled),
            (os(libc::ENFILE), Outcome::Cancelled),
            (os(libc::EADDRNOTAVAIL), Outcome::Cancelled),
            (os(libc::ECONNREFUSED), Outcome::ConnectFailed),
            (os(libc::EHOSTUNREACH), Outcome::ConnectFailed),
            (ConnectError::PeerExpired, Outcome::ConnectFailed),
            (ConnectError::Timeout(wait), Outcome::ConnectFailed),
        ] {
            let endpoint = "192.0.2.1:80".parse().unwrap();
            let error = ProxyError::Connect { endpoint, source };
            assert_eq!(error.outcome(), expected, "{error:?}");
        }
        assert_eq!(ProxyError::Queued.outcome(), Outcome::Cancelled);
    }

    #[test]
    fn a_message_survives_percent_encoding() {
        assert_eq!(grpc_message("50 % für\n"), "50 %25 f%C3%BCr%0A");
    }
}
