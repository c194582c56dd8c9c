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
mod charge;
mod codec;
mod conn;
mod exchange;
mod filter;
mod lifetime;
mod rivals;
mod route;
mod upload;

use std::{
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
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
    codec::Fault,
    conn::{Conn, NumberHasher},
    exchange::{Exchange, Leg, Lost},
};
pub use self::{
    conn::{Caller, Carries, Dialled, Port, Speaks},
    exchange::Record,
    filter::{Answer, Filter, Message, Plan, Verdict},
};
use crate::{
    budget::{Account, Budget},
    cluster::EndpointState,
    error::{ConnectError, ProxyError},
    event::{Code, Event},
    h1, h2,
    head::Heads,
    input::Input,
    output::Output,
    record::Direction,
    request::{Terms, Version},
    timer::Timers,
    view::View,
};

new_key_type! {
    /// A connection.
    pub struct ConnId;
    /// An exchange.
    pub struct ExchangeId;
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
    /// HTTP/2 with anybody else, above all the workload.
    pub workload: h2::Limits,
    /// HTTP/1.1.
    pub http1: h1::Limits,
    /// Request bytes kept for a retry, each exchange.
    pub replay_bytes_max: usize,
    /// For the answer to a destination nobody asked for before.
    pub lookup_wait: Duration,
    /// How long connections live.
    pub bounds: Bounds,
    /// What this process may keep.
    pub budget: Arc<Budget>,
}

/// How long connections live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// A client's connection of HTTP/1.1 without a request is closed after this.
    pub idle: Duration,
    /// A connection to an endpoint without a request is closed after this.
    pub endpoint_idle: Duration,
    /// A connection of HTTP/1.1 to an endpoint which has been without a request for this long is
    /// not used for one that may not be repeated, because the endpoint may be closing it by now.
    /// Sidecars are not meant.
    pub unrepeatable_idle: Duration,
    /// A connection is retired at this age, give or take 20 %. Tunnels are not.
    pub connection_age: Duration,
}

/// What a driver has to do.
#[derive(Debug)]
pub enum Task {
    /// Connect; the answer is [`Relay::dialled`].
    Dial(Dial),
    /// Shut our direction of it when its output has been written; what comes is read on.
    Shut(ConnId),
    /// Close it; it is not lost by that. One that is finishing may be aborted yet.
    Close(ConnId, Closing),
    /// Ask the control plane about a destination; the answer is [`Relay::configured`].
    Ask(DestinationKey),
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// In order: its output is written, our direction is shut, and what still comes is read and
    /// thrown away for a bounded time. Else the kernel destroys what the other side has not read
    /// (RFC 9112 section 9.6).
    Finish,
    /// At once, by a reset: what was sent must not pass for something whole.
    Abort,
}

/// A connection that is wanted.
#[derive(Clone, Debug)]
pub struct Dial {
    /// Whose it will be.
    pub channel: ChannelId,
    /// Where to.
    pub endpoint: EndpointKey,
    /// Inbound: to the workload's own port.
    pub direction: Direction,
    /// Told to it as SNI.
    pub name: Arc<str>,
    /// What it is wanted for.
    pub carries: Carries,
    /// For TCP and TLS together.
    pub timeout: Duration,
}

/// A connection that was wanted.
#[derive(Clone, Debug)]
pub struct Connected {
    /// Who it is.
    pub peer: Peer,
    /// Whether it is a sidecar of ours, whose reason words are to be believed.
    pub is_sidecar: bool,
    /// What it speaks.
    pub speaks: Speaks,
}

/// Positions of round robins, by the addresses of their clusters' states.
type Turns = HashMap<usize, Turn, BuildHasherDefault<NumberHasher>>;

/// What a timer is for.
#[derive(Clone, Copy, Debug)]
enum Due {
    Exchange(ExchangeId),
    Conn(ConnId),
    Channel(ChannelId),
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
    /// By direction.
    begun: [u64; 2],
    channels: Channels,
    timers: Timers<Due>,
    account: Account,
    /// Directions whose clients are to go; at most both.
    retired: Vec<Direction>,
    /// Nothing may live any more.
    is_cut: bool,
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
    /// Connections that may be read from again, each once.
    resumed: Vec<ConnId>,
    tasks: VecDeque<Task>,
    records: VecDeque<Record>,
    rng: SmallRng,
    filter: Option<Box<dyn Filter>>,
}

