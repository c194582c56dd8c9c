//! The live side of a cluster: what is outstanding, what failed, who is set aside.
//!
//! All of it is held per sidecar process and shared by workers: counters are atomics, and the
//! one lock of an endpoint is taken only by failures and while their traces last.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Instant,
};

use heddle_policy::{
    admission::Admission,
    balance::{Balancer, Candidates, Penalty, Standing, Turn},
    outcome::{Blame, Outcome},
    outlier::{Outlier, OutlierPolicy, Verdict},
    retry::{RetryPolicy, RetryTerms, Tried},
    snapshot::{Cluster, Endpoint, EndpointKey, Health},
};
use parking_lot::Mutex;
use rand::Rng;
use tracing::info;

/// A cluster's configuration with its live state.
#[derive(Debug)]
pub struct LiveCluster {
    /// As configured.
    pub config: Arc<Cluster>,
    /// Moves on with the name to the next version.
    pub state: Arc<ClusterState>,
    /// In the order of the configuration.
    pub endpoints: Vec<LiveEndpoint>,
    balancer: Balancer,
}

/// An endpoint's configuration with its live state.
#[derive(Clone, Debug)]
pub struct LiveEndpoint {
    /// As configured.
    pub config: Arc<Endpoint>,
    /// Shared by every cluster that has this endpoint.
    pub state: Arc<EndpointState>,
}

/// Counts of one cluster.
#[derive(Debug, Default)]
pub struct ClusterState {
    /// Limits and what is in use of them.
    pub admission: Arc<Admission>,
    /// Serialises ejections, so that two workers cannot both take the last permission.
    ejecting: Mutex<()>,
}

/// Live state of one endpoint.
#[derive(Debug)]
pub struct EndpointState {
    /// Whose state this is.
    pub key: EndpointKey,
    /// Requests or relayed connections in flight.
    outstanding: AtomicU32,
    /// Failed attempts as load.
    penalty: Penalty,
    /// It is described as plain but known as meshed: it takes nothing.
    is_withheld: AtomicBool,
    /// Set while `outlier` remembers anything; without it nobody takes the lock.
    mark: AtomicBool,
    outlier: Mutex<Outlier>,
}

/// An endpoint is one more in flight while this lives.
#[derive(Debug)]
pub struct Outstanding {
    endpoint: Arc<EndpointState>,
}

impl LiveCluster {
    /// Joins configuration and state; `endpoints` are in the order of the configuration.
    pub fn new(
        config: Arc<Cluster>,
        state: Arc<ClusterState>,
        endpoints: Vec<Arc<EndpointState>>,
    ) -> Self {
        let weights = config.endpoints.iter().map(|endpoint| endpoint.weight);
        let balancer = Balancer::new(config.balancing, weights);
        let endpoints = config
            .endpoints
            .iter()
            .cloned()
            .zip(endpoints)
            .map(|(config, state)| LiveEndpoint { config, state })
            .collect();
        Self {
            config,
            state,
            endpoints,
            balancer,
        }
    }

    /// The index of the endpoint for the next attempt.
    pub fn pick(
        &self,
        tried: &Tried,
        now: Instant,
        turn: &mut Turn,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let standings = Standings {
            cluster: self,
            tried,
            now,
        };
        self.balancer.pick(&standings, turn, rng)
    }

    /// What it and a route with this policy say about retries.
    pub fn retry_terms<'a>(&'a self, policy: Option<&'a RetryPolicy>) -> RetryTerms<'a> {
        RetryTerms {
            policy,
            admission: &self.state.admission,
            limits: &self.config.limits,
        }
    }

    /// How many endpoints take requests.
    pub fn serving(&self) -> usize {
        let serving = |endpoint: &&LiveEndpoint| endpoint.is_open();
        self.endpoints.iter().filter(serving).count()
    }

