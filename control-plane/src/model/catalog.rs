//! All desired state at one revision of the store, indexed for readers.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    slice,
    sync::Arc,
};

use super::{DestinationRule, Host, Resource, ResourceId, ServiceEntry, Spec, VirtualService};
use crate::store::Revision;

/// All resources at one revision. Cheap to clone: resources are shared.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    /// The store's revision it was read at.
    pub revision: Revision,
    resources: BTreeMap<ResourceId, Stored>,
    services: HashMap<Host, ResourceId>,
    routes: HashMap<Host, ResourceId>,
    rules: HashMap<Host, ResourceId>,
    addresses: HashMap<Host, Vec<IpAddr>>,
}

/// A resource as it was stored.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Revision of its last write.
    pub revision: Revision,
    /// When that happened, in milliseconds since the Unix epoch.
    pub written_at_ms: i64,
    /// Who did it: a SPIFFE id, or `administrator`.
    pub written_by: Arc<str>,
}

impl Catalog {
    /// Every resource, by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&ResourceId, &Stored)> {
        self.resources.iter()
    }

    /// One resource.
    pub fn get(&self, id: &ResourceId) -> Option<&Stored> {
        self.resources.get(id)
    }

    /// The one service of a host, with its id.
    pub fn service(&self, host: &str) -> Option<(&ResourceId, &ServiceEntry)> {
        match self.by_host(&self.services, host)? {
            (id, Spec::ServiceEntry(service)) => Some((id, service)),
            _ => None,
        }
    }

    /// The one `VirtualService` of a host, with its id.
    pub fn routes(&self, host: &str) -> Option<(&ResourceId, &VirtualService)> {
        match self.by_host(&self.routes, host)? {
            (id, Spec::VirtualService(routes)) => Some((id, routes)),
            _ => None,
        }
    }

    /// The one `DestinationRule` of a host, with its id.
    pub fn rule(&self, host: &str) -> Option<(&ResourceId, &DestinationRule)> {
        match self.by_host(&self.rules, host)? {
            (id, Spec::DestinationRule(rule)) => Some((id, rule)),
            _ => None,
        }
    }

    /// Where clients dial a host: what its service lists, else what was allotted.
    pub fn addresses_of(&self, host: &str) -> &[IpAddr] {
        match self.service(host) {
            Some((_, service)) if !service.addresses.is_empty() => &service.addresses,
            Some(_) => self.addresses.get(host).map_or(&[], Vec::as_slice),
            None => &[],
        }
    }

    /// Adds or replaces a resource.
    pub fn insert(&mut self, stored: Stored) {
        let id = stored.resource.id.clone();
        self.remove(&id);
        if let Some((index, hosts)) = self.index(&stored.resource.spec) {
            index.extend(hosts.iter().map(|host| (host.clone(), id.clone())));
        }
        self.resources.insert(id, stored);
    }

    /// Takes a resource out.
    pub fn remove(&mut self, id: &ResourceId) -> Option<Stored> {
        let stored = self.resources.remove(id)?;
        if let Some((index, hosts)) = self.index(&stored.resource.spec) {
            for host in hosts {
                if index.get(host) == Some(id) {
                    index.remove(host);
                }
            }
        }
        Some(stored)
    }

    /// Notes what was allotted to a host without addresses.
    pub fn allot(&mut self, host: Host, addresses: Vec<IpAddr>) {
        self.addresses.insert(host, addresses);
    }

    /// Forgets what was allotted to a host.
    pub fn release(&mut self, host: &Host) {
        self.addresses.remove(host);
    }

    /// Which index knows a resource, and under which hosts.
    fn index<'a>(
        &mut self,
        spec: &'a Spec,
    ) -> Option<(&mut HashMap<Host, ResourceId>, &'a [Host])> {
        match spec {
            Spec::ServiceEntry(service) => Some((&mut self.services, &service.hosts)),
            Spec::VirtualService(routes) => Some((&mut self.routes, &routes.hosts)),
            Spec::DestinationRule(rule) => Some((&mut self.rules, slice::from_ref(&rule.host))),
            Spec::AuthorizationPolicy(_) | Spec::PeerAuthentication(_) | Spec::WorkloadEntry(_) => {
                None
            }
        }
    }

    fn by_host<'a>(
        &'a self,
        index: &'a HashMap<Host, ResourceId>,
        host: &str,
    ) -> Option<(&'a ResourceId, &'a Spec)> {
        let (id, stored) = self.resources.get_key_value(index.get(host)?)?;
        Some((id, &stored.resource.spec))
    }
}
