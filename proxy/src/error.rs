//! How a failure is answered, and what failures of I/O are in the words of a client.

use std::io;

use heddle_relay::error::{ConnectError, Disposition, ProxyError, grpc_message};
use http::{HeaderValue, Response, StatusCode, header};
use rustls::{AlertDescription, CertificateError, OtherError};

use crate::{
    body::Body,
    exchange::{Exchange, Spoken},
    tls::TlsError,
};

/// Carries the reason word of an answer that the proxy made itself. Nobody else may set it: it
/// is stripped where traffic enters.
pub const REASON: http::HeaderName = http::HeaderName::from_static("x-heddle-reason");

/// Answers an exchange.
pub fn answer(error: &ProxyError, mut exchange: Exchange) -> Response<Body> {
    exchange.failed(error);
    let response = response(error, exchange.record.spoken);
    exchange.responded(response.status().as_u16(), response.headers());
    response
}

/// The answer: trailers-only for gRPC, a short text otherwise.
pub fn response(error: &ProxyError, spoken: Spoken) -> Response<Body> {
    let Disposition {
        status,
        grpc,
        reason,
    } = error.disposition();
    let text = error.text();
    let mut response = if spoken == Spoken::Grpc {
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", HeaderValue::from(grpc));
        headers.insert("grpc-message", message_header(&text));
        response
    } else {
        let mut response = Response::new(Body::full(format!("{text}\n")));
        *response.status_mut() = StatusCode::from_u16(status).expect("the table holds valid codes");
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    };
    let headers = response.headers_mut();
    headers.insert(REASON, HeaderValue::from_static(reason));
    if spoken == Spoken::Http1 && error.is_malformed() {
        // Where the next request of such a client begins is anybody's guess.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The value of a `grpc-message`.
pub fn message_header(text: &str) -> HeaderValue {
    HeaderValue::try_from(grpc_message(text)).expect("only printable ASCII is left")
}

/// Why there is no connection, when the machine says so.
pub fn of_io(error: &io::Error) -> ConnectError {
    match error.raw_os_error() {
        // No descriptor, no memory, no free port.
        Some(
            libc::EMFILE
            | libc::ENFILE
            | libc::ENOBUFS
            | libc::ENOMEM
            | libc::EADDRNOTAVAIL
            | libc::EADDRINUSE,
        ) => ConnectError::Local(error.to_string()),
        _ => ConnectError::Tcp(error.to_string()),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use heddle_policy::outcome::Outcome;

    use super::*;

    #[test]
    fn a_grpc_client_gets_status_and_message_in_the_headers() {
        let response = response(&ProxyError::Deadline, Spoken::Grpc);
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()[&REASON], "deadline");
    }

    #[test]
    fn an_http_client_gets_a_status_and_the_reason() {
        let response = response(&ProxyError::Denied, Spoken::Http1);
        assert_eq!(response.status(), 403);
        assert_eq!(response.headers()[&REASON], "denied");
    }

    #[test]
    fn what_this_side_lacks_is_no_endpoints_failure() {
        let os = |code| of_io(&io::Error::from_raw_os_error(code));
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
}
