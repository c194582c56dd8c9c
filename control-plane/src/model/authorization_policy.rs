//! `AuthorizationPolicy`: who may call what.

use std::num::NonZeroU16;

use heddle_policy::{
    path::{Normal, Strictness},
    spiffe::SpiffeId,
};
use ipnet::IpNet;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::{
    Selector,
    decode::{Decode, Decoder, Fields, shown},
    virtual_service::header_name,
    yaml::{Node, Value},
};

/// Who may call what. Deny before allow; once an ALLOW policy selects a workload, what none of
/// them allows is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuthorizationPolicy {
    /// Of its namespace. `None`: all of them (of the mesh, in the root namespace).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// What a matching rule means.
    pub action: Action,
    /// Any of them. Empty: matches nothing, so ALLOW refuses everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What a matching rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Istio's default.
    Allow,
    /// Refused, whatever else allows it.
    Deny,
}

/// Any of `from`, any of `to` and all of `when`; what is empty always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Who calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// What is called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// Further conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// An element of `from`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct From {
    /// Who calls.
    pub source: Source,
}

/// An element of `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct To {
    /// What is called.
    pub operation: Operation,
}

/// Who calls: all fields must hold, each by any of `values` and none of `not_values`. A peer
/// without an identity has no principal and no namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// `<trust-domain>/ns/<namespace>/sa/<service-account>`.
    pub principals: Matches<Pattern>,
    /// The principal's namespace.
    pub namespaces: Matches<Pattern>,
    /// The address the connection comes from.
    pub ip_blocks: Matches<IpNet>,
}

/// What is called: all fields must hold, each by any of `values` and none of `not_values`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// The authority, in lower case. HTTP only.
    pub hosts: Matches<Pattern>,
    /// The workload's port.
    pub ports: Matches<NonZeroU16>,
    /// The method. HTTP only.
    pub methods: Matches<Pattern>,
    /// The normalised path. HTTP only.
    pub paths: Matches<Pattern>,
}

/// An element of `when`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `request.headers[<name>]`, lower case. HTTP only.
    Header(String, Matches<Pattern>),
    /// `source.principal`.
    Principal(Matches<Pattern>),
    /// `source.namespace`.
    Namespace(Matches<Pattern>),
    /// `source.ip`.
    SourceIp(Matches<IpNet>),
    /// `destination.port`.
    DestinationPort(Matches<NonZeroU16>),
}

/// Any of `values` (if there are any) and none of `not_values`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matches<T> {
    /// `values`, `principals`, ..
    pub values: Vec<T>,
    /// `notValues`, `notPrincipals`, ..
    pub not_values: Vec<T>,
}

/// A text with at most one `*`, at an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Equal.
    Exact(String),
    /// `abc*`.
    Prefix(String),
    /// `*abc`.
    Suffix(String),
    /// `*`: there, and not empty.
    Present,
}

impl AuthorizationPolicy {
    /// Whether any rule looks into HTTP.
    pub fn is_http(&self) -> bool {
        self.rules.iter().any(Rule::is_http)
    }
}

impl Rule {
    /// Whether the rule looks into HTTP: its port then refuses what is not.
    pub fn is_http(&self) -> bool {
        self.to.iter().any(|to| to.operation.is_http())
            || self
                .when
                .iter()
                .any(|condition| matches!(condition, Condition::Header(..)))
    }
}

impl Operation {
    fn is_http(&self) -> bool {
        !(self.hosts.is_empty() && self.methods.is_empty() && self.paths.is_empty())
    }
}

impl Pattern {
    /// The pattern that a text means. `None`: it has a `*` elsewhere than at one end.
    pub fn parse(text: &str) -> Option<Self> {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text == "*" => return Some(Self::Present),
            (Some(rest), _) => Self::Suffix(rest.to_owned()),
            (None, Some(rest)) => Self::Prefix(rest.to_owned()),
            (None, None) => Self::Exact(text.to_owned()),
        };
        let (Self::Exact(rest) | Self::Prefix(rest) | Self::Suffix(rest)) = &pattern else {
            return Some(pattern);
        };
        (!rest.contains('*')).then_some(pattern)
    }
}

