//! Desired state as users write it: Istio's kinds, strictly decoded.
//!
//! ```text
//! text ──yaml──► Node (tree with positions) ──decode──► Resource (validated) ──► canonical JSON
//! ```
//!
//! A [`Resource`] is proof that its document was valid by itself. What several resources say
//! about each other is judged by [`check`] over a whole [`Catalog`].
//!
//! Types hold what was written, no more: defaults are applied by their methods, so that the
//! canonical form of a document does not change when a default does.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

mod authorization_policy;
mod catalog;
pub mod check;
mod decode;
mod destination_rule;
pub mod document;
mod misplaced;
mod peer_authentication;
mod service_entry;
mod values;
mod virtual_service;
mod workload_entry;
pub mod yaml;

pub use self::{
    authorization_policy::{
        Action, AuthorizationPolicy, Condition, From, Matches, Operation, Pattern, Rule, Source, To,
    },
    catalog::{Catalog, Record, Stored, Unread, Unreadable},
    decode::Fault,
    destination_rule::{
        ConnectionPool, DestinationRule, HttpPool, LoadBalancer, OutlierDetection, SimpleBalancer,
        Subset, TcpPool, Tls, TlsMode, TrafficPolicy,
    },
    peer_authentication::{Mtls, MtlsMode, PeerAuthentication},
    service_entry::{Location, PortProtocol, Resolution, ServiceEntry, ServicePort},
    values::{Host, Labels, Seconds, Selector, WorkloadSelector},
    virtual_service::{
        Destination, HttpMatch, HttpRoute, Retries, RetryCondition, StringMatch, TcpRoute,
        VirtualService, WeightedDestination,
    },
    workload_entry::{TLS_MODE, WorkloadEntry},
};

/// The kinds of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Who may call what.
    AuthorizationPolicy,
    /// How the endpoints of a host are used.
    DestinationRule,
    /// Which connections a workload takes.
    PeerAuthentication,
    /// A service: names, addresses, ports, endpoints.
    ServiceEntry,
    /// How requests to a host are routed.
    VirtualService,
    /// One endpoint, selected by its labels.
    WorkloadEntry,
}

/// What names a resource. Ordered by kind, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceId {
    /// Its kind.
    pub kind: Kind,
    /// Never empty.
    pub namespace: String,
    /// Unique for the kind in the namespace.
    pub name: String,
}

/// One valid resource.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What names it.
    pub id: ResourceId,
    /// As written; Heddle selects nothing by them.
    pub labels: Labels,
    /// As written; Heddle reads none.
    pub annotations: BTreeMap<String, String>,
    /// What it says.
    pub spec: Spec,
}

/// The body of a resource, by kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Spec {
    /// See [`Kind::AuthorizationPolicy`].
    AuthorizationPolicy(AuthorizationPolicy),
    /// See [`Kind::DestinationRule`].
    DestinationRule(DestinationRule),
    /// See [`Kind::PeerAuthentication`].
    PeerAuthentication(PeerAuthentication),
    /// See [`Kind::ServiceEntry`].
    ServiceEntry(ServiceEntry),
    /// See [`Kind::VirtualService`].
    VirtualService(VirtualService),
    /// See [`Kind::WorkloadEntry`].
    WorkloadEntry(WorkloadEntry),
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::AuthorizationPolicy,
        Self::DestinationRule,
        Self::PeerAuthentication,
        Self::ServiceEntry,
        Self::VirtualService,
        Self::WorkloadEntry,
    ];

    /// As users write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::DestinationRule => "DestinationRule",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::ServiceEntry => "ServiceEntry",
            Self::VirtualService => "VirtualService",
            Self::WorkloadEntry => "WorkloadEntry",
        }
    }

    /// The kind of this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The API group that defines it.
    pub fn group(self) -> &'static str {
        match self {
            Self::AuthorizationPolicy | Self::PeerAuthentication => "security.istio.io",
            Self::DestinationRule
            | Self::ServiceEntry
            | Self::VirtualService
            | Self::WorkloadEntry => "networking.istio.io",
        }
    }
}

impl ResourceId {
    /// The store's key: `config/<kind>/<namespace>/<name>`.
    pub fn key(&self) -> String {
        format!("{CONFIG}{}/{}/{}", self.kind, self.namespace, self.name)
    }

    /// The id behind a key of the store.
    pub fn from_key(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(CONFIG)?.splitn(3, '/');
        Some(Self {
            kind: Kind::parse(parts.next()?)?,
            namespace: parts.next()?.to_owned(),
            name: parts.next()?.to_owned(),
        })
    }
}

impl Spec {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Prefix of every resource's key in the store.
pub const CONFIG: &str = "config/";
