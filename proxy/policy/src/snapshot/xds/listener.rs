//! LDS: the two eager listeners and one listener per destination.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use heddle_proto::{
    v1::{OutboundPolicy, outbound_policy::Unknown},
    xds::{
        envoy::{
            config::listener::v3::{
                Filter, FilterChain, FilterChainMatch, Listener as Wire, filter,
            },
            extensions::filters::network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter,
                    http_connection_manager::{CodecType, RouteSpecifier},
                    http_filter,
                },
                rbac::v3::Rbac as NetworkRbac,
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
            },
        },
        google::protobuf::Any,
        http_filters::{rbac::v3::Rbac as HttpRbac, router::v3::Router},
    },
};
use prost::Name;

use crate::{
    authz::Rules,
    snapshot::{
        ClusterName, DestinationKey, Inbound, InboundPort, MtlsMode, Outbound, Protocol,
        UnknownDestination, WeightedClusters,
    },
};

use super::{
    DestinationListener, Known, Listener, ListenerTarget, MESH_INBOUND, MESH_OUTBOUND,
    METADATA_KEY, PASSTHROUGH, Piece,
    endpoints::{ignore_others, read_policy},
    fault::{Faults, Path},
    rbac, tls, unpack,
};

pub(super) fn listener(
    message: &Wire,
    known: Known,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Piece> {
    let rest = Wire {
        name: String::new(),
        stat_prefix: String::new(),
        filter_chains: Vec::new(),
        default_filter_chain: None,
        metadata: None,
        ..message.clone()
    };
    faults.ignore_if(rest != Wire::default());
    // It could sit in a filter-chain match.
    if known == Known::Some {
        faults.refuse(at, "has a field this version does not know");
    }
    faults.refuse_set(
        &message.filter_chain_matcher,
        &at.field("filter_chain_matcher"),
    );
    faults.refuse_set(&message.fcds_config, &at.field("fcds_config"));
    let listener = match message.name.as_str() {
        MESH_OUTBOUND => Listener::Outbound(Arc::new(outbound(message, at, faults)?)),
        MESH_INBOUND => Listener::Inbound(Arc::new(inbound(message, at, faults)?)),
        name => match DestinationKey::from_listener_name(name) {
            Some(key) => Listener::Destination(Arc::new(destination(message, key, at, faults)?)),
            None => {
                faults.refuse(&at.field("name"), "is not one of the sidecar's listeners");
                return None;
            }
        },
    };
    Some(Piece::Listener(listener))
}

fn outbound(message: &Wire, at: &Path<'_>, faults: &mut Faults) -> Option<Outbound> {
    faults.ignore_if(!message.filter_chains.is_empty() || message.default_filter_chain.is_some());
    let at = at.field("metadata.typed_filter_metadata");
    let at = at.field(METADATA_KEY);
    let metadata = message.metadata.as_ref();
    ignore_others(metadata, None, faults);
    let Some(any) = metadata.and_then(|m| m.typed_filter_metadata.get(METADATA_KEY)) else {
        faults.refuse(&at, "is missing");
        return None;
    };
    let policy: OutboundPolicy = read_policy(any, "heddle.v1.OutboundPolicy", &at, faults)?;
    let mut mesh_cidrs = Vec::with_capacity(policy.mesh_cidrs.len());
    for (i, cidr) in policy.mesh_cidrs.iter().enumerate() {
        match cidr.parse() {
            Ok(cidr) => mesh_cidrs.push(cidr),
            Err(_) => faults.refuse(&at.field("mesh_cidrs").index(i), "is not a CIDR"),
        }
    }
    let unknown = match policy.unknown() {
        Unknown::AllowAny => UnknownDestination::AllowAny,
        Unknown::RegistryOnly => UnknownDestination::RegistryOnly,
        Unknown::Unspecified => {
            faults.refuse(&at.field("unknown"), "is unspecified");
            UnknownDestination::RegistryOnly
        }
    };
    let mut hosts = HashMap::with_capacity(policy.hosts.len());
    for (i, host) in policy.hosts.iter().enumerate() {
        let addresses: Result<Vec<_>, _> = host.addresses.iter().map(|a| a.parse()).collect();
        let is_canonical = !host.name.is_empty()
            && !host.name.ends_with('.')
            && !host.name.bytes().any(|b| b.is_ascii_uppercase());
        match addresses {
            Ok(addresses) if is_canonical => {
                hosts.insert(Arc::from(host.name.as_str()), addresses);
            }
            Ok(_) | Err(_) => {
                faults.refuse(
                    &at.field("hosts").index(i),
                    "is not a lower-case name with IP addresses",
                );
            }
        }
    }
    Some(Outbound {
        mesh_cidrs,
        unknown,
        hosts,
    })
}

fn destination(
    message: &Wire,
    key: DestinationKey,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<DestinationListener> {
    faults.ignore_if(message.metadata.is_some());
    if !message.filter_chains.is_empty() {
        faults.refuse(&at.field("filter_chains"), "is not supported here");
    }
    let at = at.field("default_filter_chain");
    let Some(chain) = &message.default_filter_chain else {
        faults.refuse(&at, "is missing");
        return None;
    };
    faults.refuse_set(&chain.filter_chain_match, &at.field("filter_chain_match"));
    tls::plain(
        chain.transport_socket.as_ref(),
        &at.field("transport_socket"),
        faults,
    );
    let chain = read_chain(chain, &at, faults)?;
    if !chain.rbac.is_empty() {
        faults.refuse(&at, "has RBAC, which outbound does not know");
    }
    let target = match chain.last {
        Last::Http(routes) if !routes.is_empty() => ListenerTarget::Routes(routes.into()),
        Last::Http(_) => {
            faults.refuse(&at.field("filters[0].typed_config.rds"), "names no routes");
            return None;
        }
        Last::Tcp(ClusterSpecifier::Cluster(name)) if name == PASSTHROUGH => {
            ListenerTarget::Passthrough
        }
        Last::Tcp(specifier) => ListenerTarget::Tcp(tcp_split(&specifier, &at, faults)?),
    };
    let name = if message.stat_prefix.is_empty() {
        chain.stat_prefix
    } else {
        message.stat_prefix.clone()
    };
    Some(DestinationListener {
        listener: message.name.as_str().into(),
        key,
        name: if name.is_empty() {
            message.name.as_str().into()
        } else {
            name.into()
        },
        protocol: chain.protocol,
        target,
    })
}

fn tcp_split(
    specifier: &ClusterSpecifier,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<WeightedClusters> {
    let list: Vec<_> = match specifier {
        ClusterSpecifier::Cluster(name) => vec![(ClusterName(name.as_str().into()), 1)],
        ClusterSpecifier::WeightedClusters(split) => split
            .clusters
            .iter()
            .map(|cluster| (ClusterName(cluster.name.as_str().into()), cluster.weight))
            .collect(),
    };
    if list.iter().any(|(name, _)| name.0.is_empty()) {
        faults.refuse(
            &at.field("filters[0].typed_config"),
            "has a cluster without a name",
        );
    }
    let split = WeightedClusters::new(list);
    if split.is_none() {
        faults.refuse(&at.field("filters[0].typed_config"), "has unusable weights");
    }
    split
}

/// RBAC filters with their positions, and the rules made of them.
type KnownRules = (Vec<(usize, Any)>, Arc<Rules>);

/// The chains of one port.
#[derive(Default)]
struct PortChains<'a> {
    tls: Option<(usize, &'a FilterChain)>,
    plain: Option<(usize, &'a FilterChain)>,
}

fn inbound(message: &Wire, at: &Path<'_>, faults: &mut Faults) -> Option<Inbound> {
    faults.ignore_if(message.metadata.is_some());
    faults.refuse_set(
        &message.default_filter_chain,
        &at.field("default_filter_chain"),
    );
    let at = at.field("filter_chains");
    let mut by_port: BTreeMap<Option<u16>, PortChains<'_>> = BTreeMap::new();
    for (i, chain) in message.filter_chains.iter().enumerate() {
        let at = at.index(i);
        let Some((port, is_tls)) = chain_match(chain, &at.field("filter_chain_match"), faults)
        else {
            continue;
        };
        let port = by_port.entry(port).or_default();
        let side = if is_tls {
            &mut port.tls
        } else {
            &mut port.plain
        };
        if side.replace((i, chain)).is_some() {
            faults.refuse(&at.field("filter_chain_match"), "is there twice");
        }
    }
    let mut default = None;
    let mut ports = HashMap::new();
    let mut rules = Vec::new();
    for (port, chains) in by_port {
        let served = Arc::new(inbound_port(&chains, &mut rules, &at, faults)?);
        match port {
            Some(port) => drop(ports.insert(port, served)),
            None => default = Some(served),
        }
    }
    if default.is_none() {
        faults.refuse(&at, "has no chain for every other port");
    }
    Some(Inbound {
        ports,
        default: default?,
    })
}

fn chain_match(
    chain: &FilterChain,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<(Option<u16>, bool)> {
    let FilterChainMatch {
        destination_port,
        prefix_ranges,
        address_suffix,
        suffix_len,
        direct_source_prefix_ranges,
        source_type,
        source_prefix_ranges,
        source_ports,
        server_names,
        transport_protocol,
        application_protocols,
    } = chain.filter_chain_match.as_ref().or_else(|| {
        faults.refuse(at, "is missing");
        None
    })?;
    faults.refuse_set(prefix_ranges, &at.field("prefix_ranges"));
    faults.refuse_set(address_suffix, &at.field("address_suffix"));
    faults.refuse_set(suffix_len, &at.field("suffix_len"));
    faults.refuse_set(
        direct_source_prefix_ranges,
        &at.field("direct_source_prefix_ranges"),
    );
    faults.refuse_set(source_type, &at.field("source_type"));
    faults.refuse_set(source_prefix_ranges, &at.field("source_prefix_ranges"));
    faults.refuse_set(source_ports, &at.field("source_ports"));
    faults.refuse_set(server_names, &at.field("server_names"));
    faults.refuse_set(application_protocols, &at.field("application_protocols"));
    let port = match destination_port {
        None => None,
        Some(port) => match u16::try_from(port.value) {
            Ok(port) if port != 0 => Some(port),
            Ok(_) | Err(_) => {
                faults.refuse(&at.field("destination_port"), "is not between 1 and 65535");
                return None;
            }
        },
    };
    match transport_protocol.as_str() {
        "tls" => Some((port, true)),
        "raw_buffer" => Some((port, false)),
        _ => {
            faults.refuse(
                &at.field("transport_protocol"),
                "is neither tls nor raw_buffer",
            );
            None
        }
    }
}

fn inbound_port(
    chains: &PortChains<'_>,
    known: &mut Vec<KnownRules>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<InboundPort> {
    let mtls = match (chains.tls, chains.plain) {
        (Some(_), None) => MtlsMode::Strict,
        (Some(_), Some(_)) => MtlsMode::Permissive,
        (None, Some(_)) => MtlsMode::Disable,
        (None, None) => return None,
    };
    if let Some((i, chain)) = chains.tls {
        let at = at.index(i);
        tls::downstream(
            chain.transport_socket.as_ref(),
            &at.field("transport_socket"),
            faults,
        );
    }
    if let Some((i, chain)) = chains.plain {
        let at = at.index(i);
        tls::plain(
            chain.transport_socket.as_ref(),
            &at.field("transport_socket"),
            faults,
        );
    }
    if let (Some((_, tls)), Some((i, plain))) = (chains.tls, chains.plain)
        && tls.filters != plain.filters
    {
        let at = at.index(i);
        faults.refuse(
            &at.field("filters"),
            "differ from those of the port's other chain",
        );
    }
    let (i, chain) = chains.tls.or(chains.plain)?;
    let at = at.index(i);
    let chain = read_chain(chain, &at, faults)?;
    // Most ports have the same rules, and their expressions are dear to compile.
    let authz = match known.iter().find(|(filters, _)| *filters == chain.rbac) {
        Some((_, rules)) => Arc::clone(rules),
        None => {
            let rules = Arc::new(rbac::rules(&chain.rbac, &at.field(chain.rbac_at), faults));
            known.push((chain.rbac, Arc::clone(&rules)));
            rules
        }
    };
    Some(InboundPort {
        mtls,
        protocol: chain.protocol,
        authz,
    })
}

/// A filter chain of the subset.
struct Chain {
    protocol: Protocol,
    /// RBAC filters with their position, in order.
    rbac: Vec<(usize, Any)>,
    /// The list they are in.
    rbac_at: &'static str,
    last: Last,
    stat_prefix: String,
}

enum Last {
    /// The name of the route configuration; empty when it is not told by RDS.
    Http(String),
    Tcp(ClusterSpecifier),
}

fn read_chain(chain: &FilterChain, at: &Path<'_>, faults: &mut Faults) -> Option<Chain> {
    let rest = FilterChain {
        filter_chain_match: None,
        filters: Vec::new(),
        transport_socket: None,
        name: String::new(),
        ..chain.clone()
    };
    faults.ignore_if(rest != FilterChain::default());
    let at = at.field("filters");
    let Some((last, before)) = chain.filters.split_last() else {
        faults.refuse(&at, "is empty");
        return None;
    };
    let at_last = at.index(before.len());
    let any = typed_config(last, &at_last, faults)?;
    if any.type_url != TcpProxy::type_url() {
        if !before.is_empty() {
            faults.refuse(
                &at.index(0),
                "before the HTTP connection manager is not supported",
            );
        }
        let manager = unpack(any, &at_last.field("typed_config"), faults)?;
        return http_chain(manager, &at_last.field("typed_config"), faults);
    }
    let proxy: TcpProxy = unpack(any, &at_last.field("typed_config"), faults)?;
    let mut rbac = Vec::new();
    for (i, filter) in before.iter().enumerate() {
        let any = typed_config(filter, &at.index(i), faults)?;
        if any.type_url == NetworkRbac::type_url() {
            rbac.push((i, any.clone()));
        } else {
            faults.refuse(&at.index(i), format!("{} is not supported", any.type_url));
        }
    }
    let rest = TcpProxy {
        stat_prefix: String::new(),
        cluster_specifier: None,
        ..proxy.clone()
    };
    faults.ignore_if(rest != TcpProxy::default());
    let Some(specifier) = proxy.cluster_specifier else {
        faults.refuse(&at_last.field("typed_config.cluster"), "is missing");
        return None;
    };
    Some(Chain {
        protocol: Protocol::Tcp,
        rbac,
        rbac_at: "filters",
        last: Last::Tcp(specifier),
        stat_prefix: proxy.stat_prefix,
    })
}

fn http_chain(manager: HttpConnectionManager, at: &Path<'_>, faults: &mut Faults) -> Option<Chain> {
    let protocol = match manager.codec_type() {
        CodecType::Auto => Protocol::Detect,
        CodecType::Http1 => Protocol::Http1,
        CodecType::Http2 => Protocol::Http2,
        CodecType::Http3 => {
            faults.refuse(&at.field("codec_type"), "is HTTP3");
            return None;
        }
    };
    let rest = HttpConnectionManager {
        codec_type: 0,
        stat_prefix: String::new(),
        http_filters: Vec::new(),
        route_specifier: None,
        ..manager.clone()
    };
    faults.ignore_if(rest != HttpConnectionManager::default());
    let at = at.field("http_filters");
    if manager.http_filters.is_empty() {
        faults.refuse(&at, "is empty");
    }
    let mut rbac = Vec::new();
    for (i, filter) in manager.http_filters.iter().enumerate() {
        let is_last = i + 1 == manager.http_filters.len();
        let at = at.index(i);
        let Some(any) = http_config(filter, &at, faults) else {
            continue;
        };
        if is_last != (any.type_url == Router::type_url()) {
            faults.refuse(&at, "is the router before the end, or another filter there");
        } else if any.type_url == HttpRbac::type_url() {
            rbac.push((i, any.clone()));
        } else if !is_last {
            faults.refuse(&at, format!("{} is not supported", any.type_url));
        }
    }
    Some(Chain {
        protocol,
        rbac,
        rbac_at: "filters[0].typed_config.http_filters",
        last: Last::Http(match manager.route_specifier {
            Some(RouteSpecifier::Rds(rds)) => rds.route_config_name,
            Some(RouteSpecifier::RouteConfig(_) | RouteSpecifier::ScopedRoutes(_)) | None => {
                String::new()
            }
        }),
        stat_prefix: manager.stat_prefix,
    })
}

fn typed_config<'a>(filter: &'a Filter, at: &Path<'_>, faults: &mut Faults) -> Option<&'a Any> {
    match &filter.config_type {
        Some(filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(filter::ConfigType::ConfigDiscovery(_)) | None => {
            faults.refuse(at, "has no typed_config");
            None
        }
    }
}

fn http_config<'a>(filter: &'a HttpFilter, at: &Path<'_>, faults: &mut Faults) -> Option<&'a Any> {
    faults.refuse_set(&filter.disabled, &at.field("disabled"));
    match &filter.config_type {
        Some(http_filter::ConfigType::TypedConfig(any)) => Some(any),
        Some(http_filter::ConfigType::ConfigDiscovery(_)) | None => {
            faults.refuse(at, "has no typed_config");
            None
        }
    }
}
