//! A client and a server back to back, with an accountant between them who knows only frames.
//!
//! Everything is drawn from a seed: bodies, sizes, what is read and written at once, windows that
//! change in between, resets. At the end all that was not reset has arrived whole and in order,
//! and nothing is left.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::*;
use crate::{event::StreamId, input::Payload};

/// A side, with what it has sent and got.
struct Side {
    connection: Connection,
    heads: Heads,
    /// Written, and not read by the other side yet.
    wire: VecDeque<u8>,
    streams: BTreeMap<u32, Talk>,
    account: Account,
    /// Frames that it wrote, and bytes of its output that are among them.
    writing: Parser,
    audited: usize,
    /// Frames that reached it.
    reading: Parser,
    /// So that what a client sends differs from what a server does.
    salt: u32,
}

/// Frames out of bytes.
struct Parser {
    bytes: Vec<u8>,
    preface_left: usize,
}

/// One side of a stream.
#[derive(Debug, Default)]
struct Talk {
    /// How much is to be sent, and how much of it has been given to the connection.
    body: usize,
    given: usize,
    /// Of what was given, not said to have gone yet.
    waiting: usize,
    has_trailers: bool,
    is_head_sent: bool,
    is_sent: bool,
    /// Received.
    got: usize,
    is_got: bool,
    /// Received and not released.
    credit: u32,
    is_reset: bool,
}

/// What one side may send, from the frames that have reached it.
struct Account {
    connection: i64,
    initial: i64,
    /// SETTINGS of the other side that it has not acknowledged.
    unacknowledged: VecDeque<i64>,
    streams: BTreeMap<u32, i64>,
    /// The most that a window may ever be.
    connection_max: i64,
    stream_max: i64,
}

impl Parser {
    fn frames(&mut self, bytes: &[u8]) -> Vec<(FrameHeader, Vec<u8>)> {
        self.bytes.extend_from_slice(bytes);
        let preface = self.bytes.len().min(self.preface_left);
        self.preface_left -= preface;
        self.bytes.drain(..preface);
        let mut frames = Vec::new();
        while let Some(header) = self.bytes.first_chunk() {
            let header = FrameHeader::parse(*header);
            let whole = HEADER_BYTES + header.len as usize;
            if self.bytes.len() < whole {
                break;
            }
            let frame: Vec<u8> = self.bytes.drain(..whole).collect();
            frames.push((header, frame[HEADER_BYTES..].to_vec()));
        }
        frames
    }
}

impl Account {
    fn new(limits: &Limits) -> Self {
        Self {
            connection: 65_535,
            initial: 65_535,
            unacknowledged: VecDeque::new(),
            streams: BTreeMap::new(),
            connection_max: i64::from(limits.connection_window),
            stream_max: i64::from(limits.stream_window.max(65_535)),
        }
    }

    /// A frame that its side wrote.
    fn wrote(&mut self, header: FrameHeader) {
        match header.kind {
            Kind::Settings if header.has(ACK) => {
                let initial = self.unacknowledged.pop_front().expect("it was asked");
                for window in self.streams.values_mut() {
                    *window += initial - self.initial;
                }
                self.initial = initial;
            }
            Kind::Headers => {
                self.streams.entry(header.stream).or_insert(self.initial);
            }
            Kind::Data => {
                let len = i64::from(header.len);
                let window = self.streams.get_mut(&header.stream).expect("it was opened");
                *window -= len;
                self.connection -= len;
                assert!(len == 0 || *window >= 0, "over the stream's window");
                assert!(self.connection >= 0, "over the connection's window");
                assert!(header.len <= 16_384);
            }
            Kind::Settings
            | Kind::Ping
            | Kind::Continuation
            | Kind::Priority
            | Kind::PushPromise
            | Kind::RstStream
            | Kind::GoAway
            | Kind::WindowUpdate
            | Kind::Unknown => {}
        }
    }

    /// A frame that reached it.
    fn read(&mut self, header: FrameHeader, payload: &[u8]) {
        if header.kind == Kind::WindowUpdate {
            let increment = i64::from(word(payload));
            assert!(increment > 0);
            if header.stream == 0 {
                self.connection += increment;
                assert!(
                    self.connection <= self.connection_max,
                    "credit from nowhere"
                );
            } else if let Some(window) = self.streams.get_mut(&header.stream) {
                *window += increment;
                assert!(*window <= self.stream_max, "credit from nowhere");
            }
        } else if header.kind == Kind::Settings && !header.has(ACK) {
            let settings = payload.chunks(6).map(|one| (one[1], word(&one[2..])));
            let mut windows = settings.filter(|(id, _)| *id == 4).map(|(_, value)| value);
            let before = self.unacknowledged.back().copied();
            let before = before.unwrap_or(self.initial);
            let initial = windows.next_back().map_or(before, i64::from);
            self.stream_max = self.stream_max.max(initial);
            self.unacknowledged.push_back(initial);
        } else if header.kind == Kind::Headers {
            self.streams.entry(header.stream).or_insert(self.initial);
        }
    }
}

