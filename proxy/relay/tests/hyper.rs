//! The same bytes to us and to hyper: what we take for requests hyper takes for the same requests, in
//! the same order, with the same bodies, and so for an answer. We may stop earlier: we refuse more.

use std::{cell::RefCell, convert::Infallible, rc::Rc, time::Instant};

use bytes::Bytes;
use heddle_relay::{
    event::{Event, StreamId, Then},
    h1::{Connection, Form, Limits, Role},
    head::{Head, Heads, Indexing},
    input::Input,
    token::Token,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, body::Incoming, client, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

const SEEDS: u64 = 10_000;

/// Whole requests: method, path, body, number of trailers.
type Requests = Vec<(String, String, Vec<u8>, usize)>;

/// Parts of requests, good and bad; the first begin one.
const PARTS: [&str; 32] = [
    "GET / HTTP/1.1\r\nhost: a\r\n",
    "POST /a?b HTTP/1.1\r\nhost: a\r\n",
    "GET http://h/p HTTP/1.0\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\n",
    "content-length: 3\r\n",
    "Content-Length: 03\r\n",
    "content-length: 0\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "transfer-encoding: gzip\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "x: y\r\n",
    "x : y\r\n",
    " x: y\r\n",
    "expect: 100-continue\r\n",
    "host: a\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "abc",
    "3\r\nabc\r\n",
    "3;x=y\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nt: 1\r\n\r\n",
    "0\r\n",
    " ",
    "\0",
    ":",
    "g",
];

fn stream(rng: &mut StdRng) -> String {
    let mut text = String::new();
    for _ in 0..rng.random_range(1..4) {
        text += PARTS[rng.random_range(0..4)];
        for _ in 0..rng.random_range(0..3) {
            text += PARTS[rng.random_range(4..17)];
        }
        text += "\r\n";
        for _ in 0..rng.random_range(0..4) {
            text += PARTS[rng.random_range(17..PARTS.len())];
        }
    }
    text
}

fn ours(bytes: &[u8]) -> Requests {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    let mut connection = Connection::new(Role::Server, &Limits::default());
    let mut heads = Heads::default();
    let mut input = Input::lent(bytes);
    let mut requests = Requests::new();
    let mut request = (String::new(), String::new(), Vec::new(), 0);
    let mut answer = Head::new();
    answer.push(b":status", b"200", Indexing::Allowed);
    let mut end = |connection: &mut Connection, stream: StreamId, request: &_| {
        requests.push(Clone::clone(request));
        connection.send_head(stream, &answer, Then::End);
    };
    // What is left of the input after an error is thrown away.
    while let Ok(Some(event)) = connection.receive(&mut input, &mut heads, now) {
        match event {
            Event::Head { stream, head, then } => {
                let field = |token| {
                    let value = head.get(token).unwrap_or_default();
                    String::from_utf8_lossy(value).into_owned()
                };
                request = (field(Token::Method), field(Token::Path), Vec::new(), 0);
                if then == Then::End {
                    end(&mut connection, stream, &request);
                }
            }
            Event::Data {
                stream, data, then, ..
            } => {
                request.2.extend_from_slice(data.as_slice());
                if then == Then::End {
                    end(&mut connection, stream, &request);
                }
            }
            Event::Trailers { stream, head } => {
                request.3 = head.iter().len();
                end(&mut connection, stream, &request);
            }
            other => unreachable!("{other:?}"),
        }
    }
    requests
}

async fn hypers(bytes: &[u8]) -> Requests {
    let requests = Rc::new(RefCell::new(Requests::new()));
    let taken = Rc::clone(&requests);
    let service = service_fn(move |request: Request<Incoming>| {
        let taken = Rc::clone(&taken);
        async move {
            let method = request.method().to_string();
            let path = request.uri().path_and_query().map(ToString::to_string);
            if let Ok(body) = request.into_body().collect().await {
                let trailers = body.trailers().map_or(0, hyper::HeaderMap::len);
                let body = body.to_bytes().to_vec();
                let request = (method, path.unwrap_or_default(), body, trailers);
                taken.borrow_mut().push(request);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let (mut client, server) = duplex(64 * 1024);
    let serving = http1::Builder::new()
        .half_close(true)
        .serve_connection(TokioIo::new(server), service);
    let asking = async {
        _ = client.write_all(bytes).await;
        _ = client.shutdown().await;
        _ = client.read_to_end(&mut Vec::new()).await;
    };
    // How hyper ends the connection says nothing about the requests that it took.
    _ = tokio::join!(serving, asking);
    requests.take()
}

#[test]
fn hyper_takes_what_we_take_for_the_same_requests() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let (mut taken, mut same) = (0, 0);
    for seed in 0..SEEDS {
        let text = stream(&mut StdRng::seed_from_u64(seed));
        let ours = ours(text.as_bytes());
        let hypers = runtime.block_on(hypers(text.as_bytes()));
        let first = hypers.get(..ours.len());
        assert_eq!(first, Some(&ours[..]), "seed {seed}: {text:?}: {hypers:?}");
        taken += ours.len();
        same += usize::from(ours == hypers);
    }
    assert!(taken > 1_000, "the streams have requests in them: {taken}");
    assert!(same > 1_000, "mostly they are all taken: {same}");
}

/// Status, body, number of trailers.
type Answer = (u16, Vec<u8>, usize);

/// Parts of answers, good and bad; the first begin one.
const ANSWER_PARTS: [&str; 24] = [
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 \r\n",
    "HTTP/1.0 404 \r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "content-length: 3\r\n",
    "Content-Length: 03\r\n",
    "content-length: 0\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "x: y\r\n",
    "x : y\r\n",
    " x: y\r\n",
    "\r\n",
    "\n",
    "abc",
    "3\r\nabc\r\n",
    "3;x=y\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nt: 1\r\n\r\n",
    "0\r\n",
    "g",
];

fn answer(rng: &mut StdRng) -> String {
    let mut text = String::new();
    if rng.random_range(0..8) == 0 {
        text += ANSWER_PARTS[4];
    }
    text += ANSWER_PARTS[rng.random_range(0..4)];
    for _ in 0..rng.random_range(0..3) {
        text += ANSWER_PARTS[rng.random_range(5..15)];
    }
    text += "\r\n";
    for _ in 0..rng.random_range(0..4) {
        text += ANSWER_PARTS[rng.random_range(15..ANSWER_PARTS.len())];
    }
    text
}

/// The whole answer to `method`, if there is one.
fn our_answer(method: &str, bytes: &[u8]) -> Option<Answer> {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    let now = Instant::now();
    let mut connection = Connection::new(Role::Client, &Limits::default());
    let mut heads = Heads::default();
    let mut request = Head::new();
    for (name, value) in [
        (":method", method),
        (":scheme", "http"),
        (":authority", "a"),
        (":path", "/"),
    ] {
        request.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    let opened = connection.open(&request, Form::default(), Then::End);
    opened.expect("it can be sent");
    let mut input = Input::lent(bytes);
    let mut answer = (0, Vec::new(), 0);
    for _ in 0..2 {
        while let Ok(Some(event)) = connection.receive(&mut input, &mut heads, now) {
            let then = match event {
                Event::Interim { .. } => Then::More,
                Event::Head { head, then, .. } => {
                    let status = std::str::from_utf8(head.get(Token::Status)?).ok()?;
                    answer.0 = status.parse().ok()?;
                    then
                }
                Event::Data { data, then, .. } => {
                    answer.1.extend_from_slice(data.as_slice());
                    then
                }
                Event::Trailers { head, .. } => {
                    answer.2 = head.iter().len();
                    Then::End
                }
                Event::Reset { .. }
                | Event::Writable { .. }
                | Event::Goodbye { .. }
                | Event::Pong
                | Event::TooLarge { .. }
                | Event::StreamsMax(_) => return None,
            };
            if then == Then::End {
                return Some(answer);
            }
        }
        connection.ended();
    }
    None
}

async fn hypers_answer(method: &str, bytes: &[u8]) -> Option<Answer> {
    let (us, mut server) = duplex(64 * 1024);
    let handshake = client::conn::http1::handshake(TokioIo::new(us)).await;
    let (mut sender, connection) = handshake.ok()?;
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a");
    let request = request.body(Empty::<Bytes>::new()).ok()?;
    let asking = async move {
        let response = sender.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?;
        let trailers = body.trailers().map_or(0, hyper::HeaderMap::len);
        Some((status, body.to_bytes().to_vec(), trailers))
    };
    let answering = async {
        // Before the request hyper would take it for unasked.
        _ = server.read(&mut [0; 1024]).await;
        _ = server.write_all(bytes).await;
        _ = server.shutdown().await;
        _ = server.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(connection, answering, asking).2
}

#[test]
fn hyper_takes_what_we_take_for_the_same_answer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let mut taken = 0;
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let method = ["GET", "HEAD"][rng.random_range(0..2)];
        let text = answer(&mut rng);
        let Some(ours) = our_answer(method, text.as_bytes()) else {
            continue;
        };
        let hypers = runtime.block_on(hypers_answer(method, text.as_bytes()));
        assert_eq!(Some(ours), hypers, "seed {seed}: {method} {text:?}");
        taken += 1;
    }
    assert!(taken > 1_000, "many of them are answers: {taken}");
}
