//! TLS of the data path, made of the current [`Credentials`]: configurations are built once per
//! credentials and accepted identities, and again when the credentials change.
//!
//! ALPN tokens are those of `proto/README.md`; which rules apply is never told by them.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use heddle_policy::spiffe::{Peer, SpiffeId};
use heddle_shell::{
    clock,
    publish::{Published, Reader},
    tls::{self, Accept, Clients, Identity, Trust, TrustBundle},
};
use rustls::{
    ClientConfig, CommonState, ServerConfig,
    client::UnbufferedClientConnection,
    pki_types::{IpAddr, ServerName, UnixTime},
    server::{Acceptor, UnbufferedServerConnection},
    time_provider::TimeProvider,
};
use tokio::{io::AsyncRead, net::TcpStream, sync::watch, time::timeout_at};

pub use crate::session::Stream;
use crate::{detect::Rewound, session::Handshake};

/// Who we are and whom we trust, as of now. Published as `Published<Option<Credentials>>`;
/// `None` before the first certificate: nothing meshed is then accepted or dialled.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Our certificate and key.
    pub identity: Arc<Identity>,
    /// Roots and deny list.
    pub trust: Arc<TrustBundle>,
}

/// What a connection between sidecars carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// HTTP/1.1 to a sidecar, HTTP/2 to anybody else.
    Http1OrForeignHttp2,
    /// Bytes.
    Tcp,
}

/// What the handshake agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The token, if there was one.
    pub speaks: Speaks,
    /// It was one of ours: the other side is a sidecar.
    pub is_sidecar: bool,
}

