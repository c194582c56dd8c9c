//! Connections to the workload's own ports.
//!
//! ```text
//! accept ─ port ─ mode ─┬─ TLS: peer ──┐
//!                       └─ plaintext ──┴─ rules of the port ─┬─ HTTP: each request judged
//!                                                            └─ bytes: judged once, relayed
//! ```
//!
//! The port decides which rules apply, never what the client says it speaks. There are no
//! retries here.

use std::{cell::Cell, future::ready, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use heddle_policy::{
    snapshot::{CONNECT_TIMEOUT, EndpointKey, InboundPort, MtlsMode, Protocol, Transport},
    spiffe::Peer,
};
use heddle_relay::{
    error::{ConnectError, ProxyError},
    relay::{self, Caller, Dialled, Speaks},
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    detect::{Rewound, Seen, Told},
    dial::Target,
    exchange::{Direction, Exchange, Record, Spoken},
    intercept::{self, Leg},
    settings::InboundForward,
    tls::{self, Agreed, AsSocket, Carries, Established, Stream, TlsError},
    worker::Worker,
};

/// How a connection's port is known.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Redirected here: the kernel knows.
    Intercepted,
    /// The listener is the port.
    Port(InboundForward),
}

/// An accepted connection whose peer is known.
struct Conn {
    worker: Rc<Worker>,
    client: SocketAddr,
    peer: Peer,
    port: Port,
    /// A connection to the application, for bytes, that was made before it was known that it is
    /// for bytes.
    early: Cell<Option<Stream>>,
}

/// One port of the workload.
#[derive(Clone, Copy, Debug)]
struct Port {
    /// The application's port, as modes and rules name it; never where the sidecar listens.
    number: u16,
    /// Where the application listens.
    application: SocketAddr,
    /// What the settings declare.
    protocol: Protocol,
}

/// Serves one connection to the workload.
pub async fn accept(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, origin: &Origin) {
    let port = match origin {
        Origin::Port(forward) => Port {
            number: forward.port,
            application: forward.forward,
            protocol: forward.protocol,
        },
        Origin::Intercepted => match intercept::original_dst(&stream) {
            // Only to the workload: a connection that was to be routed on, through this pod, is
            // not ours to judge nor to open in our name.
            Ok(Some(to)) if !worker.guard.refuses(to) && intercept::is_own_address(to.0.ip()) => {
                Port {
                    number: to.0.port(),
                    application: to.0,
                    protocol: Protocol::Detect,
                }
            }
            Ok(_) | Err(_) => {
                intercept::reset(&stream);
                return;
            }
        },
    };
    let mut conn = Conn {
        worker: Rc::clone(worker),
        client,
        peer: Peer::Anonymous,
        port,
        early: Cell::default(),
    };
    let Some(rules) = conn.rules_for(&stream) else {
        return;
    };
    let wait = worker.settings.bounds.header_wait;
    let Some(admitted) = conn.admit(Rewound::new(stream), &rules, wait).await else {
        return;
    };
    let Established {
        stream,
        peer,
        agreed,
    } = admitted.established;
    conn.peer = peer;
    let stream = Rewound::new(stream);
    // Whoever was first to speak, and a handshake, took their time.
    let Some(rules) = conn.rules_for(stream.socket()) else {
        return;
    };
    if let Some(application) = admitted.spoke_first {
        conn.early.set(Some(application));
        if !conn.is_http(&rules) {
            // Where the application is not the first.
            return Box::pin(conn.relay(stream, conn.connect(&rules))).await;
        }
    }
    // Large, and one per connection.
    Box::pin(conn.serve(stream, agreed, &rules)).await;
}

/// The first word on a connection.
enum Spoke {
    /// The client's, as far as it tells what it speaks.
    Client(Seen),
    /// The application's; it is still to be read.
    Application(Stream),
}

/// A connection that the port's mode lets in.
struct Admitted {
    established: Established,
    /// The application, if it was the first to say something.
    spoke_first: Option<Stream>,
}

impl Conn {
    /// The port's rules as of now.
    fn rules(&self) -> Option<Arc<InboundPort>> {
        let view = self.worker.view();
        let inbound = view.inbound.as_ref()?;
        Some(Arc::clone(inbound.port(self.port.number)))
    }

