//! The serving side: takes a call, thinks, asks the next service, answers with its own hop added.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt, TryStreamExt, future, stream};
use heddle_shell::task::Tasks;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::{Response, Status, Streaming, body::Body, server::Grpc};
use tonic_prost::ProstCodec;

use crate::{
    channel::Channel,
    journal::{Entry, Journal},
    wire::{Call, Half, Hop, Kind, Reply, Request},
};

type Replies = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

#[derive(Debug)]
pub(crate) struct Endpoint {
    hop: Hop,
    next: Option<Arc<Channel>>,
    journal: Arc<Journal>,
    delay_ms: AtomicU32,
}

/// Serves every connection of `listener`.
pub(crate) async fn serve(listener: TcpListener, endpoint: Arc<Endpoint>) {
    let mut connections = Tasks::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the connections that end make room.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        _ = stream.set_nodelay(true);
        let endpoint = Arc::clone(&endpoint);
        let service = service_fn(move |request| {
            let endpoint = Arc::clone(&endpoint);
            async move { Ok::<_, Infallible>(endpoint.answer(request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        connections.reap_ended();
        connections.spawn("connection", async {
            // Its failure is that of the calls on it, which their callers see.
            _ = connection.await;
        });
    }
}

impl Endpoint {
    pub(crate) fn new(
        hop: Hop,
        next: Option<Arc<Channel>>,
        journal: Arc<Journal>,
        delay_ms: u32,
    ) -> Self {
        Self {
            hop,
            next,
            journal,
            delay_ms: AtomicU32::new(delay_ms),
        }
    }

    pub(crate) fn set_delay(&self, delay_ms: u32) {
        self.delay_ms.store(delay_ms, Relaxed);
    }

    pub(crate) fn stats(&self) -> Value {
        let (begun, ended) = self.journal.counts();
        json!({
            "instance": self.hop.instance,
            "delay_ms": self.delay_ms.load(Relaxed),
            "begun": begun,
            "in_flight": begun - ended,
        })
    }

    async fn answer(self: Arc<Self>, request: http::Request<Incoming>) -> http::Response<Body> {
        let Some(call) = Call::parse(request.uri().path()) else {
            return Status::unimplemented("no such method").into_http();
        };
        let service = tower::service_fn(move |request: tonic::Request<Streaming<Request>>| {
            let endpoint = Arc::clone(&self);
            async move {
                let replies = endpoint.serve(call, request.into_inner()).await;
                replies.map(Response::new)
            }
        });
        Grpc::new(ProstCodec::<Reply, Request>::default())
            .streaming(service, request)
            .await
    }

    async fn serve(
        self: Arc<Self>,
        call: Call,
        mut requests: Streaming<Request>,
    ) -> Result<Replies, Status> {
        let first = requests
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("a call has at least one message"))?;
        let entry = self
            .journal
            .begin(call.half, first.id)
            .map_err(|error| Status::internal(format!("writing the journal: {error}")))?;
        // A caller that goes away ends the stream; what it still had to say is its own loss.
        let rest = requests.take_while(|request| future::ready(request.is_ok()));
        let requests = stream::iter([Ok(first)])
            .chain(rest)
            .filter_map(|request| future::ready(request.ok()));
        let replies = match call.half {
            Half::Lookups => self.in_one_piece(call, requests).await?,
            Half::Orders => self.as_it_comes(call, requests).await?,
        };
        Ok(Box::pin(replies.inspect(move |_| {
            // Moved into the stream: the request ends with its last message.
            let _: &Entry = &entry;
        })))
    }

    /// Everything first, then the answer at once.
    async fn in_one_piece(
        &self,
        call: Call,
        requests: impl Stream<Item = Request> + Send + 'static,
    ) -> Result<Replies, Status> {
        let requests: Vec<Request> = requests.collect().await;
        self.think(1).await;
        let replies = match &self.next {
            Some(next) => {
                let replies = next.call(call, stream::iter(requests)).await;
                let replies = async { replies?.try_collect::<Vec<Reply>>().await }.await;
                replies.map_err(|status| self.relayed(&status))?
            }
            None => {
                let id = requests.first().map_or(0, |request| request.id);
                let reply = |number| Reply {
                    id,
                    number,
                    hops: Vec::new(),
                };
                (0..call.kind.replies()).map(reply).collect()
            }
        };
        let hop = self.hop.clone();
        let replies = replies.into_iter().map(move |reply| Ok(with(reply, &hop)));
        Ok(Box::pin(stream::iter(replies)))
    }

    /// Each message of the answer when it is there.
    async fn as_it_comes(
        self: Arc<Self>,
        call: Call,
        requests: impl Stream<Item = Request> + Send + 'static,
    ) -> Result<Replies, Status> {
        let Some(next) = &self.next else {
            return Ok(self.made_here(call, requests));
        };
        self.think(1).await;
        let replies = next.call(call, requests).await;
        let replies = replies.map_err(|status| self.relayed(&status))?;
        Ok(Box::pin(replies.map(move |reply| match reply {
            Ok(reply) => Ok(with(reply, &self.hop)),
            Err(status) => Err(self.relayed(&status)),
        })))
    }

    fn made_here(
        self: Arc<Self>,
        call: Call,
        requests: impl Stream<Item = Request> + Send + 'static,
    ) -> Replies {
        let messages = call.kind.replies();
        let reply = move |id, number| {
            let endpoint = Arc::clone(&self);
            async move {
                endpoint.think(messages).await;
                let reply = Reply {
                    id,
                    number,
                    hops: Vec::new(),
                };
                Ok(with(reply, &endpoint.hop))
            }
        };
        match call.kind {
            Kind::Get | Kind::List => Box::pin(requests.flat_map(move |request| {
                let reply = reply.clone();
                stream::iter(0..messages).then(move |number| reply(request.id, number))
            })),
            Kind::Chat => Box::pin(requests.then(move |request| reply(request.id, request.number))),
        }
    }

    /// Sleeps for one of `shares` equal parts of the delay.
    async fn think(&self, shares: u32) {
        let delay = Duration::from_millis(self.delay_ms.load(Relaxed).into());
        if !delay.is_zero() {
            tokio::time::sleep(delay / shares).await;
        }
    }

    /// The next service's failure as ours: the same code, and who failed why.
    fn relayed(&self, status: &Status) -> Status {
        let mut relayed = Status::new(
            status.code(),
            format!("{}: {}", self.hop.service, status.message()),
        );
        if let Some(reason) = reason(status).and_then(|reason| reason.parse().ok()) {
            relayed.metadata_mut().insert(RELAYED_REASON, reason);
        }
        relayed
    }
}

/// Why the mesh failed a call, here or further on.
pub(crate) fn reason(status: &Status) -> Option<&str> {
    let metadata = status.metadata();
    [MESH_REASON, RELAYED_REASON]
        .iter()
        .find_map(|name| metadata.get(*name)?.to_str().ok())
}

fn with(mut reply: Reply, hop: &Hop) -> Reply {
    reply.hops.push(hop.clone());
    reply
}

/// Set by a sidecar on answers of its own making; only sidecars may.
const MESH_REASON: &str = "x-heddle-reason";

/// The same word, carried on by an application.
const RELAYED_REASON: &str = "shop-reason";
