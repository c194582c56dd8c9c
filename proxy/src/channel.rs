//! Connections to endpoints, per worker: one HTTP/2 connection to an endpoint while its stream
//! limit lasts (and to the application only as many streams as cannot starve each other), and
//! idle HTTP/1.1 connections.
//!
//! ```text
//! lease ─ usable connection? ─ yes ─► send ─ never left us? ─► lease again (another connection)
//!              no │                      └─► response, lease kept until its end
//!                 └► dial (HTTP/2: once for all who wait)
//! ```
//!
//! A connection is retired, not cut: it takes no new request and closes when its last one ends.
//! Only the denial of its endpoint cuts it.

mod cut;
mod lease;
mod shared;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    num::NonZeroU32,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::{Admission, Resource, Slot},
    snapshot::{EndpointKey, Limits, Transport},
    spiffe::Peer,
};
use heddle_shell::clock;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rand::{RngExt, rngs::SmallRng};
use tokio::{
    sync::Notify,
    time::{timeout, timeout_at},
};

pub(crate) use self::shared::http2_builder;
use self::{
    cut::{Cut, Cuttable},
    shared::{Http2, Room, streams_apart},
};
pub use self::{
    lease::{Http1Lease, Http2Lease, Lease},
    shared::{CONNECTION_WINDOW, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW},
};
use crate::{
    body::Body,
    detect::Rewound,
    error::{ConnectError, ProxyError},
    intercept::{self, Leg},
    settings::Bounds,
    tls::{self, Agreed, AsSocket, Carries, Configs, Speaks, Stream},
};

/// All connections of one worker to one side.
#[derive(Debug)]
pub struct Channels {
    by_key: RefCell<HashMap<Key, Rc<Channel>>>,
    configs: Rc<RefCell<Configs>>,
    rng: RefCell<SmallRng>,
    leg: Leg,
    bounds: Bounds,
}

/// Where to, and how.
#[derive(Clone, Debug)]
pub struct Target {
    /// The endpoint.
    pub endpoint: EndpointKey,
    /// Told to it as SNI.
    pub name: Arc<str>,
    /// What the connection carries.
    pub carries: Carries,
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// The cluster's, with what is in use of them.
    pub limits: Limits,
    /// See `limits`.
    pub admission: Arc<Admission>,
    /// Whether the request waits for a connection to be free right now.
    pub is_queued: Rc<Cell<bool>>,
}

/// Whether a connection that has been used before will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Any.
    Any,
    /// Not one that its endpoint may be closing by now: the request could not be repeated.
    Recent,
    /// A new one: a used one just broke.
    New,
}

impl Freshness {
    /// For a request that may be sent twice, or not.
    pub fn of(is_repeatable: bool) -> Self {
        if is_repeatable {
            Self::Any
        } else {
            Self::Recent
        }
    }
}

/// A response whose body is still to come.
#[derive(Debug)]
pub struct Sent {
    /// From the endpoint.
    pub response: Response<Incoming>,
    /// Who it is.
    pub peer: Peer,
    /// Whether a sidecar of ours answered: its reason word is then to be believed.
    pub is_sidecar: bool,
    /// To be held until the end of the body.
    pub lease: Lease,
}

/// Why there is no response.
#[derive(Debug)]
pub struct Unsent {
    /// For the client.
    pub error: ProxyError,
    /// It was a used HTTP/1.1 connection that broke before any response: the endpoint had
    /// probably closed it already.
    pub is_stale: bool,
}

/// Connections under equal conditions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    endpoint: EndpointKey,
    carries: Carries,
    /// Of our credentials; 0 for plaintext.
    generation: u64,
}

#[derive(Debug, Default)]
struct Channel {
    http2: RefCell<Vec<Rc<Http2>>>,
    /// The latest used last.
    http1: RefCell<Vec<Http1>>,
    /// A dial for HTTP/2 is under way; everybody waits for that one.
    is_dialling: Cell<bool>,
    /// How the latest such dial ended, with its number.
    dials: Cell<u64>,
    failure: RefCell<Option<ConnectError>>,
    /// Told of every new, freed or failed connection.
    changed: Notify,
}

#[derive(Debug)]
struct Http1 {
    sender: http1::SendRequest<Body>,
    peer: Peer,
    is_sidecar: bool,
    uses: u32,
    used: Instant,
    retire_at: Instant,
}

