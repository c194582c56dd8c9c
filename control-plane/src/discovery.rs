//! xDS v3 over one ADS endpoint, delta and state of the world: one task per stream.
//!
//! ```text
//! publish(world) ──► Compiler::advance ──► changed topics ──► index ──► streams that depend on them
//!                                                                             │ coalesced
//! requests ──► stream.rs (pure) ◄──────────────── next(): compile, encode ◄───┘
//! ```
//!
//! Nothing is served before the first world: an empty one would empty every client. A stream
//! ends when its caller's proof does.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_proto::xds::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use heddle_shell::clock;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

pub mod proxies;
pub mod sidecars;
pub mod stream;

mod activation;
mod node;
mod serve;
mod wire;

pub use activation::Fleet;
pub use node::is_instance;

use crate::{
    authn::{Session, WARNING_INTERVAL, WARNINGS_BURST},
    ca::Pace,
    compile::Compiler,
    discovery::{
        proxies::{Proxies, StreamId},
        sidecars::Sidecars,
        stream::Form,
    },
    streams::Streams,
    telemetry::{Metrics, StreamKind},
    world::{Topic, World},
};

/// Serves the compiled world.
#[derive(Debug)]
pub struct Discovery {
    /// `None` until the first world.
    compiler: Mutex<Option<Arc<Compiler>>>,
    /// Who is connected.
    pub proxies: Arc<Proxies>,
    index: Mutex<Index>,
    metrics: Arc<Metrics>,
    /// Paces what each caller has us log.
    warnings: Mutex<Pace<String>>,
    /// Tells of every new world.
    worlds: watch::Sender<()>,
}

/// Which streams depend on what.
#[derive(Debug, Default)]
struct Index {
    streams: HashMap<StreamId, (Arc<Wake>, HashSet<Topic>)>,
    by_topic: HashMap<Topic, HashSet<StreamId>>,
}

/// Tells a stream to look again.
#[derive(Debug, Default)]
struct Wake {
    notify: Notify,
    /// How long it may wait for more to come.
    patience: Mutex<Option<Duration>>,
}

impl Discovery {
    /// Without a world: streams are refused.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            compiler: Mutex::new(None),
            proxies: Arc::default(),
            index: Mutex::default(),
            metrics,
            warnings: Mutex::new(Pace::new(WARNING_INTERVAL, WARNINGS_BURST)),
            worlds: watch::Sender::new(()),
        })
    }

    /// The gRPC service. Its streams are tasks of `streams`, since they write to the store at
    /// their end.
    pub fn service(
        self: &Arc<Self>,
        sidecars: Sidecars,
        streams: Streams,
    ) -> AggregatedDiscoveryServiceServer<Service> {
        AggregatedDiscoveryServiceServer::new(Service {
            discovery: Arc::clone(self),
            sidecars,
            streams,
        })
        .max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    /// Serves a newer world. Wakes the streams that what changed is for.
    pub fn publish(&self, world: World) {
        let world = Arc::new(world);
        let Some(compiler) = self.compiler() else {
            *self.compiler.lock() = Some(Arc::new(Compiler::new(world)));
            self.worlds.send_replace(());
            self.proxies.changed();
            return;
        };
        // Registrations come and go with endpoints: those are waited for.
        let patience = if Arc::ptr_eq(&compiler.world().catalog, &world.catalog) {
            ENDPOINTS_PATIENCE
        } else {
            PATIENCE
        };
        let changed = compiler.advance(world);
        self.index.lock().wake(&changed, patience);
        self.worlds.send_replace(());
        self.proxies.changed();
    }

    /// Told of every new world; several may be told as one.
    pub fn worlds(&self) -> watch::Receiver<()> {
        self.worlds.subscribe()
    }

    /// What compiles; `None` before the first world.
    pub fn compiler(&self) -> Option<Arc<Compiler>> {
        self.compiler.lock().clone()
    }
}

impl Index {
    fn insert(&mut self, id: StreamId, wake: Arc<Wake>) {
        self.streams.insert(id, (wake, HashSet::new()));
    }

    fn remove(&mut self, id: StreamId) {
        self.depend(id, HashSet::new());
        self.streams.remove(&id);
    }

    /// Replaces what a stream depends on.
    fn depend(&mut self, id: StreamId, topics: HashSet<Topic>) {
        let Some((_, before)) = self.streams.get_mut(&id) else {
            return;
        };
        for topic in topics.difference(before) {
            self.by_topic.entry(topic.clone()).or_default().insert(id);
        }
        for topic in before.difference(&topics) {
            if let Some(streams) = self.by_topic.get_mut(topic) {
                streams.remove(&id);
                if streams.is_empty() {
                    self.by_topic.remove(topic);
                }
            }
        }
        *before = topics;
    }

    fn wake(&self, changed: &HashSet<Topic>, patience: Duration) {
        let affected: HashSet<&StreamId> = changed
            .iter()
            .filter_map(|topic| self.by_topic.get(topic))
            .flatten()
            .collect();
        for id in affected {
            if let Some((wake, _)) = self.streams.get(id) {
                wake.within(patience);
            }
        }
    }
}

impl Wake {
    fn within(&self, patience: Duration) {
        let mut left = self.patience.lock();
        *left = Some(left.map_or(patience, |left| left.min(patience)));
        self.notify.notify_one();
    }

    /// When to look, after a notification. Cancel safe.
    async fn woken(&self) -> Instant {
        loop {
            self.notify.notified().await;
            if let Some(patience) = self.patience.lock().take() {
                return clock::now() + patience;
            }
        }
    }
}

/// What a stream sends.
type Responses<R> = ReceiverStream<Result<R, Status>>;

/// The gRPC face of [`Discovery`].
#[derive(Clone, Debug)]
pub struct Service {
    discovery: Arc<Discovery>,
    sidecars: Sidecars,
    streams: Streams,
}

#[async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open::<wire::StateOfTheWorld>(request, Form::StateOfTheWorld)
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open::<wire::Delta>(request, Form::Delta)
    }
}

impl Service {
    fn open<D: wire::Dialect>(
        &self,
        request: Request<Streaming<D::Request>>,
        form: Form,
    ) -> Result<Response<Responses<D::Response>>, Status> {
        let session = Session::of(&request)?;
        let compiler = self
            .discovery
            .compiler()
            .ok_or_else(|| Status::unavailable("the configuration is still being read"))?;
        let (responses, stream) = mpsc::channel(RESPONSES_MAX);
        let task = serve::Serve::<D> {
            discovery: Arc::clone(&self.discovery),
            compiler,
            sidecars: self.sidecars.clone(),
            session,
            form,
            requests: request.into_inner(),
            responses,
            counted: self.discovery.metrics.stream(StreamKind::Discovery),
        };
        self.streams.spawn("discovery", task.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Largest request: a reconnecting sidecar's versions of all it holds.
const REQUEST_BYTES_MAX: usize = 2 << 20;
/// Responses that wait for the transport: at most one of each type is in flight, so this never
/// fills; it is a bound all the same.
const RESPONSES_MAX: usize = 8;
/// How long a change waits for the ones that come with it.
const PATIENCE: Duration = Duration::from_millis(50);
/// The same, for changes of registrations.
const ENDPOINTS_PATIENCE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests;
