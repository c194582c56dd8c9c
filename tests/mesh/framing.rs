//! What HTTP/1.1 says about one hop, and what of it reaches the application.

use std::net::SocketAddr;

use heddle_policy::snapshot::Protocol;
use heddle_shell::task::Tasks;
use heddle_tests::{
    call::{Caller, Feed, http1_request, raw, raw_to},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

fn plan() -> Plan {
    Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    }
}

async fn ask(to: SocketAddr, request: &str) -> String {
    let answer = raw_to(to, request.as_bytes()).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Otherwise an allowed path would open a connection on which no other path is judged.
#[tokio::test]
async fn only_one_protocol_that_is_no_other_http_is_upgraded_to() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    for upgrade in [
        "upgrade: h2c\r\n",
        "upgrade: websocket\r\nupgrade: h2c\r\n",
        "upgrade: websocket, h2c\r\n",
        "upgrade: h2c, websocket\r\n",
        "upgrade: H2C\r\n",
        "upgrade: h2\r\n",
        "upgrade: HTTP/2.0\r\n",
        "upgrade: TLS/1.0\r\n",
        "upgrade: tls/1.2\r\n",
        "upgrade: websocket h2c\r\n",
        "upgrade:\r\n",
    ] {
        let head = "GET /a HTTP/1.1\r\nhost: echo.shop\r\nconnection: upgrade, close\r\n";
        let answer = ask(pair.entry, &format!("{head}{upgrade}\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{upgrade:?}: {answer}");
        let heads = app.script.heads.lock();
        let seen = &heads.last().unwrap().headers;
        assert!(!seen.contains_key("upgrade"), "{upgrade:?}: {seen:?}");
    }
}

/// An application that answers every request with these bytes.
async fn saying(answer: &'static str) -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("application", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the sidecar has closed.
            while let Ok(1..) = stream.read(&mut [0; 64]).await {}
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn an_application_that_switches_to_something_else_is_not_followed() {
    for switched in ["upgrade: h2c\r\n", "upgrade: websocket, h2c\r\n", ""] {
        let answer =
            format!("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n{switched}\r\n");
        let (application, _tasks) = saying(answer.leak()).await;
        let pair = Pair::start(application, &plan());
        let mut caller = Caller::http1(pair.entry).await;
        let mut request = http1_request("GET", "/a", Feed::empty());
        let headers = request.headers_mut();
        headers.insert("connection", "upgrade".parse().unwrap());
        headers.insert("upgrade", "websocket".parse().unwrap());
        let answer = caller.call(request).await;
        assert_eq!(answer.status, 502, "{switched:?}");
        assert_eq!(answer.reason(), Some("bad_response"));
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_passes_whatever_the_method() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    for method in ["GET", "DELETE", "OPTIONS", "POST"] {
        let head =
            format!("{method} /_search HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n");
        let body = "transfer-encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n";
        let answer = ask(pair.entry, &format!("{head}{body}")).await;
        assert!(answer.contains("query"), "{method}: {answer}");
    }
    // Nothing is made up where there is no body.
    let none = "GET / HTTP/1.1\r\nhost: echo.shop\r\nconnection: close\r\n\r\n";
    ask(pair.entry, none).await;
    let heads = app.script.heads.lock();
    assert!(
        !heads
            .last()
            .unwrap()
            .headers
            .contains_key("transfer-encoding")
    );
}

/// HTTP/2 to the endpoint needs an authority; an HTTP/1.0 client has none.
#[tokio::test]
async fn a_request_without_a_host_takes_its_destinations_name() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    for request in [
        "GET /a HTTP/1.0\r\n\r\n",
        "GET /a HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n",
    ] {
        let answer = ask(pair.entry, request).await;
        assert!(answer.starts_with("HTTP/1."), "{answer}");
        assert!(answer.contains(" 200 "), "{answer}");
        let heads = app.script.heads.lock();
        assert_eq!(heads.last().unwrap().headers["host"], "echo.shop:80");
    }
}

/// What a peer says about its own certificate is for us to check, not for the application to
/// believe.
#[tokio::test]
async fn no_peer_tells_the_application_who_it_is() {
    let app = App::good(Speaks::Http1).await;
    let authority = Authority::new();
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan());
    let web = authority.credentials(WEB);
    let inbound = server.plane.bound.inbound_ports[0];
    let stream = mesh::dial_as(&web, inbound, b"http/1.1").await;
    let claim =
        "x-forwarded-client-cert: By=spiffe://td/ns/x/sa/y;URI=spiffe://td/ns/shop/sa/admin\r\n";
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{claim}connection: close\r\n\r\n");
    let answer = raw(stream, request.as_bytes()).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    let heads = app.script.heads.lock();
    assert!(!heads[0].headers.contains_key("x-forwarded-client-cert"));
}

/// An orderly end would let half of a conversation pass for all of it.
#[tokio::test]
async fn a_tunnel_that_is_cut_is_reset() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    let mut stream = TcpStream::connect(pair.entry).await.unwrap();
    let head = "GET /a HTTP/1.1\r\nhost: echo.shop\r\n";
    let request = format!("{head}connection: upgrade\r\nupgrade: websocket\r\n\r\nping");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ping") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"));
    pair.client.deny(ECHO);
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
