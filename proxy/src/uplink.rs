//! Connections to the control plane: which address, whom we accept there, who we say we are.
//!
//! All streams of one certificate share one HTTP/2 connection. After a renewal the next
//! [`Uplink::link`] dials anew; the old connection ends with its last stream.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::{
    causes::chain,
    clock,
    publish::Published,
    tls::{self, Accept, Identity, Trust},
};
use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    config::{Authority, ControlPlane},
    identity::Held,
};

/// For TCP and TLS with one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that does not answer a PING within this is given up.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often PINGs are sent.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// The way to the control plane.
#[derive(Debug)]
pub struct Uplink {
    settings: ControlPlane,
    held: Arc<Published<Held>>,
    /// Of the current certificate.
    current: Mutex<Option<Link>>,
    /// Where the last connection succeeded, to start there next time.
    preferred: Arc<AtomicUsize>,
}

/// A connection (made when first used, and again when lost) under one certificate.
#[derive(Clone, Debug)]
pub struct Link {
    /// For tonic's clients.
    pub channel: Channel,
    identity: Arc<Identity>,
}

/// Why there is no way to the control plane now.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Nothing was issued yet.
    #[error("there is no certificate yet")]
    NoCertificate,
    /// Ours has run out.
    #[error("certificate_expired: our certificate ended and has not been renewed")]
    Expired,
    /// Ours does not fit rustls.
    #[error("building a TLS configuration")]
    Tls(#[from] rustls::Error),
}

/// Why a call ended, for one log line: what the control plane said, or what the transport could
/// not do. The text of a status has the latter only as Debug of its causes.
pub fn words(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => chain(cause),
        None => format!("{} ({:?})", status.message(), status.code()),
    }
}

/// The next message of a stream of the control plane.
///
/// # Errors
/// Why there is none, for one log line.
pub fn received<T>(message: Result<Option<T>, Status>) -> Result<T, String> {
    let message = message.map_err(|status| words(&status))?;
    message.ok_or_else(|| "the control plane ended the stream".to_owned())
}

impl Uplink {
    /// Nothing is dialled before the first use.
    pub fn new(settings: ControlPlane, held: Arc<Published<Held>>) -> Self {
        Self {
            settings,
            held,
            current: Mutex::new(None),
            preferred: Arc::default(),
        }
    }

    /// The shared connection under the current certificate.
    ///
    /// # Errors
    /// [`UplinkError`] while there is no valid certificate.
    pub fn link(&self) -> Result<Link, UplinkError> {
        let held = self.held.load();
        let identity = held.identity.as_ref().ok_or(UplinkError::NoCertificate)?;
        if clock::wall() >= identity.not_after() {
            return Err(UplinkError::Expired);
        }
        if let Some(link) = &*self.current.lock()
            && Arc::ptr_eq(&link.identity, identity)
        {
            return Ok(link.clone());
        }
        let link = Link {
            channel: self.dial(&held, Some(identity))?,
            identity: Arc::clone(identity),
        };
        *self.current.lock() = Some(link.clone());
        Ok(link)
    }

    /// A connection of its own without a certificate, for a caller that has a token.
    ///
    /// # Errors
    /// When the TLS configuration cannot be built.
    pub fn anonymous(&self) -> Result<Channel, UplinkError> {
        self.dial(&self.held.load(), None)
    }

    /// Returns once there is another certificate than the link's.
    pub async fn superseded(&self, link: &Link) {
        let mut changed = self.held.subscribe();
        loop {
            let held = self.held.load();
            if held
                .identity
                .as_ref()
                .is_some_and(|now| !Arc::ptr_eq(now, &link.identity))
            {
                return;
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns once there is a certificate.
    pub async fn certified(&self) {
        let mut changed = self.held.subscribe();
        while self.held.load().identity.is_none() {
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn dial(&self, held: &Held, identity: Option<&Arc<Identity>>) -> Result<Channel, UplinkError> {
        let trust = match &held.trust {
            Some(bundle) => Trust::Bundle(Arc::clone(bundle)),
            None => Trust::Anchor(self.settings.anchor.clone()),
        };
        // Exactly ours: the reserved id of a federated trust domain is somebody else's.
        let control_plane = SpiffeId::control_plane(&self.settings.trust_domain);
        let accept = Accept::OneOf(Arc::new([control_plane]));
        let tls = tls::client(identity.map(AsRef::as_ref), trust, accept, &[b"h2"])?;
        let dialer = Dialer {
            addresses: self.settings.addresses.clone().into(),
            preferred: Arc::clone(&self.preferred),
            tls,
        };
        // TLS is the dialer's, so the scheme is not tonic's business. The authority is the first
        // address whichever is dialled: it names the service, not the connection.
        let uri = format!("http://{}", self.settings.addresses[0]);
        let endpoint = Endpoint::from_shared(uri)
            .expect("an authority that was parsed makes a URI")
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .buffer_size(16)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(2 * WINDOW);
        Ok(endpoint.connect_with_connector_lazy(dialer))
    }
}

/// Largest unread data of a stream.
const WINDOW: u32 = 1 << 20;

/// tonic's way to a connection.
#[derive(Clone, Debug)]
struct Dialer {
    addresses: Arc<[Authority]>,
    preferred: Arc<AtomicUsize>,
    tls: Arc<ClientConfig>,
}

type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<TlsStream<TcpStream>>>> + Send>>;

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Connecting {
        let dialer = self.clone();
        Box::pin(async move { dialer.dial_any().await.map(TokioIo::new) })
    }
}

impl Dialer {
    /// The first address that answers, beginning with the one that did last time.
    async fn dial_any(&self) -> io::Result<TlsStream<TcpStream>> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = io::Error::other("no address is configured");
        for i in 0..self.addresses.len() {
            let at = (first + i) % self.addresses.len();
            let address = &self.addresses[at];
            let dialled = timeout(CONNECT_TIMEOUT, Box::pin(self.dial(address))).await;
            match dialled.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                Err(error) => {
                    failure = io::Error::new(error.kind(), format!("{address}: {error}"));
                }
            }
        }
        Err(failure)
    }

    async fn dial(&self, address: &Authority) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(address.host.clone()).map_err(io::Error::other)?;
        TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await
    }
}
