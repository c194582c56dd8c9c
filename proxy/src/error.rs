//! What failures of I/O are in the words of a client.

use std::io;

use heddle_relay::error::ConnectError;
use rustls::{AlertDescription, CertificateError, OtherError};

use crate::tls::TlsError;

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
    use heddle_relay::error::ProxyError;

    use super::*;

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
