//! Everything that decides what a proxy is told, at one moment: resources, registered workloads,
//! allotted addresses. Immutable; a change makes a new one.
//!
//! Which address serves what is decided here, once for every flavour: *registration is not
//! permission*. A workload serves a service when the service selects its labels **and** lists its
//! identity (`subjectAltNames`); what a meshed workload registered of an address, ports of its
//! sidecar and those of its application, is never dialled in plaintext, whatever else is written
//! about it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{Arc, OnceLock},
};

use heddle_policy::{
    snapshot::{Health, UnknownDestination},
    spiffe::{SpiffeId, TrustDomain},
};
use ipnet::IpNet;

use crate::model::{
    Catalog, Host, Kind, Labels, ResourceId, ServiceEntry, ServicePort, Spec, WorkloadEntry,
};

mod change;

pub use change::{Topic, changes};

/// A revisioned view of all that compiling needs.
#[derive(Debug)]
pub struct World {
    /// The resources and the addresses allotted to hosts.
    pub catalog: Arc<Catalog>,
    /// What is registered.
    pub workloads: Arc<BTreeMap<WorkloadName, Arc<Workload>>>,
    /// What never changes while the control plane runs.
    pub mesh: Arc<Mesh>,
    by_address: OnceLock<HashMap<IpAddr, At>>,
    registered: OnceLock<HashMap<IpAddr, Vec<Arc<Workload>>>>,
}

/// Settings of the mesh.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// Of every identity of this mesh.
    pub trust_domain: TrustDomain,
    /// Policies in this namespace are for the whole mesh.
    pub root_namespace: Arc<str>,
    /// Addresses of the mesh besides those that services and workloads have.
    pub cidrs: Vec<IpNet>,
    /// What a sidecar does with other addresses.
    pub unknown: UnknownDestination,
}

/// Names a workload: namespace and name.
pub type WorkloadName = (Arc<str>, Arc<str>);

/// A registered workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// From its certificate.
    pub identity: SpiffeId,
    /// Its name in the namespace of `identity`.
    pub name: Arc<str>,
    /// Where it serves.
    pub address: IpAddr,
    /// Service port -> port where its sidecar takes it. Empty with interception.
    pub ports: BTreeMap<u16, u16>,
    /// A subset of those fixed in its token.
    pub labels: Labels,
    /// Whether it takes new requests.
    pub health: Health,
    /// Relative share.
    pub weight: NonZeroU32,
    /// Whether a sidecar speaks mutual TLS for it.
    pub is_meshed: bool,
}

/// One address that serves a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Where to dial.
    pub address: SocketAddr,
    /// How.
    pub transport: InstanceTransport,
    /// What subsets look at.
    pub labels: Labels,
    /// Relative share.
    pub weight: NonZeroU32,
    /// Whether it takes new requests.
    pub health: Health,
}

/// How an instance is dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceTransport {
    /// In plaintext.
    Plain,
    /// With mutual TLS; it must present one of these. Never empty.
    Meshed(Vec<SpiffeId>),
}

/// What is known of an address.
#[derive(Debug, Default)]
struct At {
    /// Hosts whose address it is.
    services: BTreeSet<Host>,
    /// Hosts it serves, with their port.
    serves: BTreeSet<(Host, u16)>,
    /// Registered with this address.
    workloads: Vec<Arc<Workload>>,
}

/// What a workload serves, for its registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// Hosts it serves.
    pub serves: Vec<Host>,
    /// Why a service that selects it does not include it.
    pub refusals: Vec<String>,
}

impl World {
    /// A view of these.
    pub fn new(
        catalog: Arc<Catalog>,
        workloads: Arc<BTreeMap<WorkloadName, Arc<Workload>>>,
        mesh: Arc<Mesh>,
    ) -> Self {
        Self {
            catalog,
            workloads,
            mesh,
            by_address: OnceLock::new(),
            registered: OnceLock::new(),
        }
    }

    /// Every service with its namespace.
    pub fn services(&self) -> impl Iterator<Item = (&ResourceId, &ServiceEntry)> {
        self.catalog
            .iter()
            .filter_map(|(id, stored)| match &stored.resource.spec {
                Spec::ServiceEntry(service) => Some((id, service)),
                _ => None,
            })
    }

