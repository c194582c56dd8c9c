//! `mesh/inbound`: mode, protocol and rules of each port of one workload.
//!
//! Mode: port, then workload, then namespace, then mesh (root namespace); STRICT when nobody
//! says. Where several policies of one level say something, the strictest holds. Rules are those
//! of every policy that selects the workload.
//!
//! Ports are the application's (`targetPort`) here and in the rules; a sidecar without
//! interception listens elsewhere, and looks them up by the application's all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use heddle_policy::snapshot::{
    MtlsMode,
    xds::{MESH_INBOUND, PASSTHROUGH},
};
use heddle_proto::xds::envoy::{
    config::{
        core::v3::TransportSocket,
        listener::v3::{
            Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, listener_filter,
        },
        route::v3::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route::Action,
            route_action, route_match::PathSpecifier,
        },
    },
    extensions::filters::{
        listener::{original_dst::v3::OriginalDst, tls_inspector::v3::TlsInspector},
        network::{
            http_connection_manager::v3::{
                HttpConnectionManager,
                http_connection_manager::{CodecType, RouteSpecifier},
            },
            tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
        },
    },
};
use heddle_proto::xds::google::protobuf::Any;

use super::{
    Flavour, Node,
    rbac::{self, Authority},
    tls, wire,
};
use crate::{
    model::{AuthorizationPolicy, PeerAuthentication, PortProtocol, Spec},
    world::{Topic, World},
};

pub(super) fn listener(world: &World, node: &Node, topics: &mut BTreeSet<Topic>) -> Listener {
    topics.insert(Topic::Inbound(Arc::clone(&node.namespace)));
    topics.insert(Topic::InboundOfAll);
    let modes = Modes::of(world, node);
    let protocols = protocols(world, node);
    let rules = rules(world, node);
    let ports: BTreeSet<u16> = protocols
        .keys()
        .chain(modes.by_port.keys())
        .copied()
        .collect();
    let every_other = [None];
    let chains = ports
        .into_iter()
        .map(Some)
        .chain(every_other)
        .flat_map(|port| {
            let declared = port.and_then(|port| protocols.get(&port));
            // An undeclared port may carry anything, HTTP too.
            let codec = declared.map_or(Some(CodecType::Auto), |codec| *codec);
            let mode = port.and_then(|port| modes.by_port.get(&port));
            let filters = filters(node, codec, &rules);
            chains(
                node,
                port,
                *mode.unwrap_or(&modes.workload),
                codec,
                &filters,
            )
        })
        .collect();
    let message = Listener {
        name: MESH_INBOUND.to_owned(),
        filter_chains: chains,
        ..Listener::default()
    };
    match node.flavour {
        Flavour::Envoy { .. } => bound(message),
        Flavour::Sidecar | Flavour::Grpc => message,
    }
}

/// Modes of one workload.
struct Modes {
    workload: MtlsMode,
    by_port: BTreeMap<u16, MtlsMode>,
}

impl Modes {
    fn of(world: &World, node: &Node) -> Self {
        let (mut mesh, mut namespace, mut workload) = (None, None, None);
        let mut by_port = BTreeMap::new();
        for policy in peer_authentications(world, node) {
            let (level, policy) = policy;
            let mode = policy.mtls.and_then(|mtls| mtls.mode.mode());
            let slot = match level {
                Level::Mesh => &mut mesh,
                Level::Namespace => &mut namespace,
                Level::Workload => &mut workload,
            };
            *slot = stricter(*slot, mode);
            for (port, mtls) in &policy.port_level_mtls {
                if let Some(mode) = mtls.mode.mode() {
                    let slot = by_port.entry(port.get()).or_insert(mode);
                    *slot = stricter(Some(*slot), Some(mode)).unwrap_or_default();
                }
            }
        }
        Self {
            workload: workload.or(namespace).or(mesh).unwrap_or_default(),
            by_port,
        }
    }
}

/// Whom a policy is about.
enum Level {
    Mesh,
    Namespace,
    Workload,
}

fn peer_authentications<'a>(
    world: &'a World,
    node: &'a Node,
) -> impl Iterator<Item = (Level, &'a PeerAuthentication)> {
    world.catalog.iter().filter_map(move |(id, stored)| {
        let Spec::PeerAuthentication(policy) = &stored.resource.spec else {
            return None;
        };
        let is_own = *id.namespace == *node.namespace;
        let is_root = *id.namespace == *world.mesh.root_namespace;
        let level = match &policy.selector {
            // Of the root namespace too, a selector is about workloads there.
            Some(selector) if is_own && selector.selects(&node.labels) => Level::Workload,
            Some(_) => return None,
            None if is_root => Level::Mesh,
            None if is_own => Level::Namespace,
            None => return None,
        };
        Some((level, policy))
    })
}

fn stricter(a: Option<MtlsMode>, b: Option<MtlsMode>) -> Option<MtlsMode> {
    let rank = |mode: &MtlsMode| match mode {
        MtlsMode::Strict => 2,
        MtlsMode::Permissive => 1,
        MtlsMode::Disable => 0,
    };
    [a, b].into_iter().flatten().max_by_key(rank)
}

