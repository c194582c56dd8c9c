//! Connections of the gRPC port: TLS with an optional client certificate, ALPN `h2`.
//!
//! ```text
//! accept ─► handshake (5 s) ─┬─ certificate ─► so many in all, so many of each identity
//!                            └─ none ────────► closed when nothing was proven on it for 10 s
//! ```
//!
//! Every handshake runs in its own task. Handshakes and connections without a certificate have
//! proven nothing: each [`Room`] of them is bounded in all and for each source, and a newcomer
//! displaces the oldest instead of waiting, so that strangers cannot keep sidecars out.

use std::{
    fmt, io,
    net::SocketAddr,
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::{clock, publish::Published, task::Tasks, tls};
use parking_lot::Mutex;
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
    authn::{Certificate, Connection, Recorded, Usage},
    ca::{Fingerprint, Ledger, Pace, Serial},
    room::{Bounds, Place, Room, SentAway},
    shares::{Share, Shares},
    telemetry::{HandshakeFailure, Metrics},
};

/// For the whole handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// At once; a newcomer displaces the oldest. One source may be a whole site behind one address.
const HANDSHAKES: Bounds = Bounds {
    in_all: 256,
    per_source: 64,
};
/// With a client certificate; beyond it new ones are closed.
const CERTIFIED_MAX: usize = 16_384;
/// The same, of one identity: its replicas, each with a connection that is not gone yet.
const CERTIFIED_PER_IDENTITY_MAX: usize = 2_048;
/// Without a certificate; a newcomer displaces the oldest on which nothing is proven.
const ANONYMOUS: Bounds = Bounds {
    in_all: 1_024,
    per_source: 64,
};
/// A connection without a certificate on which nothing was proven for so long is closed.
const ANONYMOUS_IDLE: Duration = Duration::from_secs(10);
/// Between two warnings about too many connections.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
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
    /// For one without a certificate.
    stay: Option<Stay>,
    _counted: Counted,
}

/// Gives back what a connection occupies.
#[derive(Debug)]
struct Counted {
    gauge: Gauge,
    _occupied: Occupied,
}

/// What a connection occupies.
#[derive(Debug)]
#[expect(dead_code, reason = "held to be given back")]
enum Occupied {
    Certified(OwnedSemaphorePermit, Share<SpiffeId>),
    Anonymous(Place),
}

/// How long a connection without a certificate may stay.
struct Stay {
    usage: Arc<Usage>,
    sent_away: SentAway,
    /// When to look at its usage again.
    look: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

/// Who may be there at once.
#[derive(Debug)]
struct Rooms {
    handshakes: Room,
    anonymous: Room,
    certified: Arc<Semaphore>,
    identities: Shares<SpiffeId>,
    warnings: Mutex<Pace<()>>,
}

impl TlsListener {
    /// Accepts until the receiver is dropped.
    pub async fn run(self, established: mpsc::Sender<io::Result<Established>>) {
        let rooms = Arc::new(Rooms::new());
        let mut tasks = Tasks::new();
        loop {
            tasks.reap_ended();
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
            let Some((place, sent_away)) = rooms.handshakes.enter(peer.ip(), None) else {
                continue;
            };
            let handshake = Handshake {
                acceptor: TlsAcceptor::from(self.config.load()),
                ledger: self.ledger.clone(),
                metrics: Arc::clone(&self.metrics),
                rooms: Arc::clone(&rooms),
            };
            let established = established.clone();
            tasks.spawn("handshake", async move {
                if let Some(connection) = handshake.run(stream, peer, sent_away).await {
                    // Closed while shutting down: the connection goes with it.
                    drop(established.send(Ok(connection)).await);
                }
                drop(place);
            });
        }
    }
}

impl Rooms {
    fn new() -> Self {
        Self {
            handshakes: Room::new(HANDSHAKES),
            anonymous: Room::new(ANONYMOUS),
            certified: Arc::new(Semaphore::new(CERTIFIED_MAX)),
            identities: Shares::new(CERTIFIED_PER_IDENTITY_MAX),
            warnings: Mutex::new(Pace::new(WARNING_INTERVAL, NonZeroU32::MIN)),
        }
    }

    fn for_certified(&self, id: &SpiffeId) -> Option<Occupied> {
        let of_identity = self.identities.take(id)?;
        let permit = Arc::clone(&self.certified).try_acquire_owned().ok()?;
        Some(Occupied::Certified(permit, of_identity))
    }

    fn for_anonymous(&self, peer: SocketAddr) -> Option<(Occupied, Stay)> {
        let usage = Arc::<Usage>::default();
        let (place, sent_away) = self.anonymous.enter(peer.ip(), Some(Arc::clone(&usage)))?;
        Some((Occupied::Anonymous(place), Stay::new(usage, sent_away)))
    }

