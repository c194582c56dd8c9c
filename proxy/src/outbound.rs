//! The workload's own connections: read this first.
//!
//! ```text
//! accept ─ key ─ lookup ─┬─ HTTP: serve ─► respond ─► forward (one exchange)
//!                        ├─ TCP: relay to an endpoint
//!                        ├─ undeclared: one of the two, by its first bytes
//!                        └─ unknown: relay to the original destination, or refuse
//! ```

mod opaque;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use heddle_policy::{
    admission::{Resource, Slot},
    deadline::{earliest, of_attempt, remaining},
    outcome::Outcome,
    retry::{Attempted, Pushback, Retry, RetryDecision, RetryTerms},
    route::Route,
    snapshot::{DestinationKey, Target as Leads, UnknownDestination, WeightedClusters},
};
use heddle_relay::{
    cluster::LiveCluster,
    error::ProxyError,
    view::{InUse, LiveDestination, Lookup},
};
use heddle_shell::clock;
use http::{Request, Response};
use hyper::body::Incoming;
use rand::RngExt;
use tokio::{net::TcpStream, time::timeout_at};

use self::opaque::{pass_through, relay_to_endpoint, relay_unless_http};
use crate::{
    body::{Body, Replay},
    channel::{Freshness, Sent, Target},
    detect::{Rewound, Seen},
    drain::Phase,
    error::{self, REASON},
    exchange::{Attempt, Direction, Exchange, Held, Record, Spoken},
    head::{self, Head},
    intercept,
    reply::{Committed, Reply, Tunnel},
    serve::{self, Version},
    tls::{AsSocket, Carries, Stream},
    worker::Worker,
};

/// Where a connection of the workload goes.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Redirected here: the kernel knows.
    Intercepted,
    /// The listener has one destination.
    Fixed(DestinationKey),
    /// HTTP, each request by its authority.
    ByAuthority,
}

/// An accepted connection that speaks HTTP.
#[derive(Debug)]
struct Conn {
    worker: Rc<Worker>,
    client: SocketAddr,
    /// `None`: by authority.
    dialled: Option<DestinationKey>,
    /// What it becomes by an upgrade.
    tunnel: Tunnel,
}

/// Serves one connection of the workload.
pub async fn accept(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, origin: &Origin) {
    let key = match origin {
        Origin::ByAuthority => {
            serve_http(worker, Rewound::new(stream), client, None).await;
            return;
        }
        Origin::Fixed(key) => key.clone(),
        Origin::Intercepted => match intercept::original_dst(&stream) {
            Ok(Some(to)) if !worker.guard.refuses(to) => DestinationKey::Address(to.0),
            // Dialled the listener itself, or would come back to it.
            Ok(_) | Err(_) => {
                refuse(worker, stream, client, "", &ProxyError::UnknownDestination);
                return;
            }
        },
    };
    match lookup(worker, &key).await {
        Ok(Some(destination)) => {
            let _in_use = destination.touch(clock::now());
            serve_destination(worker, stream, client, key, &destination).await;
        }
        Ok(None) => pass_through(worker, stream, client, &key).await,
        Err(error) => refuse(worker, stream, client, &name_of(Some(&key)), &error),
    }
}

/// `None`: nothing is known and policy lets it pass.
async fn lookup(
    worker: &Worker,
    key: &DestinationKey,
) -> Result<Option<Arc<LiveDestination>>, ProxyError> {
    let wait = worker.settings.bounds.lookup_wait;
    let known = worker.view().lookup(key);
    let known = match known {
        Some(known) => known,
        None => worker.demand.lookup(&worker.views, key, wait).await,
    };
    let is_plain = match &known {
        Lookup::Found(found) => matches!(found.config.target, Leads::Passthrough),
        Lookup::Unknown(_) | Lookup::Unanswered => true,
    };
    match (known, key) {
        // It may well be meshed: nothing goes there in plaintext.
        (Lookup::Unanswered, _) => Err(ProxyError::Undescribed(wait)),
        (_, DestinationKey::Address(address))
            if is_plain && worker.view().meshed.contains(address) =>
        {
            Err(ProxyError::OnceMeshed(*address))
        }
        (Lookup::Found(destination), _) => Ok(Some(destination)),
        (Lookup::Unknown(UnknownDestination::AllowAny), DestinationKey::Address(_)) => Ok(None),
        (Lookup::Unknown(_), _) => Err(ProxyError::UnknownDestination),
    }
}

