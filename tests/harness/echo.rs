//! Applications behind a sidecar: one that answers over HTTP/1.1 and HTTP/2, and two of bytes.
//!
//! `/echo.Echo/Sum` answers how many bytes came, once all have; `/echo.Echo/Repeat` answers the
//! request's body as often as `x-repeat` says; everything else echoes as it comes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use heddle_shell::task::Tasks;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::fault::{Fault, Script};

/// An application; it stops when this is dropped.
#[derive(Debug)]
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it did.
    pub script: Arc<Script>,
    goodbye: watch::Sender<()>,
    _tasks: Tasks,
}

/// What an application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 with prior knowledge.
    Http2,
    /// HTTP/1.1.
    Http1,
    /// Echoes bytes, half-closes after the caller did.
    Bytes,
    /// Says `hello\n` first, then echoes.
    BytesServerFirst,
}

impl App {
    /// Starts one.
    pub async fn start(speaks: Speaks, script: Arc<Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut tasks = Tasks::new();
        let shared = Arc::clone(&script);
        let goodbye = watch::Sender::new(());
        let said = goodbye.subscribe();
        tasks.spawn("app", async move {
            let mut connections = Tasks::new();
            while let Ok((stream, _)) = listener.accept().await {
                // The caller may be gone already, which its connection will see.
                _ = stream.set_nodelay(true);
                let script = Arc::clone(&shared);
                let mut said = said.clone();
                said.mark_unchanged();
                connections.spawn("app connection", async move {
                    match speaks {
                        Speaks::Http1 | Speaks::Http2 => serve(stream, speaks, script, said).await,
                        Speaks::Bytes => echo_bytes(stream, &script, b"").await,
                        Speaks::BytesServerFirst => echo_bytes(stream, &script, b"hello\n").await,
                    }
                });
            }
        });
        Self {
            address,
            script,
            goodbye,
            _tasks: tasks,
        }
    }

    /// Says goodbye on every open connection: GOAWAY, or `Connection: close`.
    pub fn say_goodbye(&self) {
        self.goodbye.send_replace(());
    }

    /// One that behaves.
    pub async fn good(speaks: Speaks) -> Self {
        Self::start(speaks, Script::new([])).await
    }
}

async fn serve(
    stream: TcpStream,
    speaks: Speaks,
    script: Arc<Script>,
    mut goodbye: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let script = Arc::clone(&script);
        async move { Ok::<_, Infallible>(respond(request, script).await) }
    });
    let stream = TokioIo::new(stream);
    // How a connection ends is the test's business.
    if speaks == Speaks::Http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // One stream must not be able to fill the connection: hyper's own windows are equal.
        builder.initial_stream_window_size(64 * 1024);
        builder.initial_connection_window_size(1024 * 1024);
        let mut connection = pin!(builder.serve_connection(stream, service));
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = goodbye.changed() => connection.as_mut().graceful_shutdown(),
        }
        _ = connection.await;
    } else {
        let connection = http1::Builder::new().serve_connection(stream, service);
        let mut connection = pin!(connection.with_upgrades());
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = goodbye.changed() => connection.as_mut().graceful_shutdown(),
        }
        _ = connection.await;
    }
}

