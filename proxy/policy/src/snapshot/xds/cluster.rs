//! CDS: how the endpoints of a cluster are used.

use std::{collections::HashSet, num::NonZeroU32, sync::Arc, time::Duration};

use heddle_proto::{
    v1::ClusterPolicy,
    xds::{
        envoy::{
            config::cluster::v3::{
                CircuitBreakers, Cluster as Wire, LoadBalancingPolicy, OutlierDetection,
                cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy, TransportSocketMatch},
            },
            extensions::upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
                },
            },
        },
        google::protobuf::{UInt32Value, value},
    },
};

use crate::{
    outlier::{FailureKind, OutlierPolicy},
    snapshot::{
        Balancing, CONNECT_TIMEOUT, Cluster, ClusterName, ClusterProtocol, Endpoint, Limits,
        Transport,
    },
    spiffe::SpiffeId,
};

use super::{
    Known, METADATA_KEY,
    endpoints::{EndpointSpec, Endpoints, ignore_others, read_policy},
    fault::{Faults, Path},
    route::duration,
    tls, unpack_known,
};

/// A cluster without its endpoints.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// Its name.
    pub name: ClusterName,
    /// Name of its EDS resource.
    pub endpoints: Arc<str>,
    /// Identities its meshed endpoints may have. `None`: it has no meshed endpoints.
    pub identities: Option<Arc<[SpiffeId]>>,
    /// Whether plaintext endpoints are allowed.
    pub allows_plain: bool,
    /// See [`Cluster::balancing`].
    pub balancing: Balancing,
    /// See [`Cluster::outlier`].
    pub outlier: Option<OutlierPolicy>,
    /// See [`Cluster::limits`].
    pub limits: Limits,
    /// See [`Cluster::connect_timeout`].
    pub connect_timeout: Duration,
    /// See [`Cluster::protocol`].
    pub protocol: ClusterProtocol,
}

impl ClusterSpec {
    /// The cluster with its endpoints. One that the cluster does not allow (an identity that is
    /// not listed, plaintext where only mutual TLS is) is left out: never dialled otherwise.
    pub fn join(&self, endpoints: &Endpoints) -> Cluster {
        let mut seen = HashSet::new();
        let joined = endpoints
            .list
            .iter()
            .filter_map(|spec| self.endpoint(spec))
            .filter(|endpoint| seen.insert(endpoint.key()))
            .map(Arc::new)
            .collect();
        Cluster {
            name: self.name.clone(),
            endpoints: joined,
            balancing: self.balancing,
            outlier: self.outlier,
            limits: self.limits,
            connect_timeout: self.connect_timeout,
            protocol: self.protocol,
        }
    }

    fn endpoint(&self, spec: &EndpointSpec) -> Option<Endpoint> {
        let transport = match (spec.is_meshed, &self.identities, &spec.identity) {
            (false, _, _) => self.allows_plain.then_some(Transport::Plain)?,
            (true, None, _) => return None,
            (true, Some(listed), None) => Transport::Mtls(Arc::clone(listed)),
            (true, Some(listed), Some(identity)) => {
                let is_listed = listed.contains(identity);
                Transport::Mtls(is_listed.then(|| Arc::from([identity.clone()]))?)
            }
        };
        Some(Endpoint {
            address: spec.address,
            transport,
            weight: spec.weight,
            health: spec.health,
        })
    }
}

