use std::sync::LazyLock;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::drain::Drain;

/// A process has one.
static LEVEL: LazyLock<Level> = LazyLock::new(|| heddle_shell::log::install("off").unwrap());

/// A server, and what it was asked to do.
async fn start(interface: Interface) -> (SocketAddr, watch::Receiver<bool>, Tasks) {
    let (drain, asked) = watch::channel(false);
    let admin = Arc::new(Admin {
        health: Health {
            held: Published::new(Held::default()),
            views: Published::new(View::empty(clock::now())),
            client: Published::new(ClientState::default()),
            draining: Drain::default().watch(),
        },
        telemetry: Arc::default(),
        level: LEVEL.clone(),
        filter: Published::new(String::new()),
        drain,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("admin", serve(admin, listener, interface));
    (address, asked, tasks)
}

/// The status line that comes back for these lines of a head.
async fn ask(stream: &mut TcpStream, lines: &str) -> String {
    let head = format!("{lines}host: localhost\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

#[tokio::test]
async fn callers_that_hold_connections_do_not_keep_a_probe_out() {
    let (address, _, _tasks) = start(Interface::Platform).await;
    let probe = "GET /health/live HTTP/1.1\r\n";
    let mut held = Vec::new();
    for n in 0..2 * CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if n % 2 == 0 {
            // Nobody waits for this body.
            let lines = format!("{probe}content-length: 9\r\n");
            let status = ask(&mut stream, &lines).await;
            assert_eq!(status, "HTTP/1.1 200 OK\r\n");
        }
        held.push(stream);
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut stream, probe).await, "HTTP/1.1 200 OK\r\n");
    // The first of those that said nothing gave way.
    assert!(matches!(held[1].read(&mut [0]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_page_in_a_browser_changes_nothing() {
    let (address, asked, _tasks) = start(Interface::Admin).await;
    for from in [
        "origin: null\r\n",
        "origin: http://evil.example\r\n",
        "sec-fetch-site: same-site\r\n",
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let lines = format!("POST /drain HTTP/1.1\r\ncontent-length: 0\r\n{from}");
        let status = ask(&mut stream, &lines).await;
        assert_eq!(status, "HTTP/1.1 403 Forbidden\r\n", "{from}");
        assert!(!*asked.borrow());
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    let lines = "POST /drain HTTP/1.1\r\ncontent-length: 0\r\n";
    assert_eq!(ask(&mut stream, lines).await, "HTTP/1.1 202 Accepted\r\n");
    assert!(*asked.borrow());
}

#[test]
fn only_names_of_this_machine_reach_the_admin_interface() {
    for host in [
        "localhost",
        "LOCALHOST:15000",
        "127.0.0.1:15000",
        "[::1]:15000",
    ] {
        assert!(is_local_host(host), "{host}");
    }
    for host in [
        "",
        "evil.example",
        "evil.example:15000",
        "localhost.evil",
        "10.0.0.1",
        "127.0.0.1.evil",
    ] {
        assert!(!is_local_host(host), "{host}");
    }
}

/// What a server of its own says to one request: the status and the body.
async fn page(address: SocketAddr, line: &str, host: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let len = body.len();
    let head = format!("{line} HTTP/1.1\r\n{host}content-length: {len}\r\n\r\n");
    // It may answer and close before all of it is written.
    _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    let mut answer = Vec::new();
    _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "one row per page")]
async fn every_page_answers_where_it_may_be_asked() {
    use Interface::{Admin, Platform};
    let (platform, _, _platform_tasks) = start(Platform).await;
    let (admin, asked, _admin_tasks) = start(Admin).await;
    let long = "x".repeat(17 * 1024);
    let (long_path, long_host) = (
        format!("GET /{long}"),
        format!("host: localhost\r\nx: {long}\r\n"),
    );
    let mut most = b"off".to_vec();
    most.resize(BODY_BYTES_MAX, b' ');
    let more = [&most[..], b" "].concat();
    let (here, there) = ("host: localhost\r\n", "host: evil.example\r\n");
    for (interface, line, host, body, status) in [
        // Anybody who reaches the pod may ask how it is, by any name.
        (Platform, "GET /health/live", there, &b""[..], 200),
        (Platform, "GET /health/ready", there, b"", 503),
        (Platform, "GET /metrics", there, b"", 200),
        (Platform, "GET /metrics", "", b"", 200),
        // Details are for this machine; others hear what `ready` says.
        (Platform, "GET /health/detailed", here, b"", 200),
        (Platform, "GET /health/detailed", there, b"", 503),
        // Of the rest it knows nothing.
        (Platform, "GET /config", here, b"", 404),
        (Platform, "GET /clusters", here, b"", 404),
        (Platform, "GET /log-level", here, b"", 404),
        (Platform, "PUT /log-level", here, b"off", 404),
        (Platform, "PUT /log-level", here, &more, 404),
        (Platform, "POST /drain", here, b"", 404),
        (Platform, "POST /metrics", here, b"", 404),
        (Platform, &long_path, here, b"", 431),
        (Platform, "GET /health/live", &long_host, b"", 431),
        (Admin, "GET /health/live", here, b"", 200),
        (
            Admin,
            "GET /health/ready",
            "host: 127.0.0.1:15000\r\n",
            b"",
            503,
        ),
        (
            Admin,
            "GET /health/detailed",
            "host: [::1]:15000\r\n",
            b"",
            200,
        ),
        (Admin, "GET /metrics", here, b"", 200),
        (Admin, "GET /config", here, b"", 200),
        (Admin, "GET /clusters", here, b"", 200),
        (Admin, "GET /log-level", here, b"", 200),
        (Admin, "PUT /log-level", here, b"off", 200),
        (Admin, "PUT /log-level", here, &most, 200),
        (Admin, "PUT /log-level", here, &more, 413),
        (Admin, "PUT /log-level", here, b"off\xff", 400),
        (Admin, "PUT /log-level", here, b"heddle_proxy=loud", 400),
        (Admin, "GET /nowhere", here, b"", 404),
        (Admin, "PUT /metrics", here, b"", 404),
        (Admin, "POST /config", here, b"", 405),
        (Admin, "DELETE /clusters", here, b"", 405),
        (Admin, "POST /log-level", here, b"off", 405),
        (Admin, "GET /drain", here, b"", 405),
        (Admin, &long_path, here, b"", 431),
        (Admin, "GET /config", &long_host, b"", 431),
        // A name of somebody else's that leads here.
        (Admin, "GET /health/live", there, b"", 403),
        (Admin, "GET /config", there, b"", 403),
        (Admin, "PUT /log-level", there, b"off", 403),
        (Admin, "POST /drain", there, b"", 403),
        (Admin, "GET /config", "", b"", 403),
    ] {
        let address = match interface {
            Platform => platform,
            Admin => admin,
        };
        let (answered, said) = page(address, line, host, body).await;
        assert_eq!(
            answered, status,
            "{interface:?} {line:.40} {host:.40}: {said}"
        );
    }
    assert!(!*asked.borrow(), "one of these drains");
    assert_eq!(page(admin, "POST /drain", here, b"").await.0, 202);
    assert!(*asked.borrow());
}

#[tokio::test]
async fn a_log_level_that_was_put_is_the_one_that_is_told() {
    let (address, _, _tasks) = start(Interface::Admin).await;
    let host = "host: localhost\r\n";
    for (put, told) in [
        ("off,heddle_proxy=off\n", "off,heddle_proxy=off\n"),
        // Not understood, so nothing changes.
        ("heddle_proxy=loud", "off,heddle_proxy=off\n"),
        ("off", "off\n"),
    ] {
        page(address, "PUT /log-level", host, put.as_bytes()).await;
        let (_, said) = page(address, "GET /log-level", host, b"").await;
        assert_eq!(said, told, "{put}");
    }
}
