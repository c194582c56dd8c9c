//! A destination whose port nobody has declared, through both sidecars: its first bytes decide,
//! unless somebody has written routes.

use std::{io::ErrorKind, time::Duration};

use heddle_policy::snapshot::Protocol;
use heddle_proxy::{
    exchange::{Direction, Spoken},
    settings::Bounds,
};
use heddle_tests::{
    call::{Caller, Feed, http1_request, raw, raw_to},
    echo::{App, Speaks},
    eventually,
    mesh::{self, Authority, Pair, Plan, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

fn undeclared() -> Plan {
    Plan {
        protocol: Protocol::Detect,
        route: "",
        ..Plan::default()
    }
}

/// Longer than any of this takes, far shorter than the wait for a request head.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn an_application_that_speaks_first_is_heard() {
    let app = App::good(Speaks::BytesServerFirst).await;
    let mut pair = Pair::start(app.address, &undeclared());
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    let mut greeting = [0; 6];
    let heard = timeout(SOON, stream.read_exact(&mut greeting)).await;
    heard.expect("it is not held back").unwrap();
    assert_eq!(&greeting, b"hello\n");
    drop(stream);
    for sidecar in [&mut pair.client, &mut pair.server] {
        let record = sidecar.record().await;
        assert_eq!((record.spoken, record.reason), (Spoken::Tcp, None));
        assert_eq!((record.bytes_sent, record.attempts), (6, 1));
    }
}

#[tokio::test]
async fn bytes_that_are_not_http_are_relayed_from_the_first_on() {
    let app = App::good(Speaks::Bytes).await;
    let mut pair = Pair::start(app.address, &undeclared());
    // One of them resembles TLS, one a request until its line ends.
    for said in [
        &b"\x00\x01\x02"[..],
        b"\x16\x03\x01\x00",
        b"SELECT 1;\n",
        b"GET ",
    ] {
        let mut stream = TcpStream::connect(pair.entry).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(raw(stream, b"").await, said);
        let record = pair.client.record().await;
        assert_eq!((record.spoken, record.reason), (Spoken::Tcp, None));
        assert_eq!(record.bytes_received, said.len() as u64);
    }
}

#[tokio::test]
async fn http_is_served_as_http() {
    let app = App::good(Speaks::Http1).await;
    let mut pair = Pair::start(app.address, &undeclared());
    // Neither HTTP nor anything else: it leaves no record.
    drop(TcpStream::connect(pair.entry).await.unwrap());
    let mut caller = Caller::http1(pair.entry).await;
    for path in ["/a", "/b"] {
        let answer = caller.call(http1_request("GET", path, Feed::empty())).await;
        assert_eq!(answer.status, 200);
        let record = pair.client.record().await;
        assert_eq!((record.spoken, &*record.path), (Spoken::Http1, path));
    }

    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &undeclared());
    let answer = Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(answer.grpc_status(), Some("0"));
    assert_eq!(pair.client.record().await.spoken, Spoken::Grpc);
}

/// A connection that was opened ahead carries bytes from then on: its requests still work.
#[tokio::test]
async fn a_request_after_the_wait_still_reaches_the_application() {
    let app = App::good(Speaks::Http1).await;
    let plan = Plan {
        bounds: Bounds {
            detect_wait: Duration::from_millis(30),
            ..Bounds::default()
        },
        ..undeclared()
    };
    let pair = Pair::start(app.address, &plan);
    let stream = TcpStream::connect(pair.entry).await.unwrap();
    let metrics = &pair.server.telemetry.metrics;
    eventually(|| metrics.activity(Direction::Inbound).1 == 1).await;
    let request = b"GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    assert!(raw(stream, request).await.starts_with(b"HTTP/1.1 200"));
    assert_eq!(app.script.calls(), 1);
}

/// Whoever writes a route has said that it is HTTP.
#[tokio::test]
async fn a_destination_with_routes_is_never_relayed_opaque() {
    let app = App::good(Speaks::Bytes).await;
    let plan = Plan {
        route: "all",
        ..undeclared()
    };
    let mut pair = Pair::start(app.address, &plan);
    assert_eq!(raw_to(pair.entry, b"\x00\x01\x02").await, b"");
    assert_eq!(pair.client.record().await.reason, Some("bad_request"));
    let reached = pair.server.telemetry.metrics.activity(Direction::Inbound);
    assert_eq!(reached, (0, 0));
}

#[tokio::test]
async fn without_an_endpoint_that_answers_the_client_is_told_by_a_reset() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    let credentials = Authority::new().credentials(WEB);
    let mut client = mesh::start_client(credentials, &[nobody], &undeclared());
    let entry = client.plane.bound.outbound_fixed[0];
    // Silence, and bytes.
    for said in [&b""[..], b"\x00"] {
        // The reset may come before the kernel tells that the connection is made.
        let reading = async {
            let mut stream = TcpStream::connect(entry).await?;
            stream.write_all(said).await?;
            stream.read(&mut [0]).await
        };
        let ended = timeout(SOON, reading).await.expect("it ends");
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let record = client.record().await;
        assert_eq!(
            (record.reason, record.endpoint),
            (Some("connect"), Some(nobody))
        );
    }
    let mut caller = Caller::http1(entry).await;
    let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
    assert_eq!((answer.status, answer.reason()), (503, Some("connect")));
}
