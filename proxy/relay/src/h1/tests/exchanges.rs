//! Clients and servers back to back: random exchanges come out as they went in, however their
//! bytes are cut.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::*;

const SEEDS: u64 = 150;
const EXCHANGES_MAX: usize = 12;
/// Of one flight of bytes, about.
const PIECES_MAX: usize = 1000;

/// One direction of an exchange.
#[derive(Debug)]
struct Message {
    head: Vec<(String, String)>,
    body: Body,
    trailers: Vec<(String, String)>,
}

#[derive(Debug)]
enum Body {
    None,
    /// With its length in the head, or without.
    Whole(String),
    Unmeasured(String),
}

/// A client, a server, and the bytes between them.
struct Pair {
    client: Side,
    server: Side,
    rng: StdRng,
}

impl Pair {
    /// Carries bytes both ways until nothing moves.
    fn carry(&mut self) {
        loop {
            let asked = self.client.output();
            let answered = self.server.output();
            if asked.is_empty() && answered.is_empty() {
                return;
            }
            cut(&mut self.rng, &asked, |piece| self.server.feed(piece));
            cut(&mut self.rng, &answered, |piece| self.client.feed(piece));
        }
    }
}

/// In random pieces.
fn cut(rng: &mut StdRng, bytes: &[u8], mut feed: impl FnMut(&[u8])) {
    let piece_max = [1, 3, 20, 500, 100_000][rng.random_range(0..5)];
    let piece_max = piece_max.max(bytes.len() / PIECES_MAX);
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rng.random_range(1..=rest.len().min(piece_max));
        let (piece, later) = rest.split_at(n);
        feed(piece);
        rest = later;
    }
}

fn text_of(rng: &mut StdRng, length_max: usize) -> String {
    let length = rng.random_range(0..=length_max);
    // Looks like framing where it can.
    let alphabet = b"0a1\r\n:; ";
    let letter = |_| char::from(alphabet[rng.random_range(0..alphabet.len())]);
    (0..length).map(letter).collect()
}

fn fields(rng: &mut StdRng, prefix: &str) -> Vec<(String, String)> {
    let count = rng.random_range(0..6);
    let field = |n| {
        let name = match rng.random_range(0..6) {
            0 => "accept".into(),
            1 => "grpc-status".into(),
            _ => format!("{prefix}{n}"),
        };
        let value: String = text_of(rng, 40).replace(['\r', '\n'], "\u{e4}");
        (name, value.trim().to_owned())
    };
    (0..count).map(field).collect()
}

fn message(rng: &mut StdRng, pseudo: &[(&str, &str)], may_have_body: bool) -> Message {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut head: Vec<_> = pseudo.iter().map(owned).collect();
    head.extend(fields(rng, "x-"));
    let length_max = [0, 10, 300, 3000, 100_000][rng.random_range(0..50) / 12];
    let body = match rng.random_range(0..3) {
        _ if !may_have_body => Body::None,
        0 => Body::None,
        1 => Body::Whole(text_of(rng, length_max)),
        _ => Body::Unmeasured(text_of(rng, length_max)),
    };
    let mut trailers = Vec::new();
    if let Body::Whole(body) = &body {
        head.push(("content-length".into(), body.len().to_string()));
    }
    if matches!(body, Body::Unmeasured(_)) {
        trailers = fields(rng, "t-");
    }
    Message {
        head,
        body,
        trailers,
    }
}

impl Message {
    fn then(&self) -> Then {
        if matches!(self.body, Body::None) {
            Then::End
        } else {
            Then::More
        }
    }

    fn head(&self) -> Head {
        to_head(&self.head)
    }

    /// Sends what follows the head, in random pieces.
    fn send(&self, side: &mut Side, stream: StreamId, rng: &mut StdRng) {
        let (Body::Whole(body) | Body::Unmeasured(body)) = &self.body else {
            return;
        };
        let connection = &mut side.connection;
        let ends_early = self.trailers.is_empty() && rng.random();
        let mut sent = 0;
        cut(rng, body.as_bytes(), |piece| {
            sent += piece.len();
            let is_last = ends_early && sent == body.len();
            let then = if is_last { Then::End } else { Then::More };
            connection.send_data(stream, Payload::Lent(piece), then);
        });
        if !self.trailers.is_empty() {
            connection.send_trailers(stream, &to_head(&self.trailers));
        } else if !ends_early || body.is_empty() {
            connection.send_data(stream, Payload::Lent(b""), Then::End);
        }
    }

    /// What the other side is told of it.
    fn told(&self, adds: Option<&str>) -> Vec<String> {
        let head = text(&self.head());
        let mut told = vec![adds.map_or(head.clone(), |adds| format!("{head} {adds}"))];
        if let Body::Whole(body) | Body::Unmeasured(body) = &self.body
            && !body.is_empty()
        {
            told.push(format!("data {}", body.as_bytes().escape_ascii()));
        }
        if !self.trailers.is_empty() {
            told.push(format!("trailers {}", text(&to_head(&self.trailers))));
        }
        told.push("end".into());
        told
    }
}

