//! The whole relay among peers that do what the input says: clients and endpoints of both protocols,
//! some of which speak by our codecs and some in raw bytes, with splits, resets, ends, timers,
//! goodbyes, denials and changes of configuration in any order.
//!
//! No panic and no endless loop; peers that speak by our codecs are told nothing malformed; in the end
//! nothing is left: no exchange, no stream, no slot, no byte on the account.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::Resource,
    authz::Rules,
    retry::{RetryOn, RetryPolicy},
    snapshot::{Inbound, InboundPort, MtlsMode, Protocol, Snapshot},
    spiffe::Peer as Who,
};
use heddle_relay::{
    error::ConnectError,
    event::{Code, Event, StreamId, Then},
    h2,
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
    output::Output,
    record::Direction,
    relay::{Caller, Closing, ConnId, Connected, Dial, Dialled, Port, Relay, Speaks, Task},
    view::{self, View},
};

use crate::{scene, script::Script};

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let mut world = World::new(script.byte());
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.drive();
    }
    world.end();
}

/// Who is at the other end of a connection.
enum Peer {
    /// What it sends comes from the input; what it hears is thrown away.
    Raw,
    /// HTTP/2 as it should be, in whatever order.
    Codec(Box<h2::Connection>),
}

struct Link {
    conn: ConnId,
    peer: Peer,
    /// Streams of a peer that speaks by our codec, the latest last.
    streams: Vec<Stream>,
    /// Whether it takes what is sent to it.
    reads: bool,
}

/// What a peer that speaks by our codec may still send of a stream.
struct Stream {
    id: StreamId,
    may_send: Sending,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sending {
    Head,
    Body,
    Nothing,
}

impl Sending {
    fn behind_head(then: Then) -> Self {
        match then {
            Then::More => Self::Body,
            Then::End => Self::Nothing,
        }
    }
}

struct World {
    relay: Relay,
    view: Arc<View>,
    links: Vec<Link>,
    dials: Vec<Dial>,
    heads: Heads,
    begun: Instant,
    now: Instant,
    generation: u64,
}

impl World {
    fn new(choices: u8) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let addresses: [SocketAddr; 2] = [1, 2].map(|last| ([10, 0, 0, last], 80).into());
        let retry = RetryPolicy {
            retries_max: 2.try_into().expect("it is not zero"),
            attempt_timeout: (choices & 1 == 0).then_some(Duration::from_millis(300)),
            on: RetryOn::parse("5xx,reset").0,
            backoff_base: Duration::from_millis(10),
            backoff_max: Duration::from_millis(100),
        };
        let timeout = (choices & 2 == 0).then_some(Duration::from_secs(5));
        let retry = (choices & 4 == 0).then_some(retry);
        let mut snapshot = scene::snapshot(&addresses, retry, timeout);
        admit_everybody(&mut snapshot);
        let view = Arc::new(view::reconcile(&View::empty(now), snapshot, now));
        Self {
            relay: Relay::new(scene::settings(), Arc::clone(&view), 7, now),
            view,
            links: Vec::new(),
            dials: Vec::new(),
            heads: Heads::default(),
            begun: now,
            now,
            generation: 1,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        match script.byte() % 16 {
            0 => self.accept(script.byte()),
            1 | 2 => self.raw(script),
            3 | 4 => self.call(script),
            5 | 6 => self.send(script),
            7 => self.answer(script),
            8 => self.reset(script),
            9 => self.answer_dial(script.byte()),
            10 => self.pass(Duration::from_millis(script.number().into())),
            11 => self.pass(Duration::from_secs(script.byte().into())),
            12 => self.end_link(script),
            13 => self.upheaval(script.byte()),
            14 => {
                if let Some(link) = self.link(script.byte()) {
                    link.reads = !link.reads;
                }
            }
            _ => {
                // Only the driver's part, in between.
            }
        }
    }