impl Condition {
    fn is_empty(&self) -> bool {
        match self {
            Self::Header(_, matches) | Self::Principal(matches) | Self::Namespace(matches) => {
                matches.is_empty()
            }
            Self::SourceIp(matches) => matches.is_empty(),
            Self::DestinationPort(matches) => matches.is_empty(),
        }
    }

    /// As users write it.
    pub fn key(&self) -> String {
        match self {
            Self::Header(name, _) => format!("request.headers[{name}]"),
            Self::Principal(_) => "source.principal".to_owned(),
            Self::Namespace(_) => "source.namespace".to_owned(),
            Self::SourceIp(_) => "source.ip".to_owned(),
            Self::DestinationPort(_) => "destination.port".to_owned(),
        }
    }
}

impl<T> Matches<T> {
    fn map<U>(self, each: impl Fn(T) -> U) -> Matches<U> {
        Matches {
            values: self.values.into_iter().map(&each).collect(),
            not_values: self.not_values.into_iter().map(&each).collect(),
        }
    }

    /// Whether it holds of everything.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.not_values.is_empty()
    }
}

impl<T> Default for Matches<T> {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            not_values: Vec::new(),
        }
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Source", 6)?;
        write::<S, _>(&mut fields, PRINCIPALS, &self.principals)?;
        write::<S, _>(&mut fields, NAMESPACES, &self.namespaces)?;
        write::<S, _>(&mut fields, IP_BLOCKS, &self.ip_blocks)?;
        fields.end()
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Operation", 8)?;
        write::<S, _>(&mut fields, HOSTS, &self.hosts)?;
        write::<S, _>(&mut fields, PORTS, &self.ports)?;
        write::<S, _>(&mut fields, METHODS, &self.methods)?;
        write::<S, _>(&mut fields, PATHS, &self.paths)?;
        fields.end()
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Condition", 3)?;
        fields.serialize_field("key", &self.key())?;
        match self {
            Self::Header(_, matches) | Self::Principal(matches) | Self::Namespace(matches) => {
                write::<S, _>(&mut fields, VALUES, matches)?;
            }
            Self::SourceIp(matches) => write::<S, _>(&mut fields, VALUES, matches)?,
            Self::DestinationPort(matches) => write::<S, _>(&mut fields, VALUES, matches)?,
        }
        fields.end()
    }
}

impl Decode for AuthorizationPolicy {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let selector = fields.optional(decoder, "selector");
        let action = fields.optional(decoder, "action");
        let rules = fields.or_default(decoder, "rules");
        fields.close(decoder);
        Some(Self {
            selector: selector?,
            action: action?.unwrap_or(Action::Allow),
            rules: rules?,
        })
    }
}

impl Decode for Action {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        if matches!(decoder.text(node)?, "AUDIT" | "CUSTOM") {
            return decoder.refuse(node, "only ALLOW and DENY are implemented");
        }
        decoder.word(node, &[("ALLOW", Self::Allow), ("DENY", Self::Deny)])
    }
}

impl Decode for Rule {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        // An empty list would hold of everything: a template that rendered nobody allows anybody.
        let from = fields.or_default::<Filled<From>>(decoder, "from");
        let to = fields.or_default::<Filled<To>>(decoder, "to");
        let when = fields.or_default::<Filled<Condition>>(decoder, "when");
        fields.close(decoder);
        Some(Self {
            from: from?.0,
            to: to?.0,
            when: when?.0,
        })
    }
}

impl Decode for From {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let source = fields.required(decoder, "source");
        fields.close(decoder);
        Some(Self { source: source? })
    }
}

impl Decode for To {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let operation = fields.required(decoder, "operation");
        fields.close(decoder);
        Some(Self {
            operation: operation?,
        })
    }
}

impl Decode for Source {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let principals = read::<Principal>(&mut fields, decoder, PRINCIPALS);
        let namespaces = read(&mut fields, decoder, NAMESPACES);
        let ip_blocks = read(&mut fields, decoder, IP_BLOCKS);
        fields.close(decoder);
        let source = Self {
            principals: principals?.map(|principal| principal.0),
            namespaces: namespaces?,
            ip_blocks: ip_blocks?,
        };
        if source == Self::default() {
            return decoder.refuse(node, "must say something; an empty source matches nobody");
        }
        Some(source)
    }
}

