//! Frames and bytes for one connection of HTTP/2, and what is sent on it between them.
//!
//! No panic; memory within its bounds; streams are told in order; what is written are whole frames
//! that keep the order of RFC 9113 section 5.1; and cut into single bytes the input gives the
//! same.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IoSlice,
    time::Instant,
};

use heddle_relay::{
    event::{Code, Event, StreamId, Then},
    h2::{Connection, Limits, Rate, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
};

use crate::script::Script;

pub(crate) fn run(input: &[u8]) {
    let whole = play(input, usize::MAX);
    let cut = play(input, 1);
    assert_eq!(whole.told, cut.told);
    assert_eq!(whole.written, cut.written);
}

/// A connection, and what it did.
struct Stage {
    connection: Connection,
    heads: Heads,
    now: Instant,
    told: Vec<String>,
    written: Vec<u8>,
    /// Of each stream, whether its received half is over.
    received: BTreeMap<u32, bool>,
    /// Streams whose head we sent.
    answered: BTreeSet<u32>,
    /// Those whose end we did not.
    sending: BTreeSet<u32>,
    is_broken: bool,
}

fn play(input: &[u8], cut: usize) -> Stage {
    let mut script = Script::new(input);
    let flags = script.byte();
    let role = if flags & 1 == 0 {
        Role::Server
    } else {
        Role::Client
    };
    let mut stage = Stage::new(role);
    if flags & 2 == 0 {
        if role == Role::Server {
            stage.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", cut);
        }
        stage.frame(0x4, 0, 0, &[], cut);
        stage.frame(0x4, 1, 0, &[], cut);
    }
    while !script.is_over() && !stage.is_broken {
        stage.step(&mut script, cut);
        assert!(stage.connection.memory_bytes() <= 256 * 1024);
    }
    stage.drain(usize::MAX);
    frames(&stage.written, role, stage.is_broken);
    stage
}

impl Stage {
    fn new(role: Role) -> Self {
        let rate = Rate {
            burst: 40,
            per_second: 1,
        };
        let limits = Limits {
            streams_max: 3,
            list_bytes_max: 600,
            fields_max: 10,
            stream_window: 500,
            connection_window: 65_535,
            interims_max: 2,
            resets: rate,
            idle_frames: rate,
            output_bytes: 2_000,
            ..Limits::of_mesh()
        };
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        Self {
            connection: Connection::new(role, &limits, now),
            heads: Heads::default(),
            now,
            told: Vec::new(),
            written: Vec::new(),
            received: BTreeMap::new(),
            answered: BTreeSet::new(),
            sending: BTreeSet::new(),
            is_broken: false,
        }
    }

    fn step(&mut self, script: &mut Script<'_>, cut: usize) {
        let op = script.byte() % 16;
        let stream = u32::from(script.byte() % 8);
        let id = StreamId(stream);
        let then = if script.byte().is_multiple_of(2) {
            Then::More
        } else {
            Then::End
        };
        match op {
            0..6 => {
                let (kind, flags) = (script.byte() % 11, script.byte());
                self.frame(kind, flags, stream, script.piece(), cut);
            }
            6 => self.feed(script.piece(), cut),
            7 => {
                let head = head(&[(":method", "POST"), (":path", "/"), ("a", "b")]);
                let opened = self.connection.open(&head, then, &mut self.heads);
                if let Ok(opened) = opened {
                    self.received.insert(opened.0, false);
                    self.begin(opened, then);
                }
            }
            8 if self.can_answer(id) => {
                let head = head(&[(":status", "200"), ("a", "b")]);
                self.connection.send_head(id, &head, then, &mut self.heads);
                self.begin(id, then);
            }
            9 if self.sending.contains(&stream) => {
                let bytes = vec![7; script.number() as usize % 5_000];
                self.connection.send_data(id, Payload::Lent(&bytes), then);
                if then == Then::End {
                    self.sending.remove(&stream);
                }
            }
            10 if self.sending.remove(&stream) => {
                let head = head(&[("grpc-status", "0")]);
                self.connection.send_trailers(id, &head, &mut self.heads);
            }
            8..11 => {}
            11 => {
                if self.connection.has_stream(id) {
                    self.received.insert(stream, true);
                }
                self.connection.reset(id, Code::CANCEL);
            }
            12 => self.connection.release(id, script.number()),
            13 => {
                self.connection.fill(2_000, &mut self.heads);
                while let Some(event) = self.connection.next_written() {
                    self.told.push(format!("{event:?}"));
                }
            }
            14 => self.drain(script.number() as usize),
            _ => match script.byte() % 5 {
                0 => self.connection.ping(),
                1 => self.connection.goodbye_soon(),
                2 => self.connection.goodbye(Code::NO_ERROR),
                3 => {
                    let window = script.number();
                    self.connection.set_stream_window(window);
                }
                _ => self.connection.shrink(),
            },
        }
    }

    fn begin(&mut self, stream: StreamId, then: Then) {
        self.answered.insert(stream.0);
        if then == Then::More {
            self.sending.insert(stream.0);
        }
    }

    fn can_answer(&self, stream: StreamId) -> bool {
        let is_asked = self.received.contains_key(&stream.0);
        is_asked && !self.answered.contains(&stream.0)
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8], cut: usize) {
        let len = u32::try_from(payload.len()).expect("an input is short");
        let mut bytes = len.to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.feed(&bytes, cut);
    }

    fn feed(&mut self, bytes: &[u8], cut: usize) {
        for piece in bytes.chunks(cut.min(bytes.len()).max(1)) {
            let mut input = Input::lent(piece);
            loop {
                let received = self
                    .connection
                    .receive(&mut input, &mut self.heads, self.now);
                match received {
                    Ok(None) => break,
                    Ok(Some(event)) => take(&mut self.received, &mut self.told, &event),
                    Err(broken) => {
                        let again = self
                            .connection
                            .receive(&mut input, &mut self.heads, self.now);
                        assert_eq!(again.err(), Some(broken));
                        self.told.push(broken.reason.to_owned());
                        self.is_broken = true;
                        return;
                    }
                }
            }
        }
    }

    /// Takes up to `n` bytes of the output.
    fn drain(&mut self, n: usize) {
        let mut left = n;
        while left > 0 && !self.connection.output().is_empty() {
            let mut places = [IoSlice::new(&[]); 4];
            let used = self.connection.output().slices(&mut places);
            let places: Vec<&[u8]> = places[..used].iter().map(|place| &**place).collect();
            let mut bytes = places.concat();
            bytes.truncate(left);
            left -= bytes.len();
            self.connection.output().consume(bytes.len());
            self.written.extend_from_slice(&bytes);
        }
    }
}

