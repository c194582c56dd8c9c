//! Our client with the `h2` crate's server, and its client with our server: calls with bodies
//! that are larger than windows come back whole, with trailers.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::ResponseFuture, server::SendResponse};
use heddle_relay::{
    event::{Event, Then},
    h2::{Connection, Limits, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
};
use http::{HeaderMap, HeaderValue, Request, Response};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};

/// Our side, at one end of a pipe.
struct Ours {
    connection: Connection,
    heads: Heads,
    now: Instant,
    pipe: DuplexStream,
    /// What has come of each stream.
    bodies: BTreeMap<u32, Vec<u8>>,
    ended: Vec<u32>,
}

impl Ours {
    fn new(role: Role, pipe: DuplexStream) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        Self {
            connection: Connection::new(role, &Limits::of_mesh(), now),
            heads: Heads::default(),
            now,
            pipe,
            bodies: BTreeMap::new(),
            ended: Vec::new(),
        }
    }

    /// Writes and reads what can be; answers as a server.
    fn poll(&mut self, role: Role, context: &mut Context<'_>) {
        let mut chunk = vec![0; 10_000];
        let mut buffer = ReadBuf::new(&mut chunk);
        let read = Pin::new(&mut self.pipe).poll_read(context, &mut buffer);
        if matches!(read, Poll::Ready(Ok(()))) {
            let mut input = Input::lent(buffer.filled());
            loop {
                let received = self
                    .connection
                    .receive(&mut input, &mut self.heads, self.now);
                match received.expect("nothing is wrong") {
                    Some(event) => self.take(role, event),
                    None => break,
                }
            }
        }
        self.connection.fill(usize::MAX, &mut self.heads);
        while self.connection.next_written().is_some() {}
        let mut places = [IoSlice::new(&[]); 16];
        let used = self.connection.output().slices(&mut places);
        let places: Vec<&[u8]> = places[..used].iter().map(|place| &**place).collect();
        let written = Pin::new(&mut self.pipe).poll_write(context, &places.concat());
        if let Poll::Ready(Ok(n)) = written {
            self.connection.output().consume(n);
        }
    }

    fn take(&mut self, role: Role, event: Event<'_>) {
        match event {
            Event::Head { stream, .. } => {
                self.bodies.insert(stream.0, Vec::new());
                if role == Role::Server {
                    let head = head(&[(":status", "200"), ("x-a", "b")]);
                    self.connection
                        .send_head(stream, &head, Then::More, &mut self.heads);
                }
            }
            Event::Data {
                stream,
                data,
                credit,
                then,
            } => {
                let body = self.bodies.get_mut(&stream.0).expect("it has begun");
                body.extend_from_slice(data.as_slice());
                self.connection.release(stream, credit);
                if role == Role::Server {
                    self.connection.send_data(stream, data, Then::More);
                    if then == Then::End {
                        let head = head(&[("grpc-status", "0")]);
                        self.connection
                            .send_trailers(stream, &head, &mut self.heads);
                    }
                }
                assert!(
                    role == Role::Server || then == Then::More,
                    "trailers follow"
                );
            }
            Event::Trailers { stream, head } => {
                let fields = head.iter().map(|field| (field.name, field.value));
                assert_eq!(
                    fields.collect::<Vec<_>>(),
                    [(&b"grpc-status"[..], &b"0"[..])]
                );
                self.ended.push(stream.0);
            }
            Event::TooLarge { .. }
            | Event::Interim { .. }
            | Event::Reset { .. }
            | Event::Goodbye { .. } => {
                unreachable!("nothing is wrong: {event:?}")
            }
            Event::Writable { .. } | Event::Pong | Event::StreamsMax(_) => {}
        }
    }
}

/// Bodies of calls; some are larger than any window.
fn bodies(seed: u64) -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut body = || {
        let max = [1, 100, 20_000, 400_000][rng.random_range(0..4)];
        let mut body = vec![0; rng.random_range(0..max)];
        rng.fill(&mut body[..]);
        body
    };
    (0..30).map(|_| body()).collect()
}

fn head(fields: &[(&str, &str)]) -> Head {
    let mut head = Head::new();
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
    }
    head
}

fn trailers() -> HeaderMap {
    HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static("0"),
    )])
}

