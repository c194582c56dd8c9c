//! From a request's head to an endpoint.

use std::{io::Write, sync::Arc, time::Instant};

use heddle_policy::{
    admission::Resource,
    balance::Turn,
    deadline::{earliest, of_attempt, remaining},
    retry::{Attempted, Pushback, Retry, RetryDecision},
    snapshot::{
        CONNECT_TIMEOUT, DestinationKey, EndpointKey, MtlsMode, Target, Transport,
        UnknownDestination,
    },
    spiffe::Peer,
};
use rand::{Rng, RngExt};

use super::{
    ConnId, ExchangeId, Relay, TURNS_MAX, Task, Turns,
    channel::Reach,
    conn::{Dialled, Port, Side},
    exchange::{Attempt, Exchange, Facts, Held, Leg, Stage, Way},
    upload::Upload,
};
use crate::{
    cluster::{EndpointState, LiveCluster},
    error::ProxyError,
    event::{Code, StreamId, Then},
    h2::Refusal,
    head::Head,
    record::{Direction, Spoken},
    request::{self, Request},
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
        fault: Option<ProxyError>,
        now: Instant,
    ) {
        let caller = &self.conns[conn];
        let (version, direction) = (caller.version(), caller.direction());
        let peer = match (&caller.side, direction) {
            (Side::Client(caller), Direction::Inbound) => caller.peer.clone(),
            _ => Peer::Anonymous,
        };
        let spoken = request::spoken(&head, version);
        let mut exchange = Exchange {
            client: Leg { conn, stream },
            head,
            request: None,
            stage: Stage::Looking,
            started: now,
            deadline: None,
            is_asked: false,
            timer: None,
            way: None,
            retry: Retry::new("", None),
            upload: Upload::new(then, self.rooms.pop().unwrap_or_default()),
            attempt: None,
            held: Held::default(),
            facts: Facts {
                direction,
                spoken,
                endpoint: None,
                peer,
                status: None,
                grpc_status: None,
                reason: None,
                attempts: 0,
                bytes_received: 0,
                bytes_sent: 0,
                unsent: 0,
                first_response: None,
            },
        };
        let terms = &self.settings.terms;
        let read = match fault {
            Some(error) => Err(error),
            None => Request::ready(&mut exchange.head, version, terms, &mut self.rng),
        };
        exchange.request = read.as_ref().ok().copied();
        let id = self.exchanges.insert(exchange);
        self.conns[conn].exchanges.insert(stream.0, id);
        let begun = read.and_then(|request| match direction {
            Direction::Outbound => self.route(id, &request, now),
            Direction::Inbound => self.admit(id, &request, now),
        });
        if let Err(error) = begun {
            self.fail(id, &error, now);
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
        match self.view.lookup(&key) {
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
        let endpoint = self.applications.entry(application).or_insert_with(|| {
            let key = EndpointKey {
                address: application,
                transport: Transport::Plain,
            };
            Arc::new(EndpointState::new(key, now))
        });
        exchange.facts.attempts += 1;
        exchange.facts.endpoint = Some(application);
        exchange.attempt = Some(Attempt::start(endpoint));
        let reach = Reach {
            endpoint: Arc::clone(endpoint),
            name: Arc::clone(&self.nameless),
            timeout: CONNECT_TIMEOUT,
        };
        self.arm(id, None);
        self.connect(id, reach, now);
        Ok(())
    }

    /// The view has changed since the destination was asked for.
    pub(super) fn look_again(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &self.exchanges[id];
        let Some(request) = exchange
            .request
            .filter(|_| exchange.stage == Stage::Looking)
        else {
            return;
        };
        if let Err(error) = self.route(id, &request, now) {
            self.fail(id, &error, now);
        }
    }

    pub(super) fn try_again(&mut self, id: ExchangeId, now: Instant) {
        if let Err(error) = self.attempt(id, now) {
            self.fail(id, &error, now);
        }
    }

    /// Picks an endpoint.
    fn attempt(&mut self, id: ExchangeId, now: Instant) -> Result<(), ProxyError> {
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
        let reach = Reach {
            endpoint: Arc::clone(endpoint),
            name: Arc::clone(&way.destination.config.name),
            timeout: cluster.config.connect_timeout,
        };
        exchange.attempt = Some(Attempt::start(&reach.endpoint));
        self.arm(id, until);
        self.connect(id, reach, now);
        Ok(())
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
        let codec = &mut self.conns[conn].codec;
        let stream = match codec.open(&exchange.head, then, &mut self.heads) {
            Ok(stream) => stream,
            Err(Refusal::Busy) => {
                let error = ProxyError::Refused("the connection has no room".into());
                return self.attempt_failed(id, error, now);
            }
            Err(Refusal::HeadTooLarge) => {
                return self.attempt_failed(id, ProxyError::HeadersTooLarge, now);
            }
        };
        exchange.stage = Stage::Sent;
        let passed = exchange.upload.send(codec, stream, then, &mut self.heads);
        exchange.upload.sent(self.settings.replay_bytes_max);
        if let Some(attempt) = &mut exchange.attempt {
            attempt.leg = Some(Leg { conn, stream });
        }
        self.conns[conn].exchanges.insert(stream.0, id);
        self.touch(conn);
        self.passed(id, passed);
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
                self.abandon(id, now);
                self.try_again(id, now);
            }
            RetryDecision::After(wait) => {
                self.abandon(id, now);
                self.exchanges[id].stage = Stage::BackingOff;
                self.arm(id, now.checked_add(wait));
            }
        }
        Decided::Again
    }

    /// Forgets the attempt; its stream is not wanted any more.
    pub(super) fn abandon(&mut self, id: ExchangeId, now: Instant) {
        let leg = self.exchanges[id].leg();
        self.exchanges[id].attempt = None;
        if let Some(leg) = leg {
            self.part(leg, Some(Code::CANCEL));
            self.channel_changed(leg.conn, now);
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
