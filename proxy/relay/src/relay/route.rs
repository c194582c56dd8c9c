//! From a request's head to an endpoint.

use std::{io::Write, sync::Arc, time::Instant};

use heddle_policy::{
    admission::Resource,
    balance::Turn,
    deadline::{earliest, of_attempt, remaining},
    retry::{Attempted, Pushback, Retry, RetryDecision},
    snapshot::{
        CONNECT_TIMEOUT, ClusterProtocol, DestinationKey, EndpointKey, MtlsMode, Target, Transport,
        UnknownDestination,
    },
    spiffe::Peer,
};
use rand::{Rng, RngExt};

use super::{
    Carries, ConnId, ExchangeId, Relay, TURNS_MAX, Task, Turns,
    channel::{Freshness, Reach},
    codec::Unopened,
    conn::{Dialled, Port, Side},
    exchange::{Attempt, Exchange, Facts, Leg, Lost, Stage, Way},
    upload::Upload,
};
use crate::{
    cluster::{EndpointState, LiveCluster},
    error::ProxyError,
    event::{Code, StreamId, Then},
    h1,
    head::Head,
    record::{Direction, Spoken},
    request::{self, Request, Version},
    token::Token,
    view::{LiveDestination, Lookup},
};

impl Relay {
    /// A request begins.
    pub(super) fn begin(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        head: Head,
        then: Then,
        now: Instant,
    ) {
        let Some(id) = self.start(conn, stream, head, then, now) else {
            return;
        };
        let exchange = &mut self.exchanges[id];
        let version = exchange.version;
        let terms = &self.settings.terms;
        let read = Request::ready(&mut exchange.head, version, terms, &mut self.rng);
        exchange.request = read.as_ref().ok().copied();
        match read {
            Ok(_) if self.may_pass(id, now) => self.direct(id, now),
            Ok(_) => {}
            Err(error) => self.fail(id, &error, now),
        }
    }

    /// Judges and routes what was read.
    pub(super) fn direct(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &self.exchanges[id];
        let Some(request) = exchange.request else {
            return;
        };
        let directed = match exchange.facts.direction {
            Direction::Outbound => self.route(id, &request, now),
            Direction::Inbound => self.admit(id, &request, now),
        };
        if let Err(error) = directed {
            self.fail(id, &error, now);
        }
    }

    /// `None`: it is no client's connection.
    pub(super) fn start(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        mut head: Head,
        then: Then,
        now: Instant,
    ) -> Option<ExchangeId> {
        let client = &mut self.conns[conn];
        client.uses = client.uses.saturating_add(1);
        let Side::Client(caller) = &client.side else {
            return None;
        };
        let version = client.codec.carries();
        let form = client.codec.form(&mut head);
        let facts = Facts::new(Arc::clone(caller), request::spoken(&head, version));
        self.begun[client.direction() as usize] += 1;
        let upload = Upload::new(then, self.rooms.pop().unwrap_or_default());
        let leg = Leg { conn, stream };
        let mut exchange = Exchange::new(leg, head, upload, facts, now);
        exchange.version = version;
        exchange.form = form;
        let id = self.exchanges.insert(exchange);
        client.exchanges.insert(stream.0, id);
        Some(id)
    }

    /// What came over a connection of HTTP/1.1 is not HTTP: its client is told so while it can be,
    /// and its endpoint is not asked for more.
    pub(super) fn refuse(&mut self, conn: ConnId, malformed: h1::Malformed, now: Instant) {
        let is_client = self.conns[conn].channel().is_none();
        let mut exchanges = self.conns[conn].exchanges.iter();
        let exchange = exchanges
            .next()
            .map(|(stream, id)| (StreamId(*stream), *id));
        match (exchange, malformed.answer) {
            (Some((stream, exchange)), _) if !is_client => {
                let leg = Leg { conn, stream };
                self.attempt_broke(exchange, leg, Lost::Answer(malformed.reason), now);
            }
            (Some((_, exchange)), None) => self.client_gone(exchange, now),
            (Some((_, exchange)), Some(_)) => self.fail(exchange, &malformed.into(), now),
            (None, Some(stream)) => {
                let exchange = self.start(conn, stream, Head::new(), Then::End, now);
                if let Some(exchange) = exchange {
                    self.fail(exchange, &malformed.into(), now);
                }
            }
            (None, None) => {}
        }
    }

