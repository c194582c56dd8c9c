//! Calls over HTTP/2.

use std::{io::IoSlice, time::Instant};

use allocation_counter::measure;
use heddle_relay::{
    event::{Event, Then},
    h2::{self, Connection, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
    output::Output,
};

use crate::request;

/// A client and a server that talk over buffers of the test.
struct Pair {
    client: Connection,
    server: Connection,
    heads: Heads,
    wire: Vec<u8>,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let new = |role| Connection::new(role, &h2::Limits::of_mesh(), now);
        Self {
            client: new(Role::Client),
            server: new(Role::Server),
            heads: Heads::default(),
            wire: Vec::new(),
            now,
        }
    }

    /// Some calls at once, each of a head, a body and trailers both ways: less than an output
    /// keeps room for.
    fn calls(&mut self, n: u64, head: &mut Head, answer: &Head, trailers: &Head) {
        let body = [7; 100];
        for call in 0..10 {
            request((n + call).wrapping_mul(0x9e37_79b9_7f4a_7c15), head);
            let stream = self.client.open(head, Then::More, &mut self.heads);
            let stream = stream.expect("there is room");
            let data = Payload::Lent(&body);
            self.client.send_data(stream, data, Then::End);
        }
        self.client.fill(usize::MAX, &mut self.heads);
        take(self.client.output(), &mut self.wire);
        let mut input = Input::lent(&self.wire);
        while let Some(event) = next(&mut self.server, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { stream, head, .. } => {
                    self.heads.give(head);
                    let server = &mut self.server;
                    server.send_head(stream, answer, Then::More, &mut self.heads);
                }
                Event::Data {
                    stream,
                    credit,
                    then,
                    ..
                } => {
                    self.server.release(stream, credit);
                    if then == Then::End {
                        let data = Payload::Lent(&body);
                        self.server.send_data(stream, data, Then::More);
                        let server = &mut self.server;
                        server.send_trailers(stream, trailers, &mut self.heads);
                    }
                }
                _ => {}
            }
        }
        take(self.server.output(), &mut self.wire);
        let mut input = Input::lent(&self.wire);
        while let Some(event) = next(&mut self.client, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { head, .. } | Event::Trailers { head, .. } => self.heads.give(head),
                Event::Data { stream, credit, .. } => self.client.release(stream, credit),
                _ => {}
            }
        }
    }
}

pub(crate) fn next<'a>(
    connection: &mut Connection,
    input: &mut Input<'a>,
    heads: &mut Heads,
    now: Instant,
) -> Option<Event<'a>> {
    let event = connection.receive(input, heads, now);
    event.expect("nothing is wrong")
}

/// Moves all of `output` into `wire`.
pub(crate) fn take(output: &mut Output, wire: &mut Vec<u8>) {
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

#[test]
fn calls_over_http_2_allocate_nothing() {
    let mut pair = Pair::new();
    let (mut head, mut answer, mut trailers) = (Head::new(), Head::new(), Head::new());
    answer.push(b":status", b"200", Indexing::Allowed);
    answer.push(b"content-type", b"application/grpc", Indexing::Allowed);
    trailers.push(b"grpc-status", b"0", Indexing::Allowed);
    let mut call = |n: u64| pair.calls(n * 10, &mut head, &answer, &trailers);
    let cold = measure(|| (0..2_000).for_each(&mut call));
    assert!(cold.count_total > 0, "the count counts");
    let warm = measure(|| (2_000..4_000).for_each(&mut call));
    assert_eq!(warm.count_total, 0);
}
