//! What no good client sends: a clear refusal, and the sidecar goes on as if nothing had been.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use heddle_policy::snapshot::Protocol;
use heddle_proxy::settings::Bounds;
use heddle_shell::tls::{self, Accept, Trust};
use heddle_tests::{
    call::{Caller, raw, raw_to},
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
        let web = self.authority.credentials(WEB);
        let from_peer = mesh::dial_as(&web, self.pair.inbound, b"http/1.1").await;
        let from_workload = raw_to(self.pair.entry, bytes).await;
        [from_workload, raw(from_peer, bytes).await]
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
        ("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501"),
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
    raw_to(mesh.pair.entry, request.as_bytes()).await;
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

/// The first flight of a handshake as a sidecar begins it.
fn hello(authority: &Authority) -> Vec<u8> {
    let web = authority.credentials(WEB);
    let trust = Trust::Bundle(Arc::clone(&web.trust));
    let config = tls::client(Some(&web.identity), trust, Accept::Mesh, &[b"heddle-h2"]);
    let name = "echo.shop".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.unwrap(), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn half_handshakes() {
    /// Of each kind at once, and how often.
    const CONNECTIONS: usize = 24;
    const ROUNDS: usize = 10;
    const KIB_MAX: u64 = 8 * 1024;
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        bounds: Bounds {
            header_wait: Duration::from_millis(300),
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let authority = Authority::new();
    let (web, echo) = (authority.credentials(WEB), authority.credentials(ECHO));
    let pair = Pair::with(web, echo, app.address, &plan);
    let mut caller = Caller::http2(pair.entry).await;
    let hello = hello(&authority);
    // A record of 16 KiB is announced, half of it comes.
    let announced = [&[0x16, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; 8192]].concat();
    let alert = [0x15, 3, 3, 0, 2, 2, 0];
    let (inbound, entry) = (pair.inbound, pair.entry);
    let rows: [(SocketAddr, &[u8]); 9] = [
        (inbound, &hello),
        (inbound, &hello[..hello.len() / 2]),
        (inbound, &hello[..1]),
        (inbound, &announced),
        (inbound, &alert),
        (inbound, &[0xff; 4096]),
        (inbound, b"GET / HTTP/1.1\r\nhost: echo.shop\r\n"),
        (entry, b"GET / HTTP/1.1\r\nhost: echo.shop\r\n"),
        (entry, &[0xff; 4096]),
    ];
    let mut peak = None;
    for _ in 0..ROUNDS {
        let connections = rows.iter().cycle().take(rows.len() * CONNECTIONS);
        // Each is closed by the sidecar, or `raw` fails.
        let ended = join_all(connections.map(async |(to, bytes)| {
            raw_to(*to, bytes).await;
        }));
        let answered = async {
            let answer = caller.unary("ping").await;
            assert_eq!(answer.grpc_status(), Some("0"));
        };
        tokio::join!(ended, answered);
        // What the first round needs, the others use again.
        peak.get_or_insert_with(Peak::begin);
    }
    let grew = peak.map_or(0, |peak| peak.grew_kib());
    assert!(grew <= KIB_MAX, "{grew} KiB");
    assert_eq!(app.script.calls(), ROUNDS);
}

#[test]
fn half_handshakes_and_garbage_are_held_in_flat_memory() {
    alone(
        "bad_input::half_handshakes_and_garbage_are_held_in_flat_memory",
        half_handshakes(),
    );
}
