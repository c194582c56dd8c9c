//! HTTP/1.1 stays HTTP/1.1 through two sidecars.

use heddle_policy::{
    path::{EmptySegments, EscapedSlashes, Strictness},
    snapshot::Protocol,
};
use heddle_proxy::settings::Bounds;
use heddle_tests::{
    call::{Caller, Feed, http1_request},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn plan() -> Plan {
    Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_many_requests() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    let mut caller = Caller::http1(pair.entry).await;
    for _ in 0..20 {
        let request = http1_request("POST", "/a/./b?q=1", Feed::of("ping"));
        let answer = caller.call(request).await;
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ping"[..]));
    }
    let heads = app.script.heads.lock();
    assert_eq!(heads[0].uri, "/a/b?q=1");
    assert_eq!(heads[0].headers["host"], "echo.shop");
    assert!(heads[0].headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn an_upgraded_connection_passes_bytes_both_ways() {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    let mut caller = Caller::http1(pair.entry).await;
    let mut request = http1_request("GET", "/socket", Feed::empty());
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", "websocket".parse().unwrap());
    let mut response = caller.send(request).await.unwrap();
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "websocket");
    let stream = hyper::upgrade::on(&mut response).await.unwrap();
    let mut stream = TokioIo::new(stream);
    for message in [b"one..", b"two.."] {
        stream.write_all(message).await.unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, message);
    }
}

/// Settings of the callers' and the application's sidecar; what the application sees, if anything.
async fn check_path(client: Strictness, server: Strictness, seen: Option<&str>) {
    let app = App::good(Speaks::Http1).await;
    let authority = Authority::new();
    let plan = |paths| Plan {
        bounds: Bounds {
            paths,
            ..Bounds::default()
        },
        ..plan()
    };
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan(server));
    let inbound = server.plane.bound.inbound_ports[0];
    let client = mesh::start_client(authority.credentials(WEB), &[inbound], &plan(client));
    let mut caller = Caller::http1(client.plane.bound.outbound_fixed[0]).await;
    let answer = caller.call(http1_request("GET", "/a%2fb//c", Feed::empty()));
    let answer = answer.await;
    let heads = app.script.heads.lock();
    assert_eq!(
        heads.first().map(|head| head.uri.to_string()).as_deref(),
        seen
    );
    let refused = seen.is_none().then_some("bad_request");
    assert_eq!(answer.reason(), refused);
}

#[tokio::test]
async fn escaped_and_double_slashes_pass_where_both_sidecars_are_told_to() {
    let strict = Strictness::default();
    let escaped = Strictness {
        escaped_slashes: EscapedSlashes::Keep,
        ..strict
    };
    let all = Strictness {
        empty_segments: EmptySegments::Keep,
        ..escaped
    };
    check_path(strict, all, None).await;
    check_path(all, strict, None).await;
    check_path(escaped, all, Some("/a%2Fb/c")).await;
    check_path(all, escaped, Some("/a%2Fb/c")).await;
    check_path(all, all, Some("/a%2Fb//c")).await;
}

/// Sends `request` as it is; the answer must begin with `status` and name `reason`.
async fn check_raw(request: &str, status: &str, reason: &str) {
    let app = App::good(Speaks::Http1).await;
    let pair = Pair::start(app.address, &plan());
    let mut stream = TcpStream::connect(pair.entry).await.expect("it listens");
    stream
        .write_all(request.as_bytes())
        .await
        .expect("it reads");
    let mut answer = vec![0; 4096];
    let n = stream.read(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..n]);
    assert!(
        answer.starts_with(&format!("HTTP/1.1 {status}")),
        "{answer}"
    );
    assert!(
        answer.contains(&format!("x-heddle-reason: {reason}")),
        "{answer}"
    );
    assert_eq!(app.script.calls(), 0);
}

#[tokio::test]
async fn what_may_not_be_forwarded_is_refused_with_the_reason() {
    check_raw("GET /a HTTP/1.1\r\n\r\n", "400", "bad_request").await;
    let two = "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n";
    check_raw(two, "400", "bad_request").await;
    check_raw(
        "GET /a%2fb HTTP/1.1\r\nHost: a\r\n\r\n",
        "400",
        "bad_request",
    )
    .await;
    let connect = "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";
    check_raw(connect, "405", "connect_refused").await;
}

/// Of a connection of HTTP/1.1 only as much is read as there is room for, and TLS records come
/// whole: what comes beside it is not lost.
#[tokio::test]
async fn requests_sent_far_ahead_over_tls_are_all_answered() {
    const REQUESTS: usize = 1000;
    let app = App::good(Speaks::Http1).await;
    let authority = Authority::new();
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan());
    let inbound = server.plane.bound.inbound_ports[0];
    let web = authority.credentials(WEB);
    let stream = mesh::dial_as(&web, inbound, b"http/1.1").await;
    let (mut read, mut write) = tokio::io::split(stream);
    let path = "a".repeat(400);
    let one = format!("GET /{path} HTTP/1.1\r\nhost: a\r\n\r\n");
    let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let all = one.repeat(REQUESTS - 1) + last;
    let asking = async {
        write.write_all(all.as_bytes()).await.unwrap();
        write.flush().await.unwrap();
    };
    let mut answers = Vec::new();
    let ((), came) = tokio::join!(asking, read.read_to_end(&mut answers));
    came.unwrap();
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), REQUESTS);
    assert_eq!(app.script.calls(), REQUESTS);
}
