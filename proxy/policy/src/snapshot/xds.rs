//! Envoy xDS v3 resources -> the model, strictly: the contract is `proto/README.md`.
//!
//! [`decode`] turns one resource into a validated [`Piece`] or lists every fault with the path of
//! its field. An unsupported field of TLS, RBAC or a filter-chain match is a fault; any other
//! field outside the subset is ignored and counted. [`Pieces`] holds what was accepted and joins
//! it into destinations, each complete or not at all (gRFC A74).
//!
//! The sidecar accepts with this module and the control plane validates with it before it stores,
//! so that what is published is accepted. Protobuf types do not leave it.
//!
//! ```text
//! bytes ──decode──► Piece ──insert──► Pieces ──assemble──► Assembly { destination, missing }
//! ```

mod assemble;
mod cluster;
mod endpoints;
mod fault;
mod listener;
mod rbac;
mod route;
mod tls;

use std::{fmt, sync::Arc};

use heddle_proto::xds::{
    FromWire,
    envoy::config::{
        cluster::v3::Cluster as WireCluster, endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener as WireListener, route::v3::RouteConfiguration,
    },
    google::protobuf::Any,
};
use prost::{Message, Name};

use crate::{
    route::RouteTable,
    snapshot::{DestinationKey, Inbound, Outbound, Protocol, WeightedClusters},
};

pub use assemble::{Assembly, Pieces};
pub use cluster::ClusterSpec;
pub use endpoints::{EndpointSpec, Endpoints};
pub use fault::{Fault, Rejected};

use fault::{Faults, Path};

/// The resource types of the subset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
    /// LDS.
    Listener,
    /// RDS.
    Route,
}

/// A resource's type and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    /// Its type.
    pub kind: ResourceType,
    /// Its name within the type.
    pub name: Arc<str>,
}

/// One accepted resource.
#[derive(Clone, Debug)]
pub enum Piece {
    /// LDS.
    Listener(Listener),
    /// RDS.
    Routes(Arc<RouteTable>),
    /// CDS.
    Cluster(Arc<ClusterSpec>),
    /// EDS.
    Endpoints(Arc<Endpoints>),
}

/// An accepted listener.
#[derive(Clone, Debug)]
pub enum Listener {
    /// `mesh/outbound`.
    Outbound(Arc<Outbound>),
    /// `mesh/inbound`.
    Inbound(Arc<Inbound>),
    /// `out/..` or `host/..`.
    Destination(Arc<DestinationListener>),
}

/// What is known of a destination before its routes and clusters.
#[derive(Clone, Debug)]
pub struct DestinationListener {
    /// The resource's name.
    pub listener: Arc<str>,
    /// What the workload dials, read from that name.
    pub key: DestinationKey,
    /// Name of the destination (`stat_prefix`).
    pub name: Arc<str>,
    /// What the port carries.
    pub protocol: Protocol,
    /// Where its traffic goes.
    pub target: ListenerTarget,
}

/// Where a listener leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerTarget {
    /// To the named route configuration.
    Routes(Arc<str>),
    /// To clusters by weight.
    Tcp(WeightedClusters),
    /// To the original destination ([`PASSTHROUGH`]).
    Passthrough,
}

/// An accepted resource, and how many of its fields had no meaning here.
#[derive(Clone, Debug)]
pub struct Decoded {
    /// The resource.
    pub piece: Piece,
    /// Messages with fields outside the subset. They had no effect.
    pub ignored: u32,
}

/// Name of the eager outbound listener.
pub const MESH_OUTBOUND: &str = "mesh/outbound";
/// Name of the eager inbound listener.
pub const MESH_INBOUND: &str = "mesh/inbound";
/// Cluster name in a `TcpProxy` that stands for the original destination in plaintext.
pub const PASSTHROUGH: &str = "mesh/passthrough";
/// Key of our typed metadata.
pub const METADATA_KEY: &str = "heddle.v1";

/// Decodes and validates one resource.
///
/// # Errors
/// [`Rejected`] with every fault found; nothing of the resource may be used then.
pub fn decode(type_url: &str, value: &[u8]) -> Result<Decoded, Rejected> {
    let Some(kind) = ResourceType::from_type_url(type_url) else {
        return Err(Rejected::whole(type_url, "is not a type this sidecar uses"));
    };
    match kind {
        ResourceType::Listener => decode_as(value, |m: &WireListener| &m.name, listener::listener),
        ResourceType::Route => decode_as(
            value,
            |m: &RouteConfiguration| &m.name,
            |m, known, at, faults| {
                route::table(m, known, at, faults).map(|table| Piece::Routes(Arc::new(table)))
            },
        ),
        ResourceType::Cluster => decode_as(
            value,
            |m: &WireCluster| &m.name,
            |m, known, at, faults| {
                cluster::spec(m, known, at, faults).map(|spec| Piece::Cluster(Arc::new(spec)))
            },
        ),
        ResourceType::Endpoints => decode_as(
            value,
            |m: &ClusterLoadAssignment| &m.cluster_name,
            |m, known, at, faults| {
                endpoints::endpoints(m, known, at, faults)
                    .map(|endpoints| Piece::Endpoints(Arc::new(endpoints)))
            },
        ),
    }
}

