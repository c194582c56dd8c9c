//! `VirtualService`: how requests and connections to a host are routed.

use std::{collections::BTreeMap, num::NonZeroU16};

use regex::RegexBuilder;
use serde::{Serialize, Serializer};

use super::{
    Host, Seconds,
    decode::{Decode, Decoder, shown},
    values::{Percent, Positive},
    yaml::{Node, Value},
};

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

    /// The condition of this name.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == word)
    }

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

impl Decode for VirtualService {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let hosts = fields.required::<Vec<Host>>(decoder, "hosts");
        let http = fields.or_default::<Vec<HttpRoute>>(decoder, "http");
        let tcp = fields.or_default::<Vec<TcpRoute>>(decoder, "tcp");
        fields.close(decoder);
        let (hosts, http, tcp) = (hosts?, http?, tcp?);
        if hosts.is_empty() {
            return decoder.refuse(node.nearest("hosts"), "needs at least one host");
        }
        if http.is_empty() && tcp.is_empty() {
            return decoder.refuse(node, "needs http or tcp routes");
        }
        if tcp.len() > 1 {
            return decoder.refuse(
                node.nearest("tcp[1]"),
                "only the first tcp route could ever match: tcp matches are not implemented",
            );
        }
        let named = |name| http.iter().position(|route: &HttpRoute| route.name == name);
        for (index, route) in http.iter().enumerate() {
            if route.name.is_some() && named(route.name.clone()) != Some(index) {
                let path = format!("http[{index}].name");
                return decoder.within(format_args!(".{path}"), |decoder| {
                    decoder.refuse(node.nearest(&path), "is the name of an earlier route")
                });
            }
        }
        Some(Self { hosts, http, tcp })
    }
}

impl Decode for HttpRoute {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let name = fields.optional(decoder, "name");
        let matches = fields.or_default(decoder, "match");
        let route = fields.required::<Split>(decoder, "route");
        let timeout = fields.optional(decoder, "timeout");
        let retries = fields.optional(decoder, "retries");
        fields.close(decoder);
        Some(Self {
            name: name?,
            matches: matches?,
            route: route?.0,
            timeout: timeout?,
            retries: retries?,
        })
    }
}

impl Decode for TcpRoute {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let route = fields.required::<Split>(decoder, "route");
        fields.close(decoder);
        Some(Self { route: route?.0 })
    }
}

/// Destinations whose weights sum to 100. A single one needs no weight.
struct Split(Vec<WeightedDestination>);

impl Decode for Split {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let parts = decoder.items(node, |node, decoder| {
            let mut fields = decoder.fields(node)?;
            let destination = fields.required::<Destination>(decoder, "destination");
            let weight = fields.optional::<Percent>(decoder, "weight");
            fields.close(decoder);
            Some((destination?, weight?.map(|percent| percent.0)))
        })?;
        let single = parts.len() == 1;
        let route: Vec<_> = parts
            .into_iter()
            .map(|(destination, weight)| WeightedDestination {
                destination,
                weight: weight.unwrap_or(if single { 100 } else { 0 }),
            })
            .collect();
        let sum: u32 = route.iter().map(|part| part.weight).sum();
        for (index, part) in route.iter().enumerate() {
            let same = |other: &WeightedDestination| other.destination == part.destination;
            if route[..index].iter().any(same) {
                return decoder.refuse(
                    node.nearest(&format!("[{index}]")),
                    format!("repeats the destination of element {index}; add the weights"),
                );
            }
        }
        match sum {
            100 => Some(Self(route)),
            _ if route.is_empty() => decoder.refuse(node, "needs at least one destination"),
            sum => decoder.refuse(node, format!("weights sum to {sum}, not to 100")),
        }
    }
}

impl Decode for Destination {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let host = fields.required(decoder, "host");
        let subset = fields.optional(decoder, "subset");
        let port = fields.optional::<PortSelector>(decoder, "port");
        fields.close(decoder);
        Some(Self {
            host: host?,
            subset: subset?,
            port: port?.map(|port| port.0),
        })
    }
}

struct PortSelector(NonZeroU16);

impl Decode for PortSelector {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let number = fields.required(decoder, "number");
        fields.close(decoder);
        number.map(Self)
    }
}

