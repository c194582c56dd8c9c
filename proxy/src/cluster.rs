//! The live side of a cluster: what is outstanding, what failed, who is set aside.
//!
//! All of it is held per sidecar process and shared by workers through atomics.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use heddle_policy::snapshot::{Cluster, Endpoint, EndpointKey};

/// A cluster's configuration with its live state.
#[derive(Debug)]
pub struct LiveCluster {
    /// As configured.
    pub config: Arc<Cluster>,
    /// Moves on with the name to the next version.
    pub state: Arc<ClusterState>,
    /// In the order of the configuration.
    pub endpoints: Vec<LiveEndpoint>,
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
    requests: AtomicU32,
}

/// Live state of one endpoint.
#[derive(Debug)]
pub struct EndpointState {
    /// Whose state this is.
    pub key: EndpointKey,
    outstanding: AtomicU32,
}

impl LiveCluster {
    /// Joins configuration and state; `endpoints` are in the order of the configuration.
    pub fn new(
        config: Arc<Cluster>,
        state: Arc<ClusterState>,
        endpoints: Vec<Arc<EndpointState>>,
    ) -> Self {
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
        }
    }
}

impl ClusterState {
    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

impl EndpointState {
    /// Nothing outstanding, nothing failed.
    pub fn new(key: EndpointKey) -> Self {
        Self {
            key,
            outstanding: AtomicU32::new(0),
        }
    }

    /// Requests or connections in flight.
    pub fn outstanding(&self) -> u32 {
        self.outstanding.load(Ordering::Relaxed)
    }
}