    fn warn_full(&self, peer: SocketAddr) {
        if self.warnings.lock().take(&(), clock::now()).is_ok() {
            warn!(%peer, "too many connections; closing new ones");
        }
    }
}

/// One handshake.
struct Handshake {
    acceptor: TlsAcceptor,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    rooms: Arc<Rooms>,
}

impl Handshake {
    async fn run(
        self,
        stream: TcpStream,
        peer: SocketAddr,
        sent_away: SentAway,
    ) -> Option<Established> {
        // Small messages in both directions; latency over batching.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, %peer, "setting TCP_NODELAY failed");
        }
        let stream = self.shake(stream, peer, sent_away).await?;
        let leaf = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first().cloned());
        let certificate = match leaf {
            Some(leaf) => Some(Arc::new(self.certificate(&leaf).await?)),
            None => None,
        };
        let room = match &certificate {
            Some(certificate) => self
                .rooms
                .for_certified(&certificate.id)
                .map(|occupied| (occupied, None)),
            None => self
                .rooms
                .for_anonymous(peer)
                .map(|(occupied, stay)| (occupied, Some(stay))),
        };
        let Some((occupied, stay)) = room else {
            self.metrics.handshake_failed(HandshakeFailure::Overloaded);
            self.rooms.warn_full(peer);
            return None;
        };
        let gauge = self.metrics.connections.clone();
        gauge.inc();
        Some(Established {
            stream,
            connection: Connection {
                peer,
                certificate,
                usage: stay.as_ref().map(|stay| Arc::clone(&stay.usage)),
            },
            stay,
            _counted: Counted {
                gauge,
                _occupied: occupied,
            },
        })
    }

    async fn shake(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        sent_away: SentAway,
    ) -> Option<TlsStream<TcpStream>> {
        let shaken = tokio::select! {
            // Whoever is through has earned its place.
            biased;
            shaken = timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)) => shaken,
            _ = sent_away => {
                self.metrics.handshake_failed(HandshakeFailure::Overloaded);
                debug!(%peer, "TLS handshake gave way to newer ones");
                return None;
            }
        };
        match shaken {
            Ok(Ok(stream)) => Some(stream),
            Ok(Err(error)) => {
                self.metrics.handshake_failed(HandshakeFailure::Tls);
                debug!(%error, %peer, "TLS handshake failed");
                None
            }
            Err(_elapsed) => {
                self.metrics.handshake_failed(HandshakeFailure::Timeout);
                debug!(%peer, "TLS handshake took too long");
                None
            }
        }
    }

    /// What the verified certificate says, and the ledger about it.
    async fn certificate(&self, leaf: &CertificateDer<'_>) -> Option<Certificate> {
        let id = tls::spiffe_id(leaf).ok()?;
        let (serial, not_after) = {
            let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
            let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
            (Serial::of(parsed.raw_serial()), at(seconds))
        };
        let fingerprint = Fingerprint::of(leaf);
        let record = match self.ledger.find(&serial).await {
            Ok(Some(record)) if record.fingerprint == fingerprint => Recorded::Found(record),
            Ok(_) => Recorded::Absent,
            Err(error) => {
                warn!(%error, %id, "looking up a client certificate failed");
                Recorded::Unavailable
            }
        };
        Some(Certificate {
            id,
            serial,
            fingerprint,
            not_after,
            record,
        })
    }
}

fn at(unix_seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(unix_seconds)
}

impl Stay {
    fn new(usage: Arc<Usage>, sent_away: SentAway) -> Self {
        Self {
            usage,
            sent_away,
            look: Box::pin(clock::sleep_until(clock::now() + ANONYMOUS_IDLE)),
        }
    }

    /// Ready when the connection has to go.
    fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let gone = |why| Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
        if Pin::new(&mut self.sent_away).poll(context).is_ready() {
            return gone("nothing was proven on the connection; it gave way to newer ones");
        }
        loop {
            ready!(self.look.as_mut().poll(context));
            let now = clock::now();
            let end = self.usage.idle_since().unwrap_or(now) + ANONYMOUS_IDLE;
            if end <= now {
                return gone("nothing was proven on the connection for too long");
            }
            self.look = Box::pin(clock::sleep_until(end));
        }
    }
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay")
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
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
        // Before the bytes: a peer that sends without pause would never be looked at.
        if let Some(stay) = &mut self.stay
            && let Poll::Ready(over) = stay.poll_over(context)
        {
            return Poll::Ready(Err(over));
        }
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn stay(rooms: &Rooms) -> (Occupied, Stay) {
        rooms.for_anonymous("10.0.0.1:1".parse().unwrap()).unwrap()
    }

    #[test]
    fn one_identity_does_not_take_every_connection() {
        let rooms = Rooms::new();
        let [web, user] =
            ["web", "user"].map(|name| format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap());
        let held: Vec<_> = (0..CERTIFIED_PER_IDENTITY_MAX)
            .map(|_| rooms.for_certified(&web).unwrap())
            .collect();
        assert!(rooms.for_certified(&web).is_none());
        assert!(rooms.for_certified(&user).is_some());
        drop(held);
        assert!(rooms.for_certified(&web).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_any_proof_goes_after_a_while() {
        let rooms = Rooms::new();
        let begin = clock::now();
        let (_occupied, mut stay) = stay(&rooms);
        poll_fn(|context| stay.poll_over(context)).await;
        assert_eq!(clock::now() - begin, ANONYMOUS_IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_for_as_long_as_something_is_proven_on_it() {
        let rooms = Rooms::new();
        let (_occupied, mut stay) = stay(&rooms);
        let in_use = stay.usage.begin();
        let day = Duration::from_secs(86_400);
        let over = timeout(day, poll_fn(|context| stay.poll_over(context))).await;
        assert!(over.is_err(), "in use: {over:?}");
        drop(in_use);
        let end = clock::now();
        poll_fn(|context| stay.poll_over(context)).await;
        assert!(clock::now() - end <= 2 * ANONYMOUS_IDLE);
    }
}