impl Decode for Operation {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let hosts = read::<Authority>(&mut fields, decoder, HOSTS);
        let ports = read::<Port>(&mut fields, decoder, PORTS);
        let methods = read(&mut fields, decoder, METHODS);
        let paths = read::<Path>(&mut fields, decoder, PATHS);
        fields.close(decoder);
        let operation = Self {
            hosts: hosts?.map(|host| host.0),
            ports: ports?.map(|port| port.0),
            methods: methods?,
            paths: paths?.map(|path| path.0),
        };
        if operation == Self::default() {
            return decoder.refuse(
                node,
                "must say something; an empty operation matches nothing",
            );
        }
        Some(operation)
    }
}

impl Decode for Condition {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let key = fields.required::<String>(decoder, "key")?;
        let header = key
            .strip_prefix("request.headers[")
            .and_then(|rest| header_name(rest.strip_suffix(']')?));
        let condition = match (key.as_str(), header) {
            (_, Some(name)) => {
                let values = read(&mut fields, decoder, VALUES);
                values.map(|values| Self::Header(name, values))
            }
            ("source.principal", _) => read::<Principal>(&mut fields, decoder, VALUES)
                .map(|values| Self::Principal(values.map(|principal| principal.0))),
            ("source.namespace", _) => read(&mut fields, decoder, VALUES).map(Self::Namespace),
            ("source.ip", _) => read(&mut fields, decoder, VALUES).map(Self::SourceIp),
            ("destination.port", _) => read::<Port>(&mut fields, decoder, VALUES)
                .map(|values| Self::DestinationPort(values.map(|port| port.0))),
            _ => {
                let message = format!("`{}` must be one of {KEYS}", shown(&key));
                return decoder.within(format_args!(".key"), |decoder| {
                    decoder.refuse(node.nearest("key"), message)
                });
            }
        };
        fields.close(decoder);
        let condition = condition?;
        if condition.is_empty() {
            return decoder.refuse(node, "needs values or notValues");
        }
        Some(condition)
    }
}

/// Reads a list and its negation.
fn read<T: Decode>(
    fields: &mut Fields<'_>,
    decoder: &mut Decoder<'_>,
    names: [&'static str; 2],
) -> Option<Matches<T>> {
    let [values, not_values] = names.map(|name| fields.or_default::<Filled<T>>(decoder, name));
    Some(Matches {
        values: values?.0,
        not_values: not_values?.0,
    })
}

/// A list that is not empty where it is written.
struct Filled<T>(Vec<T>);

impl<T> Default for Filled<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Decode> Decode for Filled<T> {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let items = Vec::decode(node, decoder)?;
        if items.is_empty() {
            return decoder.refuse(node, "is empty; leave it out");
        }
        Some(Self(items))
    }
}

impl Decode for Pattern {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = String::decode(node, decoder)?;
        match Self::parse(&text) {
            Some(pattern) => Some(pattern),
            None => decoder.refuse(
                node,
                format!(
                    "`{}` may have one `*`, at its beginning or end",
                    shown(&text)
                ),
            ),
        }
    }
}

struct Principal(Pattern);

impl Decode for Principal {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        match Pattern::decode(node, decoder)? {
            Pattern::Exact(text) if format!("spiffe://{text}").parse::<SpiffeId>().is_err() => {
                let hint = "must be <trust-domain>/ns/<namespace>/sa/<service-account>";
                let message = format!("`{}` {hint}", shown(&text));
                decoder.refuse(node, message)
            }
            Pattern::Prefix(text) if text.starts_with("spiffe:") => {
                decoder.refuse(node, "must begin with the trust domain, without spiffe://")
            }
            pattern => Some(Self(pattern)),
        }
    }
}

struct Path(Pattern);

