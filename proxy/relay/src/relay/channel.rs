//! Connections to endpoints, and those who wait for one.
//!
//! A channel is the connections to one endpoint under equal conditions: what they carry, and which
//! of our credentials they were made with.
//!
//! ```text
//! connect ─ one that takes it? ─ yes ─► send
//!             no │
//!                └► wait ─► dial (HTTP/2: once for all who wait; HTTP/1.1: for each)
//!                     ▲       │ our own limits allow no other connection
//!                     └───────┴─► look again when one is free, until the connect timeout
//! ```
//!
//! HTTP/2: the first connection that takes requests gets them; it is full at the endpoint's stream
//! limit, when its window has been shut for [`SHUT_MAX`], or when too much waits unsent. Where
//! there may be no further connection, streams share what there is. Streams of one connection need
//! not be kept apart otherwise: a connection's window is given back on receipt, so that nobody who
//! does not read stops the others.
//!
//! HTTP/1.1: one exchange to a connection; of idle ones the one used last is used next.
//!
//! Bounds: [`CONNS_MAX`] or [`APPLICATION_CONNS_MAX`] connections of HTTP/2 that take requests,
//! [`IDLE_MAX`] idle ones of HTTP/1.1, and of busy ones as many as there are exchanges. There are
//! as many channels as have a connection, a dial, or somebody who waits.

mod waiting;

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::{Full, Resource},
    snapshot::Transport,
};
use slotmap::SlotMap;

use self::waiting::Waiter;
use super::{
    Carries, ChannelId, Closing, ConnId, Dial, ExchangeId, Relay, Task,
    conn::{Conn, NumberHasher, Place},
};
use crate::{cluster::EndpointState, record::Direction, request::Version, timer::Timer};

/// All of a worker.
#[derive(Debug, Default)]
pub(super) struct Channels {
    all: SlotMap<ChannelId, Channel>,
    by_key: HashMap<Key, ChannelId, BuildHasherDefault<NumberHasher>>,
    /// Of our credentials.
    generation: u64,
}

/// Conditions that connections have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The address of the endpoint's state, which the channel keeps alive.
    endpoint: usize,
    carries: Carries,
    /// Of our credentials, from 1 on; 0 in plaintext.
    generation: u64,
}

/// Connections to one endpoint.
#[derive(Debug)]
struct Channel {
    key: Key,
    /// As the first exchange said it.
    reach: Reach,
    /// All that have not ended, whatever they are doing.
    conns: usize,
    /// Of HTTP/2, that take requests or will again. In the order of their making.
    shared: Vec<ConnId>,
    /// How many of `shared` are known to be full, from the first on.
    full: usize,
    /// Of HTTP/1.1, idle. The latest used is last.
    idle: Vec<ConnId>,
    dials: usize,
    /// For connections that are being made.
    places: Vec<Place>,
    /// What was found to be spoken.
    framing: Option<Version>,
    /// Until then no other dial is tried: the last failed, and another would as fast.
    rests_until: Option<Instant>,
    /// In order. Those that ended meanwhile too, while they are the smaller part.
    waiting: VecDeque<Waiter>,
    /// Why somebody waits for whom no connection is dialled.
    blocked: Option<Blocked>,
    /// To look again while it is blocked.
    timer: Option<Timer>,
}

/// What a dial needs to know.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    pub(super) endpoint: Arc<EndpointState>,
    pub(super) name: Arc<str>,
    pub(super) carries: Carries,
    /// Which side of the sidecar.
    pub(super) direction: Direction,
    pub(super) timeout: Duration,
}

/// Whether a connection that has been used before will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// Any.
    Any,
    /// Not one of HTTP/1.1 that its endpoint may be closing by now: the request could not be
    /// repeated.
    Recent,
    /// Not one of HTTP/1.1 that was used before: such a one just broke.
    New,
}

/// Which shared connection takes one more request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// One over which it would be on its way soon.
    Ready,
    /// Any that its endpoint lets.
    Any,
}

/// Why no connection is dialled for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blocked {
    /// As many as there may be to an endpoint.
    Endpoint,
    /// As many as the cluster may have, over all workers.
    Cluster,
}