async fn serve_destination(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    key: DestinationKey,
    destination: &Arc<LiveDestination>,
) {
    match &destination.config.target {
        Leads::Http(_) => {
            let Some(clusters) = destination.config.undeclared() else {
                return serve_http(worker, Rewound::new(stream), client, Some(key)).await;
            };
            let http = relay_unless_http(worker, stream, client, destination, clusters).await;
            if let Some((stream, version)) = http {
                serve_version(worker, stream, version, client, Some(key)).await;
            }
        }
        Leads::Tcp(clusters) => {
            relay_to_endpoint(worker, stream, client, destination, clusters).await;
        }
        Leads::Passthrough => pass_through(worker, stream, client, &key).await,
    }
}

/// A destination with HTTP routes is never relayed opaque: bytes that are not HTTP, and silence,
/// are refused.
async fn serve_http(
    worker: &Rc<Worker>,
    mut stream: Rewound<TcpStream>,
    client: SocketAddr,
    dialled: Option<DestinationKey>,
) {
    let bounds = &worker.settings.bounds;
    let mut draining = worker.draining.clone();
    // A connection that was opened ahead and never used is no failure.
    let begins = tokio::select! {
        biased; // A request that has begun is still taken.
        begins = stream.begins_within(bounds.idle) => begins,
        () = draining.reached(Phase::All) => false,
    };
    if !begins {
        return;
    }
    match stream.sniff(bounds.header_wait).await {
        Ok(Seen::Http1) => serve_version(worker, stream, Version::Http1, client, dialled).await,
        Ok(Seen::Http2) => serve_version(worker, stream, Version::Http2, client, dialled).await,
        Ok(Seen::Tls | Seen::Other | Seen::Closed | Seen::Silence) | Err(_) => {
            let name = name_of(dialled.as_ref());
            refuse(worker, stream, client, &name, &NOT_HTTP);
        }
    }
}

async fn serve_version(
    worker: &Rc<Worker>,
    mut stream: Rewound<TcpStream>,
    version: Version,
    client: SocketAddr,
    dialled: Option<DestinationKey>,
) {
    let name = name_of(dialled.as_ref());
    let wait = worker.settings.bounds.header_wait;
    if version == Version::Http1 && !stream.has_head_within(wait).await {
        return refuse(worker, stream, client, &name, &NOT_HTTP);
    }
    let stream = Rewound::new(Stream::plain(stream));
    let conn = Rc::new(Conn {
        worker: Rc::clone(worker),
        client,
        dialled,
        tunnel: Tunnel::default(),
    });
    let serving = Rc::clone(&conn);
    let refused = serve::serve(
        worker,
        stream,
        version,
        Direction::Outbound,
        move |request| {
            let conn = Rc::clone(&serving);
            async move { conn.respond(request).await }
        },
    );
    if let Some(error) = refused.await {
        record_refusal(worker, client, &name, &error);
    }
    conn.tunnel.pass().await;
}

impl Conn {
    /// Answers every request: a failure is a status with a reason, never a dropped stream.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let spoken = head::spoken(&request);
        let name = name_of(self.dialled.as_ref());
        let record = Record::new(Direction::Outbound, spoken, name, self.client);
        let telemetry = Arc::clone(&self.worker.telemetry);
        let mut exchange = Exchange::start(record, telemetry);
        let read = {
            let bounds = &self.worker.settings.bounds;
            Head::read(request, bounds, &mut *self.worker.rng.borrow_mut())
        };
        let forwarded = match read {
            Ok((mut head, body)) => {
                head.describe(&mut exchange.record);
                let forwarded = self.forward(&mut exchange, &mut head, body).await;
                forwarded.map(|committed| (head, committed))
            }
            Err(error) => Err(error),
        };
        match forwarded {
            Ok((head, committed)) => committed.respond(&self.worker, &self.tunnel, head, exchange),
            Err(error) => error::answer(&error, exchange),
        }
    }

    async fn forward(
        &self,
        exchange: &mut Exchange,
        head: &mut Head,
        body: Incoming,
    ) -> Result<Committed, ProxyError> {
        let worker = &self.worker;
        let started = clock::now();
        let destination = self.destination(head).await?;
        let in_use = destination.touch(clock::now());
        head.name_if_nameless(&destination.config.name)?;
        let head = &*head;
        let (route, cluster) = route(worker, &destination, head)?;
        exchange.routed(&destination, &route, &cluster);
        let request = admit(&cluster)?;
        let deadline = earliest(started, [route.timeout, head.grpc_timeout()]);
        let terms = cluster.retry_terms(route.retry.as_ref());
        let mut retry = Retry::new(head.parts.method.as_str(), deadline);
        let bytes_max = worker.settings.bounds.replay_bytes_max;
        let body = Replay::new(body, bytes_max, Rc::clone(&exchange.received));

        loop {
            let attempt = pick(worker, &cluster, &mut retry)?;
            exchange.attempted(&attempt);
            let sent = send(
                worker,
                &attempt,
                &destination,
                &route,
                &body,
                head,
                deadline,
            )
            .await;
            let tried = match judge(sent, attempt, &route) {
                Judged::Good(reply) => {
                    body.commit();
                    let held = held(request, retry.commit(), in_use);
                    return Ok(Committed::new(reply, held, deadline));
                }
                Judged::Bad(tried) => tried,
            };
            match decide(worker, &mut retry, &terms, &tried, &body, &cluster) {
                RetryDecision::Repick => {}
                RetryDecision::After(wait) => tokio::time::sleep(wait).await,
                RetryDecision::Stop(_) => {
                    body.commit();
                    let held = held(request, None, in_use);
                    return Ok(Committed::new(tried.result?, held, deadline));
                }
            }
        }
    }

    /// Looked up again for each request: configuration may have changed.
    async fn destination(&self, head: &Head) -> Result<Arc<LiveDestination>, ProxyError> {
        let key = match &self.dialled {
            Some(key) => key.clone(),
            None => by_authority(&head.authority)?,
        };
        let found = lookup(&self.worker, &key).await?;
        found.ok_or(ProxyError::UnknownDestination)
    }
}

