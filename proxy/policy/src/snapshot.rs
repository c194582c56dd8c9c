//! The configuration of one sidecar at one moment: validated, immutable, cheap to share.
//!
//! A [`Snapshot`] is made of units that are replaced as a whole: one [`Destination`] per
//! address or host that the workload dials, and one [`Inbound`]. An update clones the maps
//! and replaces one `Arc`; unchanged units stay shared between versions.
//!
//! Live state (outstanding requests, ejections, connections) is not here. It belongs to the
//! data path and is kept by [`EndpointKey`] and [`ClusterName`] across snapshots.

#[cfg(feature = "xds")]
pub mod xds;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;

use crate::{authz::Rules, outlier::OutlierPolicy, route::RouteTable, spiffe::SpiffeId};

/// Everything one sidecar knows. `Default` knows nothing: inbound refuses, and outbound lets
/// nothing pass that is not described.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every published snapshot of a process; for logs and reports only.
    pub generation: u64,
    /// What is mesh and what happens to the rest. `None` until the control plane has said so:
    /// anything may be mesh.
    pub outbound: Option<Arc<Outbound>>,
    /// Destinations by what the workload dials.
    pub destinations: HashMap<DestinationKey, Arc<Destination>>,
    /// Keys that were asked for and that the control plane said it does not have. A key that
    /// is in neither set has not been answered.
    pub absent: HashSet<DestinationKey>,
    /// How the workload's own ports are served. `None` until the control plane has said so:
    /// inbound then refuses.
    pub inbound: Option<Arc<Inbound>>,
}

/// The eager part of outbound configuration (`mesh/outbound`).
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    /// Only destinations in here are looked up on demand.
    pub mesh_cidrs: Vec<IpNet>,
    /// What happens to every other destination.
    pub unknown: UnknownDestination,
    /// Names the sidecar's DNS answers, fully qualified, lower case, without a final dot.
    pub hosts: HashMap<Arc<str>, Vec<std::net::IpAddr>>,
}

/// Policy for destinations that no resource describes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownDestination {
    /// Relay to the original destination.
    #[default]
    AllowAny,
    /// Refuse.
    RegistryOnly,
}

/// What a workload dials.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestinationKey {
    /// An original destination (`out/<ip>:<port>`).
    Address(SocketAddr),
    /// A host, lower case, and port (`host/<host>:<port>`): without interception, or outside
    /// the mesh's addresses.
    Host(Arc<str>, u16),
}

impl DestinationKey {
    /// Of an authority; IPv6 addresses with or without brackets.
    pub fn new(host: &str, port: u16) -> Self {
        match host.trim_start_matches('[').trim_end_matches(']').parse() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, port)),
            Err(_a_name) => Self::Host(host.into(), port),
        }
    }
}

/// As one dials it: `host:port`.
impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// One destination with all it needs; published as a unit.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Such as `user-service.default.svc.cluster.local:8080`, or the address itself.
    pub name: Arc<str>,
    /// What the port carries.
    pub protocol: Protocol,
    /// Where requests or connections go.
    pub target: Target,
    /// Every cluster that `target` gives weight. One that is absent was not delivered in time:
    /// what is routed to it is unroutable, the rest works.
    pub clusters: HashMap<ClusterName, Arc<Cluster>>,
}

/// Where a destination's traffic goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// HTTP routes. A connection whose bytes are not HTTP waits for the header timeout and is
    /// then refused; it is never relayed opaque, but for [`Destination::undeclared`].
    Http(Arc<RouteTable>),
    /// Connections, split by weight.
    Tcp(WeightedClusters),
    /// The original destination, in plaintext, unseen.
    Passthrough,
}

/// What a port carries, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2 with prior knowledge, gRPC included.
    Http2,
    /// HTTP/1.0 or 1.1.
    Http1,
    /// Bytes.
    Tcp,
    /// Not declared: detected from what the client sends.
    Detect,
}

/// A cluster's name: `<fqdn>:<port>` or `<fqdn>:<port>#<subset>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(pub Arc<str>);

