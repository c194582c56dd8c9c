//! How long connections live: signs of life, rest, age, and goodbyes.
//!
//! ```text
//! a client's:     Open ─ age, retire ─► Soon ─ pong, or time ─► Leaving ─ last stream ends ─► closed
//!                   └─ just accepted while we retire ─► AfterOne ─ its first request ─┘
//! an endpoint's:  Open ─ age, uses, GOAWAY, old credentials ─► Leaving ─ empty ─► closed
//! ```
//!
//! A connection has one timer, for whatever is due first. It is never set to a later time: when it
//! expires too early, because something came meanwhile, it is set anew. So what comes costs no
//! timer.

use std::time::{Duration, Instant};

use heddle_policy::spiffe::SpiffeId;
use rand::RngExt;

use super::{
    Bounds, ChannelId, Closing, ConnId, Due, ExchangeId, Relay, Task,
    codec::Role,
    exchange::{Leg, Lost},
};
use crate::{error::ProxyError, event::StreamId, record::Direction, request::Version};

/// Of one connection.
#[derive(Debug)]
pub(super) struct Life {
    /// When something came last.
    heard: Instant,
    /// When a request began or ended last.
    used: Instant,
    /// Requests, when that was looked at last.
    uses: u32,
    /// Whether no exchange was under way then.
    is_at_rest: bool,
    /// When it was looked last whether somebody else wants its place.
    offered: Instant,
    /// Whether it has given back the memory that it does not need at rest.
    is_shrunk: bool,
    /// When it gets too old; `None` when that has had its effect.
    retire_at: Option<Instant>,
    /// When it has rested for too long, counted from its last use.
    rest_max: Option<Duration>,
    pings: Option<&'static Pings>,
    /// The ping that waits for a sign of life.
    pinged_at: Option<Instant>,
    /// Pings that are not answered.
    pings_out: u32,
    leaving: Leaving,
}

/// How far a connection is with its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// A client's: says goodbye with its first request, or then.
    AfterOne(Instant),
    /// A client's of HTTP/2: the last goodbye is said after so many pongs, or then.
    Soon {
        until: Instant,
        pongs: u32,
    },
    /// It takes nothing new, and is closed when nothing is under way.
    Yes,
}

/// When a connection is asked for a sign of life.
#[derive(Debug, PartialEq, Eq)]
struct Pings {
    /// When nothing has come for so long.
    after: Duration,
    /// For the answer.
    wait: Duration,
    /// Whether that is so too when nothing is under way.
    is_at_rest: bool,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It has rested for a while.
    Shrink,
    /// It is asked for a sign of life.
    Ping,
    /// It has given none.
    Dead,
    /// It is too old, or was to serve one request and none came.
    Retire,
    /// Somebody else may want its place.
    Offer,
    /// The last goodbye.
    Goodbye,
    /// It has rested for too long.
    Rested,
}

impl Life {
    /// Of a connection that begins. `share` scatters its age, so that connections made together
    /// do not end together.
    pub(super) fn new(
        role: Role,
        version: Version,
        is_sidecar: bool,
        bounds: &Bounds,
        share: f64,
        now: Instant,
    ) -> Self {
        let (rest_max, pings) = match (role, version) {
            (Role::Server, Version::Http1) => (Some(bounds.idle), None),
            (Role::Server, Version::Http2) => (None, Some(CLIENT_PINGS)),
            (Role::Client, Version::Http1) => (Some(bounds.endpoint_idle), None),
            // Others may take pings for an attack (gRPC servers do).
            (Role::Client, Version::Http2) => (
                Some(bounds.endpoint_idle),
                is_sidecar.then_some(ENDPOINT_PINGS),
            ),
        };
        Self {
            heard: now,
            used: now,
            uses: 0,
            is_at_rest: true,
            offered: now,
            is_shrunk: false,
            retire_at: now.checked_add(bounds.connection_age.mul_f64(share)),
            rest_max,
            pings,
            pinged_at: None,
            pings_out: 0,
            leaving: Leaving::No,
        }
    }