pub(super) fn spec(
    message: &Wire,
    known: Known,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<ClusterSpec> {
    let rest = Wire {
        name: String::new(),
        cluster_discovery_type: None,
        eds_cluster_config: None,
        connect_timeout: None,
        lb_policy: 0,
        load_balancing_policy: None,
        circuit_breakers: None,
        outlier_detection: None,
        typed_extension_protocol_options: Default::default(),
        metadata: None,
        transport_socket_matches: Vec::new(),
        ..message.clone()
    };
    faults.ignore_if(known == Known::Some || rest != Wire::default());
    faults.refuse_set(&message.transport_socket, &at.field("transport_socket"));
    faults.refuse_set(
        &message.transport_socket_matcher,
        &at.field("transport_socket_matcher"),
    );
    if message.name.is_empty() {
        faults.refuse(&at.field("name"), "is empty");
    }
    let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds.into());
    if message.cluster_discovery_type != Some(eds) {
        faults.refuse(&at.field("type"), "is not EDS");
    }
    let service = message
        .eds_cluster_config
        .as_ref()
        .map(|eds| eds.service_name.as_str());
    let endpoints = service
        .filter(|name| !name.is_empty())
        .unwrap_or(&message.name);
    let sockets = sockets(
        &message.transport_socket_matches,
        &at.field("transport_socket_matches"),
        faults,
    );
    let (protocol, requests_per_connection_max) = protocol(message, at, faults);
    let limits = Limits {
        requests_per_connection_max,
        ..limits(
            message.circuit_breakers.as_ref(),
            &at.field("circuit_breakers"),
            faults,
        )
    };
    Some(ClusterSpec {
        name: ClusterName(message.name.as_str().into()),
        endpoints: endpoints.into(),
        identities: sockets.identities,
        allows_plain: sockets.allows_plain,
        balancing: balancing(message, at, faults),
        outlier: outlier(message, at, faults),
        limits,
        connect_timeout: duration(
            message.connect_timeout.as_ref(),
            &at.field("connect_timeout"),
            faults,
        )
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or(CONNECT_TIMEOUT),
        protocol,
    })
}

/// Which transports the matches of a cluster allow.
struct Sockets {
    identities: Option<Arc<[SpiffeId]>>,
    allows_plain: bool,
}

/// No matches at all is Envoy's plaintext.
fn sockets(matches: &[TransportSocketMatch], at: &Path<'_>, faults: &mut Faults) -> Sockets {
    let mut sockets = Sockets {
        identities: None,
        allows_plain: matches.is_empty(),
    };
    for (i, entry) in matches.iter().enumerate() {
        let at = at.index(i);
        let criteria = entry.r#match.as_ref().map(|m| &m.fields);
        let wants_mtls = match criteria {
            None => false,
            Some(fields) if fields.is_empty() => false,
            Some(fields) if fields.len() == 1 && is_mtls(fields.get("heddle")) => true,
            Some(_) => {
                faults.refuse(&at.field("match"), "is neither empty nor {heddle: mtls}");
                continue;
            }
        };
        let socket = entry.transport_socket.as_ref();
        if !wants_mtls {
            // The empty match takes every endpoint: what follows it would never be used.
            if i + 1 != matches.len() {
                faults.refuse(&at.field("match"), "is empty before the last entry");
            }
            tls::plain(socket, &at.field("transport_socket"), faults);
            sockets.allows_plain = true;
        } else if sockets.identities.is_some() {
            faults.refuse(&at.field("match"), "is there twice");
        } else {
            sockets.identities = tls::upstream(socket, &at.field("transport_socket"), faults);
        }
    }
    sockets
}

fn is_mtls(value: Option<&heddle_proto::xds::google::protobuf::Value>) -> bool {
    matches!(
        value.and_then(|v| v.kind.as_ref()),
        Some(value::Kind::StringValue(word)) if word == "mtls"
    )
}

fn balancing(message: &Wire, at: &Path<'_>, faults: &mut Faults) -> Balancing {
    let Some(LoadBalancingPolicy { policies }) = &message.load_balancing_policy else {
        return match LbPolicy::try_from(message.lb_policy) {
            Ok(LbPolicy::RoundRobin) => Balancing::RoundRobin,
            Ok(LbPolicy::LeastRequest) => Balancing::LeastRequest,
            Ok(LbPolicy::Random) => Balancing::Random,
            Ok(
                LbPolicy::RingHash
                | LbPolicy::Maglev
                | LbPolicy::ClusterProvided
                | LbPolicy::LoadBalancingPolicyConfig,
            )
            | Err(_) => {
                faults.refuse(&at.field("lb_policy"), "is not supported");
                Balancing::default()
            }
        };
    };
    let supported = policies
        .iter()
        .filter_map(|policy| {
            policy
                .typed_extension_config
                .as_ref()?
                .typed_config
                .as_ref()
        })
        .find_map(|any| match any.type_url.as_str() {
            LEAST_REQUEST => Some(Balancing::LeastRequest),
            ROUND_ROBIN => Some(Balancing::RoundRobin),
            RANDOM => Some(Balancing::Random),
            _ => None,
        });
    supported.unwrap_or_else(|| {
        faults.refuse(
            &at.field("load_balancing_policy"),
            "has no supported policy",
        );
        Balancing::default()
    })
}

