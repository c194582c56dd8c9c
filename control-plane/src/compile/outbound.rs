//! `mesh/outbound`: which addresses are the mesh's, and the names DNS answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use heddle_policy::snapshot::{
    UnknownDestination,
    xds::{MESH_OUTBOUND, PASSTHROUGH},
};
use heddle_proto::{
    v1::{MeshHost, OutboundPolicy, outbound_policy::Unknown},
    xds::envoy::{
        config::listener::v3::{FilterChain, Listener},
        extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    },
};
use ipnet::IpNet;

use super::{Flavour, Node, cluster::NOWHERE, wire};
use crate::world::{Topic, World};

pub(super) fn listener(world: &World, node: &Node, topics: &mut BTreeSet<Topic>) -> Listener {
    match node.flavour {
        Flavour::Envoy { .. } => original_destination(world.mesh.unknown),
        Flavour::Sidecar | Flavour::Grpc => {
            topics.insert(Topic::Outbound);
            let unknown = match world.mesh.unknown {
                UnknownDestination::AllowAny => Unknown::AllowAny,
                UnknownDestination::RegistryOnly => Unknown::RegistryOnly,
            };
            let policy = OutboundPolicy {
                mesh_cidrs: cidrs(world),
                unknown: unknown.into(),
                hosts: hosts(world, &node.namespace),
            };
            Listener {
                name: MESH_OUTBOUND.to_owned(),
                metadata: Some(wire::metadata("OutboundPolicy", &policy)),
                ..Listener::default()
            }
        }
    }
}

/// The configured ranges, and every address outside them that a service or an endpoint has.
fn cidrs(world: &World) -> Vec<String> {
    let ranges: BTreeSet<IpNet> = world.mesh.cidrs.iter().map(IpNet::trunc).collect();
    let single: BTreeSet<IpNet> = world
        .addresses()
        .filter(|address| !address.is_loopback())
        .filter(|address| !ranges.iter().any(|range| range.contains(address)))
        .map(IpNet::from)
        .collect();
    ranges
        .iter()
        .chain(&single)
        .map(ToString::to_string)
        .collect()
}

/// Every host under its full name and those short ones that nothing else has.
fn hosts(world: &World, namespace: &str) -> Vec<MeshHost> {
    let mut names: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for (_, service) in world.services() {
        for host in &service.hosts {
            let addresses = world.catalog.addresses_of(host.as_str());
            if host.as_str().starts_with('*') || addresses.is_empty() {
                continue;
            }
            for name in aliases(host.as_str(), namespace) {
                // A short name means what `World::host` says, also when a service has it in full.
                if world.host(&name, namespace) == Some(host) {
                    names.entry(name).or_default().extend(addresses);
                }
            }
        }
    }
    names
        .into_iter()
        .map(|(name, addresses)| MeshHost {
            name,
            addresses: addresses.iter().map(ToString::to_string).collect(),
        })
        .collect()
}

fn aliases(host: &str, namespace: &str) -> Vec<String> {
    let mut names = vec![host.to_owned()];
    if let [service, of, "svc", "cluster", "local"] = host.split('.').collect::<Vec<_>>()[..] {
        names.push(format!("{service}.{of}"));
        names.push(format!("{service}.{of}.svc"));
        if of == namespace {
            names.push(service.to_owned());
        }
    }
    names
}

/// Envoy's virtual listener: hands connections to the `out/..` listener of their address, and
/// the rest to where they were going, or nowhere.
fn original_destination(unknown: UnknownDestination) -> Listener {
    let rest = match unknown {
        UnknownDestination::AllowAny => PASSTHROUGH,
        UnknownDestination::RegistryOnly => NOWHERE,
    };
    let proxy = TcpProxy {
        stat_prefix: MESH_OUTBOUND.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(rest.to_owned())),
        ..TcpProxy::default()
    };
    Listener {
        name: MESH_OUTBOUND.to_owned(),
        address: Some(wire::address(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            OUTBOUND_PORT,
        ))),
        use_original_dst: wire::bool_value(true),
        default_filter_chain: Some(FilterChain {
            filters: vec![wire::filter(
                "envoy.filters.network.tcp_proxy",
                wire::pack(&proxy),
            )],
            ..FilterChain::default()
        }),
        ..Listener::default()
    }
}

const OUTBOUND_PORT: u16 = 15001;
