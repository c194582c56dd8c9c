//! `VirtualService`: how requests and connections to a host are routed.

use std::{collections::BTreeMap, num::NonZeroU16};

use serde::{Serialize, Serializer};

use super::{Host, Seconds};

/// Routes of its hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualService {
    /// At least one; none of them belongs to another `VirtualService`.
    pub hosts: Vec<Host>,
    /// For HTTP ports; the first that matches applies, none that matches is a 404.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// For opaque ports; at most one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRoute>,
}

/// One rule for requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpRoute {
    /// Unique in its `VirtualService`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any of them; empty matches every request.
    #[serde(rename = "match", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpMatch>,
    /// At least one; weights sum to 100.
    pub route: Vec<WeightedDestination>,
    /// Whole-request deadline, retries included. `None` and zero: only the caller's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Seconds>,
    /// `None`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
}

/// All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HttpMatch {
    /// For people; nothing refers to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Condition on the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<StringMatch>,
    /// Conditions by header name, lower case; never a pseudo-header.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, StringMatch>,
    /// Condition on the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// Condition on the authority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
}

/// Condition on a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StringMatch {
    /// Equal.
    Exact(String),
    /// Begins with.
    Prefix(String),
    /// The whole text, by a linear-time expression that compiles.
    Regex(String),
    /// `{}`: the header is there. Only of headers.
    Present,
}

/// A destination and its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedDestination {
    /// Where to.
    pub destination: Destination,
    /// Percent.
    pub weight: u32,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Destination {
    /// A host of a `ServiceEntry`.
    pub host: Host,
    /// A subset of the host's `DestinationRule`. `None`: all endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// A port of the service. `None`: the one that was dialled, or the service's only one.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "port")]
    pub port: Option<NonZeroU16>,
}

/// When an attempt is repeated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Retries after the first attempt. Zero: none.
    pub attempts: u32,
    /// `None`: only the whole deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<Seconds>,
    /// Empty: [`RetryCondition::DEFAULT`].
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "words")]
    pub retry_on: Vec<RetryCondition>,
}

/// A word of `retryOn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryCondition {
    /// `5xx`.
    ServerError,
    /// `gateway-error`.
    GatewayError,
    /// `reset`.
    Reset,
    /// `connect-failure`.
    ConnectFailure,
    /// `refused-stream`.
    RefusedStream,
    /// `retriable-4xx`.
    Retriable4xx,
    /// gRPC `cancelled`.
    Cancelled,
    /// gRPC `deadline-exceeded`.
    DeadlineExceeded,
    /// gRPC `internal`.
    Internal,
    /// gRPC `resource-exhausted`.
    ResourceExhausted,
    /// gRPC `unavailable`.
    Unavailable,
}

/// One rule for connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpRoute {
    /// At least one; weights sum to 100.
    pub route: Vec<WeightedDestination>,
}

impl Retries {
    /// What is retried.
    pub fn conditions(&self) -> &[RetryCondition] {
        if self.retry_on.is_empty() {
            &RetryCondition::DEFAULT
        } else {
            &self.retry_on
        }
    }
}

impl RetryCondition {
    /// What is retried where a route has `retries` but no `retryOn`: Istio's default.
    pub const DEFAULT: [Self; 4] = [
        Self::ConnectFailure,
        Self::RefusedStream,
        Self::Unavailable,
        Self::Cancelled,
    ];

    /// Every word.
    pub const ALL: [Self; 11] = [
        Self::ServerError,
        Self::GatewayError,
        Self::Reset,
        Self::ConnectFailure,
        Self::RefusedStream,
        Self::Retriable4xx,
        Self::Cancelled,
        Self::DeadlineExceeded,
        Self::Internal,
        Self::ResourceExhausted,
        Self::Unavailable,
    ];

    /// As Envoy and Istio write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerError => "5xx",
            Self::GatewayError => "gateway-error",
            Self::Reset => "reset",
            Self::ConnectFailure => "connect-failure",
            Self::RefusedStream => "refused-stream",
            Self::Retriable4xx => "retriable-4xx",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline-exceeded",
            Self::Internal => "internal",
            Self::ResourceExhausted => "resource-exhausted",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Serialize for StringMatch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Exact(text) => serializer.collect_map([("exact", text)]),
            Self::Prefix(text) => serializer.collect_map([("prefix", text)]),
            Self::Regex(text) => serializer.collect_map([("regex", text)]),
            Self::Present => serializer.collect_map([("", ""); 0]),
        }
    }
}

fn port<S: Serializer>(port: &Option<NonZeroU16>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(port.iter().map(|number| ("number", number)))
}

fn words<S: Serializer>(words: &[RetryCondition], serializer: S) -> Result<S::Ok, S::Error> {
    let words: Vec<_> = words.iter().map(|word| word.as_str()).collect();
    serializer.serialize_str(&words.join(","))
}
