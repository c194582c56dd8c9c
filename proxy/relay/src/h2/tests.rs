//! Two connections back to back, raw frames against one, and what may never happen.

mod attacks;
mod deadlines;
mod malformed;
mod messages;
mod pair;
mod sending;
mod settings;
mod streams;
mod upgrades;

use std::{io::IoSlice, time::Instant};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    Connection, Limits, Role,
    frame::{ACK, END_HEADERS, END_STREAM, FrameHeader, HEADER_BYTES, Kind, PREFACE, word},
};
use crate::{
    event::{Broken, By, Code, Event, Then},
    head::{Head, Heads, Indexing},
    input::Input,
    output::Output,
    token::Token,
};

/// Some instant: nothing depends on which.
#[expect(clippy::disallowed_methods, reason = "the one clock of these tests")]
pub(super) fn start() -> Instant {
    Instant::now()
}

/// Choices that come from a seed.
pub(super) struct Rng(StdRng);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0.random_range(0..n)
    }
}

/// A connection under raw frames.
struct Probe {
    connection: Connection,
    heads: Heads,
    now: Instant,
    /// What came, in words.
    events: Vec<String>,
    broken: Option<Broken>,
}

impl Probe {
    /// With settings exchanged, and what it said until then forgotten.
    fn new(role: Role, limits: &Limits) -> Self {
        let mut probe = Self::fresh(role, limits);
        if role == Role::Server {
            probe.feed(PREFACE);
        }
        probe.feed(&frame(Kind::Settings, 0, 0, &[]));
        probe.feed(&frame(Kind::Settings, ACK, 0, &[]));
        probe.take_output();
        probe
    }

    fn fresh(role: Role, limits: &Limits) -> Self {
        let now = start();
        Self {
            connection: Connection::new(role, limits, now),
            heads: Heads::default(),
            now,
            events: Vec::new(),
            broken: None,
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let mut input = Input::lent(bytes);
        loop {
            match self
                .connection
                .receive(&mut input, &mut self.heads, self.now)
            {
                Ok(None) => return,
                Ok(Some(event)) => self.note(&event),
                Err(broken) => {
                    assert!(!broken.reason.is_empty());
                    self.broken = Some(broken);
                    return;
                }
            }
        }
    }

    /// Pieces of one body become one, so that it does not matter how they came.
    fn note(&mut self, event: &Event<'_>) {
        let line = shown(event);
        if let Event::Data { stream, data, .. } = event
            && let Some(last) = self.events.last_mut()
            && let Some(so_far) = last.strip_prefix(&format!("{} data ", stream.0))
            && let Ok(so_far) = so_far.parse::<usize>()
        {
            let end = if line.ends_with("end") { " end" } else { "" };
            *last = format!("{} data {}{end}", stream.0, so_far + data.len());
            return;
        }
        self.events.push(line);
    }

    fn take_output(&mut self) -> Vec<u8> {
        taken(self.connection.output(), usize::MAX)
    }

    fn open(&mut self, method: &str, then: Then) {
        let head = head(&request(method));
        let opened = self.connection.open(&head, then, &mut self.heads);
        assert!(opened.is_ok());
        self.connection.fill(usize::MAX, &mut self.heads);
    }
}

/// Takes up to `n` bytes.
fn taken(output: &mut Output, n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut places = [IoSlice::new(&[]); 8];
        let used = output.slices(&mut places);
        let before = bytes.len();
        for place in &places[..used] {
            bytes.extend_from_slice(place);
        }
        bytes.truncate(n);
        let taken = bytes.len() - before;
        output.consume(taken);
        if taken == 0 {
            return bytes;
        }
    }
}

fn request(method: &str) -> [(&str, &str); 4] {
    [
        (":method", method),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ]
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn frame(kind: Kind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = super::frame::header(kind, flags, stream, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn words(kind: Kind, flags: u8, stream: u32, words: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    frame(kind, flags, stream, &bytes)
}

/// Literals without indexing or Huffman coding, so that no table is involved.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for part in [name, value] {
            match u8::try_from(part.len()) {
                Ok(len @ 0..127) => block.push(len),
                _ => {
                    let more = u16::try_from(part.len() - 127).unwrap();
                    let [low, high] = (more << 1).to_le_bytes();
                    assert!(high < 128);
                    block.extend_from_slice(&[127, 0x80 | (low >> 1), high]);
                }
            }
            block.extend_from_slice(part.as_bytes());
        }
    }
    block
}

