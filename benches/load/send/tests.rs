//! The generator against servers that answer right and wrong.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    thread,
};

use bytes::Bytes;
use h2::server;
use http::{HeaderMap, HeaderValue, Response};

use super::{Order, run};
use crate::scenario::Load;

/// Runs `load` once against a server; the number of answers, or a part of what is said.
#[track_caller]
fn check(load: &str, server: impl FnOnce() -> SocketAddr, expected: Result<u64, &str>) {
    let load: Load = serde_json::from_str(load).expect("it is one");
    let order = Order {
        address: server(),
        authority: "echo.bench:80".to_owned(),
        load,
        seconds: 0,
    };
    match (run(&order), expected) {
        (Ok(answers), Ok(count)) => assert_eq!(answers.count, count),
        (Err(error), Err(words)) => {
            let error = format!("{error:#}");
            assert!(error.contains(words), "{error}");
        }
        (got, _) => panic!("{got:?}"),
    }
}

const CONNECT: &str = r#"{"connect": {"connections": 2, "bytes": 100}}"#;
const STREAM: &str = r#"{"stream": {"connections": 2, "bytes": 300000}}"#;
const HTTP: &str = r#"{"http": {"version": "http2", "connections": 2, "streams": 3,
    "request_bytes": 100, "response_bytes": 10, "unique_headers": 6}}"#;

#[test]
fn bytes_count_only_when_they_come_back_as_they_went() {
    for load in [CONNECT, STREAM] {
        check(load, || echo(|_| {}), Ok(2));
        check(load, || echo(|bytes| bytes[0] ^= 1), Err("other bytes"));
        check(
            load,
            || echo(|bytes| bytes.rotate_left(1)),
            Err("other bytes"),
        );
    }
    check(CONNECT, || echo(Vec::clear), Err("reading"));
    check(CONNECT, || echo(|bytes| bytes.push(0)), Err("too much"));
}

#[test]
fn a_request_counts_only_with_its_status_its_bytes_and_its_grpc_status() {
    check(HTTP, || http2(200, 10, Some("0")), Ok(6));
    check(HTTP, || http2(503, 10, Some("0")), Err("status 503"));
    check(HTTP, || http2(200, 9, Some("0")), Err("9 bytes, not 10"));
    check(HTTP, || http2(200, 11, Some("0")), Err("11 bytes, not 10"));
    check(HTTP, || http2(200, 10, Some("14")), Err("\"14\""));
    check(HTTP, || http2(200, 10, None), Err("None"));
}

#[test]
fn an_open_loop_sends_as_many_as_are_due() {
    let rate = HTTP.replace("\"streams\": 3", "\"requests_per_s\": 50, \"burst\": 5");
    let order = Order {
        address: http2(200, 10, Some("0")),
        authority: "echo.bench:80".to_owned(),
        load: serde_json::from_str(&rate).expect("it is one"),
        seconds: 1,
    };
    assert_eq!(run(&order).expect("all are right").count, 50);
}

/// Sends back what came, the first 100 bytes as `spoil` leaves them; closes when it leaves none.
fn echo(spoil: fn(&mut Vec<u8>)) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for socket in listener.incoming() {
            thread::spawn(move || -> std::io::Result<()> {
                let mut socket = socket?;
                let mut first = vec![0; 100];
                socket.read_exact(&mut first)?;
                spoil(&mut first);
                socket.write_all(&first)?;
                if first.is_empty() {
                    return Ok(());
                }
                let mut rest = Vec::new();
                socket.read_to_end(&mut rest)?;
                socket.write_all(&rest)
            });
        }
    });
    address
}

/// Answers every request so.
fn http2(status: u16, bytes: usize, grpc_status: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a port");
    let address = listener.local_addr().expect("it is bound");
    listener.set_nonblocking(true).expect("it is a socket");
    let serve = async move {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await?;
            connections.spawn(async move {
                let mut connection = server::handshake(socket).await?;
                while let Some(request) = connection.accept().await {
                    let (_, mut respond) = request?;
                    let head = Response::builder().status(status).body(());
                    let head = head.expect("it is a status");
                    let mut stream = respond.send_response(head, false)?;
                    stream.send_data(Bytes::from(vec![b'y'; bytes]), grpc_status.is_none())?;
                    if let Some(status) = grpc_status {
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", HeaderValue::from_static(status));
                        stream.send_trailers(trailers)?;
                    }
                }
                Ok::<_, h2::Error>(())
            });
        }
    };
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async { std::io::Result::<()>::from(serve.await) })
    });
    address
}
