//! One side of a connection, fed and asked, with what it tells written down as text.

mod answers;
mod exchanges;
mod requests;
mod server;
mod tunnels;
mod written;

use std::{io::IoSlice, time::Duration};

use super::*;
use crate::{
    event::{By, Event, Then},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
};

/// A connection, and what it told.
struct Side {
    connection: Connection,
    heads: Heads,
    now: Instant,
    /// Handed in, but not taken.
    unread: Vec<u8>,
    /// In order; pieces of a body are joined, so that it is the same however the bytes came.
    told: Vec<String>,
    /// The exchange that began last.
    stream: Option<StreamId>,
    /// A body of the exchange is open, so that its next piece joins the last one.
    is_in_body: bool,
    /// Windows are given back at once.
    releases: bool,
    /// Each request is answered with 200 and no body as soon as it is over.
    answers: bool,
}

impl Side {
    fn new(role: Role) -> Self {
        Self::limited(role, &Limits::default())
    }

    fn limited(role: Role, limits: &Limits) -> Self {
        Self {
            connection: Connection::new(role, limits),
            heads: Heads::default(),
            now: start(),
            unread: Vec::new(),
            told: Vec::new(),
            stream: None,
            is_in_body: false,
            releases: true,
            answers: false,
        }
    }

    /// A server that answers.
    fn answering() -> Self {
        Self {
            answers: true,
            ..Self::new(Role::Server)
        }
    }

    /// Hands in `bytes` as the connection has room, until it makes nothing more of them.
    fn feed(&mut self, bytes: &[u8]) {
        let bytes = [&std::mem::take(&mut self.unread), bytes].concat();
        let mut rest = &bytes[..];
        for _ in 0..TURNS_MAX {
            let room = self.connection.room().min(rest.len());
            if room == 0 && !self.connection.is_ready() {
                self.unread = rest.to_vec();
                return;
            }
            let (now, later) = rest.split_at(room);
            rest = later;
            let mut input = Input::lent(now);
            loop {
                let received = self
                    .connection
                    .receive(&mut input, &mut self.heads, self.now);
                match received {
                    Ok(Some(event)) => self.tell(event),
                    Ok(None) => break,
                    Err(malformed) => self.told(format!(
                        "malformed {}{}",
                        malformed.status,
                        malformed.answer.map_or("", |_| " to answer")
                    )),
                }
            }
            assert!(input.is_empty(), "it takes what it has room for");
        }
        panic!(
            "it is ready for ever: {:?} {:?}",
            self.connection, self.told
        );
    }

    fn end(&mut self) {
        self.connection.ended();
        self.feed(b"");
    }

    fn tell(&mut self, event: Event<'_>) {
        match event {
            Event::Head { stream, head, then } => {
                self.stream = Some(stream);
                self.told(text(&head));
                self.body_ends(then);
            }
            Event::Interim { head, .. } => self.told(format!("interim {}", text(&head))),
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                assert_eq!(Some(stream), self.stream);
                assert_eq!(credit as usize, data.len());
                let piece = data.as_slice().escape_ascii().to_string();
                if self.is_in_body {
                    let last = self.told.last_mut().expect("a body has begun");
                    last.push_str(&piece);
                } else if !piece.is_empty() {
                    self.told(format!("data {piece}"));
                    self.is_in_body = true;
                }
                if self.releases {
                    self.connection.release(stream, credit);
                }
                self.body_ends(then);
            }
            Event::Trailers { stream, head } => {
                assert_eq!(Some(stream), self.stream);
                self.told(format!("trailers {}", text(&head)));
                self.body_ends(Then::End);
            }
            Event::Reset { stream, code, by } => {
                assert_eq!((Some(stream), by), (self.stream, By::Peer));
                self.told(format!("reset {}", code.0));
            }
            Event::TooLarge { .. }
            | Event::Writable { .. }
            | Event::Goodbye { .. }
            | Event::Pong
            | Event::StreamsMax(_) => {
                panic!("not told by receive: {event:?}")
            }
        }
    }

    fn told(&mut self, text: String) {
        self.told.push(text);
        self.is_in_body = false;
    }

    fn body_ends(&mut self, then: Then) {
        if then == Then::More {
            return;
        }
        self.told("end".into());
        if self.answers {
            self.answer(&[(":status", "200")], Then::End);
        }
    }

    fn answer(&mut self, fields: &[(&str, &str)], then: Then) {
        let stream = self.stream.expect("there was a request");
        self.connection.send_head(stream, &head(fields), then);
    }

    fn send(&mut self, data: &str, then: Then) -> u32 {
        let stream = self.stream.expect("there is an exchange");
        let data = Payload::Lent(data.as_bytes());
        self.connection.send_data(stream, data, then)
    }

    /// A client's request.
    fn ask(&mut self, fields: &[(&str, &str)], then: Then) {
        let opened = self.connection.open(&head(fields), Form::default(), then);
        self.stream = Some(opened.expect("it can be sent"));
    }

    fn reset(&mut self) {
        let stream = self.stream.expect("there is an exchange");
        self.connection.reset(stream);
    }

    /// Takes what is to be sent.
    fn output(&mut self) -> Vec<u8> {
        let output = self.connection.output();
        let mut all = Vec::new();
        while !output.is_empty() {
            let mut places = [IoSlice::new(&[]); 8];
            let used = output.slices(&mut places);
            let slices: Vec<&[u8]> = places[..used].iter().map(|slice| &**slice).collect();
            let written = slices.concat();
            output.consume(written.len());
            all.extend(written);
        }
        all
    }

    fn output_text(&mut self) -> String {
        String::from_utf8(self.output()).expect("ASCII")
    }
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    now
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

/// `name=value` of all fields.
fn text(head: &Head) -> String {
    let fields = head.iter().map(|field| {
        assert_eq!(field.token, crate::token::Token::of(field.name));
        let [name, value] = [field.name, field.value].map(<[u8]>::escape_ascii);
        format!("{name}={value}")
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// Feeds `bytes` to sides that `make` makes: whole, byte by byte, and cut at every place. Each
/// must tell `expected`, and end so.
#[track_caller]
fn check_told(make: impl Fn() -> Side, bytes: &[u8], expected: &[&str], ending: Ending) {
    let cuts = (0..bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]);
    let single = bytes.chunks(1).collect();
    for pieces in cuts.chain([single]) {
        let mut side = make();
        for piece in &pieces {
            side.feed(piece);
        }
        assert_eq!(
            (&side.told[..], side.connection.ending()),
            (
                &expected.iter().map(ToString::to_string).collect::<Vec<_>>()[..],
                ending
            ),
            "{:.300} first {:?}",
            bytes.escape_ascii().to_string(),
            pieces.first().map(|piece| piece.len())
        );
    }
}

/// More than any test's bytes need.
const TURNS_MAX: usize = 100_000;