impl Relay {
    /// One without connections.
    pub fn new(settings: Settings, view: Arc<View>, seed: u64, now: Instant) -> Self {
        Self {
            view,
            view_number: 0,
            conns: SlotMap::default(),
            exchanges: SlotMap::default(),
            channels: Channels::default(),
            timers: Timers::new(now),
            account: Account::new(&settings.budget),
            retired: Vec::new(),
            is_cut: false,
            looking: Vec::new(),
            applications: HashMap::new(),
            turns: Turns::default(),
            heads: Heads::default(),
            nameless: "".into(),
            rooms: Vec::new(),
            dirty: Vec::new(),
            resumed: Vec::new(),
            begun: [0; 2],
            tasks: VecDeque::new(),
            records: VecDeque::new(),
            rng: SmallRng::seed_from_u64(seed),
            filter: None,
            settings,
        }
    }

    /// Asks this one at the turning points of exchanges.
    #[must_use]
    pub fn with_filter(mut self, filter: Box<dyn Filter>) -> Self {
        self.filter = Some(filter);
        self
    }

    /// A client has connected.
    pub fn accepted(&mut self, caller: Caller, now: Instant) -> ConnId {
        let age = self.age_share();
        let conn = Conn::of_client(caller, &self.settings, age, now);
        let is_late = self.retired.contains(&conn.direction());
        let id = self.add(conn);
        if self.is_cut {
            self.close(id, Closing::Abort, now);
        } else if is_late {
            self.leave_after_one(id, now);
        }
        id
    }

    /// A connection that was asked for is there, or will not be.
    pub fn dialled(
        &mut self,
        channel: ChannelId,
        result: Result<Connected, ConnectError>,
        now: Instant,
    ) -> Option<ConnId> {
        let place = self.channels.dialled(channel);
        match result {
            Ok(connected) => {
                let age = self.age_share();
                let settings = &self.settings;
                let conn = Conn::of_endpoint(channel, connected, place, settings, age, now);
                let conn = self.add(conn);
                self.connected(channel, conn, now);
                if self.is_cut {
                    self.close(conn, Closing::Abort, now);
                }
                Some(conn)
            }
            Err(error) => {
                drop(place);
                self.not_connected(channel, &error, now);
                None
            }
        }
    }