    /// The host that a name stands for in a namespace: fully qualified, `<svc>.<ns>`,
    /// `<svc>.<ns>.svc`, or `<svc>` of the own namespace.
    pub fn host(&self, name: &str, namespace: &str) -> Option<&Host> {
        let known = |host: &str| {
            let (_, service) = self.catalog.service(host)?;
            service.hosts.iter().find(|known| known.as_str() == host)
        };
        if let Some(host) = known(name) {
            return Some(host);
        }
        match name.split('.').collect::<Vec<_>>()[..] {
            [service] => known(&format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}")),
            [_, _] => known(&format!("{name}.svc.{CLUSTER_DOMAIN}")),
            [_, _, "svc"] => known(&format!("{name}.{CLUSTER_DOMAIN}")),
            _ => None,
        }
    }

    /// The service whose address and port these are.
    pub fn service_at(&self, address: SocketAddr) -> Option<(&Host, &ServiceEntry, &ServicePort)> {
        self.at(address.ip())?.services.iter().find_map(|host| {
            let (_, service) = self.catalog.service(host.as_str())?;
            Some((host, service, service.port(address.port())?))
        })
    }

    /// The instance that listens exactly there, and every service port it serves. An address of a
    /// registered workload is one on every port; a port of its application is where its sidecar
    /// takes it.
    pub fn instance_at(&self, address: SocketAddr) -> Option<(Instance, Vec<&ServicePort>)> {
        let at = self.at(address.ip())?;
        let registered = at.workloads.iter().find_map(|workload| {
            let port = match workload.is_meshed {
                true => workload.taken_at(address.port())?,
                false => Some(address.port()).filter(|port| workload.listens_on(*port))?,
            };
            Some(workload.instance(port))
        });
        let address = registered.as_ref().map_or(address, |it| it.address);
        let mut ports = Vec::new();
        let mut found = None;
        for (host, number) in &at.serves {
            let Some((id, service)) = self.catalog.service(host.as_str()) else {
                continue;
            };
            let Some(port) = service.port(*number) else {
                continue;
            };
            let instance = self
                .instances_of(id, service, port)
                .into_iter()
                .find(|instance| instance.address == address);
            if let Some(instance) = instance {
                ports.push(port);
                found = found.or(Some(instance));
            }
        }
        // A registration knows the identity best.
        Some((registered.or(found)?, ports))
    }

    /// Every instance of a service's port, by address and without duplicates.
    pub fn instances(&self, host: &str, port: u16) -> Option<Vec<Instance>> {
        let (id, service) = self.catalog.service(host)?;
        Some(self.instances_of(id, service, service.port(port)?))
    }

    /// What a workload serves, and what it was refused.
    pub fn services_of(&self, workload: &Workload) -> Services {
        let mut services = Services::default();
        for (id, service) in self.services_in(workload.namespace()) {
            if !selects(service, &workload.labels) {
                continue;
            }
            let mut targets = service.ports.iter().map(|port| workload.target(port));
            if !may_serve(service, workload) {
                services.refusals.push(format!(
                    "{id} selects the workload, but its subjectAltNames do not list {}",
                    workload.identity
                ));
            } else if targets.all(|taken| taken.is_none()) {
                services.refusals.push(format!(
                    "{id} selects the workload, but targets none of the ports it registers, {:?}",
                    workload.ports.keys()
                ));
            } else {
                services.serves.extend(service.hosts.iter().cloned());
            }
        }
        services
    }

    /// A service that has a written endpoint where a workload would be, and does not list its
    /// identity: registered, the workload would take that endpoint away.
    pub fn written_for_another(&self, workload: &Workload) -> Option<&ResourceId> {
        let selected: Vec<_> = self
            .catalog
            .iter()
            .filter_map(|(id, stored)| match &stored.resource.spec {
                Spec::WorkloadEntry(entry) if entry.address == workload.address => {
                    Some((&id.namespace, entry))
                }
                _ => None,
            })
            .collect();
        let has_endpoint_there = |id: &ResourceId, service: &ServiceEntry| {
            let written = service.endpoints.iter();
            let written = written.filter(|entry| entry.address == workload.address);
            let selected = selected.iter().filter(|(namespace, entry)| {
                **namespace == id.namespace && selects(service, &entry.labels)
            });
            let mut there = written.chain(selected.map(|(_, entry)| *entry));
            there.any(|entry| {
                let mut targets = service.ports.iter().map(|port| port.target(entry).get());
                targets.any(|target| workload.taken_at(target).is_some())
            })
        };
        self.services()
            .find(|(id, service)| !may_serve(service, workload) && has_endpoint_there(id, service))
            .map(|(id, _)| id)
    }