    /// Something came.
    pub(super) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.pinged_at = None;
    }

    /// A request began or ended.
    pub(super) fn used(&mut self, now: Instant) {
        self.used = now;
        self.is_shrunk = false;
    }

    /// Looks whether requests began or ended since the last look.
    pub(super) fn look(&mut self, uses: u32, is_at_rest: bool, now: Instant) {
        if (self.uses, self.is_at_rest) != (uses, is_at_rest) {
            (self.uses, self.is_at_rest) = (uses, is_at_rest);
            self.used(now);
        }
    }

    /// Whether nothing has been under way for so long, as far as that was told.
    pub(super) fn has_rested(&self, rest: Duration, now: Instant) -> bool {
        now >= self.used + rest
    }

    /// Whether it takes nothing new.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving == Leaving::Yes
    }

    /// What is due next, and when.
    fn next(&self, is_limited: bool) -> Option<(Instant, Step)> {
        let rested = |rest: Duration| self.used.checked_add(rest).filter(|_| self.is_at_rest);
        let shrink = rested(SHRINK_AFTER).filter(|_| !self.is_shrunk);
        let offer = (self.used.max(self.offered)).checked_add(OFFER_AFTER);
        let offer = offer.filter(|_| is_limited && self.is_at_rest && !self.is_leaving());
        let too_long = self.rest_max.and_then(rested);
        let sign = self.pings.and_then(|pings| match self.pinged_at {
            Some(at) => Some((at + pings.wait, Step::Dead)),
            None if self.is_at_rest && !pings.is_at_rest => None,
            None => Some((self.heard + pings.after, Step::Ping)),
        });
        let leave = match self.leaving {
            Leaving::No => self.retire_at.map(|at| (at, Step::Retire)),
            Leaving::AfterOne(at) => Some((at, Step::Retire)),
            Leaving::Soon { until, .. } => Some((until, Step::Goodbye)),
            Leaving::Yes => None,
        };
        let all = [
            shrink.map(|at| (at, Step::Shrink)),
            offer.map(|at| (at, Step::Offer)),
            too_long.map(|at| (at, Step::Rested)),
            sign,
            leave,
        ];
        all.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl Relay {
    /// Our credentials changed: connections made with older ones take no new requests from now on.
    pub fn credentials(&mut self, generation: u64, now: Instant) {
        let channels = self.channels.renew(generation);
        let of_those = |id: &ConnId| {
            let channel = self.conns[*id].channel();
            channel.is_some_and(|channel| self.channels.is_old(channel))
        };
        let conns: Vec<ConnId> = self.conns.keys().filter(of_those).collect();
        for conn in conns {
            self.leave(conn, now);
        }
        self.outdate(channels, now);
    }

    /// Cuts every connection whose other side is denied now: what it carries ends at once.
    pub fn revoke(&mut self, is_revoked: &dyn Fn(&SpiffeId) -> bool, now: Instant) {
        let revoked = |id: &ConnId| self.conns[*id].peer().id().is_some_and(is_revoked);
        let conns: Vec<ConnId> = self.conns.keys().filter(revoked).collect();
        for conn in conns {
            if self.conns[conn].channel().is_none() {
                for exchange in self.conns[conn].exchanges.values() {
                    self.exchanges[*exchange].facts.reason =
                        Some(ProxyError::Denied.disposition().reason);
                }
            }
            self.close(conn, Closing::Abort, now);
        }
    }

    /// From now on client connections of this direction take no new requests: those that are there
    /// say goodbye (GOAWAY in two steps, `Connection: close`), those that come later say it with
    /// their first request, so that it is served.
    pub fn retire(&mut self, direction: Direction, now: Instant) {
        if !self.retired.contains(&direction) {
            self.retired.push(direction);
        }
        let is_meant = |id: &ConnId| {
            let conn = &self.conns[*id];
            conn.channel().is_none() && conn.direction() == direction
        };
        let conns: Vec<ConnId> = self.conns.keys().filter(is_meant).collect();
        for conn in conns {
            self.leave(conn, now);
        }
    }

    /// Ends everything now, by resets; what comes later ends at once.
    pub fn cut(&mut self, now: Instant) {
        self.is_cut = true;
        let conns: Vec<ConnId> = self.conns.keys().collect();
        for conn in conns {
            self.close(conn, Closing::Abort, now);
        }
    }

    /// Client connections and connections to endpoints that are open: those whose end
    /// [`Relay::lost`] has not told.
    pub fn conns_open(&self) -> usize {
        self.conns.len()
    }

    /// Endpoints that have a connection, a dial, or somebody who waits, once for each way to reach
    /// them.
    pub fn channels_open(&self) -> usize {
        self.channels.len()
    }

    /// What a connection's age is scattered by.
    pub(super) fn age_share(&mut self) -> f64 {
        self.rng.random_range(0.8..1.2)
    }

    /// It takes no new requests. One without any is closed with the next look at it.
    pub(super) fn leave(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
            return;
        };
        let is_client = conn.channel().is_none();
        let life = &mut conn.life;
        match (is_client, conn.codec.version(), life.leaving) {
            (_, _, Leaving::Soon { .. } | Leaving::Yes) => return,
            (true, Version::Http2, Leaving::No | Leaving::AfterOne(_)) => {
                conn.codec.goodbye_soon();
                life.pings_out = life.pings_out.saturating_add(1);
                life.leaving = Leaving::Soon {
                    until: now + GOODBYE_MAX,
                    pongs: life.pings_out,
                };
            }
            // A client that has just come is about to ask for something, and one that rests may have
            // done so: it is told in the answer.
            (true, Version::Http1, Leaving::No) if conn.exchanges.is_empty() => {
                let wait = match conn.uses {
                    0 => self.settings.http1.head_timeout,
                    _ => LAST_REQUEST,
                };
                life.leaving = Leaving::AfterOne(now + wait);
            }
            (true, Version::Http1, Leaving::No | Leaving::AfterOne(_)) => {
                life.leaving = Leaving::Yes;
                conn.codec.goodbye();
            }
            (false, _, Leaving::No | Leaving::AfterOne(_)) => {
                life.leaving = Leaving::Yes;
                if let Some(channel) = conn.channel() {
                    self.channels.forget(channel, id);
                }
            }
        }
        self.touch(id);
        self.arm_conn(id);
    }

    /// It may serve one request: whoever connects now has not heard that we retire.
    pub(super) fn leave_after_one(&mut self, id: ConnId, now: Instant) {
        let conn = &mut self.conns[id];
        let until = now + self.settings.http1.head_timeout;
        conn.life.leaving = Leaving::AfterOne(until);
    }

    /// A client's request has come.
    pub(super) fn asked(&mut self, id: ConnId, now: Instant) {
        if let Leaving::AfterOne(_) = self.conns[id].life.leaving {
            self.leave(id, now);
        }
    }

    /// A ping has been answered.
    pub(super) fn ponged(&mut self, id: ConnId) {
        let conn = &mut self.conns[id];
        let life = &mut conn.life;
        life.pings_out = life.pings_out.saturating_sub(1);
        if let Leaving::Soon { pongs, .. } = &mut life.leaving {
            *pongs = pongs.saturating_sub(1);
            if *pongs == 0 {
                // It has heard the first goodbye: all that it sent before has come.
                life.leaving = Leaving::Yes;
                conn.codec.goodbye();
            }
        }
    }

    /// Whether a connection that takes nothing new has nothing left to do.
    pub(super) fn has_left(&self, id: ConnId) -> bool {
        let conn = &self.conns[id];
        conn.life.is_leaving() && conn.exchanges.is_empty() && conn.codec.is_idle()
    }

    /// Nothing is taken from a connection any more.
    pub(super) fn close(&mut self, id: ConnId, closing: Closing, now: Instant) {
        let conn = &mut self.conns[id];
        if std::mem::replace(&mut conn.is_closing, true) {
            if closing == Closing::Abort {
                self.tasks.push_back(Task::Close(id, closing));
            }
            return;
        }
        let lost = conn.losses(Lost::Connection);
        conn.exchanges.clear();
        let channel = conn.channel();
        if let Some(timer) = conn.timer.take() {
            self.timers.cancel(timer);
        }
        self.tasks.push_back(Task::Close(id, closing));
        self.touch(id);
        self.abort(lost, channel, id, now);
    }

    /// The connection carries nothing any more.
    pub(super) fn abort(
        &mut self,
        lost: Vec<(StreamId, ExchangeId, Lost)>,
        channel: Option<ChannelId>,
        conn: ConnId,
        now: Instant,
    ) {
        if let Some(channel) = channel {
            self.channels.forget(channel, conn);
        }
        if channel.is_none() {
            // None of them is sent in the place of another that ends.
            for (_, exchange, _) in &lost {
                let exchange = self.exchanges.get_mut(*exchange);
                if let Some(attempt) = exchange.and_then(|exchange| exchange.attempt.as_mut()) {
                    attempt.waits_in = None;
                }
            }
        }
        for (stream, exchange, lost) in lost {
            match channel {
                None => self.client_gone(exchange, now),
                Some(_) => self.attempt_broke(exchange, Leg { conn, stream }, lost, now),
            }
        }
        if let Some(channel) = channel {
            self.serve_waiting(channel, now);
        }
    }

    /// Sets the connection's timer for what is due first, unless it is set so or earlier.
    pub(super) fn arm_conn(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
            return;
        };
        let next = conn.life.next(conn.is_limited()).map(|(at, _)| at);
        let due = [next, conn.codec.deadline()].into_iter().flatten().min();
        let Some(due) = due.filter(|due| conn.due.is_none_or(|set| *due < set)) else {
            return;
        };
        conn.due = Some(due);
        if let Some(timer) = conn.timer.take() {
            self.timers.cancel(timer);
        }
        conn.timer = Some(self.timers.set(due, Due::Conn(id)));
    }

    pub(super) fn conn_due(&mut self, id: ConnId, now: Instant) {
        let conn = &mut self.conns[id];
        (conn.timer, conn.due) = (None, None);
        if conn.is_closing {
            return;
        }
        if let Err(fault) = conn.codec.expire(now) {
            return self.broke(id, fault, now);
        }
        // Each step takes away its reason.
        while let Some(conn) = self.conns.get(id).filter(|conn| !conn.is_closing)
            && let Some((at, step)) = conn.life.next(conn.is_limited())
            && at <= now
        {
            self.step(id, step, now);
        }
        self.arm_conn(id);
    }

    fn step(&mut self, id: ConnId, step: Step, now: Instant) {
        let conn = &mut self.conns[id];
        match step {
            Step::Shrink => {
                conn.life.is_shrunk = true;
                conn.shrink();
            }
            Step::Offer => {
                conn.life.offered = now;
                self.offer(id, now);
            }
            Step::Ping => {
                conn.life.pinged_at = Some(now);
                conn.life.pings_out = conn.life.pings_out.saturating_add(1);
                conn.codec.ping();
                self.touch(id);
            }
            Step::Dead => self.close(id, Closing::Abort, now),
            Step::Retire => {
                conn.life.retire_at = None;
                self.leave(id, now);
            }
            Step::Goodbye => {
                conn.life.leaving = Leaving::Yes;
                conn.codec.goodbye();
                self.touch(id);
            }
            // A head has begun to come, which has its own time, or a request was just sent. The rest of
            // a request that nobody wants has no time.
            Step::Rested if conn.codec.deadline().is_some() || !conn.exchanges.is_empty() => {
                conn.life.used(now);
            }
            Step::Rested => {
                conn.codec.goodbye();
                self.close(id, Closing::Finish, now);
            }
        }
    }
}

/// As long as nothing is written or read, there is nothing to be learnt from a ping.
const CLIENT_PINGS: &Pings = &Pings {
    after: Duration::from_mins(1),
    wait: Duration::from_secs(20),
    is_at_rest: true,
};
/// A sidecar whose machine is gone is noticed by those who wait for it.
const ENDPOINT_PINGS: &Pings = &Pings {
    after: Duration::from_secs(30),
    wait: Duration::from_secs(10),
    is_at_rest: false,
};
/// For a request of HTTP/1.1 that was sent before its client could know that we leave.
const LAST_REQUEST: Duration = Duration::from_secs(1);
/// How long a client may take to answer the ping behind the first goodbye.
const GOODBYE_MAX: Duration = Duration::from_secs(5);
/// How often a connection at rest looks whether another worker, or another endpoint, needs its
/// place: well within the time that a wait for one may take.
const OFFER_AFTER: Duration = Duration::from_secs(1);
/// How long a connection rests before it gives back memory: a pause between requests is shorter.
const SHRINK_AFTER: Duration = Duration::from_secs(3);
