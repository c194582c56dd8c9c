//! The configuration client: one delta ADS stream to the control plane, and what comes of it.
//!
//! [`stream`] speaks the protocol and [`units`] joins what it brings; both are pure. This file
//! connects them with the network, with those who ask ([`Asks`]), and with those who are told: the
//! data path (views), the state directory (resources) and the status report (active versions).
//!
//! A lost stream expires nothing: what was published serves on, and the next stream presents the
//! versions held.

pub mod stream;
pub mod units;

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::{
    DestinationKey,
    xds::{MESH_INBOUND, MESH_OUTBOUND, ResourceName, ResourceType, decode},
};
use heddle_proto::xds::{
    envoy::{
        config::core::v3::{Node, node::UserAgentVersionType},
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::protobuf::{Struct, Value, value},
};
use heddle_relay::view::{View, reconcile};
use heddle_shell::{causes::chain, clock, publish::Published};
use rand::rngs::StdRng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::{
    backoff::Backoff,
    demand::Asks,
    state::SavedResource,
    uplink::{Link, Uplink, received, words},
};

use stream::{Stream, Update};
use units::Units;

/// Asks of one moment share a request.
const BURST: Duration = Duration::from_millis(1);

/// A destination without connections is forgotten after this.
const IDLE: Duration = Duration::from_mins(10);

/// How often idle destinations are looked for, and what is known as meshed ages.
const EVICTION_TICK: Duration = Duration::from_mins(1);

/// Largest response accepted; the control plane splits at 1 MB.
const RESPONSE_BYTES_MAX: usize = 8 << 20;

/// Forgotten destinations kept for a time without control plane; beyond it the oldest goes.
const EVICTED_MAX: usize = 1024;

/// Requests that the control plane has not taken. Beyond it the stream is given up: nobody reads
/// there.
const REQUESTS_MAX: usize = 256;

/// What the configuration client tells the rest of the process.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// To the data path.
    pub views: Arc<Published<View>>,
    /// To the state directory.
    pub resources: Arc<Published<Vec<SavedResource>>>,
    /// To the status report: resources in force with their versions.
    pub active: Arc<Published<BTreeMap<ResourceName, Arc<str>>>>,
    /// To metrics and the admin interface.
    pub state: Arc<Published<ClientState>>,
}

impl Outputs {
    /// Nothing told yet.
    pub fn new() -> Self {
        Self {
            views: Published::new(View::empty(clock::now())),
            resources: Published::new(Vec::new()),
            active: Published::new(BTreeMap::new()),
            state: Published::new(ClientState::default()),
        }
    }
}

impl Default for Outputs {
    fn default() -> Self {
        Self::new()
    }
}

/// How the configuration client fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientState {
    /// Whether there is a stream.
    pub is_connected: bool,
    /// Subscribed resources.
    pub subscribed: usize,
    /// Destinations that wait for a part of theirs.
    pub held: usize,
    /// Responses taken whole, since the start.
    pub acknowledged: u64,
    /// Responses with faults, since the start.
    pub refused: u64,
    /// Fields and messages outside the subset, since the start. They had no effect.
    pub ignored: u64,
    /// Streams that ended, since the start.
    pub disconnects: u64,
    /// The last faults, for people.
    pub faults: Vec<String>,
}

/// The configuration client.
#[derive(Debug)]
pub struct Client {
    node: Node,
    stream: Stream,
    units: Units,
    /// Accepted resources as they came.
    raw: BTreeMap<ResourceName, Raw>,
    /// Forgotten destinations with their resources, oldest first.
    evicted: VecDeque<(DestinationKey, Vec<(ResourceName, Raw)>)>,
    outputs: Outputs,
    state: ClientState,
    /// Whether `raw` differs from what was published.
    is_raw_changed: bool,
}

#[derive(Clone, Debug)]
struct Raw {
    version: Arc<str>,
    bytes: Arc<[u8]>,
}

/// One open stream.
struct Connection {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    link: Link,
}

type Connecting = Pin<Box<dyn Future<Output = Result<Connection, String>> + Send>>;

/// Where the stream is.
enum Phase {
    Waiting(Instant),
    Connecting(Connecting),
    Open(Box<Connection>),
}

enum Event {
    Asked(DestinationKey),
    AskersGone,
    Connected(Box<Result<Connection, String>>),
    Received(Box<Result<Option<DeltaDiscoveryResponse>, Status>>),
    Superseded,
    Due,
}