impl Side {
    fn new(role: Role, limits: &Limits) -> Self {
        Self {
            connection: Connection::new(role, limits, start()),
            heads: Heads::default(),
            wire: VecDeque::new(),
            streams: BTreeMap::new(),
            account: Account::new(limits),
            writing: Parser {
                bytes: Vec::new(),
                preface_left: if role == Role::Client {
                    PREFACE.len()
                } else {
                    0
                },
            },
            audited: 0,
            reading: Parser {
                bytes: Vec::new(),
                preface_left: if role == Role::Server {
                    PREFACE.len()
                } else {
                    0
                },
            },
            salt: u32::from(role == Role::Server),
        }
    }

    /// Shows the accountant what has come into the output.
    fn audit(&mut self) {
        let mut places = [IoSlice::new(&[]); 1_024];
        let used = self.connection.output().slices(&mut places);
        let mut skipped = self.audited;
        for place in &places[..used] {
            let old = skipped.min(place.len());
            skipped -= old;
            for (header, _) in self.writing.frames(&place[old..]) {
                self.account.wrote(header);
            }
        }
        self.audited = self.connection.output().len();
    }

    /// Puts up to `n` bytes of the output on the wire.
    fn write(&mut self, n: usize) {
        self.connection.fill(n.max(1), &mut self.heads);
        while let Some(event) = self.connection.next_written() {
            let Event::Writable { stream, sent } = event else {
                panic!("{event:?}");
            };
            let talk = self.streams.get_mut(&stream.0).expect("it is ours");
            talk.waiting = talk.waiting.checked_sub(sent as usize).expect("it waited");
        }
        self.audit();
        let bytes = taken(self.connection.output(), n);
        self.audited -= bytes.len();
        self.wire.extend(bytes);
    }

    /// Gives a stream's next piece, of up to `n` bytes.
    fn give(&mut self, id: u32, n: usize, is_shared: bool) {
        let talk = self.streams.get_mut(&id).expect("it was opened");
        let n = n.min(talk.body - talk.given);
        let bytes: Vec<u8> = (talk.given..talk.given + n)
            .map(|at| content(id ^ self.salt, at))
            .collect();
        talk.given += n;
        let is_end = talk.given == talk.body;
        let then = if is_end && !talk.has_trailers {
            Then::End
        } else {
            Then::More
        };
        let data = match is_shared {
            true => Payload::Shared(Bytes::from(bytes)),
            false => Payload::Lent(&bytes),
        };
        let sent = self.connection.send_data(StreamId(id), data, then);
        talk.waiting += n - sent as usize;
        if is_end {
            talk.is_sent = true;
            if talk.has_trailers {
                let head = head(&[("grpc-status", "0")]);
                self.connection
                    .send_trailers(StreamId(id), &head, &mut self.heads);
            }
        }
        self.audit();
    }

    fn take(&mut self, event: &Event<'_>) {
        match event {
            Event::Head { stream, then, .. } => {
                let talk = self.streams.entry(stream.0).or_default();
                talk.is_got = *then == Then::End;
            }
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                let talk = self.streams.get_mut(&stream.0).expect("it was opened");
                assert!(
                    !talk.is_got && !talk.is_reset,
                    "nothing comes behind the end"
                );
                for (n, byte) in data.as_slice().iter().enumerate() {
                    assert_eq!(
                        *byte,
                        content(stream.0 ^ 1 ^ self.salt, talk.got + n),
                        "in order"
                    );
                }
                talk.got += data.len();
                talk.credit += credit;
                talk.is_got = *then == Then::End;
            }
            Event::Trailers { stream, .. } => {
                let talk = self.streams.get_mut(&stream.0).expect("it was opened");
                assert!(!talk.is_got);
                talk.is_got = true;
            }
            Event::Reset { stream, code, by } => {
                assert_eq!((*code, *by), (Code::CANCEL, By::Peer));
                self.streams
                    .get_mut(&stream.0)
                    .expect("it was opened")
                    .is_reset = true;
            }
            Event::StreamsMax(_) => {}
            Event::TooLarge { .. }
            | Event::Interim { .. }
            | Event::Writable { .. }
            | Event::Goodbye { .. }
            | Event::Pong => {
                panic!("{event:?}");
            }
        }
    }
}

