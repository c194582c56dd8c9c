//! The relay of one worker: connections, the exchanges over them, and the policies that decide.
//!
//! A driver tells what happened (`accepted`, `received`, `dialled`, `lost`, `expire`) and does what
//! is asked for ([`Relay::next_task`], [`Relay::next_write`]). Nothing else happens: no call
//! blocks, and the same calls with the same times and the same seed do the same.
//!
//! ```text
//!  client's                                                             endpoint's
//! connection ─ Head ──► begin ─► route ─► attempt ─► connect ─► send ──► connection
//!            ─ Data ──► upload ─────────────────────────────────────────►
//!            ◄───────────────────── commit ◄─ judge ◄──────────── Head ─
//!            ◄───────────────────── download ◄─────────────────── Data ─
//!                                     │
//!     retry or another endpoint ◄─────┴─► complete: one outcome, one record
//! ```

mod answer;
mod channel;
mod conn;
mod exchange;
mod route;
mod upload;

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use heddle_policy::{
    balance::Turn,
    snapshot::{DestinationKey, EndpointKey},
    spiffe::Peer,
};
use rand::{SeedableRng, rngs::SmallRng};
use slotmap::{SlotMap, new_key_type};

use self::{
    channel::Channels,
    conn::{ByStream, Conn, NumberHasher},
    exchange::Exchange,
};
pub use self::{
    conn::{Caller, Dialled, Port, Speaks},
    exchange::Record,
};
use crate::{
    cluster::EndpointState,
    error::{ConnectError, ProxyError},
    event::{Broken, Event},
    h2,
    head::Heads,
    input::Input,
    output::Output,
    request::Terms,
    timer::Timers,
    view::View,
};

new_key_type! {
    /// A connection.
    pub struct ConnId;
    /// An exchange.
    pub(crate) struct ExchangeId;
    /// Connections to one endpoint.
    pub struct ChannelId;
}

/// What a relay is told once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// About requests.
    pub terms: Terms,
    /// HTTP/2 between sidecars.
    pub mesh: h2::Limits,
    /// HTTP/2 with the workload.
    pub workload: h2::Limits,
    /// Request bytes kept for a retry, each exchange.
    pub replay_bytes_max: usize,
    /// For the answer to a destination nobody asked for before.
    pub lookup_wait: std::time::Duration,
}

/// What a driver has to do.
#[derive(Debug)]
pub enum Task {
    /// Connect; the answer is [`Relay::dialled`].
    Dial(Dial),
    /// Close when its output has been written.
    Close(ConnId),
    /// Ask the control plane about a destination; the answer is [`Relay::configured`].
    Ask(DestinationKey),
}

/// A connection that is wanted.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Whose it will be.
    pub channel: ChannelId,
    /// Where to.
    pub endpoint: EndpointKey,
    /// Told to it as SNI.
    pub name: Arc<str>,
    /// For TCP and TLS together.
    pub timeout: std::time::Duration,
}

/// A connection that was wanted.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Who it is.
    pub peer: Peer,
    /// Whether it is a sidecar of ours, whose reason words are to be believed.
    pub is_sidecar: bool,
}

/// Positions of round robins, by the addresses of their clusters' states.
type Turns = HashMap<usize, Turn, BuildHasherDefault<NumberHasher>>;

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Due {
    Exchange(ExchangeId),
    Conn(ConnId),
}

/// See the module.
#[derive(Debug)]
pub struct Relay {
    settings: Settings,
    view: Arc<View>,
    /// Which view it is, so that a connection knows whether what it found is of this one.
    view_number: u64,
    conns: SlotMap<ConnId, Conn>,
    exchanges: SlotMap<ExchangeId, Exchange>,
    channels: Channels,
    timers: Timers<Due>,
    /// Exchanges whose destination has been asked for.
    looking: Vec<ExchangeId>,
    /// What is in flight to the workload's own ports; as many as it has.
    applications: HashMap<SocketAddr, Arc<EndpointState>>,
    /// Positions of round robins; at most [`TURNS_MAX`].
    turns: Turns,
    heads: Heads,
    /// What the workload's own ports are called.
    nameless: Arc<str>,
    /// What uploads were kept in, empty.
    rooms: Vec<Output>,
    /// Connections that may have something to write, each once.
    dirty: Vec<ConnId>,
    tasks: VecDeque<Task>,
    records: VecDeque<Record>,
    rng: SmallRng,
}

