//! What Envoy and proxyless gRPC are told apart from sidecars.

use super::*;

#[test]
fn grpc_gets_one_kind_of_endpoint() {
    let mut fixture = Fixture::shop();
    let mut plain = workload("plain", "user", "10.1.0.8", "v1");
    plain.is_meshed = false;
    fixture.register(plain);
    let world = fixture.world();
    let name = named(ResourceType::Cluster, &format!("{USER}:8080"));
    let (compiled, _) = compile(&world, &node(Flavour::Grpc), &name);
    let endpoints = compiled.unwrap().dependents.remove(0);
    assert_eq!(*endpoints.name, *format!("{USER}:8080!meshed"));
    let (compiled, _) = compile(&world, &node(Flavour::Grpc), &endpoints);
    let decoded = xds::decode(endpoints.kind.type_url(), &compiled.unwrap().value).unwrap();
    let Piece::Endpoints(list) = decoded.piece else {
        panic!("{decoded:?}");
    };
    assert!(list.list.len() == 3 && list.list.iter().all(|endpoint| endpoint.is_meshed));
}

/// gRPC reads the one list, Envoy and sidecars the other.
#[test]
#[expect(deprecated, reason = "gRPC reads no other SAN matchers")]
fn grpc_is_told_identities_in_the_list_that_it_reads() {
    use heddle_proto::xds::envoy::{
        config::{cluster::v3::Cluster, core::v3::transport_socket::ConfigType},
        extensions::transport_sockets::tls::v3::{
            UpstreamTlsContext, common_tls_context::ValidationContextType,
        },
        r#type::matcher::v3::string_matcher::MatchPattern,
    };
    let world = Fixture::shop().world();
    let name = named(ResourceType::Cluster, &format!("{USER}:8080"));
    let (compiled, _) = compile(&world, &node(Flavour::Grpc), &name);
    let cluster = Cluster::decode(&*compiled.unwrap().value).unwrap();
    let Some(ConfigType::TypedConfig(any)) = cluster.transport_socket.unwrap().config_type else {
        panic!("it has a configuration");
    };
    let context = UpstreamTlsContext::decode(&*any.value).unwrap();
    let common = context.common_tls_context.unwrap();
    let Some(ValidationContextType::ValidationContext(validation)) = common.validation_context_type
    else {
        panic!("gRPC takes this form only");
    };
    let typed = validation.match_typed_subject_alt_names.iter();
    let typed: Vec<_> = typed.filter_map(|typed| typed.matcher.clone()).collect();
    assert!(!typed.is_empty());
    assert_eq!(validation.match_subject_alt_names, typed);
    let is_exact = |pattern: &Option<MatchPattern>| matches!(pattern, Some(MatchPattern::Exact(_)));
    assert!(typed.iter().all(|matcher| is_exact(&matcher.match_pattern)));
}

/// Name of the endpoints, how many there are, how many of those are meshed, and whether they are
/// spoken to in TLS: the canary service, as proxyless gRPC sees it.
fn grpc_sees(fixture: &Fixture) -> (String, usize, usize, bool) {
    let world = fixture.world();
    let name = named(ResourceType::Cluster, &format!("{USER}:8080"));
    let (compiled, _) = compile(&world, &node(Flavour::Grpc), &name);
    let compiled = compiled.unwrap();
    let message = WireCluster::decode(&*compiled.value).unwrap();
    let endpoints = &compiled.dependents[0];
    let (list, _) = compile(&world, &node(Flavour::Grpc), endpoints);
    let decoded = xds::decode(endpoints.kind.type_url(), &list.unwrap().value).unwrap();
    let Piece::Endpoints(list) = decoded.piece else {
        panic!("{decoded:?}");
    };
    let meshed = list.list.iter().filter(|endpoint| endpoint.is_meshed);
    (
        endpoints.name.replace(USER, ""),
        list.list.len(),
        meshed.count(),
        message.transport_socket.is_some(),
    )
}