    /// Every host whose endpoints depend on a workload: it selects its labels, or has an endpoint
    /// at its address.
    pub fn hosts_touched_by(&self, workload: &Workload) -> BTreeSet<Host> {
        let mut hosts: BTreeSet<Host> = self
            .services_in(workload.namespace())
            .filter(|(_, service)| selects(service, &workload.labels))
            .flat_map(|(_, service)| service.hosts.iter().cloned())
            .collect();
        if let Some(at) = self.at(workload.address) {
            hosts.extend(at.serves.iter().map(|(host, _)| host.clone()));
        }
        hosts.extend(
            self.services()
                .filter(|(_, service)| {
                    service
                        .endpoints
                        .iter()
                        .any(|endpoint| endpoint.address == workload.address)
                })
                .flat_map(|(_, service)| service.hosts.iter().cloned()),
        );
        hosts
    }

    /// Services of a namespace that select workloads with these labels.
    pub fn services_selecting(
        &self,
        namespace: &str,
        labels: &Labels,
    ) -> impl Iterator<Item = &ServiceEntry> {
        self.services_in(namespace)
            .map(|(_, service)| service)
            .filter(|service| selects(service, labels))
    }

    /// Every address that a service or an endpoint has.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.index().keys().copied()
    }

    /// Whether a service, an endpoint or a workload has this address.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.at(address).is_some()
    }

    fn services_in(
        &self,
        namespace: &str,
    ) -> impl Iterator<Item = (&ResourceId, &ServiceEntry)> + use<'_> {
        self.catalog
            .of(Kind::ServiceEntry, namespace)
            .filter_map(|(id, stored)| match &stored.resource.spec {
                Spec::ServiceEntry(service) => Some((id, service)),
                _ => None,
            })
    }

    fn workloads_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Workload>> {
        let first: WorkloadName = (namespace.into(), "".into());
        self.workloads
            .range(first..)
            .take_while(move |((of, _), _)| **of == *namespace)
            .map(|(_, workload)| workload)
    }

    fn instances_of(
        &self,
        id: &ResourceId,
        service: &ServiceEntry,
        port: &ServicePort,
    ) -> Vec<Instance> {
        let mut found = BTreeMap::new();
        // What is registered is proven, so it comes first.
        for workload in self.workloads_in(&id.namespace) {
            if selects(service, &workload.labels)
                && may_serve(service, workload)
                && let Some(taken) = workload.target(port)
            {
                let instance = workload.instance(taken);
                found.entry(instance.address).or_insert(instance);
            }
        }
        for entry in self.entries(id, service) {
            let Some(instance) = self.written(id, service, port, entry) else {
                continue;
            };
            found.entry(instance.address).or_insert(instance);
        }
        found.into_values().collect()
    }

    /// The entries that are written in a service, or selected by it.
    fn entries<'a>(
        &'a self,
        id: &'a ResourceId,
        service: &'a ServiceEntry,
    ) -> impl Iterator<Item = &'a WorkloadEntry> {
        let selects_any = service.workload_selector.is_some();
        let in_namespace = selects_any.then(|| self.catalog.of(Kind::WorkloadEntry, &id.namespace));
        let selected = in_namespace
            .into_iter()
            .flatten()
            .filter_map(|(_, stored)| match &stored.resource.spec {
                Spec::WorkloadEntry(entry) => Some(entry),
                _ => None,
            })
            .filter(move |entry| selects(service, &entry.labels));
        service.endpoints.iter().chain(selected)
    }

    fn written(
        &self,
        id: &ResourceId,
        service: &ServiceEntry,
        port: &ServicePort,
        entry: &WorkloadEntry,
    ) -> Option<Instance> {
        let written_at = port.target(entry).get();
        // The sidecar's own port, or the application's, which it has another port for.
        let registered = self
            .registered(entry.address)
            .filter(|workload| workload.is_meshed)
            .find_map(|workload| Some((workload, workload.taken_at(written_at)?)));
        let (registered, target) = registered.unzip();
        let target = target.unwrap_or(written_at);
        let transport = match registered {
            Some(workload) if may_serve(service, workload) => {
                InstanceTransport::Meshed(vec![workload.identity.clone()])
            }
            // Meshed, but not as this service: neither in plaintext nor under a wrong name.
            Some(_) => return None,
            None if entry.is_meshed() => {
                InstanceTransport::Meshed(self.written_identities(id, service, entry)?)
            }
            None => InstanceTransport::Plain,
        };
        Some(Instance {
            address: SocketAddr::new(entry.address, target),
            transport,
            labels: entry.labels.clone(),
            weight: entry.weight.unwrap_or(NonZeroU32::MIN),
            health: registered.map_or(Health::Healthy, |workload| workload.health),
        })
    }

    /// `None` when the service does not list who would answer.
    fn written_identities(
        &self,
        id: &ResourceId,
        service: &ServiceEntry,
        entry: &WorkloadEntry,
    ) -> Option<Vec<SpiffeId>> {
        let listed = &service.subject_alt_names;
        let Some(account) = &entry.service_account else {
            return (!listed.is_empty()).then(|| listed.clone());
        };
        let identity = SpiffeId::new(&self.mesh.trust_domain, &id.namespace, account).ok()?;
        listed.contains(&identity).then(|| vec![identity])
    }

    fn registered(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        let registered = self.registered.get_or_init(|| {
            let mut registered: HashMap<IpAddr, Vec<Arc<Workload>>> = HashMap::new();
            for workload in self.workloads.values() {
                let at = registered.entry(workload.address).or_default();
                at.push(Arc::clone(workload));
            }
            registered
        });
        registered.get(&address).into_iter().flatten()
    }

    fn at(&self, address: IpAddr) -> Option<&At> {
        self.index().get(&address)
    }

    fn index_service(
        &self,
        id: &ResourceId,
        service: &ServiceEntry,
        index: &mut HashMap<IpAddr, At>,
    ) {
        for host in &service.hosts {
            for address in self.catalog.addresses_of(host.as_str()) {
                let at = index.entry(*address).or_default();
                at.services.insert(host.clone());
            }
        }
        for port in &service.ports {
            for instance in self.instances_of(id, service, port) {
                let at = index.entry(instance.address.ip()).or_default();
                let hosts = service.hosts.iter().cloned();
                at.serves
                    .extend(hosts.map(|host| (host, port.number.get())));
            }
        }
    }

    fn index(&self) -> &HashMap<IpAddr, At> {
        self.by_address.get_or_init(|| {
            let mut index: HashMap<IpAddr, At> = HashMap::new();
            for workload in self.workloads.values() {
                let at = index.entry(workload.address).or_default();
                at.workloads.push(Arc::clone(workload));
            }
            for (id, service) in self.services() {
                self.index_service(id, service, &mut index);
            }
            index
        })
    }
}

