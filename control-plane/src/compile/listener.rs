//! LDS: by address, by host, as gRPC's api listener; the two eager listeners are next door.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use heddle_policy::snapshot::{
    DestinationKey,
    xds::{MESH_INBOUND, MESH_OUTBOUND, PASSTHROUGH, ResourceName, ResourceType},
};
use heddle_proto::xds::envoy::{
    config::listener::v3::{ApiListener, Filter, FilterChain, Listener},
    extensions::filters::network::{
        http_connection_manager::v3::{
            HttpConnectionManager, Rds,
            http_connection_manager::{CodecType, RouteSpecifier},
        },
        tcp_proxy::v3::{
            TcpProxy,
            tcp_proxy::{ClusterSpecifier, WeightedCluster, weighted_cluster::ClusterWeight},
        },
    },
};
use prost::Message;

use super::{Draft, Flavour, Node, address, inbound, outbound, route, wire};
use crate::{
    model::{Host, PortProtocol, Resolution, ServiceEntry, ServicePort},
    world::{Topic, World},
};

pub(super) fn compile(
    world: &World,
    node: &Node,
    name: &Arc<str>,
    topics: &mut BTreeSet<Topic>,
) -> Option<Draft> {
    let message = match (&**name, &node.flavour) {
        (MESH_OUTBOUND | MESH_INBOUND, Flavour::Grpc) => return None,
        (MESH_OUTBOUND, _) => outbound::listener(world, node, topics),
        (MESH_INBOUND, _) => inbound::listener(world, node, topics),
        (_, Flavour::Grpc) => return api(world, node, name, topics),
        (_, Flavour::Sidecar | Flavour::Envoy { .. }) => {
            return destination(world, node, name, topics);
        }
    };
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: Vec::new(),
    })
}

/// `xds:///<host>:<port>`, answered under the asked name.
fn api(world: &World, node: &Node, name: &Arc<str>, topics: &mut BTreeSet<Topic>) -> Option<Draft> {
    let (asked, port) = address::host_port(name)?;
    let (host, _, port) = by_host(world, node, asked, port, topics)?;
    let is_http = port.protocol.is_none_or(PortProtocol::is_http);
    if !is_http {
        return None;
    }
    let routes = format!("{host}:{}", port.number);
    let message = Listener {
        name: name.to_string(),
        api_listener: Some(ApiListener {
            api_listener: Some(wire::pack(&rds(&routes, CodecType::Auto))),
        }),
        ..Listener::default()
    };
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: vec![routes_of(&routes)],
    })
}

fn destination(
    world: &World,
    node: &Node,
    name: &Arc<str>,
    topics: &mut BTreeSet<Topic>,
) -> Option<Draft> {
    let key = DestinationKey::from_listener_name(name)?;
    let leads = match &key {
        DestinationKey::Address(address) => by_address(world, *address, topics)?,
        DestinationKey::Host(asked, port) => {
            let (host, service, port) = by_host(world, node, asked, *port, topics)?;
            service_port(world, host, service, port, topics)
        }
    };
    let mut message = Listener {
        name: name.to_string(),
        stat_prefix: leads.name,
        default_filter_chain: Some(FilterChain {
            filters: vec![leads.filter],
            ..FilterChain::default()
        }),
        ..Listener::default()
    };
    if let Flavour::Envoy { .. } = node.flavour {
        // Reached by a listener with `use_original_dst`; hosts have no address to match.
        let DestinationKey::Address(address) = key else {
            return None;
        };
        message.address = Some(wire::address(address));
        message.bind_to_port = wire::bool_value(false);
    }
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: leads.dependents,
    })
}

/// Where a listener leads.
struct Leads {
    name: String,
    filter: Filter,
    dependents: Vec<ResourceName>,
}

/// A service's address, else an endpoint's own.
fn by_address(world: &World, address: SocketAddr, topics: &mut BTreeSet<Topic>) -> Option<Leads> {
    topics.insert(Topic::Address(address.ip()));
    if let Some((host, service, port)) = world.service_at(address) {
        return Some(service_port(world, host, service, port, topics));
    }
    let (_, ports) = world.instance_at(address)?;
    let name = address.to_string();
    // What no service declares is relayed opaque: nobody promised that it is HTTP.
    Some(
        match wire::agreed(ports.iter().map(|port| &port.protocol)) {
            Some(codec) => http(&name, codec),
            None => tcp(&name, &[(name.clone(), 1)]),
        },
    )
}

/// The service of a name as a client writes it.
fn by_host<'a>(
    world: &'a World,
    node: &Node,
    asked: &str,
    port: u16,
    topics: &mut BTreeSet<Topic>,
) -> Option<(&'a Host, &'a ServiceEntry, &'a ServicePort)> {
    // A short name that is unknown may become any of several hosts.
    topics.insert(Topic::Outbound);
    let host = world.host(asked, &node.namespace)?;
    let (_, service) = world.catalog.service(host.as_str())?;
    Some((host, service, service.port(port)?))
}

fn service_port(
    world: &World,
    host: &Host,
    service: &ServiceEntry,
    port: &ServicePort,
    topics: &mut BTreeSet<Topic>,
) -> Leads {
    topics.insert(address::host_topic(host));
    let number = port.number.get();
    let name = format!("{host}:{number}");
    match (service.resolution, wire::codec(port.protocol)) {
        (Resolution::None, _) => {
            let cluster = ClusterSpecifier::Cluster(PASSTHROUGH.to_owned());
            Leads {
                filter: tcp_filter(&name, cluster),
                name,
                dependents: Vec::new(),
            }
        }
        (Resolution::Static, Some(codec)) => http(&name, codec),
        (Resolution::Static, None) => {
            let written = world.catalog.routes(host.as_str());
            let split = match written.and_then(|(_, routes)| routes.tcp.first()) {
                Some(written) => route::split(world, &written.route, number, topics),
                None => vec![(name.clone(), 1)],
            };
            tcp(&name, &split)
        }
    }
}

fn http(name: &str, codec: CodecType) -> Leads {
    Leads {
        filter: wire::filter(
            "envoy.filters.network.http_connection_manager",
            wire::pack(&rds(name, codec)),
        ),
        name: name.to_owned(),
        dependents: vec![routes_of(name)],
    }
}

fn tcp(name: &str, split: &[(String, u32)]) -> Leads {
    let specifier = match split {
        [(only, _)] => ClusterSpecifier::Cluster(only.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                // Envoy refuses a weight of zero here.
                .filter(|(_, weight)| *weight > 0)
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..ClusterWeight::default()
                })
                .collect(),
        }),
    };
    Leads {
        filter: tcp_filter(name, specifier),
        name: name.to_owned(),
        dependents: split.iter().map(|(name, _)| route::cluster(name)).collect(),
    }
}

fn tcp_filter(name: &str, specifier: ClusterSpecifier) -> Filter {
    wire::filter(
        "envoy.filters.network.tcp_proxy",
        wire::pack(&TcpProxy {
            stat_prefix: name.to_owned(),
            cluster_specifier: Some(specifier),
            ..TcpProxy::default()
        }),
    )
}

fn rds(routes: &str, codec: CodecType) -> HttpConnectionManager {
    HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(wire::ads()),
            route_config_name: routes.to_owned(),
        })),
        ..wire::http_manager(routes, codec, Vec::new())
    }
}

fn routes_of(name: &str) -> ResourceName {
    ResourceName {
        kind: ResourceType::Route,
        name: name.into(),
    }
}