    /// Outbound: first match wins, and its weights choose the cluster.
    fn route(&mut self, id: ExchangeId, request: &Request, now: Instant) -> Result<(), ProxyError> {
        let Some(destination) = self.destination(id)? else {
            return Ok(());
        };
        let exchange = &mut self.exchanges[id];
        exchange.held.in_use = Some(destination.touch(now));
        request::name_if_nameless(&mut exchange.head, &destination.config.name);
        let Target::Http(routes) = &destination.config.target else {
            return Err(ProxyError::NoRoute);
        };
        let found = request.judged(&exchange.head, |head| routes.find(head).cloned());
        let route = found.ok_or(ProxyError::NoRoute)?;
        let name = route.clusters.at(self.rng.random());
        let cluster = destination.clusters.get(name).cloned();
        let cluster = cluster.ok_or_else(|| ProxyError::NoEndpoint(name.clone()))?;
        let limit = cluster.config.limits.requests_max;
        let slot = cluster.state.admission.acquire(Resource::Requests, limit);
        exchange.held.request =
            Some(slot.map_err(|full| ProxyError::Overloaded(full.to_string()))?);
        exchange.deadline = earliest(exchange.started, [route.timeout, request.timeout]);
        let method = exchange.head.get(Token::Method).unwrap_or_default();
        let method = std::str::from_utf8(method).unwrap_or_default();
        exchange.retry = Retry::new(method, exchange.deadline);
        exchange.way = Some(Way {
            destination,
            route,
            cluster,
        });
        if self.filter.is_some() {
            return self.ask_before_sending(id, now);
        }
        self.attempt(id, now)
    }

    /// Remembers who looks; those that gave up are forgotten when they are most of the list.
    fn look(&mut self, id: ExchangeId) {
        if self.looking.len() > 2 * self.exchanges.len() {
            self.looking.retain(|id| self.exchanges.contains_key(*id));
        }
        self.looking.push(id);
    }

    /// What the client dialled, or names; `None`: it has been asked for.
    fn destination(&mut self, id: ExchangeId) -> Result<Option<Arc<LiveDestination>>, ProxyError> {
        let exchange = &mut self.exchanges[id];
        let conn = &mut self.conns[exchange.client.conn];
        let number = self.view_number;
        if let Some((_, known)) = conn.found.as_ref().filter(|(of, _)| *of == number) {
            return Ok(Some(Arc::clone(known)));
        }
        let Side::Client(caller) = &conn.side else {
            return Err(ProxyError::UnknownDestination);
        };
        let (key, is_all) = match &caller.dialled {
            Dialled::Destination(key) => (key.clone(), true),
            Dialled::Authority | Dialled::Port(_) => (by_authority(&exchange.head)?, false),
        };
        let known = self.view.lookup(&key);
        let is_plain = match &known {
            Some(Lookup::Found(found)) => matches!(found.config.target, Target::Passthrough),
            Some(Lookup::Unknown(_)) => true,
            Some(Lookup::Unanswered) | None => false,
        };
        if let DestinationKey::Address(address) = &key
            && is_plain
            && self.view.meshed.contains(address)
        {
            return Err(ProxyError::OnceMeshed(*address));
        }
        match known {
            Some(Lookup::Found(destination)) => {
                conn.found = is_all.then(|| (number, Arc::clone(&destination)));
                Ok(Some(destination))
            }
            Some(Lookup::Unknown(
                UnknownDestination::AllowAny | UnknownDestination::RegistryOnly,
            )) => Err(ProxyError::UnknownDestination),
            Some(Lookup::Unanswered) | None => {
                exchange.stage = Stage::Looking;
                if !std::mem::replace(&mut exchange.is_asked, true) {
                    self.tasks.push_back(Task::Ask(key));
                }
                let until = exchange.started.checked_add(self.settings.lookup_wait);
                self.look(id);
                self.arm(id, until);
                Ok(None)
            }
        }
    }