/// Notes when a request's handler or body is dropped before its end.
#[derive(Debug)]
struct Watch {
    script: Arc<Script>,
    is_over: bool,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if !self.is_over {
            self.script.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn respond(mut request: Request<Incoming>, script: Arc<Script>) -> Response<Echo> {
    script.calls.fetch_add(1, Ordering::SeqCst);
    let fault = script.faults.lock().pop_front();
    let mut watch = Watch {
        script: Arc::clone(&script),
        is_over: false,
    };
    if request.headers().contains_key(header::UPGRADE) {
        watch.is_over = true;
        return switch(&mut request, script);
    }
    let (parts, mut body) = request.into_parts();
    match fault {
        Some(Fault::GrpcStatusAfterBody(_)) => while let Some(Ok(_)) = body.frame().await {},
        Some(Fault::GrpcStatusAtTheGate(_)) => {
            script
                .gate
                .0
                .acquire()
                .await
                .expect("it stays open")
                .forget();
        }
        Some(
            Fault::BreakAfterFirstMessage | Fault::Hang | Fault::GrpcStatus(_) | Fault::Status(_),
        )
        | None => {}
    }
    let is_grpc = parts
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    let repeat = parts.headers.get("x-repeat");
    let repeat = repeat.and_then(|n| n.to_str().ok()?.parse().ok());
    let work = match parts.uri.path() {
        "/echo.Echo/Sum" => Work::Sum(body, 0),
        "/echo.Echo/Repeat" => Work::Repeat(body, Bytes::new(), repeat.unwrap_or(1)),
        _ => Work::Echo(body),
    };
    script.heads.lock().push(parts);
    let mut response = Response::new(Echo {
        work,
        trailers: is_grpc,
        breaks: fault == Some(Fault::BreakAfterFirstMessage),
        messages: 0,
        watch,
    });
    if is_grpc {
        let kind = HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    match fault {
        None | Some(Fault::BreakAfterFirstMessage) => {}
        Some(Fault::Hang) => std::future::pending().await,
        Some(
            Fault::GrpcStatus(status)
            | Fault::GrpcStatusAfterBody(status)
            | Fault::GrpcStatusAtTheGate(status),
        ) => {
            let status = HeaderValue::from(status);
            response.headers_mut().insert("grpc-status", status);
            response.body_mut().end();
        }
        Some(Fault::Status(status)) => {
            *response.status_mut() = status.try_into().expect("a status");
            response.body_mut().end();
        }
    }
    response
}

/// `101`, then echoes until the caller has gone. hyper keeps the connection for it.
fn switch(request: &mut Request<Incoming>, script: Arc<Script>) -> Response<Echo> {
    let upgrade = hyper::upgrade::on(request);
    TokioExecutor::new().execute(async move {
        if let Ok(stream) = upgrade.await {
            let mut stream = TokioIo::new(stream);
            let mut buffer = [0; 1024];
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    });
    let watch = Watch {
        script,
        is_over: true,
    };
    let mut response = Response::new(Echo {
        work: Work::Done,
        trailers: false,
        breaks: false,
        messages: 0,
        watch,
    });
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    response
}

/// The answer to a request.
#[derive(Debug)]
pub struct Echo {
    work: Work,
    trailers: bool,
    breaks: bool,
    messages: usize,
    watch: Watch,
}

/// What is still to be answered.
#[derive(Debug)]
enum Work {
    /// Each frame as it comes.
    Echo(Incoming),
    /// The number of bytes, once all have come.
    Sum(Incoming, u64),
    /// The first message, so many times.
    Repeat(Incoming, Bytes, usize),
    /// This, so many times.
    Repeating(Bytes, usize),
    /// Nothing.
    Done,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Box<dyn std::error::Error + Send + Sync>>>>;

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>) -> Polled {
        loop {
            match self {
                Self::Echo(body) => {
                    let frame = ready!(Pin::new(body).poll_frame(cx)).transpose()?;
                    return Poll::Ready(frame.map(Ok));
                }
                Self::Sum(body, bytes) => match ready!(Pin::new(body).poll_frame(cx)) {
                    Some(frame) => *bytes += frame?.data_ref().map_or(0, Bytes::len) as u64,
                    None => {
                        let sum = bytes.to_string();
                        *self = Self::Done;
                        return Poll::Ready(Some(Ok(Frame::data(sum.into()))));
                    }
                },
                Self::Repeat(body, message, times) => {
                    match ready!(Pin::new(body).poll_frame(cx)).transpose()? {
                        // All of it is read: HTTP/1.1 breaks off what is answered before.
                        Some(frame) => {
                            let data = frame.into_data().unwrap_or_default();
                            *message = [&message[..], &data].concat().into();
                        }
                        None => *self = Self::Repeating(std::mem::take(message), *times),
                    }
                }
                Self::Repeating(message, times @ 1..) => {
                    *times -= 1;
                    return Poll::Ready(Some(Ok(Frame::data(message.clone()))));
                }
                Self::Repeating(_, 0) | Self::Done => return Poll::Ready(None),
            }
        }
    }

    fn is_done(&self) -> bool {
        matches!(self, Self::Done | Self::Repeating(_, 0))
    }
}

impl Echo {
    fn end(&mut self) {
        self.work = Work::Done;
        self.trailers = false;
        self.watch.is_over = true;
    }
}

impl Body for Echo {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let is_second = self.breaks && self.messages > 0;
        match ready!(self.work.poll(cx)) {
            Some(Ok(_)) if is_second => {
                self.watch.is_over = true;
                return Poll::Ready(Some(Err("scripted to break".into())));
            }
            Some(Ok(frame)) => {
                self.messages += 1;
                return Poll::Ready(Some(Ok(frame)));
            }
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => self.work = Work::Done,
        }
        self.watch.is_over = true;
        if std::mem::take(&mut self.trailers) {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.work.is_done() && !self.trailers
    }
}

async fn echo_bytes(mut stream: TcpStream, script: &Script, greeting: &[u8]) {
    script.calls.fetch_add(1, Ordering::SeqCst);
    let mut buffer = vec![0; 16 * 1024];
    if stream.write_all(greeting).await.is_err() {
        return;
    }
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
    // The caller has gone; so do we.
    _ = stream.shutdown().await;
}