/// hyper's tasks run in the worker's `LocalSet`, which owns them.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExec {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

impl Channels {
    /// None yet.
    pub fn new(configs: Rc<RefCell<Configs>>, rng: SmallRng, leg: Leg, bounds: Bounds) -> Self {
        Self {
            by_key: RefCell::default(),
            configs,
            rng: RefCell::new(rng),
            leg,
            bounds,
        }
    }

    /// Sends one request; with `Freshness::New` not over a used HTTP/1.1 connection.
    pub async fn send(
        self: &Rc<Self>,
        target: &Target,
        mut request: Request<Body>,
        freshness: Freshness,
    ) -> Result<Sent, Unsent> {
        let failed = |source| Unsent {
            error: ProxyError::Connect {
                endpoint: target.endpoint.address,
                source,
            },
            is_stale: false,
        };
        let mut failure = None;
        for _ in 0..SENDS_MAX {
            let mut lease = self.lease(target, freshness).await.map_err(failed)?;
            match lease.send(request).await {
                Ok(response) => {
                    return Ok(Sent {
                        response,
                        peer: lease.peer(),
                        is_sidecar: lease.is_sidecar(),
                        lease,
                    });
                }
                Err(mut unsent) => match unsent.take_message() {
                    // It went away before it took the request: nothing happened yet.
                    Some(message) => {
                        lease.spoil();
                        request = message;
                        failure = Some(unsent.into_error());
                    }
                    None => return Err(lease.broke(unsent.into_error())),
                },
            }
        }
        let text = failure.map_or_else(String::new, |error| error.to_string());
        Err(failed(ConnectError::Tcp(text)))
    }

    /// A connection for bytes; it is never shared.
    pub async fn dial(&self, target: &Target) -> Result<(Stream, Peer, Agreed), ConnectError> {
        let within = target.connect_timeout;
        self.certified(target, async || {
            let dialled = timeout(within, Box::pin(self.dial_without_limit(target)));
            dialled.await.unwrap_or(Err(ConnectError::Timeout(within)))
        })
        .await
    }

    /// Closes what was not used for long, is old, or was made with old credentials.
    pub fn maintain(&self) {
        let now = clock::now();
        let generation = self.configs.borrow_mut().generation();
        self.by_key.borrow_mut().retain(|key, channel| {
            if key.generation != 0 && key.generation != generation + 1 {
                return false;
            }
            let is_kept = |used: Instant, retire_at| {
                now < used + self.bounds.endpoint_idle && now < retire_at
            };
            channel.http2.borrow_mut().retain(|connection| {
                let is_busy = connection.streams.get() > 0 && now < connection.retire_at;
                let is_open = !connection.sender.is_closed();
                is_open && (is_busy || is_kept(connection.used.get(), connection.retire_at))
            });
            channel.http1.borrow_mut().retain(|connection| {
                !connection.sender.is_closed() && is_kept(connection.used, connection.retire_at)
            });
            Rc::strong_count(channel) > 1 || !channel.is_empty()
        });
    }

    async fn lease(
        self: &Rc<Self>,
        target: &Target,
        freshness: Freshness,
    ) -> Result<Lease, ConnectError> {
        let channel = self.channel(target);
        if let Some(lease) = channel.lease(target, freshness, &self.bounds) {
            return Ok(lease);
        }
        self.certified(target, async || {
            // Another one than before, if the certificate is.
            let channel = self.channel(target);
            match target.carries {
                Carries::Http2 => Box::pin(self.lease_shared(&channel, target)).await,
                Carries::Http1 | Carries::Http1OrForeignHttp2 | Carries::Tcp => {
                    Box::pin(self.lease_own(&channel, target, freshness)).await
                }
            }
        })
        .await
    }

    /// Connects with a certificate that lets us, and again when that has ended meanwhile: the
    /// other side may have looked after the end. Waiting for a renewal is not on the account of
    /// the endpoint's time.
    async fn certified<T>(
        &self,
        target: &Target,
        connect: impl AsyncFn() -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        if target.endpoint.transport == Transport::Plain {
            return connect().await;
        }
        tls::renewed(&self.configs).await;
        let ends = match self.configs.borrow_mut().identity() {
            Ok(identity) => identity.not_after(),
            Err(error) => return Err(error.into()),
        };
        let connected = connect().await;
        if clock::wall() < ends {
            return connected;
        }
        // What it holds may be all there is.
        drop(connected);
        tls::renewed(&self.configs).await;
        connect().await
    }