fn limits(message: Option<&CircuitBreakers>, at: &Path<'_>, faults: &mut Faults) -> Limits {
    let Some(message) = message else {
        return Limits::UNLIMITED;
    };
    faults.ignore_if(
        !message.per_host_thresholds.is_empty()
            || message.thresholds.iter().any(|t| {
                t.priority != 0
                    || t.retry_budget.is_some()
                    || t.track_remaining
                    || t.max_connection_pools.is_some()
            }),
    );
    let at = at.field("thresholds");
    let Some((i, default)) = message
        .thresholds
        .iter()
        .enumerate()
        .find(|(_, t)| t.priority == 0)
    else {
        return Limits::UNLIMITED;
    };
    let at = at.index(i);
    let mut limit = |value: &Option<UInt32Value>, name| match value {
        None => None,
        // What an Envoy operator writes for "unlimited".
        Some(UInt32Value { value: u32::MAX }) => None,
        Some(UInt32Value { value }) => NonZeroU32::new(*value).or_else(|| {
            faults.refuse(&at.field(name), "is 0, which refuses everything");
            None
        }),
    };
    Limits {
        connections_max: limit(&default.max_connections, "max_connections"),
        pending_max: limit(&default.max_pending_requests, "max_pending_requests"),
        requests_max: limit(&default.max_requests, "max_requests"),
        retries_max: limit(&default.max_retries, "max_retries"),
        requests_per_connection_max: None,
    }
}

fn outlier(message: &Wire, at: &Path<'_>, faults: &mut Faults) -> Option<OutlierPolicy> {
    let min_health_percent = min_health_percent(message, at, faults);
    let outlier = message.outlier_detection.as_ref()?;
    let at = at.field("outlier_detection");
    let rest = OutlierDetection {
        consecutive_5xx: None,
        consecutive_gateway_failure: None,
        enforcing_consecutive_5xx: None,
        enforcing_consecutive_gateway_failure: None,
        interval: None,
        base_ejection_time: None,
        max_ejection_time: None,
        max_ejection_percent: None,
        // Statistics over endpoints: not among ours, and always off in what we emit.
        enforcing_success_rate: outlier.enforcing_success_rate.filter(is_not_zero),
        enforcing_failure_percentage: outlier.enforcing_failure_percentage.filter(is_not_zero),
        ..outlier.clone()
    };
    faults.ignore_if(rest != OutlierDetection::default());
    let (counts, failures_in_a_row) = ejects_on(outlier, &at, faults)?;
    let max_ejection_percent = outlier.max_ejection_percent.map_or(10, |v| v.value);
    if max_ejection_percent > 100 {
        faults.refuse(&at.field("max_ejection_percent"), "is above 100");
    }
    let mut time = |value, name, default| {
        duration(value, &at.field(name), faults).unwrap_or(Duration::from_secs(default))
    };
    let base_ejection_time = time(
        outlier.base_ejection_time.as_ref(),
        "base_ejection_time",
        30,
    );
    Some(OutlierPolicy {
        failures_in_a_row,
        counts,
        interval: time(outlier.interval.as_ref(), "interval", 10),
        base_ejection_time,
        max_ejection_time: time(outlier.max_ejection_time.as_ref(), "max_ejection_time", 300)
            .max(base_ejection_time),
        max_ejection_percent,
        min_health_percent,
    })
}