/// A whole header block in one frame.
fn headers(stream: u32, then: Then, fields: &[(&str, &str)]) -> Vec<u8> {
    let flags = match then {
        Then::End => END_STREAM,
        Then::More => 0,
    };
    frame(Kind::Headers, END_HEADERS | flags, stream, &block(fields))
}

fn shown(event: &Event<'_>) -> String {
    let end = |then: &Then| match then {
        Then::End => " end",
        Then::More => "",
    };
    match event {
        Event::Head { stream, head, then } => {
            let text = |token| head.get(token).map(String::from_utf8_lossy);
            let what = text(Token::Method).or(text(Token::Status)).unwrap();
            format!("{} {what}{}", stream.0, end(then))
        }
        Event::TooLarge { stream, then, .. } => format!("{} too large{}", stream.0, end(then)),
        Event::Interim { stream, .. } => format!("{} interim", stream.0),
        Event::Data {
            stream, data, then, ..
        } => format!("{} data {}{}", stream.0, data.len(), end(then)),
        Event::Trailers { stream, .. } => format!("{} trailers", stream.0),
        Event::Reset { stream, code, by } => {
            let by = match by {
                By::Peer => "peer",
                By::Us => "us",
            };
            format!("{} {} by {by}", stream.0, name(*code))
        }
        Event::Writable { stream, sent } => format!("{} sent {sent}", stream.0),
        Event::Goodbye { last, code } => format!("goodbye {} {}", last.0, name(*code)),
        Event::Pong => "pong".to_owned(),
        Event::StreamsMax(max) => format!("streams {max}"),
    }
}

/// Frames in words, with a `>`.
fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let header = FrameHeader::parse(*header);
        let (payload, rest) = rest.split_at(header.len as usize);
        bytes = rest;
        let of = header.stream;
        lines.push(match header.kind {
            Kind::RstStream => format!("> RST {of} {}", name(Code(word(payload)))),
            Kind::GoAway => format!(
                "> GOAWAY {} {}",
                word(payload),
                name(Code(word(&payload[4..])))
            ),
            Kind::WindowUpdate => format!("> WINDOW {of} {}", word(payload)),
            Kind::Data => {
                let end = if header.has(END_STREAM) { " end" } else { "" };
                format!("> DATA {of} {}{end}", payload.len())
            }
            Kind::Headers => {
                let end = if header.has(END_STREAM) { " end" } else { "" };
                format!("> HEADERS {of}{end}")
            }
            Kind::Settings
            | Kind::Ping
            | Kind::Continuation
            | Kind::Priority
            | Kind::PushPromise
            | Kind::Unknown => {
                let ack = matches!(header.kind, Kind::Settings | Kind::Ping) && header.has(ACK);
                format!("> {:?} {of}{}", header.kind, if ack { " ack" } else { "" })
            }
        });
    }
    assert!(bytes.is_empty(), "whole frames");
    lines
}

fn name(code: Code) -> &'static str {
    match code {
        Code::NO_ERROR => "NO_ERROR",
        Code::PROTOCOL_ERROR => "PROTOCOL_ERROR",
        Code::INTERNAL_ERROR => "INTERNAL_ERROR",
        Code::FLOW_CONTROL_ERROR => "FLOW_CONTROL_ERROR",
        Code::SETTINGS_TIMEOUT => "SETTINGS_TIMEOUT",
        Code::STREAM_CLOSED => "STREAM_CLOSED",
        Code::FRAME_SIZE_ERROR => "FRAME_SIZE_ERROR",
        Code::REFUSED_STREAM => "REFUSED_STREAM",
        Code::CANCEL => "CANCEL",
        Code::COMPRESSION_ERROR => "COMPRESSION_ERROR",
        Code::ENHANCE_YOUR_CALM => "ENHANCE_YOUR_CALM",
        _ => "another code",
    }
}
