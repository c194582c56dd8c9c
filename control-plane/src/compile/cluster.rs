//! CDS: endpoints by policy; the transport socket is the flavour's.

use std::{
    collections::{BTreeSet, HashMap},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use heddle_policy::{
    outlier::{FailureKind, OutlierPolicy},
    snapshot::{
        Balancing, CONNECT_TIMEOUT,
        xds::{PASSTHROUGH, ResourceName, ResourceType},
    },
    spiffe::SpiffeId,
};
use heddle_proto::{
    v1::ClusterPolicy,
    xds::{
        envoy::{
            config::{
                cluster::v3::{
                    CircuitBreakers, Cluster, LoadBalancingPolicy, OutlierDetection,
                    circuit_breakers::Thresholds,
                    cluster::{
                        ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig,
                        LbPolicy, TransportSocketMatch,
                    },
                    load_balancing_policy::Policy,
                },
                core::v3::{Http2ProtocolOptions, HttpProtocolOptions as CommonOptions},
                endpoint::v3::ClusterLoadAssignment,
            },
            extensions::{
                load_balancing_policies::{
                    least_request::v3::LeastRequest, random::v3::Random,
                    round_robin::v3::RoundRobin,
                },
                upstreams::http::v3::{
                    HttpProtocolOptions,
                    http_protocol_options::{
                        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                        explicit_http_config::ProtocolConfig,
                    },
                },
            },
            r#type::v3::Percent,
        },
        google::protobuf::{Any, Struct},
    },
};
use prost::Message;

use super::{
    Draft, Flavour, Node,
    address::Target,
    endpoints::{MESHED_ONLY, PLAIN_ONLY},
    tls, wire,
};
use crate::{
    model::{ConnectionPool, HttpPool, PortProtocol, TcpPool, TrafficPolicy},
    world::{Instance, InstanceTransport, Topic, World},
};

pub(super) fn compile(
    world: &World,
    node: &Node,
    name: &Arc<str>,
    topics: &mut BTreeSet<Topic>,
) -> Option<Draft> {
    let of_envoy = match &**name {
        PASSTHROUGH => Some(passthrough(&node.flavour)?),
        NOWHERE => Some(nowhere(&node.flavour)?),
        _ => None,
    };
    if let Some(message) = of_envoy {
        return Some(Draft {
            value: message.encode_to_vec(),
            dependents: Vec::new(),
        });
    }
    let target = Target::parse(world, name, topics)?;
    let facts = Facts::of(world, &target);
    let flavour = &node.flavour;
    let endpoints = endpoints_name(name, flavour, &facts);
    let policy = &facts.policy;
    let pool = policy.connection_pool.unwrap_or_default();
    let tcp = pool.tcp.unwrap_or_default();
    let mut message = Cluster {
        name: name.to_string(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(wire::ads()),
            service_name: endpoints.clone(),
        }),
        connect_timeout: wire::duration(tcp.connect_timeout.map_or(CONNECT_TIMEOUT, |t| t.0)),
        load_balancing_policy: Some(balancing(policy)),
        circuit_breakers: circuit_breakers(flavour, &pool),
        typed_extension_protocol_options: http_options(facts.protocol, &pool),
        ..Cluster::default()
    };
    if let Some(outlier) = &facts.outlier {
        message.outlier_detection = Some(outlier_detection(flavour, outlier));
        message.metadata = Some(wire::metadata(
            "ClusterPolicy",
            &ClusterPolicy {
                min_health_percent: outlier.min_health_percent,
            },
        ));
    }
    if let Flavour::Envoy { .. } = flavour {
        // Envoy would spread over unhealthy endpoints below half: we would rather say so.
        message.common_lb_config = Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..CommonLbConfig::default()
        });
    }
    transport(&mut message, flavour, &facts);
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: vec![ResourceName {
            kind: ResourceType::Endpoints,
            name: endpoints.into(),
        }],
    })
}

/// What a cluster is made from.
struct Facts {
    policy: TrafficPolicy,
    outlier: Option<OutlierPolicy>,
    /// Who may answer; empty: nobody with TLS.
    identities: Vec<SpiffeId>,
    allows_plain: bool,
    has_meshed: bool,
    has_plain: bool,
    protocol: Option<PortProtocol>,
    sni: String,
}