impl Client {
    /// Subscribes to what every sidecar needs.
    pub fn new(node: Node, outputs: Outputs) -> Self {
        let mut stream = Stream::default();
        for name in [MESH_OUTBOUND, MESH_INBOUND] {
            stream.want(&ResourceName {
                kind: ResourceType::Listener,
                name: name.into(),
            });
        }
        Self {
            node,
            stream,
            units: Units::default(),
            raw: BTreeMap::new(),
            evicted: VecDeque::new(),
            outputs,
            state: ClientState::default(),
            is_raw_changed: false,
        }
    }

    /// Takes the resources of the state directory; what this version does not accept is left out.
    pub fn restore(&mut self, resources: Vec<SavedResource>) {
        for saved in resources {
            match decode(&saved.type_url, &saved.raw) {
                Ok(decoded) => {
                    let name = decoded.piece.name();
                    let version: Arc<str> = saved.version.into();
                    self.stream.restore(&name, Arc::clone(&version));
                    self.keep(&name, &version, saved.raw);
                    self.units.accept(name, version, decoded.piece);
                }
                Err(why) => warn!(%why, "a resource of the state directory is not accepted"),
            }
        }
        self.settle(clock::now());
    }

    /// Runs until the data path is gone.
    pub async fn run(mut self, uplink: Arc<Uplink>, mut asks: Asks, rng: StdRng) {
        let mut backoff = Backoff::reconnecting(rng);
        let mut phase = Phase::Waiting(clock::now());
        let mut evict_at = clock::now() + EVICTION_TICK;
        let mut burst: Option<Instant> = None;
        loop {
            let wake = self.wake(&phase, evict_at, burst);
            match next_event(&mut asks, &mut phase, &uplink, wake).await {
                Event::Asked(key) => {
                    if self.asked(&key, matches!(phase, Phase::Open(_))) {
                        burst.get_or_insert_with(|| clock::now() + BURST);
                    }
                }
                Event::AskersGone => return,
                Event::Connected(opened) => match *opened {
                    Ok(connection) => {
                        info!("configuration stream open");
                        self.state.is_connected = true;
                        self.publish_state();
                        phase = Phase::Open(Box::new(connection));
                    }
                    Err(why) => phase = self.lost(&why, &mut backoff),
                },
                Event::Superseded => {
                    debug!("configuration stream moves to the new certificate");
                    phase = Phase::Waiting(clock::now());
                }
                Event::Received(message) => {
                    let outcome = received(*message).and_then(|response| {
                        let Phase::Open(connection) = &phase else {
                            return Err("the stream is not open".to_owned());
                        };
                        backoff.succeeded();
                        // The answer first: it has the nonce the control plane waits for.
                        let reply = self.take(response)?;
                        send(connection, reply)?;
                        self.settle(clock::now());
                        Ok(())
                    });
                    if let Err(why) = outcome {
                        phase = self.lost(&why, &mut backoff);
                    }
                }
                Event::Due => {}
            }
            let now = clock::now();
            if evict_at <= now {
                evict_at = now + EVICTION_TICK;
                if matches!(phase, Phase::Open(_)) {
                    self.forget(now);
                }
            }
            if self.units.deadline().is_some_and(|at| at <= now) {
                self.settle(now);
            }
            let is_told = burst.is_none_or(|at| at <= now);
            match &phase {
                Phase::Waiting(at) if *at <= now => {
                    phase = Phase::Connecting(self.connect(Arc::clone(&uplink)));
                }
                Phase::Open(connection) if is_told => {
                    burst = None;
                    if let Err(why) = self.tell(connection) {
                        phase = self.lost(&why, &mut backoff);
                    }
                }
                Phase::Waiting(_) | Phase::Connecting(_) if is_told => burst = None,
                Phase::Waiting(_) | Phase::Connecting(_) | Phase::Open(_) => {}
            }
        }
    }

    fn wake(&self, phase: &Phase, evict_at: Instant, burst: Option<Instant>) -> Instant {
        let retry = match phase {
            Phase::Waiting(at) => Some(*at),
            Phase::Connecting(_) | Phase::Open(_) => None,
        };
        let others = [self.units.deadline(), retry, burst];
        others.into_iter().flatten().fold(evict_at, Instant::min)
    }

    /// Whether the control plane has to be asked.
    fn asked(&mut self, key: &DestinationKey, is_connected: bool) -> bool {
        if self.units.is_known(key) {
            return false;
        }
        if !is_connected && self.recall(key) {
            return false;
        }
        let has_room = self.units.demand(key) || self.make_room() && self.units.demand(key);
        if !has_room {
            warn!(?key, "no room for another destination: all are in use");
            return false;
        }
        self.stream.want(&units::listener(key));
        true
    }

