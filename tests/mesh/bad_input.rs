//! What no good client sends: a clear refusal, and the sidecar goes on as if nothing had been.

use std::net::SocketAddr;

use heddle_policy::snapshot::Protocol;
use heddle_tests::{
    call::{Caller, raw},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::memory::{Peak, alone};

const HEAD: &str = "POST /a HTTP/1.1\r\nhost: echo.shop\r\n";

/// Both listeners in front of an HTTP/1.1 application.
struct Http1 {
    app: App,
    pair: Pair,
    authority: Authority,
}

impl Http1 {
    async fn start() -> Self {
        let app = App::good(Speaks::Http1).await;
        let plan = Plan {
            protocol: Protocol::Http1,
            ..Plan::default()
        };
        let authority = Authority::new();
        let (web, echo) = (authority.credentials(WEB), authority.credentials(ECHO));
        let pair = Pair::with(web, echo, app.address, &plan);
        Self {
            app,
            pair,
            authority,
        }
    }

    /// What the workload's and a peer's connection get for these bytes.
    async fn answers(&self, bytes: &[u8]) -> [String; 2] {
        let from_workload = TcpStream::connect(self.pair.entry).await.unwrap();
        let web = self.authority.credentials(WEB);
        let from_peer = mesh::dial_as(&web, self.pair.inbound, b"heddle-h1").await;
        [raw(from_workload, bytes).await, raw(from_peer, bytes).await]
            .map(|answer| String::from_utf8_lossy(&answer).into_owned())
    }
}

#[tokio::test]
async fn an_http1_head_that_can_be_read_two_ways_is_refused() {
    let mesh = Http1::start().await;
    let many = "x: y\r\n".repeat(200);
    let long = format!("x: {}\r\n", "y".repeat(70_000));
    for (rest, status) in [
        ("content-length: 5\r\ncontent-length: 6\r\n\r\nhello", "400"),
        ("content-length: 5, 6\r\n\r\nhello", "400"),
        ("content-length: +3\r\n\r\nabc", "400"),
        ("content-length: 0x3\r\n\r\nabc", "400"),
        ("content-length: -1\r\n\r\n", "400"),
        ("content-length: 3 3\r\n\r\nabc", "400"),
        ("content-length: 99999999999999999999\r\n\r\n", "400"),
        ("transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n", "400"),
        ("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"),
        ("transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", "400"),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("transfer-encoding : chunked\r\n\r\n0\r\n\r\n", "400"),
        ("transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n", "400"),
        ("na me: x\r\n\r\n", "400"),
        ("name\x00: x\r\n\r\n", "400"),
        ("name: x\x00y\r\n\r\n", "400"),
        ("name: x\ry\r\n\r\n", "400"),
        (" folded: x\r\n\r\n", "400"),
        ("no colon\r\n\r\n", "400"),
        (": no name\r\n\r\n", "400"),
        ("host: other.shop\r\n\r\n", "400"),
        (&*many, "431"),
        (&*long, "431"),
    ] {
        let request = format!("{HEAD}{rest}\r\n");
        for answer in mesh.answers(request.as_bytes()).await {
            let expected = format!("HTTP/1.1 {status}");
            assert!(answer.starts_with(&expected), "{rest:.80?}: {answer:?}");
            assert_eq!(
                answer.matches("HTTP/1.1").count(),
                1,
                "{rest:.80?}: {answer:?}"
            );
        }
    }
    assert_eq!(mesh.app.script.calls(), 0);
}

/// RFC 9112 section 6.3: the coding wins, the length does not pass, the connection ends.
#[tokio::test]
async fn of_two_lengths_only_the_coding_counts() {
    let mesh = Http1::start().await;
    let (length, coding) = ("content-length: 3\r\n", "transfer-encoding: chunked\r\n");
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    for both in [[length, coding], [coding, length]] {
        let both = both.concat();
        let request = format!("{HEAD}{both}\r\n5\r\nhello\r\n0\r\n\r\n{smuggled}");
        for answer in mesh.answers(request.as_bytes()).await {
            assert!(answer.contains("hello"), "{answer:?}");
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer:?}");
        }
    }
    for head in &*mesh.app.script.heads.lock() {
        assert_eq!(head.uri.path(), "/a");
        assert!(!head.headers.contains_key("content-length"), "{head:?}");
    }
}