impl Channels {
    /// Whether who waits there waits for our own limits.
    pub(super) fn is_blocked(&self, channel: ChannelId) -> bool {
        let channel = self.all.get(channel);
        channel.is_some_and(|channel| channel.blocked.is_some())
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The connection takes nothing more.
    pub(super) fn forget(&mut self, channel: ChannelId, conn: ConnId) {
        let Some(channel) = self.all.get_mut(channel) else {
            return;
        };
        channel.idle.retain(|known| *known != conn);
        if let Some(place) = channel.shared.iter().position(|known| *known == conn) {
            channel.shared.remove(place);
            channel.full -= usize::from(place < channel.full);
        }
    }

    /// The connection, forgotten before, has ended.
    pub(super) fn ended(&mut self, channel: ChannelId) {
        if let Some(channel) = self.all.get_mut(channel) {
            channel.conns -= 1;
        }
    }

    /// A dial has ended; the permission that it had.
    pub(super) fn dialled(&mut self, channel: ChannelId) -> Option<Place> {
        let channel = self.all.get_mut(channel)?;
        channel.dials = channel.dials.saturating_sub(1);
        channel.places.pop()
    }

    /// From now on connections are made with these credentials; channels of older ones, with what
    /// was promised to those who wait there.
    pub(super) fn renew(&mut self, generation: u64) -> Vec<ChannelId> {
        self.generation = generation;
        let outdated = |channel: &&Channel| self.is_outdated(&channel.key);
        let keys = self.all.values().filter(outdated).map(|c| c.key);
        let keys: Vec<Key> = keys.collect();
        keys.iter()
            .filter_map(|key| self.by_key.remove(key))
            .collect()
    }

    /// Whether its connections are made with older credentials than there are.
    pub(super) fn is_old(&self, channel: ChannelId) -> bool {
        let channel = self.all.get(channel);
        channel.is_some_and(|channel| self.is_outdated(&channel.key))
    }

    fn is_outdated(&self, key: &Key) -> bool {
        key.generation != 0 && key.generation != self.generation.saturating_add(1)
    }

    fn of(&mut self, reach: &Reach) -> ChannelId {
        let generation = match reach.endpoint.key.transport {
            Transport::Plain => 0,
            Transport::Mtls(_) => self.generation.saturating_add(1),
        };
        let key = Key {
            endpoint: Arc::as_ptr(&reach.endpoint).addr(),
            carries: reach.carries,
            generation,
        };
        if let Some(known) = self.by_key.get(&key) {
            return *known;
        }
        let channel = self.all.insert(Channel::new(key, reach.clone()));
        self.by_key.insert(key, channel);
        channel
    }
}

impl Channel {
    fn new(key: Key, reach: Reach) -> Self {
        Self {
            key,
            reach,
            conns: 0,
            shared: Vec::new(),
            full: 0,
            idle: Vec::new(),
            dials: 0,
            places: Vec::new(),
            framing: None,
            rests_until: None,
            waiting: VecDeque::new(),
            blocked: None,
            timer: None,
        }
    }

    /// How many dials there may be for so many who wait: one where it may serve them all.
    fn dials_wanted(&self) -> usize {
        let waiting = self.waiting.len();
        if !self.is_shared() {
            return waiting;
        }
        let cluster = self
            .waiting
            .front()
            .and_then(|first| first.cluster.as_ref());
        let uses_max =
            cluster.and_then(|cluster| cluster.config.limits.requests_per_connection_max);
        let each = uses_max.map_or(u32::MAX, NonZeroU32::get);
        waiting.div_ceil(usize::try_from(each).unwrap_or(usize::MAX))
    }

    /// Whether a connection carries several exchanges at a time, as far as is known.
    fn is_shared(&self) -> bool {
        let is_plain = self.reach.endpoint.key.transport == Transport::Plain;
        let framing = match self.reach.carries {
            Carries::Http2 => Some(Version::Http2),
            Carries::Http1 if is_plain => Some(Version::Http1),
            // Sidecars share even these.
            Carries::Http1 | Carries::Http1OrForeignHttp2 => self.framing,
        };
        framing != Some(Version::Http1)
    }
}

impl Relay {
    /// A connection that was asked for is there.
    pub(super) fn connected(&mut self, id: ChannelId, conn: ConnId, now: Instant) {
        let Some(channel) = self.channels.all.get_mut(id) else {
            return self.close(conn, Closing::Finish, now);
        };
        channel.conns += 1;
        let framing = self.conns[conn].codec.version();
        channel.framing = Some(framing);
        let is_old = self.channels.is_old(id);
        if is_old {
            self.leave(conn, now);
        } else if framing == Version::Http2 {
            self.channels.all[id].shared.push(conn);
        }
        self.channel_changed(conn, now);
    }