impl Relay {
    /// One without connections.
    pub fn new(settings: Settings, view: Arc<View>, seed: u64, now: Instant) -> Self {
        Self {
            settings,
            view,
            view_number: 0,
            conns: SlotMap::default(),
            exchanges: SlotMap::default(),
            channels: Channels::default(),
            timers: Timers::new(now),
            looking: Vec::new(),
            applications: HashMap::new(),
            turns: Turns::default(),
            heads: Heads::default(),
            nameless: "".into(),
            rooms: Vec::new(),
            dirty: Vec::new(),
            tasks: VecDeque::new(),
            records: VecDeque::new(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// A client has connected.
    pub fn accepted(&mut self, caller: Caller, now: Instant) -> ConnId {
        let limits = match caller.dialled {
            Dialled::Port(_) => &self.settings.mesh,
            Dialled::Destination(_) | Dialled::Authority => &self.settings.workload,
        };
        let conn = Conn::of_client(caller, limits, now);
        self.add(conn)
    }

    /// A connection that was asked for is there, or will not be.
    pub fn dialled(
        &mut self,
        channel: ChannelId,
        result: Result<Connected, ConnectError>,
        now: Instant,
    ) -> Option<ConnId> {
        match result {
            Ok(connected) => {
                let limits = match connected.is_sidecar {
                    true => &self.settings.mesh,
                    false => &self.settings.workload,
                };
                let conn = self.add(Conn::of_endpoint(channel, connected, limits, now));
                self.connected(channel, conn, now);
                Some(conn)
            }
            Err(error) => {
                self.not_connected(channel, &error, now);
                None
            }
        }
    }

    /// Bytes have come.
    pub fn received(&mut self, id: ConnId, mut input: Input<'_>, now: Instant) {
        loop {
            let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
                return;
            };
            let is_client = conn.channel().is_none();
            match conn.codec.receive(&mut input, &mut self.heads, now) {
                Ok(Some(event)) if is_client => self.client_event(id, event, now),
                Ok(Some(event)) => self.endpoint_event(id, event, now),
                Ok(None) => break,
                Err(broken) => return self.broke(id, broken, now),
            }
        }
        self.touch(id);
        self.arm_conn(id);
    }

    /// A connection has ended, and nothing can be written any more.
    pub fn lost(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.remove(id) else {
            return;
        };
        if let Some(timer) = conn.timer {
            self.timers.cancel(timer);
        }
        let channel = conn.channel();
        self.abort(conn.exchanges, channel, id, now);
    }

    /// Another view is in force.
    pub fn configured(&mut self, view: Arc<View>, now: Instant) {
        self.view = view;
        self.view_number += 1;
        for exchange in std::mem::take(&mut self.looking) {
            if self.exchanges.contains_key(exchange) {
                self.look_again(exchange, now);
            }
        }
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Instant) {
        while let Some(due) = self.timers.expired(now) {
            match due {
                Due::Exchange(exchange) => self.exchange_due(exchange, now),
                Due::Conn(conn) => self.conn_due(conn, now),
            }
        }
    }

    /// When [`Relay::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// What is to be done.
    pub fn next_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    /// What has ended. Give it back with [`Relay::recycle`].
    pub fn next_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    /// Takes back the room of a record.
    pub fn recycle(&mut self, record: Record) {
        self.heads.give(record.head);
    }

    /// A connection that has something to write. Call it until it is `None`, once everything that
    /// had come was handed in: what goes to one connection is then written together.
    pub fn next_write(&mut self, now: Instant) -> Option<ConnId> {
        while let Some(id) = self.dirty.pop() {
            let Some(conn) = self.conns.get_mut(id) else {
                continue;
            };
            conn.is_dirty = false;
            conn.codec.fill(OUTPUT_BYTES, &mut self.heads);
            while let Some(event) = self.conns.get_mut(id).and_then(|c| c.codec.next_written()) {
                self.written(id, &event, now);
            }
            // A window that opened makes room for requests too.
            let channel = self.conns.get(id).and_then(Conn::channel);
            if let Some(channel) = channel.filter(|channel| self.channels.has_waiting(*channel)) {
                self.serve_waiting(channel, now);
            }
            let output = self.conns.get_mut(id).map(|conn| conn.codec.output());
            if output.is_some_and(|output| !output.is_empty()) {
                return Some(id);
            }
        }
        None
    }

    /// What a connection has to write. Call [`Relay::touch`] when some of it has been.
    pub fn output(&mut self, id: ConnId) -> Option<&mut Output> {
        self.conns.get_mut(id).map(|conn| conn.codec.output())
    }

    /// Looks at a connection's output again.
    pub fn touch(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.is_dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Streams of connections that belong to an exchange; none when there is no exchange.
    pub fn streams_held(&self) -> usize {
        let conns = self.conns.values();
        conns.map(|conn| conn.exchanges.len()).sum()
    }

    /// Exchanges under way.
    pub fn exchanges_active(&self) -> usize {
        self.exchanges.len()
    }

    fn add(&mut self, conn: Conn) -> ConnId {
        let id = self.conns.insert(conn);
        self.arm_conn(id);
        self.touch(id);
        id
    }

    fn broke(&mut self, id: ConnId, _broken: Broken, now: Instant) {
        self.touch(id);
        self.tasks.push_back(Task::Close(id));
        let conn = &mut self.conns[id];
        conn.is_closing = true;
        let exchanges = std::mem::take(&mut conn.exchanges);
        let channel = conn.channel();
        self.abort(exchanges, channel, id, now);
    }

    /// The connection carries nothing any more.
    fn abort(
        &mut self,
        exchanges: ByStream,
        channel: Option<ChannelId>,
        conn: ConnId,
        now: Instant,
    ) {
        if let Some(channel) = channel {
            self.channels.forget(channel, conn);
        }
        for exchange in exchanges.into_values() {
            match channel {
                None => self.client_gone(exchange, now),
                Some(_) => self.attempt_broke(exchange, None, now),
            }
        }
        if let Some(channel) = channel {
            self.serve_waiting(channel, now);
        }
    }

    /// Sets the connection's timer for what is due, unless it is set so.
    fn arm_conn(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        let due = conn.codec.deadline().filter(|_| !conn.is_closing);
        if due == conn.due {
            return;
        }
        conn.due = due;
        if let Some(timer) = conn.timer.take() {
            self.timers.cancel(timer);
        }
        conn.timer = due.map(|at| self.timers.set(at, Due::Conn(id)));
    }

    fn conn_due(&mut self, id: ConnId, now: Instant) {
        let conn = &mut self.conns[id];
        (conn.timer, conn.due) = (None, None);
        match conn.codec.expire(now) {
            Ok(()) => self.arm_conn(id),
            Err(broken) => self.broke(id, broken, now),
        }
    }

    fn client_event(&mut self, id: ConnId, event: Event<'_>, now: Instant) {
        match event {
            Event::Head { stream, head, then } => self.begin(id, stream, head, then, None, now),
            Event::TooLarge { stream, head, then } => {
                let fault = Some(ProxyError::HeadersTooLarge);
                self.begin(id, stream, head, then, fault, now);
            }
            Event::Data {
                stream, data, then, ..
            } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.upload(exchange, data, then, now);
                }
            }
            Event::Trailers { stream, head } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.upload_trailers(exchange, head);
                }
            }
            Event::Reset { stream, .. } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.client_gone(exchange, now);
                }
            }
            // The codec tells them of `fill` by itself, and a client sends no others.
            Event::Interim { .. }
            | Event::Writable { .. }
            | Event::Goodbye { .. }
            | Event::Pong
            | Event::StreamsMax(_) => {}
        }
    }

    fn endpoint_event(&mut self, id: ConnId, event: Event<'_>, now: Instant) {
        match event {
            Event::Head { stream, head, then } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.judge(exchange, head, then, now);
                }
            }
            Event::Interim { stream, head } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.interim(exchange, head);
                }
            }
            Event::Data {
                stream, data, then, ..
            } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.download(exchange, data, then, now);
                }
            }
            Event::Trailers { stream, head } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.download_trailers(exchange, head, now);
                }
            }
            Event::Reset { stream, code, .. } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.attempt_broke(exchange, Some(code), now);
                }
            }
            Event::Goodbye { .. } | Event::StreamsMax(_) => self.channel_changed(id, now),
            // Endpoints' are reset.
            Event::TooLarge { .. } | Event::Writable { .. } | Event::Pong => {}
        }
    }
}

/// Output of a connection beyond which bodies wait for its driver.
const OUTPUT_BYTES: usize = 64 * 1024;
/// Positions of round robins that a worker keeps.
const TURNS_MAX: usize = 4096;