    /// HTTP/2: whoever comes first starts the dial, and all wait for its end. Only its own time
    /// says something about the endpoint, so waiting for a limit is counted apart.
    async fn lease_shared(
        self: &Rc<Self>,
        channel: &Rc<Channel>,
        target: &Target,
    ) -> Result<Lease, ConnectError> {
        let until = clock::now() + target.connect_timeout;
        loop {
            let changed = channel.changed.notified();
            if let Some(lease) = channel.lease(target, Freshness::Any, &self.bounds) {
                return Ok(lease);
            }
            let is_crowded = channel.http2.borrow().len() >= HTTP2_CONNECTIONS_MAX;
            let dials = channel.dials.get();
            if !channel.is_dialling.get() && !is_crowded {
                let slot = target
                    .admission
                    .acquire(Resource::Connections, target.limits.connections_max);
                match slot {
                    Ok(slot) => self.start_dial(channel, target, slot),
                    Err(_full) => {
                        wait_for_release(changed, target, until).await?;
                        continue;
                    }
                }
            }
            if channel.is_dialling.get() {
                changed.await;
            } else {
                target.queue(changed, until).await?;
            }
            let failure = channel.failure.borrow().clone();
            if channel.dials.get() != dials
                && let Some(failure) = failure
            {
                return channel.lease_crowded(target).ok_or(failure);
            }
        }
    }

    /// In a task of its own: it serves all who wait, so none of them may cancel it.
    fn start_dial(self: &Rc<Self>, channel: &Rc<Channel>, target: &Target, slot: Slot) {
        channel.is_dialling.set(true);
        let (channels, channel, target) = (Rc::clone(self), Rc::clone(channel), target.clone());
        tokio::task::spawn_local(async move {
            let opened = async {
                let (stream, peer, agreed) = channels.dial(&target).await?;
                let opened = channels.open_http2(stream, peer, agreed, slot, &channel);
                timeout(target.connect_timeout, opened)
                    .await
                    .unwrap_or(Err(ConnectError::Timeout(target.connect_timeout)))
            };
            let failure = match opened.await {
                Ok(connection) => {
                    channel.http2.borrow_mut().push(connection);
                    None
                }
                Err(failure) => Some(failure),
            };
            *channel.failure.borrow_mut() = failure;
            channel.dials.set(channel.dials.get() + 1);
            channel.is_dialling.set(false);
            channel.changed.notify_waiters();
        });
    }

    /// HTTP/1.1: each request dials for itself.
    async fn lease_own(
        self: &Rc<Self>,
        channel: &Rc<Channel>,
        target: &Target,
        freshness: Freshness,
    ) -> Result<Lease, ConnectError> {
        let until = clock::now() + target.connect_timeout;
        let slot = loop {
            let changed = channel.changed.notified();
            let admission = &target.admission;
            if let Ok(slot) =
                admission.acquire(Resource::Connections, target.limits.connections_max)
            {
                break slot;
            }
            wait_for_release(changed, target, until).await?;
            if let Some(lease) = channel.lease(target, freshness, &self.bounds) {
                return Ok(lease);
            }
        };
        let (stream, peer, agreed) = self.dial(target).await?;
        if agreed.speaks == Speaks::Http2 {
            let connection = self.open_http2(stream, peer, agreed, slot, channel).await?;
            channel.http2.borrow_mut().push(Rc::clone(&connection));
            connection.uses.set(1);
            return Ok(Lease::Http2(Http2Lease::new(connection, channel)));
        }
        let connection = self.open_http1(stream, peer, agreed, slot, channel).await?;
        Ok(Lease::Http1(Http1Lease {
            connection: Some(connection),
            channel: Rc::downgrade(channel),
            is_reused: false,
        }))
    }