    /// Inbound: the rules of the port as of now, then to the application.
    fn admit(&mut self, id: ExchangeId, request: &Request, now: Instant) -> Result<(), ProxyError> {
        let exchange = &mut self.exchanges[id];
        let Side::Client(caller) = &self.conns[exchange.client.conn].side else {
            return Err(ProxyError::Denied);
        };
        let Dialled::Port(Port {
            number,
            application,
        }) = caller.dialled
        else {
            return Err(ProxyError::Denied);
        };
        let inbound = self.view.inbound.as_ref().ok_or(ProxyError::Denied)?;
        let rules = inbound.port(number);
        if rules.mtls == MtlsMode::Strict && caller.peer == Peer::Anonymous {
            return Err(ProxyError::PlaintextRefused);
        }
        request::strip_claims(&mut exchange.head);
        let is_allowed = request.judged(&exchange.head, |head| {
            let address = caller.address.ip();
            let decision = rules
                .authz
                .decide(&caller.peer, address, number, Some(head));
            decision.is_allowed()
        });
        if !is_allowed {
            return Err(ProxyError::Denied);
        }
        exchange.deadline = earliest(exchange.started, [request.timeout]);
        if self.applications.len() >= APPLICATIONS_MAX {
            let known = &mut self.applications;
            known.retain(|_, endpoint| Arc::strong_count(endpoint) > 1);
        }
        let endpoint = self.applications.entry(application).or_insert_with(|| {
            let key = EndpointKey {
                address: application,
                transport: Transport::Plain,
            };
            Arc::new(EndpointState::new(key, now))
        });
        exchange.facts.attempts += 1;
        exchange.facts.endpoint = Some(application);
        let carries = match exchange.version {
            Version::Http1 => Carries::Http1,
            Version::Http2 => Carries::Http2,
        };
        exchange.attempt = Some(Attempt::start(Reach {
            endpoint: Arc::clone(endpoint),
            direction: Direction::Inbound,
            name: Arc::clone(&self.nameless),
            carries,
            timeout: CONNECT_TIMEOUT,
        }));
        self.arm(id, None);
        if self.filter.is_some() {
            return self.ask_before_sending(id, now);
        }
        let freshness = self.freshness(id);
        self.connect(id, freshness, now);
        Ok(())
    }

    /// The view has changed since the destination was asked for.
    pub(super) fn look_again(&mut self, id: ExchangeId, now: Instant) {
        if self.exchanges[id].stage == Stage::Looking {
            self.direct(id, now);
        }
    }

    pub(super) fn try_again(&mut self, id: ExchangeId, now: Instant) {
        if let Err(error) = self.attempt(id, now) {
            self.fail(id, &error, now);
        }
    }

    /// Picks an endpoint.
    pub(super) fn attempt(&mut self, id: ExchangeId, now: Instant) -> Result<(), ProxyError> {
        let exchange = &mut self.exchanges[id];
        let way = exchange.way.as_ref().ok_or(ProxyError::NoRoute)?;
        let cluster = &way.cluster;
        let turn = turn(&mut self.turns, cluster, &mut self.rng);
        let index = cluster
            .pick(exchange.retry.tried(), now, turn, &mut self.rng)
            .ok_or_else(|| ProxyError::NoEndpoint(cluster.config.name.clone()))?;
        exchange.retry.picked(index);
        let own = way
            .route
            .retry
            .as_ref()
            .and_then(|retry| retry.attempt_timeout);
        let until = of_attempt(now, own, exchange.deadline);
        let endpoint = &cluster.endpoints[index].state;
        exchange.facts.attempts += 1;
        exchange.facts.endpoint = Some(endpoint.key.address);
        // An upgrade is HTTP/1.1's own.
        let is_upgrade = exchange.head.get(Token::Protocol).is_some();
        let carries = match (exchange.version, cluster.config.protocol) {
            (Version::Http2, _) => Carries::Http2,
            (Version::Http1, ClusterProtocol::Http2) if !is_upgrade => Carries::Http1OrForeignHttp2,
            (Version::Http1, _) => Carries::Http1,
        };
        exchange.attempt = Some(Attempt::start(Reach {
            endpoint: Arc::clone(endpoint),
            direction: Direction::Outbound,
            name: Arc::clone(&way.destination.config.name),
            carries,
            timeout: cluster.config.connect_timeout,
        }));
        exchange.is_resent = false;
        if let Some(attempt) = &mut exchange.attempt {
            attempt.until = until;
        }
        self.arm(id, until);
        let freshness = self.freshness(id);
        self.connect(id, freshness, now);
        Ok(())
    }

    /// What connection will do for a first try.
    pub(super) fn freshness(&self, id: ExchangeId) -> Freshness {
        let exchange = &self.exchanges[id];
        let fits = exchange
            .upload
            .fits(&exchange.head, self.settings.replay_bytes_max);
        match fits && exchange.is_repeatable() {
            true => Freshness::Any,
            false => Freshness::Recent,
        }
    }

