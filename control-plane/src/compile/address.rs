//! What a resource's name says.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use super::endpoints::unrestricted;
use crate::{
    model::{Host, ServiceEntry, ServicePort, Subset},
    world::{Instance, Topic, World},
};

/// What a route, a cluster or its endpoints are about.
pub(super) enum Target<'a> {
    /// `<fqdn>:<port>` or `<fqdn>:<port>#<subset>`.
    Service {
        host: &'a Host,
        service: &'a ServiceEntry,
        port: &'a ServicePort,
        subset: Option<&'a Subset>,
    },
    /// `<ip>:<port>`: one endpoint, dialled by its own address.
    Instance {
        instance: Instance,
        ports: Vec<&'a ServicePort>,
    },
}

impl<'a> Target<'a> {
    /// Reads a name; notes what the answer depends on, also when there is none.
    pub(super) fn parse(
        world: &'a World,
        name: &str,
        topics: &mut BTreeSet<Topic>,
    ) -> Option<Self> {
        if let Ok(address) = name.parse::<SocketAddr>() {
            topics.insert(Topic::Address(address.ip()));
            if address.to_string() != name {
                return None;
            }
            let (instance, ports) = world.instance_at(address)?;
            return Some(Self::Instance { instance, ports });
        }
        let (name, subset) = match name.split_once('#') {
            None => (name, None),
            Some((name, subset)) => (name, Some(subset)),
        };
        let (host, port) = host_port(name)?;
        topics.insert(Topic::Host(host.into()));
        let (_, service) = world.catalog.service(host)?;
        let host = service.hosts.iter().find(|known| known.as_str() == host)?;
        let subset = match subset {
            None => None,
            Some(subset) => Some(world.catalog.rule(host.as_str())?.1.subset(subset)?),
        };
        Some(Self::Service {
            host,
            service,
            port: service.port(port)?,
            subset,
        })
    }

    /// The name of a cluster and of its endpoints.
    pub(super) fn cluster_name(host: &Host, port: u16, subset: Option<&str>) -> String {
        match subset {
            None => format!("{host}:{port}"),
            Some(subset) => format!("{host}:{port}#{subset}"),
        }
    }

    /// The instances, in the order of their addresses.
    pub(super) fn instances(&self, world: &World) -> Vec<Instance> {
        match self {
            Self::Instance { instance, .. } => vec![instance.clone()],
            Self::Service {
                host, port, subset, ..
            } => {
                let all = world.instances(host.as_str(), port.number.get());
                let is_of = |instance: &Instance| {
                    subset.is_none_or(|subset| {
                        subset
                            .labels
                            .iter()
                            .all(|(name, value)| instance.labels.get(name) == Some(value))
                    })
                };
                all.unwrap_or_default().into_iter().filter(is_of).collect()
            }
        }
    }
}

/// Splits `<host>:<port>`; a port in its one decimal form.
pub(super) fn host_port(name: &str) -> Option<(&str, u16)> {
    let (host, text) = name.rsplit_once(':')?;
    let port: u16 = text.parse().ok()?;
    (!host.is_empty() && port != 0 && port.to_string() == text).then_some((host, port))
}

/// The host in the name of a route, a cluster or its endpoints.
pub fn host_of(name: &str) -> Option<&str> {
    let name = unrestricted(name);
    let name = name.split_once('#').map_or(name, |(name, _)| name);
    host_port(name).map(|(host, _)| host)
}

/// Notes a host.
pub(super) fn host_topic(host: &Host) -> Topic {
    Topic::Host(Arc::clone(host.shared()))
}
