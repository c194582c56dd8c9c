//! The same bytes to our server and to hyper's: what we take for requests hyper takes for the same
//! requests, in the same order, with the same bodies. We may stop earlier: we refuse more.

use std::{cell::RefCell, convert::Infallible, rc::Rc, time::Instant};

use bytes::Bytes;
use heddle_relay::{
    event::{Event, StreamId, Then},
    h1::{Connection, Limits, Role},
    head::{Head, Heads, Indexing},
    input::Input,
    token::Token,
};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
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
                let trailers = body.trailers().map_or(0, |trailers| trailers.len());
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