    async fn dial_without_limit(
        &self,
        target: &Target,
    ) -> Result<(Stream, Peer, Agreed), ConnectError> {
        let config = match &target.endpoint.transport {
            Transport::Plain => None,
            Transport::Mtls(accepted) => {
                let mut configs = self.configs.borrow_mut();
                Some(configs.client(accepted, target.carries)?)
            }
        };
        let stream = intercept::connect(target.endpoint.address, self.leg).await?;
        let stream = Rewound::new(stream);
        match config {
            None => {
                let agreed = Agreed::of_plaintext(target.carries);
                Ok((Stream::Plain(stream), Peer::Anonymous, agreed))
            }
            Some(config) => Ok(tls::connect(stream, config, &target.name).await?),
        }
    }

    async fn open_http2(
        &self,
        stream: Stream,
        peer: Peer,
        agreed: Agreed,
        slot: Slot,
        channel: &Rc<Channel>,
    ) -> Result<Rc<Http2>, ConnectError> {
        if self.leg == Leg::Outbound {
            intercept::notice_vanished(stream.socket())?;
        }
        let cut = Rc::<Cut>::default();
        let stream = Cuttable::new(stream, Rc::clone(&cut));
        let mut builder = http2_builder(self.leg);
        if agreed.is_sidecar {
            // Others may take pings for an attack (gRPC servers do).
            builder.keep_alive_interval(PING_INTERVAL);
            builder.keep_alive_timeout(PING_TIMEOUT);
        }
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Tcp(error.to_string()))?;
        let revoked = self.configs.borrow().revoked(&peer);
        let streams_max = Rc::new(Cell::new(connection.current_max_send_streams()));
        let watched = Rc::clone(&streams_max);
        let home = Rc::downgrade(channel);
        tokio::task::spawn_local(async move {
            let _slot = slot;
            let mut connection = pin!(connection);
            // Its end is seen by those who use it.
            let mut ended = pin!(poll_fn(|cx| {
                let ended = connection.as_mut().poll(cx);
                watched.set(connection.current_max_send_streams());
                ended
            }));
            tokio::select! {
                biased;
                _ = ended.as_mut() => {}
                () = revoked => {
                    cut.cut();
                    _ = ended.await;
                }
            }
            if let Some(channel) = home.upgrade() {
                channel.forget_closed();
            }
        });
        Ok(Rc::new(Http2 {
            sender,
            peer,
            is_sidecar: agreed.is_sidecar,
            streams: Cell::new(0),
            streams_max,
            streams_apart: streams_apart(self.leg),
            uses: Cell::new(0),
            used: Cell::new(clock::now()),
            retire_at: self.retire_at(),
        }))
    }

    async fn open_http1(
        &self,
        stream: Stream,
        peer: Peer,
        agreed: Agreed,
        slot: Slot,
        channel: &Rc<Channel>,
    ) -> Result<Http1, ConnectError> {
        let (sender, connection) = http1_builder()
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| ConnectError::Tcp(error.to_string()))?;
        let home = Rc::downgrade(channel);
        let revoked = self.configs.borrow().revoked(&peer);
        tokio::task::spawn_local(async move {
            let _slot = slot;
            tokio::select! {
                biased;
                // Its end is seen by those who use it.
                _ = connection.with_upgrades() => {}
                () = revoked => {}
            }
            if let Some(channel) = home.upgrade() {
                channel.forget_closed();
            }
        });
        Ok(Http1 {
            sender,
            peer,
            is_sidecar: agreed.is_sidecar,
            // By the request it was opened for.
            uses: 1,
            used: clock::now(),
            retire_at: self.retire_at(),
        })
    }

    /// Give or take 20 %, so that connections made together do not end together.
    fn retire_at(&self) -> Instant {
        let share = self.rng.borrow_mut().random_range(0.8..1.2);
        clock::now() + self.bounds.connection_age.mul_f64(share)
    }

    fn channel(&self, target: &Target) -> Rc<Channel> {
        let generation = match target.endpoint.transport {
            Transport::Plain => 0,
            Transport::Mtls(_) => self.configs.borrow_mut().generation() + 1,
        };
        let key = Key {
            endpoint: target.endpoint.clone(),
            carries: target.carries,
            generation,
        };
        let mut by_key = self.by_key.borrow_mut();
        Rc::clone(by_key.entry(key).or_default())
    }
}

impl Target {
    fn uses_max(&self) -> u32 {
        let limit = self.limits.requests_per_connection_max;
        limit.map_or(u32::MAX, NonZeroU32::get)
    }