    /// A forgotten destination serves again when the control plane cannot be asked.
    fn recall(&mut self, key: &DestinationKey) -> bool {
        let Some(at) = self.evicted.iter().position(|(evicted, _)| evicted == key) else {
            return false;
        };
        let Some((_, resources)) = self.evicted.remove(at) else {
            return false;
        };
        // What is shared with others may have moved on since.
        let saved = resources
            .into_iter()
            .filter(|(name, _)| !self.units.holds(name))
            .map(|(name, raw)| raw.saved(&name))
            .collect();
        info!(
            ?key,
            "destination recalled from memory; the control plane is away"
        );
        self.restore(saved);
        true
    }

    fn make_room(&mut self) -> bool {
        let now = clock::now();
        let idle = self
            .outputs
            .views
            .load()
            .idle_destinations(now, Duration::ZERO);
        let Some(oldest) = idle.into_iter().next() else {
            return false;
        };
        self.evict(&oldest);
        self.settle(now);
        true
    }

    /// Under a control plane that could be asked again.
    fn forget(&mut self, now: Instant) {
        let view = self.outputs.views.load();
        view.age_meshed(EVICTION_TICK);
        let idle = view.idle_destinations(now, IDLE);
        if idle.is_empty() {
            return;
        }
        debug!(count = idle.len(), "idle destinations forgotten");
        for key in &idle {
            self.evict(key);
        }
        self.settle(now);
    }

    fn evict(&mut self, key: &DestinationKey) {
        let used = self.units.forget(key);
        let resources = used
            .into_iter()
            .filter_map(|name| {
                let raw = self.raw.get(&name)?.clone();
                Some((name, raw))
            })
            .collect();
        self.evicted.push_back((key.clone(), resources));
        if self.evicted.len() > EVICTED_MAX {
            self.evicted.pop_front();
        }
    }

    /// Takes a response and says the answer; [`Client::settle`] follows.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> Result<DeltaDiscoveryRequest, String> {
        let ignored = Cell::new(0);
        let update: Update<_> = self
            .stream
            .receive(response, |type_url, bytes| {
                let decoded = decode(type_url, bytes).map_err(|rejected| rejected.to_string())?;
                ignored.set(ignored.get() + u64::from(decoded.ignored));
                Ok((decoded.piece.name(), decoded.piece))
            })
            .map_err(|violation| violation.to_string())?;
        self.state.ignored += ignored.get();
        if update.faults.is_empty() {
            self.state.acknowledged += 1;
        } else {
            self.state.refused += 1;
            for why in &update.faults {
                warn!(%why, "configuration refused; the previous version stays in force");
            }
            self.state.faults = update.faults;
        }
        let now = clock::now();
        for accepted in update.accepted {
            self.unmemorise(&accepted.name);
            self.keep(&accepted.name, &accepted.version, accepted.raw);
            self.units
                .accept(accepted.name, accepted.version, accepted.piece);
        }
        for name in update.removed {
            if units::is_eager(&name) {
                warn!(%name, "the control plane withdrew it; the last version stays in force");
            } else {
                self.is_raw_changed |=
                    name.kind == ResourceType::Listener && self.raw.remove(&name).is_some();
            }
            self.unmemorise(&name);
            self.units.remove(name, now);
        }
        Ok(update.reply)
    }

    /// The control plane has spoken anew about a forgotten destination: what it was counts no
    /// more.
    fn unmemorise(&mut self, name: &ResourceName) {
        if name.kind == ResourceType::Listener {
            let key = DestinationKey::from_listener_name(&name.name);
            self.evicted
                .retain(|(evicted, _)| Some(evicted) != key.as_ref());
        }
    }

    fn keep(&mut self, name: &ResourceName, version: &Arc<str>, bytes: Vec<u8>) {
        let raw = Raw {
            version: Arc::clone(version),
            bytes: bytes.into(),
        };
        self.raw.insert(name.clone(), raw);
        self.is_raw_changed = true;
    }

    /// Brings subscriptions, views and everybody else up to date with what was accepted.
    fn settle(&mut self, now: Instant) {
        let settled = self.units.settle(&self.stream.subscribed(), now);
        for name in &settled.want {
            self.stream.want(name);
        }
        for name in &settled.unwant {
            self.stream.unwant(name);
            self.is_raw_changed |= self.raw.remove(name).is_some();
        }
        for (key, missing) in &settled.incomplete {
            let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
            let listener = key.listener_name();
            warn!(%listener, ?missing, "parts of a destination did not come within 5 s; what is routed there fails");
        }
        if let Some(snapshot) = settled.snapshot {
            let view = reconcile(&self.outputs.views.load(), snapshot, now);
            self.outputs.views.publish(Arc::new(view));
            self.outputs
                .active
                .publish(Arc::new(self.units.active().clone()));
        }
        if std::mem::take(&mut self.is_raw_changed) {
            self.outputs.resources.publish(Arc::new(self.saved()));
        }
        self.publish_state();
    }

    /// Everything held and, behind it, what was forgotten.
    fn saved(&self) -> Vec<SavedResource> {
        let mut all: BTreeMap<&ResourceName, &Raw> = BTreeMap::new();
        for (name, raw) in self.evicted.iter().flat_map(|(_, resources)| resources) {
            all.insert(name, raw);
        }
        all.extend(&self.raw);
        all.into_iter().map(|(name, raw)| raw.saved(name)).collect()
    }

    fn publish_state(&mut self) {
        self.state.subscribed = self.stream.len();
        self.state.held = self.units.held();
        if *self.outputs.state.load() != self.state {
            self.outputs.state.publish(Arc::new(self.state.clone()));
        }
    }

    /// Everything there is to say goes out before the control plane answers.
    fn connect(&mut self, uplink: Arc<Uplink>) -> Connecting {
        self.stream.connected();
        let first = self.stream.outgoing(&mut Some(self.node.clone()));
        Box::pin(async move {
            uplink.certified().await;
            let link = uplink.link().map_err(|error| chain(&error))?;
            let (requests, queue) = mpsc::channel(REQUESTS_MAX);
            for request in first {
                requests
                    .try_send(request)
                    .map_err(|error| error.to_string())?;
            }
            let responses = AggregatedDiscoveryServiceClient::new(link.channel.clone())
                .max_decoding_message_size(RESPONSE_BYTES_MAX)
                .delta_aggregated_resources(ReceiverStream::new(queue))
                .await
                .map_err(|status| words(&status))?
                .into_inner();
            Ok(Connection {
                requests,
                responses,
                link,
            })
        })
    }

    fn tell(&mut self, connection: &Connection) -> Result<(), String> {
        for request in self.stream.outgoing(&mut None) {
            send(connection, request)?;
        }
        Ok(())
    }

    fn lost(&mut self, why: &str, backoff: &mut Backoff) -> Phase {
        let wait = backoff.failed();
        if std::mem::take(&mut self.state.is_connected) {
            self.state.disconnects += 1;
            self.publish_state();
        }
        info!(
            why,
            seconds = wait.as_secs_f32(),
            "no configuration stream; the last configuration stays in force"
        );
        Phase::Waiting(clock::now() + wait)
    }
}