    /// Takes note of how an attempt on `endpoint` ended.
    pub fn observe(&self, endpoint: &EndpointState, outcome: Outcome, now: Instant) {
        if outcome.is_failure() {
            endpoint.penalty.failed(now);
        }
        let Some(policy) = &self.config.outlier else {
            return;
        };
        let blame = outcome.blame(policy.counts);
        if endpoint.observe(blame, policy, now) == Verdict::Eject {
            self.eject(endpoint, policy, now);
        }
    }

    fn eject(&self, endpoint: &EndpointState, policy: &OutlierPolicy, now: Instant) {
        let _one_at_a_time = self.state.ejecting.lock();
        if endpoint.is_ejected(now) {
            return;
        }
        let ejected = self.endpoints.iter().filter(|e| e.state.is_ejected(now));
        if !policy.may_eject(self.endpoints.len(), ejected.count()) {
            return;
        }
        let time = endpoint.outlier.lock().eject(policy, now);
        info!(
            cluster = %self.config.name,
            endpoint = %endpoint.key.address,
            ?time,
            "endpoint ejected"
        );
    }
}

impl LiveEndpoint {
    fn is_open(&self) -> bool {
        self.config.health == Health::Healthy && !self.state.is_withheld.load(Ordering::Relaxed)
    }
}

impl EndpointState {
    /// Nothing outstanding, nothing failed before `now`.
    pub fn new(key: EndpointKey, now: Instant) -> Self {
        Self {
            key,
            outstanding: AtomicU32::new(0),
            penalty: Penalty::new(now),
            is_withheld: AtomicBool::new(false),
            mark: AtomicBool::new(false),
            outlier: Mutex::default(),
        }
    }

    /// Whether it takes nothing from now on; says whether that is new.
    pub fn withhold(&self, is_withheld: bool) -> bool {
        self.is_withheld.swap(is_withheld, Ordering::Relaxed) != is_withheld
    }

    /// Counts one more in flight.
    pub fn begin(self: &Arc<Self>) -> Outstanding {
        self.outstanding.fetch_add(1, Ordering::Relaxed);
        Outstanding {
            endpoint: Arc::clone(self),
        }
    }

    /// Requests or connections in flight.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }

    /// Whether it is set aside.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.mark.load(Ordering::Relaxed) && self.outlier.lock().is_ejected(now)
    }

    fn observe(&self, blame: Blame, policy: &OutlierPolicy, now: Instant) -> Verdict {
        if blame != Blame::Failure && !self.mark.load(Ordering::Relaxed) {
            return Verdict::Keep;
        }
        let mut outlier = self.outlier.lock();
        let verdict = outlier.observe(blame, policy, now);
        self.mark
            .store(!outlier.is_quiet(policy, now), Ordering::Relaxed);
        verdict
    }

    fn share(&self, now: Instant) -> f32 {
        if self.mark.load(Ordering::Relaxed) {
            self.outlier.lock().share(now)
        } else {
            1.0
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        self.endpoint.outstanding.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the balancer sees of a cluster for one pick.
struct Standings<'a> {
    cluster: &'a LiveCluster,
    tried: &'a Tried,
    now: Instant,
}

impl Candidates for Standings<'_> {
    fn standing(&self, endpoint: usize) -> Standing {
        let live = &self.cluster.endpoints[endpoint];
        let state = &live.state;
        if !live.is_open() {
            Standing::Closed
        } else if state.is_ejected(self.now) {
            Standing::Ejected
        } else if self.tried.contains(endpoint) {
            Standing::Tried
        } else {
            Standing::Open
        }
    }

    fn load(&self, endpoint: usize) -> f32 {
        let state = &self.cluster.endpoints[endpoint].state;
        #[expect(
            clippy::cast_precision_loss,
            reason = "a comparison to seven digits is exact enough"
        )]
        let outstanding = state.outstanding() as f32;
        outstanding + state.penalty.load(self.now)
    }

    fn share(&self, endpoint: usize) -> f32 {
        self.cluster.endpoints[endpoint].state.share(self.now)
    }
}