    /// Over this connection, with what of the body is there.
    pub(super) fn send(&mut self, id: ExchangeId, conn: ConnId, now: Instant) {
        let exchange = &mut self.exchanges[id];
        if exchange.facts.spoken == Spoken::Grpc
            && let Some(deadline) = exchange.deadline
        {
            set_timeout(&mut exchange.head, deadline, now);
        }
        let then = match exchange.upload.is_empty() {
            true => Then::End,
            false => Then::More,
        };
        let endpoint = &mut self.conns[conn];
        let codec = &mut endpoint.codec;
        let opened = codec.open(&exchange.head, exchange.form, then, &mut self.heads);
        let stream = match opened {
            Ok(stream) => stream,
            Err(Unopened::Malformed(why)) => {
                return self.fail(id, &ProxyError::BadRequest(why), now);
            }
            Err(Unopened::HeadTooLarge) => {
                return self.attempt_failed(id, ProxyError::HeadersTooLarge, now);
            }
            Err(Unopened::Busy) => {
                let error = ProxyError::Refused("the connection has no room".into());
                return self.attempt_failed(id, error, now);
            }
        };
        endpoint.uses = endpoint.uses.saturating_add(1);
        exchange.stage = Stage::Sent;
        let passed = exchange.upload.send(codec, stream, then, &mut self.heads);
        exchange.upload.sent(self.settings.replay_bytes_max);
        let leg = Leg { conn, stream };
        if let Some(attempt) = &mut exchange.attempt {
            attempt.leg = Some(leg);
        }
        self.conns[conn].exchanges.insert(stream.0, id);
        self.touch(conn);
        self.passed(id, leg, passed);
    }

    /// An attempt came to nothing.
    pub(super) fn attempt_failed(&mut self, id: ExchangeId, error: ProxyError, now: Instant) {
        let outcome = error.outcome();
        self.exchanges[id].report(outcome, now);
        if self.decide(id, outcome, None, now) == Decided::Stop {
            self.fail(id, &error, now);
        }
    }

    /// Whether another attempt follows; it has begun, or will.
    pub(super) fn decide(
        &mut self,
        id: ExchangeId,
        outcome: heddle_policy::outcome::Outcome,
        pushback: Option<Pushback>,
        now: Instant,
    ) -> Decided {
        if self.fall_back(id) {
            return Decided::Again;
        }
        let exchange = &mut self.exchanges[id];
        let Some(way) = &exchange.way else {
            return Decided::Stop;
        };
        let attempted = Attempted {
            outcome,
            is_replayable: exchange.upload.is_replayable(),
            endpoints: way.cluster.serving(),
            pushback,
        };
        let terms = way.cluster.retry_terms(way.route.retry.as_ref());
        match exchange.retry.after(&attempted, &terms, now, &mut self.rng) {
            RetryDecision::Stop(_) => return Decided::Stop,
            RetryDecision::Repick => {
                self.abandon(id);
                self.try_again(id, now);
            }
            RetryDecision::After(wait) => {
                self.abandon(id);
                self.exchanges[id].stage = Stage::BackingOff;
                self.arm(id, now.checked_add(wait));
            }
        }
        Decided::Again
    }

    /// Forgets the attempt; its stream is not wanted any more.
    pub(super) fn abandon(&mut self, id: ExchangeId) {
        let leg = self.exchanges[id].leg();
        self.exchanges[id].attempt = None;
        if let Some(leg) = leg {
            self.part(leg, Some(Code::CANCEL));
        }
    }
}

/// What followed a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decided {
    /// Another attempt.
    Again,
    /// Nothing: what there is is the answer.
    Stop,
}

/// Clusters come and go, and another may have the address of one that went: beginning a round
/// anew, or where another was, is no loss.
fn turn<'a>(turns: &'a mut Turns, cluster: &LiveCluster, rng: &mut impl Rng) -> &'a mut Turn {
    let key = Arc::as_ptr(&cluster.state).addr();
    if turns.len() >= TURNS_MAX && !turns.contains_key(&key) {
        turns.clear();
    }
    turns.entry(key).or_insert_with(|| Turn(rng.random()))
}

/// The destination that an authority names, for listeners that know none.
fn by_authority(head: &Head) -> Result<DestinationKey, ProxyError> {
    let invalid = || ProxyError::BadRequest("the authority is not valid");
    let authority = head.get(Token::Authority).unwrap_or_default();
    let authority = std::str::from_utf8(authority).map_err(|_invalid| invalid())?;
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse().map_err(|_invalid| invalid())?)
        }
        _ => (authority, HTTP_PORT),
    };
    if host.is_empty() {
        return Err(invalid());
    }
    Ok(DestinationKey::new(host, port))
}

fn set_timeout(head: &mut Head, deadline: Instant, now: Instant) {
    let mut text = [0; 16];
    let mut rest = &mut text[..];
    let written = write!(rest, "{}", remaining(now, deadline));
    let left = rest.len();
    if written.is_ok() {
        head.set(Token::GrpcTimeout, &text[..text.len() - left]);
    }
}

const HTTP_PORT: u16 = 80;
/// Ports of the workload that are remembered while nothing goes there; a peer may try all of them.
const APPLICATIONS_MAX: usize = 64;