impl Facts {
    fn of(world: &World, target: &Target<'_>) -> Self {
        let instances = target.instances(world);
        let has_meshed = instances.iter().any(Instance::is_meshed);
        let has_plain = instances.iter().any(|instance| !instance.is_meshed());
        match target {
            Target::Instance { instance, ports } => Self {
                policy: TrafficPolicy::default(),
                // The only endpoint there is.
                outlier: None,
                identities: match &instance.transport {
                    InstanceTransport::Meshed(identities) => identities.clone(),
                    InstanceTransport::Plain => Vec::new(),
                },
                allows_plain: !instance.is_meshed(),
                has_meshed,
                has_plain,
                protocol: ports.first().and_then(|port| port.protocol),
                sni: instance.address.ip().to_string(),
            },
            Target::Service {
                host,
                service,
                port,
                subset,
            } => {
                let rule = world.catalog.rule(host.as_str()).map(|(_, rule)| rule);
                let policy = rule.map(|rule| rule.policy(*subset)).unwrap_or_default();
                let outlier = policy.outlier_detection.unwrap_or_default().policy();
                let identities: BTreeSet<_> = service.subject_alt_names.iter().cloned().collect();
                Self {
                    outlier,
                    allows_plain: policy.tls.is_none(),
                    identities: identities.into_iter().collect(),
                    has_meshed,
                    has_plain,
                    protocol: port.protocol,
                    sni: host.to_string(),
                    policy,
                }
            }
        }
    }

    /// gRPC speaks TLS to all endpoints of a cluster or to none. Plaintext only to plain ones that
    /// are there: when the last meshed one goes, the next may come.
    fn grpc_speaks_tls(&self) -> bool {
        let is_plain = self.has_plain && !self.has_meshed && self.allows_plain;
        !self.identities.is_empty() && !is_plain
    }
}

fn endpoints_name(name: &str, flavour: &Flavour, facts: &Facts) -> String {
    match flavour {
        Flavour::Grpc if !facts.has_plain || facts.identities.is_empty() => name.to_owned(),
        Flavour::Grpc if facts.grpc_speaks_tls() => format!("{name}{MESHED_ONLY}"),
        Flavour::Grpc => format!("{name}{PLAIN_ONLY}"),
        Flavour::Sidecar | Flavour::Envoy { .. } => name.to_owned(),
    }
}

fn transport(message: &mut Cluster, flavour: &Flavour, facts: &Facts) {
    let alpn: &[&str] = match facts.protocol {
        Some(PortProtocol::Http2 | PortProtocol::Grpc) => &["h2"],
        Some(PortProtocol::Http) => &["http/1.1"],
        // Undeclared: what Envoy is told wins over what it speaks, so it is told nothing.
        None | Some(PortProtocol::Https | PortProtocol::Tls | PortProtocol::Tcp) => &[],
    };
    let socket = || tls::upstream(flavour, &facts.identities, &facts.sni, alpn);
    match flavour {
        Flavour::Grpc => {
            message.transport_socket = facts.grpc_speaks_tls().then(socket);
        }
        Flavour::Sidecar | Flavour::Envoy { .. } => {
            if !facts.identities.is_empty() {
                message.transport_socket_matches.push(TransportSocketMatch {
                    name: "mtls".to_owned(),
                    r#match: Some(wire::meshed()),
                    transport_socket: Some(socket()),
                });
            }
            if facts.allows_plain {
                message.transport_socket_matches.push(TransportSocketMatch {
                    name: "plain".to_owned(),
                    r#match: Some(Struct::default()),
                    transport_socket: Some(tls::plain()),
                });
            }
        }
    }
}

/// Ends in `round_robin`, which every gRPC has.
fn balancing(policy: &TrafficPolicy) -> LoadBalancingPolicy {
    let chosen = policy
        .load_balancer
        .map(|balancer| balancer.simple.balancing());
    let first = match chosen.unwrap_or_default() {
        Balancing::LeastRequest => Some(wire::extension(
            "envoy.load_balancing_policies.least_request",
            &LeastRequest::default(),
        )),
        Balancing::Random => Some(wire::extension(
            "envoy.load_balancing_policies.random",
            &Random::default(),
        )),
        Balancing::RoundRobin => None,
    };
    let last = wire::extension(
        "envoy.load_balancing_policies.round_robin",
        &RoundRobin::default(),
    );
    let policies = first
        .into_iter()
        .chain([last])
        .map(|config| Policy {
            typed_extension_config: Some(config),
        })
        .collect();
    LoadBalancingPolicy { policies }
}

/// The sidecar has no limit that nobody asked for; the others have (1024, and 3 retries).
fn circuit_breakers(flavour: &Flavour, pool: &ConnectionPool) -> Option<CircuitBreakers> {
    let TcpPool {
        max_connections, ..
    } = pool.tcp.unwrap_or_default();
    let HttpPool {
        http1_max_pending_requests,
        http2_max_requests,
        max_retries,
        ..
    } = pool.http.unwrap_or_default();
    let limits = [
        max_connections,
        http1_max_pending_requests,
        http2_max_requests,
        max_retries,
    ];
    let [connections, pending, requests, retries] = match flavour {
        Flavour::Sidecar if limits == [None; 4] => return None,
        Flavour::Sidecar => limits.map(|limit| limit.and_then(|l| wire::u32_value(l.get()))),
        Flavour::Envoy { .. } | Flavour::Grpc => {
            limits.map(|limit| wire::u32_value(limit.map_or(u32::MAX, NonZeroU32::get)))
        }
    };
    Some(CircuitBreakers {
        thresholds: vec![Thresholds {
            max_connections: connections,
            max_pending_requests: pending,
            max_requests: requests,
            max_retries: retries,
            ..Thresholds::default()
        }],
        ..CircuitBreakers::default()
    })
}

