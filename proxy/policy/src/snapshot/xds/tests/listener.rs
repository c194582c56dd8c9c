//! LDS: the two eager listeners, destinations, and filter chains.

use heddle_proto::{
    v1::{MeshHost, OutboundPolicy, outbound_policy::Unknown},
    xds::{
        envoy::{
            config::{
                core::v3::Metadata,
                listener::v3::{Filter, FilterChain, FilterChainMatch, filter},
            },
            extensions::filters::network::{
                http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, Rds,
                    http_connection_manager::{CodecType, RouteSpecifier},
                    http_filter,
                },
                tcp_proxy::v3::{
                    TcpProxy,
                    tcp_proxy::{self, ClusterSpecifier, WeightedCluster as Split},
                },
            },
        },
        http_filters::router::v3::Router,
    },
};

use super::*;
use crate::snapshot::MtlsMode;

pub(super) type Wire = WireListener;

/// Port 8080 is HTTP in both ways, every other port is one of bytes by mutual TLS.
pub(super) fn inbound() -> WireListener {
    WireListener {
        name: MESH_INBOUND.to_owned(),
        filter_chains: vec![
            chain(Some(8080), "tls", http(vec![])),
            chain(Some(8080), "raw_buffer", http(vec![])),
            chain(None, "tls", tcp(vec![])),
        ],
        ..Default::default()
    }
}

pub(super) fn chain(port: Option<u32>, transport: &str, filters: Vec<Filter>) -> FilterChain {
    let is_tls = transport == "tls";
    FilterChain {
        filter_chain_match: Some(FilterChainMatch {
            destination_port: port.and_then(u32_value),
            transport_protocol: transport.to_owned(),
            ..Default::default()
        }),
        filters,
        transport_socket: is_tls.then(|| socket(pack(&tls::downstream()))).flatten(),
        ..Default::default()
    }
}

/// These filters, then the router.
pub(super) fn http(before: Vec<Any>) -> Vec<Filter> {
    let before = before.into_iter().chain([pack(&Router::default())]);
    vec![network(pack(&manager(before.map(http_filter).collect())))]
}

fn manager(http_filters: Vec<HttpFilter>) -> HttpConnectionManager {
    HttpConnectionManager {
        codec_type: CodecType::Auto.into(),
        stat_prefix: "echo:80".to_owned(),
        http_filters,
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: None,
            route_config_name: "echo:80".to_owned(),
        })),
        ..Default::default()
    }
}

