//! `AuthorizationPolicy`: who may call what.

use std::num::NonZeroU16;

use ipnet::IpNet;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::Selector;

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
    /// The authority. HTTP only.
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

impl Condition {
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
        write::<S, _>(
            &mut fields,
            ["principals", "notPrincipals"],
            &self.principals,
        )?;
        write::<S, _>(
            &mut fields,
            ["namespaces", "notNamespaces"],
            &self.namespaces,
        )?;
        write::<S, _>(&mut fields, ["ipBlocks", "notIpBlocks"], &self.ip_blocks)?;
        fields.end()
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Operation", 8)?;
        write::<S, _>(&mut fields, ["hosts", "notHosts"], &self.hosts)?;
        write::<S, _>(&mut fields, ["ports", "notPorts"], &self.ports)?;
        write::<S, _>(&mut fields, ["methods", "notMethods"], &self.methods)?;
        write::<S, _>(&mut fields, ["paths", "notPaths"], &self.paths)?;
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