/// Policies that select a workload, by name: DENY, then ALLOW.
fn rules<'a>(world: &'a World, node: &Node) -> Vec<(String, &'a AuthorizationPolicy)> {
    world
        .catalog
        .iter()
        .filter_map(|(id, stored)| {
            let Spec::AuthorizationPolicy(policy) = &stored.resource.spec else {
                return None;
            };
            let is_in_scope =
                *id.namespace == *node.namespace || *id.namespace == *world.mesh.root_namespace;
            let is_selected = policy
                .selector
                .as_ref()
                .is_none_or(|selector| selector.selects(&node.labels));
            (is_in_scope && is_selected)
                .then(|| (format!("ns[{}]-policy[{}]", id.namespace, id.name), policy))
        })
        .collect()
}

/// What each port of a workload carries: as its services agree, else detected.
fn protocols(world: &World, node: &Node) -> BTreeMap<u16, Option<CodecType>> {
    let mut declared: BTreeMap<u16, Vec<Option<PortProtocol>>> = BTreeMap::new();
    for service in world.services_selecting(&node.namespace, &node.labels) {
        for port in &service.ports {
            let target = port.target_port.unwrap_or(port.number).get();
            declared.entry(target).or_default().push(port.protocol);
        }
    }
    declared
        .into_iter()
        .map(|(port, protocols)| (port, wire::agreed(&protocols)))
        .collect()
}

/// The filters of a chain: rules, then the end.
fn filters(
    node: &Node,
    codec: Option<CodecType>,
    rules: &[(String, &AuthorizationPolicy)],
) -> Vec<Filter> {
    let Some(codec) = codec else {
        let end = wire::filter(
            "envoy.filters.network.tcp_proxy",
            wire::pack(&TcpProxy {
                stat_prefix: MESH_INBOUND.to_owned(),
                cluster_specifier: Some(ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
                ..TcpProxy::default()
            }),
        );
        return rbac::network(rules)
            .map(|rbac| wire::filter("envoy.filters.network.rbac", rbac))
            .chain([end])
            .collect();
    };
    let authority = match node.flavour {
        Flavour::Envoy { .. } => Authority::AsSent,
        Flavour::Sidecar | Flavour::Grpc => Authority::InLowerCase,
    };
    let rules = rbac::http(rules, authority)
        .map(|rbac| wire::http_filter("envoy.filters.http.rbac", rbac))
        .collect();
    let manager = HttpConnectionManager {
        // The sidecar forwards to its workload; Envoy must be told.
        route_specifier: match node.flavour {
            Flavour::Envoy { .. } => Some(RouteSpecifier::RouteConfig(to_the_workload())),
            Flavour::Sidecar | Flavour::Grpc => None,
        },
        ..wire::http_manager(MESH_INBOUND, codec, rules)
    };
    vec![wire::filter(
        "envoy.filters.network.http_connection_manager",
        wire::pack(&manager),
    )]
}

fn chains(
    node: &Node,
    port: Option<u16>,
    mode: MtlsMode,
    codec: Option<CodecType>,
    filters: &[Filter],
) -> Vec<FilterChain> {
    let alpn: &[&str] = match codec {
        None => &[],
        Some(CodecType::Http1) => &["http/1.1"],
        Some(CodecType::Http2) => &["h2"],
        Some(CodecType::Auto | CodecType::Http3) => &["h2", "http/1.1"],
    };
    let chain = |transport: &str, socket: Option<TransportSocket>| FilterChain {
        name: match port {
            Some(port) => format!("{port}/{transport}"),
            None => transport.to_owned(),
        },
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.and_then(|port| wire::u32_value(port.into())),
            transport_protocol: transport.to_owned(),
            ..FilterChainMatch::default()
        }),
        filters: filters.to_vec(),
        transport_socket: socket,
        ..FilterChain::default()
    };
    let tls = || chain("tls", Some(tls::downstream(&node.flavour, alpn)));
    let plain = || chain("raw_buffer", None);
    match mode {
        MtlsMode::Strict => vec![tls()],
        MtlsMode::Permissive => vec![tls(), plain()],
        MtlsMode::Disable => vec![plain()],
    }
}

/// As a real listener where redirected connections arrive.
fn bound(message: Listener) -> Listener {
    let inspect = |name: &str, config: Any| ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(config)),
        ..ListenerFilter::default()
    };
    Listener {
        address: Some(wire::address(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            INBOUND_PORT,
        ))),
        listener_filters: vec![
            inspect(
                "envoy.filters.listener.original_dst",
                wire::pack(&OriginalDst::default()),
            ),
            inspect(
                "envoy.filters.listener.tls_inspector",
                wire::pack(&TlsInspector::default()),
            ),
        ],
        ..message
    }
}

fn to_the_workload() -> RouteConfiguration {
    let action = RouteAction {
        timeout: wire::duration(Duration::ZERO),
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(
            PASSTHROUGH.to_owned(),
        )),
        ..RouteAction::default()
    };
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    RouteConfiguration {
        name: MESH_INBOUND.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: MESH_INBOUND.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

const INBOUND_PORT: u16 = 15006;
