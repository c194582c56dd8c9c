//! One request and its answer, and one try of it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::Slot,
    outcome::{Outcome, grpc},
    retry::Retry,
    route::Route,
    spiffe::Peer,
};

use slotmap::Key;

use super::{
    Caller, ChannelId, ConnId, Due, ExchangeId, Relay,
    channel::{Freshness, Reach},
    filter::{Pending, Point},
    upload::Upload,
};
use crate::{
    cluster::{LiveCluster, Outstanding},
    error::{CANCELLED, DEADLINE, ProxyError},
    event::{Code, StreamId},
    h1::Form,
    head::Head,
    record::{Direction, Spoken},
    request::{Request, Version},
    timer::Timer,
    view::{InUse, LiveDestination},
};

/// A stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leg {
    pub(super) conn: ConnId,
    pub(super) stream: StreamId,
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its destination has been asked for.
    Looking,
    /// It waits for a connection.
    Connecting,
    /// It waits for an answer.
    Sent,
    /// It waits before another attempt.
    BackingOff,
    /// A filter holds it.
    Held(Point),
    /// Its answer has begun: nothing can be repeated.
    Committed,
    /// Its answer is whole, and on its way to the client.
    Ending,
}

/// One request and its answer.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) client: Leg,
    /// As it is forwarded.
    pub(super) head: Head,
    /// What its client speaks.
    pub(super) version: Version,
    /// How its client wrote it, if that was in HTTP/1.1.
    pub(super) form: Form,
    /// Once it was read.
    pub(super) request: Option<Request>,
    pub(super) stage: Stage,
    pub(super) started: Instant,
    /// Of the whole.
    pub(super) deadline: Option<Instant>,
    /// Whether its destination has been asked for.
    pub(super) is_asked: bool,
    /// For what is [`Exchange::due`], or earlier.
    pub(super) timer: Option<(Timer, Instant)>,
    /// Until when the stage may last: the attempt's time, or the next attempt.
    pub(super) until: Option<Instant>,
    /// When another endpoint is tried beside.
    pub(super) hedge_at: Option<Instant>,
    /// Outbound, once it was routed.
    pub(super) way: Option<Way>,
    pub(super) retry: Retry,
    pub(super) upload: Upload,
    pub(super) attempt: Option<Attempt>,
    /// Earlier ones that may still answer first; all of them have been sent.
    pub(super) rivals: Vec<Attempt>,
    /// An answer that a filter holds.
    pub(super) pending: Option<Box<Pending>>,
    /// An exchange without a client, which gets a copy of the request.
    pub(super) mirror: Option<ExchangeId>,
    /// What was sent was not seen, and has been sent again, which happens once.
    pub(super) is_resent: bool,
    /// Bytes pass both ways, each until its end.
    pub(super) is_tunnel: bool,
    /// A tunnel's: the endpoint's direction has ended.
    pub(super) is_answered: bool,
    pub(super) held: Held,
    pub(super) facts: Facts,
    /// Bytes on the worker's account.
    pub(super) charged: usize,
}

/// Where an outbound exchange goes.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) destination: Arc<LiveDestination>,
    pub(super) route: Arc<Route>,
    pub(super) cluster: Arc<LiveCluster>,
}

/// What became of a stream that an attempt was sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It was reset.
    Stream(Code),
    /// Its connection ended.
    Connection,
    /// Its connection, of HTTP/1.1 and used before, ended without a byte of an answer: the endpoint
    /// had most likely closed it already.
    Stale,
    /// The answer is none that may be passed on.
    Answer(&'static str),
}

/// What an exchange holds until its end.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// A request in flight.
    pub(super) request: Option<Slot>,
    /// The destination.
    pub(super) in_use: Option<InUse>,
}

/// One try against one endpoint. It reports one outcome.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) reach: Reach,
    /// Where it waits for a connection.
    pub(super) waits_in: Option<ChannelId>,
    /// While our own limits have it wait.
    pub(super) pending: Option<Slot>,
    /// Where it was sent.
    pub(super) leg: Option<Leg>,
    /// How long it may take.
    pub(super) until: Option<Instant>,
    /// Bytes of the request's body that have gone.
    pub(super) passed: u64,
    pub(super) is_reported: bool,
    /// Counted as load until the end of the answer.
    pub(super) _outstanding: Outstanding,
}

/// What a record says of an exchange.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) caller: Arc<Caller>,
    pub(super) direction: Direction,
    pub(super) spoken: Spoken,
    pub(super) endpoint: Option<SocketAddr>,
    pub(super) peer: Peer,
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<u32>,
    pub(super) reason: Option<&'static str>,
    pub(super) attempts: u32,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    /// Bytes of the answer that wait for the client.
    pub(super) unsent: u64,
    pub(super) first_response: Option<Duration>,
}