    /// A connection that nobody here needs makes room for one that somebody else waits for, be it
    /// to another endpoint of the cluster or with another worker. Else those that a burst has left
    /// at rest would keep all others out.
    pub(super) fn offer(&mut self, id: ConnId, now: Instant) {
        let conn = &self.conns[id];
        let channel = conn.channel().and_then(|id| self.channels.all.get(id));
        let is_needed = channel.is_none_or(|channel| !channel.waiting.is_empty());
        if !is_needed && conn.exchanges.is_empty() && conn.is_wanted() {
            self.leave(id, now);
        }
    }

    /// A connection to an endpoint takes more or fewer requests than before.
    pub(super) fn channel_changed(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        let Some(channel_id) = conn.channel() else {
            return;
        };
        if let Some(channel) = self.channels.all.get_mut(channel_id) {
            match conn.codec.version() {
                Version::Http2 if channel.full > 0 => {
                    let place = channel.shared.iter().position(|known| *known == id);
                    if let Some(place) = place.filter(|_| conn.is_ready(now)) {
                        channel.full = channel.full.min(place);
                    }
                }
                Version::Http2 => {}
                Version::Http1 if conn.rests() && !conn.life.is_leaving() => {
                    // The one that was added last, if any.
                    if !channel.idle.iter().rev().any(|known| *known == id) {
                        conn.life.used(now);
                        channel.idle.push(id);
                    }
                }
                Version::Http1 => {}
            }
            if channel.idle.len() > IDLE_MAX {
                let oldest = channel.idle[0];
                self.leave(oldest, now);
            }
        }
        self.serve_waiting(channel_id, now);
    }

    /// A channel with nothing and nobody in it is no more.
    fn forget_empty(&mut self, id: ChannelId) {
        let channel = &self.channels.all[id];
        if channel.conns > 0 || channel.dials > 0 || !channel.waiting.is_empty() {
            return;
        }
        if let Some(channel) = self.channels.all.remove(id) {
            // Another may be in its place, with newer credentials.
            if self.channels.by_key.get(&channel.key) == Some(&id) {
                self.channels.by_key.remove(&channel.key);
            }
            channel.timer.map(|timer| self.timers.cancel(timer));
        }
    }

    /// An idle connection that nobody here can use makes room for one that somebody can. One at a
    /// time: its room is there when it has ended.
    fn make_room(&mut self, id: ChannelId, now: Instant) {
        let channel = self.channels.all.get(id);
        let channel = channel.filter(|channel| !channel.waiting.is_empty());
        if let Some(unfit) = channel.and_then(|channel| channel.idle.first().copied()) {
            self.leave(unfit, now);
        }
    }

    /// Dials for those who wait; why not for all of them.
    fn dial(&mut self, id: ChannelId, now: Instant) -> Option<Blocked> {
        self.first_waiting(id)?;
        loop {
            let channel = &self.channels.all[id];
            if channel.rests_until.is_some_and(|until| now < until) {
                return Some(Blocked::Endpoint);
            }
            let (dials, wanted) = (channel.dials, channel.dials_wanted());
            if dials >= wanted {
                return None;
            }
            let is_shared = channel.is_shared();
            let waiter = &channel.waiting[dials];
            if !self.waits(waiter, id) {
                self.channels.all[id].waiting.remove(dials);
                continue;
            }
            let cluster = waiter.cluster.as_ref();
            let conns_max = match channel.reach.direction {
                Direction::Outbound => CONNS_MAX,
                Direction::Inbound => APPLICATION_CONNS_MAX,
            };
            if is_shared && channel.shared.len() + dials >= conns_max {
                return Some(Blocked::Endpoint);
            }
            let place = cluster.map(|cluster| {
                let limit = cluster.config.limits.connections_max;
                let admission = &cluster.state.admission;
                let slot = admission.acquire(Resource::Connections, limit)?;
                Ok::<_, Full>(Place {
                    slot,
                    is_limited: limit.is_some(),
                })
            });
            let Ok(place) = place.transpose() else {
                return Some(Blocked::Cluster);
            };
            let channel = &mut self.channels.all[id];
            channel.dials += 1;
            channel.places.extend(place);
            self.tasks.push_back(Task::Dial(Dial {
                channel: id,
                endpoint: channel.reach.endpoint.key.clone(),
                name: Arc::clone(&channel.reach.name),
                carries: channel.reach.carries,
                direction: channel.reach.direction,
                timeout: channel.reach.timeout,
            }));
        }
    }

