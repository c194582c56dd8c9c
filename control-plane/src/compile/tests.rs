use std::net::IpAddr;

use heddle_policy::{
    authz::Decision,
    head::RequestHead,
    snapshot::{
        Cluster, Destination, MtlsMode, Protocol, Target as Led, Transport, UnknownDestination,
        xds::{Listener, Piece, Pieces},
    },
    spiffe::Peer,
};
use heddle_proto::xds::envoy::{
    config::{
        cluster::v3::{
            Cluster as WireCluster,
            cluster::{ClusterDiscoveryType, DiscoveryType},
        },
        core::v3::address,
        listener::v3::{Listener as WireListener, filter},
    },
    extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use prost::Message;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    model::{self, Spec},
    world::tests::{
        DB, Fixture, USER, authorization, canary, host, labels, peer_authentication, user_rule,
        user_service, workload,
    },
};

fn node(flavour: Flavour) -> Node {
    Node {
        flavour,
        namespace: "shop".into(),
        labels: Arc::new(labels(&[("app", "user-service"), ("version", "v1")])),
    }
}

fn named(kind: ResourceType, name: &str) -> ResourceName {
    ResourceName {
        kind,
        name: name.into(),
    }
}

/// Compiles as the sidecar sees it, follows dependents, and decodes all of it.
fn accepted(world: &World, listener: &str) -> Pieces {
    let node = node(Flavour::Sidecar);
    let mut pieces = Pieces::default();
    let mut open = vec![named(ResourceType::Listener, listener)];
    while let Some(name) = open.pop() {
        let (compiled, _) = compile(world, &node, &name);
        let Some(compiled) = compiled else { continue };
        let decoded = xds::decode(name.kind.type_url(), &compiled.value)
            .unwrap_or_else(|rejected| panic!("{rejected}"));
        assert_eq!(decoded.ignored, 0, "{name} has fields without meaning");
        assert_eq!(decoded.piece.name(), name);
        pieces.insert(decoded.piece);
        open.extend(compiled.dependents);
    }
    pieces
}

#[track_caller]
fn destination(world: &World, listener: &str) -> Arc<Destination> {
    let mut pieces = accepted(world, listener);
    let Some(Listener::Destination(found)) = pieces.listener(listener).cloned() else {
        panic!("no {listener}");
    };
    let assembly = pieces.assemble(&found);
    assert!(assembly.missing.is_empty(), "{:?}", assembly.missing);
    assembly.destination.unwrap()
}

fn cluster(destination: &Destination, name: &str) -> Arc<Cluster> {
    let found = destination
        .clusters
        .iter()
        .find(|(known, _)| *known.0 == *name);
    Arc::clone(
        found
            .unwrap_or_else(|| panic!("no {name}: {:?}", destination.clusters.keys()))
            .1,
    )
}

#[test]
fn a_service_is_compiled_to_what_was_written() {
    let world = Fixture::shop().world();
    let destination = destination(&world, "out/240.240.0.1:8080");
    assert_eq!(*destination.name, *format!("{USER}:8080"));
    assert_eq!(destination.protocol, Protocol::Http2);
    let Led::Http(routes) = &destination.target else {
        panic!("{destination:?}");
    };
    let routes = &routes.hosts()[0].routes;
    assert_eq!(routes.len(), 2);
    assert_eq!(routes[0].retry.as_ref().unwrap().retries_max.get(), 3);
    let split: Vec<_> = routes[1]
        .clusters
        .iter()
        .map(|(_, weight)| weight)
        .collect();
    assert_eq!(split, [90, 10]);
    let v1 = cluster(&destination, &format!("{USER}:8080#v1"));
    assert_eq!(v1.endpoints.len(), 2);
    assert_eq!(v1.limits.requests_max.unwrap().get(), 100);
    assert_eq!(v1.outlier.unwrap().min_health_percent, 70);
    let Transport::Mtls(identities) = &v1.endpoints[0].transport else {
        panic!("{v1:?}");
    };
    assert_eq!(identities[0].service_account(), "user");
}