#[tokio::test]
async fn a_request_line_that_is_none_is_refused() {
    let mesh = Http1::start().await;
    for line in [
        "GET http://user@echo.shop/ HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
        "GET /a%00b HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
        "GET /a%5cb HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
        "GET /a%2e%2e%2fb HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
        "GET /a\x01 HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
        "GET  / HTTP/1.1\r\nhost: echo.shop\r\n\r\n",
    ] {
        for answer in mesh.answers(line.as_bytes()).await {
            assert!(answer.starts_with("HTTP/1.1 400"), "{line:?}: {answer:?}");
        }
    }
    // Not even HTTP: closed without a word.
    for garbage in [
        "\r\n\r\n",
        "GET / HTTP/3.0\r\n\r\n",
        "\x00\x01\x02\x03",
        "get / http/1.1\r\n\r\n",
    ] {
        for answer in mesh.answers(garbage.as_bytes()).await {
            assert_eq!(answer, "", "{garbage:?}");
        }
    }
    assert_eq!(mesh.app.script.calls(), 0);
}

/// The head is good, its body is not; what hides behind it never becomes a request.
#[tokio::test]
async fn a_chunked_body_that_is_none_ends_its_connection() {
    let mesh = Http1::start().await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    let long = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(70_000));
    for body in [
        "ffffffffffffffff1\r\na\r\n0\r\n\r\n",
        "-1\r\na\r\n0\r\n\r\n",
        "0x1\r\na\r\n0\r\n\r\n",
        "1 1\r\na\r\n0\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1\nab\n0\n\n",
        "g\r\na\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
        &*long,
    ] {
        let request = format!("{HEAD}transfer-encoding: chunked\r\n\r\n{body}{smuggled}");
        for answer in mesh.answers(request.as_bytes()).await {
            assert!(
                answer.matches("HTTP/1.1").count() <= 1,
                "{body:.80?}: {answer:?}"
            );
            assert!(!answer.contains("\r\n0\r\n\r\n"), "{body:.80?}: {answer:?}");
        }
    }
    let heads = mesh.app.script.heads.lock();
    assert!(
        heads.iter().all(|head| head.uri.path() == "/a"),
        "{heads:?}"
    );
}

/// The endpoint is not to blame for a client that breaks its request off.
#[tokio::test]
async fn a_body_that_breaks_off_is_the_clients_failure() {
    let mut mesh = Http1::start().await;
    let request = format!("{HEAD}transfer-encoding: chunked\r\n\r\nno chunk\r\n");
    let stream = TcpStream::connect(mesh.pair.entry).await.unwrap();
    raw(stream, request.as_bytes()).await;
    let reason = mesh.pair.client.record().await.reason;
    assert!(
        matches!(reason, Some("bad_request" | "cancelled")),
        "{reason:?}"
    );
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let mesh = Http1::start().await;
    let mut requests = String::new();
    for n in 0..10 {
        requests +=
            &format!("POST /{n} HTTP/1.1\r\nhost: echo.shop\r\ncontent-length: 1\r\n\r\n{n}");
    }
    requests += "GET /end HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    for answer in mesh.answers(requests.as_bytes()).await {
        let bodies: Vec<&str> = answer.split("\r\n\r\n").skip(1).collect();
        let digits: String = bodies
            .iter()
            .filter_map(|body| body.chars().find(char::is_ascii_digit))
            .collect();
        assert!(answer.matches("HTTP/1.1 200").count() == 11, "{answer}");
        assert_eq!(digits.len(), bodies.len() - 1, "{answer}");
    }
    let heads = mesh.app.script.heads.lock();
    let paths: Vec<&str> = heads.iter().map(|head| head.uri.path()).collect();
    let expected: Vec<String> = (0..10)
        .map(|n| format!("/{n}"))
        .chain(["/end".into()])
        .collect();
    assert_eq!(paths, [&*expected, &*expected].concat());
}

