//! World and node -> xDS resources, one requested name at a time. Pure.
//!
//! Routes and endpoints are the same bytes for every client; listeners and the TLS part of
//! clusters vary by flavour (`proto/README.md`). A resource is compiled and encoded once per
//! [`Facet`], the part of a node it depends on, and shared by every stream.
//!
//! A version is a hash of the encoded bytes, equal on every replica. prost's maps have no order,
//! so no message here has a map with more than one entry, but for RBAC, which is encoded by a
//! mirror type with an ordered map (`rbac.rs`).

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use aws_lc_rs::digest;
use heddle_policy::snapshot::xds::{self, Rejected, ResourceName, ResourceType};
use parking_lot::Mutex;
use thiserror::Error;

use crate::{
    model::{Labels, Spec},
    world::{Topic, World, changes},
};

mod address;
mod cluster;
mod endpoints;
mod inbound;
mod listener;
mod outbound;
mod rbac;
mod route;
mod tls;
mod wire;

use address::Target;

pub use address::host_of;

/// What a client is, as far as its resources depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// What it understands.
    pub flavour: Flavour,
    /// Of its identity.
    pub namespace: Arc<str>,
    /// Those fixed in its token.
    pub labels: Arc<Labels>,
}

/// The kinds of client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Flavour {
    /// `heddle-proxy`.
    Sidecar,
    /// Envoy, with the directory of its SDS files.
    Envoy {
        /// `heddle.certificates` of the node.
        certificates: Arc<str>,
    },
    /// Proxyless gRPC.
    Grpc,
}

/// One compiled resource.
#[derive(Debug)]
pub struct Compiled {
    /// The name it was asked by.
    pub name: Arc<str>,
    /// Hash of `value`.
    pub version: Arc<str>,
    /// The encoded resource.
    pub value: Vec<u8>,
    /// What it names and a client needs next.
    pub dependents: Vec<ResourceName>,
}

/// The compiled resources of the current world.
#[derive(Debug)]
pub struct Compiler {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    world: Arc<World>,
    cache: HashMap<Key, Cached>,
    /// Of what is in the cache, about.
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    resource: ResourceName,
    facet: Facet,
}

/// The part of a node that a resource depends on; absent parts do not matter to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Facet {
    flavour: Option<Flavour>,
    namespace: Option<Arc<str>>,
    labels: Option<Arc<Labels>>,
}

#[derive(Clone, Debug)]
struct Cached {
    compiled: Arc<Compiled>,
    topics: Arc<[Topic]>,
}

impl Cached {
    /// With its key, about.
    fn bytes(&self) -> usize {
        self.compiled.value.len() + 4 * self.compiled.name.len() + CACHED_BYTES
    }
}

/// A change that a proxy would refuse.
#[derive(Debug, Error)]
#[error("a sidecar would refuse {resource}: {source}")]
pub struct Unacceptable {
    /// What it would refuse.
    pub resource: ResourceName,
    /// Why.
    pub source: Rejected,
}

/// What compiling one name gave.
struct Draft {
    value: Vec<u8>,
    dependents: Vec<ResourceName>,
}

impl Compiler {
    /// Compiles from `world` until it is replaced.
    pub fn new(world: Arc<World>) -> Self {
        Self {
            state: Mutex::new(State {
                world,
                cache: HashMap::new(),
                bytes: 0,
            }),
        }
    }

    /// Replaces the world. Returns what changed; everything else stays compiled.
    pub fn advance(&self, world: Arc<World>) -> HashSet<Topic> {
        let before = self.world();
        // Outside the lock: it takes time, and only one writer advances.
        let changed = changes(&before, &world);
        let mut state = self.state.lock();
        state.world = world;
        let is_stale = |cached: &Cached| cached.topics.iter().any(|topic| changed.contains(topic));
        state.cache.retain(|_, cached| !is_stale(cached));
        state.bytes = state.cache.values().map(Cached::bytes).sum();
        drop(state);
        changed
    }

    /// The current world.
    pub fn world(&self) -> Arc<World> {
        Arc::clone(&self.state.lock().world)
    }

