//! What the request path loads: a snapshot with the live side of its clusters attached.
//!
//! Configuration is replaced, live state is kept: by [`EndpointKey`] and [`ClusterName`] it
//! moves from view to view, so an update forgets neither ejections nor outstanding requests.
//! Units that did not change are shared by `Arc` between views.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use heddle_policy::snapshot::{
    Cluster, ClusterName, Destination, DestinationKey, EndpointKey, Inbound, Outbound, Snapshot,
    Transport, UnknownDestination,
};
use tracing::{info, warn};

use crate::{
    cluster::{ClusterState, EndpointState, LiveCluster},
    meshed::Meshed,
};

/// One version of everything the data path needs.
#[derive(Clone, Debug)]
pub struct View {
    /// Of the snapshot it was made from.
    pub generation: u64,
    /// What is mesh and what happens to the rest; while it is `None`, anything may be mesh.
    pub outbound: Option<Arc<Outbound>>,
    /// Destinations by what the workload dials.
    pub destinations: HashMap<DestinationKey, Arc<LiveDestination>>,
    /// Keys the control plane does not know.
    pub absent: HashSet<DestinationKey>,
    /// How the workload's own ports are served; `None` refuses.
    pub inbound: Option<Arc<Inbound>>,
    /// What is not dialled in plaintext whatever this view says; moves on to the next one.
    pub meshed: Arc<Meshed>,
    /// What idle times are measured from: an `Instant` does not fit an atomic.
    started: Instant,
    endpoints: HashMap<EndpointKey, Arc<EndpointState>>,
    clusters: HashMap<ClusterName, Arc<ClusterState>>,
}

/// A destination with its clusters' live side.
#[derive(Debug)]
pub struct LiveDestination {
    /// As configured.
    pub config: Arc<Destination>,
    /// Every cluster that the target can name.
    pub clusters: HashMap<ClusterName, Arc<LiveCluster>>,
    /// Moves on with the key to the next version.
    pub usage: Arc<Usage>,
}

/// Whether a destination is in use, for eviction.
#[derive(Debug)]
pub struct Usage {
    /// The first view of this process.
    started: Instant,
    /// Milliseconds since then.
    used_ms: AtomicU64,
    /// Connections and exchanges.
    holders: AtomicU32,
}

/// What is known about a key.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// It is described.
    Found(Arc<LiveDestination>),
    /// The control plane does not describe it; this is what then happens.
    Unknown(UnknownDestination),
    /// No answer within the budget of whoever asked.
    Unanswered,
}

/// A connection or an exchange that uses a destination; while it lives the destination is not
/// idle.
#[derive(Debug)]
pub struct InUse(Arc<Usage>);

impl View {
    /// Knows nothing yet.
    pub fn empty(now: Instant) -> Self {
        Self {
            generation: 0,
            outbound: None,
            destinations: HashMap::new(),
            absent: HashSet::new(),
            inbound: None,
            meshed: Arc::default(),
            started: now,
            endpoints: HashMap::new(),
            clusters: HashMap::new(),
        }
    }

    /// What is known about `key`; `None` when it has not been answered.
    pub fn lookup(&self, key: &DestinationKey) -> Option<Lookup> {
        if let Some(destination) = self.destinations.get(key) {
            return Some(Lookup::Found(Arc::clone(destination)));
        }
        let unknown = match (&self.outbound, key) {
            (Some(outbound), _) => outbound.unknown,
            // A name leads nowhere by itself: nothing could pass.
            (None, DestinationKey::Host(..)) => UnknownDestination::RegistryOnly,
            (None, DestinationKey::Address(_)) => return None,
        };
        let is_answered = self.absent.contains(key) || !self.may_describe(key);
        is_answered.then_some(Lookup::Unknown(unknown))
    }

    /// Whether it makes sense to ask for `key`.
    pub fn may_describe(&self, key: &DestinationKey) -> bool {
        match &self.outbound {
            Some(outbound) => outbound.may_describe(key),
            None => matches!(key, DestinationKey::Host(..)),
        }
    }

    /// Destinations without connections and exchanges that were last used at least `idle` ago, the
    /// longest unused first. Those with some count as used `now`: the end of a use takes no note
    /// of its time, so whoever forgets what is idle asks more often than that.
    pub fn idle_destinations(&self, now: Instant, idle: Duration) -> Vec<DestinationKey> {
        let now_ms = millis(now.saturating_duration_since(self.started));
        let mut found: Vec<(u64, &DestinationKey)> = self
            .destinations
            .iter()
            .map(|(key, live)| (live.usage.used_ms(now), key))
            .filter(|(used_ms, _)| now_ms.saturating_sub(*used_ms) >= millis(idle))
            .collect();
        found.sort_by_key(|(used_ms, _)| *used_ms);
        found.into_iter().map(|(_, key)| key.clone()).collect()
    }

    /// Time has passed under a control plane that describes what this view holds.
    pub fn age_meshed(&self, passed: Duration) {
        let described: HashSet<SocketAddr> = self.meshed_addresses().collect();
        let forgotten = self.meshed.age(passed, |one| described.contains(one));
        if !forgotten.is_empty() {
            info!(addresses = ?forgotten, "no longer taken as meshed: not described so for a day");
            self.withhold();
        }
    }

