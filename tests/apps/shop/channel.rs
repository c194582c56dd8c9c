//! One HTTP/2 connection to the next service, made again when it has ended. Never the reason
//! that a request is lost: what a closing connection did not take goes out on the next one. A
//! request that was sent is never sent again; that would be the mesh's to do. A connection that
//! is not used is closed, as pools do: a sidecar that leaves waits for those of its application.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::Stream;
use heddle_shell::{clock, task::Tasks};
use http::{
    Uri,
    uri::{Authority, Scheme},
};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpStream, sync::Mutex};
use tonic::{Status, Streaming, body::Body, client::Grpc};
use tonic_prost::ProstCodec;

use crate::wire::{Call, Reply, Request};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Requests handed back by a closing connection are sent again at most this often.
const TAKE_BACKS_MAX: u32 = 4;

const IDLE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Channel {
    /// What is dialled, a name or an address.
    to: String,
    /// What requests name.
    origin: Uri,
    link: Arc<Mutex<Link>>,
}

#[derive(Debug, Default)]
struct Link {
    sender: Option<http2::SendRequest<Body>>,
    used: Option<Instant>,
    /// Connections, with the old ones that still have streams.
    connections: Tasks,
}

impl Channel {
    pub(crate) fn new(next: &str, via: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self {
            to: via.unwrap_or(next).to_owned(),
            origin: origin(next)?,
            link: Arc::default(),
        })
    }

    /// Makes a call. The reply's stream also carries the status.
    pub(crate) async fn call(
        self: &Arc<Self>,
        call: Call,
        requests: impl Stream<Item = Request> + Send + 'static,
    ) -> Result<Streaming<Reply>, Status> {
        let mut grpc = Grpc::with_origin(Sender(Arc::clone(self)), self.origin.clone());
        grpc.ready()
            .await
            .map_err(|error: BoxError| Status::unavailable(error.to_string()))?;
        let path = call.path().parse().expect("paths of calls are paths");
        // A unary call is a stream of one message on the wire.
        grpc.streaming(
            tonic::Request::new(requests),
            path,
            ProstCodec::<Request, Reply>::default(),
        )
        .await
        .map(tonic::Response::into_inner)
    }

    async fn send(
        &self,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Incoming>, BoxError> {
        for _ in 0..=TAKE_BACKS_MAX {
            let mut sender = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed.into_error().into()),
                },
            }
        }
        Err("connections close as soon as they open".into())
    }

    async fn sender(&self) -> io::Result<http2::SendRequest<Body>> {
        // Held while connecting: the others would dial as well, and wait for the same answer.
        let mut link = self.link.lock().await;
        link.used = Some(clock::now());
        if let Some(sender) = link.sender.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let stream = TcpStream::connect(&self.to).await?;
        stream.set_nodelay(true)?;
        let sender = link.start(stream).await?;
        let idle = close_when_idle(Arc::downgrade(&self.link));
        link.connections.spawn("idle", idle);
        Ok(sender)
    }
}

/// Lets go of the connection when nobody has used it for [`IDLE`]; what is in flight on it ends
/// first.
async fn close_when_idle(link: Weak<Mutex<Link>>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(link) = link.upgrade() else { return };
        let mut link = link.lock().await;
        let is_idle = link.used.is_none_or(|used| clock::now() - used >= IDLE);
        if is_idle {
            link.sender = None;
            return;
        }
    }
}

impl Link {
    async fn start(&mut self, stream: TcpStream) -> io::Result<http2::SendRequest<Body>> {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        self.connections.reap_ended();
        self.connections.spawn("connection", async {
            // Its failure is that of the requests on it, which report it.
            _ = connection.await;
        });
        self.sender = Some(sender.clone());
        Ok(sender)
    }
}

/// [`Channel`] in the form that tonic takes.
#[derive(Debug)]
struct Sender(Arc<Channel>);

impl tower::Service<http::Request<Body>> for Sender {
    type Response = http::Response<Incoming>;
    type Error = BoxError;
    type Future = BoxFuture<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let channel = Arc::clone(&self.0);
        Box::pin(async move { channel.send(request).await })
    }
}

/// `http://authority/`.
pub(crate) fn origin(authority: &str) -> anyhow::Result<Uri> {
    let authority: Authority = authority
        .parse()
        .with_context(|| format!("{authority} is not host:port"))?;
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority);
    parts.path_and_query = Some("/".parse().expect("a path"));
    Ok(Uri::from_parts(parts)?)
}