fn http_filter(any: Any) -> HttpFilter {
    HttpFilter {
        config_type: Some(http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    }
}

/// These filters, then a relay of bytes.
pub(super) fn tcp(before: Vec<Any>) -> Vec<Filter> {
    let before = before.into_iter().chain([pack(&relay("echo:80"))]);
    before.map(network).collect()
}

fn relay(cluster: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: "echo:80".to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

fn split(weights: &[(&str, u32)]) -> TcpProxy {
    let clusters = weights.iter().map(|(name, weight)| {
        let name = (*name).to_owned();
        tcp_proxy::weighted_cluster::ClusterWeight {
            name,
            weight: *weight,
            metadata_match: None,
        }
    });
    TcpProxy {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(Split {
            clusters: clusters.collect(),
        })),
        ..Default::default()
    }
}

fn network(any: Any) -> Filter {
    Filter {
        name: String::new(),
        config_type: Some(filter::ConfigType::TypedConfig(any)),
    }
}

fn destination(filters: Vec<Filter>) -> WireListener {
    WireListener {
        name: "out/10.0.0.1:80".to_owned(),
        default_filter_chain: Some(FilterChain {
            filters,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn default_chain(listener: &mut WireListener) -> &mut FilterChain {
    listener.default_filter_chain.as_mut().unwrap()
}

/// `mesh/outbound` with this policy.
fn outbound(policy: &OutboundPolicy) -> WireListener {
    WireListener {
        name: MESH_OUTBOUND.to_owned(),
        metadata: our_metadata(pack_own("OutboundPolicy", policy)),
        ..Default::default()
    }
}

fn our_metadata(any: Any) -> Option<Metadata> {
    Some(Metadata {
        typed_filter_metadata: [(METADATA_KEY.to_owned(), any)].into(),
        ..Default::default()
    })
}

fn policy() -> OutboundPolicy {
    OutboundPolicy {
        mesh_cidrs: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
        unknown: Unknown::AllowAny.into(),
        hosts: vec![host("echo.shop", &["10.0.0.1", "fd00::1"])],
    }
}

fn host(name: &str, addresses: &[&str]) -> MeshHost {
    MeshHost {
        name: name.to_owned(),
        addresses: addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect(),
    }
}

#[test]
fn a_chain_is_matched_by_port_and_transport_only() {
    let resource = |matches| {
        let mut listener = inbound();
        listener.filter_chains[1].filter_chain_match = Some(matches);
        listener
    };
    check_refused(
        &inbound().filter_chains[1]
            .filter_chain_match
            .clone()
            .unwrap(),
        resource,
        "filter_chains[1].filter_chain_match",
        &[
            ("prefix_ranges", |m| {
                m.prefix_ranges = vec![Default::default()];
            }),
            ("address_suffix", |m| m.address_suffix = "x".to_owned()),
            ("suffix_len", |m| m.suffix_len = u32_value(1)),
            ("direct_source_prefix_ranges", |m| {
                m.direct_source_prefix_ranges = vec![Default::default()];
            }),
            ("source_type", |m| m.source_type = 1),
            ("source_prefix_ranges", |m| {
                m.source_prefix_ranges = vec![Default::default()];
            }),
            ("source_ports", |m| m.source_ports = vec![1]),
            ("server_names", |m| m.server_names = vec!["x".to_owned()]),
            ("application_protocols", |m| {
                m.application_protocols = vec!["h2".to_owned()];
            }),
            ("destination_port", |m| m.destination_port = u32_value(0)),
            ("destination_port", |m| {
                m.destination_port = u32_value(65_536);
            }),
            ("transport_protocol", |m| m.transport_protocol.clear()),
            ("transport_protocol", |m| {
                m.transport_protocol = "TLS".to_owned();
            }),
            ("transport_protocol", |m| {
                m.transport_protocol = "quic".to_owned();
            }),
        ],
    );
}

#[test]
fn an_inbound_listener_that_could_be_weaker_than_told_is_refused() {
    check_refused(
        &inbound(),
        |listener| listener,
        "",
        &[
            ("default_filter_chain", |l| {
                l.default_filter_chain = Some(Default::default());
            }),
            ("filter_chain_matcher", |l| {
                l.filter_chain_matcher = Some(Default::default());
            }),
            ("fcds_config", |l| l.fcds_config = Some(Default::default())),
            ("filter_chains", |l| l.filter_chains.truncate(2)),
            ("filter_chains", |l| l.filter_chains.clear()),
            ("filter_chains[1].filter_chain_match", |l| {
                l.filter_chains[1].filter_chain_match = None;
            }),
            ("filter_chains[3].filter_chain_match", |l| {
                let again = l.filter_chains[0].clone();
                l.filter_chains.push(again);
            }),
            ("filter_chains[1].filters", |l| {
                let mut manager = manager(vec![http_filter(pack(&Router::default()))]);
                manager.codec_type = CodecType::Http1.into();
                l.filter_chains[1].filters = vec![network(pack(&manager))];
            }),
            ("filter_chains[2].filters", |l| {
                l.filter_chains[2].filters.clear();
            }),
            ("filter_chains[2].filters[0]", |l| {
                l.filter_chains[2].filters[0].config_type = None;
            }),
            ("filter_chains[2].filters[0]", |l| {
                let discovered = filter::ConfigType::ConfigDiscovery(Default::default());
                l.filter_chains[2].filters[0].config_type = Some(discovered);
            }),
            ("filter_chains[2].filters[0].typed_config", |l| {
                l.filter_chains[2].filters = vec![network(Any::default())];
            }),
            ("filter_chains[2].filters[0].typed_config", |l| {
                l.filter_chains[2].filters = vec![network(with_unknown(pack(&relay("x"))))];
            }),
            ("filter_chains[2].filters[0].typed_config.cluster", |l| {
                l.filter_chains[2].filters = vec![network(pack(&TcpProxy::default()))];
            }),
            ("filter_chains[2].filters[0]", |l| {
                l.filter_chains[2].filters = tcp(vec![pack(&Router::default())]);
            }),
            ("filter_chains[2].filters[0]", |l| {
                let mut filters = http(vec![]);
                filters.insert(0, network(Any::default()));
                l.filter_chains[2].filters = filters;
            }),
        ],
    );
    let mut bytes = inbound().encode_to_vec();
    bytes.extend(UNKNOWN);
    let refused = decode(ResourceType::Listener.type_url(), &bytes).unwrap_err();
    assert_eq!(refused.faults[0].path, "");
}

/// The connection manager of the port for everything else.
#[test]
fn http_filters_are_rules_and_then_the_router() {
    let resource = |manager: HttpConnectionManager| {
        let mut listener = inbound();
        listener.filter_chains[2].filters = vec![network(pack(&manager))];
        listener
    };
    let router = || http_filter(pack(&Router::default()));
    check_refused(
        &manager(vec![router()]),
        resource,
        "filter_chains[2].filters[0].typed_config",
        &[
            ("codec_type", |m| m.codec_type = CodecType::Http3.into()),
            ("http_filters", |m| m.http_filters.clear()),
            ("http_filters[0]", |m| m.http_filters[0].config_type = None),
            ("http_filters[0]", |m| {
                let discovered = http_filter::ConfigType::ConfigDiscovery(Default::default());
                m.http_filters[0].config_type = Some(discovered);
            }),
            ("http_filters[0]", |m| {
                m.http_filters[0] = http_filter(pack(&Split::default()));
            }),
            ("http_filters[0].disabled", |m| {
                m.http_filters[0].disabled = true;
            }),
            ("http_filters[0]", |m| {
                m.http_filters
                    .insert(0, http_filter(pack(&Split::default())));
            }),
            ("http_filters[0]", |m| {
                let again = m.http_filters[0].clone();
                m.http_filters.push(again);
            }),
        ],
    );
    let unknown = |any| {
        let mut listener = inbound();
        listener.filter_chains[2].filters = vec![network(any)];
        faults(&listener)
    };
    assert_eq!(
        unknown(with_unknown(pack(&manager(vec![router()])))),
        ["filter_chains[2].filters[0].typed_config"]
    );
}

#[test]
fn a_destination_that_leads_nowhere_is_refused() {
    check_refused(
        &destination(http(vec![])),
        |listener| listener,
        "",
        &[
            ("name", |l| l.name = "echo:80".to_owned()),
            ("name", |l| l.name = "out/echo:80".to_owned()),
            ("filter_chains", |l| {
                l.filter_chains = vec![Default::default()];
            }),
            ("filter_chain_matcher", |l| {
                l.filter_chain_matcher = Some(Default::default());
            }),
            ("default_filter_chain", |l| l.default_filter_chain = None),
            ("default_filter_chain.filter_chain_match", |l| {
                default_chain(l).filter_chain_match = Some(Default::default());
            }),
            ("default_filter_chain.transport_socket", |l| {
                default_chain(l).transport_socket = socket(pack(&tls::upstream()));
            }),
            ("default_filter_chain.filters", |l| {
                default_chain(l).filters.clear();
            }),
            ("default_filter_chain.filters[0].typed_config.rds", |l| {
                let mut manager = manager(vec![http_filter(pack(&Router::default()))]);
                manager.route_specifier = None;
                default_chain(l).filters = vec![network(pack(&manager))];
            }),
            ("default_filter_chain.filters[0].typed_config.rds", |l| {
                let mut manager = manager(vec![http_filter(pack(&Router::default()))]);
                manager.route_specifier = Some(RouteSpecifier::RouteConfig(Default::default()));
                default_chain(l).filters = vec![network(pack(&manager))];
            }),
            ("default_filter_chain", |l| {
                default_chain(l).filters = http(vec![pack(&rbac::http(Default::default()))]);
            }),
            ("default_filter_chain", |l| {
                default_chain(l).filters = tcp(vec![pack(&rbac::network(Default::default()))]);
            }),
            ("default_filter_chain.filters[0].typed_config", |l| {
                default_chain(l).filters = vec![network(pack(&split(&[])))];
            }),
            ("default_filter_chain.filters[0].typed_config", |l| {
                default_chain(l).filters = vec![network(pack(&split(&[("a", 0)])))];
            }),
            ("default_filter_chain.filters[0].typed_config", |l| {
                let weights = [("a", u32::MAX), ("b", 1)];
                default_chain(l).filters = vec![network(pack(&split(&weights)))];
            }),
            ("default_filter_chain.filters[0].typed_config", |l| {
                default_chain(l).filters = vec![network(pack(&split(&[("", 1)])))];
            }),
            ("default_filter_chain.filters[0].typed_config", |l| {
                default_chain(l).filters = vec![network(pack(&relay("")))];
            }),
        ],
    );
}

#[test]
fn a_policy_for_outbound_is_whole_or_refused() {
    check_refused(
        &policy(),
        |policy| outbound(&policy),
        "metadata.typed_filter_metadata.heddle.v1",
        &[
            ("mesh_cidrs[1]", |p| p.mesh_cidrs[1] = "fd00::".to_owned()),
            ("mesh_cidrs[1]", |p| {
                p.mesh_cidrs[1] = "10.0.0.0/33".to_owned();
            }),
            ("mesh_cidrs[0]", |p| p.mesh_cidrs[0].clear()),
            ("unknown", |p| p.unknown = Unknown::Unspecified.into()),
            ("unknown", |p| p.unknown = 99),
            ("hosts[0]", |p| p.hosts[0].name.clear()),
            ("hosts[0]", |p| p.hosts[0].name = "Echo.shop".to_owned()),
            ("hosts[0]", |p| p.hosts[0].name = "echo.shop.".to_owned()),
            ("hosts[1]", |p| p.hosts.push(host("b", &["10.0.0.1", "b"]))),
        ],
    );
    check_refused(
        &outbound(&policy()),
        |listener| listener,
        "metadata.typed_filter_metadata.heddle.v1",
        &[
            ("", |l| l.metadata = None),
            ("", |l| l.metadata = our_metadata(Any::default())),
            ("", |l| {
                let mut any = pack_own("OutboundPolicy", &policy());
                any.value.truncate(4);
                l.metadata = our_metadata(any);
            }),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per field")]
fn what_listeners_have_beyond_the_subset_is_counted() {
    const ROWS: &[Row<WireListener>] = &[
        ("address", |l| l.address = Some(Default::default())),
        ("listener_filters", |l| {
            l.listener_filters = vec![Default::default()];
        }),
        ("bind_to_port", |l| l.bind_to_port = bool_value(false)),
        ("traffic_direction", |l| l.traffic_direction = 1),
        ("api_listener", |l| {
            l.api_listener = Some(Default::default());
        }),
        ("access_log", |l| l.access_log = vec![Default::default()]),
    ];
    check_ignored(&inbound(), |listener| listener, ROWS);
    check_ignored(&destination(http(vec![])), |listener| listener, ROWS);
    check_ignored(&outbound(&policy()), |listener| listener, ROWS);
    check_ignored(
        &outbound(&policy()),
        |listener| listener,
        &[
            ("filter_chains", |l| {
                l.filter_chains = vec![Default::default()];
            }),
            ("default_filter_chain", |l| {
                l.default_filter_chain = Some(Default::default());
            }),
            ("a field of our metadata that no version has", |l| {
                let any = pack_own("OutboundPolicy", &policy());
                l.metadata = our_metadata(with_unknown(any));
            }),
        ],
    );
    check_ignored(
        &inbound(),
        |listener| listener,
        &[
            ("metadata", |l| l.metadata = Some(Default::default())),
            ("metadata of a chain", |l| {
                l.filter_chains[2].metadata = Some(Default::default());
            }),
            ("transport_socket_connect_timeout", |l| {
                l.filter_chains[2].transport_socket_connect_timeout = Some(Default::default());
            }),
        ],
    );
    let with = |filter: Any| {
        let mut listener = inbound();
        listener.filter_chains[2].filters = vec![network(filter)];
        listener
    };
    check_ignored(
        &manager(vec![http_filter(pack(&Router::default()))]),
        |manager| with(pack(&manager)),
        &[
            ("normalize_path", |m| m.normalize_path = bool_value(true)),
            ("max_request_headers_kb", |m| {
                m.max_request_headers_kb = u32_value(1);
            }),
            ("request_timeout", |m| {
                m.request_timeout = Some(Default::default());
            }),
        ],
    );
    check_ignored(
        &relay("echo:80"),
        |proxy| with(pack(&proxy)),
        &[
            ("idle_timeout", |p| {
                p.idle_timeout = Some(Default::default());
            }),
            ("max_connect_attempts", |p| {
                p.max_connect_attempts = u32_value(1);
            }),
            ("tunneling_config", |p| {
                p.tunneling_config = Some(Default::default());
            }),
        ],
    );
}

#[test]
fn a_ports_mode_is_which_chains_it_has() {
    let mut listener = inbound();
    listener
        .filter_chains
        .push(chain(Some(9090), "raw_buffer", tcp(vec![])));
    let Piece::Listener(Listener::Inbound(read)) = accepted(&listener).piece else {
        panic!("it is the inbound listener");
    };
    let of = |port: u16| read.ports.get(&port).unwrap_or(&read.default);
    for (port, mtls, protocol) in [
        (8080, MtlsMode::Permissive, Protocol::Detect),
        (9090, MtlsMode::Disable, Protocol::Tcp),
        (1, MtlsMode::Strict, Protocol::Tcp),
    ] {
        assert_eq!(
            (of(port).mtls, of(port).protocol),
            (mtls, protocol),
            "{port}"
        );
    }
}

#[test]
fn a_destination_is_named_by_its_prefix_and_leads_where_its_filter_says() {
    let read = |listener: &WireListener| {
        let Piece::Listener(Listener::Destination(read)) = accepted(listener).piece else {
            panic!("it is a destination");
        };
        read
    };
    for (codec, protocol) in [
        (CodecType::Auto, Protocol::Detect),
        (CodecType::Http1, Protocol::Http1),
        (CodecType::Http2, Protocol::Http2),
    ] {
        let mut manager = manager(vec![http_filter(pack(&Router::default()))]);
        manager.codec_type = codec.into();
        let read = read(&destination(vec![network(pack(&manager))]));
        assert_eq!(read.protocol, protocol);
        assert_eq!(read.target, ListenerTarget::Routes("echo:80".into()));
        assert_eq!(&*read.name, "echo:80");
    }
    let passed = read(&destination(vec![network(pack(&relay(PASSTHROUGH)))]));
    assert_eq!(passed.target, ListenerTarget::Passthrough);
    let weights = [("a", 1), ("b", 3)];
    let parted = read(&destination(vec![network(pack(&split(&weights)))]));
    let ListenerTarget::Tcp(clusters) = &parted.target else {
        panic!("{parted:?}");
    };
    let read: Vec<_> = clusters.iter().map(|(name, n)| (&*name.0, n)).collect();
    assert_eq!(read, weights);
}
