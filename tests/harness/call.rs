//! Callers: a connection to a sidecar's outbound listener and streams of messages over it.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use heddle_shell::task::Tasks;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

/// A request body fed by the test.
#[derive(Debug)]
pub struct Feed(mpsc::Receiver<Bytes>);

/// A connection of a caller; it closes when this is dropped.
#[derive(Debug)]
pub struct Caller {
    sender: Sender,
    _tasks: Tasks,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Feed>),
    Http2(http2::SendRequest<Feed>),
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Of the head.
    pub headers: HeaderMap,
    /// All data.
    pub body: Vec<u8>,
    /// Of the end.
    pub trailers: HeaderMap,
}

impl Feed {
    /// A body and the side that feeds it; it ends when that is dropped.
    pub fn channel() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(1);
        (sender, Self(receiver))
    }

    /// One message, then the end.
    pub fn of(message: impl Into<Bytes>) -> Self {
        let (sender, feed) = Self::channel();
        sender.try_send(message.into()).expect("there is room");
        feed
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self::channel().1
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let message = std::task::ready!(self.0.poll_recv(cx));
        Poll::Ready(message.map(|message| Ok(Frame::data(message))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_closed() && self.0.is_empty()
    }
}

impl Caller {
    /// HTTP/2 with prior knowledge.
    pub async fn http2(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("the sidecar listens");
        stream.set_nodelay(true).expect("it is open");
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("a preface is sent");
        let mut tasks = Tasks::new();
        tasks.spawn("caller", async move {
            // Its end is seen by the calls.
            _ = connection.await;
        });
        Self {
            sender: Sender::Http2(sender),
            _tasks: tasks,
        }
    }

    /// HTTP/1.1.
    pub async fn http1(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.expect("the sidecar listens");
        stream.set_nodelay(true).expect("it is open");
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .expect("nothing is sent yet");
        let mut tasks = Tasks::new();
        tasks.spawn("caller", async move {
            // Its end is seen by the calls.
            _ = connection.with_upgrades().await;
        });
        Self {
            sender: Sender::Http1(sender),
            _tasks: tasks,
        }
    }

    /// Sends a request; the answer is its head.
    ///
    /// # Errors
    /// When the connection or the stream breaks before a response.
    pub async fn send(&mut self, request: Request<Feed>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends a request and reads the whole answer.
    pub async fn call(&mut self, request: Request<Feed>) -> Answer {
        let response = self.send(request).await.expect("a response");
        Answer::read(response).await.expect("a whole response")
    }

    /// A unary gRPC call.
    pub async fn unary(&mut self, message: &'static str) -> Answer {
        self.call(grpc("/echo.Echo/Unary", Feed::of(message))).await
    }
}

impl Answer {
    /// Reads to the end.
    ///
    /// # Errors
    /// When it breaks off.
    pub async fn read(response: Response<Incoming>) -> hyper::Result<Self> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        Ok(Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes().to_vec(),
            trailers,
        })
    }

    /// `grpc-status`, from trailers or a trailers-only head.
    pub fn grpc_status(&self) -> Option<&str> {
        let status = self.trailers.get("grpc-status");
        status.or(self.headers.get("grpc-status"))?.to_str().ok()
    }

    /// `x-heddle-reason`.
    pub fn reason(&self) -> Option<&str> {
        let reason = self.headers.get("x-heddle-reason");
        reason
            .or(self.trailers.get("x-heddle-reason"))?
            .to_str()
            .ok()
    }
}

/// Sends `bytes` as they are and reads until the other side closes.
///
/// # Panics
/// When it does not close within ten seconds.
pub async fn raw<S>(mut stream: S, bytes: &[u8]) -> Vec<u8>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // The other side may close before it has read everything.
    _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = async {
        let mut block = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut block).await {
            answer.extend_from_slice(&block[..n]);
        }
    };
    let closed = Box::pin(tokio::time::timeout(Duration::from_secs(10), read)).await;
    closed.expect("the other side closes");
    answer
}

/// As [`raw`], over a connection of its own. One that is reset got no answer, also when the reset
/// came before the kernel told that the connection was made.
///
/// # Panics
/// When it is refused, or does not close within ten seconds.
pub async fn raw_to(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    match TcpStream::connect(to).await {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Vec::new(),
        stream => raw(stream.expect("it listens"), bytes).await,
    }
}

/// A gRPC request.
pub fn grpc(path: &str, body: Feed) -> Request<Feed> {
    Request::post(format!("http://echo.shop:80{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .expect("a valid request")
}

/// An HTTP/1.1 request.
pub fn http1_request(method: &str, path: &str, body: Feed) -> Request<Feed> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "echo.shop")
        .body(body)
        .expect("a valid request")
}