    fn accept(&mut self, choices: u8) {
        if self.links.len() >= LINKS_MAX {
            return;
        }
        let speaks = match choices & 3 {
            0 | 1 => Speaks::Http2,
            2 => Speaks::Http1,
            _ => Speaks::Http1InHttp2,
        };
        let dialled = match choices & 4 {
            0 => scene::caller().dialled,
            _ => Dialled::Port(Port {
                number: 80,
                application: ([127, 0, 0, 1], 80).into(),
            }),
        };
        let caller = Caller {
            is_sidecar: choices & 8 != 0,
            dialled,
            speaks,
            ..scene::caller()
        };
        let conn = self.relay.accepted(caller, self.now);
        let is_codec = speaks == Speaks::Http2 && choices & 16 == 0;
        self.add(conn, is_codec, h2::Role::Client);
    }

    fn add(&mut self, conn: ConnId, is_codec: bool, role: h2::Role) {
        let limits = h2::Limits {
            stream_window: 3_000,
            streams_max: 10,
            ..h2::Limits::of_mesh()
        };
        let peer = match is_codec {
            true => Peer::Codec(Box::new(h2::Connection::new(role, &limits, self.now))),
            false => Peer::Raw,
        };
        self.links.push(Link {
            conn,
            peer,
            streams: Vec::new(),
            reads: true,
        });
    }

    fn link(&mut self, choice: u8) -> Option<&mut Link> {
        let len = self.links.len().max(1);
        self.links.get_mut(usize::from(choice) % len)
    }

    /// Bytes of the input, to a peer that speaks so.
    fn raw(&mut self, script: &mut Script<'_>) {
        let choice = script.byte();
        let bytes = match script.byte() % 4 {
            0 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
            1 => b"GET /a HTTP/1.1\r\nhost: echo.shop\r\n\r\n".to_vec(),
            2 => b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc".to_vec(),
            _ => script.piece().to_vec(),
        };
        let now = self.now;
        let Some(link) = self.link(choice) else {
            return;
        };
        if !matches!(link.peer, Peer::Raw) {
            return;
        }
        let conn = link.conn;
        let room = self.relay.room(conn).min(bytes.len());
        self.relay.received(conn, Input::lent(&bytes[..room]), now);
    }

    /// A request of a client that speaks by our codec.
    fn call(&mut self, script: &mut Script<'_>) {
        let (choice, choices) = (script.byte(), script.byte());
        let mut head = Head::new();
        for (name, value) in [
            (
                &b":method"[..],
                [&b"POST"[..], b"GET", b"HEAD", b"CONNECT"][usize::from(choices) % 4],
            ),
            (b":scheme", b"http"),
            (b":authority", b"echo.shop"),
            (b":path", b"/a"),
            (
                b"content-type",
                [&b"application/grpc"[..], b"text/plain"][usize::from(choices >> 2) % 2],
            ),
        ] {
            head.push(name, value, Indexing::Allowed);
        }
        let then = match choices & 8 {
            0 => Then::More,
            _ => Then::End,
        };
        let heads = &mut self.heads;
        let len = self.links.len().max(1);
        if let Some(link) = self.links.get_mut(usize::from(choice) % len)
            && let Peer::Codec(codec) = &mut link.peer
            && let Ok(stream) = codec.open(&head, then, heads)
        {
            link.streams.push(Stream {
                id: stream,
                may_send: Sending::behind_head(then),
            });
        }
    }

    fn send(&mut self, script: &mut Script<'_>) {
        let (choice, choices) = (script.byte(), script.byte());
        let bytes = vec![7; script.number() as usize % 20_000];
        let then = match choices & 1 {
            0 => Then::More,
            _ => Then::End,
        };
        if let Some(link) = self.link(choice)
            && let Peer::Codec(codec) = &mut link.peer
            && let Some(stream) = chosen(&mut link.streams, choices >> 1, Sending::Body)
        {
            codec.send_data(stream.id, Payload::Lent(&bytes), then);
            stream.may_send = Sending::behind_head(then);
        }
    }

