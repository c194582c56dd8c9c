//! `ServiceEntry`: a service, its names, addresses, ports and endpoints.

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU16};

use heddle_policy::spiffe::SpiffeId;
use serde::{Serialize, Serializer};

use super::{
    Host, WorkloadEntry, WorkloadSelector,
    decode::{Decode, Decoder},
    values::DnsLabel,
    yaml::Node,
};
use crate::addresses;

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

impl Decode for ServiceEntry {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let hosts = fields.required(decoder, "hosts");
        let addresses = fields.or_default(decoder, "addresses");
        let ports = fields.required(decoder, "ports");
        let location = fields.optional(decoder, "location");
        let resolution = fields.optional(decoder, "resolution");
        let endpoints = fields.or_default(decoder, "endpoints");
        let workload_selector = fields.optional(decoder, "workloadSelector");
        let subject_alt_names = fields.or_default(decoder, "subjectAltNames");
        fields.close(decoder);
        let entry = Self {
            hosts: hosts?,
            addresses: addresses?,
            ports: ports?,
            location: location?.unwrap_or(Location::MeshExternal),
            resolution: resolution?.unwrap_or(Resolution::None),
            endpoints: endpoints?,
            workload_selector: workload_selector?,
            subject_alt_names: subject_alt_names?,
        };
        entry.is_consistent(node, decoder).then_some(entry)
    }
}

impl ServiceEntry {
    fn is_consistent(&self, node: &Node, decoder: &mut Decoder<'_>) -> bool {
        let mut faults = Vec::new();
        if self.hosts.is_empty() {
            faults.push(("hosts", "needs at least one host"));
        }
        if self.ports.is_empty() {
            faults.push(("ports", "needs at least one port"));
        }
        if has_duplicates(&self.hosts) {
            faults.push(("hosts", "names a host twice"));
        }
        if has_duplicates(&self.addresses) {
            faults.push(("addresses", "names an address twice"));
        }
        if self.addresses.iter().any(addresses::is_allottable) {
            faults.push((
                "addresses",
                "lies in the range that Heddle allots addresses from",
            ));
        }
        if has_duplicates(self.ports.iter().map(|port| port.number)) {
            faults.push(("ports", "has two ports of one number"));
        }
        if has_duplicates(self.ports.iter().map(|port| &port.name)) {
            faults.push(("ports", "has two ports of one name"));
        }
        if !self.endpoints.is_empty() && self.workload_selector.is_some() {
            faults.push(("workloadSelector", "excludes endpoints; write one of them"));
        }
        if self.resolution == Resolution::None {
            if !self.endpoints.is_empty() || self.workload_selector.is_some() {
                faults.push(("resolution", "must be STATIC where there are endpoints"));
            } else if self.addresses.is_empty() {
                faults.push(("addresses", "is required by resolution NONE"));
            }
        }
        let unknown = self.endpoints.iter().enumerate().find(|(_, endpoint)| {
            let mut names = endpoint.ports.keys();
            names.any(|name| self.ports.iter().all(|port| port.name != *name))
        });
        let unknown = unknown.map(|(index, _)| format!("endpoints[{index}].ports"));
        if let Some(path) = &unknown {
            faults.push((path, "names a port that the service does not have"));
        }
        let is_consistent = faults.is_empty();
        for (path, message) in faults {
            decoder.within(format_args!(".{path}"), |decoder| {
                decoder.fault(node.nearest(path).at, message);
            });
        }
        is_consistent
    }
}

impl Decode for ServicePort {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let number = fields.required(decoder, "number");
        let name = fields.required::<DnsLabel>(decoder, "name");
        let protocol = fields.optional(decoder, "protocol");
        let target_port = fields.optional(decoder, "targetPort");
        fields.close(decoder);
        Some(Self {
            number: number?,
            name: name?.0,
            protocol: protocol?,
            target_port: target_port?,
        })
    }
}

impl Decode for PortProtocol {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.word(
            node,
            &[
                ("HTTP", Self::Http),
                ("HTTP2", Self::Http2),
                ("GRPC", Self::Grpc),
                ("HTTPS", Self::Https),
                ("TLS", Self::Tls),
                ("TCP", Self::Tcp),
            ],
        )
    }
}

impl Decode for Location {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.word(
            node,
            &[
                ("MESH_EXTERNAL", Self::MeshExternal),
                ("MESH_INTERNAL", Self::MeshInternal),
            ],
        )
    }
}

impl Decode for Resolution {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        if matches!(decoder.text(node)?, "DNS" | "DNS_ROUND_ROBIN") {
            return decoder.refuse(
                node,
                "DNS is not implemented by this version of Heddle; list the endpoints with STATIC",
            );
        }
        decoder.word(node, &[("STATIC", Self::Static), ("NONE", Self::None)])
    }
}

fn has_duplicates<T: Ord>(items: impl IntoIterator<Item = T>) -> bool {
    let mut seen = BTreeSet::new();
    !items.into_iter().all(|item| seen.insert(item))
}