/// The facts of one finished exchange.
#[derive(Debug)]
pub struct Record {
    /// Which side of the sidecar.
    pub direction: Direction,
    /// What was spoken.
    pub spoken: Spoken,
    /// The client.
    pub caller: Arc<Caller>,
    /// The request's head, as it was forwarded.
    pub head: Head,
    /// What was read from it, unless it could not be.
    pub request: Option<Request>,
    /// Outbound, if it was routed.
    pub destination: Option<Arc<LiveDestination>>,
    /// As [`Record::destination`].
    pub route: Option<Arc<Route>>,
    /// As [`Record::destination`].
    pub cluster: Option<Arc<LiveCluster>>,
    /// The endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// The client inbound, the endpoint outbound.
    pub peer: Peer,
    /// Status sent to the client; `None` when none was sent.
    pub status: Option<u16>,
    /// gRPC status, from the head or the trailers.
    pub grpc_status: Option<u32>,
    /// The reason word when the relay itself answered or cut.
    pub reason: Option<&'static str>,
    /// Attempts made, re-picks included.
    pub attempts: u32,
    /// Body bytes from the client.
    pub bytes_received: u64,
    /// Body bytes to the client.
    pub bytes_sent: u64,
    /// From the request's head to the end of the answer.
    pub duration: Duration,
    /// From the request's head to the answer's.
    pub first_response: Option<Duration>,
}

/// Spare room for uploads, 4 KiB each at most.
const ROOMS_KEPT: usize = 256;

impl Attempt {
    /// Counts the endpoint as one more in flight.
    pub(super) fn start(reach: Reach) -> Self {
        Self {
            waits_in: None,
            pending: None,
            leg: None,
            until: None,
            passed: 0,
            is_reported: false,
            _outstanding: reach.endpoint.begin(),
            reach,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.reach.endpoint.key.address
    }

    pub(super) fn report(&mut self, cluster: &LiveCluster, outcome: Outcome, now: Instant) {
        if !std::mem::replace(&mut self.is_reported, true) {
            cluster.observe(&self.reach.endpoint, outcome, now);
        }
    }
}

impl Facts {
    /// Of a request that begins.
    pub(super) fn new(caller: Arc<Caller>, spoken: Spoken) -> Self {
        let direction = caller.direction();
        Self {
            direction,
            spoken,
            endpoint: None,
            peer: match direction {
                Direction::Inbound => caller.peer.clone(),
                Direction::Outbound => Peer::Anonymous,
            },
            caller,
            status: None,
            grpc_status: None,
            reason: None,
            attempts: 0,
            bytes_received: 0,
            bytes_sent: 0,
            unsent: 0,
            first_response: None,
        }
    }
}

impl Exchange {
    /// Of a request whose head has come.
    pub(super) fn new(
        client: Leg,
        head: Head,
        upload: Upload,
        facts: Facts,
        started: Instant,
    ) -> Self {
        Self {
            client,
            head,
            version: Version::Http2,
            form: Form::default(),
            request: None,
            stage: Stage::Looking,
            started,
            deadline: None,
            is_asked: false,
            timer: None,
            until: None,
            hedge_at: None,
            way: None,
            retry: Retry::new("", None),
            upload,
            attempt: None,
            rivals: Vec::new(),
            pending: None,
            mirror: None,
            is_resent: false,
            is_tunnel: false,
            is_answered: false,
            held: Held::default(),
            facts,
            charged: 0,
        }
    }

    /// When something is to be done: at the deadline, when the stage's own time is over, or for a
    /// hedge.
    fn due(&self) -> Option<Instant> {
        let due = [self.until, self.deadline, self.hedge_at];
        due.into_iter().flatten().min()
    }

    /// Whether all of an answer that a filter holds has come.
    fn is_pending_whole(&self) -> bool {
        self.pending
            .as_ref()
            .is_some_and(|pending| pending.is_whole())
    }

    /// Whether it may be sent again although it may have been seen (RFC 9110 section 9.2.2).
    pub(super) fn is_repeatable(&self) -> bool {
        let is_idempotent = self.request.is_some_and(|request| request.is_idempotent);
        is_idempotent && self.upload.is_replayable()
    }

    /// How the attempt ended. Later reports are ignored.
    pub(super) fn report(&mut self, outcome: Outcome, now: Instant) {
        if let (Some(way), Some(attempt)) = (&self.way, &mut self.attempt) {
            attempt.report(&way.cluster, outcome, now);
        }
    }