#[tokio::test]
async fn bytes_behind_an_upgrade_are_no_request() {
    let mesh = Http1::start().await;
    let request = "GET /socket HTTP/1.1\r\nhost: echo.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: echo.shop\r\n\r\n";
    let mut stream = TcpStream::connect(mesh.pair.entry).await.unwrap();
    stream
        .write_all(format!("{request}{smuggled}").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    while !answer.ends_with(smuggled) {
        let mut block = [0; 1024];
        let n = stream.read(&mut block).await.unwrap();
        assert!(n > 0, "{answer}");
        answer += std::str::from_utf8(&block[..n]).unwrap();
    }
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert_eq!(mesh.app.script.calls(), 1);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `POST http://echo.shop:80/` in indexes and one literal (RFC 7541 section 6).
fn head() -> Vec<u8> {
    [&[0x83, 0x86, 0x84, 0x01, 12][..], b"echo.shop:80"].concat()
}

/// A literal header without indexing.
fn literal(name: &str, value: &str) -> Vec<u8> {
    let length = |text: &str| u8::try_from(text.len()).ok().filter(|n| *n < 127).unwrap();
    let mut header = vec![0, length(name)];
    header.extend(name.bytes());
    header.push(length(value));
    header.extend(value.bytes());
    header
}

/// Writes everything while reading; what came back until the other side closed, or, when
/// everything was written and nothing closed, until the answer to a last PING.
async fn exchange(to: SocketAddr, frames: &[Vec<u8>]) -> Vec<u8> {
    const LAST: [u8; 8] = *b"lastping";
    let (mut read, mut write) = TcpStream::connect(to).await.unwrap().into_split();
    let writing = async {
        let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        all.extend(frames.iter().flatten());
        all.extend(frame(PING, 0, 0, &LAST));
        // The other side may close before it has read everything.
        _ = write.write_all(&all).await;
        write
    };
    let reading = async {
        let mut answer = Vec::new();
        let mut block = [0; 4096];
        while let Ok(n @ 1..) = read.read(&mut block).await {
            answer.extend_from_slice(&block[..n]);
            if answer.windows(8).any(|window| window == LAST) {
                break;
            }
        }
        answer
    };
    let (_write, answer) = tokio::join!(writing, reading);
    answer
}

/// The error codes of frames of this kind.
fn codes(answer: &[u8], kind: u8) -> Vec<u32> {
    let mut codes = Vec::new();
    let mut rest = answer;
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let Some((payload, after)) = after.split_at_checked(length) else {
            break;
        };
        if head[3] == kind {
            let at = if kind == GOAWAY { 4 } else { 0 };
            let code = payload[at..at + 4].try_into().unwrap();
            codes.push(u32::from_be_bytes(code));
        }
        rest = after;
    }
    codes
}

#[expect(clippy::too_many_lines, reason = "one row per flood")]
async fn floods() {
    const NO_ERROR: u32 = 0;
    const PROTOCOL_ERROR: u32 = 1;
    const FLOW_CONTROL_ERROR: u32 = 3;
    const FRAME_SIZE_ERROR: u32 = 6;
    const COMPRESSION_ERROR: u32 = 9;
    const CALM: u32 = 11;
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    let mut caller = Caller::http2(pair.entry).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    let opened = |stream| frame(HEADERS, END_HEADERS, stream, &head());
    let cancel = |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let odd = |n: u32| 2 * n + 1;
    let resets: Vec<Vec<u8>> = (0..10_000)
        .flat_map(|n| [opened(odd(n)), cancel(odd(n))])
        .collect();
    let block: Vec<u8> = literal("x-filler", &"y".repeat(120)).repeat(100);
    let mut continued = vec![frame(HEADERS, 0, 1, &head())];
    continued.extend(vec![frame(CONTINUATION, 0, 1, &block); 100]);
    let mut empty = vec![frame(HEADERS, 0, 1, &head())];
    empty.extend(vec![frame(CONTINUATION, 0, 1, &[]); 20_000]);
    let peak = Peak::begin();
    for (name, frames, expected) in [
        ("rapid reset", resets, &[CALM][..]),
        (
            "continuation",
            continued,
            &[CALM, COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        ("empty continuation", empty, &[CALM, PROTOCOL_ERROR]),
        ("even stream", vec![opened(2)], &[PROTOCOL_ERROR]),
        (
            "older stream",
            vec![opened(5), opened(3)],
            &[PROTOCOL_ERROR, 5],
        ),
        (
            "stream 0",
            vec![frame(HEADERS, END_HEADERS, 0, &head())],
            &[PROTOCOL_ERROR],
        ),
        (
            "data on idle",
            vec![frame(DATA, 0, 1, b"x")],
            &[PROTOCOL_ERROR],
        ),
        (
            "push",
            vec![frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4])],
            &[PROTOCOL_ERROR],
        ),
        (
            "too large",
            vec![frame(DATA, 0, 1, &[0; 20_000])],
            &[FRAME_SIZE_ERROR],
        ),
        (
            "short ping",
            vec![frame(PING, 0, 0, &[0; 7])],
            &[FRAME_SIZE_ERROR, PROTOCOL_ERROR],
        ),
        (
            "zero window",
            vec![frame(WINDOW_UPDATE, 0, 0, &[0; 4])],
            &[PROTOCOL_ERROR],
        ),
        (
            "window overflow",
            vec![frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())],
            &[FLOW_CONTROL_ERROR],
        ),
        (
            "bad hpack",
            vec![frame(HEADERS, END_HEADERS, 1, &[0xff; 9])],
            &[COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            "garbage",
            vec![vec![0xff; 4096]],
            &[FRAME_SIZE_ERROR, PROTOCOL_ERROR],
        ),
    ] {
        let answer = exchange(pair.entry, &frames).await;
        let told = codes(&answer, GOAWAY);
        let last = told.last().copied().unwrap_or(NO_ERROR);
        assert!(expected.contains(&last), "{name}: GOAWAY {told:?}");
        assert_eq!(
            caller.unary("ping").await.grpc_status(),
            Some("0"),
            "{name}"
        );
    }
    // These are answered in kind, as fast as the answers are read.
    for (name, frames) in [
        ("settings", vec![frame(SETTINGS, 0, 0, &[]); 20_000]),
        ("pings", vec![frame(PING, 0, 0, &[0; 8]); 20_000]),
    ] {
        exchange(pair.entry, &frames).await;
        assert_eq!(
            caller.unary("ping").await.grpc_status(),
            Some("0"),
            "{name}"
        );
    }
    let grew = peak.grew_kib();
    assert!(grew <= 8 * 1024, "{grew} KiB");
}

#[test]
fn floods_of_frames_are_refused_in_flat_memory() {
    alone(
        "bad_input::floods_of_frames_are_refused_in_flat_memory",
        floods(),
    );
}

#[tokio::test]
async fn an_http2_request_that_is_none_reaches_nobody() {
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    for (name, block) in [
        ("upper case", [head(), literal("X-Upper", "1")].concat()),
        (
            "connection",
            [head(), literal("connection", "close")].concat(),
        ),
        (
            "transfer-encoding",
            [head(), literal("transfer-encoding", "chunked")].concat(),
        ),
        ("te", [head(), literal("te", "gzip")].concat()),
        (
            "late pseudo",
            [head(), literal("x", "1"), literal(":path", "/")].concat(),
        ),
        ("two paths", [head(), literal(":path", "/b")].concat()),
        ("unknown pseudo", [head(), literal(":what", "x")].concat()),
        (
            "no path",
            [&[0x83, 0x86, 0x01, 12][..], b"echo.shop:80"].concat(),
        ),
        (
            "empty path",
            [vec![0x83, 0x86], literal(":path", "")].concat(),
        ),
        ("status", [head(), literal(":status", "200")].concat()),
    ] {
        let frames = [frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)];
        let answer = exchange(pair.entry, &frames).await;
        let told = [codes(&answer, RST_STREAM), codes(&answer, GOAWAY)].concat();
        assert!(!told.is_empty(), "{name}");
    }
    assert_eq!(app.script.calls(), 0);
}