/// Whether a message had only fields that its generated type has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    All,
    Some,
}

fn decode_as<M, F>(value: &[u8], name: fn(&M) -> &String, read: F) -> Result<Decoded, Rejected>
where
    M: FromWire + Message + Name,
    F: FnOnce(&M, Known, &Path<'_>, &mut Faults) -> Option<Piece>,
{
    let message = M::from_wire(value)
        .map_err(|error| Rejected::whole(M::NAME, format!("is not valid protobuf: {error}")))?;
    let mut faults = Faults::default();
    let piece = read(
        &message,
        known(&message, value.len()),
        &Path::Root,
        &mut faults,
    );
    faults.finish(name(&message), piece)
}

/// prost drops what the generated type lacks, so the message has become shorter.
fn known(message: &impl Message, wire_len: usize) -> Known {
    if message.encoded_len() == wire_len {
        Known::All
    } else {
        Known::Some
    }
}

/// Unpacks an extension of exactly this type. A field that its generated type lacks is a fault:
/// every caller needs all of the message or has security in it.
fn unpack<M: FromWire + Message + Name>(
    any: &Any,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<M> {
    let (message, known) = unpack_known(any, at, faults)?;
    if known == Known::Some {
        faults.refuse(at, "has a field this version does not know");
        return None;
    }
    Some(message)
}

/// Unpacks an extension of exactly this type, and says whether that was all of it.
fn unpack_known<M: FromWire + Message + Name>(
    any: &Any,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<(M, Known)> {
    if any.type_url != M::type_url() {
        faults.refuse(
            at,
            format!("is {}, expected {}", any.type_url, M::type_url()),
        );
        return None;
    }
    match M::from_wire(&any.value) {
        Ok(message) => {
            let known = known(&message, any.value.len());
            Some((message, known))
        }
        Err(error) => {
            faults.refuse(at, format!("is not valid protobuf: {error}"));
            None
        }
    }
}

impl ResourceType {
    /// All of them, in the order in which they are delivered.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoints, Self::Listener, Self::Route];

    /// The type behind `type.googleapis.com/envoy.config...`.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.type_url() == type_url)
    }

    /// As xDS names it.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        }
    }

    /// As `heddle.v1.Status` names it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Route => "route",
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
        }
    }
}

impl Piece {
    /// What it is called.
    pub fn name(&self) -> ResourceName {
        let (kind, name) = match self {
            Self::Listener(listener) => (ResourceType::Listener, listener.name()),
            Self::Routes(table) => (ResourceType::Route, Arc::clone(table.name())),
            Self::Cluster(spec) => (ResourceType::Cluster, Arc::clone(&spec.name.0)),
            Self::Endpoints(endpoints) => (ResourceType::Endpoints, Arc::clone(&endpoints.name)),
        };
        ResourceName { kind, name }
    }
}

impl Listener {
    /// The resource's name.
    pub fn name(&self) -> Arc<str> {
        match self {
            Self::Outbound(_) => MESH_OUTBOUND.into(),
            Self::Inbound(_) => MESH_INBOUND.into(),
            Self::Destination(destination) => Arc::clone(&destination.listener),
        }
    }
}

impl DestinationKey {
    /// The name of its listener.
    pub fn listener_name(&self) -> String {
        match self {
            Self::Address(address) => format!("{OUT}{address}"),
            Self::Host(host, port) => format!("{HOST}{host}:{port}"),
        }
    }

    /// The key behind a listener's name; `None` when it is not in its one canonical form.
    pub fn from_listener_name(name: &str) -> Option<Self> {
        let key = if let Some(address) = name.strip_prefix(OUT) {
            Self::Address(address.parse().ok()?)
        } else {
            let (host, port) = name.strip_prefix(HOST)?.rsplit_once(':')?;
            let is_lower = !host.is_empty() && !host.bytes().any(|b| b.is_ascii_uppercase());
            Self::Host(is_lower.then(|| host.into())?, port.parse().ok()?)
        };
        (key.listener_name() == name).then_some(key)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

const OUT: &str = "out/";
const HOST: &str = "host/";

#[cfg(test)]
mod tests;