/// Each stream is told as a head, pieces, and one end.
fn take(received: &mut BTreeMap<u32, bool>, told: &mut Vec<String>, event: &Event<'_>) {
    let (stream, is_over) = match event {
        Event::Head { stream, then, .. }
        | Event::TooLarge { stream, then, .. }
        | Event::Data { stream, then, .. } => (*stream, *then == Then::End),
        Event::Interim { stream, .. } => (*stream, false),
        Event::Trailers { stream, .. } | Event::Reset { stream, .. } => (*stream, true),
        Event::Writable { .. } | Event::Goodbye { .. } | Event::Pong | Event::StreamsMax(_) => {
            told.push(format!("{event:?}"));
            return;
        }
    };
    let was_over = received.insert(stream.0, is_over);
    let is_reset = matches!(event, Event::Reset { .. });
    assert!(
        was_over != Some(true) || is_reset,
        "behind its end: {event:?}"
    );
    if let Event::Data { data, then, .. } = event {
        // Pieces become one: where they are cut does not matter.
        told.extend(
            data.as_slice()
                .iter()
                .map(|byte| format!("{} {byte}", stream.0)),
        );
        if *then == Then::More {
            return;
        }
        told.push(format!("{} end", stream.0));
        return;
    }
    told.push(format!("{event:?}"));
}

/// Checks what was written.
fn frames(mut bytes: &[u8], role: Role, is_broken: bool) {
    if role == Role::Client {
        bytes = &bytes[24..];
    }
    let mut over = BTreeMap::new();
    let mut in_block = None;
    let mut last = 0;
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = *header;
        let len = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        let stream = u32::from_be_bytes([s1, s2, s3, s4]);
        bytes = &rest[len..];
        last = kind;
        assert_eq!(
            in_block.is_some(),
            kind == 0x9,
            "a header block is in one piece"
        );
        assert!(in_block.is_none_or(|of| of == stream));
        if matches!(kind, 0x1 | 0x9) {
            in_block = (flags & 0x4 == 0).then_some(stream);
        }
        if matches!(kind, 0x0 | 0x1) {
            assert_eq!(over.get(&stream), None, "behind its end");
        }
        if kind == 0x3 || (matches!(kind, 0x0 | 0x1) && flags & 0x1 != 0) {
            over.insert(stream, ());
        }
    }
    assert!(bytes.is_empty(), "whole frames");
    assert!(!is_broken || last == 0x7, "the last word is GOAWAY");
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}