/// Clusters with their share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedClusters {
    clusters: Vec<(ClusterName, u32)>,
    total: NonZeroU32,
}

/// A named group of endpoints and how they are used.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Its endpoints, in a stable order, without duplicates of [`EndpointKey`].
    pub endpoints: Vec<Arc<Endpoint>>,
    /// How one of them is chosen.
    pub balancing: Balancing,
    /// When one of them is set aside. `None`: never.
    pub outlier: Option<OutlierPolicy>,
    /// Limits over all workers of this sidecar.
    pub limits: Limits,
    /// Time for TCP and TLS together.
    pub connect_timeout: Duration,
    /// What to speak to plaintext and foreign endpoints; between sidecars both are told by ALPN.
    pub protocol: ClusterProtocol,
}

/// How an endpoint of a cluster is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balancing {
    /// `LEAST_CONN`, `LEAST_REQUEST`: power of two choices on outstanding requests.
    #[default]
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Uniform, by weight.
    Random,
}

/// HTTP version towards endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterProtocol {
    /// What the client speaks.
    #[default]
    AsClient,
    /// HTTP/2 always (`explicit_http_config.http2_protocol_options`).
    Http2,
}

/// Limits of one cluster, held per sidecar process. `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open connections to endpoints (`maxConnections`).
    pub connections_max: Option<NonZeroU32>,
    /// Requests that wait for a connection or a stream (`http1MaxPendingRequests`).
    pub pending_max: Option<NonZeroU32>,
    /// Requests in flight (`http2MaxRequests`).
    pub requests_max: Option<NonZeroU32>,
    /// Retries in flight (`maxRetries`); the retry budget applies besides.
    pub retries_max: Option<NonZeroU32>,
    /// Requests after which a connection is recycled, gracefully
    /// (`maxRequestsPerConnection`).
    pub requests_per_connection_max: Option<NonZeroU32>,
}

/// One address that serves a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to dial.
    pub address: SocketAddr,
    /// How to dial.
    pub transport: Transport,
    /// Relative share, at least 1.
    pub weight: NonZeroU32,
    /// Whether it takes new requests.
    pub health: Health,
}

/// How an endpoint is reached. A property of the endpoint, not of who dials it. The data path
/// does not believe `Plain` of an address that was meshed a moment before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// No sidecar on the other side.
    Plain,
    /// Mutual TLS; the peer must present exactly one of these identities.
    Mtls(Arc<[SpiffeId]>),
}

/// Whether an endpoint takes new requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Takes requests.
    Healthy,
    /// Finishes what it has.
    Draining,
}

/// What live state of an endpoint is keyed by: the same workload seen through two clusters is
/// one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointKey {
    /// See [`Endpoint::address`].
    pub address: SocketAddr,
    /// See [`Endpoint::transport`].
    pub transport: Transport,
}

/// How the workload's own ports are served (`mesh/inbound`).
#[derive(Clone, Debug)]
pub struct Inbound {
    /// Ports with rules of their own.
    pub ports: HashMap<u16, Arc<InboundPort>>,
    /// Every other port.
    pub default: Arc<InboundPort>,
}

/// How one port of the workload is served.
#[derive(Clone, Debug)]
pub struct InboundPort {
    /// Who may connect at all.
    pub mtls: MtlsMode,
    /// What the port carries, as declared.
    pub protocol: Protocol,
    /// Who may do what. Deny before allow; no rules allow every admitted peer.
    pub authz: Arc<Rules>,
}

/// `PeerAuthentication` mode of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MtlsMode {
    /// Mutual TLS only.
    #[default]
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Plaintext only; TLS is the application's own.
    Disable,
}

impl Snapshot {
    /// The destination behind a key, if it is known.
    pub fn destination(&self, key: &DestinationKey) -> Option<&Arc<Destination>> {
        self.destinations.get(key)
    }
}

impl Outbound {
    /// Whether the control plane may describe `key`, so that it has to be asked.
    pub fn may_describe(&self, key: &DestinationKey) -> bool {
        match key {
            DestinationKey::Address(address) => {
                let mut cidrs = self.mesh_cidrs.iter();
                cidrs.any(|cidr| cidr.contains(&address.ip()))
            }
            DestinationKey::Host(..) => true,
        }
    }
}

