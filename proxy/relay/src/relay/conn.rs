//! A connection of the relay: what it speaks, whose it is, and the exchanges over it.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use heddle_policy::{snapshot::DestinationKey, spiffe::Peer};

use super::{ChannelId, Connected, ExchangeId};
use crate::{
    event::{Broken, Code, Event, StreamId, Then},
    h2,
    head::{Head, Heads},
    input::{Input, Payload},
    output::Output,
    record::Direction,
    request::Version,
    timer::Timer,
    view::LiveDestination,
};

/// A client's connection, as it was accepted.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Where from.
    pub address: SocketAddr,
    /// Who, as far as TLS has proven it.
    pub peer: Peer,
    /// Where to.
    pub dialled: Dialled,
    /// What it speaks.
    pub speaks: Speaks,
}

/// Where a client wants to go.
#[derive(Clone, Debug)]
pub enum Dialled {
    /// Outbound: the kernel or the listener knows.
    Destination(DestinationKey),
    /// Outbound: each request by its authority.
    Authority,
    /// Inbound.
    Port(Port),
}

/// One port of the workload.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// As modes and rules name it.
    pub number: u16,
    /// Where the application listens.
    pub application: SocketAddr,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2.
    Http2,
}

/// The exchanges of a connection. Numbers of streams are a peer's choice within narrow bounds: few
/// at a time, and growing.
pub(super) type ByStream = HashMap<u32, ExchangeId, BuildHasherDefault<NumberHasher>>;

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) codec: Codec,
    pub(super) side: Side,
    /// By stream.
    pub(super) exchanges: ByStream,
    /// Whether it is in the relay's list of those that may have something to write.
    pub(super) is_dirty: bool,
    /// Nothing is taken from it any more.
    pub(super) is_closing: bool,
    pub(super) timer: Option<Timer>,
    /// What the timer is set for.
    pub(super) due: Option<Instant>,
    /// What was found in the view of this number.
    pub(super) found: Option<(u64, Arc<LiveDestination>)>,
}

#[derive(Debug)]
pub(super) enum Side {
    Client(Caller),
    Endpoint {
        channel: ChannelId,
        peer: Peer,
        is_sidecar: bool,
    },
}

/// What is spoken.
#[derive(Debug)]
pub(super) enum Codec {
    Http2(Box<h2::Connection>),
}

impl Conn {
    pub(super) fn of_client(caller: Caller, limits: &h2::Limits, now: Instant) -> Self {
        let Speaks::Http2 = caller.speaks;
        Self::new(h2::Role::Server, Side::Client(caller), limits, now)
    }

    pub(super) fn of_endpoint(
        channel: ChannelId,
        connected: Connected,
        limits: &h2::Limits,
        now: Instant,
    ) -> Self {
        let side = Side::Endpoint {
            channel,
            peer: connected.peer,
            is_sidecar: connected.is_sidecar,
        };
        Self::new(h2::Role::Client, side, limits, now)
    }

    fn new(role: h2::Role, side: Side, limits: &h2::Limits, now: Instant) -> Self {
        Self {
            codec: Codec::Http2(Box::new(h2::Connection::new(role, limits, now))),
            side,
            exchanges: HashMap::default(),
            is_dirty: false,
            is_closing: false,
            timer: None,
            due: None,
            found: None,
        }
    }

    /// Whose stream it is.
    pub(super) fn exchange(&self, stream: StreamId) -> Option<ExchangeId> {
        self.exchanges.get(&stream.0).copied()
    }

    /// Of an endpoint's connection; a client's has none.
    pub(super) fn channel(&self) -> Option<ChannelId> {
        match &self.side {
            Side::Client(_) => None,
            Side::Endpoint { channel, .. } => Some(*channel),
        }
    }

    pub(super) fn direction(&self) -> Direction {
        match &self.side {
            Side::Client(Caller {
                dialled: Dialled::Port(_),
                ..
            }) => Direction::Inbound,
            Side::Client(_) | Side::Endpoint { .. } => Direction::Outbound,
        }
    }

    pub(super) fn version(&self) -> Version {
        match self.codec {
            Codec::Http2(_) => Version::Http2,
        }
    }
}

impl Codec {
    pub(super) fn receive<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Broken> {
        match self {
            Self::Http2(conn) => conn.receive(input, heads, now),
        }
    }

    pub(super) fn open(
        &mut self,
        head: &Head,
        then: Then,
        heads: &mut Heads,
    ) -> Result<StreamId, h2::Refusal> {
        match self {
            Self::Http2(conn) => conn.open(head, then, heads),
        }
    }

    pub(super) fn send_head(
        &mut self,
        stream: StreamId,
        head: &Head,
        then: Then,
        heads: &mut Heads,
    ) {
        match self {
            Self::Http2(conn) => conn.send_head(stream, head, then, heads),
        }
    }

    /// How many bytes have gone at once.
    pub(super) fn send_data(&mut self, stream: StreamId, data: Payload<'_>, then: Then) -> u32 {
        match self {
            Self::Http2(conn) => conn.send_data(stream, data, then),
        }
    }

    pub(super) fn send_trailers(&mut self, stream: StreamId, head: &Head, heads: &mut Heads) {
        match self {
            Self::Http2(conn) => conn.send_trailers(stream, head, heads),
        }
    }

    pub(super) fn reset(&mut self, stream: StreamId, code: Code) {
        match self {
            Self::Http2(conn) => conn.reset(stream, code),
        }
    }

    /// Nothing more is wanted of the stream; what is sent goes first.
    pub(super) fn stop(&mut self, stream: StreamId) {
        match self {
            Self::Http2(conn) => conn.stop(stream),
        }
    }

    pub(super) fn release(&mut self, stream: StreamId, bytes: u32) {
        match self {
            Self::Http2(conn) => conn.release(stream, bytes),
        }
    }

    pub(super) fn fill(&mut self, room: usize, heads: &mut Heads) {
        match self {
            Self::Http2(conn) => conn.fill(room, heads),
        }
    }

    pub(super) fn next_written(&mut self) -> Option<Event<'static>> {
        match self {
            Self::Http2(conn) => conn.next_written(),
        }
    }

    pub(super) fn output(&mut self) -> &mut Output {
        match self {
            Self::Http2(conn) => conn.output(),
        }
    }

    pub(super) fn expire(&mut self, now: Instant) -> Result<(), Broken> {
        match self {
            Self::Http2(conn) => conn.expire(now),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Http2(conn) => conn.deadline(),
        }
    }

    /// An endpoint has answered.
    pub(super) fn served(&mut self, stream: StreamId) {
        match self {
            Self::Http2(conn) => conn.served(stream),
        }
    }

    /// Whether requests had better go over another connection.
    pub(super) fn is_worn(&mut self, now: Instant) -> bool {
        match self {
            Self::Http2(conn) => conn.is_worn(now),
        }
    }

    /// Whether a request sent now would be on its way soon: there is room for a stream, and what
    /// was sent before does not pile up.
    pub(super) fn takes_requests(&self) -> bool {
        match self {
            Self::Http2(conn) => {
                conn.can_open() && conn.send_window() > 0 && conn.waiting_bytes() < WAITING_MAX
            }
        }
    }
}

/// For keys that nobody can choose to collide.
#[derive(Debug, Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

/// Unsent bytes of a connection to an endpoint from which on requests go to another one.
const WAITING_MAX: usize = 256 * 1024;
