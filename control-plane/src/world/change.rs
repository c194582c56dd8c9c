//! What differs between two worlds, in the terms that compiled resources depend on.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use super::{Workload, World};
use crate::model::{Host, ResourceId, Spec};

/// What a compiled resource depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// A host: its service, routes, rule or endpoints.
    Host(Arc<str>),
    /// Who is at an address.
    Address(IpAddr),
    /// How the workloads of a namespace are served.
    Inbound(Arc<str>),
    /// How all workloads are served.
    InboundOfAll,
    /// The mesh's addresses and names.
    Outbound,
    /// Anything: the set of all resources.
    Anything,
}

/// What has to be compiled again. Empty when nothing differs.
pub fn changes(before: &World, after: &World) -> HashSet<Topic> {
    let mut topics = HashSet::new();
    for (id, stored) in before.catalog.iter() {
        let same = after.catalog.get(id).is_some_and(|other| {
            Arc::ptr_eq(&stored.resource, &other.resource) || stored.resource == other.resource
        });
        if !same {
            resource(before, id, &stored.resource.spec, &mut topics);
            if let Some(other) = after.catalog.get(id) {
                resource(after, id, &other.resource.spec, &mut topics);
            }
        }
    }
    for (id, stored) in after.catalog.iter() {
        if before.catalog.get(id).is_none() {
            resource(after, id, &stored.resource.spec, &mut topics);
        }
    }
    allotted(before, after, &mut topics);
    for (name, workload) in before.workloads.iter() {
        if after.workloads.get(name) != Some(workload) {
            registration(before, after, workload, &mut topics);
        }
    }
    for (name, workload) in after.workloads.iter() {
        if before.workloads.get(name) != Some(workload) {
            registration(before, after, workload, &mut topics);
        }
    }
    if !topics.is_empty() {
        topics.insert(Topic::Anything);
    }
    topics
}

fn resource(world: &World, id: &ResourceId, spec: &Spec, topics: &mut HashSet<Topic>) {
    match spec {
        Spec::ServiceEntry(service) => {
            topics.insert(Topic::Outbound);
            topics.insert(Topic::Inbound(id.namespace.as_str().into()));
            for host in &service.hosts {
                whole_host(world, host, topics);
            }
        }
        Spec::VirtualService(routes) => {
            for host in &routes.hosts {
                topics.insert(Topic::Host(Arc::clone(host.shared())));
                // Routes of connections are part of the listener.
                let addresses = world.catalog.addresses_of(host.as_str());
                topics.extend(addresses.iter().copied().map(Topic::Address));
            }
        }
        Spec::DestinationRule(rule) => {
            topics.insert(Topic::Host(Arc::clone(rule.host.shared())));
        }
        Spec::PeerAuthentication(_) | Spec::AuthorizationPolicy(_) => {
            topics.insert(if *id.namespace == *world.mesh.root_namespace {
                Topic::InboundOfAll
            } else {
                Topic::Inbound(id.namespace.as_str().into())
            });
        }
        Spec::WorkloadEntry(entry) => {
            topics.insert(Topic::Outbound);
            topics.insert(Topic::Address(entry.address));
            let hosts = world
                .services_selecting(&id.namespace, &entry.labels)
                .flat_map(|service| &service.hosts);
            topics.extend(hosts.map(|host| Topic::Host(Arc::clone(host.shared()))));
        }
    }
}

/// A host with its addresses and those of its endpoints.
fn whole_host(world: &World, host: &Host, topics: &mut HashSet<Topic>) {
    topics.insert(Topic::Host(Arc::clone(host.shared())));
    let addresses = world.catalog.addresses_of(host.as_str());
    topics.extend(addresses.iter().copied().map(Topic::Address));
    let Some((_, service)) = world.catalog.service(host.as_str()) else {
        return;
    };
    for port in &service.ports {
        let instances = world.instances(host.as_str(), port.number.get());
        for instance in instances.unwrap_or_default() {
            topics.insert(Topic::Address(instance.address.ip()));
        }
    }
}

fn allotted(before: &World, after: &World, topics: &mut HashSet<Topic>) {
    for (_, service) in after.services() {
        for host in &service.hosts {
            let was = before.catalog.addresses_of(host.as_str());
            let is = after.catalog.addresses_of(host.as_str());
            if was != is {
                topics.insert(Topic::Outbound);
                topics.insert(Topic::Host(Arc::clone(host.shared())));
                topics.extend(was.iter().chain(is).copied().map(Topic::Address));
            }
        }
    }
}

fn registration(before: &World, after: &World, workload: &Workload, topics: &mut HashSet<Topic>) {
    if before.knows(workload.address) != after.knows(workload.address) {
        topics.insert(Topic::Outbound);
    }
    topics.insert(Topic::Address(workload.address));
    for world in [before, after] {
        for host in world.hosts_touched_by(workload) {
            topics.insert(Topic::Host(Arc::clone(host.shared())));
        }
    }
}
