//! `DestinationRule`: how the endpoints of a host are used, and its subsets.

use std::{num::NonZeroU32, time::Duration};

use heddle_policy::{
    outlier::{FailureKind, OutlierPolicy},
    snapshot::Balancing,
};
use serde::Serialize;

use super::{
    Host, Labels, Seconds,
    decode::{Decode, Decoder},
    values::{DnsLabel, Percent, Positive},
    workload_entry::LabelSet,
    yaml::Node,
};

/// How the endpoints of one host are used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRule {
    /// Not of another `DestinationRule`.
    pub host: Host,
    /// For all endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named groups of endpoints; names are unique.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
}

/// A named group of a host's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Unique in its rule.
    pub name: String,
    /// Labels its endpoints have. Empty: all endpoints.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Each part written here replaces that part of the rule's policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
}

/// How endpoints are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    /// How one of them is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// When one of them is set aside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// What the connections to them are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

/// `trafficPolicy.loadBalancer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoadBalancer {
    /// The algorithm.
    pub simple: SimpleBalancer,
}

/// `trafficPolicy.loadBalancer.simple`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SimpleBalancer {
    /// The older name of `LEAST_REQUEST`.
    LeastConn,
    /// Power of two choices on outstanding requests.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// Uniform.
    Random,
}

/// `trafficPolicy.connectionPool`. What is absent has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConnectionPool {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpPool>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPool>,
}

/// `connectionPool.tcp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpPool {
    /// Open connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<NonZeroU32>,
    /// Time for TCP and TLS together. `None`: 2 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<Seconds>,
}

/// `connectionPool.http`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpPool {
    /// Requests that wait for a connection or a stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http1_max_pending_requests: Option<NonZeroU32>,
    /// Requests in flight, HTTP/1.1 included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http2_max_requests: Option<NonZeroU32>,
    /// Requests after which a connection is recycled, gracefully.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<NonZeroU32>,
    /// Retries in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<NonZeroU32>,
}

/// `trafficPolicy.outlierDetection`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutlierDetection {
    /// 502, 503, 504, failed connections and timeouts in a row that eject. Zero: ejection is
    /// off. Excludes `consecutive_5xx_errors`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// The same, any 5xx.
    #[serde(
        rename = "consecutive5xxErrors",
        skip_serializing_if = "Option::is_none"
    )]
    pub consecutive_5xx_errors: Option<u32>,
    /// `None`: 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Seconds>,
    /// `None`: 30 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<Seconds>,
    /// 0 to 100. `None`: 50.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// 0 to 100. `None`: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_health_percent: Option<u32>,
}

/// `trafficPolicy.tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tls {
    /// The mode.
    pub mode: TlsMode,
}

/// `trafficPolicy.tls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    /// Mutual TLS only: endpoints without a sidecar are left out.
    IstioMutual,
}

impl DestinationRule {
    /// The subset of this name.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// The policy of a subset, or of all endpoints.
    pub fn policy(&self, subset: Option<&Subset>) -> TrafficPolicy {
        let base = self.traffic_policy.clone().unwrap_or_default();
        let Some(own) = subset.and_then(|subset| subset.traffic_policy.as_ref()) else {
            return base;
        };
        TrafficPolicy {
            load_balancer: own.load_balancer.or(base.load_balancer),
            connection_pool: own.connection_pool.or(base.connection_pool),
            outlier_detection: own.outlier_detection.or(base.outlier_detection),
            tls: own.tls.or(base.tls),
        }
    }
}

impl SimpleBalancer {
    /// What the sidecar calls it.
    pub fn balancing(self) -> Balancing {
        match self {
            Self::LeastConn | Self::LeastRequest => Balancing::LeastRequest,
            Self::RoundRobin => Balancing::RoundRobin,
            Self::Random => Balancing::Random,
        }
    }
}

impl OutlierDetection {
    /// With every default applied. `None`: ejection is off.
    pub fn policy(&self) -> Option<OutlierPolicy> {
        let (counts, failures) =
            match (self.consecutive_gateway_errors, self.consecutive_5xx_errors) {
                (Some(failures), _) => (FailureKind::GatewayErrors, failures),
                (None, Some(failures)) => (FailureKind::ServerErrors, failures),
                (None, None) => (FailureKind::GatewayErrors, FAILURES_IN_A_ROW),
            };
        let base_ejection_time = self.base_ejection_time.map_or(EJECTION, |time| time.0);
        Some(OutlierPolicy {
            failures_in_a_row: NonZeroU32::new(failures)?,
            counts,
            interval: self.interval.map_or(EJECTION, |time| time.0),
            base_ejection_time,
            max_ejection_time: base_ejection_time.max(EJECTION_MAX),
            max_ejection_percent: self.max_ejection_percent.unwrap_or(EJECTION_PERCENT_MAX),
            min_health_percent: self.min_health_percent.unwrap_or(0),
        })
    }
}

impl Decode for DestinationRule {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let host = fields.required(decoder, "host");
        let traffic_policy = fields.optional(decoder, "trafficPolicy");
        let subsets = fields.or_default::<UniqueSubsets>(decoder, "subsets");
        fields.close(decoder);
        Some(Self {
            host: host?,
            traffic_policy: traffic_policy?,
            subsets: subsets?.0,
        })
    }
}

#[derive(Default)]
struct UniqueSubsets(Vec<Subset>);