    /// A resource as `node` sees it; `None` when there is none of that name. Also what it
    /// depends on, so that the caller learns of a change, also from nothing to something.
    pub fn get(
        &self,
        node: &Node,
        resource: &ResourceName,
    ) -> (Option<Arc<Compiled>>, Arc<[Topic]>) {
        let key = Key {
            resource: resource.clone(),
            facet: facet(node, resource),
        };
        let world = {
            let state = self.state.lock();
            if let Some(cached) = state.cache.get(&key) {
                return (
                    Some(Arc::clone(&cached.compiled)),
                    Arc::clone(&cached.topics),
                );
            }
            Arc::clone(&state.world)
        };
        let (compiled, topics) = compile(&world, node, resource);
        let topics: Arc<[Topic]> = topics.into();
        // Clients choose names, and what is not there is found out quickly: it is not kept.
        let Some(compiled) = compiled.map(Arc::new) else {
            return (None, topics);
        };
        let cached = Cached {
            compiled: Arc::clone(&compiled),
            topics: Arc::clone(&topics),
        };
        let mut state = self.state.lock();
        if Arc::ptr_eq(&state.world, &world) {
            let bytes = cached.bytes();
            if state.bytes + bytes > CACHE_BYTES_MAX {
                state.cache.clear();
                state.bytes = 0;
            }
            if state.cache.insert(key, cached).is_none() {
                state.bytes += bytes;
            }
        }
        (Some(compiled), topics)
    }

    /// Every name of a type that `node` gets when it asks for all: a sidecar gets the eager
    /// listeners, Envoy the mesh.
    pub fn all(&self, node: &Node, kind: ResourceType) -> Vec<Arc<str>> {
        all(&self.world(), node, kind)
    }
}

/// Compiles one resource. The topics are complete also when there is no such resource.
pub fn compile(
    world: &World,
    node: &Node,
    resource: &ResourceName,
) -> (Option<Compiled>, Vec<Topic>) {
    let mut topics = BTreeSet::new();
    let name = &resource.name;
    let draft = match resource.kind {
        ResourceType::Listener => listener::compile(world, node, name, &mut topics),
        ResourceType::Route => route::compile(world, name, &mut topics),
        ResourceType::Cluster => cluster::compile(world, node, name, &mut topics),
        ResourceType::Endpoints => endpoints::compile(world, name, &mut topics),
    };
    let compiled = draft.map(|draft| Compiled {
        name: Arc::clone(name),
        version: version(&draft.value),
        value: draft.value,
        dependents: draft.dependents,
    });
    (compiled, topics.into_iter().collect())
}

/// Compiles what differs between two worlds, as sidecars see it, and decodes it as they do.
///
/// # Errors
/// The first resource that a sidecar would refuse.
pub fn validate(before: &World, after: &World) -> Result<(), Unacceptable> {
    let changed = changes(before, after);
    if changed.is_empty() {
        return Ok(());
    }
    for node in audience(after) {
        let named = every_name(after, &changed).into_iter();
        let eager = [xds::MESH_OUTBOUND, xds::MESH_INBOUND].map(|name| ResourceName {
            kind: ResourceType::Listener,
            name: name.into(),
        });
        for resource in named.chain(eager) {
            let (compiled, topics) = compile(after, &node, &resource);
            if !topics.iter().any(|topic| changed.contains(topic)) {
                continue;
            }
            if let Some(compiled) = compiled {
                accept(&resource, &compiled)?;
            }
        }
    }
    Ok(())
}

/// Decodes a compiled resource as the sidecar does.
///
/// # Errors
/// When the sidecar would refuse it.
pub fn accept(resource: &ResourceName, compiled: &Compiled) -> Result<(), Unacceptable> {
    xds::decode(resource.kind.type_url(), &compiled.value)
        .map(drop)
        .map_err(|source| Unacceptable {
            resource: resource.clone(),
            source,
        })
}

/// One sidecar per distinct inbound configuration: each registered set of labels, and a workload
/// without any in each namespace.
fn audience(world: &World) -> Vec<Node> {
    let mut seen: BTreeSet<(Arc<str>, Labels)> = world
        .workloads
        .values()
        .map(|workload| (workload.namespace().into(), workload.labels.clone()))
        .collect();
    for (id, stored) in world.catalog.iter() {
        seen.insert((id.namespace.as_str().into(), Labels::new()));
        if let Some(labels) = selected_labels(&stored.resource.spec) {
            seen.insert((id.namespace.as_str().into(), labels.clone()));
        }
    }
    seen.into_iter()
        .map(|(namespace, labels)| Node {
            flavour: Flavour::Sidecar,
            namespace,
            labels: Arc::new(labels),
        })
        .collect()
}