impl Destination {
    /// Where a connection goes that is not HTTP, if it may go anywhere: nobody declared what the
    /// port carries, and nobody wrote routes for HTTP.
    pub fn undeclared(&self) -> Option<&WeightedClusters> {
        match (self.protocol, &self.target) {
            (Protocol::Detect, Target::Http(routes)) => routes.unwritten(),
            (Protocol::Http2 | Protocol::Http1 | Protocol::Tcp, _)
            | (Protocol::Detect, Target::Tcp(_) | Target::Passthrough) => None,
        }
    }
}

impl Inbound {
    /// How `port` is served.
    pub fn port(&self, port: u16) -> &Arc<InboundPort> {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

impl WeightedClusters {
    /// `None` when the weights sum to zero or to more than `u32::MAX`.
    pub fn new(clusters: Vec<(ClusterName, u32)>) -> Option<Self> {
        let total = clusters
            .iter()
            .try_fold(0u32, |sum, (_, weight)| sum.checked_add(*weight))?;
        Some(Self {
            clusters,
            total: NonZeroU32::new(total)?,
        })
    }

    /// All traffic to one cluster.
    pub fn single(cluster: ClusterName) -> Self {
        Self {
            clusters: vec![(cluster, 1)],
            total: NonZeroU32::MIN,
        }
    }

    /// Every cluster with its weight; a weight may be zero.
    pub fn iter(&self) -> impl Iterator<Item = (&ClusterName, u32)> {
        self.clusters.iter().map(|(name, weight)| (name, *weight))
    }

    /// The cluster at `ticket`, a number drawn uniformly from all of `u32`.
    pub fn at(&self, ticket: u32) -> &ClusterName {
        let mut left = scale(ticket, self.total);
        for (name, weight) in &self.clusters {
            match left.checked_sub(*weight) {
                None => return name,
                Some(rest) => left = rest,
            }
        }
        unreachable!("scale() is below the sum of all weights")
    }
}

impl Endpoint {
    /// What its live state is keyed by.
    pub fn key(&self) -> EndpointKey {
        EndpointKey {
            address: self.address,
            transport: self.transport.clone(),
        }
    }
}

impl Limits {
    /// No limit: a mesh adds none that nobody asked for.
    pub const UNLIMITED: Self = Self {
        connections_max: None,
        pending_max: None,
        requests_max: None,
        retries_max: None,
        requests_per_connection_max: None,
    };
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Maps a uniform `u32` to `0..total` by multiplication (Lemire), without a division.
fn scale(ticket: u32, total: NonZeroU32) -> u32 {
    let wide = u64::from(ticket) * u64::from(total.get());
    u32::try_from(wide >> 32).expect("the product of two u32 shifted by 32 bits fits")
}

/// Connect timeout of a cluster that names none.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_follows_its_weights_exactly() {
        let name = |text: &str| ClusterName(text.into());
        let split =
            WeightedClusters::new(vec![(name("a"), 90), (name("none"), 0), (name("b"), 10)])
                .unwrap();
        let mut counts = HashMap::new();
        let step = u32::MAX / 1000;
        for i in 0..1000 {
            *counts
                .entry(split.at(i * step + step / 2).clone())
                .or_insert(0) += 1;
        }
        assert_eq!(counts, HashMap::from([(name("a"), 900), (name("b"), 100)]));
        assert_eq!(split.at(0), &name("a"));
        assert_eq!(split.at(u32::MAX), &name("b"));
    }

    #[test]
    fn weights_that_cannot_be_shared_are_refused() {
        let name = ClusterName("a".into());
        assert_eq!(WeightedClusters::new(vec![]), None);
        assert_eq!(WeightedClusters::new(vec![(name.clone(), 0)]), None);
        assert_eq!(
            WeightedClusters::new(vec![(name.clone(), u32::MAX), (name, 1)]),
            None
        );
    }
}