impl Decode for Path {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let pattern = Pattern::decode(node, decoder)?;
        if pattern.to_string().contains(['{', '}']) {
            return decoder.refuse(node, "path templates are not implemented");
        }
        match &pattern {
            Pattern::Exact(text) | Pattern::Prefix(text) if !text.starts_with('/') => {
                decoder.refuse(node, "must begin with `/` or `*`: no path could match")
            }
            Pattern::Exact(text) if !is_normal(text) => {
                let normal = Normal::parse(text, Strictness::default()).ok();
                decoder.refuse(node, no_path(text, normal))
            }
            Pattern::Prefix(text) if !ENDS.iter().any(|end| is_normal(&format!("{text}{end}"))) => {
                decoder.refuse(node, no_path(text, None))
            }
            Pattern::Suffix(text)
                if !BEGINNINGS
                    .iter()
                    .any(|begin| is_normal(&format!("{begin}{text}"))) =>
            {
                decoder.refuse(node, no_path(text, None))
            }
            _ => Some(Self(pattern)),
        }
    }
}

/// Whether sidecars see a path in this very form; they compare no other.
fn is_normal(path: &str) -> bool {
    Normal::parse(path, Strictness::default())
        .is_ok_and(|normal| normal.path == path && normal.query.is_none())
}

fn no_path(text: &str, normal: Option<Normal<'_>>) -> String {
    let text = shown(text);
    match normal {
        Some(normal) => format!(
            "`{text}` matches nothing: paths are compared in their normal form, such as `{}`",
            shown(&normal.path)
        ),
        None => format!(
            "`{text}` matches nothing: paths are compared without a query, empty and dot \
             segments, and with what need not be escaped as it is"
        ),
    }
}

/// What can make a normal path of its beginning: nothing, more of a segment, the rest of an escape.
const ENDS: [&str; 4] = ["", "x", "20", "0"];
/// What can make a normal path of its end.
const BEGINNINGS: [&str; 3] = ["", "/", "/x"];

/// What a policy says of the authority, which is seen in lower case.
struct Authority(Pattern);

impl Decode for Authority {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let pattern = match Pattern::decode(node, decoder)? {
            Pattern::Exact(text) => Pattern::Exact(text.to_ascii_lowercase()),
            Pattern::Prefix(text) => Pattern::Prefix(text.to_ascii_lowercase()),
            Pattern::Suffix(text) => Pattern::Suffix(text.to_ascii_lowercase()),
            Pattern::Present => Pattern::Present,
        };
        Some(Self(pattern))
    }
}

/// A port, as a text or a number: Istio has texts.
struct Port(NonZeroU16);

impl Decode for Port {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let Value::Text(text) = &node.value else {
            return NonZeroU16::decode(node, decoder).map(Self);
        };
        match text.parse() {
            Ok(port) => Some(Self(port)),
            Err(_) => decoder.refuse(node, format!("`{}` is not a port", shown(text))),
        }
    }
}

const PRINCIPALS: [&str; 2] = ["principals", "notPrincipals"];
const NAMESPACES: [&str; 2] = ["namespaces", "notNamespaces"];
const IP_BLOCKS: [&str; 2] = ["ipBlocks", "notIpBlocks"];
const HOSTS: [&str; 2] = ["hosts", "notHosts"];
const PORTS: [&str; 2] = ["ports", "notPorts"];
const METHODS: [&str; 2] = ["methods", "notMethods"];
const PATHS: [&str; 2] = ["paths", "notPaths"];

/// Everything is a text in Istio's JSON, ports too.
fn write<S: Serializer, T: ToString>(
    fields: &mut S::SerializeStruct,
    names: [&'static str; 2],
    matches: &Matches<T>,
) -> Result<(), S::Error> {
    for (name, list) in names
        .into_iter()
        .zip([&matches.values, &matches.not_values])
    {
        if !list.is_empty() {
            let texts: Vec<_> = list.iter().map(ToString::to_string).collect();
            fields.serialize_field(name, &texts)?;
        }
    }
    Ok(())
}

const VALUES: [&str; 2] = ["values", "notValues"];
/// Keys of `when`.
const KEYS: &str =
    "request.headers[<name>], source.principal, source.namespace, source.ip, destination.port";
