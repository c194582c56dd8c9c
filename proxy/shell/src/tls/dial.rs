//! A TLS connection to the control plane, for whatever speaks over it.

use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// TCP and handshake together.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sent as SNI. The name proves nothing, the SPIFFE id does; a proxy in between may route by it.
const SERVER_NAME: &str = "heddle-control-plane.heddle-system.svc";

/// Connects to `address` (`host:port`).
///
/// # Errors
/// What failed: resolving, connecting, the handshake, or taking more than 5 s.
pub async fn dial(address: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connect = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).expect("the constant is a DNS name");
        TlsConnector::from(config).connect(name, stream).await
    };
    timeout(TIMEOUT, connect).await.unwrap_or_else(|_elapsed| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("connecting to {address} took more than {TIMEOUT:?}"),
        ))
    })
}
