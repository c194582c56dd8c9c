//! What a port carries when nobody has declared it, and what a port of HTTP does with the rest.

use std::time::Duration;

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    route::ValueMatch,
    snapshot::{MtlsMode, Protocol},
};
use heddle_proxy::settings::Bounds;
use heddle_tests::{
    call::{Caller, Feed, http1_request, raw, raw_to},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

/// A plaintext port of undeclared protocol in front of `application`.
fn undeclared(application: std::net::SocketAddr, bounds: Bounds) -> Sidecar {
    let plan = Plan {
        protocol: Protocol::Detect,
        mtls: MtlsMode::Disable,
        bounds,
        ..Plan::default()
    };
    mesh::start_server(Authority::new().credentials(ECHO), application, &plan)
}

fn port(sidecar: &Sidecar) -> std::net::SocketAddr {
    sidecar.plane.bound.inbound_ports[0]
}

#[tokio::test]
async fn http_is_told_from_its_first_bytes() {
    let app = App::good(Speaks::Http1).await;
    let mut sidecar = undeclared(app.address, Bounds::default());
    let mut caller = Caller::http1(port(&sidecar)).await;
    let answer = caller.call(http1_request("GET", "/a", Feed::empty())).await;
    assert_eq!(answer.status, 200);
    // One of HTTP, not one of bytes.
    assert_eq!(&*sidecar.record().await.path, "/a");

    let app = App::good(Speaks::Http2).await;
    let sidecar = undeclared(app.address, Bounds::default());
    let answer = Caller::http2(port(&sidecar)).await.unary("ping").await;
    assert_eq!(answer.grpc_status(), Some("0"));
}

#[tokio::test]
async fn bytes_and_an_application_that_speaks_first_are_relayed() {
    let app = App::good(Speaks::Bytes).await;
    let sidecar = undeclared(app.address, Bounds::default());
    let mut stream = TcpStream::connect(port(&sidecar)).await.unwrap();
    let mut back = [0; 6];
    stream.write_all(b"\x00\x01 bin").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();

    let app = App::good(Speaks::BytesServerFirst).await;
    let sidecar = undeclared(app.address, Bounds::default());
    let mut stream = TcpStream::connect(port(&sidecar)).await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello\n");
}

/// The dial that is made for applications that speak first must not hold up one that does not.
#[tokio::test]
async fn a_request_does_not_wait_for_the_other_dial() {
    let (full, _backlog) = full_backlog().await;
    let bounds = Bounds {
        detect_wait: Duration::from_secs(60),
        ..Bounds::default()
    };
    let mut sidecar = undeclared(full.local_addr().unwrap(), bounds);
    let mut stream = TcpStream::connect(port(&sidecar)).await.unwrap();
    stream
        .write_all(b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    let answered = timeout(Duration::from_secs(1), stream.read_exact(&mut answer));
    answered.await.expect("at once").unwrap();
    assert_eq!(&answer, b"HTTP/1.1 405");
    assert_eq!(sidecar.record().await.reason, Some("connect_refused"));
}

/// A listener whose kernel answers nothing to the next connection.
async fn full_backlog() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let to = listener.local_addr().unwrap();
    let mut backlog = Vec::new();
    while let Ok(stream) = timeout(Duration::from_millis(300), TcpStream::connect(to)).await {
        backlog.push(stream.unwrap());
    }
    (listener, backlog)
}

#[tokio::test]
async fn a_request_that_begins_must_go_on() {
    let app = App::good(Speaks::Http1).await;
    let plan = Plan {
        protocol: Protocol::Http1,
        bounds: Bounds {
            header_wait: Duration::from_millis(200),
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let mut pair = Pair::start(app.address, &plan);
    // Opened ahead and not used yet: not a matter of the header timeout.
    let idle = TcpStream::connect(pair.entry).await.unwrap();
    for (begun, answer) in [
        ("G", &b""[..]),
        ("GET / HT", b""),
        // That much is HTTP, and is told so (RFC 9110 section 15.5.9).
        ("GET / HTTP/1.1\r\nhost: a\r\n", b"HTTP/1.1 408"),
    ] {
        let told = raw_to(pair.entry, begun.as_bytes()).await;
        assert_eq!(&told[..told.len().min(12)], answer, "{begun}");
        assert_eq!(pair.client.record().await.reason, Some("bad_request"));
    }
    let whole = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    assert!(raw(idle, whole).await.starts_with(b"HTTP/1.1 200"));
}

/// Rules on HTTP could not judge what is not HTTP.
#[tokio::test]
async fn a_mesh_peer_that_stalls_or_sends_garbage_to_rules_on_http_is_closed() {
    let app = App::good(Speaks::Bytes).await;
    let admin = Condition::Path(ValueMatch::Prefix("/admin".into()));
    let plan = Plan {
        protocol: Protocol::Detect,
        rules: Rules::new(vec![Rule::new("no admin", admin)], None),
        bounds: Bounds {
            header_wait: Duration::from_millis(300),
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let authority = Authority::new();
    let mut server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let web = authority.credentials(WEB);
    for token in [
        &b"heddle-tcp"[..],
        b"heddle-h1",
        b"heddle-h2",
        b"h2",
        b"http/1.1",
    ] {
        for (bytes, answer) in [
            (&b""[..], &b""[..]),
            (b"G", b""),
            (b"\x00\x01\x02garbage", b""),
            (b"GET /admin HTTP/1.1\r\n", b"HTTP/1.1 408"),
        ] {
            let stream = mesh::dial_as(&web, port(&server), token).await;
            let told = raw(stream, bytes).await;
            let told = &told[..told.len().min(12)];
            // Which promises the frames of HTTP/2.
            let answer = if token == b"heddle-h1" { b"" } else { answer };
            assert_eq!(told, answer, "{token:?} {bytes:?}");
            assert_eq!(server.record().await.reason, Some("bad_request"));
        }
        if token == b"heddle-h1" {
            continue;
        }
        // The same bytes as HTTP are judged.
        let stream = mesh::dial_as(&web, port(&server), token).await;
        let request = b"GET /admin HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let answer = raw(stream, request).await;
        assert!(answer.starts_with(b"HTTP/1.1 403"), "{token:?}");
        assert_eq!(server.record().await.reason, Some("denied"));
    }
    assert_eq!(app.script.calls(), 0);
}
