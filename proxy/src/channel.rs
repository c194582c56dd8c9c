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
mod open;
mod pool;
mod shared;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::{Admission, Resource, Slot},
    snapshot::{EndpointKey, Limits, Transport},
    spiffe::Peer,
};
use heddle_relay::error::{ConnectError, ProxyError};
use heddle_shell::clock;
use http::{Request, Response};
use hyper::body::Incoming;
use rand::rngs::SmallRng;
use tokio::time::{timeout, timeout_at};

use self::pool::Channel;
pub(crate) use self::shared::http2_builder;
pub use self::{
    lease::{Http1Lease, Http2Lease, Lease},
    shared::{CONNECTION_WINDOW, SEND_BUFFER_BYTES_MAX, STREAM_WINDOW},
};
use crate::{
    body::Body,
    intercept::Leg,
    settings::Bounds,
    tls::{self, Carries, Configs, Established, Speaks},
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

/// hyper's tasks run in the worker's `LocalSet`, which owns them.
#[derive(Clone, Copy, Debug)]
pub struct LocalExec;

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExec {
    /// Boxed: of each request hyper makes a future as large as that of a connection, and a task
    /// moves what it holds from hand to hand.
    fn execute(&self, future: F) {
        tokio::task::spawn_local(Box::pin(future));
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
    pub async fn dial(&self, target: &Target) -> Result<Established, ConnectError> {
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
            let dials = channel.dials.get();
            if !channel.is_dialling.get() && !channel.is_full() {
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
                let established = channels.dial(&target).await?;
                let opened = channels.open_http2(established, slot, &channel);
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
        let established = self.dial(target).await?;
        if established.agreed.speaks == Speaks::Http2 {
            let connection = self.open_http2(established, slot, channel).await?;
            channel.http2.borrow_mut().push(Rc::clone(&connection));
            connection.uses.set(1);
            return Ok(Lease::Http2(Http2Lease::new(connection, channel)));
        }
        let connection = self.open_http1(established, slot, channel).await?;
        Ok(Lease::Http1(Http1Lease {
            connection: Some(connection),
            channel: Rc::downgrade(channel),
            is_reused: false,
        }))
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
        let channel = by_key.entry(key);
        Rc::clone(channel.or_insert_with(|| Rc::new(Channel::new(self.leg))))
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

/// Connections that may take a request and lose it before sending, one after another.
const SENDS_MAX: usize = 3;
/// See [`wait_for_release`].
const RELEASE_POLL: Duration = Duration::from_millis(5);
/// What an HTTP/1.1 connection holds in each direction: a head, or what waits for its reader.
pub const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Decoded size of all headers of a message (RFC 9113 section 6.5.2).
pub const HEADER_BYTES_MAX: u32 = 64 * 1024;
/// Headers of a message.
pub const HEADERS_MAX: usize = 100;
