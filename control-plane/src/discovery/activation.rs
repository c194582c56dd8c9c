//! What other parts ask of discovery: whether a change is active everywhere, and whether
//! sidecars would accept it at all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::{
    Health,
    xds::{ResourceName, ResourceType},
};
use heddle_shell::clock;
use tonic::async_trait;

use super::{Discovery, proxies::Standing};
use crate::{
    compile::{self, Compiler, Flavour, Node},
    model::{Catalog, Host, Kind, Labels, ResourceId, check::Finding},
    registry::Holds,
    store::Revision,
    traffic_api::{Activation, Progress},
    world::{Mesh, World},
};

/// The sidecars of the mesh: those that are connected, and those that are expected back.
#[derive(Debug)]
pub struct Fleet {
    /// Knows what each is told, and what it reports.
    pub discovery: Arc<Discovery>,
    /// Which registrations have a stream.
    pub holds: Arc<Holds>,
}

#[async_trait]
impl Activation for Fleet {
    async fn wait_active(&self, host: &Host, revision: Revision, deadline: Instant) -> Progress {
        let mut changed = self.discovery.proxies.changes();
        loop {
            let progress = self.progress(host, revision);
            let is_done = progress.is_served && progress.behind.is_empty();
            if is_done || clock::now() >= deadline {
                return progress;
            }
            tokio::select! {
                // Order does not matter: both lead to the same look.
                biased;
                _ = changed.changed() => {
                    // Changes come in bursts; each look is worth more than one of them.
                    clock::sleep_until(deadline.min(clock::now() + TOGETHER)).await;
                }
                () = clock::sleep_until(deadline) => {}
            }
        }
    }
}

impl Fleet {
    /// How far the sidecars that go by a host's routes are.
    fn progress(&self, host: &Host, revision: Revision) -> Progress {
        let Some(compiler) = self.discovery.compiler() else {
            return Progress::default();
        };
        let world = compiler.world();
        let is_served = world.catalog.revision >= revision;
        let service = world.catalog.service(host.as_str());
        let ports = service.map_or(&[][..], |(_, service)| &service.ports);
        let routes = ports.iter().map(|port| {
            let routes = ResourceName {
                kind: ResourceType::Route,
                name: format!("{host}:{}", port.number).into(),
            };
            let newest = version(&compiler, &routes);
            (routes, newest)
        });
        let standings = self
            .discovery
            .proxies
            .standings(&routes.collect(), self.awaited(&world));
        let is_behind = |standing| !is_served || standing != Standing::Active;
        let affected = standings.len();
        let behind: Vec<_> = standings
            .into_iter()
            .filter(|(_, standing)| is_behind(*standing))
            .map(|(node_id, standing)| match standing {
                Standing::Active | Standing::Behind => node_id.to_string(),
                Standing::Away => format!("{node_id} (not connected)"),
            })
            .collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Progress {
            is_served,
            affected: count(affected),
            active: count(affected - behind.len()),
            behind,
        }
    }

    /// Node ids behind registrations that are kept for their sidecar to come back.
    fn awaited(&self, world: &World) -> Vec<Arc<str>> {
        let registered = world.workloads.iter();
        let awaited = registered.filter(|(name, workload)| {
            workload.is_meshed && workload.health == Health::Healthy && !self.holds.contains(name)
        });
        awaited
            .map(|(_, workload)| workload.node_id().into())
            .collect()
    }
}

impl Discovery {
    /// What sidecars would refuse of a candidate; for [`crate::config_api::Validate`].
    pub fn validate(&self, mesh: &Arc<Mesh>, candidate: &Catalog) -> Vec<Finding> {
        let before = match self.compiler() {
            Some(compiler) => compiler.world(),
            None => Arc::new(World::new(Arc::default(), Arc::default(), Arc::clone(mesh))),
        };
        let workloads = Arc::clone(&before.workloads);
        let after = World::new(Arc::new(candidate.clone()), workloads, Arc::clone(mesh));
        let Err(refused) = compile::validate(&before, &after) else {
            return Vec::new();
        };
        let changed = || {
            candidate.iter().filter(|(id, stored)| {
                let was = before.catalog.get(id);
                was.is_none_or(|was| was.resource != stored.resource)
            })
        };
        let of_kind = changed().find(|(id, _)| kinds(&refused.resource).contains(&id.kind));
        let found: Option<&ResourceId> = of_kind.or_else(|| changed().next()).map(|(id, _)| id);
        // Else something is gone that kept it acceptable.
        let deleted = || {
            let mut ids = before.catalog.iter().map(|(id, _)| id);
            ids.find(|id| candidate.get(id).is_none())
        };
        let any = || candidate.iter().next().map(|(id, _)| id);
        let id = found.or_else(deleted).or_else(any);
        id.map(|id| Finding {
            id: id.clone(),
            path: "spec".to_owned(),
            message: refused.to_string(),
        })
        .into_iter()
        .collect()
    }
}

/// Changes this close are looked at together.
const TOGETHER: Duration = Duration::from_millis(50);

/// Routes are the same for every node.
fn version(compiler: &Compiler, routes: &ResourceName) -> Option<Arc<str>> {
    let node = Node {
        flavour: Flavour::Sidecar,
        namespace: "".into(),
        labels: Arc::new(Labels::new()),
    };
    let (compiled, _) = compiler.get(&node, routes);
    compiled.map(|compiled| Arc::clone(&compiled.version))
}

/// What users write that a resource is made of.
fn kinds(resource: &ResourceName) -> &'static [Kind] {
    match resource.kind {
        ResourceType::Route => &[Kind::VirtualService],
        ResourceType::Cluster => &[Kind::DestinationRule, Kind::ServiceEntry],
        ResourceType::Endpoints => &[Kind::ServiceEntry, Kind::WorkloadEntry],
        ResourceType::Listener => &[
            Kind::AuthorizationPolicy,
            Kind::PeerAuthentication,
            Kind::ServiceEntry,
        ],
    }
}
