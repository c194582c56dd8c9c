//! A connection of the relay: what it speaks, whose it is, and the exchanges over it.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use heddle_policy::{admission::Slot, snapshot::DestinationKey, spiffe::Peer};

use super::{
    ChannelId, Connected, ExchangeId, Settings,
    codec::{Codec, Role},
    exchange::Lost,
    lifetime::Life,
};
use crate::{
    budget::Room,
    event::{Code, StreamId},
    h1,
    record::Direction,
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
    /// Whether it is a sidecar of ours.
    pub is_sidecar: bool,
    /// Where to.
    pub dialled: Dialled,
    /// What it speaks.
    pub speaks: Speaks,
}

impl Caller {
    /// Which side of the sidecar it came to.
    pub fn direction(&self) -> Direction {
        match self.dialled {
            Dialled::Destination(_) | Dialled::Authority => Direction::Outbound,
            Dialled::Port(_) => Direction::Inbound,
        }
    }
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
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/1.1 in the frames of HTTP/2, between sidecars: so its requests share connections, and
    /// come out as they went in.
    Http1InHttp2,
}

/// What a connection to an endpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// HTTP/1.1 to a sidecar, HTTP/2 to anybody else.
    Http1OrForeignHttp2,
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
    /// Its driver waits until there is room again.
    pub(super) is_stopped: bool,
    /// What its driver knows of its end.
    pub(super) ending: h1::Ending,
    /// Requests that were sent over it, or came.
    pub(super) uses: u32,
    pub(super) life: Life,
    /// Since when an endpoint has let nothing be sent.
    pub(super) shut_since: Option<Instant>,
    /// Of the connections that its cluster may have; held to its end.
    pub(super) _slot: Option<Slot>,
    /// Bytes on the worker's account.
    pub(super) charged: usize,
    /// What its client was told last of the room for streams.
    pub(super) room: Room,
}

#[derive(Debug)]
pub(super) enum Side {
    Client(Arc<Caller>),
    Endpoint {
        channel: ChannelId,
        peer: Peer,
        is_sidecar: bool,
    },
}

impl Conn {
    /// `age` is the share of `connection_age` that it lives.
    pub(super) fn of_client(caller: Caller, settings: &Settings, age: f64, now: Instant) -> Self {
        let (speaks, is_sidecar) = (caller.speaks, caller.is_sidecar);
        let codec = Codec::new(Role::Server, speaks, is_sidecar, settings, now);
        let version = codec.version();
        let life = Life::new(
            Role::Server,
            version,
            is_sidecar,
            &settings.bounds,
            age,
            now,
        );
        Self::new(codec, Side::Client(Arc::new(caller)), life, None)
    }

    pub(super) fn of_endpoint(
        channel: ChannelId,
        connected: Connected,
        slot: Option<Slot>,
        settings: &Settings,
        age: f64,
        now: Instant,
    ) -> Self {
        let (speaks, is_sidecar) = (connected.speaks, connected.is_sidecar);
        let codec = Codec::new(Role::Client, speaks, is_sidecar, settings, now);
        let side = Side::Endpoint {
            channel,
            peer: connected.peer,
            is_sidecar,
        };
        let version = codec.version();
        let life = Life::new(
            Role::Client,
            version,
            is_sidecar,
            &settings.bounds,
            age,
            now,
        );
        Self::new(codec, side, life, slot)
    }

    fn new(codec: Codec, side: Side, life: Life, slot: Option<Slot>) -> Self {
        Self {
            codec,
            side,
            exchanges: HashMap::default(),
            is_dirty: false,
            is_closing: false,
            timer: None,
            due: None,
            found: None,
            is_stopped: false,
            ending: h1::Ending::Open,
            uses: 0,
            life,
            shut_since: None,
            _slot: slot,
            charged: 0,
            room: Room::Ample,
        }
    }

    /// Gives back memory that it does not need at rest.
    pub(super) fn shrink(&mut self) {
        self.codec.shrink();
        if self.exchanges.is_empty() {
            self.exchanges = HashMap::default();
        }
    }

    /// What the exchanges over it lose with it: those whose requests never began to go, nothing.
    pub(super) fn losses(&self, lost: Lost) -> Vec<(StreamId, ExchangeId, Lost)> {
        let exchanges = self.exchanges.iter().map(|(stream, exchange)| {
            let stream = StreamId(*stream);
            match self.channel().is_none() || self.codec.has_begun(stream) {
                true => (stream, *exchange, lost),
                false => (stream, *exchange, Lost::Stream(Code::REFUSED_STREAM)),
            }
        });
        exchanges.collect()
    }

    /// Bytes that it keeps beside what a connection at rest does.
    pub(super) fn kept_bytes(&self) -> usize {
        self.codec.kept_bytes()
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory_bytes(&self) -> usize {
        let exchanges = self.exchanges.capacity() * size_of::<(u32, ExchangeId)>();
        size_of::<Self>() + self.codec.memory_bytes() + exchanges
    }

    /// Who the other side is.
    pub(super) fn peer(&self) -> &Peer {
        match &self.side {
            Side::Client(caller) => &caller.peer,
            Side::Endpoint { peer, .. } => peer,
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

    /// Whether the other side is a sidecar of ours, whose words are to be believed.
    pub(super) fn is_sidecar(&self) -> bool {
        match &self.side {
            Side::Client(caller) => caller.is_sidecar,
            Side::Endpoint { is_sidecar, .. } => *is_sidecar,
        }
    }

    pub(super) fn direction(&self) -> Direction {
        match &self.side {
            Side::Client(caller) => caller.direction(),
            Side::Endpoint { .. } => Direction::Outbound,
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
