//! One side of an HTTP/1.1 connection, and the same bytes whole and in pieces.
//!
//! No panic and no endless loop; bounds hold; the pieces change nothing that is told; a message that
//! was understood is understood alike when it is sent on.

use std::{
    fmt::Write as _,
    io::IoSlice,
    time::{Duration, Instant},
};

use heddle_relay::{
    event::{Event, StreamId, Then},
    h1::{Connection, Ending, Form, Limits, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
};

use crate::script::Script;

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let role = if script.byte().is_multiple_of(2) {
        Role::Server
    } else {
        Role::Client
    };
    let method: &[u8] = [&b"GET"[..], b"HEAD", b"POST", b"CONNECT"][usize::from(script.byte() % 4)];
    let limits = Limits {
        line_bytes_max: 200,
        head_bytes_max: 1_000,
        fields_max: 20,
        chunk_line_bytes_max: 20,
        extension_bytes_max: 40,
        trailer_bytes_max: 200,
        window: 1 + script.number() % 400,
        ahead_bytes_max: 2_000,
        discard_bytes_max: 100,
        interim_bytes_max: 500,
        output_bytes: 100,
        head_timeout: Duration::from_secs(1),
    };
    let behaves = script.byte();
    let mut pieces = Vec::new();
    while !script.is_over() {
        pieces.push(script.piece());
    }
    let mut whole = Side::new(role, &limits, method, behaves);
    whole.feed(&pieces.concat());
    let mut cut = Side::new(role, &limits, method, behaves);
    pieces.iter().for_each(|piece| cut.feed(piece));
    whole.end();
    cut.end();
    assert_eq!(whole.told, cut.told);
    assert_eq!(whole.output(), cut.output());
}

/// A connection whose other side is the input.
struct Side {
    connection: Connection,
    heads: Heads,
    now: Instant,
    unread: Vec<u8>,
    /// What it told, in text; pieces of a body are joined.
    told: String,
    /// Bits: what is done with requests.
    behaves: u8,
    onward: Onward,
}

/// Where the requests that came are sent on, and what is understood there.
#[derive(Default)]
struct Onward {
    stream: Option<(Connection, StreamId)>,
    /// What came.
    came: String,
}

impl Side {
    fn new(role: Role, limits: &Limits, method: &[u8], behaves: u8) -> Self {
        let mut connection = Connection::new(role, limits);
        if role == Role::Client {
            let mut head = Head::new();
            head.push(b":method", method, Indexing::Allowed);
            head.push(b":scheme", b"http", Indexing::Allowed);
            head.push(b":authority", b"a:80", Indexing::Allowed);
            head.push(b":path", b"/", Indexing::Allowed);
            if behaves & 1 == 1 {
                head.push(b":protocol", b"x", Indexing::Allowed);
            }
            let opened = connection.open(&head, Form::default(), Then::End);
            opened.expect("it is well formed");
        }
        Self {
            connection,
            heads: Heads::default(),
            now: start(),
            unread: Vec::new(),
            told: String::new(),
            behaves,
            onward: Onward::default(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        let bytes = [&std::mem::take(&mut self.unread), bytes].concat();
        let mut rest = &bytes[..];
        for _ in 0..100_000 {
            let room = self.connection.room().min(rest.len());
            if room == 0 && !self.connection.is_ready() {
                self.unread = rest.to_vec();
                return;
            }
            let (now, later) = rest.split_at(room);
            rest = later;
            let mut input = Input::lent(now);
            loop {
                match self
                    .connection
                    .receive(&mut input, &mut self.heads, self.now)
                {
                    Ok(Some(event)) => self.take(event),
                    Ok(None) => break,
                    Err(malformed) => {
                        self.onward = Onward::default();
                        // Of two faults the one that comes first is told, whichever is found
                        // first of those that came together.
                        _ = write!(self.told, "\nmalformed {:?}", malformed.answer);
                    }
                }
            }
            assert!(input.is_empty(), "it takes what it has room for");
            let bytes_max = size_of::<Connection>() + 2 * 4_096 + now.len();
            assert!(self.connection.memory_bytes() <= bytes_max);
        }
        unreachable!("it is ready for ever");
    }

    fn end(&mut self) {
        self.connection.ended();
        self.feed(b"");
        assert!(self.unread.is_empty() || self.connection.ending() == Ending::Open);
        _ = write!(self.told, "\n{:?}", self.connection.ending());
    }

    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Head { stream, head, then } => {
                _ = write!(self.told, "\n{}", text(&head));
                self.onward.begin(&head, self.connection.hop().form, then);
                self.ends(stream, then);
            }
            Event::Interim { head, .. } => _ = write!(self.told, "\ninterim {}", text(&head)),
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                _ = write!(self.told, "{}", data.as_slice().escape_ascii());
                self.connection.release(stream, credit);
                self.onward.data(data, then);
                self.ends(stream, then);
            }
            Event::Trailers { stream, head } => {
                _ = write!(self.told, "\ntrailers {}", text(&head));
                self.onward.trailers(&head);
                self.ends(stream, Then::End);
            }
            Event::Reset { .. } => {
                self.onward = Onward::default();
                _ = write!(self.told, "\n{event:?}");
            }
            Event::TooLarge { .. }
            | Event::Writable { .. }
            | Event::Goodbye { .. }
            | Event::Pong
            | Event::StreamsMax(_) => {
                unreachable!("not told by receive")
            }
        }
    }

    /// A request that is over is answered somehow.
    fn ends(&mut self, stream: StreamId, then: Then) {
        if then == Then::More {
            return;
        }
        _ = write!(self.told, "\nend");
        let status: &[u8] =
            [&b"200"[..], b"204", b"101", b"404"][usize::from(self.behaves >> 1 & 3)];
        let mut head = Head::new();
        head.push(b":status", status, Indexing::Allowed);
        if status == b"101" {
            head.push(b":protocol", b"x", Indexing::Allowed);
        }
        let then = if self.behaves & 8 == 0 {
            Then::End
        } else {
            Then::More
        };
        self.connection.send_head(stream, &head, then);
        if then == Then::More {
            self.connection
                .send_data(stream, Payload::Lent(b"body"), Then::End);
        }
        self.connection.reset(stream);
    }

    fn output(&mut self) -> Vec<u8> {
        sent(&mut self.connection)
    }
}

