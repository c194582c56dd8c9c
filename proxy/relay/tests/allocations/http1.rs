//! Exchanges over HTTP/1.1.

use std::{io::IoSlice, time::Instant};

use allocation_counter::measure;
use heddle_relay::{
    event::{Event, Then},
    h1,
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
};

/// Two ends of an HTTP/1.1 connection, and the bytes between them.
struct Http1 {
    client: h1::Connection,
    server: h1::Connection,
    heads: Heads,
    wire: Vec<u8>,
    now: Instant,
}

impl Http1 {
    /// Carries what one end sends to the other, `piece` bytes at a time, which counts the bytes of
    /// the body; whether the message ended.
    fn carry(&mut self, is_request: bool, piece: usize) -> (usize, bool) {
        let (from, to) = match is_request {
            true => (&mut self.client, &mut self.server),
            false => (&mut self.server, &mut self.client),
        };
        let mut places = [IoSlice::new(&[]); 16];
        let used = from.output().slices(&mut places);
        self.wire.clear();
        for slice in &places[..used] {
            self.wire.extend_from_slice(slice);
        }
        from.output().consume(self.wire.len());
        assert!(from.output().is_empty(), "there were places enough");
        let (mut body, mut ended) = (0, false);
        for piece in self.wire.chunks(piece) {
            let mut input = Input::lent(piece);
            while let Some(event) = to
                .receive(&mut input, &mut self.heads, self.now)
                .expect("it is well formed")
            {
                match event {
                    Event::Head { head, then, .. } => {
                        self.heads.give(head);
                        ended |= then == Then::End;
                    }
                    Event::Trailers { head, .. } => {
                        self.heads.give(head);
                        ended = true;
                    }
                    Event::Data {
                        stream,
                        data,
                        credit,
                        then,
                    } => {
                        body += data.len();
                        ended |= then == Then::End;
                        to.release(stream, credit);
                    }
                    other => unreachable!("{other:?}"),
                }
            }
        }
        (body, ended)
    }
}

#[test]
fn http1_exchanges_pass_without_allocating() {
    let limits = h1::Limits::default();
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    let mut pair = Http1 {
        client: h1::Connection::new(h1::Role::Client, &limits),
        server: h1::Connection::new(h1::Role::Server, &limits),
        heads: Heads::default(),
        wire: Vec::new(),
        now,
    };
    let of = |fields: &[(&str, &str)]| {
        let mut head = Head::new();
        for (name, value) in fields {
            head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
        }
        head
    };
    let request = of(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "user-service:8080"),
        (":path", "/users?id=1"),
        ("te", "trailers"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("x-unknown", "value"),
    ]);
    let answer = of(&[(":status", "200"), ("content-length", "600")]);
    let trailers = of(&[("x-sum", "1")]);
    let body = [7; 300];
    let mut pass = |n: usize| {
        // Heads and chunks in one read, or cut.
        let piece = [4096, 100, 7][n % 3];
        let form = h1::Form::default();
        let opened = pair.client.open(&request, form, Then::More);
        let stream = opened.expect("the connection is free");
        for _ in 0..2 {
            let data = Payload::Lent(&body);
            pair.client.send_data(stream, data, Then::More);
        }
        pair.client.send_trailers(stream, &trailers);
        assert_eq!(pair.carry(true, piece), (600, true));
        pair.server.send_head(stream, &answer, Then::More);
        pair.server
            .send_data(stream, Payload::Lent(&body), Then::More);
        pair.server
            .send_data(stream, Payload::Lent(&body), Then::End);
        assert_eq!(pair.carry(false, piece), (600, true));
        assert!(pair.client.can_open() && pair.server.is_idle());
    };
    let cold = measure(|| (0..100).for_each(&mut pass));
    assert!(cold.count_total > 0, "the count counts");
    let warm = measure(|| (100..1_000).for_each(&mut pass));
    assert_eq!(warm.count_total, 0);
}
