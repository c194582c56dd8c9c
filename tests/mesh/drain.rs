//! A sidecar that stops, with an application that stays.

use std::time::Duration;

use heddle_policy::snapshot::Protocol;
use heddle_proxy::drain::Phase;
use heddle_shell::clock;
use heddle_tests::{
    call::{Caller, Feed, http1_request},
    echo::{App, Speaks},
    eventually,
    mesh::{Pair, Plan, Sidecar},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const DAY: Duration = Duration::from_hours(24);
/// Far above what a drain with nothing to wait for takes.
const SECONDS: Duration = Duration::from_secs(10);

fn plan(protocol: Protocol) -> Plan {
    Plan {
        protocol,
        ..Plan::default()
    }
}

async fn echoes(stream: &mut TcpStream) {
    let mut back = [0; 4];
    stream.write_all(b"ping").await.unwrap();
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
}

/// The limit of a day is for what runs; connections that wait for their next request, or for
/// their first, are told goodbye.
#[tokio::test]
async fn connections_that_wait_hold_up_neither_side() {
    for (speaks, protocol) in [
        (Speaks::Http2, Protocol::Http2),
        (Speaks::Http1, Protocol::Http1),
    ] {
        let app = App::good(speaks).await;
        let mut pair = Pair::start(app.address, &plan(protocol));
        let mut caller = match protocol {
            Protocol::Http1 => Caller::http1(pair.entry).await,
            _ => Caller::http2(pair.entry).await,
        };
        let request = || http1_request("POST", "http://echo.shop/a", Feed::of("ping"));
        assert_eq!(caller.call(request()).await.status, 200);
        let unused = TcpStream::connect(pair.entry).await.unwrap();
        let stopped = timeout(SECONDS, pair.server.stop(DAY)).await;
        stopped.expect("the peer's connection is idle");
        let stopped = timeout(SECONDS, pair.client.stop(DAY)).await;
        stopped.expect("the application's connections are idle");
        drop(unused);
        assert!(caller.send(request()).await.is_err());
    }
}

/// It cannot be told whether such a connection is idle: its application is there until it ends.
#[tokio::test]
async fn an_opaque_connection_keeps_the_way_out_open_until_it_ends() {
    /// Longer than an application that says nothing is waited for.
    const A_WHILE: Duration = Duration::from_secs(4);
    let app = App::good(Speaks::Bytes).await;
    let mut pair = Pair::start(app.address, &plan(Protocol::Tcp));
    let entry = pair.entry;
    let mut held = TcpStream::connect(entry).await.unwrap();
    echoes(&mut held).await;
    let mut phase = pair.client.drain.watch();
    let application = async {
        phase.reached(Phase::Inbound).await;
        let until = clock::now() + A_WHILE;
        while clock::now() < until {
            echoes(&mut held).await;
            echoes(&mut TcpStream::connect(entry).await.unwrap()).await;
        }
        assert_eq!(phase.phase(), Phase::Inbound);
        drop(held);
    };
    let stopping = async {
        tokio::join!(pair.client.stop(DAY), application);
    };
    let stopped = timeout(A_WHILE + SECONDS, stopping).await;
    stopped.expect("nothing is left to wait for");
}

#[tokio::test]
async fn at_the_limit_the_rest_is_cut_and_says_so() {
    let app = App::good(Speaks::Bytes).await;
    let mut pair = Pair::start(app.address, &plan(Protocol::Tcp));
    let mut held = TcpStream::connect(pair.entry).await.unwrap();
    echoes(&mut held).await;
    let stopped = timeout(SECONDS, pair.client.stop(Duration::from_secs(1))).await;
    stopped.expect("the limit is over");
    assert!(held.read(&mut [0]).await.is_err());
    assert_eq!(pair.client.record().await.reason, Some("reset"));
}

/// What a stop waits for is in the metrics.
#[tokio::test]
async fn what_is_under_way_is_counted() {
    let app = App::good(Speaks::Bytes).await;
    let pair = Pair::start(app.address, &plan(Protocol::Tcp));
    let active = |sidecar: &Sidecar| {
        let mut text = heddle_proxy::telemetry::metrics::Text::default();
        sidecar.telemetry.metrics.write(&mut text);
        let lines = text.0.lines();
        let lines = lines.filter(|line| line.starts_with("heddle_exchanges_active"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let counts = |outbound, inbound| {
        [("outbound", outbound), ("inbound", inbound)]
            .map(|(side, n)| format!("heddle_exchanges_active{{direction=\"{side}\"}} {n}"))
    };
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    echoes(&mut stream).await;
    assert_eq!(active(&pair.client), counts(1, 0));
    assert_eq!(active(&pair.server), counts(0, 1));
    drop(stream);
    eventually(|| active(&pair.client) == counts(0, 0)).await;
    eventually(|| active(&pair.server) == counts(0, 0)).await;
}
