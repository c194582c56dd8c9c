//! Accepted pieces, joined into destinations.
//!
//! A joined cluster is kept until its CDS or EDS piece is replaced, so an endpoint change rebuilds
//! one cluster and every destination shares it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use crate::{
    route::RouteTable,
    snapshot::{Cluster, ClusterName, Destination, Target, WeightedClusters},
};

use super::{
    ClusterSpec, DestinationListener, Endpoints, Listener, ListenerTarget, Piece, ResourceName,
    ResourceType,
};

/// Everything accepted and still subscribed. Its size is bounded by the subscriptions of the one
/// who fills it.
#[derive(Clone, Debug, Default)]
pub struct Pieces {
    listeners: HashMap<Arc<str>, Listener>,
    routes: HashMap<Arc<str>, Arc<RouteTable>>,
    specs: HashMap<Arc<str>, Arc<ClusterSpec>>,
    endpoints: HashMap<Arc<str>, Arc<Endpoints>>,
    /// Joined from `specs` and `endpoints`, by cluster name.
    joined: HashMap<Arc<str>, Arc<Cluster>>,
}

/// What the pieces at hand make of a destination.
#[derive(Clone, Debug)]
pub struct Assembly {
    /// What can be served. `None` while the routes are missing.
    pub destination: Option<Arc<Destination>>,
    /// What is needed before the destination is complete; empty when it is. While it is not,
    /// keep the previous version in force (gRFC A74), at most for the time the caller allows.
    pub missing: BTreeSet<ResourceName>,
}

impl Pieces {
    /// Adds or replaces a piece.
    pub fn insert(&mut self, piece: Piece) {
        let name = piece.name().name;
        match piece {
            Piece::Listener(listener) => drop(self.listeners.insert(name, listener)),
            Piece::Routes(table) => drop(self.routes.insert(name, table)),
            Piece::Cluster(spec) => {
                self.joined.remove(&name);
                self.specs.insert(name, spec);
            }
            Piece::Endpoints(endpoints) => {
                self.forget_joined_with(&name);
                self.endpoints.insert(name, endpoints);
            }
        }
    }

    /// Removes a piece, if it is there.
    pub fn remove(&mut self, name: &ResourceName) {
        match name.kind {
            ResourceType::Listener => drop(self.listeners.remove(&name.name)),
            ResourceType::Route => drop(self.routes.remove(&name.name)),
            ResourceType::Cluster => {
                self.joined.remove(&name.name);
                self.specs.remove(&name.name);
            }
            ResourceType::Endpoints => {
                self.forget_joined_with(&name.name);
                self.endpoints.remove(&name.name);
            }
        }
    }

    fn forget_joined_with(&mut self, endpoints: &str) {
        let specs = &self.specs;
        self.joined.retain(|cluster, _| {
            specs
                .get(cluster)
                .is_some_and(|spec| *spec.endpoints != *endpoints)
        });
    }

    /// A listener by name.
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners.get(name)
    }

    /// Every listener.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        self.listeners.values()
    }

    /// Whether a piece is at hand.
    pub fn contains(&self, name: &ResourceName) -> bool {
        match name.kind {
            ResourceType::Listener => self.listeners.contains_key(&name.name),
            ResourceType::Route => self.routes.contains_key(&name.name),
            ResourceType::Cluster => self.specs.contains_key(&name.name),
            ResourceType::Endpoints => self.endpoints.contains_key(&name.name),
        }
    }

    /// Joins what a destination needs. Pure but for the memory of joined clusters.
    pub fn assemble(&mut self, listener: &DestinationListener) -> Assembly {
        let mut missing = BTreeSet::new();
        let target = match &listener.target {
            ListenerTarget::Passthrough => Target::Passthrough,
            ListenerTarget::Tcp(split) => Target::Tcp(split.clone()),
            ListenerTarget::Routes(name) => match self.routes.get(name) {
                Some(table) => Target::Http(Arc::clone(table)),
                None => {
                    missing.insert(needed(ResourceType::Route, name));
                    return Assembly {
                        destination: None,
                        missing,
                    };
                }
            },
        };
        let mut clusters = HashMap::new();
        for name in weighted(&target) {
            match self.join(&name) {
                Ok(cluster) => drop(clusters.insert(name, cluster)),
                Err(absent) => drop(missing.insert(absent)),
            }
        }
        let destination = Some(Arc::new(Destination {
            name: Arc::clone(&listener.name),
            protocol: listener.protocol,
            target,
            clusters,
        }));
        Assembly {
            destination,
            missing,
        }
    }

    /// Every piece that a destination uses or waits for, to unsubscribe with it.
    pub fn used_by(&self, listener: &DestinationListener) -> BTreeSet<ResourceName> {
        let mut used = BTreeSet::from([needed(ResourceType::Listener, &listener.listener)]);
        let clusters = match &listener.target {
            ListenerTarget::Passthrough => BTreeSet::new(),
            ListenerTarget::Tcp(split) => split.iter().map(|(name, _)| name.clone()).collect(),
            ListenerTarget::Routes(name) => {
                used.insert(needed(ResourceType::Route, name));
                self.routes
                    .get(name)
                    .map(|table| named(table))
                    .unwrap_or_default()
            }
        };
        for cluster in clusters {
            let endpoints = self.specs.get(&cluster.0).map_or_else(
                || Arc::clone(&cluster.0),
                |spec| Arc::clone(&spec.endpoints),
            );
            used.insert(needed(ResourceType::Cluster, &cluster.0));
            used.insert(needed(ResourceType::Endpoints, &endpoints));
        }
        used
    }

    fn join(&mut self, name: &ClusterName) -> Result<Arc<Cluster>, ResourceName> {
        if let Some(cluster) = self.joined.get(&name.0) {
            return Ok(Arc::clone(cluster));
        }
        let spec = self
            .specs
            .get(&name.0)
            .ok_or_else(|| needed(ResourceType::Cluster, &name.0))?;
        let endpoints = self
            .endpoints
            .get(&spec.endpoints)
            .ok_or_else(|| needed(ResourceType::Endpoints, &spec.endpoints))?;
        let cluster = Arc::new(spec.join(endpoints));
        self.joined
            .insert(Arc::clone(&name.0), Arc::clone(&cluster));
        Ok(cluster)
    }
}

/// The clusters that get traffic.
fn weighted(target: &Target) -> BTreeSet<ClusterName> {
    let with_weight = |split: &WeightedClusters| -> Vec<ClusterName> {
        split
            .iter()
            .filter(|(_, weight)| *weight > 0)
            .map(|(name, _)| name.clone())
            .collect()
    };
    match target {
        Target::Passthrough => BTreeSet::new(),
        Target::Tcp(split) => with_weight(split).into_iter().collect(),
        Target::Http(table) => table
            .hosts()
            .iter()
            .flat_map(|host| &host.routes)
            .flat_map(|route| with_weight(&route.clusters))
            .collect(),
    }
}

/// Every cluster that routes name, also those without weight.
fn named(table: &RouteTable) -> BTreeSet<ClusterName> {
    table
        .hosts()
        .iter()
        .flat_map(|host| &host.routes)
        .flat_map(|route| route.clusters.iter().map(|(name, _)| name.clone()))
        .collect()
}

fn needed(kind: ResourceType, name: &Arc<str>) -> ResourceName {
    ResourceName {
        kind,
        name: Arc::clone(name),
    }
}