fn to_head(fields: &[(String, String)]) -> Head {
    let fields = fields.iter().map(|(name, value)| (&name[..], &value[..]));
    head(&fields.collect::<Vec<_>>())
}

fn exchange(pair: &mut Pair) {
    let method = ["GET", "POST", "DELETE"][pair.rng.random_range(0..3)];
    let pseudo = [
        (":method", method),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    let request = message(&mut pair.rng, &pseudo, true);
    let opened = pair
        .client
        .connection
        .open(&request.head(), Form::default(), request.then());
    let stream = opened.expect("it can be sent");
    pair.client.stream = Some(stream);
    if pair.rng.random() {
        pair.carry();
    }
    request.send(&mut pair.client, stream, &mut pair.rng);
    pair.carry();
    let zero = (method == "POST" && request.then() == Then::End).then_some("content-length=0");
    assert_eq!(pair.server.told, request.told(zero));

    let status = ["200", "404", "204"][pair.rng.random_range(0..3)];
    let interims = pair.rng.random_range(0..2);
    let answer = message(&mut pair.rng, &[(":status", status)], status != "204");
    let stream = pair.server.stream.expect("a request was told");
    for _ in 0..interims {
        pair.server
            .answer(&[(":status", "103"), ("x", "y")], Then::More);
    }
    pair.server
        .connection
        .send_head(stream, &answer.head(), answer.then());
    answer.send(&mut pair.server, stream, &mut pair.rng);
    pair.carry();
    let zero = (status != "204" && answer.then() == Then::End).then_some("content-length=0");
    let interim = vec!["interim :status=103 x=y".to_owned(); interims];
    assert_eq!(pair.client.told, [interim, answer.told(zero)].concat());
    pair.client.told.clear();
    pair.server.told.clear();
}

#[test]
fn exchanges_come_out_as_they_went_in() {
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits = Limits {
            window: rng.random_range(1..70_000),
            ahead_bytes_max: rng.random_range(10..70_000),
            ..Limits::default()
        };
        let mut pair = Pair {
            client: Side::limited(Role::Client, &limits),
            server: Side::limited(Role::Server, &limits),
            rng,
        };
        let exchanges = pair.rng.random_range(1..=EXCHANGES_MAX);
        let run = std::panic::AssertUnwindSafe(|| {
            for _ in 0..exchanges {
                exchange(&mut pair);
                pair.server.connection.fill(usize::MAX);
                while pair.server.connection.next_written().is_some() {}
                assert!(pair.client.connection.can_open());
                assert!(pair.server.connection.is_idle());
                for side in [&mut pair.server, &mut pair.client] {
                    side.connection.shrink();
                    assert!(side.connection.memory_bytes() < 2048);
                }
            }
        });
        if let Err(failed) = std::panic::catch_unwind(run) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(failed);
        }
    }
}

/// Whatever comes, in whatever pieces: nothing panics, the bounds hold, and the pieces change
/// nothing.
#[test]
fn random_bytes_are_told_alike_however_they_are_cut() {
    for seed in 0..20 * SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes = random_bytes(&mut rng);
        for make in [Side::answering, asking] {
            let mut whole = make();
            whole.feed(&bytes);
            let mut pieces = make();
            cut(&mut rng, &bytes, |piece| pieces.feed(piece));
            for side in [&mut whole, &mut pieces] {
                assert!(side.connection.memory_bytes() < 140 * 1024);
                side.end();
            }
            let bytes = bytes.escape_ascii();
            assert_eq!(pieces.told, whole.told, "seed {seed} {bytes}");
            assert_eq!(pieces.output(), whole.output(), "seed {seed} {bytes}");
        }
    }
}

fn asking() -> Side {
    let mut side = Side::new(Role::Client);
    let request = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ];
    side.ask(&request, Then::End);
    side
}

/// Of words that mean something, some of them where they do.
fn random_bytes(rng: &mut StdRng) -> Vec<u8> {
    let count = rng.random_range(1..30);
    let mut bytes = Vec::new();
    if rng.random() {
        bytes.extend(WORDS[rng.random_range(0..4)]);
        bytes.extend(WORDS[4]);
    }
    for _ in 0..count {
        bytes.extend(WORDS[rng.random_range(0..WORDS.len())]);
    }
    bytes
}

/// First those that a message begins with, then a field that a request needs.
const WORDS: [&[u8]; 24] = [
    b"GET / HTTP/1.1\r\n",
    b"POST /a HTTP/1.1\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 100 \r\n",
    b"host: a\r\n",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: close\r\n",
    b"upgrade: x\r\nconnection: upgrade\r\n",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"abc",
    b"3\r\n",
    b"0\r\n",
    b"0\r\n\r\n",
    b";x",
    b"x: y\r\n",
    b" ",
    b"\0",
    b"expect: 100-continue\r\n",
    b"1",
];