    /// What an endpoint that speaks by our codec answers.
    fn answer(&mut self, script: &mut Script<'_>) {
        let (choice, choices) = (script.byte(), script.byte());
        let mut head = Head::new();
        let status = [&b"200"[..], b"503", b"100", b"204"][usize::from(choices) % 4];
        head.push(b":status", status, Indexing::Allowed);
        let then = match choices & 4 {
            0 => Then::More,
            _ => Then::End,
        };
        let heads = &mut self.heads;
        let len = self.links.len().max(1);
        if let Some(link) = self.links.get_mut(usize::from(choice) % len)
            && let Peer::Codec(codec) = &mut link.peer
            && let Some(stream) = chosen(&mut link.streams, choices >> 3, Sending::Head)
        {
            match status {
                b"100" => codec.send_head(stream.id, &head, Then::More, heads),
                _ => {
                    codec.send_head(stream.id, &head, then, heads);
                    stream.may_send = Sending::behind_head(then);
                }
            }
        }
    }

    fn reset(&mut self, script: &mut Script<'_>) {
        let (choice, choices) = (script.byte(), script.byte());
        let code = Code(u32::from(choices) % 14);
        if let Some(link) = self.link(choice)
            && let Peer::Codec(codec) = &mut link.peer
            && let Some(stream) = link.streams.pop()
        {
            codec.reset(stream.id, code);
        }
    }

    fn answer_dial(&mut self, choices: u8) {
        let Some(dial) = self.dials.pop() else { return };
        let speaks = match choices & 3 {
            0 | 1 => Speaks::Http2,
            2 => Speaks::Http1,
            _ => Speaks::Http1InHttp2,
        };
        let result = match choices & 12 {
            12 => Err(ConnectError::Tcp("refused".into())),
            _ => Ok(Connected {
                peer: Who::Anonymous,
                is_sidecar: choices & 16 != 0,
                speaks,
            }),
        };
        if let Some(conn) = self.relay.dialled(dial.channel, result, self.now) {
            let is_codec = speaks == Speaks::Http2 && choices & 32 == 0;
            self.add(conn, is_codec, h2::Role::Server);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.relay.expire(self.now);
        for link in &mut self.links {
            if let Peer::Codec(codec) = &mut link.peer {
                _ = codec.expire(self.now);
            }
        }
    }

    fn end_link(&mut self, script: &mut Script<'_>) {
        let (choice, how) = (script.byte(), script.byte());
        let now = self.now;
        let Some(conn) = self.link(choice).map(|link| link.conn) else {
            return;
        };
        match how % 2 {
            0 => self.relay.ended(conn, now),
            _ => self.lose(conn),
        }
    }

    fn lose(&mut self, conn: ConnId) {
        self.links.retain(|link| link.conn != conn);
        self.relay.lost(conn, self.now);
    }

    fn upheaval(&mut self, choices: u8) {
        match choices % 8 {
            0 => self.relay.configured(Arc::clone(&self.view), self.now),
            1 => {
                self.generation += 1;
                self.relay.credentials(self.generation, self.now);
            }
            2 => self.relay.retire(Direction::Outbound, self.now),
            3 => self.relay.retire(Direction::Inbound, self.now),
            4 => self.relay.cut(self.now),
            _ => {
                for link in &mut self.links {
                    if let Peer::Codec(codec) = &mut link.peer {
                        codec.goodbye(Code::NO_ERROR);
                    }
                }
            }
        }
    }

    /// What a driver does, and the peers that speak by our codec.
    fn drive(&mut self) {
        for _ in 0..TURNS_MAX {
            self.hear_peers();
            let mut has_moved = false;
            while let Some(conn) = self.relay.next_write(self.now) {
                has_moved |= self.write(conn);
            }
            while let Some(task) = self.relay.next_task() {
                has_moved = true;
                match task {
                    Task::Dial(dial) => self.dials.push(dial),
                    Task::Close(conn, Closing::Finish | Closing::Abort) => self.lose(conn),
                    Task::Shut(_) => {}
                    Task::Ask(_) => self.relay.configured(Arc::clone(&self.view), self.now),
                }
            }
            while self.relay.next_resumed().is_some() {}
            while let Some(record) = self.relay.next_record() {
                self.relay.recycle(record);
            }
            if !has_moved {
                return;
            }
        }
    }

    /// To the relay, what peers by our codec have to say.
    fn hear_peers(&mut self) {
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            let Peer::Codec(codec) = &mut link.peer else {
                continue;
            };
            codec.fill(1 << 20, &mut self.heads);
            while codec.next_written().is_some() {}
            let bytes = take(codec.output());
            let conn = link.conn;
            if !bytes.is_empty() {
                self.relay.received(conn, Input::lent(&bytes), self.now);
            }
        }
    }

