//! Those who wait for a connection: in order, each until it is sent, its dial has failed, or our own
//! limits have kept it for as long as connecting may take.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::admission::Resource;

use super::{Blocked, Channel, DIAL_PAUSE, Freshness, Room};
use crate::{
    cluster::LiveCluster,
    error::{ConnectError, ProxyError},
    relay::{ChannelId, Due, ExchangeId, Relay, exchange::Stage},
};

/// An attempt that waits for a connection.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) exchange: ExchangeId,
    /// Which attempt: an entry may outlive the one that it was made for.
    pub(super) attempt: u32,
    pub(super) freshness: Freshness,
    /// How long it may wait for our own limits.
    pub(super) until: Instant,
    /// Whose limits hold for it; none do for what goes to the workload's own ports.
    pub(super) cluster: Option<Arc<LiveCluster>>,
    /// Whether it waits because of them, and is counted as such.
    pub(super) is_counted: bool,
}

impl Relay {
    /// Sends the exchange's attempt over a connection, or has it wait for one.
    pub(in crate::relay) fn connect(
        &mut self,
        exchange: ExchangeId,
        freshness: Freshness,
        now: Instant,
    ) {
        let Some(attempt) = &self.exchanges[exchange].attempt else {
            return;
        };
        let until = now + attempt.reach.timeout.min(WAIT_MAX);
        let id = self.channels.of(&attempt.reach);
        let is_first = self.channels.all[id].waiting.is_empty();
        if is_first && let Some(conn) = self.usable(id, freshness, now) {
            return self.send_over(exchange, conn, now);
        }
        let live = self.exchanges.len();
        let found = &mut self.exchanges[exchange];
        found.stage = Stage::Connecting;
        if let Some(attempt) = &mut found.attempt {
            attempt.waits_in = Some(id);
        }
        let waiter = Waiter {
            exchange,
            attempt: found.facts.attempts,
            freshness,
            until,
            cluster: found.way.as_ref().map(|way| Arc::clone(&way.cluster)),
            is_counted: false,
        };
        let channel = &mut self.channels.all[id];
        if channel.waiting.len() > 2 * live {
            let waiting = std::mem::take(&mut channel.waiting);
            let waiting = waiting.into_iter().filter(|other| self.waits(other, id));
            self.channels.all[id].waiting = waiting.collect();
        }
        self.channels.all[id].waiting.push_back(waiter);
        self.serve_waiting(id, now);
    }

    /// Sends what waits while there is a connection that takes it, and dials for the rest.
    pub(in crate::relay) fn serve_waiting(&mut self, id: ChannelId, now: Instant) {
        let is_at_rest = |channel: &Channel| {
            channel.waiting.is_empty() && channel.blocked.is_none() && channel.conns > 0
        };
        if self.channels.all.get(id).is_none_or(is_at_rest) {
            return;
        }
        while let Some(first) = self.first_waiting(id) {
            let Some(conn) = self.usable(id, first, now) else {
                break;
            };
            if let Some(waiter) = self.next_waiting(id) {
                self.send_over(waiter.exchange, conn, now);
            }
        }
        let mut blocked = self.dial(id, now);
        if blocked.is_some() && self.share(id, now) {
            blocked = self.dial(id, now);
        }
        self.set_blocked(id, blocked, now);
    }

    /// Who waited learns why, and another endpoint may do; unless there is a connection still that
    /// will have room one day.
    pub(in crate::relay) fn not_connected(
        &mut self,
        id: ChannelId,
        error: &ConnectError,
        now: Instant,
    ) {
        self.share(id, now);
        let Some(channel) = self.channels.all.get_mut(id) else {
            return;
        };
        let has_others = !channel.shared.is_empty();
        channel.rests_until = has_others.then(|| now + DIAL_PAUSE);
        let endpoint = channel.reach.endpoint.key.address;
        let failing = match channel.is_shared() {
            true => channel.waiting.len(),
            // Each dial is somebody's own.
            false => 1,
        };
        for _ in 0..failing {
            if self.first_waiting(id).is_none()
                || has_others && self.channels.all[id].waiting[0].until > now
            {
                break;
            }
            self.give_up_first(id, error.clone(), endpoint, now);
        }
        match has_others {
            true => self.set_blocked(id, Some(Blocked::Endpoint), now),
            false => self.serve_waiting(id, now),
        }
    }

    /// Where the channel was blocked: looks again, and gives up those who have waited for long.
    pub(in crate::relay) fn channel_due(&mut self, id: ChannelId, now: Instant) {
        let Some(channel) = self.channels.all.get_mut(id) else {
            return;
        };
        channel.timer = None;
        let endpoint = channel.reach.endpoint.key.address;
        self.serve_waiting(id, now);
        let channel = self.channels.all.get(id);
        if channel.is_some_and(|channel| channel.blocked == Some(Blocked::Cluster)) {
            self.make_room(id, now);
        }
        while self.channels.is_blocked(id)
            && self.first_waiting(id).is_some()
            && self.channels.all[id].waiting[0].until <= now
        {
            self.give_up_first(id, ConnectError::Full, endpoint, now);
        }
    }

