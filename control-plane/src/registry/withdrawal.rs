//! When a draining workload may stop: once no client goes by endpoints from before it drained.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use heddle_policy::snapshot::{
    Health,
    xds::{ResourceName, ResourceType},
};

use super::record::State;
use crate::{
    compile::{Compiler, Flavour, Node, host_of},
    discovery::Discovery,
    model::{Host, Labels},
    world::{Workload, WorkloadName},
};

/// One wait for it.
#[derive(Debug)]
pub(super) enum Withdrawal {
    /// Not asked for, or told already.
    Idle,
    /// Versions without the workload as an endpoint for new requests.
    Waiting(Good),
}

impl Withdrawal {
    pub(super) fn new(state: State) -> Self {
        match state {
            State::Ready => Self::Idle,
            State::Draining => Self::Waiting(Good::default()),
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self, Self::Waiting(_))
    }

    /// True once, when it is.
    pub(super) fn look(&mut self, discovery: &Discovery, name: &WorkloadName) -> bool {
        let Self::Waiting(good) = self else {
            return false;
        };
        let Some(compiler) = discovery.compiler() else {
            return false;
        };
        let world = compiler.world();
        let Some(workload) = world.workloads.get(name) else {
            return false;
        };
        if workload.health != Health::Draining {
            // The world is not there yet.
            return false;
        }
        let hosts: HashSet<Host> = world.hosts_touched_by(workload).into_iter().collect();
        let held = discovery
            .proxies
            .held(|name| is_about(name, workload, &hosts));
        let names: HashSet<&ResourceName> = held.iter().map(|held| &held.name).collect();
        for name in names {
            good.add(&compiler, name);
        }
        // Without a version in force a client uses what it was sent next. What a sidecar goes by
        // that does not report just now, nobody knows.
        let is_withdrawn = held.iter().all(|held| {
            if !held.is_known {
                return false;
            }
            let version = held.in_force.as_deref().unwrap_or(&held.sent);
            good.contains(&held.name, Some(version))
        });
        if is_withdrawn {
            *self = Self::Idle;
        }
        is_withdrawn
    }
}

/// Whether endpoints may have the workload.
fn is_about(name: &ResourceName, workload: &Workload, hosts: &HashSet<Host>) -> bool {
    if name.kind != ResourceType::Endpoints {
        return false;
    }
    match name.name.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip() == workload.address,
        Err(_by_name) => host_of(&name.name).is_some_and(|host| hosts.contains(host)),
    }
}

/// Versions that are good enough: every one that was current at some look. Sidecars may be at any
/// of them while the next is on its way.
#[derive(Debug, Default)]
pub(super) struct Good(HashMap<ResourceName, HashSet<Arc<str>>>);

impl Good {
    /// Notes the current version of routes or endpoints, which are the same for every node.
    fn add(&mut self, compiler: &Compiler, name: &ResourceName) {
        let node = Node {
            flavour: Flavour::Sidecar,
            namespace: "".into(),
            labels: Arc::new(Labels::new()),
        };
        let (Some(compiled), _) = compiler.get(&node, name) else {
            return;
        };
        let versions = self.0.entry(name.clone()).or_default();
        if versions.len() >= VERSIONS_MAX {
            versions.clear();
        }
        versions.insert(Arc::clone(&compiled.version));
    }

    fn contains(&self, name: &ResourceName, version: Option<&str>) -> bool {
        let versions = self.0.get(name);
        version.is_some_and(|version| versions.is_some_and(|good| good.contains(version)))
    }
}

/// Versions of one resource that are remembered during a wait; beyond it only newer ones count.
const VERSIONS_MAX: usize = 256;