impl Decode for HttpMatch {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let name = fields.optional(decoder, "name");
        let uri = fields.optional(decoder, "uri");
        let headers = fields.or_default::<HeaderMatches>(decoder, "headers");
        let method = fields.optional(decoder, "method");
        let authority = fields.optional::<StringMatch>(decoder, "authority");
        fields.close(decoder);
        Some(Self {
            name: name?,
            uri: uri?,
            headers: headers?.0,
            method: method?,
            // It is compared in lower case.
            authority: authority?.map(StringMatch::in_lower_case),
        })
    }
}

#[derive(Default)]
struct HeaderMatches(BTreeMap<String, StringMatch>);

impl Decode for HeaderMatches {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let matches = decoder.entries(node, |field, decoder| {
            let name = header_name(&field.name);
            if name.is_none() {
                decoder.fault(field.at, "is not the name of a header");
            }
            let is_empty = matches!(&field.node.value, Value::Map(fields) if fields.is_empty());
            let value = if is_empty {
                Some(StringMatch::Present)
            } else {
                StringMatch::decode(&field.node, decoder)
            };
            Some((name?, value?))
        });
        matches.map(Self)
    }
}

impl StringMatch {
    fn in_lower_case(self) -> Self {
        match self {
            Self::Exact(text) => Self::Exact(text.to_ascii_lowercase()),
            Self::Prefix(text) => Self::Prefix(text.to_ascii_lowercase()),
            Self::Regex(_) | Self::Present => self,
        }
    }
}

impl Decode for StringMatch {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let exact = fields.optional::<String>(decoder, "exact");
        let prefix = fields.optional::<String>(decoder, "prefix");
        let regex = fields.optional::<Expression>(decoder, "regex");
        fields.close(decoder);
        match (exact?, prefix?, regex?) {
            (Some(text), None, None) => Some(Self::Exact(text)),
            (None, Some(text), None) => Some(Self::Prefix(text)),
            (None, None, Some(Expression(text))) => Some(Self::Regex(text)),
            _ => decoder.refuse(node, "must have one of exact, prefix, regex"),
        }
    }
}

struct Expression(String);

impl Decode for Expression {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = String::decode(node, decoder)?;
        // Anchored, as the sidecar compiles it: the whole text must match.
        let whole = format!("^(?:{text})$");
        match RegexBuilder::new(&whole)
            .size_limit(REGEX_BYTES_MAX)
            .build()
        {
            Ok(_) => Some(Self(text)),
            Err(regex::Error::CompiledTooBig(_)) => {
                decoder.refuse(node, "is too large an expression")
            }
            Err(_) => {
                let message = format!("`{}` is not an expression of RE2", shown(&text));
                decoder.refuse(node, message)
            }
        }
    }
}

impl Decode for Retries {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let attempts = fields.required::<Attempts>(decoder, "attempts");
        let per_try_timeout = fields.optional::<Positive>(decoder, "perTryTimeout");
        let retry_on = fields.or_default::<RetryWords>(decoder, "retryOn");
        fields.close(decoder);
        Some(Self {
            attempts: attempts?.0,
            per_try_timeout: per_try_timeout?.map(|timeout| timeout.0),
            retry_on: retry_on?.0,
        })
    }
}

struct Attempts(u32);

impl Decode for Attempts {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.number(node, 0, ATTEMPTS_MAX).map(Self)
    }
}

#[derive(Default)]
struct RetryWords(Vec<RetryCondition>);

impl Decode for RetryWords {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?.to_owned();
        let mut words = Vec::new();
        for word in text.split(',').map(str::trim) {
            let Some(condition) = RetryCondition::parse(word) else {
                let known = RetryCondition::ALL.map(RetryCondition::as_str).join(", ");
                let message = format!("`{}` must be one of {known}", shown(word));
                return decoder.refuse(node, message);
            };
            if !words.contains(&condition) {
                words.push(condition);
            }
        }
        Some(Self(words))
    }
}

/// A header's name in lower case, if it is one (RFC 9110, section 5.1) and no pseudo-header.
pub(super) fn header_name(text: &str) -> Option<String> {
    let name = http::HeaderName::from_bytes(text.as_bytes()).ok()?;
    Some(name.as_str().to_owned())
}

/// More retries than this of one request help nobody.
const ATTEMPTS_MAX: u32 = 100;
/// Of one compiled expression; the sidecar's limit.
const REGEX_BYTES_MAX: usize = 1 << 20;