/// The destination that an authority names, for listeners that know none.
fn by_authority(authority: &str) -> Result<DestinationKey, ProxyError> {
    let invalid = |_invalid| ProxyError::BadRequest("the authority is not valid");
    let authority: http::uri::Authority = authority.parse().map_err(invalid)?;
    let port = authority.port_u16().unwrap_or(HTTP_PORT);
    Ok(DestinationKey::new(authority.host(), port))
}

/// First match wins; its weights choose the cluster.
fn route(
    worker: &Worker,
    destination: &LiveDestination,
    head: &Head,
) -> Result<(Arc<Route>, Arc<LiveCluster>), ProxyError> {
    let Leads::Http(routes) = &destination.config.target else {
        return Err(ProxyError::NoRoute);
    };
    let route = head
        .judged(|head| routes.find(head).cloned())
        .ok_or(ProxyError::NoRoute)?;
    let cluster = cluster(worker, destination, &route.clusters)?;
    Ok((route, cluster))
}

fn cluster(
    worker: &Worker,
    destination: &LiveDestination,
    clusters: &WeightedClusters,
) -> Result<Arc<LiveCluster>, ProxyError> {
    let name = clusters.at(worker.rng.borrow_mut().random());
    let cluster = destination.clusters.get(name);
    cluster
        .cloned()
        .ok_or_else(|| ProxyError::NoEndpoint(name.clone()))
}

fn admit(cluster: &LiveCluster) -> Result<Slot, ProxyError> {
    let limit = cluster.config.limits.requests_max;
    let slot = cluster.state.admission.acquire(Resource::Requests, limit);
    slot.map_err(|full| ProxyError::Overloaded(full.to_string()))
}

/// Until the end of the response.
fn held(request: Slot, retry: Option<Slot>, in_use: InUse) -> Held {
    Held {
        lease: None,
        request: Some(request),
        retry,
        in_use: Some(in_use),
    }
}

fn pick(
    worker: &Worker,
    cluster: &Arc<LiveCluster>,
    retry: &mut Retry,
) -> Result<Attempt, ProxyError> {
    let index = worker
        .pick(cluster, retry.tried())
        .ok_or_else(|| ProxyError::NoEndpoint(cluster.config.name.clone()))?;
    retry.picked(index);
    Ok(Attempt::start(cluster, index))
}

/// One try, until response headers.
async fn send(
    worker: &Rc<Worker>,
    attempt: &Attempt,
    destination: &LiveDestination,
    route: &Route,
    body: &Replay,
    head: &Head,
    deadline: Option<Instant>,
) -> Result<Sent, ProxyError> {
    let now = clock::now();
    let own = route.retry.as_ref().and_then(|retry| retry.attempt_timeout);
    let until = of_attempt(now, own, deadline);
    let timeout = deadline.map(|deadline| remaining(now, deadline));
    let is_grpc = head.is_grpc();
    let target = target(attempt, destination, head.carries(attempt.cluster()));
    let sending = async {
        let request = || head.request(body.attempt(), timeout.filter(|_| is_grpc));
        let freshness = Freshness::of(head.parts.method.is_idempotent() && body.fits());
        let unsent = match worker.outbound.send(&target, request(), freshness).await {
            Ok(sent) => return Ok(sent),
            Err(unsent) => unsent,
        };
        // The endpoint had closed an idle connection: no failure of its own. Only what may be
        // repeated is (RFC 9110 section 9.2.2).
        let is_repeatable = head.parts.method.is_idempotent() && body.is_replayable();
        if !unsent.is_stale || !is_repeatable {
            return Err(body.cause(unsent.error));
        }
        let again = worker
            .outbound
            .send(&target, request(), Freshness::New)
            .await;
        again.map_err(|unsent| body.cause(unsent.error))
    };
    let sending = Box::pin(sending);
    let Some(until) = until else {
        return sending.await;
    };
    let late = || match deadline {
        // Which says nothing about the endpoint.
        _ if target.is_queued.get() => ProxyError::Queued,
        Some(deadline) if deadline <= until => ProxyError::Deadline,
        Some(_) | None => ProxyError::AttemptTimeout,
    };
    let sent = timeout_at(until.into(), sending).await;
    sent.unwrap_or_else(|_elapsed| Err(late()))
}