    /// Waits for `changed` because a limit makes it, at most until then.
    async fn queue<T>(
        &self,
        changed: impl Future<Output = T>,
        until: Instant,
    ) -> Result<(), ConnectError> {
        self.is_queued.set(true);
        let waited = timeout_at(until.into(), changed).await;
        self.is_queued.set(false);
        match waited {
            Ok(_changed) => Ok(()),
            Err(_elapsed) => Err(ConnectError::Full),
        }
    }
}

/// Every allowed connection is in use. Connections of other workers count too and cannot wake us,
/// so this looks again after a while.
async fn wait_for_release(
    changed: impl Future<Output = ()>,
    target: &Target,
    until: Instant,
) -> Result<(), ConnectError> {
    let pending = target
        .admission
        .acquire(Resource::Pending, target.limits.pending_max);
    let _pending = pending.map_err(|_full| ConnectError::Full)?;
    target.queue(timeout(RELEASE_POLL, changed), until).await
}

impl Channel {
    fn is_empty(&self) -> bool {
        self.http2.borrow().is_empty() && self.http1.borrow().is_empty()
    }

    /// A connection that takes one more request now.
    fn lease(
        self: &Rc<Self>,
        target: &Target,
        freshness: Freshness,
        bounds: &Bounds,
    ) -> Option<Lease> {
        if let Some(connection) = self.lease_http2(target, Room::Apart) {
            return Some(Lease::Http2(Http2Lease::new(connection, self)));
        }
        if freshness == Freshness::New {
            return None;
        }
        let now = clock::now();
        let mut idle = self.http1.borrow_mut();
        while let Some(mut connection) = idle.pop() {
            if freshness == Freshness::Recent
                && !connection.is_sidecar
                && now >= connection.used + bounds.unrepeatable_idle
            {
                // It goes, or those that were idle for too long would add up.
                return None;
            }
            if connection.sender.is_ready()
                && now < connection.retire_at
                && connection.uses < target.uses_max()
            {
                connection.uses += 1;
                return Some(Lease::Http1(Http1Lease {
                    connection: Some(connection),
                    channel: Rc::downgrade(self),
                    is_reused: true,
                }));
            }
        }
        None
    }

    /// When there may be no further connection: the requests on one then share its window.
    fn lease_crowded(self: &Rc<Self>, target: &Target) -> Option<Lease> {
        let connection = self.lease_http2(target, Room::Any)?;
        Some(Lease::Http2(Http2Lease::new(connection, self)))
    }

    fn lease_http2(&self, target: &Target, room: Room) -> Option<Rc<Http2>> {
        let now = clock::now();
        let uses_max = target.uses_max();
        let mut connections = self.http2.borrow_mut();
        connections.retain(|connection| {
            !connection.sender.is_closed()
                && now < connection.retire_at
                && connection.uses.get() < uses_max
        });
        let is_crowded = room == Room::Any || connections.len() >= HTTP2_CONNECTIONS_MAX;
        let mut apart = connections.iter().filter(|c| c.has_room_apart());
        let with_room = connections.iter().filter(|c| c.has_room() && is_crowded);
        let least = || with_room.min_by_key(|c| c.streams.get());
        let connection = apart.next().or_else(least)?;
        connection.uses.set(connection.uses.get().saturating_add(1));
        connection.used.set(now);
        Some(Rc::clone(connection))
    }

    fn forget_closed(&self) {
        self.http2.borrow_mut().retain(|c| !c.sender.is_closed());
        self.http1.borrow_mut().retain(|c| !c.sender.is_closed());
        self.changed.notify_waiters();
    }
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX);
    builder
}

/// Connections that may take a request and lose it before sending, one after another.
const SENDS_MAX: usize = 3;
/// HTTP/2 connections of one worker to one endpoint; beyond, requests wait for a stream. Times
/// [`CONNECTION_WINDOW`] it is what answers that nobody reads can hold.
const HTTP2_CONNECTIONS_MAX: usize = 64;
/// See [`wait_for_release`].
const RELEASE_POLL: Duration = Duration::from_millis(5);
/// What an HTTP/1.1 connection holds in each direction: a head, or what waits for its reader.
pub const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Decoded size of all headers of a message (RFC 9113 section 6.5.2).
pub const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Headers of a message.
pub const HEADERS_MAX: usize = 100;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
