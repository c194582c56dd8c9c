//! Bytes of a client: ordinary frames drawn from a seed, and faults.

use heddle_relay::{
    head::{Head, Indexing},
    hpack::Encoder,
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// What a client sends.
pub(crate) struct Script {
    pub(crate) bytes: Vec<u8>,
    /// On which the fault is, if it is on one.
    pub(crate) stream: u32,
}

/// A client that does nothing wrong, until a fault.
pub(crate) struct Client {
    rng: StdRng,
    encoder: Encoder,
    bytes: Vec<u8>,
    next: u32,
    /// Streams whose request has not ended.
    open: Vec<u32>,
    body_bytes: usize,
}

/// Appends what is wrong; on which stream it is.
pub(crate) type Fault = fn(&mut Client) -> u32;

pub(crate) fn ordinary(seed: u64) -> Script {
    let client = Client::new(seed);
    Script {
        bytes: client.bytes,
        stream: 0,
    }
}

pub(crate) fn with_fault(seed: u64, fault: Fault) -> Script {
    let mut client = Client::new(seed);
    let stream = fault(&mut client);
    Script {
        bytes: client.bytes,
        stream,
    }
}

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const PRIORITY: u8 = 0x2;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const PUSH_PROMISE: u8 = 0x5;
const PING: u8 = 0x6;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const CONTINUATION: u8 = 0x9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const WITH_PRIORITY: u8 = 0x20;

impl Client {
    /// Has said hello, and up to twenty things after it.
    fn new(seed: u64) -> Self {
        let mut client = Self {
            rng: StdRng::seed_from_u64(seed),
            encoder: Encoder::new(),
            bytes: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            next: 1,
            open: Vec::new(),
            body_bytes: 0,
        };
        client.settings(&[]);
        client.frame(SETTINGS, 1, 0, &[]);
        for _ in 0..client.below(20) {
            client.step();
        }
        client
    }

    fn step(&mut self) {
        match self.below(12) {
            0..3 => {
                let fields = self.fields();
                let is_end = self.below(3) == 0;
                self.open(&fields, is_end);
            }
            3..6 => {
                let (len, is_end) = (self.below(3_000), self.below(3) == 0);
                self.data(len, is_end);
            }
            6 => self.trailers(),
            7 => {
                let payload = self.rng.random::<[u8; 8]>();
                self.frame(PING, 0, 0, &payload);
            }
            8 => {
                let values = [(1, 100), (1, 4_096), (4, 70_000), (5, 20_000), (0x99, 7)];
                let value = values[self.below(values.len())];
                self.settings(&[value]);
            }
            9 => {
                let stream = self.some_open().unwrap_or(0);
                self.words(WINDOW_UPDATE, stream, &[100]);
            }
            10 => self.frame(PRIORITY, 0, self.next + 10, &[0, 0, 0, 1, 9]),
            _ => {
                let stream = self.next;
                self.frame(0x77, 0xff, stream, &[1, 2, 3]);
            }
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn some_open(&mut self) -> Option<u32> {
        let at = self.open.len().checked_sub(1)?;
        let at = self.below(at + 1);
        Some(self.open[at])
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let len = u32::try_from(payload.len()).expect("it is short");
        self.bytes.extend_from_slice(&len.to_be_bytes()[1..]);
        self.bytes.extend_from_slice(&[kind, flags]);
        self.bytes.extend_from_slice(&stream.to_be_bytes());
        self.bytes.extend_from_slice(payload);
    }

    fn words(&mut self, kind: u8, stream: u32, words: &[u32]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.frame(kind, 0, stream, &payload);
    }

    fn settings(&mut self, settings: &[(u16, u32)]) {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend_from_slice(&id.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(SETTINGS, 0, 0, &payload);
    }

    fn block(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut head = Head::new();
        for (name, value) in fields {
            let indexing = match self.below(4) {
                0 => Indexing::Never,
                _ => Indexing::Allowed,
            };
            head.push(name.as_bytes(), value.as_bytes(), indexing);
        }
        let mut block = Vec::new();
        self.encoder.encode(&head, &mut block);
        block
    }

    /// Those of a request.
    fn fields(&mut self) -> Vec<(&'static str, &'static str)> {
        let mut fields = REQUEST.to_vec();
        for _ in 0..self.below(6) {
            let more = [
                ("accept", "*/*"),
                ("te", "trailers"),
                ("x-a", ""),
                ("x-a", "b"),
                ("x-b", "some text, and \"more\" of it"),
                ("cookie", "a=b"),
                ("user-agent", "a client/1.0"),
            ];
            let at = self.below(more.len());
            fields.push(more[at]);
        }
        fields
    }

    /// Sends a header block on a stream, with padding, a priority and in pieces as it happens.
    fn headers(&mut self, stream: u32, fields: &[(&str, &str)], is_end: bool) {
        let block = self.block(fields);
        let mut flags = if is_end { END_STREAM } else { 0 };
        let mut payload = Vec::new();
        let padding = self.below(4);
        if padding > 0 {
            flags |= PADDED;
            payload.push(u8::try_from(padding).expect("it is small"));
        }
        if self.below(4) == 0 {
            flags |= WITH_PRIORITY;
            payload.extend_from_slice(&[0x80, 0, 0, 0, 7]);
        }
        let (first, rest) = match self.below(4) {
            0 => block.split_at(self.below(block.len() + 1)),
            _ => (&block[..], &[][..]),
        };
        payload.extend_from_slice(first);
        payload.extend_from_slice(&vec![0; padding]);
        if rest.is_empty() {
            self.frame(HEADERS, flags | END_HEADERS, stream, &payload);
            return;
        }
        self.frame(HEADERS, flags, stream, &payload);
        let (one, two) = rest.split_at(self.below(rest.len()));
        if !one.is_empty() {
            self.frame(CONTINUATION, 0, stream, one);
        }
        self.frame(CONTINUATION, END_HEADERS, stream, two);
    }

    /// A new stream, perhaps with numbers left out before it.
    fn open(&mut self, fields: &[(&str, &str)], is_end: bool) -> u32 {
        let stream = self.next + 2 * u32::from(self.below(3) == 0);
        self.next = stream + 2;
        self.headers(stream, fields, is_end);
        if !is_end {
            self.open.push(stream);
        }
        stream
    }

    /// A stream whose request has not ended.
    fn post(&mut self) -> u32 {
        self.open(&REQUEST, false)
    }

    /// One whose request has.
    fn get(&mut self) -> u32 {
        self.open(&REQUEST, true)
    }

    /// All together stay below every window.
    fn data(&mut self, len: usize, is_end: bool) {
        let Some(stream) = self.some_open() else {
            return;
        };
        if self.body_bytes + len > 50_000 {
            return;
        }
        self.body_bytes += len + 300;
        let mut payload = vec![0; len];
        self.rng.fill(&mut payload[..]);
        let mut flags = if is_end { END_STREAM } else { 0 };
        if self.below(4) == 0 {
            flags |= PADDED;
            let padding = self.below(256);
            payload.insert(0, u8::try_from(padding).expect("it is below"));
            payload.extend_from_slice(&vec![0; padding]);
        }
        self.frame(DATA, flags, stream, &payload);
        self.open.retain(|open| !(is_end && *open == stream));
    }

    fn trailers(&mut self) {
        if let Some(stream) = self.some_open() {
            self.headers(stream, &[("grpc-status", "0"), ("x-t", "y")], true);
            self.open.retain(|open| *open != stream);
        }
    }

    /// A request with one more field.
    fn with(&mut self, name: &str, value: &str) -> u32 {
        let mut fields = REQUEST.to_vec();
        fields.push((name, value));
        self.open(&fields, true)
    }

    /// A request with one field replaced, or left out.
    fn but(&mut self, name: &str, value: Option<&str>) -> u32 {
        let fields = REQUEST.iter().filter_map(|field| match *field {
            (other, was) if other != name => Some((other, was)),
            (same, _) => Some((same, value?)),
        });
        let fields: Vec<_> = fields.collect();
        self.open(&fields, true)
    }

    fn raw(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> u32 {
        self.frame(kind, flags, stream, payload);
        stream
    }

    fn setting(&mut self, id: u16, value: u32) -> u32 {
        self.settings(&[(id, value)]);
        0
    }

    fn sized(&mut self, length: &str, body: usize, is_end: bool) -> u32 {
        let mut fields = REQUEST.to_vec();
        fields.push(("content-length", length));
        let stream = self.open(&fields, false);
        let flags = if is_end { END_STREAM } else { 0 };
        self.raw(DATA, flags, stream, &vec![7; body])
    }
}

const REQUEST: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "user-service:8080"),
    (":path", "/users.v1.Users/Get"),
];

/// What can be wrong, one thing each.
pub(crate) const FAULTS: &[(&str, Fault)] = &[
    ("DATA on stream 0", |c| c.raw(DATA, 0, 0, &[7])),
    ("DATA on an idle stream", |c| c.raw(DATA, 0, c.next, &[7])),
    ("DATA behind the end", |c| {
        let stream = c.get();
        c.raw(DATA, 0, stream, &[7])
    }),
    ("DATA shorter than its padding", |c| {
        let stream = c.post();
        c.raw(DATA, PADDED, stream, &[9, 7])
    }),
    ("DATA without its padding's length", |c| {
        let stream = c.post();
        c.raw(DATA, PADDED, stream, &[])
    }),
    ("HEADERS on stream 0", |c| {
        let block = c.block(&REQUEST);
        c.raw(HEADERS, END_HEADERS, 0, &block)
    }),
    ("HEADERS on an even stream", |c| {
        let block = c.block(&REQUEST);
        c.raw(HEADERS, END_HEADERS, c.next + 1, &block)
    }),
    ("HEADERS behind the end", |c| {
        let stream = c.get();
        c.headers(stream, &[("a", "b")], true);
        stream
    }),
    ("HEADERS shorter than its padding", |c| {
        let stream = c.next;
        c.raw(HEADERS, END_HEADERS | PADDED, stream, &[9, 0x82])
    }),
    ("HEADERS without its priority", |c| {
        let stream = c.next;
        c.raw(HEADERS, END_HEADERS | WITH_PRIORITY, stream, &[0, 0])
    }),
    ("a stream below another", |c| {
        c.next += 10;
        let stream = c.get();
        c.headers(stream - 8, &REQUEST, true);
        stream - 8
    }),
    ("trailers that do not end", |c| {
        let stream = c.post();
        c.headers(stream, &[("a", "b")], false);
        stream
    }),
    ("trailers with a pseudo-header", |c| {
        let stream = c.post();
        c.headers(stream, &[(":path", "/")], true);
        stream
    }),
    ("PRIORITY on stream 0", |c| c.raw(PRIORITY, 0, 0, &[0; 5])),
    ("PRIORITY of 4 bytes", |c| {
        let stream = c.post();
        c.raw(PRIORITY, 0, stream, &[0; 4])
    }),
    ("RST_STREAM on stream 0", |c| {
        c.raw(RST_STREAM, 0, 0, &[0; 4])
    }),
    ("RST_STREAM on an idle stream", |c| {
        c.raw(RST_STREAM, 0, c.next, &[0; 4])
    }),
    ("RST_STREAM of 3 bytes", |c| {
        let stream = c.post();
        c.raw(RST_STREAM, 0, stream, &[0; 3])
    }),
    ("SETTINGS on a stream", |c| c.raw(SETTINGS, 0, 1, &[])),
    ("SETTINGS of 5 bytes", |c| c.raw(SETTINGS, 0, 0, &[0; 5])),
    ("an acknowledgement with settings", |c| {
        c.raw(SETTINGS, 1, 0, &[0; 6])
    }),
    ("ENABLE_PUSH of 2", |c| c.setting(2, 2)),
    ("a window of 2^31", |c| c.setting(4, 1 << 31)),
    ("small frames", |c| c.setting(5, 16_383)),
    ("large frames", |c| c.setting(5, 1 << 24)),
    ("ENABLE_CONNECT_PROTOCOL of 2", |c| c.setting(8, 2)),
    ("windows that overflow by SETTINGS", |c| {
        let stream = c.post();
        c.words(WINDOW_UPDATE, stream, &[0x7fff_ffff - 70_000]);
        c.setting(4, 100_000)
    }),
    ("PUSH_PROMISE", |c| {
        let stream = c.post();
        let block = c.block(&REQUEST);
        let payload = [&[0, 0, 0, 2][..], &block].concat();
        c.raw(PUSH_PROMISE, END_HEADERS, stream, &payload)
    }),
    ("PING on a stream", |c| c.raw(PING, 0, 1, &[0; 8])),
    ("PING of 7 bytes", |c| c.raw(PING, 0, 0, &[0; 7])),
    ("GOAWAY on a stream", |c| c.raw(GOAWAY, 0, 1, &[0; 8])),
    ("GOAWAY of 7 bytes", |c| c.raw(GOAWAY, 0, 0, &[0; 7])),
    ("WINDOW_UPDATE of 3 bytes", |c| {
        c.raw(WINDOW_UPDATE, 0, 0, &[1; 3])
    }),
    ("WINDOW_UPDATE of zero", |c| {
        c.raw(WINDOW_UPDATE, 0, 0, &[0; 4])
    }),
    ("WINDOW_UPDATE of zero on a stream", |c| {
        let stream = c.post();
        c.raw(WINDOW_UPDATE, 0, stream, &[0; 4])
    }),
    ("WINDOW_UPDATE on an idle stream", |c| {
        c.raw(WINDOW_UPDATE, 0, c.next, &[1; 4])
    }),
    ("a connection's window that overflows", |c| {
        c.words(WINDOW_UPDATE, 0, &[0x7fff_ffff]);
        0
    }),
    ("a stream's window that overflows", |c| {
        let stream = c.post();
        c.words(WINDOW_UPDATE, stream, &[0x7fff_ffff]);
        stream
    }),
    ("CONTINUATION of nothing", |c| {
        c.raw(CONTINUATION, END_HEADERS, c.next, &[])
    }),
    ("a frame within a header block", |c| {
        let stream = c.next;
        c.raw(HEADERS, 0, stream, &[0x82]);
        c.raw(PING, 0, 0, &[0; 8]);
        stream
    }),
    ("another stream's CONTINUATION", |c| {
        let stream = c.next;
        c.raw(HEADERS, 0, stream, &[0x82]);
        c.raw(CONTINUATION, END_HEADERS, stream + 2, &[]);
        stream
    }),
    ("an unknown frame within a header block", |c| {
        let stream = c.next;
        c.raw(HEADERS, 0, stream, &[0x82]);
        c.raw(0x77, 0, 0, &[]);
        stream
    }),
    ("a header block with index 0", |c| {
        c.raw(HEADERS, END_HEADERS, c.next, &[0x80])
    }),
    ("a header block that breaks off", |c| {
        c.raw(HEADERS, END_HEADERS, c.next, &[0x82, 0x00, 0x05, b'a'])
    }),
    ("a frame of 16,385 bytes", |c| {
        let stream = c.post();
        c.raw(DATA, 0, stream, &[0; 16_385])
    }),
    ("no method", |c| c.but(":method", None)),
    ("no scheme", |c| c.but(":scheme", None)),
    ("no path", |c| c.but(":path", None)),
    ("no authority", |c| c.but(":authority", None)),
    ("an empty path", |c| c.but(":path", Some(""))),
    ("a path without a slash", |c| c.but(":path", Some("a"))),
    ("a path with a space", |c| c.but(":path", Some("/a b"))),
    ("a method that is no token", |c| {
        c.but(":method", Some("A B"))
    }),
    ("an authority with user information", |c| {
        c.but(":authority", Some("u@a"))
    }),
    ("CONNECT with a path", |c| c.but(":method", Some("CONNECT"))),
    ("a protocol without CONNECT", |c| {
        let mut fields = vec![(":protocol", "websocket")];
        fields.extend(REQUEST);
        c.open(&fields, true)
    }),
    ("a status", |c| {
        let mut fields = vec![(":status", "200")];
        fields.extend(REQUEST);
        c.open(&fields, true)
    }),
    ("an unknown pseudo-header", |c| {
        let mut fields = vec![(":other", "200")];
        fields.extend(REQUEST);
        c.open(&fields, true)
    }),
    ("a pseudo-header twice", |c| {
        let mut fields = vec![(":path", "/")];
        fields.extend(REQUEST);
        c.open(&fields, true)
    }),
    ("a pseudo-header behind a field", |c| {
        let mut fields = vec![("a", "b")];
        fields.extend(REQUEST);
        c.open(&fields, true)
    }),
    ("a host that is not the authority", |c| {
        c.with("host", "other")
    }),
    ("an upper case name", |c| c.with("Accept", "a")),
    ("a name with a space", |c| c.with("a b", "a")),
    ("a value with a line break", |c| c.with("a", "b\r\nc")),
    ("connection", |c| c.with("connection", "close")),
    ("keep-alive", |c| c.with("keep-alive", "a")),
    ("proxy-connection", |c| c.with("proxy-connection", "a")),
    ("transfer-encoding", |c| {
        c.with("transfer-encoding", "chunked")
    }),
    ("upgrade", |c| c.with("upgrade", "a")),
    ("te", |c| c.with("te", "gzip")),
    ("a content-length that is no number", |c| {
        c.with("content-length", "x")
    }),
    ("a content-length without a body", |c| {
        c.with("content-length", "1")
    }),
    ("a body longer than its content-length", |c| {
        c.sized("3", 4, false)
    }),
    ("a body shorter than its content-length", |c| {
        c.sized("3", 2, true)
    }),
    ("trailers before a content-length's end", |c| {
        let stream = c.sized("3", 2, false);
        c.headers(stream, &[("a", "b")], true);
        stream
    }),
];