impl Raw {
    fn saved(&self, name: &ResourceName) -> SavedResource {
        SavedResource {
            type_url: name.kind.type_url().to_owned(),
            name: name.name.to_string(),
            version: self.version.to_string(),
            raw: self.bytes.to_vec(),
        }
    }
}

async fn next_event(asks: &mut Asks, phase: &mut Phase, uplink: &Uplink, wake: Instant) -> Event {
    let progress = async {
        match phase {
            Phase::Waiting(_) => std::future::pending().await,
            Phase::Connecting(connecting) => Event::Connected(Box::new(connecting.await)),
            Phase::Open(connection) => {
                tokio::select! {
                    biased; // The old stream's end must not count as a failure.
                    () = uplink.superseded(&connection.link) => Event::Superseded,
                    received = connection.responses.message() => {
                        Event::Received(Box::new(received))
                    }
                }
            }
        }
    };
    tokio::select! {
        biased; // Timers, then the control plane, so that a flood of asks cannot hold up answers.
        () = clock::sleep_until(wake) => Event::Due,
        event = progress => event,
        key = asks.keys.recv() => key.map_or(Event::AskersGone, Event::Asked),
    }
}

fn send(connection: &Connection, request: DeltaDiscoveryRequest) -> Result<(), String> {
    connection
        .requests
        .try_send(request)
        .map_err(|_full| "the control plane does not take our requests".to_owned())
}

/// How this sidecar introduces itself (`proto/README.md`, Node).
pub fn node(workload: &crate::config::Workload) -> Node {
    let id = &workload.id;
    let features = Value {
        kind: Some(value::Kind::NumberValue(FEATURES)),
    };
    Node {
        id: format!(
            "{}/{}/{}",
            id.namespace(),
            id.service_account(),
            workload.name
        ),
        user_agent_name: "heddle-proxy".to_owned(),
        user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        metadata: Some(Struct {
            fields: HashMap::from([("heddle.features".to_owned(), features)]),
        }),
        ..Node::default()
    }
}

/// What this sidecar understands: all of `proto/README.md`.
const FEATURES: f64 = 1.0;

#[cfg(test)]
mod tests;