/// The labels that a policy or a service selects by.
fn selected_labels(spec: &Spec) -> Option<&Labels> {
    match spec {
        Spec::AuthorizationPolicy(policy) => policy.selector.as_ref().map(|s| &s.match_labels),
        Spec::PeerAuthentication(policy) => policy.selector.as_ref().map(|s| &s.match_labels),
        Spec::ServiceEntry(service) => service.workload_selector.as_ref().map(|s| &s.labels),
        Spec::DestinationRule(_) | Spec::VirtualService(_) | Spec::WorkloadEntry(_) => None,
    }
}

fn all(world: &World, node: &Node, kind: ResourceType) -> Vec<Arc<str>> {
    let eager = || {
        [xds::MESH_OUTBOUND, xds::MESH_INBOUND]
            .map(Arc::from)
            .to_vec()
    };
    match (&node.flavour, kind) {
        (Flavour::Sidecar, ResourceType::Listener) => eager(),
        (Flavour::Envoy { .. }, ResourceType::Listener) => {
            let named = every_name(world, &HashSet::new());
            let addresses = named
                .into_iter()
                .filter(|name| name.kind == kind)
                .map(|n| n.name);
            eager().into_iter().chain(addresses).collect()
        }
        (Flavour::Envoy { .. }, ResourceType::Cluster) => {
            let named = every_name(world, &HashSet::new());
            let clusters = named
                .into_iter()
                .filter(|name| name.kind == kind)
                .map(|n| n.name);
            [Arc::from(xds::PASSTHROUGH), Arc::from(cluster::NOWHERE)]
                .into_iter()
                .chain(clusters)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// Every service's listeners, routes, clusters and endpoints; only the hosts in `of`, if any.
fn every_name(world: &World, of: &HashSet<Topic>) -> BTreeSet<ResourceName> {
    let mut names = BTreeSet::new();
    let mut add = |kind, name: String| {
        names.insert(ResourceName {
            kind,
            name: name.into(),
        });
    };
    for (_, service) in world.services() {
        for host in &service.hosts {
            if !of.is_empty() && !of.contains(&Topic::Host(Arc::clone(host.shared()))) {
                continue;
            }
            let rule = world.catalog.rule(host.as_str()).map(|(_, rule)| rule);
            let subsets = rule.map_or(&[][..], |rule| &rule.subsets);
            for port in &service.ports {
                for address in world.catalog.addresses_of(host.as_str()) {
                    let address = SocketAddr::new(*address, port.number.get());
                    add(ResourceType::Listener, format!("out/{address}"));
                }
                add(ResourceType::Route, format!("{host}:{}", port.number));
                let subsets = subsets.iter().map(|subset| Some(subset.name.as_str()));
                for subset in [None].into_iter().chain(subsets) {
                    let target = Target::cluster_name(host, port.number.get(), subset);
                    add(ResourceType::Cluster, target.clone());
                    add(ResourceType::Endpoints, target);
                }
            }
        }
    }
    names
}

/// Which part of the node matters to a name.
fn facet(node: &Node, resource: &ResourceName) -> Facet {
    match resource.kind {
        ResourceType::Route | ResourceType::Endpoints => Facet::default(),
        ResourceType::Cluster => Facet {
            flavour: Some(node.flavour.clone()),
            ..Facet::default()
        },
        ResourceType::Listener => {
            let is_inbound = *resource.name == *xds::MESH_INBOUND;
            let is_address = resource.name.starts_with("out/");
            Facet {
                flavour: Some(node.flavour.clone()),
                namespace: (!is_address).then(|| Arc::clone(&node.namespace)),
                labels: is_inbound.then(|| Arc::clone(&node.labels)),
            }
        }
    }
}

/// 96 bits of SHA-256, in hexadecimal: a version names content, it does not protect it.
fn version(value: &[u8]) -> Arc<str> {
    let hash = digest::digest(&digest::SHA256, value);
    let hex: String = hash.as_ref()[..12]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    hex.into()
}

/// Most bytes of compiled resources kept; beyond it, start over.
const CACHE_BYTES_MAX: usize = 256 << 20;
/// Of one of them, besides its value and name.
const CACHED_BYTES: usize = 512;

#[cfg(test)]
mod tests;
