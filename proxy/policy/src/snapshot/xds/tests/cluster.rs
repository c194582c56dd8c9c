//! CDS.

#![expect(deprecated, reason = "deprecated fields have no meaning here")]

use std::time::Duration;

use heddle_proto::{
    v1::ClusterPolicy,
    xds::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, LoadBalancingPolicy, OutlierDetection,
                    circuit_breakers::Thresholds,
                    cluster::{
                        ClusterDiscoveryType, DiscoveryType, EdsClusterConfig, LbPolicy,
                        TransportSocketMatch,
                    },
                    load_balancing_policy::Policy,
                },
                core::v3::{HttpProtocolOptions as Common, Metadata, TypedExtensionConfig},
            },
            extensions::{
                transport_sockets::raw_buffer::v3::RawBuffer,
                upstreams::http::v3::{
                    HttpProtocolOptions,
                    http_protocol_options::{
                        ExplicitHttpConfig, UpstreamProtocolOptions,
                        explicit_http_config::ProtocolConfig,
                    },
                },
            },
        },
        google::protobuf::Duration as WireDuration,
    },
};

use super::*;
use crate::{
    outlier::FailureKind,
    snapshot::{Balancing, CONNECT_TIMEOUT, ClusterProtocol, Limits},
};

/// With meshed and plain endpoints.
pub(super) fn good() -> WireCluster {
    WireCluster {
        name: "echo:80".to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            service_name: "echo:80".to_owned(),
            eds_config: None,
        }),
        transport_socket_matches: vec![
            TransportSocketMatch {
                name: "mtls".to_owned(),
                r#match: Some(fields("heddle", "mtls")),
                transport_socket: socket(pack(&tls::upstream())),
            },
            TransportSocketMatch {
                name: "plain".to_owned(),
                r#match: Some(Struct::default()),
                transport_socket: socket(pack(&RawBuffer::default())),
            },
        ],
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![Thresholds::default()],
            ..Default::default()
        }),
        outlier_detection: Some(OutlierDetection::default()),
        metadata: policy(pack_own("ClusterPolicy", &ClusterPolicy::default())),
        typed_extension_protocol_options: [(HTTP.to_owned(), pack(&options(http2())))].into(),
        ..Default::default()
    }
}

fn policy(any: Any) -> Option<Metadata> {
    Some(Metadata {
        typed_filter_metadata: [(METADATA_KEY.to_owned(), any)].into(),
        ..Default::default()
    })
}

fn options(config: ProtocolConfig) -> HttpProtocolOptions {
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(
            ExplicitHttpConfig {
                protocol_config: Some(config),
            },
        )),
        ..Default::default()
    }
}

fn http2() -> ProtocolConfig {
    ProtocolConfig::Http2ProtocolOptions(Default::default())
}

fn set_http(cluster: &mut WireCluster, any: Any) {
    cluster
        .typed_extension_protocol_options
        .insert(HTTP.to_owned(), any);
}

fn balancers(types: &[&str]) -> Option<LoadBalancingPolicy> {
    let policy = |name: &&str| Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: String::new(),
            typed_config: Some(Any {
                type_url: format!(
                    "type.googleapis.com/envoy.extensions.load_balancing_policies.{name}"
                ),
                value: vec![],
            }),
        }),
    };
    Some(LoadBalancingPolicy {
        policies: types.iter().map(policy).collect(),
    })
}

fn thresholds(cluster: &mut WireCluster) -> &mut Thresholds {
    &mut cluster.circuit_breakers.as_mut().unwrap().thresholds[0]
}

fn outlier(cluster: &mut WireCluster) -> &mut OutlierDetection {
    cluster.outlier_detection.as_mut().unwrap()
}

fn seconds(seconds: i64) -> Option<WireDuration> {
    Some(WireDuration { seconds, nanos: 0 })
}

fn spec(change: impl FnOnce(&mut WireCluster)) -> Arc<ClusterSpec> {
    let mut cluster = good();
    change(&mut cluster);
    let Piece::Cluster(spec) = accepted(&cluster).piece else {
        panic!("it is a cluster");
    };
    spec
}

const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
/// Ten years, the longest duration.
const SECONDS_MAX: i64 = 10 * 366 * 86_400;

