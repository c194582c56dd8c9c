//! A peer: a connection of HTTP/2 that a client or an endpoint holds, and what it does with it.

use std::{collections::BTreeMap, time::Instant};

use heddle_relay::{
    event::{By, Code, Event, StreamId, Then},
    h2,
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
    token::Token,
};
use rand::{RngExt, rngs::SmallRng};

use crate::world::Behaviour;

/// Byte `at` of the body of exchange `id`: no two bodies are alike.
#[expect(clippy::cast_possible_truncation, reason = "a byte is wanted")]
fn body_byte(id: u32, at: usize) -> u8 {
    ((id as usize).wrapping_mul(31) ^ at.wrapping_mul(7) ^ (at >> 8)) as u8
}

pub(crate) fn body(id: u32, from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|at| body_byte(id, at)).collect()
}

/// One exchange, as the client or the endpoint sees it.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    /// Client: how much to send. Endpoint: how much was echoed.
    pub(crate) to_send: usize,
    pub(crate) sent: usize,
    pub(crate) received: usize,
    /// Received, and not yet given back.
    pub(crate) owed: u32,
    pub(crate) has_ended_sending: bool,
    pub(crate) status: Option<String>,
    pub(crate) grpc_status: Option<String>,
    /// Endpoint: steps until it answers.
    pub(crate) answers_in: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) codec: h2::Connection,
    pub(crate) heads: Heads,
    pub(crate) streams: BTreeMap<u32, Stream>,
    pub(crate) behaviour: Option<Behaviour>,
    /// Bytes of bodies that were handed to the codec, by stream.
    pub(crate) handed: BTreeMap<u32, u64>,
    /// Exchanges that are over, and how.
    pub(crate) done: Vec<(u32, String)>,
    /// Endpoint: requests that came.
    pub(crate) asked: u32,
}

impl Peer {
    pub(crate) fn client(limits: &h2::Limits, now: Instant) -> Self {
        Self::new(h2::Role::Client, None, limits, now)
    }

    pub(crate) fn endpoint(behaviour: Behaviour, limits: &h2::Limits, now: Instant) -> Self {
        Self::new(h2::Role::Server, Some(behaviour), limits, now)
    }

    fn new(
        role: h2::Role,
        behaviour: Option<Behaviour>,
        limits: &h2::Limits,
        now: Instant,
    ) -> Self {
        Self {
            codec: h2::Connection::new(role, limits, now),
            heads: Heads::default(),
            streams: BTreeMap::new(),
            handed: BTreeMap::new(),
            behaviour,
            done: Vec::new(),
            asked: 0,
        }
    }

