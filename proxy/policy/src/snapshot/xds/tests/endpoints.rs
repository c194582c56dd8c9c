//! EDS.

use heddle_proto::{
    v1::EndpointPolicy,
    xds::envoy::config::{
        core::v3::{Address, HealthStatus, Metadata, SocketAddress, address, socket_address},
        endpoint::v3::{Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint::HostIdentifier},
    },
};

use super::*;
use crate::snapshot::Health;

/// Of one meshed endpoint.
fn good() -> LbEndpoint {
    LbEndpoint {
        health_status: HealthStatus::Healthy.into(),
        metadata: Some(Metadata {
            filter_metadata: [(MATCH.to_owned(), fields("heddle", "mtls"))].into(),
            typed_filter_metadata: [(METADATA_KEY.to_owned(), identity(tls::ECHO))].into(),
        }),
        load_balancing_weight: u32_value(3),
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: socket_address("10.0.0.1", 80),
            ..Default::default()
        })),
    }
}

fn assignment(endpoint: LbEndpoint) -> ClusterLoadAssignment {
    ClusterLoadAssignment {
        cluster_name: "echo:80".to_owned(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn identity(id: &str) -> Any {
    let identity = id.to_owned();
    pack_own("EndpointPolicy", &EndpointPolicy { identity })
}

fn socket_address(ip: &str, port: u32) -> Option<Address> {
    Some(Address {
        address: Some(address::Address::SocketAddress(SocketAddress {
            address: ip.to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    })
}

fn endpoint(message: &mut LbEndpoint) -> &mut Endpoint {
    match &mut message.host_identifier {
        Some(HostIdentifier::Endpoint(endpoint)) => endpoint,
        other => panic!("{other:?}"),
    }
}

fn metadata(message: &mut LbEndpoint) -> &mut Metadata {
    message.metadata.as_mut().unwrap()
}

fn listed(message: &ClusterLoadAssignment) -> Vec<EndpointSpec> {
    let Piece::Endpoints(endpoints) = accepted(message).piece else {
        panic!("they are endpoints");
    };
    endpoints.list.clone()
}

const MATCH: &str = "envoy.transport_socket_match";

#[test]
#[expect(clippy::too_many_lines, reason = "one row per field")]
fn an_endpoint_that_cannot_be_dialled_as_told_is_refused() {
    check_refused(
        &good(),
        assignment,
        "endpoints[0].lb_endpoints[0]",
        &[
            ("endpoint", |e| e.host_identifier = None),
            ("endpoint", |e| {
                e.host_identifier = Some(HostIdentifier::EndpointName("a".to_owned()));
            }),
            ("endpoint.address", |e| endpoint(e).address = None),
            ("endpoint.address", |e| {
                let pipe = address::Address::Pipe(Default::default());
                endpoint(e).address = Some(Address {
                    address: Some(pipe),
                });
            }),
            ("endpoint.address.socket_address.address", |e| {
                endpoint(e).address = socket_address("echo.shop", 80);
            }),
            ("endpoint.address.socket_address.address", |e| {
                endpoint(e).address = socket_address("", 80);
            }),
            ("endpoint.address.socket_address.port_value", |e| {
                endpoint(e).address = socket_address("10.0.0.1", 0);
            }),
            ("endpoint.address.socket_address.port_value", |e| {
                endpoint(e).address = socket_address("10.0.0.1", 65_536);
            }),
            ("load_balancing_weight", |e| {
                e.load_balancing_weight = u32_value(0);
            }),
            (
                "metadata.filter_metadata.envoy.transport_socket_match",
                |e| {
                    metadata(e)
                        .filter_metadata
                        .insert(MATCH.to_owned(), fields("heddle", "tls"));
                },
            ),
            (
                "metadata.filter_metadata.envoy.transport_socket_match",
                |e| {
                    metadata(e)
                        .filter_metadata
                        .insert(MATCH.to_owned(), fields("other", "mtls"));
                },
            ),
            (
                "metadata.filter_metadata.envoy.transport_socket_match",
                |e| {
                    metadata(e)
                        .filter_metadata
                        .insert(MATCH.to_owned(), Struct::default());
                },
            ),
            (
                "metadata.filter_metadata.envoy.transport_socket_match",
                |e| {
                    let criteria = metadata(e).filter_metadata.get_mut(MATCH).unwrap();
                    criteria.fields.insert("more".to_owned(), word("x"));
                },
            ),
            ("metadata.typed_filter_metadata.heddle.v1.identity", |e| {
                let typed = &mut metadata(e).typed_filter_metadata;
                typed.insert(METADATA_KEY.to_owned(), identity("echo"));
            }),
            ("metadata.typed_filter_metadata.heddle.v1", |e| {
                let typed = &mut metadata(e).typed_filter_metadata;
                typed.insert(METADATA_KEY.to_owned(), Any::default());
            }),
            ("metadata.typed_filter_metadata.heddle.v1", |e| {
                let mut any = identity(tls::ECHO);
                any.value.truncate(3);
                let typed = &mut metadata(e).typed_filter_metadata;
                typed.insert(METADATA_KEY.to_owned(), any);
            }),
        ],
    );
    check_refused(
        &assignment(good()),
        |message| message,
        "",
        &[
            ("cluster_name", |m| m.cluster_name.clear()),
            ("endpoints[0].priority", |m| m.endpoints[0].priority = 1),
        ],
    );
}

#[test]
fn what_endpoints_have_beyond_the_subset_is_counted() {
    check_ignored(
        &assignment(good()),
        |message| message,
        &[
            ("policy", |m| m.policy = Some(Default::default())),
            ("named_endpoints", |m| {
                m.named_endpoints
                    .insert("a".to_owned(), Endpoint::default());
            }),
            ("proximity", |m| m.endpoints[0].proximity = u32_value(1)),
            ("metadata of a locality", |m| {
                m.endpoints[0].metadata = Some(Default::default());
            }),
        ],
    );
    check_ignored(
        &good(),
        assignment,
        &[
            ("health_check_config", |e| {
                endpoint(e).health_check_config = Some(Default::default());
            }),
            ("hostname", |e| {
                endpoint(e).hostname = "echo.shop".to_owned();
            }),
            ("observability_name", |e| {
                endpoint(e).observability_name = "x".to_owned();
            }),
            ("additional_addresses", |e| {
                endpoint(e).additional_addresses = vec![Default::default()];
            }),
            ("metadata of others", |e| {
                metadata(e)
                    .filter_metadata
                    .insert("envoy.lb".to_owned(), Struct::default());
            }),
            ("a field of our metadata that no version has", |e| {
                let typed = &mut metadata(e).typed_filter_metadata;
                typed.insert(METADATA_KEY.to_owned(), with_unknown(identity(tls::ECHO)));
            }),
        ],
    );
    let mut bytes = assignment(good()).encode_to_vec();
    bytes.extend(UNKNOWN);
    let decoded = decode(ResourceType::Endpoints.type_url(), &bytes).unwrap();
    assert_eq!(decoded.ignored, 1);
}

#[test]
fn health_says_who_is_listed() {
    for (status, health) in [
        (HealthStatus::Unknown.into(), Some(Health::Healthy)),
        (HealthStatus::Healthy.into(), Some(Health::Healthy)),
        (HealthStatus::Draining.into(), Some(Health::Draining)),
        (HealthStatus::Unhealthy.into(), None),
        (HealthStatus::Timeout.into(), None),
        (HealthStatus::Degraded.into(), None),
        (99, None),
    ] {
        let mut message = good();
        message.health_status = status;
        let listed = listed(&assignment(message));
        let read = listed.first().map(|endpoint| endpoint.health);
        assert_eq!(read, health, "{status}");
    }
}

#[test]
fn an_endpoint_is_plain_without_a_word_and_anyones_without_an_identity() {
    let list = listed(&assignment(good()));
    assert_eq!((list[0].is_meshed, list[0].weight.get()), (true, 3));
    assert_eq!(list[0].identity, Some(tls::ECHO.parse().unwrap()));
    let mut bare = good();
    bare.metadata = None;
    bare.load_balancing_weight = None;
    let list = listed(&assignment(bare));
    assert_eq!((list[0].is_meshed, list[0].weight.get()), (false, 1));
    assert_eq!(list[0].identity, None);
}