fn target(attempt: &Attempt, destination: &LiveDestination, carries: Carries) -> Target {
    let name = &destination.config.name;
    let cluster = attempt.cluster();
    Target {
        endpoint: attempt.endpoint.state.key.clone(),
        name: Arc::clone(name),
        carries,
        connect_timeout: cluster.config.connect_timeout,
        limits: cluster.config.limits,
        admission: Arc::clone(&cluster.state.admission),
        is_queued: Rc::default(),
    }
}

/// A try that is not simply forwarded.
struct Tried {
    outcome: Outcome,
    pushback: Option<Pushback>,
    /// What the client gets if there is no other try.
    result: Result<Reply, ProxyError>,
}

enum Judged {
    Good(Reply),
    Bad(Tried),
}

/// Whether a try may be worth another. The outcome of one that is not is told by its body.
fn judge(sent: Result<Sent, ProxyError>, mut attempt: Attempt, route: &Route) -> Judged {
    let sent = match sent {
        Ok(sent) => sent,
        Err(error) => {
            let outcome = error.outcome();
            attempt.report(outcome);
            return Judged::Bad(Tried {
                outcome,
                pushback: None,
                result: Err(error),
            });
        }
    };
    let headers = sent.response.headers();
    let grpc_status = headers.get("grpc-status").map(http::HeaderValue::as_bytes);
    let unseen = headers.get(REASON).filter(|_| sent.is_sidecar);
    let unseen = unseen.and_then(|reason| ProxyError::unseen(reason.as_bytes()));
    let answered = Outcome::response(sent.response.status().as_u16(), grpc_status);
    let outcome = unseen.unwrap_or(answered);
    let pushback = headers.get("grpc-retry-pushback-ms");
    let pushback = pushback.map(|value| Pushback::parse(value.as_bytes()));
    let policy = route.retry.as_ref();
    let is_retried =
        unseen.is_some() || policy.is_some_and(|policy| outcome.is_retried(&policy.on));
    if is_retried {
        attempt.report(outcome);
    }
    let reply = Reply {
        sent,
        attempt: Some(attempt),
    };
    if !is_retried {
        return Judged::Good(reply);
    }
    Judged::Bad(Tried {
        outcome,
        pushback,
        result: Ok(reply),
    })
}

fn decide(
    worker: &Worker,
    retry: &mut Retry,
    terms: &RetryTerms<'_>,
    tried: &Tried,
    body: &Replay,
    cluster: &LiveCluster,
) -> RetryDecision {
    let attempted = Attempted {
        outcome: tried.outcome,
        is_replayable: body.is_replayable(),
        endpoints: cluster.serving(),
        pushback: tried.pushback,
    };
    let mut rng = worker.rng.borrow_mut();
    retry.after(&attempted, terms, clock::now(), &mut *rng)
}

/// Closes a connection for which there is no answer in its protocol.
pub fn refuse(
    worker: &Worker,
    stream: impl AsSocket,
    client: SocketAddr,
    name: &str,
    error: &ProxyError,
) {
    record_refusal(worker, client, name, error);
    intercept::reset(stream.socket());
}

fn record_refusal(worker: &Worker, client: SocketAddr, name: &str, error: &ProxyError) {
    let record = Record::new(Direction::Outbound, Spoken::Tcp, name.into(), client);
    let mut exchange = Exchange::start(record, Arc::clone(&worker.telemetry));
    exchange.failed(error);
}

/// What a record calls it.
fn name_of(key: Option<&DestinationKey>) -> Arc<str> {
    key.map_or_else(|| "".into(), |key| key.to_string().into())
}

const HTTP_PORT: u16 = 80;
const NOT_HTTP: ProxyError =
    ProxyError::BadRequest("this destination speaks HTTP; the client does not");