/// What an ALPN token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// Bytes, told by a sidecar.
    Tcp,
    /// No token.
    Nothing,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate has been issued to us yet.
    #[error("this sidecar has no certificate yet; is the control plane reachable?")]
    NoCertificate,
    /// Ours has run out.
    #[error("this sidecar's certificate has expired; is the control plane reachable?")]
    CertificateExpired,
    /// Ours does not fit rustls.
    #[error("building a TLS configuration")]
    Configuration(#[from] rustls::Error),
    /// The handshake failed.
    #[error("TLS handshake")]
    Handshake(#[source] io::Error),
}

/// A connection whose other side is known.
#[derive(Debug)]
pub struct Established {
    /// What carries the bytes.
    pub stream: Stream,
    /// Who is there.
    pub peer: Peer,
    /// What is spoken.
    pub agreed: Agreed,
}

/// One worker's configurations.
#[derive(Debug)]
pub struct Configs {
    published: Arc<Published<Option<Credentials>>>,
    credentials: Reader<Option<Credentials>>,
    /// What the rest was built from.
    current: Arc<Option<Credentials>>,
    /// Grows with every change of credentials; part of the key of pooled connections.
    generation: u64,
    server: Option<Arc<ServerConfig>>,
    clients: HashMap<(Arc<[SpiffeId]>, Carries), Arc<ClientConfig>>,
    /// See [`renewed`].
    renewal_wait: Duration,
    /// When the current certificate was first seen to have ended.
    ended_at: Option<Instant>,
}

impl Credentials {
    /// Denied, or of a trust domain that has no roots here any more.
    fn revokes(&self, id: &SpiffeId) -> bool {
        let mut domains = self.trust.roots.keys();
        self.trust.denied.contains(id) || !domains.any(|known| known.as_str() == id.trust_domain())
    }
}

impl Configs {
    /// Nothing built yet. `renewal_wait` is for [`renewed`].
    pub fn new(published: Arc<Published<Option<Credentials>>>, renewal_wait: Duration) -> Self {
        let mut credentials = published.reader();
        let current = Arc::clone(credentials.get());
        Self {
            published,
            credentials,
            current,
            generation: 0,
            server: None,
            clients: HashMap::new(),
            renewal_wait,
            ended_at: None,
        }
    }

    /// Number of the current credentials.
    pub fn generation(&mut self) -> u64 {
        self.refresh();
        self.generation
    }

    /// Our own certificate, if it is valid now.
    pub fn identity(&mut self) -> Result<&Identity, TlsError> {
        self.refresh();
        let credentials = (*self.current).as_ref().ok_or(TlsError::NoCertificate)?;
        let identity = &credentials.identity;
        // Not only by `ended_at`, which may be a while late.
        if clock::wall() >= identity.not_after() {
            return Err(TlsError::CertificateExpired);
        }
        Ok(identity)
    }

    /// For accepting peers, any identity of the mesh: rules decide who may do what.
    ///
    /// An expired certificate is presented all the same: the peer refuses it and says why.
    pub fn server(&mut self) -> Result<Arc<ServerConfig>, TlsError> {
        self.refresh();
        if let Some(server) = &self.server {
            return Ok(Arc::clone(server));
        }
        let credentials = (*self.current).as_ref().ok_or(TlsError::NoCertificate)?;
        let server = tls::server(
            &credentials.identity,
            Trust::Bundle(Arc::clone(&credentials.trust)),
            Accept::Mesh,
            Clients::Certified,
            &[H2, b"h2", H1, b"http/1.1", TCP],
        )?;
        let mut server = Arc::unwrap_or_clone(server);
        server.enable_secret_extraction = true;
        Ok(Arc::clone(self.server.insert(Arc::new(server))))
    }

    /// For dialling an endpoint that must present one of `accepted`.
    pub fn client(
        &mut self,
        accepted: &Arc<[SpiffeId]>,
        carries: Carries,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        self.identity()?;
        let key = (Arc::clone(accepted), carries);
        if let Some(client) = self.clients.get(&key) {
            return Ok(Arc::clone(client));
        }
        let credentials = (*self.current).as_ref().ok_or(TlsError::NoCertificate)?;
        let client = tls::client(
            Some(&credentials.identity),
            Trust::Bundle(Arc::clone(&credentials.trust)),
            Accept::OneOf(Arc::clone(accepted)),
            carries.tokens(),
        )?;
        let mut client = Arc::unwrap_or_clone(client);
        client.enable_secret_extraction = true;
        let client = Arc::new(client);
        // Endpoints come and go: rather build a few again than keep them all.
        if self.clients.len() >= CLIENT_CONFIGS_MAX {
            self.clients.clear();
        }
        self.clients.insert(key, Arc::clone(&client));
        Ok(client)
    }

    /// Whether `peer` must not be talked to.
    pub fn is_revoked(&mut self, peer: &Peer) -> bool {
        self.refresh();
        peer.id().is_some_and(|id| self.revokes(id))
    }

    /// Whether nobody of this identity is to be talked to, as far as the last look says.
    pub fn revokes(&self, id: &SpiffeId) -> bool {
        let current = (*self.current).as_ref();
        current.is_some_and(|current| current.revokes(id))
    }

    /// Told of every later change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Returns once `peer` must not be talked to any more, which may be at once: a handshake looks
    /// at the list of its own beginning. Never for a peer without identity.
    pub fn revoked(&self, peer: &Peer) -> impl Future<Output = ()> + use<> {
        let credentials = Arc::clone(&self.published);
        let id = peer.id().cloned();
        async move {
            let Some(id) = id else {
                return std::future::pending().await;
            };
            // Before the first look, so that a denial in between is not missed.
            let mut changed = credentials.subscribe();
            loop {
                let now = credentials.load();
                if now.as_ref().as_ref().is_some_and(|now| now.revokes(&id)) {
                    return;
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    /// Looks whether our certificate has ended. Asked now and then also without traffic, so that
    /// the first caller after hours does not wait for what has failed for hours.
    pub fn notice_end(&mut self) {
        if let Err(TlsError::CertificateExpired) = self.identity() {
            self.ended_at.get_or_insert_with(clock::now);
        }
    }

    /// Until when a new connection waits for another certificate; `None`: it has no reason to.
    fn waits_until(&mut self) -> Option<Instant> {
        self.notice_end();
        let until = self.ended_at? + self.renewal_wait;
        (clock::now() < until).then_some(until)
    }

    fn refresh(&mut self) {
        let latest = self.credentials.get();
        if !Arc::ptr_eq(latest, &self.current) {
            self.current = Arc::clone(latest);
            self.generation += 1;
            self.server = None;
            self.clients.clear();
            self.ended_at = None;
        }
    }
}

impl Carries {
    fn tokens(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http2 => &[H2, b"h2"],
            Self::Http1 => &[H1, b"http/1.1"],
            Self::Http1OrForeignHttp2 => &[H1, b"h2"],
            Self::Tcp => &[TCP],
        }
    }
}

/// Returns when our certificate is valid, or when waiting for that is of no use. Renewal is due
/// long before the end, but a clock that jumps, or a machine that slept, is past the end at once:
/// connections then wait for the renewal instead of failing.
pub async fn renewed(configs: &RefCell<Configs>) {
    loop {
        // Before the look, so that a certificate that comes in between is not missed.
        let mut changed = configs.borrow().published.subscribe();
        let Some(until) = configs.borrow_mut().waits_until() else {
            return;
        };
        // Whichever it was, the next look tells.
        _ = timeout_at(until.into(), changed.changed()).await;
    }
}

/// Shakes hands with a peer that called. Its certificate is judged by the time of the beginning: a
/// caller does not learn after its own end of the handshake that it is refused (TLS 1.3), so what
/// it found valid must not have ended in between.
pub async fn accept(
    stream: Rewound<TcpStream>,
    config: Arc<ServerConfig>,
) -> Result<Established, TlsError> {
    let mut config = ServerConfig::clone(&config);
    config.time_provider = Arc::new(Begun(clock::wall()));
    let accepting = UnbufferedServerConnection::new(Arc::new(config))?;
    Established::by_handshake(Handshake::Server(accepting), stream).await
}

impl Established {
    /// In plaintext nothing is proven.
    pub fn in_plaintext(stream: Rewound<TcpStream>, agreed: Agreed) -> Self {
        Self {
            stream: Stream::plain(stream),
            peer: Peer::Anonymous,
            agreed,
        }
    }

    async fn by_handshake(
        handshake: Handshake,
        stream: Rewound<TcpStream>,
    ) -> Result<Self, TlsError> {
        let agreed = |session: &CommonState| {
            let peer = tls::peer(session.peer_certificates());
            (peer, Agreed::from_token(session.alpn_protocol()))
        };
        // Large, and of no use once it is over.
        let shaking = Box::pin(handshake.shake(stream, agreed));
        let (session, (peer, agreed)) = shaking.await.map_err(TlsError::Handshake)?;
        let peer = peer.map_err(|error| TlsError::Handshake(io::Error::other(error)))?;
        Ok(Self {
            stream: session.into(),
            peer,
            agreed,
        })
    }
}

/// The time of one handshake.
#[derive(Debug)]
struct Begun(SystemTime);

impl TimeProvider for Begun {
    fn current_time(&self) -> Option<UnixTime> {
        let since = self.0.duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// Shakes hands with an endpoint. `name` is told to it (SNI, without a port) and proves nothing.
pub async fn connect(
    stream: Rewound<TcpStream>,
    config: Arc<ClientConfig>,
    name: &str,
) -> Result<Established, TlsError> {
    let address = stream.inner().peer_addr().map_err(TlsError::Handshake)?;
    let host = name.rsplit_once(':').map_or(name, |(host, _port)| host);
    // An address is never told (RFC 6066 section 3).
    let name = ServerName::try_from(host.to_owned())
        .unwrap_or_else(|_not_a_name| ServerName::IpAddress(IpAddr::from(address.ip())));
    let connecting = UnbufferedClientConnection::new(config, name)?;
    Established::by_handshake(Handshake::Client(connecting), stream).await
}

/// Whether the ClientHello at the head of `stream` offers one of our tokens. Takes nothing from
/// the stream.
pub async fn is_sidecar_hello(stream: &mut Rewound<TcpStream>) -> io::Result<bool> {
    let mut acceptor = Acceptor::default();
    // How much of it that was given.
    let mut given = 0;
    loop {
        let mut bytes = &stream.ahead()[given..];
        while !bytes.is_empty() {
            acceptor.read_tls(&mut bytes)?;
        }
        given = stream.ahead().len();
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                let mut offered = hello.alpn().into_iter().flatten();
                return Ok(offered.any(|token| [H2, H1, TCP].contains(&token)));
            }
            Ok(None) if stream.read_ahead().await? > 0 => {}
            // Not one we could serve; the application may.
            Ok(None) | Err(_) => return Ok(false),
        }
    }
}

impl Agreed {
    /// Plaintext agrees on nothing.
    pub const NOTHING: Self = Self {
        speaks: Speaks::Nothing,
        is_sidecar: false,
    };

    /// What an endpoint without TLS is spoken to in: nothing tells it from a sidecar, which it is
    /// not.
    pub fn of_plaintext(carries: Carries) -> Self {
        let speaks = match carries {
            Carries::Http1OrForeignHttp2 => Speaks::Http2,
            Carries::Http1 | Carries::Http2 | Carries::Tcp => Speaks::Nothing,
        };
        Self {
            speaks,
            is_sidecar: false,
        }
    }

    /// Whether HTTP/1.1 comes in the frames of HTTP/2: our token for it says so.
    pub fn is_http1_in_http2(self) -> bool {
        self.is_sidecar && self.speaks == Speaks::Http1
    }

    fn from_token(token: Option<&[u8]>) -> Self {
        let (speaks, is_sidecar) = match token {
            Some(H2) => (Speaks::Http2, true),
            Some(H1) => (Speaks::Http1, true),
            Some(TCP) => (Speaks::Tcp, true),
            Some(b"h2") => (Speaks::Http2, false),
            Some(b"http/1.1") => (Speaks::Http1, false),
            Some(_) | None => (Speaks::Nothing, false),
        };
        Self { speaks, is_sidecar }
    }
}

/// Something with a socket below.
pub trait AsSocket {
    /// The socket.
    fn socket(&self) -> &TcpStream;
}

impl AsSocket for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<S: AsSocket + AsyncRead + Unpin> AsSocket for Rewound<S> {
    fn socket(&self) -> &TcpStream {
        self.inner().socket()
    }
}

const H2: &[u8] = b"heddle-h2";
const H1: &[u8] = b"heddle-h1";
const TCP: &[u8] = b"heddle-tcp";

/// Client configurations of one worker; at the bound all are built anew.
const CLIENT_CONFIGS_MAX: usize = 1024;