    /// The rival that was sent over `leg` is the attempt from here on, and what was the attempt a
    /// rival. Whether `leg` is an attempt's at all.
    pub(super) fn prefer(&mut self, leg: Leg) -> bool {
        if self.leg() == Some(leg) {
            return true;
        }
        let found = self.rivals.iter_mut().find(|rival| rival.leg == Some(leg));
        match (found, &mut self.attempt) {
            (Some(rival), Some(attempt)) => std::mem::swap(rival, attempt),
            (Some(_), None) | (None, _) => return false,
        }
        // One that waits for a connection does so for nothing.
        self.rivals.retain(|rival| rival.leg.is_some());
        self.facts.endpoint = self.attempt.as_ref().map(Attempt::address);
        true
    }

    /// Bytes that it keeps.
    pub(super) fn kept_bytes(&self) -> usize {
        let pending = self.pending.as_ref();
        let pending = pending.map_or(0, |pending| pending.kept_bytes());
        self.head.memory_bytes() + self.upload.kept_bytes() + pending
    }

    /// Where the attempt was sent.
    pub(super) fn leg(&self) -> Option<Leg> {
        self.attempt.as_ref().and_then(|attempt| attempt.leg)
    }
}

impl Relay {
    /// The stage may last until then. A timer that is set for an earlier time stays: it looks
    /// again when it expires, which costs less than to set it anew for each stage.
    pub(super) fn arm(&mut self, id: ExchangeId, until: Option<Instant>) {
        let exchange = &mut self.exchanges[id];
        exchange.until = until;
        let Some(due) = exchange.due() else { return };
        match exchange.timer {
            Some((_, at)) if at <= due => return,
            Some((timer, _)) => _ = self.timers.cancel(timer),
            None => {}
        }
        exchange.timer = Some((self.timers.set(due, Due::Exchange(id)), due));
    }

    /// The exchange's timer has expired.
    pub(super) fn exchange_due(&mut self, id: ExchangeId, now: Instant) {
        let is_queued = self.is_queued(id);
        let exchange = &mut self.exchanges[id];
        exchange.timer = None;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let (is_over, until) = (is_due(exchange.deadline), exchange.until);
        if !is_over && !is_due(until) {
            if is_due(exchange.hedge_at) {
                exchange.hedge_at = None;
                self.hedge(id, now);
            }
            if let Some(exchange) = self.exchanges.get(id) {
                let until = exchange.until;
                self.arm(id, until);
            }
            return;
        }
        match exchange.stage {
            Stage::Held(_) => self.fail(id, &ProxyError::Deadline, now),
            Stage::Looking if is_over => self.fail(id, &ProxyError::Deadline, now),
            Stage::Looking => {
                let wait = self.settings.lookup_wait;
                self.fail(id, &ProxyError::Undescribed(wait), now);
            }
            Stage::BackingOff if is_over => self.fail(id, &ProxyError::Deadline, now),
            Stage::BackingOff => self.try_again(id, now),
            Stage::Connecting if is_queued && is_over => {
                self.fail(id, &ProxyError::Queued, now);
            }
            Stage::Connecting if is_queued => {
                self.attempt_failed(id, ProxyError::Queued, now);
            }
            Stage::Connecting | Stage::Sent if is_over => {
                exchange.report(Outcome::TimedOut, now);
                self.fail(id, &ProxyError::Deadline, now);
            }
            Stage::Connecting | Stage::Sent => {
                self.attempt_failed(id, ProxyError::AttemptTimeout, now);
            }
            Stage::Committed => {
                // A client that does not read is no fault of the endpoint.
                let outcome = match exchange.facts.unsent {
                    0 => Outcome::TimedOut,
                    _ => Outcome::Cancelled,
                };
                exchange.report(outcome, now);
                self.break_off(id, DEADLINE, grpc::DEADLINE_EXCEEDED, now);
            }
            Stage::Ending => {
                exchange.facts.reason.get_or_insert(DEADLINE);
                let client = exchange.client;
                self.part(client, Some(Code::CANCEL));
                self.finish(id, now);
            }
        }
    }

    /// Whether it waits because of our own limits.
    fn is_queued(&self, id: ExchangeId) -> bool {
        let attempt = self.exchanges[id].attempt.as_ref();
        let channel = attempt.and_then(|attempt| attempt.waits_in);
        channel.is_some_and(|channel| self.channels.is_blocked(channel))
    }

    /// The client does not want it any more.
    pub(super) fn client_gone(&mut self, id: ExchangeId, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        exchange.report(Outcome::Cancelled, now);
        exchange.facts.reason.get_or_insert(CANCELLED);
        self.finish(id, now);
    }