    fn send_over(&mut self, exchange: ExchangeId, conn: ConnId, now: Instant) {
        let found = &mut self.exchanges[exchange];
        if let Some(attempt) = &mut found.attempt {
            attempt.waits_in = None;
            attempt.pending = None;
        }
        let limits = found.way.as_ref().map(|way| &way.cluster.config.limits);
        let uses_max = limits.and_then(|limits| limits.requests_per_connection_max);
        let uses_max = uses_max.map_or(STREAMS_MAX, NonZeroU32::get);
        self.send(exchange, conn, now);
        self.charge_exchange(exchange);
        let Some(sent) = self.conns.get(conn) else {
            return;
        };
        if sent.uses >= uses_max.min(STREAMS_MAX) {
            self.leave(conn, now);
        } else if sent.codec.version() == Version::Http1 && sent.rests() {
            // It could not be sent.
            self.channel_changed(conn, now);
        }
    }

    fn usable(&mut self, id: ChannelId, freshness: Freshness, now: Instant) -> Option<ConnId> {
        if let Some(conn) = self.usable_shared(id, Room::Ready, now) {
            return Some(conn);
        }
        let unrepeatable_idle = self.settings.bounds.unrepeatable_idle;
        loop {
            let channel = self.channels.all.get_mut(id)?;
            let last = *channel.idle.last()?;
            let conn = self.conns.get(last)?;
            let is_unused = conn.uses == 0;
            let is_fit = match freshness {
                Freshness::Any => true,
                Freshness::Recent => {
                    conn.is_sidecar() || is_unused || !conn.life.has_rested(unrepeatable_idle, now)
                }
                Freshness::New => is_unused,
            };
            match (is_fit, freshness) {
                (true, _) => _ = channel.idle.pop(),
                (false, Freshness::New) => return None,
                // It goes, or those that were idle for too long would add up.
                (false, Freshness::Any | Freshness::Recent) => {
                    self.leave(last, now);
                    return None;
                }
            }
            if conn.codec.can_open() {
                return Some(last);
            }
        }
    }

    /// Those that are known to be full are not looked at again until they change.
    fn usable_shared(&mut self, id: ChannelId, room: Room, now: Instant) -> Option<ConnId> {
        let channel = self.channels.all.get_mut(id)?;
        match room {
            Room::Ready => loop {
                let conn = *channel.shared.get(channel.full)?;
                let found = self.conns.get_mut(conn);
                if found.is_some_and(|found| found.is_ready(now)) {
                    return Some(conn);
                }
                channel.full += 1;
            },
            Room::Any => {
                let open = |id: &&ConnId| {
                    let conn = self.conns.get(**id);
                    conn.is_some_and(|conn| conn.codec.can_open())
                };
                let streams = |id: &&ConnId| self.conns.get(**id).map(|c| c.exchanges.len());
                let least = channel.shared.iter().filter(open).min_by_key(streams);
                least.copied()
            }
        }
    }
}

impl Conn {
    /// Whether a request sent now would be on its way soon: there is room for a stream, and what
    /// was sent before does not pile up. One that many requests were cancelled on of late had
    /// better rest.
    fn is_ready(&mut self, now: Instant) -> bool {
        self.codec.can_open()
            && !self.codec.is_worn(now)
            && self.codec.waiting_bytes() < WAITING_MAX
            && self.shut_since.is_none_or(|since| now < since + SHUT_MAX)
    }

    /// Of HTTP/1.1: whether it waits for a request.
    fn rests(&self) -> bool {
        self.exchanges.is_empty() && !self.is_closing && self.codec.can_open()
    }
}

/// Connections of HTTP/2 of a worker to one endpoint; beyond it they are shared as far as they go,
/// then requests wait for a stream to end.
const CONNS_MAX: usize = 64;
/// The same to the workload beside us, which is near: more of them would carry no more.
const APPLICATION_CONNS_MAX: usize = 8;
/// Idle connections of HTTP/1.1 of a worker to one endpoint; beyond it the oldest is closed.
const IDLE_MAX: usize = 256;
/// Unsent bytes of a connection from which on requests go to another one.
const WAITING_MAX: usize = 256 * 1024;
/// How long a connection's window may be shut before requests go to another one: for the time of a
/// round trip it is ordinary.
const SHUT_MAX: Duration = Duration::from_millis(5);
/// Requests of one connection: as many as HTTP/2 has numbers for.
const STREAMS_MAX: u32 = (1 << 30) - 1;
/// Between dials that fail, while there is a connection that will have room one day.
const DIAL_PAUSE: Duration = Duration::from_millis(100);