#[test]
fn our_client_calls_their_server() {
    for seed in 0..5 {
        let bodies = bodies(seed);
        let mut context = Context::from_waker(Waker::noop());
        let (ours, theirs) = tokio::io::duplex(30_000);
        let mut ours = Ours::new(Role::Client, ours);
        let mut sent = BTreeMap::new();
        for body in &bodies {
            let request = head(&[
                (":method", "POST"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/"),
                ("x-a", "b"),
            ]);
            let opened = ours.connection.open(&request, Then::More, &mut ours.heads);
            let stream = opened.expect("there is room");
            let data = Payload::Lent(body);
            ours.connection.send_data(stream, data, Then::End);
            sent.insert(stream.0, body.clone());
        }
        let mut handshake = std::pin::pin!(h2::server::handshake(theirs));
        let mut connection = loop {
            ours.poll(Role::Client, &mut context);
            if let Poll::Ready(connection) = handshake.as_mut().poll(&mut context) {
                break connection.expect("it likes our preface");
            }
        };
        let mut echoes = Vec::new();
        for _ in 0..POLLS {
            if let Poll::Ready(Some(accepted)) = connection.poll_accept(&mut context) {
                let (request, answer) = accepted.expect("it likes our requests");
                assert_eq!(request.headers()["x-a"], "b");
                echoes.push(Echo::new(request.into_body(), answer));
            }
            for echo in &mut echoes {
                echo.poll(&mut context);
            }
            ours.poll(Role::Client, &mut context);
            if ours.ended.len() == bodies.len() {
                break;
            }
        }
        assert_eq!(ours.bodies, sent, "seed {seed}");
        assert_eq!(ours.ended.len(), bodies.len(), "seed {seed}");
        assert!(ours.connection.is_idle());
    }
}

/// Their server's half of a call.
struct Echo {
    body: RecvStream,
    answer: SendStream<Bytes>,
    is_over: bool,
}

impl Echo {
    fn new(body: RecvStream, mut answer: SendResponse<Bytes>) -> Self {
        let answer = answer.send_response(Response::new(()), false);
        Self {
            body,
            answer: answer.expect("the stream is open"),
            is_over: false,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        while let Poll::Ready(Some(data)) = self.body.poll_data(context) {
            let data = data.expect("nothing is wrong");
            let released = self.body.flow_control().release_capacity(data.len());
            released.expect("it was received");
            let sent = self.answer.send_data(data, false);
            sent.expect("the stream is open");
        }
        if self.body.is_end_stream() && !self.is_over {
            self.is_over = true;
            let sent = self.answer.send_trailers(trailers());
            sent.expect("the stream is open");
        }
    }
}

#[test]
fn their_client_calls_our_server() {
    for seed in 100..105 {
        let bodies = bodies(seed);
        let mut context = Context::from_waker(Waker::noop());
        let (ours, theirs) = tokio::io::duplex(30_000);
        let mut ours = Ours::new(Role::Server, ours);
        let mut handshake = std::pin::pin!(h2::client::handshake(theirs));
        let (mut sender, mut connection) = loop {
            ours.poll(Role::Server, &mut context);
            if let Poll::Ready(client) = handshake.as_mut().poll(&mut context) {
                break client.expect("it can write");
            }
        };
        let mut calls = Vec::new();
        for _ in 0..POLLS {
            if calls.len() < bodies.len() && sender.poll_ready(&mut context).is_ready() {
                let mut request = Request::post("http://a/").body(()).expect("it is one");
                request
                    .headers_mut()
                    .insert("x-a", HeaderValue::from_static("b"));
                let sent = sender.send_request(request, false);
                let (answer, mut body) = sent.expect("the connection is open");
                let data = Bytes::from(bodies[calls.len()].clone());
                body.send_data(data, true).expect("the stream is open");
                calls.push(Call::new(answer));
            }
            let polled = Pin::new(&mut connection).poll(&mut context);
            assert!(polled.is_pending(), "{polled:?}");
            ours.poll(Role::Server, &mut context);
            for call in &mut calls {
                call.poll(&mut context);
            }
            if calls.len() == bodies.len() && calls.iter().all(|call| call.is_over) {
                break;
            }
        }
        for (call, body) in calls.iter().zip(&bodies) {
            assert!(call.is_over, "seed {seed}");
            assert!(call.got == *body, "seed {seed}");
        }
        assert!(ours.connection.is_idle());
    }
}

/// Their client's half of a call.
struct Call {
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    got: Vec<u8>,
    is_over: bool,
}

impl Call {
    fn new(answer: ResponseFuture) -> Self {
        Self {
            answer: Some(answer),
            body: None,
            got: Vec::new(),
            is_over: false,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        if let Some(answer) = &mut self.answer
            && let Poll::Ready(answer) = Pin::new(answer).poll(context)
        {
            let answer = answer.expect("it likes our answer");
            assert_eq!(answer.headers()["x-a"], "b");
            self.body = Some(answer.into_body());
            self.answer = None;
        }
        let Some(body) = &mut self.body else {
            return;
        };
        while let Poll::Ready(Some(data)) = body.poll_data(context) {
            let data = data.expect("nothing is wrong");
            self.got.extend_from_slice(&data);
            let released = body.flow_control().release_capacity(data.len());
            released.expect("it was received");
        }
        if let Poll::Ready(Ok(Some(fields))) = body.poll_trailers(context) {
            assert_eq!(fields, trailers());
            self.is_over = true;
        }
    }
}

/// Far more than any of the talks takes.
const POLLS: usize = 100_000;
