//! What HTTP/2 costs a sidecar for a unary call of gRPC: both its connections, both ways, when all
//! is warm. What the peers say is recorded, so that only our side counts.

use std::{io::IoSlice, time::Instant};

use heddle_relay::{
    event::{Event, Then},
    h2::{Connection, Limits, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
    output::Output,
};

use crate::decisions::Decision;

pub(crate) fn all() -> Vec<Decision> {
    let mut hop = Hop::warm();
    let run = Box::new(move || hop.call());
    let name = "h2/call".to_owned();
    vec![Decision { name, run }]
}

/// The two connections of a sidecar, and what comes to them for one call.
struct Hop {
    server: Connection,
    client: Connection,
    heads: Heads,
    now: Instant,
    request: Said,
    answer: Said,
    /// Of the next call, on both connections.
    stream: u32,
    /// What goes to the caller, and to the endpoint.
    to_caller: Vec<u8>,
    to_endpoint: Vec<u8>,
}

/// Frames of one call, and where in them the number of their stream is.
#[derive(Default)]
struct Said {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

const REQUEST: [(&str, &str); 9] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/users.v1.Users/Get"),
    (":authority", "user-service:8080"),
    ("content-type", "application/grpc"),
    ("user-agent", "grpc-go/1.62.1"),
    ("te", "trailers"),
    ("grpc-accept-encoding", "identity, deflate, gzip"),
    ("x-tenant", "blue-team-7"),
];
const ANSWER: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/grpc")];
const TRAILERS: [(&str, &str); 2] = [("grpc-status", "0"), ("grpc-message", "")];
const BODY: [u8; 100] = [7; 100];
/// So many that every field is in the tables.
const WARM: u32 = 20;
/// Of a connection, so that none is given while it is counted.
const WINDOW: u32 = 0x7fff_ffff;

impl Hop {
    fn warm() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let limits = Limits {
            connection_window: WINDOW,
            ..Limits::of_mesh()
        };
        let connection = |role| Connection::new(role, &limits, now);
        let mut hop = Self {
            server: connection(Role::Server),
            client: connection(Role::Client),
            heads: Heads::default(),
            now,
            request: Said::default(),
            answer: Said::default(),
            stream: 1,
            to_caller: Vec::new(),
            to_endpoint: Vec::new(),
        };
        let mut caller = connection(Role::Client);
        let mut endpoint = connection(Role::Server);
        let (request, answer, trailers) = (head(&REQUEST), head(&ANSWER), head(&TRAILERS));
        for _ in 0..WARM {
            let opened = caller.open(&request, Then::More, &mut hop.heads);
            let stream = opened.expect("there is room");
            caller.send_data(stream, Payload::Lent(&BODY), Then::End);
            caller.fill(usize::MAX, &mut hop.heads);
            take(caller.output(), &mut hop.request.bytes);
            hop.pass_request();
            hear(&mut endpoint, &mut hop.heads, &hop.to_endpoint, now);
            endpoint.send_head(stream, &answer, Then::More, &mut hop.heads);
            endpoint.send_data(stream, Payload::Lent(&BODY), Then::More);
            endpoint.send_trailers(stream, &trailers, &mut hop.heads);
            take(endpoint.output(), &mut hop.answer.bytes);
            hop.pass_answer();
            hear(&mut caller, &mut hop.heads, &hop.to_caller, now);
            hop.stream = stream.0 + 2;
        }
        assert!(hop.server.is_idle() && hop.client.is_idle() && caller.is_idle());
        hop.request.find_places();
        hop.answer.find_places();
        hop
    }

    fn call(&mut self) {
        self.request.of(self.stream);
        self.answer.of(self.stream);
        self.pass_request();
        self.pass_answer();
        self.stream += 2;
    }

    fn pass_request(&mut self) {
        let mut input = Input::lent(&self.request.bytes);
        while let Some(event) = next(&mut self.server, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { head, then, .. } => {
                    let opened = self.client.open(&head, then, &mut self.heads);
                    opened.expect("there is room");
                    self.heads.give(head);
                }
                Event::Data {
                    stream,
                    data,
                    credit,
                    then,
                } => {
                    self.client.send_data(stream, data, then);
                    self.server.release(stream, credit);
                }
                _ => {}
            }
        }
        self.client.fill(usize::MAX, &mut self.heads);
        take(self.client.output(), &mut self.to_endpoint);
    }

    fn pass_answer(&mut self) {
        let mut input = Input::lent(&self.answer.bytes);
        while let Some(event) = next(&mut self.client, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { stream, head, then } => {
                    self.server.served(stream);
                    self.server.send_head(stream, &head, then, &mut self.heads);
                    self.heads.give(head);
                }
                Event::Data {
                    stream,
                    data,
                    credit,
                    then,
                } => {
                    self.server.send_data(stream, data, then);
                    self.client.release(stream, credit);
                }
                Event::Trailers { stream, head } => {
                    self.server.send_trailers(stream, &head, &mut self.heads);
                    self.heads.give(head);
                }
                _ => {}
            }
        }
        self.server.fill(usize::MAX, &mut self.heads);
        take(self.server.output(), &mut self.to_caller);
    }
}

impl Said {
    fn find_places(&mut self) {
        let mut at = 0;
        while let Some([l1, l2, l3, ..]) = self.bytes.get(at..) {
            self.places.push(at + 5);
            at += 9 + u32::from_be_bytes([0, *l1, *l2, *l3]) as usize;
        }
    }

    fn of(&mut self, stream: u32) {
        for place in &self.places {
            self.bytes[*place..*place + 4].copy_from_slice(&stream.to_be_bytes());
        }
    }
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn next<'a>(
    connection: &mut Connection,
    input: &mut Input<'a>,
    heads: &mut Heads,
    now: Instant,
) -> Option<Event<'a>> {
    let event = connection.receive(input, heads, now);
    event.expect("nothing is wrong")
}

/// A peer only listens.
fn hear(peer: &mut Connection, heads: &mut Heads, bytes: &[u8], now: Instant) {
    let mut input = Input::lent(bytes);
    while next(peer, &mut input, heads, now).is_some() {}
}

/// Moves all of `output` into `wire`.
fn take(output: &mut Output, wire: &mut Vec<u8>) {
    wire.clear();
    while !output.is_empty() {
        let mut places = [IoSlice::new(&[]); 8];
        let used = output.slices(&mut places);
        let before = wire.len();
        for place in &places[..used] {
            wire.extend_from_slice(place);
        }
        output.consume(wire.len() - before);
    }
}