    /// Connections of these channels take nothing more; who waits there waits elsewhere.
    pub(in crate::relay) fn outdate(&mut self, channels: Vec<ChannelId>, now: Instant) {
        for id in channels {
            let Some(channel) = self.channels.all.get_mut(id) else {
                continue;
            };
            let waiting = std::mem::take(&mut channel.waiting);
            for waiter in waiting {
                if self.waits(&waiter, id) {
                    self.connect(waiter.exchange, waiter.freshness, now);
                }
            }
            self.serve_waiting(id, now);
        }
    }

    fn set_blocked(&mut self, id: ChannelId, blocked: Option<Blocked>, now: Instant) {
        if blocked.is_some() {
            self.queue(id, now);
        }
        if blocked == Some(Blocked::Cluster) && !self.channels.is_blocked(id) {
            self.make_room(id, now);
        }
        let Some(channel) = self.channels.all.get_mut(id) else {
            return;
        };
        channel.blocked = blocked;
        let first = channel.waiting.front().map(|waiter| waiter.until);
        let due = match blocked {
            None => None,
            // Connections of other workers count too, and cannot wake us.
            Some(Blocked::Cluster) => first.map(|until| until.min(now + RELEASE_POLL)),
            Some(Blocked::Endpoint) => {
                let rests = channel.rests_until.filter(|until| now < *until);
                first.into_iter().chain(rests).min()
            }
        };
        if let Some(timer) = channel.timer.take() {
            self.timers.cancel(timer);
        }
        channel.timer = due.map(|at| self.timers.set(at.max(now), Due::Channel(id)));
        self.forget_empty(id);
    }

    /// Those who wait because of our own limits are counted; the last that came are refused where
    /// that is limited too.
    fn queue(&mut self, id: ChannelId, now: Instant) {
        let Some(channel) = self.channels.all.get_mut(id) else {
            return;
        };
        let endpoint = channel.reach.endpoint.key.address;
        let counted = channel.waiting.iter().rev();
        let counted = counted.take_while(|waiter| !waiter.is_counted).count();
        let mut at = channel.waiting.len() - counted;
        let mut refused = Vec::new();
        while let Some(channel) = self.channels.all.get(id)
            && let Some(waiter) = channel.waiting.get(at)
        {
            if !self.waits(waiter, id) {
                self.channels.all[id].waiting.remove(at);
                continue;
            }
            let slot = waiter.cluster.as_ref().map(|cluster| {
                let limit = cluster.config.limits.pending_max;
                let admission = &cluster.state.admission;
                admission.acquire(Resource::Pending, limit)
            });
            let exchange = waiter.exchange;
            let waiting = &mut self.channels.all[id].waiting;
            match slot.transpose() {
                Ok(slot) => {
                    waiting[at].is_counted = true;
                    at += 1;
                    if let Some(attempt) = &mut self.exchanges[exchange].attempt {
                        attempt.pending = slot;
                    }
                }
                Err(_full) => refused.extend(waiting.remove(at)),
            }
        }
        for waiter in refused {
            let full = ProxyError::Connect {
                endpoint,
                source: ConnectError::Full,
            };
            if self.waits(&waiter, id) {
                self.attempt_failed(waiter.exchange, full, now);
            }
        }
    }

    /// There may be no further connection: who waits shares those that there are. Whether anybody
    /// could.
    fn share(&mut self, id: ChannelId, now: Instant) -> bool {
        let mut is_any = false;
        while self.first_waiting(id).is_some()
            && let Some(conn) = self.usable_shared(id, Room::Any, now)
            && let Some(waiter) = self.next_waiting(id)
        {
            self.send_over(waiter.exchange, conn, now);
            is_any = true;
        }
        is_any
    }

    fn give_up_first(
        &mut self,
        id: ChannelId,
        source: ConnectError,
        endpoint: SocketAddr,
        now: Instant,
    ) {
        if let Some(waiter) = self.next_waiting(id) {
            let failed = ProxyError::Connect { endpoint, source };
            self.attempt_failed(waiter.exchange, failed, now);
        }
    }

    /// What the first that still waits needs.
    pub(super) fn first_waiting(&mut self, id: ChannelId) -> Option<Freshness> {
        loop {
            let first = self.channels.all.get(id)?.waiting.front()?;
            if self.waits(first, id) {
                return Some(first.freshness);
            }
            self.channels.all[id].waiting.pop_front();
        }
    }

    /// Takes the first that still waits.
    fn next_waiting(&mut self, id: ChannelId) -> Option<Waiter> {
        self.first_waiting(id)?;
        self.channels.all[id].waiting.pop_front()
    }

    pub(super) fn waits(&self, waiter: &Waiter, id: ChannelId) -> bool {
        self.exchanges.get(waiter.exchange).is_some_and(|exchange| {
            let attempt = exchange.attempt.as_ref();
            exchange.stage == Stage::Connecting
                && exchange.facts.attempts == waiter.attempt
                && attempt.is_some_and(|attempt| attempt.waits_in == Some(id))
        })
    }
}

/// Most that a wait for our own limits may take, whatever connecting may.
const WAIT_MAX: Duration = Duration::from_hours(1);
/// How often who waits for a limit of the cluster looks again.
const RELEASE_POLL: Duration = Duration::from_millis(5);
