//! EDS: addresses with health, weight, and whether they are meshed.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc};

use heddle_proto::{
    v1::EndpointPolicy,
    xds::envoy::config::{
        core::v3::{Address, HealthStatus, Metadata, address, socket_address},
        endpoint::v3::{
            ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier,
        },
    },
    xds::{FromWire, google::protobuf::value},
};

use prost::Message;

use crate::{snapshot::Health, spiffe::SpiffeId};

use super::{
    Known, METADATA_KEY,
    fault::{Faults, Path},
    known,
};

/// The endpoints of a cluster, before they are joined with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// `cluster_name`, the name the cluster's `service_name` refers to.
    pub name: Arc<str>,
    /// In the order of the resource.
    pub list: Vec<EndpointSpec>,
}

/// One endpoint, before its cluster says how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Where to dial.
    pub address: SocketAddr,
    /// Whether a sidecar speaks mutual TLS there.
    pub is_meshed: bool,
    /// The one identity it must present; `None`: any of the cluster's.
    pub identity: Option<SpiffeId>,
    /// Relative share.
    pub weight: NonZeroU32,
    /// Whether it takes new requests.
    pub health: Health,
}

pub(super) fn endpoints(
    message: &ClusterLoadAssignment,
    known: Known,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Endpoints> {
    faults.ignore_if(
        known == Known::Some || message.policy.is_some() || !message.named_endpoints.is_empty(),
    );
    if message.cluster_name.is_empty() {
        faults.refuse(&at.field("cluster_name"), "is empty");
    }
    let mut list = Vec::new();
    for (i, locality) in message.endpoints.iter().enumerate() {
        let at = at.field("endpoints");
        read_locality(locality, &at.index(i), faults, &mut list);
    }
    Some(Endpoints {
        name: message.cluster_name.as_str().into(),
        list,
    })
}

fn read_locality(
    message: &LocalityLbEndpoints,
    at: &Path<'_>,
    faults: &mut Faults,
    list: &mut Vec<EndpointSpec>,
) {
    faults.ignore_if(
        message.proximity.is_some() || message.lb_config.is_some() || message.metadata.is_some(),
    );
    if message.priority != 0 {
        faults.refuse(&at.field("priority"), "other than 0 is not supported");
    }
    for (i, endpoint) in message.lb_endpoints.iter().enumerate() {
        let at = at.field("lb_endpoints");
        list.extend(read_endpoint(endpoint, &at.index(i), faults));
    }
}

fn read_endpoint(message: &LbEndpoint, at: &Path<'_>, faults: &mut Faults) -> Option<EndpointSpec> {
    let health = match HealthStatus::try_from(message.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => Health::Healthy,
        Ok(HealthStatus::Draining) => Health::Draining,
        // Left out, as gRPC does (gRFC A27), and so is a status invented later.
        Ok(HealthStatus::Unhealthy | HealthStatus::Timeout | HealthStatus::Degraded) | Err(_) => {
            return None;
        }
    };
    let Some(HostIdentifier::Endpoint(endpoint)) = &message.host_identifier else {
        faults.refuse(&at.field("endpoint"), "is missing");
        return None;
    };
    faults.ignore_if(
        endpoint.health_check_config.is_some()
            || !endpoint.hostname.is_empty()
            || !endpoint.observability_name.is_empty()
            || !endpoint.additional_addresses.is_empty(),
    );
    let address = socket_address(
        endpoint.address.as_ref(),
        &at.field("endpoint.address"),
        faults,
    )?;
    let weight = match &message.load_balancing_weight {
        None => NonZeroU32::MIN,
        Some(weight) => NonZeroU32::new(weight.value).or_else(|| {
            faults.refuse(&at.field("load_balancing_weight"), "is 0");
            None
        })?,
    };
    let metadata = message.metadata.as_ref();
    ignore_others(metadata, Some(SOCKET_MATCH), faults);
    let is_meshed = read_is_meshed(metadata, &at.field("metadata"), faults)?;
    let identity = read_identity(metadata, &at.field("metadata"), faults)?;
    Some(EndpointSpec {
        address,
        is_meshed,
        identity,
        weight,
        health,
    })
}

/// An IP address with a port; names are not resolved here.
pub(super) fn socket_address(
    message: Option<&Address>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<SocketAddr> {
    let Some(address::Address::SocketAddress(socket)) = message.and_then(|a| a.address.as_ref())
    else {
        faults.refuse(at, "is not a socket address");
        return None;
    };
    let port = match socket.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        Some(socket_address::PortSpecifier::NamedPort(_)) | None => None,
    };
    let port = port.filter(|port| *port != 0);
    let ip = socket.address.parse().ok();
    if ip.is_none() {
        faults.refuse(&at.field("socket_address.address"), "is not an IP address");
    }
    if port.is_none() {
        faults.refuse(
            &at.field("socket_address.port_value"),
            "is not between 1 and 65535",
        );
    }
    Some(SocketAddr::new(ip?, port?))
}

/// Absent is plain; present must be a word we know, else a meshed endpoint could be dialled in
/// plaintext.
fn read_is_meshed(metadata: Option<&Metadata>, at: &Path<'_>, faults: &mut Faults) -> Option<bool> {
    let Some(fields) = metadata.and_then(|m| m.filter_metadata.get(SOCKET_MATCH)) else {
        return Some(false);
    };
    let is_meshed = fields.fields.len() == 1
        && matches!(
            fields.fields.get("heddle").and_then(|v| v.kind.as_ref()),
            Some(value::Kind::StringValue(word)) if word == "mtls"
        );
    if !is_meshed {
        let at = at.field("filter_metadata");
        faults.refuse(&at.field(SOCKET_MATCH), "is not {heddle: mtls}");
        return None;
    }
    Some(true)
}

fn read_identity(
    metadata: Option<&Metadata>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Option<SpiffeId>> {
    let Some(any) = metadata.and_then(|m| m.typed_filter_metadata.get(METADATA_KEY)) else {
        return Some(None);
    };
    let at = at.field("typed_filter_metadata");
    let at = at.field(METADATA_KEY);
    let policy = read_policy::<EndpointPolicy>(any, "heddle.v1.EndpointPolicy", &at, faults)?;
    if policy.identity.is_empty() {
        return Some(None);
    }
    match policy.identity.parse() {
        Ok(identity) => Some(Some(identity)),
        Err(error) => {
            faults.refuse(&at.field("identity"), format!("{error}"));
            None
        }
    }
}

/// Counts metadata that is neither ours nor of the filter `known`.
pub(super) fn ignore_others(metadata: Option<&Metadata>, known: Option<&str>, faults: &mut Faults) {
    let has_others = metadata.is_some_and(|metadata| {
        let mut typed = metadata.typed_filter_metadata.keys();
        let mut filters = metadata.filter_metadata.keys();
        typed.any(|key| key != METADATA_KEY) || filters.any(|key| Some(&**key) != known)
    });
    faults.ignore_if(has_others);
}

/// Unpacks one of our own messages; they have no generated type URL.
pub(super) fn read_policy<M: FromWire + Message>(
    any: &heddle_proto::xds::google::protobuf::Any,
    name: &str,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<M> {
    if any.type_url.strip_prefix("type.googleapis.com/") != Some(name) {
        faults.refuse(at, format!("is {}, expected {name}", any.type_url));
        return None;
    }
    match M::from_wire(&any.value) {
        Ok(message) => {
            faults.ignore_if(known(&message, any.value.len()) == Known::Some);
            Some(message)
        }
        Err(error) => {
            faults.refuse(at, format!("is not valid protobuf: {error}"));
            None
        }
    }
}

/// Where Envoy reads which transport socket an endpoint wants.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";
