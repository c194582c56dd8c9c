//! Connections of the gRPC port: TLS with an optional client certificate, ALPN `h2`.
//!
//! Every handshake runs in its own task, with a time limit; handshakes and connections are
//! counted and bounded. What has proven nothing has its own, smaller bound, so that strangers
//! cannot keep sidecars out.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_shell::{clock, publish::Published, task::Tasks, tls};
use prometheus_client::metrics::gauge::Gauge;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::transport::server::Connected;
use tracing::{debug, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    authn::{Certificate, Connection, Recorded},
    ca::{Ledger, Serial},
    telemetry::{HandshakeFailure, Metrics},
};

/// For the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// At once; further connections wait in the kernel's backlog.
const HANDSHAKES_MAX: usize = 256;
/// With a client certificate; beyond it new ones are closed.
const CERTIFIED_MAX: usize = 16_384;
/// Without one; beyond it new ones are closed.
const ANONYMOUS_MAX: usize = 1_024;
/// After the system refused to accept (it is out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What accepts.
#[derive(Debug)]
pub struct TlsListener {
    /// Bound.
    pub listener: TcpListener,
    /// The current server identity and trust.
    pub config: Arc<Published<ServerConfig>>,
    /// Knows the clients' certificates.
    pub ledger: Ledger,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

/// An established connection.
#[derive(Debug)]
pub struct Established {
    stream: TlsStream<TcpStream>,
    connection: Connection,
    _counted: Counted,
}

/// Gives back what a connection occupies.
#[derive(Debug)]
struct Counted {
    gauge: Gauge,
    _permit: OwnedSemaphorePermit,
}

/// How many there may be.
#[derive(Clone, Debug)]
struct Bounds {
    certified: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
}

impl TlsListener {
    /// Accepts until the receiver is dropped.
    pub async fn run(self, established: mpsc::Sender<io::Result<Established>>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let bounds = Bounds {
            certified: Arc::new(Semaphore::new(CERTIFIED_MAX)),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS_MAX)),
        };
        let mut tasks = Tasks::new();
        loop {
            tasks.reap_ended();
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                // The end first: nobody would serve a connection accepted after it.
                biased;
                () = established.closed() => return,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting failed; is the file descriptor limit reached?");
                    clock::sleep_until(clock::now() + ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let handshake = Handshake {
                acceptor: TlsAcceptor::from(self.config.load()),
                ledger: self.ledger.clone(),
                metrics: Arc::clone(&self.metrics),
                bounds: bounds.clone(),
            };
            let established = established.clone();
            tasks.spawn("handshake", async move {
                if let Some(connection) = handshake.run(stream, peer).await {
                    // Closed while shutting down: the connection goes with it.
                    drop(established.send(Ok(connection)).await);
                }
                drop(permit);
            });
        }
    }
}

/// One handshake.
struct Handshake {
    acceptor: TlsAcceptor,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    bounds: Bounds,
}

impl Handshake {
    async fn run(self, stream: TcpStream, peer: SocketAddr) -> Option<Established> {
        // Small messages in both directions; latency over batching.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, %peer, "setting TCP_NODELAY failed");
        }
        let stream = match timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.metrics.handshake_failed(HandshakeFailure::Tls);
                debug!(%error, %peer, "TLS handshake failed");
                return None;
            }
            Err(_elapsed) => {
                self.metrics.handshake_failed(HandshakeFailure::Timeout);
                debug!(%peer, "TLS handshake took too long");
                return None;
            }
        };
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first().cloned());
        let certificate = match leaf {
            Some(leaf) => Some(Arc::new(self.certificate(&leaf).await?)),
            None => None,
        };
        let bound = match certificate {
            Some(_) => self.bounds.certified,
            None => self.bounds.anonymous,
        };
        let Ok(permit) = bound.try_acquire_owned() else {
            self.metrics.handshake_failed(HandshakeFailure::Overloaded);
            warn!(%peer, "too many connections; closing a new one");
            return None;
        };
        let gauge = self.metrics.connections.clone();
        gauge.inc();
        Some(Established {
            stream,
            connection: Connection { peer, certificate },
            _counted: Counted {
                gauge,
                _permit: permit,
            },
        })
    }

    /// What the verified certificate says, and the ledger about it.
    async fn certificate(&self, leaf: &CertificateDer<'_>) -> Option<Certificate> {
        let id = tls::spiffe_id(leaf).ok()?;
        let (serial, not_after) = {
            let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
            let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
            (Serial::of(parsed.raw_serial()), at(seconds))
        };
        let record = match self.ledger.find(&serial).await {
            Ok(Some(record)) => Recorded::Found(record),
            Ok(None) => Recorded::Absent,
            Err(error) => {
                warn!(%error, %id, "looking up a client certificate failed");
                Recorded::Unavailable
            }
        };
        Some(Certificate {
            id,
            serial,
            not_after,
            record,
        })
    }
}

fn at(unix_seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds)
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Connected for Established {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Established {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Established {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