    fn meshed_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoints
            .keys()
            .filter(|key| key.transport != Transport::Plain)
            .map(|key| key.address)
    }

    /// Endpoints that are described as plain take nothing while they are known as meshed.
    fn withhold(&self) {
        for (key, state) in &self.endpoints {
            let is_withheld =
                key.transport == Transport::Plain && self.meshed.contains(&key.address);
            if state.withhold(is_withheld) && is_withheld {
                warn!(address = %key.address, "described as plain, but a sidecar was there: not dialled until it has been described so for a day");
            }
        }
    }

    /// Live state of every endpoint, for the admin interface and metrics.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<EndpointState>> {
        self.endpoints.values()
    }
}

impl LiveDestination {
    /// Marks it as used until the answer is dropped.
    pub fn touch(&self, now: Instant) -> InUse {
        self.usage.note(now);
        self.usage.holders.fetch_add(1, Ordering::Relaxed);
        InUse(Arc::clone(&self.usage))
    }
}

impl Usage {
    /// When it was last used; that is `now` while it is.
    fn used_ms(&self, now: Instant) -> u64 {
        if self.holders.load(Ordering::Relaxed) > 0 {
            self.note(now);
        }
        self.used_ms.load(Ordering::Relaxed)
    }

    fn note(&self, now: Instant) {
        let age = now.saturating_duration_since(self.started);
        self.used_ms.fetch_max(millis(age), Ordering::Relaxed);
    }
}

/// Attaches live state to `snapshot`: what `previous` has is kept, the rest starts anew.
pub fn reconcile(previous: &View, snapshot: Snapshot, now: Instant) -> View {
    let mut attach = Attach {
        previous,
        now,
        shared: HashMap::new(),
        endpoints: HashMap::new(),
        clusters: HashMap::new(),
    };
    let destinations = snapshot
        .destinations
        .into_iter()
        .map(|(key, config)| {
            let live = attach.destination(&key, config);
            (key, live)
        })
        .collect();
    let view = View {
        generation: snapshot.generation,
        outbound: snapshot.outbound,
        destinations,
        absent: snapshot.absent,
        inbound: snapshot.inbound,
        meshed: Arc::clone(&previous.meshed),
        started: previous.started,
        endpoints: attach.endpoints,
        clusters: attach.clusters,
    };
    view.meshed.note(view.meshed_addresses());
    view.withhold();
    view
}

/// One reconciliation.
struct Attach<'a> {
    previous: &'a View,
    now: Instant,
    /// Clusters of equal configuration are one, whatever destination names them.
    shared: HashMap<ClusterName, Vec<Arc<LiveCluster>>>,
    endpoints: HashMap<EndpointKey, Arc<EndpointState>>,
    clusters: HashMap<ClusterName, Arc<ClusterState>>,
}

impl Attach<'_> {
    fn destination(
        &mut self,
        key: &DestinationKey,
        config: Arc<Destination>,
    ) -> Arc<LiveDestination> {
        let before = self.previous.destinations.get(key);
        if let Some(before) = before
            && Arc::ptr_eq(&before.config, &config)
        {
            for cluster in before.clusters.values() {
                self.keep(cluster);
            }
            return Arc::clone(before);
        }
        let clusters = config
            .clusters
            .iter()
            .map(|(name, cluster)| (name.clone(), self.cluster(before, cluster)))
            .collect();
        let usage = before.map_or_else(
            || {
                let age = self.now.saturating_duration_since(self.previous.started);
                Arc::new(Usage {
                    started: self.previous.started,
                    used_ms: AtomicU64::new(millis(age)),
                    holders: AtomicU32::new(0),
                })
            },
            |before| Arc::clone(&before.usage),
        );
        Arc::new(LiveDestination {
            config,
            clusters,
            usage,
        })
    }

    fn cluster(
        &mut self,
        before: Option<&Arc<LiveDestination>>,
        config: &Arc<Cluster>,
    ) -> Arc<LiveCluster> {
        let same = |live: &&Arc<LiveCluster>| Arc::ptr_eq(&live.config, config);
        let known = before
            .and_then(|before| before.clusters.get(&config.name))
            .filter(same)
            .or_else(|| self.shared.get(&config.name)?.iter().find(same))
            .cloned();
        let live = known.unwrap_or_else(|| self.attach(config));
        self.keep(&live);
        live
    }

    fn attach(&mut self, config: &Arc<Cluster>) -> Arc<LiveCluster> {
        let state = self
            .clusters
            .get(&config.name)
            .or_else(|| self.previous.clusters.get(&config.name))
            .cloned()
            .unwrap_or_default();
        let endpoints = config
            .endpoints
            .iter()
            .map(|endpoint| {
                let key = endpoint.key();
                self.endpoints
                    .get(&key)
                    .or_else(|| self.previous.endpoints.get(&key))
                    .cloned()
                    .unwrap_or_else(|| Arc::new(EndpointState::new(key, self.now)))
            })
            .collect();
        Arc::new(LiveCluster::new(Arc::clone(config), state, endpoints))
    }

    /// Carries a cluster's live state into the new view.
    fn keep(&mut self, cluster: &Arc<LiveCluster>) {
        let name = &cluster.config.name;
        self.clusters
            .entry(name.clone())
            .or_insert_with(|| Arc::clone(&cluster.state));
        for endpoint in &cluster.endpoints {
            self.endpoints
                .entry(endpoint.state.key.clone())
                .or_insert_with(|| Arc::clone(&endpoint.state));
        }
        let shared = self.shared.entry(name.clone()).or_default();
        if !shared.iter().any(|known| Arc::ptr_eq(known, cluster)) {
            shared.push(Arc::clone(cluster));
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.holders.fetch_sub(1, Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
