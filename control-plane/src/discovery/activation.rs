//! What other parts ask of discovery: whether a change is active everywhere, and whether
//! sidecars would accept it at all.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_shell::clock;
use tonic::async_trait;

use super::{Discovery, proxies::HEDDLE};
use crate::{
    compile::{self, Compiler, Flavour, Node},
    model::{Catalog, Host, Kind, Labels, ResourceId, check::Finding},
    store::Revision,
    traffic_api::{Activation, Progress},
    world::{Mesh, World},
};

#[async_trait]
impl Activation for Discovery {
    async fn wait_active(&self, host: &Host, revision: Revision, deadline: Instant) -> Progress {
        let mut changed = self.proxies.changes();
        loop {
            let (progress, is_served) = self.progress(host, revision);
            let is_done = is_served && progress.behind.is_empty();
            if is_done || clock::now() >= deadline {
                return progress;
            }
            tokio::select! {
                // Order does not matter: both lead to the same look.
                biased;
                _ = changed.changed() => {}
                () = clock::sleep_until(deadline) => {}
            }
        }
    }
}

impl Discovery {
    /// How far the holders of a host's routes are, and whether the revision is served at all:
    /// before that, what is active is something older.
    fn progress(&self, host: &Host, revision: Revision) -> (Progress, bool) {
        let Some(compiler) = self.compiler() else {
            return (Progress::default(), false);
        };
        let world = compiler.world();
        let is_served = world.catalog.revision >= revision;
        let service = world.catalog.service(host.as_str());
        let ports = service.map_or(&[][..], |(_, service)| &service.ports);
        let mut holders: BTreeMap<Arc<str>, bool> = BTreeMap::new();
        for port in ports {
            let routes = ResourceName {
                kind: ResourceType::Route,
                name: format!("{host}:{}", port.number).into(),
            };
            let newest = version(&compiler, &routes);
            for held in self.proxies.held(|name| *name == routes) {
                // Others do not report.
                if held.flavour == HEDDLE {
                    let is_active = is_served && held.in_force == newest;
                    *holders.entry(held.node_id).or_insert(true) &= is_active;
                }
            }
        }
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let affected = count(holders.len());
        let behind: Vec<_> = holders
            .into_iter()
            .filter(|(_, is_active)| !is_active)
            .collect();
        let behind: Vec<_> = behind
            .into_iter()
            .map(|(node_id, _)| node_id.to_string())
            .collect();
        let progress = Progress {
            affected,
            active: affected - count(behind.len()),
            behind,
        };
        (progress, is_served)
    }

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
        // A deletion has no resource left to blame but any that remains.
        let id = found.or_else(|| candidate.iter().next().map(|(id, _)| id));
        id.map(|id| Finding {
            id: id.clone(),
            path: "spec".to_owned(),
            message: refused.to_string(),
        })
        .into_iter()
        .collect()
    }
}

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
