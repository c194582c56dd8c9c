//! EDS: the same bytes for every client.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use heddle_policy::snapshot::Health;
use heddle_proto::{
    v1::EndpointPolicy,
    xds::envoy::config::{
        core::v3::{HealthStatus, Locality, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
};
use prost::Message;

use super::{Draft, address::Target, wire};
use crate::world::{Instance, InstanceTransport, Topic, World};

/// Behind a name: only the meshed endpoints. What gRPC clusters use where kinds mix, since one
/// gRPC cluster speaks either TLS or plaintext.
pub(super) const MESHED_ONLY: &str = "!meshed";
/// Behind a name: only the plain endpoints. What gRPC clusters in plaintext use where meshed ones
/// may come: endpoints can reach a client before the cluster that says TLS.
pub(super) const PLAIN_ONLY: &str = "!plain";

/// A name without what restricts it.
pub(super) fn unrestricted(name: &str) -> &str {
    let rest = [MESHED_ONLY, PLAIN_ONLY]
        .iter()
        .find_map(|kind| name.strip_suffix(kind));
    rest.unwrap_or(name)
}

pub(super) fn compile(
    world: &World,
    name: &Arc<str>,
    topics: &mut BTreeSet<Topic>,
) -> Option<Draft> {
    let target = Target::parse(world, unrestricted(name), topics)?;
    let lb_endpoints: Vec<_> = target
        .instances(world)
        .iter()
        .filter(|instance| !name.ends_with(MESHED_ONLY) || instance.is_meshed())
        .filter(|instance| !name.ends_with(PLAIN_ONLY) || !instance.is_meshed())
        .map(endpoint)
        .collect();
    let locality = LocalityLbEndpoints {
        // gRPC leaves out a locality without name or weight (gRFC A27).
        locality: Some(Locality::default()),
        load_balancing_weight: wire::u32_value(1),
        lb_endpoints,
        ..LocalityLbEndpoints::default()
    };
    let message = ClusterLoadAssignment {
        cluster_name: name.to_string(),
        endpoints: if locality.lb_endpoints.is_empty() {
            Vec::new()
        } else {
            vec![locality]
        },
        ..ClusterLoadAssignment::default()
    };
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: Vec::new(),
    })
}

fn endpoint(instance: &Instance) -> LbEndpoint {
    let health = match instance.health {
        Health::Healthy => HealthStatus::Healthy,
        Health::Draining => HealthStatus::Draining,
    };
    LbEndpoint {
        health_status: health.into(),
        load_balancing_weight: wire::u32_value(instance.weight.get()),
        metadata: metadata(&instance.transport),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(wire::address(instance.address)),
            ..Endpoint::default()
        })),
    }
}

fn metadata(transport: &InstanceTransport) -> Option<Metadata> {
    let InstanceTransport::Meshed(identities) = transport else {
        return None;
    };
    let socket_match = ("envoy.transport_socket_match".to_owned(), wire::meshed());
    let policy = match identities.as_slice() {
        [only] => Some(EndpointPolicy {
            identity: only.to_string(),
        }),
        // Any of the cluster's list.
        _ => None,
    };
    Some(Metadata {
        filter_metadata: HashMap::from([socket_match]),
        typed_filter_metadata: policy
            .map(|policy| wire::our_metadata("EndpointPolicy", &policy))
            .unwrap_or_default(),
    })
}

impl Instance {
    /// Whether it speaks mutual TLS.
    pub fn is_meshed(&self) -> bool {
        match self.transport {
            InstanceTransport::Plain => false,
            InstanceTransport::Meshed(_) => true,
        }
    }
}