#[test]
fn a_cluster_that_would_be_dialled_otherwise_is_refused() {
    check_refused(
        &good(),
        |cluster| cluster,
        "",
        &[
            ("name", |c| c.name.clear()),
            ("type", |c| c.cluster_discovery_type = None),
            ("type", |c| {
                let strict = DiscoveryType::StrictDns.into();
                c.cluster_discovery_type = Some(ClusterDiscoveryType::Type(strict));
            }),
            ("type", |c| {
                let custom = ClusterDiscoveryType::ClusterType(Default::default());
                c.cluster_discovery_type = Some(custom);
            }),
            ("transport_socket", |c| {
                c.transport_socket = Some(Default::default());
            }),
            ("transport_socket_matcher", |c| {
                c.transport_socket_matcher = Some(Default::default());
            }),
            ("transport_socket_matches[0].match", |c| {
                c.transport_socket_matches[0].r#match = Some(fields("heddle", "MTLS"));
            }),
            ("transport_socket_matches[0].match", |c| {
                c.transport_socket_matches[0].r#match = Some(fields("other", "mtls"));
            }),
            ("transport_socket_matches[0].match", |c| {
                let criteria = c.transport_socket_matches[0].r#match.as_mut().unwrap();
                criteria.fields.insert("more".to_owned(), word("x"));
            }),
            ("transport_socket_matches[1].match", |c| {
                c.transport_socket_matches[1] = c.transport_socket_matches[0].clone();
            }),
            ("transport_socket_matches[0].match", |c| {
                c.transport_socket_matches.swap(0, 1);
            }),
            ("connect_timeout", |c| c.connect_timeout = seconds(-1)),
            ("connect_timeout", |c| {
                c.connect_timeout = seconds(SECONDS_MAX + 1);
            }),
            ("connect_timeout", |c| {
                let nanos = 1_000_000_000;
                c.connect_timeout = Some(WireDuration { seconds: 1, nanos });
            }),
            ("connect_timeout", |c| {
                c.connect_timeout = Some(WireDuration {
                    seconds: 1,
                    nanos: -1,
                });
            }),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per field")]
fn a_policy_outside_its_bounds_is_refused() {
    check_refused(
        &good(),
        |cluster| cluster,
        "",
        &[
            ("lb_policy", |c| c.lb_policy = LbPolicy::RingHash.into()),
            ("lb_policy", |c| c.lb_policy = LbPolicy::Maglev.into()),
            ("lb_policy", |c| {
                c.lb_policy = LbPolicy::ClusterProvided.into();
            }),
            ("lb_policy", |c| {
                c.lb_policy = LbPolicy::LoadBalancingPolicyConfig.into();
            }),
            ("lb_policy", |c| c.lb_policy = 99),
            ("load_balancing_policy", |c| {
                c.load_balancing_policy = balancers(&[]);
            }),
            ("load_balancing_policy", |c| {
                c.load_balancing_policy = balancers(&["ring_hash.v3.RingHash"]);
            }),
            ("circuit_breakers.thresholds[0].max_connections", |c| {
                thresholds(c).max_connections = u32_value(0);
            }),
            ("circuit_breakers.thresholds[0].max_pending_requests", |c| {
                thresholds(c).max_pending_requests = u32_value(0);
            }),
            ("circuit_breakers.thresholds[0].max_requests", |c| {
                thresholds(c).max_requests = u32_value(0);
            }),
            ("circuit_breakers.thresholds[0].max_retries", |c| {
                thresholds(c).max_retries = u32_value(0);
            }),
            ("outlier_detection.consecutive_5xx", |c| {
                outlier(c).consecutive_5xx = u32_value(0);
            }),
            ("outlier_detection.consecutive_gateway_failure", |c| {
                outlier(c).enforcing_consecutive_5xx = u32_value(0);
                outlier(c).enforcing_consecutive_gateway_failure = u32_value(100);
                outlier(c).consecutive_gateway_failure = u32_value(0);
            }),
            ("outlier_detection.enforcing_consecutive_5xx", |c| {
                outlier(c).enforcing_consecutive_5xx = u32_value(50);
            }),
            (
                "outlier_detection.enforcing_consecutive_gateway_failure",
                |c| {
                    outlier(c).enforcing_consecutive_gateway_failure = u32_value(1);
                },
            ),
            ("outlier_detection", |c| {
                outlier(c).enforcing_consecutive_gateway_failure = u32_value(100);
            }),
            ("outlier_detection.interval", |c| {
                outlier(c).interval = seconds(-1);
            }),
            ("outlier_detection.base_ejection_time", |c| {
                outlier(c).base_ejection_time = seconds(-1);
            }),
            ("outlier_detection.max_ejection_time", |c| {
                outlier(c).max_ejection_time = seconds(-1);
            }),
            ("outlier_detection.max_ejection_percent", |c| {
                outlier(c).max_ejection_percent = u32_value(101);
            }),
            (
                "metadata.typed_filter_metadata.heddle.v1.min_health_percent",
                |c| {
                    let min_health_percent = 101;
                    let message = ClusterPolicy { min_health_percent };
                    c.metadata = policy(pack_own("ClusterPolicy", &message));
                },
            ),
            ("metadata.typed_filter_metadata.heddle.v1", |c| {
                c.metadata = policy(pack_own("EndpointPolicy", &ClusterPolicy::default()));
            }),
            ("metadata.typed_filter_metadata.heddle.v1", |c| {
                let mut any = pack_own("ClusterPolicy", &ClusterPolicy::default());
                any.value = vec![0xff];
                c.metadata = policy(any);
            }),
            (
                "typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                |c| set_http(c, Any::default()),
            ),
            (
                "typed_extension_protocol_options.envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                |c| {
                    let http3 = ProtocolConfig::Http3ProtocolOptions(Default::default());
                    set_http(c, pack(&options(http3)));
                },
            ),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per field")]
fn what_a_cluster_has_beyond_the_subset_is_counted() {
    check_ignored(
        &good(),
        |cluster| cluster,
        &[
            ("alt_stat_name", |c| c.alt_stat_name = "x".to_owned()),
            ("load_assignment", |c| {
                c.load_assignment = Some(Default::default());
            }),
            ("health_checks", |c| {
                c.health_checks = vec![Default::default()];
            }),
            ("max_requests_per_connection", |c| {
                c.max_requests_per_connection = u32_value(1);
            }),
            ("http2_protocol_options", |c| {
                c.http2_protocol_options = Some(Default::default());
            }),
            ("common_lb_config", |c| {
                c.common_lb_config = Some(Default::default());
            }),
            ("filters", |c| c.filters = vec![Default::default()]),
            ("per_host_thresholds", |c| {
                let breakers = c.circuit_breakers.as_mut().unwrap();
                breakers.per_host_thresholds = vec![Thresholds::default()];
            }),
            ("thresholds of another priority", |c| {
                let breakers = c.circuit_breakers.as_mut().unwrap();
                let (priority, max_requests) = (1, u32_value(1));
                breakers.thresholds.push(Thresholds {
                    priority,
                    max_requests,
                    ..Default::default()
                });
            }),
            ("retry_budget", |c| {
                thresholds(c).retry_budget = Some(Default::default());
            }),
            ("max_connection_pools", |c| {
                thresholds(c).max_connection_pools = u32_value(1);
            }),
            ("track_remaining", |c| thresholds(c).track_remaining = true),
            ("success_rate_minimum_hosts", |c| {
                outlier(c).success_rate_minimum_hosts = u32_value(1);
            }),
            ("enforcing_success_rate", |c| {
                outlier(c).enforcing_success_rate = u32_value(100);
            }),
            ("enforcing_failure_percentage", |c| {
                outlier(c).enforcing_failure_percentage = u32_value(1);
            }),
            ("split_external_local_origin_errors", |c| {
                outlier(c).split_external_local_origin_errors = true;
            }),
            ("options of another protocol", |c| {
                let options = &mut c.typed_extension_protocol_options;
                options.insert(
                    "envoy.filters.network.thrift_proxy".to_owned(),
                    Any::default(),
                );
            }),
            ("http_filters", |c| {
                let mut options = options(http2());
                options.http_filters = vec![Default::default()];
                set_http(c, pack(&options));
            }),
            ("a field of HTTP options that no version has", |c| {
                set_http(c, with_unknown(pack(&options(http2()))));
            }),
            ("a field of our metadata that no version has", |c| {
                let any = pack_own("ClusterPolicy", &ClusterPolicy::default());
                c.metadata = policy(with_unknown(any));
            }),
            ("metadata of others", |c| {
                let metadata = c.metadata.as_mut().unwrap();
                metadata
                    .filter_metadata
                    .insert("x".to_owned(), Struct::default());
            }),
        ],
    );
    let mut bytes = good().encode_to_vec();
    bytes.extend(UNKNOWN);
    let decoded = decode(ResourceType::Cluster.type_url(), &bytes).unwrap();
    assert_eq!(decoded.ignored, 1);
}

#[test]
fn limits_count_from_one_and_the_largest_is_none() {
    let none = spec(|c| c.circuit_breakers = None);
    assert_eq!(none.limits, Limits::UNLIMITED);
    let limits = spec(|c| {
        thresholds(c).max_connections = u32_value(1);
        thresholds(c).max_pending_requests = u32_value(2);
        thresholds(c).max_requests = u32_value(3);
        thresholds(c).max_retries = u32_value(u32::MAX);
        let mut options = options(http2());
        options.common_http_protocol_options = Some(Common {
            max_requests_per_connection: u32_value(5),
            ..Default::default()
        });
        set_http(c, pack(&options));
    })
    .limits;
    let read = [
        limits.connections_max,
        limits.pending_max,
        limits.requests_max,
        limits.retries_max,
        limits.requests_per_connection_max,
    ];
    assert_eq!(
        read.map(|limit| limit.map_or(0, std::num::NonZeroU32::get)),
        [1, 2, 3, 0, 5]
    );
}

#[test]
fn a_balancer_is_the_first_that_is_known() {
    for (types, balancing) in [
        (
            &["least_request.v3.LeastRequest"][..],
            Balancing::LeastRequest,
        ),
        (&["round_robin.v3.RoundRobin"], Balancing::RoundRobin),
        (&["random.v3.Random"], Balancing::Random),
        (
            &[
                "wrr_locality.v3.WrrLocality",
                "random.v3.Random",
                "round_robin.v3.RoundRobin",
            ],
            Balancing::Random,
        ),
    ] {
        let read = spec(|c| c.load_balancing_policy = balancers(types));
        assert_eq!(read.balancing, balancing, "{types:?}");
    }
    for (policy, balancing) in [
        (LbPolicy::RoundRobin, Balancing::RoundRobin),
        (LbPolicy::LeastRequest, Balancing::LeastRequest),
        (LbPolicy::Random, Balancing::Random),
    ] {
        assert_eq!(spec(|c| c.lb_policy = policy.into()).balancing, balancing);
    }
}

#[test]
fn ejection_is_on_one_kind_of_failure() {
    let policy = spec(|_| {}).outlier.unwrap();
    assert_eq!(
        (
            policy.counts,
            policy.failures_in_a_row.get(),
            policy.max_ejection_percent
        ),
        (FailureKind::ServerErrors, 5, 10)
    );
    let policy = spec(|c| {
        outlier(c).enforcing_consecutive_5xx = u32_value(0);
        outlier(c).enforcing_consecutive_gateway_failure = u32_value(100);
        outlier(c).consecutive_gateway_failure = u32_value(2);
        // Never shorter than one ejection.
        outlier(c).base_ejection_time = seconds(400);
    });
    let policy = policy.outlier.unwrap();
    assert_eq!(
        (
            policy.counts,
            policy.failures_in_a_row.get(),
            policy.max_ejection_time
        ),
        (FailureKind::GatewayErrors, 2, Duration::from_secs(400))
    );
    let off = spec(|c| outlier(c).enforcing_consecutive_5xx = u32_value(0));
    assert_eq!(off.outlier, None);
}

#[test]
fn how_endpoints_are_dialled() {
    let of = |spec: &ClusterSpec| (spec.identities.is_some(), spec.allows_plain);
    assert_eq!(of(&spec(|_| {})), (true, true));
    let meshed = spec(|c| c.transport_socket_matches.truncate(1));
    assert_eq!(of(&meshed), (true, false));
    let plain = spec(|c| c.transport_socket_matches.clear());
    assert_eq!(of(&plain), (false, true));
    let unmatched = spec(|c| {
        c.transport_socket_matches.remove(0);
    });
    assert_eq!(of(&unmatched), (false, true));
    for (timeout, read) in [
        (None, CONNECT_TIMEOUT),
        (seconds(0), CONNECT_TIMEOUT),
        (seconds(1), Duration::from_secs(1)),
        (
            seconds(SECONDS_MAX),
            Duration::from_secs(SECONDS_MAX.unsigned_abs()),
        ),
    ] {
        assert_eq!(spec(|c| c.connect_timeout = timeout).connect_timeout, read);
    }
    assert_eq!(spec(|_| {}).protocol, ClusterProtocol::Http2);
    let as_client = spec(|c| c.typed_extension_protocol_options.clear());
    assert_eq!(as_client.protocol, ClusterProtocol::AsClient);
    let unnamed = spec(|c| c.eds_cluster_config = None);
    assert_eq!(&*unnamed.endpoints, "echo:80");
}