/// The one kind of failure that ejects, and how many in a row.
fn ejects_on(
    outlier: &OutlierDetection,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<(FailureKind, NonZeroU32)> {
    let mut enforced =
        |value: Option<UInt32Value>, default: u32, name| match value.map_or(default, |v| v.value) {
            0 => false,
            100 => true,
            _ => {
                faults.refuse(&at.field(name), "is neither 0 nor 100");
                false
            }
        };
    // Envoy's defaults: 5xx enforced, gateway failures only detected.
    let server = enforced(
        outlier.enforcing_consecutive_5xx,
        100,
        "enforcing_consecutive_5xx",
    );
    let gateway = enforced(
        outlier.enforcing_consecutive_gateway_failure,
        0,
        "enforcing_consecutive_gateway_failure",
    );
    let (counts, failures, name) = match (server, gateway) {
        (false, false) => return None,
        (true, false) => (
            FailureKind::ServerErrors,
            outlier.consecutive_5xx,
            "consecutive_5xx",
        ),
        (false, true) => (
            FailureKind::GatewayErrors,
            outlier.consecutive_gateway_failure,
            "consecutive_gateway_failure",
        ),
        (true, true) => {
            faults.refuse(
                at,
                "enforces both consecutive_5xx and consecutive_gateway_failure",
            );
            return None;
        }
    };
    let failures_in_a_row = NonZeroU32::new(failures.map_or(5, |v| v.value));
    if failures_in_a_row.is_none() {
        faults.refuse(&at.field(name), "is 0");
    }
    Some((counts, failures_in_a_row?))
}

fn is_not_zero(value: &UInt32Value) -> bool {
    value.value != 0
}

fn min_health_percent(message: &Wire, at: &Path<'_>, faults: &mut Faults) -> u32 {
    let metadata = message.metadata.as_ref();
    ignore_others(metadata, None, faults);
    let Some(any) = metadata.and_then(|m| m.typed_filter_metadata.get(METADATA_KEY)) else {
        return 0;
    };
    let at = at.field("metadata.typed_filter_metadata");
    let at = at.field(METADATA_KEY);
    let percent = read_policy::<ClusterPolicy>(any, "heddle.v1.ClusterPolicy", &at, faults)
        .map_or(0, |policy| policy.min_health_percent);
    if percent > 100 {
        faults.refuse(&at.field("min_health_percent"), "is above 100");
    }
    percent
}

fn protocol(
    message: &Wire,
    at: &Path<'_>,
    faults: &mut Faults,
) -> (ClusterProtocol, Option<NonZeroU32>) {
    let at = at.field("typed_extension_protocol_options");
    let options = &message.typed_extension_protocol_options;
    faults.ignore_if(options.keys().any(|key| key != HTTP_OPTIONS));
    let Some(any) = options.get(HTTP_OPTIONS) else {
        return (ClusterProtocol::AsClient, None);
    };
    let unpacked = unpack_known::<HttpProtocolOptions>(any, &at.field(HTTP_OPTIONS), faults);
    let Some((options, known)) = unpacked else {
        return (ClusterProtocol::AsClient, None);
    };
    let rest = HttpProtocolOptions {
        common_http_protocol_options: None,
        upstream_protocol_options: None,
        ..options.clone()
    };
    faults.ignore_if(known == Known::Some || rest != HttpProtocolOptions::default());
    let protocol = match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => ClusterProtocol::Http2,
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => ClusterProtocol::AsClient,
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    faults.refuse(&at.field(HTTP_OPTIONS), "asks for HTTP/3");
                    ClusterProtocol::AsClient
                }
            }
        }
        Some(
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)
            | UpstreamProtocolOptions::AutoConfig(_),
        )
        | None => ClusterProtocol::AsClient,
    };
    let max = options
        .common_http_protocol_options
        .and_then(|common| common.max_requests_per_connection)
        // Envoy: 0 is unlimited.
        .and_then(|max| NonZeroU32::new(max.value));
    (protocol, max)
}

const LEAST_REQUEST: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest";
const ROUND_ROBIN: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin";
const RANDOM: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.random.v3.Random";
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