    /// The same for a connection of this socket; without rules it is refused.
    fn rules_for(&self, stream: &TcpStream) -> Option<Arc<InboundPort>> {
        let rules = self.rules();
        if rules.is_none() {
            // The control plane has not said who may: nobody may.
            self.refused(&ProxyError::Denied);
            intercept::reset(stream);
        }
        rules
    }

    fn protocol(&self, rules: &InboundPort) -> Protocol {
        match rules.protocol {
            Protocol::Detect => self.port.protocol,
            declared => declared,
        }
    }

    /// TLS or plaintext, by the port's mode: `rules` say whom to wait for, and what is in force
    /// once somebody has spoken says what comes of it. `None`: refused, and said so.
    async fn admit(
        &self,
        mut stream: Rewound<TcpStream>,
        rules: &InboundPort,
        wait: Duration,
    ) -> Option<Admitted> {
        let plain = |stream, spoke_first| {
            Some(Admitted {
                established: Established::in_plaintext(stream, Agreed::NOTHING),
                spoke_first,
            })
        };
        let (seen, spoke_first) = match rules.mtls {
            MtlsMode::Disable => return plain(stream, None),
            MtlsMode::Strict => (stream.sniff(wait).await.ok()?, None),
            MtlsMode::Permissive => match self.first_word(&mut stream, rules, wait).await? {
                Spoke::Client(seen) => (seen, None),
                Spoke::Application(application) => (Seen::Silence, Some(application)),
            },
        };
        let is_tls = seen == Seen::Tls;
        let is_mesh = match rules.mtls {
            MtlsMode::Disable | MtlsMode::Strict => is_tls,
            MtlsMode::Permissive => is_tls && self.is_mesh_hello(&mut stream, rules, wait).await,
        };
        match self.rules_for(stream.inner())?.mtls {
            MtlsMode::Strict if is_tls => self.shake_hands(stream, wait).await,
            MtlsMode::Permissive if is_mesh => self.shake_hands(stream, wait).await,
            MtlsMode::Strict => {
                if seen != Seen::Closed {
                    self.refuse_plaintext(stream, seen).await;
                }
                None
            }
            MtlsMode::Permissive | MtlsMode::Disable => plain(stream, spoke_first),
        }
    }

    /// Who speaks first on a port that takes both, TLS and plaintext, and what the client says.
    /// Silence is no answer: a caller of the mesh may be slow. `None`: refused, or gone.
    async fn first_word(
        &self,
        stream: &mut Rewound<TcpStream>,
        rules: &InboundPort,
        wait: Duration,
    ) -> Option<Spoke> {
        if self.is_http(rules) {
            // Where the client speaks first, whatever it speaks.
            let seen = stream.sniff(wait).await.ok()?;
            if seen == Seen::Silence {
                self.refused(&ProxyError::BadRequest("the caller said nothing"));
                intercept::reset(stream.inner());
                return None;
            }
            return Some(Spoke::Client(seen));
        }
        let bounds = &self.worker.settings.bounds;
        let seen = stream.sniff(bounds.detect_wait).await.ok()?;
        if seen != Seen::Silence {
            return Some(Spoke::Client(seen));
        }
        // The application is dialled as it would be without us, for a client in plaintext.
        let (application, patience) = match self.connect(rules).await {
            Ok(application) => (Some(application), bounds.idle),
            // Nobody in plaintext may, so only the mesh can be meant.
            Err(ProxyError::Denied) => (None, wait),
            // Its client learns of that where bytes are relayed.
            Err(_unreachable) => return Some(Spoke::Client(seen)),
        };
        let read = tokio::select! {
            biased; // What the client says decides more.
            read = timeout(patience, stream.read_ahead()) => read,
            () = spoke_or_ended(application.as_ref()) => {
                return application.map(Spoke::Application);
            }
        };
        match (read, application) {
            (Ok(Ok(1..)), application) => {
                self.early.set(application);
                stream.sniff(wait).await.ok().map(Spoke::Client)
            }
            // Only the client's side of the conversation is over.
            (Ok(Ok(0)), Some(application)) => Some(Spoke::Application(application)),
            (Ok(_) | Err(_), _) => {
                intercept::reset(stream.inner());
                None
            }
        }
    }