    fn write(&mut self, conn: ConnId) -> bool {
        let Some(link) = self.links.iter_mut().find(|link| link.conn == conn) else {
            return false;
        };
        let Some(output) = self.relay.output(conn).filter(|_| link.reads) else {
            return false;
        };
        let bytes = take(output);
        self.relay.touch(conn);
        let Peer::Codec(codec) = &mut link.peer else {
            return true;
        };
        let mut input = Input::lent(&bytes);
        // Whether it goes on is the peer's choice, by its limits; that it is not malformed is ours.
        while let Ok(Some(event)) = codec.receive(&mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { stream, head, .. } => {
                    self.heads.give(head);
                    if !link.streams.iter().any(|known| known.id == stream) {
                        link.streams.push(Stream {
                            id: stream,
                            may_send: Sending::Head,
                        });
                    }
                }
                Event::Data { stream, credit, .. } => codec.release(stream, credit),
                Event::Reset { stream, .. } => link.streams.retain(|known| known.id != stream),
                Event::Trailers { head, .. }
                | Event::Interim { head, .. }
                | Event::TooLarge { head, .. } => self.heads.give(head),
                Event::Goodbye { .. }
                | Event::Pong
                | Event::StreamsMax(_)
                | Event::Writable { .. } => {}
            }
        }
        assert_eq!(codec.last_fault(), None, "the relay says nothing malformed");
        true
    }

    /// Everybody goes, and time passes.
    fn end(mut self) {
        for conn in self.links.iter().map(|link| link.conn).collect::<Vec<_>>() {
            self.lose(conn);
        }
        while let Some(dial) = self.dials.pop() {
            let refused = Err(ConnectError::Tcp("refused".into()));
            self.relay.dialled(dial.channel, refused, self.now);
        }
        for _ in 0..100 {
            self.pass(Duration::from_secs(10));
            self.drive();
            while let Some(dial) = self.dials.pop() {
                let refused = Err(ConnectError::Tcp("refused".into()));
                self.relay.dialled(dial.channel, refused, self.now);
            }
        }
        assert!(self.now > self.begun);
        assert_eq!(self.relay.exchanges_active(), 0);
        assert_eq!(self.relay.streams_held(), 0);
        assert_eq!(self.relay.bytes_charged(), 0);
        for endpoint in self.view.endpoints() {
            assert_eq!(endpoint.outstanding(), 0);
        }
        for destination in self.view.destinations.values() {
            for cluster in destination.clusters.values() {
                for resource in [
                    Resource::Connections,
                    Resource::Pending,
                    Resource::Requests,
                    Resource::Retries,
                ] {
                    assert_eq!(cluster.state.admission.in_use(resource), 0, "{resource:?}");
                }
            }
        }
    }
}

/// One of those of which so much may be sent.
fn chosen(streams: &mut [Stream], choice: u8, may_send: Sending) -> Option<&mut Stream> {
    let mut fit = streams
        .iter_mut()
        .filter(|stream| stream.may_send == may_send);
    fit.nth(usize::from(choice) % 4)
}

fn take(output: &mut Output) -> Vec<u8> {
    let pieces = output.payloads().map(|piece| piece.as_slice().to_vec());
    let bytes = pieces.collect::<Vec<_>>().concat();
    output.consume(output.len());
    bytes
}

/// Whoever comes may do everything.
fn admit_everybody(snapshot: &mut Snapshot) {
    let port = InboundPort {
        mtls: MtlsMode::Permissive,
        protocol: Protocol::Detect,
        authz: Arc::new(Rules::default()),
    };
    snapshot.inbound = Some(Arc::new(Inbound {
        ports: [].into(),
        default: Arc::new(port),
    }));
}

const STEPS_MAX: usize = 400;
const LINKS_MAX: usize = 20;
/// Far more than anything takes to come to rest.
const TURNS_MAX: usize = 1_000;