impl Onward {
    fn begin(&mut self, head: &Head, form: Form, then: Then) {
        *self = Self::default();
        let mut connection = Connection::new(Role::Client, &Limits::default());
        if let Ok(stream) = connection.open(head, form, then) {
            self.stream = Some((connection, stream));
            self.came = text(head);
            self.check(then);
        }
    }

    fn data(&mut self, data: Payload<'_>, then: Then) {
        if let Some((connection, stream)) = &mut self.stream {
            self.came += &data.as_slice().escape_ascii().to_string();
            connection.send_data(*stream, data, then);
            self.check(then);
        }
    }

    fn trailers(&mut self, head: &Head) {
        if let Some((connection, stream)) = &mut self.stream {
            self.came += &text(head);
            connection.send_trailers(*stream, head);
            self.check(Then::End);
        }
    }

    /// What was sent on of a request that is over comes out as it came in.
    fn check(&mut self, then: Then) {
        if then == Then::More {
            return;
        }
        let Some((mut connection, _)) = self.stream.take() else {
            return;
        };
        let bytes = sent(&mut connection);
        let mut next = Connection::new(Role::Server, &Limits::default());
        let mut heads = Heads::default();
        let mut input = Input::lent(&bytes);
        let mut came = String::new();
        let now = start();
        while let Some(event) = next
            .receive(&mut input, &mut heads, now)
            .expect("it was checked")
        {
            match event {
                Event::Head { head, .. } | Event::Trailers { head, .. } => came += &text(&head),
                Event::Data { data, .. } => came += &data.as_slice().escape_ascii().to_string(),
                other => unreachable!("{other:?}"),
            }
        }
        // A length that nobody said is said on the way; cookies are joined; the last field may
        // move.
        assert_eq!(sorted(&came), sorted(&self.came));
    }
}

fn start() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    now
}

fn sent(connection: &mut Connection) -> Vec<u8> {
    let output = connection.output();
    let mut all = Vec::new();
    while !output.is_empty() {
        let mut places = [IoSlice::new(&[]); 8];
        let used = output.slices(&mut places);
        let slices: Vec<&[u8]> = places[..used].iter().map(|slice| &**slice).collect();
        let slices = slices.concat();
        output.consume(slices.len());
        all.extend(slices);
    }
    all
}

fn text(head: &Head) -> String {
    let mut text = String::new();
    for field in head.iter() {
        let (name, value) = (field.name.escape_ascii(), field.value.escape_ascii());
        _ = write!(text, "{name}={value}\t");
    }
    text
}

fn sorted(text: &str) -> Vec<&str> {
    let mut fields: Vec<&str> = text
        .split('\t')
        .filter(|field| !field.starts_with("cookie=") && !field.starts_with("content-length=0"))
        .collect();
    fields.sort_unstable();
    fields
}