    /// Whether the port is declared HTTP, or its rules judge nothing else.
    fn is_http(&self, rules: &InboundPort) -> bool {
        match self.protocol(rules) {
            Protocol::Http1 | Protocol::Http2 => true,
            Protocol::Tcp | Protocol::Detect => rules.authz.needs_http(),
        }
    }

    /// A port whose application speaks plain HTTP has no TLS of its own; elsewhere our tokens
    /// tell.
    async fn is_mesh_hello(
        &self,
        stream: &mut Rewound<TcpStream>,
        rules: &InboundPort,
        wait: Duration,
    ) -> bool {
        match self.protocol(rules) {
            Protocol::Http1 | Protocol::Http2 => true,
            Protocol::Tcp | Protocol::Detect => {
                let told = timeout(wait, tls::is_sidecar_hello(stream)).await;
                matches!(told, Ok(Ok(true)))
            }
        }
    }

    async fn shake_hands(&self, stream: Rewound<TcpStream>, wait: Duration) -> Option<Admitted> {
        // The other side waits, but only so long. Whatever came of it: an expired certificate is
        // refused there, with the reason.
        _ = timeout(RENEWAL_WAIT, tls::renewed(&self.worker.configs)).await;
        let config = self.worker.configs.borrow_mut().server();
        let accepted = match config {
            Ok(config) => {
                let accepting = timeout(wait, Box::pin(tls::accept(stream, config)));
                accepting.await.unwrap_or_else(|_elapsed| {
                    Err(TlsError::Handshake(io::ErrorKind::TimedOut.into()))
                })
            }
            Err(error) => Err(error),
        };
        match accepted {
            Ok(established) => Some(Admitted {
                established,
                spoke_first: None,
            }),
            Err(error) => {
                self.refused(&ProxyError::Connect {
                    endpoint: self.client,
                    source: ConnectError::from(error),
                });
                None
            }
        }
    }

    /// In words where the client will understand them.
    async fn refuse_plaintext(&self, mut stream: Rewound<TcpStream>, seen: Seen) {
        let error = ProxyError::PlaintextRefused;
        self.refused(&error);
        if seen == Seen::Http1 {
            _ = stream.write_all(error.http1_bytes().as_bytes()).await;
            _ = stream.shutdown().await;
            return;
        }
        if seen == Seen::Http2 {
            // Each request is refused by its own look at the mode.
            let stream = Rewound::new(Stream::plain(stream));
            return self.serve_http(stream, Speaks::Http2, false).await;
        }
        intercept::reset(stream.inner());
    }

    async fn serve(&self, mut stream: Rewound<Stream>, agreed: Agreed, rules: &InboundPort) {
        let bounds = &self.worker.settings.bounds;
        let needs_http = match self.protocol(rules) {
            Protocol::Http1 | Protocol::Http2 => true,
            // Not what the application would understand.
            Protocol::Tcp if agreed.is_http1_in_http2() => true,
            Protocol::Tcp => rules.authz.needs_http(),
            Protocol::Detect => {
                let said = matches!(agreed.speaks, tls::Speaks::Http1 | tls::Speaks::Http2);
                said || rules.authz.needs_http()
            }
        };
        if needs_http {
            return self.serve_http_only(stream, agreed).await;
        }
        let is_opaque = self.protocol(rules) == Protocol::Tcp || agreed.speaks == tls::Speaks::Tcp;
        if is_opaque {
            return self.relay(stream, self.connect(rules)).await;
        }
        // Nobody has said what this is.
        let told = stream.tell(bounds.detect_wait, self.connect(rules)).await;
        match told {
            Told::Http(speaks) => self.serve_http(stream, speaks, agreed.is_sidecar).await,
            Told::Bytes(connected) => self.relay(stream, ready(connected)).await,
            Told::Nothing => {}
        }
    }