    /// The stream that the attempt was sent over is no more.
    pub(super) fn attempt_broke(&mut self, id: ExchangeId, leg: Leg, lost: Lost, now: Instant) {
        if let Some(conn) = self.conns.get_mut(leg.conn) {
            conn.exchanges.remove(&leg.stream.0);
            self.touch(leg.conn);
        }
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        if exchange.leg() != Some(leg) {
            return self.rival_broke(id, leg, lost, now);
        }
        if let Some(attempt) = &mut exchange.attempt {
            attempt.leg = None;
        }
        match exchange.stage {
            // All of the answer is here.
            Stage::Held(Point::Answer) if exchange.is_pending_whole() => {}
            Stage::Committed => {
                exchange.report(Outcome::Reset, now);
                self.break_off(id, crate::error::RESET, grpc::UNAVAILABLE, now);
            }
            // All of the answer is here.
            Stage::Ending => {}
            Stage::Looking
            | Stage::Connecting
            | Stage::Sent
            | Stage::BackingOff
            | Stage::Held(_) => self.send_again_or_fail(id, lost, now),
        }
    }

    /// What the endpoint has not seen goes to it again, once: an idle connection that it closed as
    /// the request was on its way is no failure of its own, and of a refusal nobody else is told
    /// where there are no other endpoints.
    fn send_again_or_fail(&mut self, id: ExchangeId, lost: Lost, now: Instant) {
        let exchange = &mut self.exchanges[id];
        exchange.pending = None;
        let is_unseen = match lost {
            Lost::Stale => exchange.is_repeatable(),
            Lost::Stream(Code::REFUSED_STREAM) => {
                exchange.way.is_none() && exchange.upload.is_replayable()
            }
            Lost::Stream(_) | Lost::Connection | Lost::Answer(_) => false,
        };
        if is_unseen && exchange.attempt.is_some() && !exchange.is_resent {
            exchange.is_resent = true;
            if let Some(attempt) = &mut exchange.attempt {
                attempt.passed = 0;
            }
            return self.connect(id, Freshness::New, now);
        }
        let error = match lost {
            Lost::Stream(Code::REFUSED_STREAM) => ProxyError::Refused("REFUSED_STREAM".into()),
            Lost::Stream(code) => ProxyError::Reset(format!("error code {}", code.0)),
            Lost::Connection | Lost::Stale => ProxyError::Reset("the connection ended".into()),
            Lost::Answer(why) => ProxyError::BadResponse(why),
        };
        self.attempt_failed(id, error, now);
    }

    /// The stream is nobody's any more: it is reset unless it is over, or stopped when all that
    /// was to be said has been.
    pub(super) fn part(&mut self, leg: Leg, code: Option<Code>) {
        if let Some(conn) = self.conns.get_mut(leg.conn) {
            conn.exchanges.remove(&leg.stream.0);
            match code {
                Some(code) => conn.codec.reset(leg.stream, code),
                None => conn.codec.stop(leg.stream),
            }
            self.touch(leg.conn);
        }
    }

    /// Ends an exchange, whatever is still open of it.
    pub(super) fn finish(&mut self, id: ExchangeId, now: Instant) {
        let Some(exchange) = self.exchanges.remove(id) else {
            return;
        };
        if let Some((timer, _)) = exchange.timer {
            self.timers.cancel(timer);
        }
        self.account.refund(exchange.charged);
        let client = exchange.client;
        match exchange.stage {
            Stage::Ending => self.part(client, None),
            Stage::Looking
            | Stage::Connecting
            | Stage::Sent
            | Stage::BackingOff
            | Stage::Held(_)
            | Stage::Committed => self.part(client, Some(Code::CANCEL)),
        }
        let attempts = exchange.attempt.iter().chain(&exchange.rivals);
        for leg in attempts.filter_map(|attempt| attempt.leg) {
            self.part(leg, Some(Code::CANCEL));
        }
        if let Some(mirror) = exchange.mirror {
            self.end_mirror(mirror, now);
        }
        if self.rooms.len() < ROOMS_KEPT {
            let (room, trailers) = exchange.upload.into_room();
            self.rooms.push(room);
            trailers.into_iter().for_each(|head| self.heads.give(head));
        }
        let (destination, route, cluster) = match exchange.way {
            Some(way) => (Some(way.destination), Some(way.route), Some(way.cluster)),
            None => (None, None, None),
        };
        let facts = exchange.facts;
        if client.conn.is_null() {
            // Nobody asked for it.
            return self.heads.give(exchange.head);
        }
        self.records.push_back(Record {
            direction: facts.direction,
            spoken: facts.spoken,
            caller: facts.caller,
            head: exchange.head,
            request: exchange.request,
            destination,
            route,
            cluster,
            endpoint: facts.endpoint,
            peer: facts.peer,
            status: facts.status,
            grpc_status: facts.grpc_status,
            reason: facts.reason,
            attempts: facts.attempts,
            bytes_received: facts.bytes_received,
            bytes_sent: facts.bytes_sent.saturating_sub(facts.unsent),
            duration: now.saturating_duration_since(exchange.started),
            first_response: facts.first_response,
        });
    }
}
