//! `ServiceEntry`: a service, its names, addresses, ports and endpoints.

use std::{net::IpAddr, num::NonZeroU16};

use heddle_policy::spiffe::SpiffeId;
use serde::{Serialize, Serializer};

use super::{Host, WorkloadEntry, WorkloadSelector};

/// A service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    /// At least one; none of them belongs to another `ServiceEntry`.
    pub hosts: Vec<Host>,
    /// Addresses clients dial. Empty: one of each family is allotted
    /// ([`Catalog::addresses_of`](super::Catalog::addresses_of)).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// At least one; numbers and names are unique.
    pub ports: Vec<ServicePort>,
    /// Whether the service is part of the mesh.
    pub location: Location,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Endpoints written here. Excludes `workload_selector`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntry>,
    /// Workloads of the namespace, registered or `WorkloadEntry`. Excludes `endpoints`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// The identities that may serve it. Empty: no meshed endpoint may.
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "spiffe_ids")]
    pub subject_alt_names: Vec<SpiffeId>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// What clients dial.
    pub number: NonZeroU16,
    /// What `WorkloadEntry.ports` refers to.
    pub name: String,
    /// What it carries. `None`: detected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<PortProtocol>,
    /// Where endpoints listen that name no port of their own. `None`: `number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<NonZeroU16>,
}

/// What a port carries, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PortProtocol {
    /// HTTP/1.1, upgrades included.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC, over HTTP/2.
    Grpc,
    /// The application's own TLS: opaque.
    Https,
    /// The application's own TLS: opaque.
    Tls,
    /// Bytes.
    Tcp,
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Not of the mesh: its endpoints have no sidecar. Istio's default.
    MeshExternal,
    /// Of the mesh.
    MeshInternal,
}

/// How endpoints are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    /// They are written or selected.
    Static,
    /// The address that was dialled is the endpoint. Such a service has addresses and no
    /// endpoints.
    None,
}

impl ServiceEntry {
    /// The port with this number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number.get() == number)
    }
}

impl ServicePort {
    /// Where `endpoint` listens for this port.
    pub fn target(&self, endpoint: &WorkloadEntry) -> NonZeroU16 {
        endpoint
            .ports
            .get(&self.name)
            .copied()
            .or(self.target_port)
            .unwrap_or(self.number)
    }
}

impl PortProtocol {
    /// Whether HTTP routes apply.
    pub fn is_http(self) -> bool {
        match self {
            Self::Http | Self::Http2 | Self::Grpc => true,
            Self::Https | Self::Tls | Self::Tcp => false,
        }
    }
}

fn spiffe_ids<S: Serializer>(ids: &[SpiffeId], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ids.iter().map(SpiffeId::as_str))
}