impl Side {
    fn open(&mut self, talk: Talk) {
        let head = head(&request("POST"));
        let is_empty = talk.body == 0 && !talk.has_trailers;
        let then = if is_empty { Then::End } else { Then::More };
        if let Ok(stream) = self.connection.open(&head, then, &mut self.heads) {
            let is_sent = is_empty;
            self.streams.insert(
                stream.0,
                Talk {
                    is_sent,
                    is_head_sent: true,
                    ..talk
                },
            );
        }
        self.audit();
    }

    fn answer(&mut self, id: u32, talk: Talk) {
        let is_empty = talk.body == 0 && !talk.has_trailers;
        let then = if is_empty { Then::End } else { Then::More };
        let head = head(&[(":status", "200")]);
        self.connection
            .send_head(StreamId(id), &head, then, &mut self.heads);
        let it = self.streams.get_mut(&id).expect("it asked");
        (it.body, it.has_trailers) = (talk.body, talk.has_trailers);
        (it.is_head_sent, it.is_sent) = (true, is_empty);
        self.audit();
    }

    fn release(&mut self, id: u32, credit: u32) {
        let talk = self.streams.get_mut(&id).expect("it was opened");
        let credit = credit.min(talk.credit);
        talk.credit -= credit;
        self.connection.release(StreamId(id), credit);
        self.audit();
    }

    fn reset(&mut self, id: u32) {
        if self.connection.has_stream(StreamId(id)) {
            self.connection.reset(StreamId(id), Code::CANCEL);
            self.streams.get_mut(&id).expect("it was opened").is_reset = true;
        }
        self.audit();
    }

    /// The streams for which `is_wanted`.
    fn ids(&self, is_wanted: impl Fn(&Talk) -> bool) -> Vec<u32> {
        let streams = self.streams.iter();
        let wanted = streams.filter(|(_, talk)| !talk.is_reset && is_wanted(talk));
        wanted.map(|(id, _)| *id).collect()
    }

    fn unanswered(&self) -> Vec<u32> {
        self.ids(|talk| !talk.is_head_sent)
    }

    fn unsent(&self) -> Vec<u32> {
        self.ids(|talk| talk.is_head_sent && !talk.is_sent)
    }
}

fn talk(rng: &mut Rng) -> Talk {
    let body = match rng.below(4) {
        0 => 0,
        1 => rng.below(100),
        2 => rng.below(5_000),
        _ => rng.below(100_000),
    };
    Talk {
        body,
        has_trailers: rng.below(2) == 0,
        ..Talk::default()
    }
}

fn pick(rng: &mut Rng, ids: &[u32]) -> Option<u32> {
    (!ids.is_empty()).then(|| ids[rng.below(ids.len())])
}

/// Windows that streams have, some of them cruel.
const WINDOWS: [u32; 6] = [0, 1, 100, 16_384, 65_535, 300_000];

/// One random action of one side, `a`, or between both.
fn step(rng: &mut Rng, a: &mut Side, b: &mut Side, streams: usize) {
    let is_shared = rng.below(2) == 0;
    match rng.below(20) {
        0..2 if a.salt == 0 && a.streams.len() < streams => a.open(talk(rng)),
        2..4 => {
            if let Some(id) = pick(rng, &a.unanswered()) {
                a.answer(id, talk(rng));
            }
        }
        4..8 => {
            if let Some(id) = pick(rng, &a.unsent()) {
                let n = 1 + rng.below(30_000);
                a.give(id, n, is_shared);
            }
        }
        8..11 => {
            let n = [1, 10, 1_000, 100_000][rng.below(4)];
            a.write(1 + rng.below(n));
        }
        11..15 => {
            let n = [1, 10, 1_000, 100_000][rng.below(4)];
            deliver(a, b, 1 + rng.below(n), is_shared);
        }
        15..18 => {
            if let Some(id) = pick(rng, &a.ids(|talk| talk.credit > 0)) {
                let credit = u32::try_from(1 + rng.below(50_000)).unwrap();
                a.release(id, credit);
            }
        }
        18 if rng.below(4) == 0 => {
            let bytes = WINDOWS[rng.below(WINDOWS.len())];
            a.connection.set_stream_window(bytes);
            a.audit();
        }
        19 if rng.below(25) == 0 => {
            if let Some(id) = pick(rng, &a.ids(|_| true)) {
                a.reset(id);
            }
        }
        _ => {}
    }
}