    /// To the application, for bytes: judged once, by what is known of a connection, and before
    /// the application hears of it.
    async fn connect(&self, rules: &InboundPort) -> Result<Stream, ProxyError> {
        let port = self.port.number;
        let decision = rules.authz.decide(&self.peer, self.client.ip(), port, None);
        if !decision.is_allowed() || self.worker.is_revoked(&self.peer) {
            return Err(ProxyError::Denied);
        }
        if let Some(application) = self.early.take() {
            return Ok(application);
        }
        let dialled = self.worker.dialler.dial(&self.target()).await;
        let dialled = dialled.map(|established| established.stream);
        dialled.map_err(|source| ProxyError::Connect {
            endpoint: self.port.application,
            source,
        })
    }

    /// Bytes that do not parse as HTTP in time are refused: rules on HTTP could not judge them.
    async fn serve_http_only(&self, mut stream: Rewound<Stream>, agreed: Agreed) {
        let wait = self.worker.settings.bounds.header_wait;
        let speaks = match stream.sniff(wait).await {
            Ok(Seen::Http2) if agreed.is_http1_in_http2() => Some(Speaks::Http1InHttp2),
            Ok(Seen::Http2) => Some(Speaks::Http2),
            Ok(Seen::Http1) if !agreed.is_http1_in_http2() => Some(Speaks::Http1),
            Ok(Seen::Http1 | Seen::Tls | Seen::Other | Seen::Silence) => None,
            Ok(Seen::Closed) | Err(_) => return,
        };
        let Some(speaks) = speaks else {
            self.refused(&ProxyError::BadRequest(
                "this port speaks HTTP; the caller does not",
            ));
            return intercept::reset(stream.socket());
        };
        self.serve_http(stream, speaks, agreed.is_sidecar).await;
    }

    /// Each request is the relay's from here on: judged by the rules as of then.
    async fn serve_http(&self, stream: Rewound<Stream>, speaks: Speaks, is_sidecar: bool) {
        // It was made for bytes.
        drop(self.early.take());
        let caller = Caller {
            address: self.client,
            peer: self.peer.clone(),
            is_sidecar,
            dialled: Dialled::Port(relay::Port {
                number: self.port.number,
                application: self.port.application,
            }),
            speaks,
        };
        self.worker.driver.serve(stream, caller).await;
        if self.worker.is_revoked(&self.peer) {
            // Which has cut it, with requests under way or without.
            self.refused(&ProxyError::Denied);
        }
    }

    fn target(&self) -> Target {
        Target {
            endpoint: EndpointKey {
                address: self.port.application,
                transport: Transport::Plain,
            },
            name: "".into(),
            carries: Carries::Tcp,
            timeout: CONNECT_TIMEOUT,
            leg: Leg::Inbound,
        }
    }

    async fn relay(
        &self,
        stream: Rewound<Stream>,
        connecting: impl Future<Output = Result<Stream, ProxyError>>,
    ) {
        let mut exchange = self.exchange(Spoken::Tcp);
        let connected = connecting.await;
        if !matches!(connected, Err(ProxyError::Denied)) {
            exchange.record.endpoint = Some(self.port.application);
            exchange.record.attempts = 1;
        }
        match connected {
            Ok(application) => {
                self.worker.relay(stream, application, &mut exchange).await;
            }
            Err(error) => {
                exchange.failed(&error);
                intercept::reset(stream.socket());
            }
        }
    }

    fn refused(&self, error: &ProxyError) {
        self.exchange(Spoken::Tcp).failed(error);
    }

    fn exchange(&self, spoken: Spoken) -> Exchange {
        let name = self.port.application.to_string().into();
        let mut record = Record::new(Direction::Inbound, spoken, name, self.client);
        record.peer = self.peer.clone();
        Exchange::start(record, Arc::clone(&self.worker.telemetry))
    }
}

async fn spoke_or_ended(application: Option<&Stream>) {
    match application {
        Some(application) => _ = application.socket().readable().await,
        None => std::future::pending().await,
    }
}

/// For our own certificate while a peer shakes hands. Shorter than [`CONNECT_TIMEOUT`], so that
/// the peer gets to know why.
const RENEWAL_WAIT: Duration = Duration::from_millis(1800);
