//! `DestinationRule`: how the endpoints of a host are used, and its subsets.

use std::{num::NonZeroU32, time::Duration};

use heddle_policy::{
    outlier::{FailureKind, OutlierPolicy},
    snapshot::Balancing,
};
use serde::Serialize;

use super::{Host, Labels, Seconds};

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

/// Default `consecutiveGatewayErrors`.
const FAILURES_IN_A_ROW: u32 = 5;
/// Default `interval` and `baseEjectionTime`.
const EJECTION: Duration = Duration::from_secs(30);
/// Envoy's default `max_ejection_time`; Istio has no field for it.
const EJECTION_MAX: Duration = Duration::from_secs(300);
/// Default `maxEjectionPercent`.
const EJECTION_PERCENT_MAX: u32 = 50;