    /// Client: begins an exchange; `false` when there is no room.
    pub(crate) fn call(&mut self, id: u32, bytes: usize) -> bool {
        let mut head = Head::new();
        let path = format!("/echo.Echo/{id}");
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "echo.shop"),
            (":path", &path),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ] {
            head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
        }
        let then = if bytes == 0 { Then::End } else { Then::More };
        let Ok(stream) = self.codec.open(&head, then, &mut self.heads) else {
            return false;
        };
        let state = Stream {
            id,
            to_send: bytes,
            has_ended_sending: bytes == 0,
            ..Stream::default()
        };
        self.streams.insert(stream.0, state);
        true
    }

    /// Does something with what is open: sends a piece, gives window back.
    pub(crate) fn work(&mut self, rng: &mut SmallRng, stalls: bool) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for number in ids {
            if stalls && rng.random_bool(0.7) {
                continue;
            }
            let stream = self.streams.get_mut(&number).expect("it is open");
            if stream.owed > 0 {
                self.codec
                    .release(StreamId(number), std::mem::take(&mut stream.owed));
            }
            let is_client = self.behaviour.is_none();
            if is_client && !stream.has_ended_sending {
                let n = rng
                    .random_range(1..=30_000)
                    .min(stream.to_send - stream.sent);
                let piece = body(stream.id, stream.sent, stream.sent + n);
                stream.sent += n;
                stream.has_ended_sending = stream.sent == stream.to_send;
                let then = if stream.has_ended_sending {
                    Then::End
                } else {
                    Then::More
                };
                let data = match rng.random_bool(0.5) {
                    true => Payload::Lent(&piece),
                    false => Payload::Shared(piece.clone().into()),
                };
                *self.handed.entry(number).or_default() += n as u64;
                self.codec.send_data(StreamId(number), data, then);
            }
            if let Some(steps) = stream.answers_in.as_mut() {
                *steps = steps.saturating_sub(1);
                if *steps == 0 {
                    self.answer_late(number);
                }
            }
        }
        self.codec.fill(1 << 20, &mut self.heads);
        while self.codec.next_written().is_some() {}
    }

    /// Client: gives one up.
    pub(crate) fn cancel(&mut self, rng: &mut SmallRng) {
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let number = ids[rng.random_range(0..ids.len())];
        self.codec.reset(StreamId(number), Code::CANCEL);
        let stream = self.streams.remove(&number).expect("it is open");
        self.done.push((stream.id, "cancelled".into()));
    }

    /// Whether nothing comes of it any more, not even an answer to a ping.
    pub(crate) fn is_dead(&self) -> bool {
        self.behaviour == Some(Behaviour::Dies) && self.asked > 0
    }

    pub(crate) fn receive(&mut self, bytes: &[u8], now: Instant) {
        if self.is_dead() {
            return;
        }
        let mut input = Input::lent(bytes);
        loop {
            let event = self.codec.receive(&mut input, &mut self.heads, now);
            let event = event.expect("what the relay sends breaks no connection");
            match (event, self.behaviour) {
                (Some(event), None) => self.answered(event),
                (Some(event), Some(behaviour)) => self.asked(behaviour, event),
                (None, _) => return,
            }
        }
    }

    fn over(&mut self, number: u32, how: String) {
        if let Some(stream) = self.streams.remove(&number) {
            self.done.push((stream.id, how));
        }
    }

    /// Client's side.
    fn answered(&mut self, event: Event<'_>) {
        match event {
            Event::Head { stream, head, then } => {
                let state = self.streams.get_mut(&stream.0);
                if let Some(state) = state {
                    state.status = text(&head, Token::Status);
                    state.grpc_status = text(&head, Token::GrpcStatus);
                    if state.grpc_status.is_none() {
                        let path = head.iter().find(|field| field.name == b"x-id");
                        let told = path.map(|field| field.value.to_vec());
                        assert_eq!(told, Some(state.id.to_string().into_bytes()));
                    }
                }
                if then == Then::End {
                    self.ended(stream.0);
                }
            }
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                if let Some(state) = self.streams.get_mut(&stream.0) {
                    let expected = body(state.id, state.received, state.received + data.len());
                    assert_eq!(data.as_slice(), expected, "of exchange {}", state.id);
                    state.received += data.len();
                    state.owed += credit;
                }
                if then == Then::End {
                    self.ended(stream.0);
                }
            }
            Event::Trailers { stream, head } => {
                if let Some(state) = self.streams.get_mut(&stream.0) {
                    state.grpc_status = text(&head, Token::GrpcStatus);
                }
                self.ended(stream.0);
            }
            Event::Reset { stream, code, by } => {
                let fault = self.codec.last_fault();
                assert_eq!(by, By::Peer, "the relay sends nothing malformed: {fault:?}");
                self.over(stream.0, format!("reset {}", code.0));
            }
            Event::Goodbye { .. }
            | Event::Interim { .. }
            | Event::Pong
            | Event::TooLarge { .. }
            | Event::StreamsMax(_)
            | Event::Writable { .. } => {}
        }
    }

    fn ended(&mut self, number: u32) {
        let Some(stream) = self.streams.get(&number) else {
            return;
        };
        let how = match stream.grpc_status.as_deref() {
            Some("0") => {
                assert_eq!(stream.received, stream.to_send, "exchange {}", stream.id);
                "ok".to_owned()
            }
            Some(status) => format!("status {status}"),
            None => "no status".to_owned(),
        };
        self.over(number, how);
    }

    /// Endpoint's side.
    fn asked(&mut self, behaviour: Behaviour, event: Event<'_>) {
        match event {
            Event::Head { stream, head, then } => self.begun(behaviour, stream, &head, then),
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                let Some(state) = self.streams.get_mut(&stream.0) else {
                    return;
                };
                let expected = body(state.id, state.received, state.received + data.len());
                assert_eq!(data.as_slice(), expected, "to the endpoint of {}", state.id);
                state.received += data.len();
                state.owed += credit;
                let is_echo = matches!(behaviour, Behaviour::Echo | Behaviour::BreakInAnswer);
                if is_echo {
                    *self.handed.entry(stream.0).or_default() += data.len() as u64;
                    self.codec.send_data(stream, data, Then::More);
                }
                let breaks = match behaviour {
                    Behaviour::BreakInAnswer => state.received > 20_000,
                    Behaviour::ResetLongUploads => state.received > 70_000,
                    _ => false,
                };
                if breaks {
                    self.codec.reset(stream, Code::INTERNAL_ERROR);
                    self.streams.remove(&stream.0);
                } else if then == Then::End && behaviour == Behaviour::Late {
                    state.answers_in = Some(LATE);
                } else if then == Then::End && is_echo {
                    self.finish(stream);
                }
            }
            Event::Trailers { stream, .. } => self.finish(stream),
            Event::Reset { stream, .. } => _ = self.streams.remove(&stream.0),
            Event::Goodbye { .. }
            | Event::Interim { .. }
            | Event::Pong
            | Event::TooLarge { .. }
            | Event::StreamsMax(_)
            | Event::Writable { .. } => {}
        }
    }

    fn begun(&mut self, behaviour: Behaviour, stream: StreamId, head: &Head, then: Then) {
        self.asked += 1;
        let path = text(head, Token::Path).expect("it has a path");
        let id = path.rsplit('/').next().and_then(|id| id.parse().ok());
        let id: u32 = id.expect("it has the exchange's number");
        let mut answer = Head::new();
        answer.push(b":status", b"200", Indexing::Allowed);
        answer.push(b"content-type", b"application/grpc", Indexing::Allowed);
        match behaviour {
            Behaviour::RefuseStreams => return self.codec.reset(stream, Code::REFUSED_STREAM),
            Behaviour::ResetStreams => return self.codec.reset(stream, Code::INTERNAL_ERROR),
            Behaviour::Unavailable => {
                answer.push(b"grpc-status", b"14", Indexing::Allowed);
                self.codec
                    .send_head(stream, &answer, Then::End, &mut self.heads);
                // Nothing else of it is wanted.
                return self.codec.reset(stream, Code::NO_ERROR);
            }
            Behaviour::Silent | Behaviour::Dies | Behaviour::Late | Behaviour::ResetLongUploads => {
            }
            Behaviour::Echo
            | Behaviour::BreakInAnswer
            | Behaviour::Stuck
            | Behaviour::RefuseConnections => {
                answer.push(b"x-id", id.to_string().as_bytes(), Indexing::Allowed);
                self.codec
                    .send_head(stream, &answer, Then::More, &mut self.heads);
            }
        }
        let is_late = behaviour == Behaviour::Late && then == Then::End;
        let state = Stream {
            id,
            answers_in: is_late.then_some(LATE),
            ..Stream::default()
        };
        self.streams.insert(stream.0, state);
        let is_echo = matches!(behaviour, Behaviour::Echo | Behaviour::BreakInAnswer);
        if then == Then::End && is_echo {
            self.finish(stream);
        }
    }

    /// All of it at once.
    fn answer_late(&mut self, number: u32) {
        let stream = StreamId(number);
        let state = self.streams.get_mut(&number).expect("it is open");
        state.answers_in = None;
        let echo = body(state.id, 0, state.received);
        let mut answer = Head::new();
        answer.push(b":status", b"200", Indexing::Allowed);
        answer.push(b"x-id", state.id.to_string().as_bytes(), Indexing::Allowed);
        self.codec
            .send_head(stream, &answer, Then::More, &mut self.heads);
        *self.handed.entry(number).or_default() += echo.len() as u64;
        self.codec
            .send_data(stream, Payload::Lent(&echo), Then::More);
        self.finish(stream);
    }

    fn finish(&mut self, stream: StreamId) {
        let mut trailers = Head::new();
        trailers.push(b"grpc-status", b"0", Indexing::Allowed);
        self.codec.send_trailers(stream, &trailers, &mut self.heads);
        self.streams.remove(&stream.0);
    }
}

/// Steps before a late answer; a step takes 10 ms on the whole.
const LATE: u32 = 150;

fn text(head: &Head, token: Token) -> Option<String> {
    let value = head.get(token)?;
    Some(String::from_utf8_lossy(value).into_owned())
}