/// Everything that is left is sent, read and released.
fn finish(client: &mut Side, server: &mut Side) {
    for side in [&mut *client, &mut *server] {
        side.connection.set_stream_window(100_000);
    }
    for _ in 0..10_000 {
        for id in server.unanswered() {
            server.answer(id, Talk::default());
        }
        for side in [&mut *client, &mut *server] {
            for id in side.unsent() {
                side.give(id, 10_000, false);
            }
            for id in side.ids(|talk| talk.credit > 0) {
                side.release(id, u32::MAX);
            }
            side.write(100_000);
        }
        deliver(client, server, usize::MAX, false);
        deliver(server, client, usize::MAX, false);
        let is_done = |side: &mut Side| {
            let is_silent = side.wire.is_empty() && side.connection.output().is_empty();
            is_silent && side.connection.is_idle()
        };
        if is_done(client) && is_done(server) {
            return;
        }
    }
    panic!("it does not end: {:?} {:?}", client.streams, server.streams);
}

/// How many streams have come to their end unharmed.
#[track_caller]
fn check(seed: u64, limits: &Limits, steps: usize, streams: usize) -> usize {
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut client = Side::new(Role::Client, limits);
    let mut server = Side::new(Role::Server, limits);
    for _ in 0..steps {
        match rng.below(2) {
            0 => step(&mut rng, &mut client, &mut server, streams),
            _ => step(&mut rng, &mut server, &mut client, streams),
        }
    }
    finish(&mut client, &mut server);
    let mut whole = 0;
    for (id, talk) in &client.streams {
        let Some(other) = server.streams.get(id) else {
            assert!(talk.is_reset, "stream {id} was lost");
            continue;
        };
        if talk.is_reset || other.is_reset {
            continue;
        }
        whole += 1;
        assert!(talk.is_got && other.is_got, "stream {id} has ended");
        assert_eq!(
            (talk.got, other.got),
            (other.body, talk.body),
            "stream {id} is whole"
        );
        assert_eq!(
            (talk.waiting, other.waiting),
            (0, 0),
            "stream {id} has gone"
        );
    }
    for side in [client, server] {
        assert_eq!(side.connection.waiting_bytes(), 0);
        // All that was used came back, but for what is collected.
        assert!(side.account.connection > side.account.connection_max / 2);
    }
    whole
}

fn calm() -> Limits {
    let unlimited = super::super::Rate {
        burst: u32::MAX,
        per_second: 0,
    };
    Limits {
        resets: unlimited,
        idle_frames: unlimited,
        ..Limits::of_mesh()
    }
}

#[test]
fn what_is_sent_arrives_within_windows_that_change() {
    let whole: usize = (0..60).map(|seed| check(seed, &calm(), 2_000, 40)).sum();
    assert!(whole > 1_000, "{whole}");
}

#[test]
fn small_windows_only_take_longer() {
    for stream_window in [1, 2, 1_000] {
        let limits = Limits {
            stream_window,
            connection_window: 65_535,
            ..calm()
        };
        let whole: usize = (100..110).map(|seed| check(seed, &limits, 2_000, 10)).sum();
        assert!(whole > 40, "{whole}");
    }
}

#[test]
fn a_thousand_streams_go_beside_each_other() {
    let whole = check(200, &calm(), 12_000, 1_000);
    assert!(whole > 300, "{whole}");
}

/// Of a stream's body at `at`; sides differ, streams too.
fn content(id: u32, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ id as usize).to_le_bytes()[0]
}

/// Moves up to `n` bytes from one side's wire into the other.
fn deliver(from: &mut Side, to: &mut Side, n: usize, is_shared: bool) {
    let n = n.min(from.wire.len());
    let bytes: Bytes = from.wire.drain(..n).collect();
    for (header, payload) in to.reading.frames(&bytes) {
        to.account.read(header, &payload);
    }
    let mut input = match is_shared {
        true => Input::shared(&bytes),
        false => Input::lent(&bytes),
    };
    loop {
        let received = to.connection.receive(&mut input, &mut to.heads, start());
        match received.expect("nothing is wrong") {
            Some(event) => to.take(&event),
            None => break,
        }
    }
    to.audit();
}