impl Workload {
    /// The namespace of its identity.
    pub fn namespace(&self) -> &str {
        self.identity.namespace()
    }

    /// What its sidecar calls itself (`Node.id`).
    pub fn node_id(&self) -> String {
        let id = &self.identity;
        format!("{}/{}/{}", id.namespace(), id.service_account(), self.name)
    }

    /// Where it takes a port of a service. Without interception that is found by the application's
    /// port alone: it is what its sidecar looks modes and rules up by, so what it took under any
    /// other number would be served past those of `targetPort`.
    fn target(&self, port: &ServicePort) -> Option<u16> {
        let application = port.target_port.unwrap_or(port.number).get();
        if self.ports.is_empty() {
            return Some(application);
        }
        self.ports.get(&application).copied()
    }

    /// Where its sidecar takes what is meant for a port of the machine: with interception every
    /// port itself, otherwise its own ports, and the application's at those.
    fn taken_at(&self, port: u16) -> Option<u16> {
        if self.listens_on(port) {
            return Some(port);
        }
        self.ports.get(&port).copied()
    }

    /// With interception its sidecar takes every port.
    fn listens_on(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.values().any(|taken| *taken == port)
    }

    fn instance(&self, port: u16) -> Instance {
        Instance {
            address: SocketAddr::new(self.address, port),
            transport: if self.is_meshed {
                InstanceTransport::Meshed(vec![self.identity.clone()])
            } else {
                InstanceTransport::Plain
            },
            labels: self.labels.clone(),
            weight: self.weight,
            health: self.health,
        }
    }
}

fn selects(service: &ServiceEntry, labels: &Labels) -> bool {
    service
        .workload_selector
        .as_ref()
        .is_some_and(|selector| selector.selects(labels))
}

/// A service that lists nobody is served in plaintext only.
fn may_serve(service: &ServiceEntry, workload: &Workload) -> bool {
    match service.subject_alt_names.as_slice() {
        [] => !workload.is_meshed,
        listed => listed.contains(&workload.identity),
    }
}

/// Suffix of the names of services.
const CLUSTER_DOMAIN: &str = "cluster.local";

#[cfg(test)]
pub(crate) mod tests;