impl Decode for UniqueSubsets {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let subsets = Vec::<Subset>::decode(node, decoder)?;
        for (index, subset) in subsets.iter().enumerate() {
            if subsets[..index]
                .iter()
                .any(|other| other.name == subset.name)
            {
                let path = format!("[{index}].name");
                return decoder.within(format_args!("{path}"), |decoder| {
                    decoder.refuse(node.nearest(&path), "is the name of an earlier subset")
                });
            }
        }
        Some(Self(subsets))
    }
}

impl Decode for Subset {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let name = fields.required::<DnsLabel>(decoder, "name");
        let labels = fields.or_default::<LabelSet>(decoder, "labels");
        let traffic_policy = fields.optional(decoder, "trafficPolicy");
        fields.close(decoder);
        Some(Self {
            name: name?.0,
            labels: labels?.0,
            traffic_policy: traffic_policy?,
        })
    }
}

impl Decode for TrafficPolicy {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let load_balancer = fields.optional(decoder, "loadBalancer");
        let connection_pool = fields.optional(decoder, "connectionPool");
        let outlier_detection = fields.optional(decoder, "outlierDetection");
        let tls = fields.optional(decoder, "tls");
        fields.close(decoder);
        Some(Self {
            load_balancer: load_balancer?,
            connection_pool: connection_pool?,
            outlier_detection: outlier_detection?,
            tls: tls?,
        })
    }
}

impl Decode for LoadBalancer {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let simple = fields.required(decoder, "simple");
        fields.close(decoder);
        Some(Self { simple: simple? })
    }
}

impl Decode for SimpleBalancer {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.word(
            node,
            &[
                ("LEAST_CONN", Self::LeastConn),
                ("LEAST_REQUEST", Self::LeastRequest),
                ("ROUND_ROBIN", Self::RoundRobin),
                ("RANDOM", Self::Random),
            ],
        )
    }
}

impl Decode for ConnectionPool {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let tcp = fields.optional(decoder, "tcp");
        let http = fields.optional(decoder, "http");
        fields.close(decoder);
        Some(Self {
            tcp: tcp?,
            http: http?,
        })
    }
}

impl Decode for TcpPool {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let max_connections = fields.optional(decoder, "maxConnections");
        let connect_timeout = fields.optional::<Positive>(decoder, "connectTimeout");
        fields.close(decoder);
        Some(Self {
            max_connections: max_connections?,
            connect_timeout: connect_timeout?.map(|time| time.0),
        })
    }
}

impl Decode for HttpPool {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let http1_max_pending_requests = fields.optional(decoder, "http1MaxPendingRequests");
        let http2_max_requests = fields.optional(decoder, "http2MaxRequests");
        let max_requests_per_connection = fields.optional(decoder, "maxRequestsPerConnection");
        let max_retries = fields.optional(decoder, "maxRetries");
        fields.close(decoder);
        Some(Self {
            http1_max_pending_requests: http1_max_pending_requests?,
            http2_max_requests: http2_max_requests?,
            max_requests_per_connection: max_requests_per_connection?,
            max_retries: max_retries?,
        })
    }
}

impl Decode for OutlierDetection {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let consecutive_gateway_errors =
            fields.optional::<Count>(decoder, "consecutiveGatewayErrors");
        let consecutive_5xx_errors = fields.optional::<Count>(decoder, "consecutive5xxErrors");
        let interval = fields.optional::<Positive>(decoder, "interval");
        let base_ejection_time = fields.optional::<Positive>(decoder, "baseEjectionTime");
        let max_ejection_percent = fields.optional::<Percent>(decoder, "maxEjectionPercent");
        let min_health_percent = fields.optional::<Percent>(decoder, "minHealthPercent");
        fields.close(decoder);
        let detection = Self {
            consecutive_gateway_errors: consecutive_gateway_errors?.map(|count| count.0),
            consecutive_5xx_errors: consecutive_5xx_errors?.map(|count| count.0),
            interval: interval?.map(|time| time.0),
            base_ejection_time: base_ejection_time?.map(|time| time.0),
            max_ejection_percent: max_ejection_percent?.map(|percent| percent.0),
            min_health_percent: min_health_percent?.map(|percent| percent.0),
        };
        if detection.consecutive_gateway_errors.is_some()
            && detection.consecutive_5xx_errors.is_some()
        {
            return decoder.refuse(
                node,
                "has consecutiveGatewayErrors and consecutive5xxErrors; write one of them",
            );
        }
        Some(detection)
    }
}

struct Count(u32);

impl Decode for Count {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.number(node, 0, FAILURES_MAX).map(Self)
    }
}

impl Decode for Tls {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let mode = fields.required(decoder, "mode");
        fields.close(decoder);
        Some(Self { mode: mode? })
    }
}

impl Decode for TlsMode {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        match decoder.text(node)? {
            "DISABLE" | "SIMPLE" | "MUTUAL" => decoder.refuse(
                node,
                "only ISTIO_MUTUAL is implemented; whether an endpoint speaks mutual TLS is its own property",
            ),
            _ => decoder.word(node, &[("ISTIO_MUTUAL", Self::IstioMutual)]),
        }
    }
}

/// Largest `consecutiveGatewayErrors`.
const FAILURES_MAX: u32 = 1_000_000;

/// Default `consecutiveGatewayErrors`.
const FAILURES_IN_A_ROW: u32 = 5;
/// Default `interval` and `baseEjectionTime`.
const EJECTION: Duration = Duration::from_secs(30);
/// Envoy's default `max_ejection_time`; Istio has no field for it.
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Default `maxEjectionPercent`.
const EJECTION_PERCENT_MAX: u32 = 50;