#[test]
fn connections_and_plain_endpoints_too() {
    let world = Fixture::shop().world();
    for listener in ["out/10.9.0.1:5432", "out/[fd00::9]:5432", "host/db:5432"] {
        let destination = destination(&world, listener);
        assert_eq!(destination.protocol, Protocol::Tcp);
        let all = cluster(&destination, &format!("{DB}:5432"));
        assert_eq!(all.endpoints.len(), 2);
        assert_eq!(all.endpoints[0].transport, Transport::Plain);
        assert_eq!(all.endpoints[0].weight.get(), 2);
    }
}

#[test]
fn an_endpoints_own_address_leads_to_it_alone_with_its_identity() {
    let world = Fixture::shop().world();
    let declared = destination(&world, "out/10.1.0.3:8080");
    assert_eq!(declared.protocol, Protocol::Http2);
    let other = destination(&world, "out/10.1.0.3:7777");
    assert_eq!(other.protocol, Protocol::Tcp, "nobody declared the port");
    for (found, name) in [(declared, "10.1.0.3:8080"), (other, "10.1.0.3:7777")] {
        let only = cluster(&found, name);
        assert_eq!(only.endpoints.len(), 1);
        assert!(matches!(&only.endpoints[0].transport, Transport::Mtls(ids) if ids.len() == 1));
    }
}

#[test]
fn what_does_not_exist_is_nothing_and_says_what_would_change_that() {
    let world = Fixture::shop().world();
    for (kind, name) in [
        (ResourceType::Listener, "out/10.7.7.7:80"),
        (ResourceType::Listener, "out/240.240.0.1:81"),
        (ResourceType::Listener, "host/nobody:80"),
        (ResourceType::Route, "nobody.shop.svc.cluster.local:80"),
        (
            ResourceType::Cluster,
            "user-service.shop.svc.cluster.local:8080#v3",
        ),
        (
            ResourceType::Endpoints,
            "user-service.shop.svc.cluster.local:08080",
        ),
    ] {
        let (compiled, topics) = compile(&world, &node(Flavour::Sidecar), &named(kind, name));
        assert!(compiled.is_none(), "{name}");
        assert_eq!(
            topics.is_empty(),
            name.ends_with(":08080"),
            "{name}: {topics:?}"
        );
    }
}

