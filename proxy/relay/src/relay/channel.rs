//! Connections to endpoints: one to each while it takes requests, and those who wait for it.

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    sync::Arc,
    time::{Duration, Instant},
};

use slotmap::SlotMap;

use super::{
    ChannelId, ConnId, Dial, ExchangeId, Relay, Task,
    conn::{NumberHasher, Side},
    exchange::Stage,
};
use crate::{
    cluster::EndpointState,
    error::{ConnectError, ProxyError},
};

/// All of a worker.
#[derive(Debug, Default)]
pub(super) struct Channels {
    all: SlotMap<ChannelId, Channel>,
    /// By the address of its state, which the channel keeps alive.
    by_endpoint: HashMap<usize, ChannelId, BuildHasherDefault<NumberHasher>>,
}

/// Connections to one endpoint.
#[derive(Debug)]
struct Channel {
    /// The endpoint, and what the last exchange said of how to reach it.
    reach: Reach,
    /// At most [`CONNS_MAX`].
    conns: Vec<ConnId>,
    is_dialling: bool,
    /// Exchanges that wait for a connection, in order; those that ended meanwhile too, while they
    /// are the smaller part.
    waiting: VecDeque<ExchangeId>,
}

/// What a dial needs to know.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) name: Arc<str>,
    pub(super) timeout: Duration,
}

impl Channels {
    pub(super) fn forget(&mut self, channel: ChannelId, conn: ConnId) {
        if let Some(channel) = self.all.get_mut(channel) {
            channel.conns.retain(|known| *known != conn);
        }
    }

    /// Whether somebody waits for a connection.
    pub(super) fn has_waiting(&self, channel: ChannelId) -> bool {
        let channel = self.all.get(channel);
        channel.is_some_and(|channel| !channel.waiting.is_empty())
    }

    fn of(&mut self, reach: Reach) -> ChannelId {
        let key = Arc::as_ptr(&reach.endpoint).addr();
        *self.by_endpoint.entry(key).or_insert_with(|| {
            self.all.insert(Channel {
                reach,
                conns: Vec::new(),
                is_dialling: false,
                waiting: VecDeque::new(),
            })
        })
    }
}

impl Relay {
    /// Sends the exchange's attempt over a connection, or has it wait for one.
    pub(super) fn connect(&mut self, exchange: ExchangeId, reach: Reach, now: Instant) {
        let id = self.channels.of(reach);
        let is_first = self.channels.all[id].waiting.is_empty();
        if is_first && let Some(conn) = self.usable(id, now) {
            return self.send(exchange, conn, now);
        }
        self.exchanges[exchange].stage = Stage::Connecting;
        let channel = &mut self.channels.all[id];
        if channel.waiting.len() > 2 * self.exchanges.len() {
            let waiting = std::mem::take(&mut channel.waiting);
            let live = waiting.into_iter().filter(|other| self.waits(*other, id));
            self.channels.all[id].waiting = live.collect();
        }
        self.channels.all[id].waiting.push_back(exchange);
        self.serve_waiting(id, now);
    }

    pub(super) fn connected(&mut self, id: ChannelId, conn: ConnId, now: Instant) {
        if let Some(channel) = self.channels.all.get_mut(id) {
            channel.is_dialling = false;
            channel.conns.push(conn);
            self.serve_waiting(id, now);
        }
    }

    /// Who waited learns why, and another endpoint may do; unless there is a connection still that
    /// will have room one day.
    pub(super) fn not_connected(&mut self, id: ChannelId, error: &ConnectError, now: Instant) {
        let Some(channel) = self.channels.all.get_mut(id) else {
            return;
        };
        channel.is_dialling = false;
        if !channel.conns.is_empty() {
            return;
        }
        let endpoint = channel.reach.endpoint.key.address;
        for exchange in std::mem::take(&mut channel.waiting) {
            let failed = ProxyError::Connect {
                endpoint,
                source: error.clone(),
            };
            if self.waits(exchange, id) {
                self.attempt_failed(exchange, failed, now);
            }
        }
    }

    /// A connection takes more or fewer requests than before.
    pub(super) fn channel_changed(&mut self, conn: ConnId, now: Instant) {
        let side = self.conns.get(conn).map(|conn| &conn.side);
        if let Some(Side::Endpoint { channel, .. }) = side {
            self.serve_waiting(*channel, now);
        }
    }

    /// Sends what waits while there is a connection that takes it, and dials for the rest.
    pub(super) fn serve_waiting(&mut self, id: ChannelId, now: Instant) {
        while self.channels.has_waiting(id)
            && let Some(conn) = self.usable(id, now)
        {
            let next = self.channels.all[id].waiting.pop_front();
            if let Some(exchange) = next.filter(|exchange| self.waits(*exchange, id)) {
                self.send(exchange, conn, now);
            }
        }
        while let Some(first) = self.channels.all.get(id).and_then(|c| c.waiting.front()) {
            if self.waits(*first, id) {
                return self.dial(id);
            }
            self.channels.all[id].waiting.pop_front();
        }
    }

    fn dial(&mut self, id: ChannelId) {
        let channel = &mut self.channels.all[id];
        if channel.is_dialling || channel.conns.len() >= CONNS_MAX {
            return;
        }
        channel.is_dialling = true;
        self.tasks.push_back(Task::Dial(Dial {
            channel: id,
            endpoint: channel.reach.endpoint.key.clone(),
            name: Arc::clone(&channel.reach.name),
            timeout: channel.reach.timeout,
        }));
    }

    /// The first that takes requests: the others empty, and close one day. A worn one does until
    /// another is there.
    fn usable(&mut self, id: ChannelId, now: Instant) -> Option<ConnId> {
        let mut worn = None;
        for id in &self.channels.all.get(id)?.conns {
            let conn = self.conns.get_mut(*id);
            let Some(conn) = conn.filter(|conn| conn.codec.takes_requests()) else {
                continue;
            };
            if !conn.codec.is_worn(now) {
                return Some(*id);
            }
            worn = worn.or(Some(*id));
        }
        if worn.is_some() {
            self.dial(id);
        }
        worn
    }

    fn waits(&self, exchange: ExchangeId, id: ChannelId) -> bool {
        let channel = &self.channels.all[id];
        self.exchanges.get(exchange).is_some_and(|exchange| {
            let attempt = exchange.attempt.as_ref();
            exchange.stage == Stage::Connecting
                && attempt
                    .is_some_and(|attempt| Arc::ptr_eq(&attempt.endpoint, &channel.reach.endpoint))
        })
    }
}

/// Connections of a worker to one endpoint; beyond it requests wait for a stream to end.
const CONNS_MAX: usize = 64;
