//! What resources say about each other. Run over the whole catalog as it would be, so that the
//! order of documents in a request does not matter, and a deletion is judged like a change.
//!
//! 1. A host belongs to one `ServiceEntry`, one `VirtualService`, one `DestinationRule`, in the
//!    whole mesh.
//! 2. An address with a port belongs to one `ServiceEntry`.
//! 3. A destination's host has a `ServiceEntry` with its port, and a `DestinationRule` with its
//!    subset.
//!
//! Findings come in the order of kinds, namespaces and names.

use std::{collections::HashMap, net::IpAddr};

use super::{
    Catalog, Condition, Destination, Host, Location, Pattern, ResourceId, ServiceEntry,
    ServicePort, Spec, VirtualService,
};

/// Something wrong with a resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Which one.
    pub id: ResourceId,
    /// Where in it.
    pub path: String,
    /// What.
    pub message: String,
}

/// All that makes a catalog unacceptable.
pub fn check(catalog: &Catalog) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut owners = Owners::default();
    for (id, stored) in catalog.iter() {
        let mut find = |path: String, message: String| {
            findings.push(Finding {
                id: id.clone(),
                path,
                message,
            });
        };
        match &stored.resource.spec {
            Spec::ServiceEntry(service) => {
                owners.claim(id, &service.hosts, &mut find);
                owners.claim_addresses(id, service, &mut find);
            }
            Spec::VirtualService(routes) => {
                owners.claim(id, &routes.hosts, &mut find);
                for (path, destination) in destinations(&stored.resource.spec) {
                    refer(catalog, &path, destination, &mut find);
                }
            }
            Spec::DestinationRule(rule) => {
                owners.claim(id, std::slice::from_ref(&rule.host), &mut find);
            }
            Spec::AuthorizationPolicy(_) | Spec::PeerAuthentication(_) | Spec::WorkloadEntry(_) => {
            }
        }
    }
    findings
}

/// What is worth telling about a resource although it is acceptable.
pub fn warnings(catalog: &Catalog, id: &ResourceId) -> Vec<String> {
    let Some(stored) = catalog.get(id) else {
        return Vec::new();
    };
    let mut warnings = Vec::new();
    match &stored.resource.spec {
        Spec::ServiceEntry(service) => {
            if service.location == Location::MeshInternal && service.subject_alt_names.is_empty() {
                warnings
                    .push("spec.subjectAltNames: absent: no meshed endpoint may serve it".into());
            }
        }
        Spec::VirtualService(routes) => {
            let unknown = |host: &&Host| catalog.service(host.as_str()).is_none();
            for host in routes.hosts.iter().filter(unknown) {
                warnings.push(format!("spec.hosts: no ServiceEntry has `{host}`"));
            }
            for host in &routes.hosts {
                if let Some((_, service)) = catalog.service(host.as_str()) {
                    unfollowed(routes, host, service, &mut warnings);
                }
            }
            let is_catch_all = |index: &usize| routes.http[*index].matches.is_empty();
            let last = routes.http.len().saturating_sub(1);
            if let Some(index) = (0..last).find(is_catch_all) {
                warnings.push(format!(
                    "spec.http[{}]: never reached: spec.http[{index}] matches every request",
                    index + 1
                ));
            }
        }
        Spec::DestinationRule(rule) => {
            if catalog.service(rule.host.as_str()).is_none() {
                warnings.push(format!("spec.host: no ServiceEntry has `{}`", rule.host));
            }
        }
        Spec::AuthorizationPolicy(policy) => {
            let conditions = policy.rules.iter().flat_map(|rule| &rule.when);
            for condition in conditions {
                if let Condition::Header(name, values) = condition
                    && name == "authorization"
                    && values
                        .values
                        .iter()
                        .any(|value| !matches!(value, Pattern::Exact(_)))
                {
                    warnings.push(
                        "spec.rules[].when: the shape of `authorization` authenticates nobody"
                            .into(),
                    );
                }
            }
        }
        Spec::PeerAuthentication(_) | Spec::WorkloadEntry(_) => {}
    }
    warnings
}