#[test]
fn grpc_never_meets_a_meshed_endpoint_in_plaintext() {
    let mut fixture = Fixture::shop();
    let meshed = std::mem::take(&mut fixture.workloads);
    let whole = || ":8080".to_owned();
    assert_eq!(
        grpc_sees(&fixture),
        (whole(), 0, 0, true),
        "nobody is there"
    );
    let mut plain = workload("plain", "user", "10.1.0.8", "v1");
    plain.is_meshed = false;
    fixture.register(plain);
    // A client that speaks plaintext holds a list that no meshed endpoint ever comes into: the
    // list may reach it before the cluster that says TLS.
    assert_eq!(grpc_sees(&fixture), (":8080!plain".to_owned(), 1, 0, false));
    fixture.workloads.extend(meshed.clone());
    assert_eq!(grpc_sees(&fixture), (":8080!meshed".to_owned(), 3, 3, true));
    fixture.workloads = meshed;
    assert_eq!(grpc_sees(&fixture), (whole(), 3, 3, true));
}

#[test]
fn envoy_closes_what_nobody_describes_where_the_settings_say_so() {
    let mut fixture = Fixture::shop();
    let certificates: Arc<str> = "/etc/heddle/certificates".into();
    let node = node(Flavour::Envoy { certificates });
    // How the cluster finds endpoints that what is unknown goes to, and that it is among all.
    let unknown = |fixture: &Fixture| {
        let world = fixture.world();
        let name = named(ResourceType::Listener, xds::MESH_OUTBOUND);
        let (compiled, _) = compile(&world, &node, &name);
        let listener = WireListener::decode(&*compiled.unwrap().value).unwrap();
        let filter = listener.default_filter_chain.unwrap().filters.remove(0);
        let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type else {
            panic!("no config");
        };
        let proxy = TcpProxy::decode(&*any.value).unwrap();
        let Some(ClusterSpecifier::Cluster(cluster)) = proxy.cluster_specifier else {
            panic!("{proxy:?}");
        };
        let all = all(&world, &node, ResourceType::Cluster);
        assert!(all.iter().any(|name| **name == *cluster), "{all:?}");
        let (compiled, _) = compile(&world, &node, &named(ResourceType::Cluster, &cluster));
        let message = WireCluster::decode(&*compiled.unwrap().value).unwrap();
        let Some(ClusterDiscoveryType::Type(kind)) = message.cluster_discovery_type else {
            panic!("{message:?}");
        };
        DiscoveryType::try_from(kind).unwrap()
    };
    assert_eq!(unknown(&fixture), DiscoveryType::OriginalDst);
    fixture.mesh.unknown = UnknownDestination::RegistryOnly;
    assert_eq!(unknown(&fixture), DiscoveryType::Static);
}

#[test]
fn the_authority_has_no_case_for_envoy_either() {
    let mut fixture = Fixture::shop();
    let mut policy = authorization(model::Action::Deny);
    policy.rules[0].to = vec![model::To {
        operation: model::Operation {
            hosts: model::Matches {
                values: vec![model::Pattern::Exact("admin.shop".into())],
                not_values: Vec::new(),
            },
            ..model::Operation::default()
        },
    }];
    policy.rules.truncate(1);
    fixture.put("shop", "deny", Spec::AuthorizationPolicy(policy));
    let certificates: Arc<str> = "/etc/heddle/certificates".into();
    let name = named(ResourceType::Listener, xds::MESH_INBOUND);
    let ignore_case = {
        // `StringMatcher.ignore_case = true` after `exact: admin.shop`.
        let matcher = StringMatcher {
            match_pattern: Some(MatchPattern::Exact("admin.shop".into())),
            ignore_case: true,
        };
        matcher.encode_to_vec()
    };
    let has = |flavour| {
        let (compiled, _) = compile(&fixture.world(), &node(flavour), &name);
        let value = compiled.unwrap().value;
        value
            .windows(ignore_case.len())
            .any(|window| window == ignore_case)
    };
    assert!(has(Flavour::Envoy { certificates }));
    // The sidecar compares in lower case by itself.
    assert!(!has(Flavour::Sidecar));
}