#[test]
fn inbound_has_mode_protocol_and_rules_of_each_port() {
    let world = Fixture::shop().world();
    let pieces = accepted(&world, xds::MESH_INBOUND);
    let Some(Listener::Inbound(inbound)) = pieces.listener(xds::MESH_INBOUND) else {
        panic!("no inbound");
    };
    assert_eq!(inbound.port(8080).protocol, Protocol::Http2);
    assert_eq!(inbound.port(8080).mtls, MtlsMode::Permissive);
    assert_eq!(inbound.port(1).protocol, Protocol::Detect);
    let caller = Peer::Meshed("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap());
    let headers: &[(&str, &[u8])] = &[("x-team", b"a")];
    let head = RequestHead {
        method: "POST",
        scheme: "https",
        authority: "user-service",
        path: "/shop.Users/Get",
        headers: &headers,
    };
    let source: IpAddr = "10.1.1.1".parse().unwrap();
    let decision = inbound
        .port(8080)
        .authz
        .decide(&caller, source, 8080, Some(&head));
    let Decision::Deny(Some(rule)) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(rule.name(), "ns[shop]-policy[deny]-rule[0]");
}

#[test]
fn a_mode_of_a_port_outranks_workload_namespace_and_mesh() {
    let mode = |levels: &[&str], port: u16| {
        let mut fixture = Fixture::shop();
        for level in levels {
            let mut spec = peer_authentication(model::MtlsMode::Disable);
            let Spec::PeerAuthentication(policy) = &mut spec else {
                unreachable!("made as one");
            };
            if *level != "namespace" {
                policy.selector = Some(model::Selector {
                    match_labels: labels(&[("app", "user-service")]),
                });
            }
            if *level == "port" {
                policy.mtls = None;
                let strict = model::Mtls {
                    mode: model::MtlsMode::Strict,
                };
                policy
                    .port_level_mtls
                    .insert(8080.try_into().unwrap(), strict);
            }
            fixture.put("shop", level, spec);
        }
        let pieces = accepted(&fixture.world(), xds::MESH_INBOUND);
        let Some(Listener::Inbound(inbound)) = pieces.listener(xds::MESH_INBOUND) else {
            panic!("no inbound");
        };
        inbound.port(port).mtls
    };
    assert_eq!(mode(&[], 8080), MtlsMode::Permissive);
    assert_eq!(mode(&["namespace"], 8080), MtlsMode::Disable);
    assert_eq!(mode(&["namespace", "port"], 8080), MtlsMode::Strict);
    assert_eq!(mode(&["workload", "port"], 8080), MtlsMode::Strict);
    assert_eq!(mode(&["workload", "port"], 9090), MtlsMode::Disable);
}

/// The sidecar knows that one, and where it listens itself is nobody's business.
#[test]
fn inbound_ports_are_the_applications() {
    let mut service = user_service();
    service.ports[0].target_port = 9999.try_into().ok();
    let mut fixture = Fixture::shop();
    fixture.put("shop", "user-service", Spec::ServiceEntry(service));
    let pieces = accepted(&fixture.world(), xds::MESH_INBOUND);
    let Some(Listener::Inbound(inbound)) = pieces.listener(xds::MESH_INBOUND) else {
        panic!("no inbound");
    };
    assert_eq!(inbound.port(9999).protocol, Protocol::Http2);
    assert_eq!(inbound.port(8080).protocol, Protocol::Detect);
}

/// What the sidecar takes for "nobody has said that this is HTTP".
#[test]
fn an_undeclared_port_is_http_only_when_a_route_says_so() {
    let mut service = user_service();
    service.ports[0].protocol = None;
    let mut fixture = Fixture::empty();
    fixture.put("shop", "user-service", Spec::ServiceEntry(service));
    fixture.put("shop", "user-service", Spec::DestinationRule(user_rule()));
    fixture.catalog.allot(host(USER), 1);
    fixture.register(workload("v1-a", "user", "10.1.0.1", "v1"));
    for (listener, name) in [
        ("out/240.240.0.1:8080", format!("{USER}:8080")),
        ("out/10.1.0.1:8080", "10.1.0.1:8080".to_owned()),
    ] {
        let found = destination(&fixture.world(), listener);
        assert_eq!(found.protocol, Protocol::Detect);
        let bytes = found.undeclared().expect("nobody has written a route");
        let clusters: Vec<_> = bytes.iter().map(|(name, _)| &*name.0).collect();
        assert_eq!(clusters, [name]);
    }
    fixture.put("shop", "user-service", Spec::VirtualService(canary(90)));
    let found = destination(&fixture.world(), "out/240.240.0.1:8080");
    assert_eq!(found.undeclared(), None);
}

#[test]
fn outbound_has_the_meshs_addresses_and_names() {
    let pieces = accepted(&Fixture::shop().world(), xds::MESH_OUTBOUND);
    let Some(Listener::Outbound(outbound)) = pieces.listener(xds::MESH_OUTBOUND) else {
        panic!("no outbound");
    };
    let is_mesh = |text: &str| {
        let address: IpAddr = text.parse().unwrap();
        outbound
            .mesh_cidrs
            .iter()
            .any(|cidr| cidr.contains(&address))
    };
    assert!(
        ["240.240.9.9", "10.9.0.1", "fd00::9", "10.1.0.1"]
            .into_iter()
            .all(is_mesh)
    );
    assert!(!is_mesh("10.9.0.2"));
    for name in [USER, "user-service", "user-service.shop"] {
        let [v4, v6] = crate::addresses::addresses(1);
        assert_eq!(outbound.hosts[name], [v4, v6], "{name}");
    }
}

#[test]
fn versions_are_content_and_equal_on_every_replica() {
    let flavours = || {
        let certificates = "/etc/heddle/certificates".into();
        [
            Flavour::Sidecar,
            Flavour::Grpc,
            Flavour::Envoy { certificates },
        ]
    };
    let everything = |world: &World| {
        let mut versions = Vec::new();
        for flavour in flavours() {
            let node = node(flavour);
            let api = named(ResourceType::Listener, &format!("{USER}:8080"));
            let eager = all(world, &node, ResourceType::Listener);
            let eager = eager.iter().map(|name| named(ResourceType::Listener, name));
            for name in every_name(world, &HashSet::new())
                .into_iter()
                .chain(eager)
                .chain([api])
            {
                let (compiled, _) = compile(world, &node, &name);
                versions.push((name, compiled.map(|compiled| compiled.version)));
            }
        }
        versions
    };
    let first = everything(&Fixture::shop().world());
    assert!(
        first
            .iter()
            .filter(|(_, version)| version.is_some())
            .count()
            > 30
    );
    for _ in 0..20 {
        assert_eq!(everything(&Fixture::shop().world()), first);
    }
}

#[test]
fn routes_and_endpoints_are_the_same_for_everyone_and_compiled_once() {
    let compiler = Compiler::new(Arc::new(Fixture::shop().world()));
    for kind in [ResourceType::Route, ResourceType::Endpoints] {
        let name = named(kind, &format!("{USER}:8080"));
        let (sidecar, _) = compiler.get(&node(Flavour::Sidecar), &name);
        let (grpc, _) = compiler.get(&node(Flavour::Grpc), &name);
        assert!(Arc::ptr_eq(&sidecar.unwrap(), &grpc.unwrap()), "{name}");
    }
}

#[test]
fn a_change_recompiles_what_it_is_about() {
    let mut fixture = Fixture::shop();
    let compiler = Compiler::new(Arc::new(fixture.world()));
    let node = node(Flavour::Sidecar);
    let route = named(ResourceType::Route, &format!("{USER}:8080"));
    let other = named(ResourceType::Cluster, &format!("{DB}:5432"));
    let before = [&route, &other].map(|name| compiler.get(&node, name).0.unwrap());
    fixture.put("shop", "user-service", Spec::VirtualService(canary(0)));
    compiler.advance(Arc::new(fixture.world()));
    let after = [&route, &other].map(|name| compiler.get(&node, name).0.unwrap());
    assert_ne!(before[0].version, after[0].version);
    assert!(Arc::ptr_eq(&before[1], &after[1]));
}

#[test]
fn what_does_not_exist_is_not_kept() {
    let compiler = Compiler::new(Arc::new(Fixture::shop().world()));
    let node = node(Flavour::Sidecar);
    for number in 0..10 {
        let name = named(ResourceType::Route, &format!("nobody-{number}:80"));
        assert!(compiler.get(&node, &name).0.is_none());
    }
    assert!(compiler.state.lock().cache.is_empty());
}

#[test]
fn a_change_that_a_sidecar_would_refuse_is_refused_before() {
    let before = Fixture::shop();
    let mut after = before.clone();
    let mut routes = canary(50);
    let too_big = ".{1000}".repeat(20);
    routes.http[0].matches[0].uri = Some(model::StringMatch::Regex(too_big));
    after.put("shop", "user-service", Spec::VirtualService(routes));
    validate(&before.world(), &before.world()).unwrap();
    let refused = validate(&before.world(), &after.world()).unwrap_err();
    assert_eq!(refused.resource.kind, ResourceType::Route);
    let path = &refused.source.faults[0].path;
    assert_eq!(path, "virtual_hosts[0].routes[0].match.safe_regex.regex");
}

/// A world at random: services of every protocol, entries and registrations that may or may not
/// be listed, policies of every kind.
fn random(rng: &mut impl Rng) -> Fixture {
    let mut fixture = Fixture::shop();
    let protocols = [
        None,
        Some(model::PortProtocol::Http),
        Some(model::PortProtocol::Http2),
        Some(model::PortProtocol::Grpc),
        Some(model::PortProtocol::Tls),
        Some(model::PortProtocol::Tcp),
    ];
    let mut pick = |n: usize| rng.random_range(0..n);
    for i in 0..pick(5) {
        let mut service = user_service();
        service.hosts = vec![host(&format!("s{i}"))];
        for port in &mut service.ports {
            port.protocol = protocols[pick(protocols.len())];
            if pick(3) == 0 {
                port.target_port = (1000 + u16::try_from(pick(3)).unwrap()).try_into().ok();
            }
        }
        service.addresses = vec![format!("10.8.0.{}", pick(4)).parse().unwrap()];
        if pick(3) == 0 {
            service.subject_alt_names.clear();
        }
        if pick(4) == 0 {
            service.resolution = model::Resolution::None;
            service.workload_selector = None;
        }
        fixture.put("shop", &format!("s{i}"), Spec::ServiceEntry(service));
    }
    for i in 0..pick(6) {
        let account = ["user", "web"][pick(2)];
        let mut one = workload(
            &format!("w{i}"),
            account,
            &format!("10.1.0.{}", pick(9)),
            "v2",
        );
        one.is_meshed = pick(3) > 0;
        if pick(3) == 0 {
            one.ports.insert(8080, 18080);
        }
        fixture.register(one);
    }
    let action = [model::Action::Allow, model::Action::Deny][pick(2)];
    fixture.put(
        "heddle-system",
        "all",
        Spec::AuthorizationPolicy(authorization(action)),
    );
    let stable = u32::try_from(pick(101)).unwrap();
    fixture.put("shop", "user-service", Spec::VirtualService(canary(stable)));
    fixture
}

#[test]
fn everything_that_is_compiled_is_accepted() {
    for seed in 0..40 {
        let world = random(&mut StdRng::seed_from_u64(seed)).world();
        let node = node(Flavour::Sidecar);
        let addresses = world
            .addresses()
            .flat_map(|ip| [8080, 9090, 5432, 1000, 18080].map(|port| SocketAddr::new(ip, port)));
        let listeners =
            addresses.map(|address| named(ResourceType::Listener, &format!("out/{address}")));
        let eager = all(&world, &node, ResourceType::Listener);
        let eager = eager.iter().map(|name| named(ResourceType::Listener, name));
        let mut open: Vec<_> = listeners.chain(eager).collect();
        open.extend(every_name(&world, &HashSet::new()));
        let mut seen = HashSet::new();
        while let Some(name) = open.pop() {
            if !seen.insert(name.clone()) {
                continue;
            }
            if let (Some(compiled), _) = compile(&world, &node, &name) {
                accept(&name, &compiled).unwrap_or_else(|refused| panic!("seed {seed}: {refused}"));
                open.extend(compiled.dependents);
            }
        }
    }
}

#[test]
fn whoever_watches_the_topics_of_a_name_sees_every_change_of_it() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let (before, after) = (random(&mut rng).world(), random(&mut rng).world());
        let changed = changes(&before, &after);
        let mut names = every_name(&before, &HashSet::new());
        names.extend(every_name(&after, &HashSet::new()));
        names.insert(named(ResourceType::Listener, xds::MESH_OUTBOUND));
        names.insert(named(ResourceType::Listener, xds::MESH_INBOUND));
        for ip in before.addresses().chain(after.addresses()) {
            let address = SocketAddr::new(ip, 8080);
            names.insert(named(ResourceType::Listener, &format!("out/{address}")));
            names.insert(named(ResourceType::Endpoints, &address.to_string()));
        }
        for name in names {
            let (was, topics) = compile(&before, &node(Flavour::Sidecar), &name);
            let (is, _) = compile(&after, &node(Flavour::Sidecar), &name);
            let differs = was.map(|c| c.version) != is.map(|c| c.version);
            let is_noticed = topics.iter().any(|topic| changed.contains(topic));
            assert!(
                !differs || is_noticed,
                "seed {seed}: {name} changed unseen; {topics:?}"
            );
        }
    }
}

#[test]
fn envoy_listens_to_both_families() {
    let world = Fixture::shop().world();
    let certificates = "/etc/heddle/certificates".into();
    let node = node(Flavour::Envoy { certificates });
    for name in [xds::MESH_OUTBOUND, xds::MESH_INBOUND] {
        let (compiled, _) = compile(&world, &node, &named(ResourceType::Listener, name));
        let listener = WireListener::decode(&*compiled.unwrap().value).unwrap();
        let Some(address::Address::SocketAddress(socket)) = listener.address.unwrap().address
        else {
            panic!("{name} is not bound to a socket");
        };
        assert_eq!((&*socket.address, socket.ipv4_compat), ("::", true));
    }
}

mod flavours;