/// Routes of a kind that ports of the host do not follow: HTTP that of bytes, and bytes, also
/// where they are only detected, that of HTTP.
fn unfollowed(
    routes: &VirtualService,
    host: &Host,
    service: &ServiceEntry,
    warnings: &mut Vec<String>,
) {
    let is_opaque = |port: &ServicePort| port.protocol.is_some_and(|protocol| !protocol.is_http());
    if !routes.http.is_empty() && service.ports.iter().all(is_opaque) {
        warnings.push(format!(
            "spec.http: never applies: no port of `{host}` carries HTTP"
        ));
    }
    if routes.tcp.is_empty() {
        return;
    }
    if !service.ports.iter().any(is_opaque) {
        warnings.push(format!(
            "spec.tcp: never applies: no port of `{host}` is declared TCP, TLS or HTTPS"
        ));
    } else if routes.http.is_empty() {
        let undeclared = service.ports.iter().filter(|port| port.protocol.is_none());
        warnings.extend(undeclared.map(|port| {
            format!(
                "spec.tcp: does not apply to port {} of `{host}`, which declares no protocol",
                port.number
            )
        }));
    }
}

/// Every destination of a `VirtualService`, with its path.
pub fn destinations(spec: &Spec) -> impl Iterator<Item = (String, &Destination)> {
    let routes = match spec {
        Spec::VirtualService(routes) => Some(routes),
        _ => None,
    };
    let lists = routes.into_iter().flat_map(|routes| {
        let http = routes.http.iter().map(|route| &route.route).enumerate();
        let tcp = routes.tcp.iter().map(|route| &route.route).enumerate();
        let http = http.map(|(index, route)| (format!("spec.http[{index}]"), route));
        http.chain(tcp.map(|(index, route)| (format!("spec.tcp[{index}]"), route)))
    });
    lists.flat_map(|(list, route)| {
        route.iter().enumerate().map(move |(index, part)| {
            (
                format!("{list}.route[{index}].destination"),
                &part.destination,
            )
        })
    })
}

fn refer(
    catalog: &Catalog,
    path: &str,
    destination: &Destination,
    find: &mut impl FnMut(String, String),
) {
    let host = &destination.host;
    let Some((_, service)) = catalog.service(host.as_str()) else {
        find(
            format!("{path}.host"),
            format!("no ServiceEntry has the host `{host}`"),
        );
        return;
    };
    if let Some(port) = destination.port
        && service.port(port.get()).is_none()
    {
        find(
            format!("{path}.port.number"),
            format!("`{host}` has no port {port}"),
        );
    }
    let Some(subset) = &destination.subset else {
        return;
    };
    match catalog.rule(host.as_str()) {
        None => find(
            format!("{path}.subset"),
            format!("no DestinationRule of `{host}` defines the subset `{subset}`"),
        ),
        Some((id, rule)) if rule.subset(subset).is_none() => find(
            format!("{path}.subset"),
            format!("{id} has no subset `{subset}`"),
        ),
        Some(_) => {}
    }
}

/// Who has what, so far.
#[derive(Default)]
struct Owners<'a> {
    /// By kind and host.
    hosts: HashMap<(super::Kind, &'a Host), &'a ResourceId>,
    addresses: HashMap<(IpAddr, u16), &'a ResourceId>,
}

impl<'a> Owners<'a> {
    /// The later resource of a conflict, in the order of ids, is told.
    fn claim(
        &mut self,
        id: &'a ResourceId,
        hosts: &'a [Host],
        find: &mut impl FnMut(String, String),
    ) {
        for (index, host) in hosts.iter().enumerate() {
            let path = match id.kind {
                super::Kind::DestinationRule => "spec.host".to_owned(),
                _ => format!("spec.hosts[{index}]"),
            };
            if let Some(other) = self.hosts.insert((id.kind, host), id) {
                find(path, format!("`{host}` already belongs to {other}"));
            }
        }
    }

    fn claim_addresses(
        &mut self,
        id: &'a ResourceId,
        service: &'a ServiceEntry,
        find: &mut impl FnMut(String, String),
    ) {
        for (index, address) in service.addresses.iter().enumerate() {
            for port in &service.ports {
                let port = port.number.get();
                if let Some(other) = self.addresses.insert((*address, port), id) {
                    let message = format!("port {port} of {address} already belongs to {other}");
                    find(format!("spec.addresses[{index}]"), message);
                }
            }
        }
    }
}