    /// Bytes have come.
    pub fn received(&mut self, id: ConnId, mut input: Input<'_>, now: Instant) {
        if let Some(conn) = self.conns.get_mut(id).filter(|_| !input.is_empty()) {
            conn.life.heard(now);
        }
        loop {
            let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
                return;
            };
            let is_client = conn.channel().is_none();
            match conn.codec.receive(&mut input, &mut self.heads, now) {
                Ok(Some(event)) if is_client => self.client_event(id, event, now),
                Ok(Some(event)) => self.endpoint_event(id, event, now),
                Ok(None) => break,
                Err(fault) => return self.broke(id, fault, now),
            }
        }
        debug_assert!(
            input.is_empty(),
            "no more was handed in than there was room for"
        );
        self.touch(id);
    }

    /// A connection's other side has ended its direction in order (over TLS: by a
    /// `close_notify`).
    pub fn ended(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
            return;
        };
        if conn.codec.ended() {
            self.received(id, Input::lent(b""), now);
        } else {
            self.close(id, Closing::Finish, now);
        }
    }

    /// How many bytes may be handed in at once. 0: not now; [`Relay::next_resumed`] tells when.
    pub fn room(&mut self, id: ConnId) -> usize {
        let Some(conn) = self.conns.get_mut(id) else {
            return 0;
        };
        let room = conn.codec.room();
        conn.is_stopped = room == 0;
        room
    }

    /// A connection for which there was no room, and is now.
    pub fn next_resumed(&mut self) -> Option<ConnId> {
        self.resumed.pop()
    }

    /// A connection has ended, or was closed: nothing comes and nothing can be written any more.
    pub fn lost(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.remove(id) else {
            return;
        };
        if let Some(timer) = conn.timer {
            self.timers.cancel(timer);
        }
        self.account.refund(conn.charged);
        let channel = conn.channel();
        let is_stale = conn.uses > 1 && !conn.codec.is_answered();
        let lost = match is_stale {
            true => Lost::Stale,
            false => Lost::Connection,
        };
        let lost = conn.losses(lost);
        // With it its place among the connections of its cluster.
        drop(conn);
        if let Some(channel) = channel {
            self.channels.ended(channel);
        }
        self.abort(lost, channel, id, now);
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
                Due::Exchange(exchange) => {
                    self.exchange_due(exchange, now);
                    self.charge_exchange(exchange);
                }
                Due::Conn(conn) => self.conn_due(conn, now),
                Due::Channel(channel) => self.channel_due(channel, now),
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
            self.attend(id, now);
            // A window that opened makes room for requests too.
            self.channel_changed(id, now);
            self.charge_conn(id);
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
        if let Some(conn) = self.conns.get_mut(id) {
            touch(&mut self.dirty, conn, id);
        }
    }

    /// Streams of connections that belong to an exchange; none when there is no exchange.
    pub fn streams_held(&self) -> usize {
        let conns = self.conns.values();
        conns.map(|conn| conn.exchanges.len()).sum()
    }

    /// Exchanges that have ever begun: outbound, inbound.
    pub fn begun(&self) -> [u64; 2] {
        self.begun
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

    /// What else may have changed with a connection: something to look at again, room for more,
    /// its end.
    fn attend(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
            return;
        };
        if conn.codec.is_ready() {
            self.received(id, Input::lent(b""), now);
        }
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.is_closing) else {
            return;
        };
        if conn.is_stopped && conn.codec.room() > 0 {
            conn.is_stopped = false;
            self.resumed.push(id);
        }
        conn.shut_since = match conn.codec.is_shut() {
            true => conn.shut_since.or(Some(now)),
            false => None,
        };
        conn.life.look(conn.uses, conn.exchanges.is_empty(), now);
        let ending = conn.codec.ending();
        if ending != std::mem::replace(&mut conn.ending, ending) {
            match ending {
                h1::Ending::Open => {}
                h1::Ending::HalfClosed => self.tasks.push_back(Task::Shut(id)),
                h1::Ending::Finishing => self.close(id, Closing::Finish, now),
                h1::Ending::Aborted => self.close(id, Closing::Abort, now),
            }
        } else if self.has_left(id) {
            self.close(id, Closing::Finish, now);
        }
        self.fit_windows(id);
        self.arm_conn(id);
    }

    /// What came cannot be understood. Where the protocol has an answer to that, it is given.
    fn broke(&mut self, id: ConnId, fault: Fault, now: Instant) {
        match fault {
            // It ends behind the answer.
            Fault::Http1(malformed) => self.refuse(id, malformed, now),
            Fault::Http2 => self.close(id, Closing::Finish, now),
        }
        self.touch(id);
    }

    fn client_event(&mut self, id: ConnId, event: Event<'_>, now: Instant) {
        match event {
            Event::Head { stream, head, then } => {
                self.asked(id, now);
                if self.is_out_of_room() {
                    return self.turn_away(id, stream, head, then, now);
                }
                self.begin(id, stream, head, then, now);
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.charge_exchange(exchange);
                }
            }
            Event::TooLarge { stream, head, then } => {
                self.asked(id, now);
                if let Some(exchange) = self.start(id, stream, head, then, now) {
                    self.fail(exchange, &ProxyError::HeadersTooLarge, now);
                    self.charge_exchange(exchange);
                }
            }
            Event::Data {
                stream, data, then, ..
            } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.upload(exchange, data, then, now);
                    self.charge_exchange(exchange);
                }
            }
            Event::Trailers { stream, head } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.upload_trailers(exchange, head);
                    self.charge_exchange(exchange);
                }
            }
            Event::Pong => self.ponged(id),
            Event::Reset { stream, .. } => {
                if let Some(exchange) = self.conns[id].exchange(stream) {
                    self.client_gone(exchange, now);
                }
            }
            // The codec tells them of `fill` by itself, and a client sends no others.
            Event::Interim { .. }
            | Event::Writable { .. }
            | Event::Goodbye { .. }
            | Event::StreamsMax(_) => {}
        }
    }

    fn endpoint_event(&mut self, id: ConnId, event: Event<'_>, now: Instant) {
        match event {
            Event::Head { stream, head, then } => {
                let leg = Leg { conn: id, stream };
                match self.conns[id].exchange(stream) {
                    Some(exchange) => {
                        self.judge(exchange, leg, head, then, now);
                        self.charge_exchange(exchange);
                    }
                    None => self.heads.give(head),
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
                let conn = &self.conns[id];
                if let Some(exchange) = conn.exchange(stream) {
                    let lost = match conn.codec.version() {
                        Version::Http2 => Lost::Stream(code),
                        // It ended, and `CANCEL` says that nothing of an answer had come.
                        Version::Http1 if code == Code::CANCEL && conn.uses > 1 => Lost::Stale,
                        Version::Http1 => Lost::Connection,
                    };
                    let leg = Leg { conn: id, stream };
                    self.attempt_broke(exchange, leg, lost, now);
                    self.charge_exchange(exchange);
                }
            }
            Event::Goodbye { .. } => {
                self.leave(id, now);
                self.channel_changed(id, now);
            }
            Event::StreamsMax(_) => self.channel_changed(id, now),
            Event::Pong => self.ponged(id),
            // Endpoints' are reset.
            Event::TooLarge { .. } | Event::Writable { .. } => {}
        }
    }
}

fn touch(dirty: &mut Vec<ConnId>, conn: &mut Conn, id: ConnId) {
    if !std::mem::replace(&mut conn.is_dirty, true) {
        dirty.push(id);
    }
}

/// Output of a connection beyond which bodies wait for its driver.
const OUTPUT_BYTES: usize = 64 * 1024;
/// Positions of round robins that a worker keeps.
const TURNS_MAX: usize = 4096;