fn outlier_detection(flavour: &Flavour, policy: &OutlierPolicy) -> OutlierDetection {
    let failures = wire::u32_value(policy.failures_in_a_row.get());
    let (server, gateway) = match policy.counts {
        FailureKind::ServerErrors => (100, 0),
        FailureKind::GatewayErrors => (0, 100),
    };
    let common = OutlierDetection {
        interval: wire::duration(policy.interval),
        base_ejection_time: wire::duration(policy.base_ejection_time),
        max_ejection_time: wire::duration(policy.max_ejection_time),
        max_ejection_percent: wire::u32_value(policy.max_ejection_percent),
        // On by default in Envoy, and nobody asked for it.
        enforcing_success_rate: wire::u32_value(0),
        ..OutlierDetection::default()
    };
    match flavour {
        // gRPC knows no failures in a row (gRFC A50): the nearest is a share of failures.
        Flavour::Grpc => OutlierDetection {
            failure_percentage_threshold: wire::u32_value(50),
            enforcing_failure_percentage: wire::u32_value(100),
            failure_percentage_minimum_hosts: wire::u32_value(2),
            failure_percentage_request_volume: failures,
            ..common
        },
        Flavour::Sidecar | Flavour::Envoy { .. } => OutlierDetection {
            consecutive_5xx: failures.filter(|_| server > 0),
            enforcing_consecutive_5xx: wire::u32_value(server),
            consecutive_gateway_failure: failures.filter(|_| gateway > 0),
            enforcing_consecutive_gateway_failure: wire::u32_value(gateway),
            ..common
        },
    }
}

/// What is spoken to endpoints; one map entry at most (see the version's rule).
fn http_options(protocol: Option<PortProtocol>, pool: &ConnectionPool) -> HashMap<String, Any> {
    let upstream = match protocol {
        Some(PortProtocol::Http2 | PortProtocol::Grpc) => {
            UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
                protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(
                    Http2ProtocolOptions::default(),
                )),
            })
        }
        Some(PortProtocol::Http) | None => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http2_protocol_options: Some(Http2ProtocolOptions::default()),
                ..UseDownstreamHttpConfig::default()
            })
        }
        Some(PortProtocol::Https | PortProtocol::Tls | PortProtocol::Tcp) => {
            return HashMap::new();
        }
    };
    let max = pool.http.and_then(|http| http.max_requests_per_connection);
    let options = HttpProtocolOptions {
        common_http_protocol_options: max.map(|max| CommonOptions {
            max_requests_per_connection: wire::u32_value(max.get()),
            ..CommonOptions::default()
        }),
        upstream_protocol_options: Some(upstream),
        ..HttpProtocolOptions::default()
    };
    HashMap::from([(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
        wire::pack(&options),
    )])
}

/// Envoy needs a cluster for the original destination; the sidecar knows the name.
fn passthrough(flavour: &Flavour) -> Option<Cluster> {
    match flavour {
        Flavour::Envoy { .. } => Some(Cluster {
            name: PASSTHROUGH.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(
                DiscoveryType::OriginalDst.into(),
            )),
            lb_policy: LbPolicy::ClusterProvided.into(),
            connect_timeout: wire::duration(Duration::from_secs(2)),
            circuit_breakers: circuit_breakers(flavour, &ConnectionPool::default()),
            typed_extension_protocol_options: http_options(None, &ConnectionPool::default()),
            ..Cluster::default()
        }),
        Flavour::Sidecar | Flavour::Grpc => None,
    }
}

/// Where Envoy sends what it must not pass on: nobody is there, so it closes the connection.
fn nowhere(flavour: &Flavour) -> Option<Cluster> {
    match flavour {
        Flavour::Envoy { .. } => Some(Cluster {
            name: NOWHERE.to_owned(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
            connect_timeout: wire::duration(CONNECT_TIMEOUT),
            load_assignment: Some(ClusterLoadAssignment {
                cluster_name: NOWHERE.to_owned(),
                ..ClusterLoadAssignment::default()
            }),
            ..Cluster::default()
        }),
        Flavour::Sidecar | Flavour::Grpc => None,
    }
}

/// Envoy's cluster for unknown destinations with `registry_only`.
pub(super) const NOWHERE: &str = "mesh/nowhere";
