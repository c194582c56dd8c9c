//! A small mesh that other tests compile and serve, and who may serve what in it.

use super::*;
use crate::{
    model::{
        Action, AuthorizationPolicy, Condition, ConnectionPool, Destination, DestinationRule, From,
        HttpMatch, HttpPool, HttpRoute, Location, Matches, Mtls, MtlsMode, Operation,
        OutlierDetection, Pattern, PeerAuthentication, PortProtocol, Resource, Retries,
        RetryCondition, Rule, Seconds, Selector, Source, Stored, StringMatch, Subset, TcpRoute, To,
        TrafficPolicy, VirtualService, WeightedDestination, WorkloadSelector,
    },
    store::Revision,
};
use std::{num::NonZeroU16, time::Duration};

pub(crate) const USER: &str = "user-service.shop.svc.cluster.local";
pub(crate) const DB: &str = "db.shop.svc.cluster.local";

/// Builds worlds by changing one.
#[derive(Clone, Debug)]
pub(crate) struct Fixture {
    pub(crate) catalog: Catalog,
    pub(crate) workloads: BTreeMap<WorkloadName, Arc<Workload>>,
    pub(crate) mesh: Mesh,
}

impl Fixture {
    pub(crate) fn empty() -> Self {
        Self {
            catalog: Catalog::default(),
            workloads: BTreeMap::new(),
            mesh: Mesh {
                trust_domain: "cluster.local".parse().unwrap(),
                root_namespace: "heddle-system".into(),
                cidrs: vec!["240.240.0.0/16".parse().unwrap()],
                unknown: UnknownDestination::AllowAny,
            },
        }
    }

    /// A canary, a database, policies of every kind, three workloads.
    pub(crate) fn shop() -> Self {
        let mut fixture = Self::empty();
        fixture.put("shop", "user-service", Spec::ServiceEntry(user_service()));
        fixture.catalog.allot(host(USER), 1);
        fixture.put("shop", "db", Spec::ServiceEntry(db()));
        fixture.put("shop", "user-service", Spec::DestinationRule(user_rule()));
        fixture.put("shop", "user-service", Spec::VirtualService(canary(90)));
        fixture.put("shop", "db", Spec::VirtualService(db_routes()));
        fixture.put(
            "heddle-system",
            "mesh",
            peer_authentication(MtlsMode::Permissive),
        );
        fixture.put(
            "shop",
            "deny",
            Spec::AuthorizationPolicy(authorization(Action::Deny)),
        );
        fixture.put(
            "shop",
            "allow",
            Spec::AuthorizationPolicy(authorization(Action::Allow)),
        );
        for (name, address, version) in [
            ("v1-a", "10.1.0.1", "v1"),
            ("v1-b", "10.1.0.2", "v1"),
            ("v2-a", "10.1.0.3", "v2"),
        ] {
            fixture.register(workload(name, "user", address, version));
        }
        fixture
    }

    pub(crate) fn put(&mut self, namespace: &str, name: &str, spec: Spec) {
        let id = ResourceId {
            kind: spec.kind(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.catalog.revision = Revision(self.catalog.revision.0 + 1);
        self.catalog.insert(Stored {
            resource: Arc::new(Resource {
                id,
                labels: Labels::new(),
                annotations: BTreeMap::new(),
                spec,
            }),
            revision: self.catalog.revision,
            written_at_ms: 0,
            written_by: "administrator".into(),
        });
    }

    pub(crate) fn register(&mut self, workload: Workload) {
        let name = (workload.namespace().into(), Arc::clone(&workload.name));
        self.workloads.insert(name, Arc::new(workload));
    }

    pub(crate) fn world(&self) -> World {
        World::new(
            Arc::new(self.catalog.clone()),
            Arc::new(self.workloads.clone()),
            Arc::new(self.mesh.clone()),
        )
    }
}

pub(crate) fn host(name: &str) -> Host {
    Host::qualified(name, "shop").expect("a valid host")
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub(crate) fn workload(name: &str, account: &str, address: &str, version: &str) -> Workload {
    Workload {
        identity: format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .unwrap(),
        name: name.into(),
        address: address.parse().unwrap(),
        ports: BTreeMap::new(),
        labels: labels(&[("app", "user-service"), ("version", version)]),
        health: Health::Healthy,
        weight: NonZeroU32::MIN,
        is_meshed: true,
    }
}

fn port(number: u16, protocol: Option<PortProtocol>) -> ServicePort {
    ServicePort {
        number: NonZeroU16::new(number).unwrap(),
        name: format!("p{number}"),
        protocol,
        target_port: None,
    }
}

pub(crate) fn user_service() -> ServiceEntry {
    ServiceEntry {
        hosts: vec![host(USER)],
        addresses: Vec::new(),
        ports: vec![port(8080, Some(PortProtocol::Grpc)), port(9090, None)],
        location: Location::MeshInternal,
        resolution: crate::model::Resolution::Static,
        endpoints: Vec::new(),
        workload_selector: Some(WorkloadSelector {
            labels: labels(&[("app", "user-service")]),
        }),
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/user".parse().unwrap()],
    }
}

fn db() -> ServiceEntry {
    let endpoint = |address: &str| WorkloadEntry {
        address: address.parse().unwrap(),
        ports: BTreeMap::new(),
        labels: Labels::new(),
        service_account: None,
        weight: NonZeroU32::new(2),
    };
    ServiceEntry {
        hosts: vec![host(DB)],
        addresses: vec!["10.9.0.1".parse().unwrap(), "fd00::9".parse().unwrap()],
        ports: vec![port(5432, Some(PortProtocol::Tcp))],
        endpoints: vec![endpoint("10.2.0.1"), endpoint("fd00::2")],
        workload_selector: None,
        subject_alt_names: Vec::new(),
        ..user_service()
    }
}

pub(crate) fn user_rule() -> DestinationRule {
    let subset = |name: &str| Subset {
        name: name.to_owned(),
        labels: labels(&[("version", name)]),
        traffic_policy: None,
    };
    DestinationRule {
        host: host(USER),
        traffic_policy: Some(TrafficPolicy {
            connection_pool: Some(ConnectionPool {
                tcp: None,
                http: Some(HttpPool {
                    http2_max_requests: NonZeroU32::new(100),
                    max_requests_per_connection: NonZeroU32::new(10),
                    ..HttpPool::default()
                }),
            }),
            outlier_detection: Some(OutlierDetection {
                consecutive_5xx_errors: Some(3),
                min_health_percent: Some(70),
                ..OutlierDetection::default()
            }),
            ..TrafficPolicy::default()
        }),
        subsets: vec![subset("v1"), subset("v2")],
    }
}

/// `v1` gets `stable` percent.
pub(crate) fn canary(stable: u32) -> VirtualService {
    let to = |subset: &str, weight| WeightedDestination {
        destination: Destination {
            host: host(USER),
            subset: Some(subset.to_owned()),
            port: None,
        },
        weight,
    };
    VirtualService {
        hosts: vec![host(USER)],
        http: vec![
            HttpRoute {
                name: Some("beta".to_owned()),
                matches: vec![HttpMatch {
                    uri: Some(StringMatch::Prefix("/shop.Users/".to_owned())),
                    headers: BTreeMap::from([
                        ("x-user".to_owned(), StringMatch::Regex("b.*".to_owned())),
                        ("x-beta".to_owned(), StringMatch::Present),
                    ]),
                    method: Some(StringMatch::Exact("POST".to_owned())),
                    ..HttpMatch::default()
                }],
                route: vec![to("v2", 100)],
                timeout: Some(Seconds(Duration::from_secs(10))),
                retries: Some(Retries {
                    attempts: 3,
                    per_try_timeout: Some(Seconds(Duration::from_secs(2))),
                    retry_on: RetryCondition::ALL.to_vec(),
                }),
            },
            HttpRoute {
                name: None,
                matches: Vec::new(),
                route: vec![to("v1", stable), to("v2", 100 - stable)],
                timeout: None,
                retries: None,
            },
        ],
        tcp: Vec::new(),
    }
}

fn db_routes() -> VirtualService {
    VirtualService {
        hosts: vec![host(DB)],
        http: Vec::new(),
        tcp: vec![TcpRoute {
            route: vec![WeightedDestination {
                destination: Destination {
                    host: host(DB),
                    subset: None,
                    port: None,
                },
                weight: 100,
            }],
        }],
    }
}

pub(crate) fn peer_authentication(mode: MtlsMode) -> Spec {
    Spec::PeerAuthentication(PeerAuthentication {
        mtls: Some(Mtls { mode }),
        ..PeerAuthentication::default()
    })
}

pub(crate) fn authorization(action: Action) -> AuthorizationPolicy {
    let some = |values: &[Pattern]| Matches {
        values: values.to_vec(),
        not_values: vec![Pattern::Suffix("-not".to_owned())],
    };
    let exact = |text: &str| Pattern::Exact(text.to_owned());
    AuthorizationPolicy {
        selector: Some(Selector {
            match_labels: labels(&[("app", "user-service")]),
        }),
        action,
        rules: vec![
            Rule {
                from: vec![From {
                    source: Source {
                        principals: some(&[
                            exact("cluster.local/ns/shop/sa/web"),
                            Pattern::Prefix("cluster.local/ns/test/".to_owned()),
                        ]),
                        namespaces: some(&[exact("shop"), Pattern::Present]),
                        ip_blocks: Matches {
                            values: vec!["10.0.0.0/8".parse().unwrap()],
                            not_values: vec!["10.66.0.0/16".parse().unwrap()],
                        },
                    },
                }],
                to: vec![To {
                    operation: Operation {
                        hosts: some(&[exact("user-service")]),
                        ports: Matches {
                            values: vec![NonZeroU16::new(8080).unwrap()],
                            not_values: Vec::new(),
                        },
                        methods: some(&[exact("POST")]),
                        paths: some(&[Pattern::Prefix("/shop.".to_owned()), Pattern::Present]),
                    },
                }],
                when: vec![
                    Condition::Header("x-team".to_owned(), some(&[exact("a")])),
                    Condition::Principal(some(&[Pattern::Present])),
                    Condition::Namespace(some(&[Pattern::Prefix("sh".to_owned())])),
                ],
            },
            Rule::default(),
        ],
    }
}

fn addresses(fixture: &Fixture, host: &str, port: u16) -> Vec<(String, bool)> {
    let instances = fixture.world().instances(host, port).unwrap();
    instances
        .iter()
        .map(|instance| (instance.address.to_string(), instance.is_meshed()))
        .collect()
}

#[test]
fn a_workload_serves_what_selects_it_and_lists_it() {
    let mut fixture = Fixture::shop();
    let web = workload("web-1", "web", "10.1.0.9", "v1");
    fixture.register(web.clone());
    let found = addresses(&fixture, USER, 8080);
    let expected = ["10.1.0.1:8080", "10.1.0.2:8080", "10.1.0.3:8080"];
    assert_eq!(found, expected.map(|address| (address.to_owned(), true)));
    let services = fixture.world().services_of(&web);
    assert_eq!(services.serves, []);
    assert!(services.refusals[0].contains("sa/web"), "{services:?}");
}

#[test]
fn a_written_endpoint_is_meshed_as_soon_as_a_listed_workload_registers_its_address() {
    let mut fixture = Fixture::shop();
    let mut service = db();
    service.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/db".parse().unwrap()];
    fixture.put("shop", "db", Spec::ServiceEntry(service));
    let expected = |meshed| {
        vec![
            ("10.2.0.1:5432".to_owned(), meshed),
            ("[fd00::2]:5432".to_owned(), false),
        ]
    };
    assert_eq!(addresses(&fixture, DB, 5432), expected(false));
    fixture.register(workload("db-0", "db", "10.2.0.1", "v1"));
    assert_eq!(addresses(&fixture, DB, 5432), expected(true));
}

#[test]
fn an_address_of_somebody_elses_sidecar_is_not_dialled_in_plaintext() {
    let mut fixture = Fixture::shop();
    fixture.register(workload("thief", "web", "10.2.0.1", "v1"));
    assert_eq!(
        addresses(&fixture, DB, 5432),
        [("[fd00::2]:5432".to_owned(), false)]
    );
}

#[test]
fn ports_are_those_of_the_sidecar_where_it_says_so() {
    let taken_at = |target_port, named| {
        let mut fixture = Fixture::empty();
        let mut service = user_service();
        service.ports[0].target_port = NonZeroU16::new(target_port);
        fixture.put("shop", "user-service", Spec::ServiceEntry(service));
        let mut local = workload("a", "user", "127.0.0.1", "v1");
        local.ports = BTreeMap::from([(named, 18080)]);
        fixture.register(local.clone());
        let services = fixture.world().services_of(&local);
        let found = addresses(&fixture, USER, 8080);
        assert_eq!(services.serves.is_empty(), found.is_empty());
        assert_eq!(services.refusals.len(), usize::from(found.is_empty()));
        found
    };
    let taken = [("127.0.0.1:18080".to_owned(), true)];
    // By the application's port, which rules name, and by no other: neither by the service's
    // number nor by where the sidecar listens.
    assert_eq!(taken_at(9000, 9000), taken);
    assert_eq!(taken_at(8080, 8080), taken);
    assert_eq!(taken_at(9000, 8080), []);
    assert_eq!(taken_at(18080, 9000), []);
}

#[test]
fn the_port_of_an_application_is_dialled_at_its_sidecar() {
    let mut fixture = Fixture::shop();
    let mut service = db();
    service.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/db".parse().unwrap()];
    fixture.put("shop", "db", Spec::ServiceEntry(service));
    let mut beside = workload("db-0", "db", "10.2.0.1", "v1");
    beside.ports = BTreeMap::from([(5432, 15432)]);
    fixture.register(beside.clone());
    let expected = |first: &str, meshed| {
        let other = ("[fd00::2]:5432".to_owned(), false);
        vec![(first.to_owned(), meshed), other]
    };
    assert_eq!(
        addresses(&fixture, DB, 5432),
        expected("10.2.0.1:15432", true)
    );
    for dialled in ["10.2.0.1:5432", "10.2.0.1:15432"] {
        let world = fixture.world();
        let (instance, ports) = world.instance_at(dialled.parse().unwrap()).unwrap();
        assert_eq!(instance.address.port(), 15432, "{dialled}");
        assert!(instance.is_meshed() && ports.len() == 1, "{dialled}");
    }
    // What is neither is not its business.
    beside.ports = BTreeMap::from([(80, 15080)]);
    fixture.register(beside);
    assert_eq!(
        addresses(&fixture, DB, 5432),
        expected("10.2.0.1:5432", false)
    );
}

#[test]
fn a_workload_would_take_an_endpoint_away_that_is_written_for_another() {
    let fixture = Fixture::shop();
    let taken = |address: &str, account: &str, ports: &[(u16, u16)]| {
        let mut one = workload("one", account, address, "v1");
        one.ports = ports.iter().copied().collect();
        fixture
            .world()
            .written_for_another(&one)
            .map(ToString::to_string)
    };
    let of_db = Some("ServiceEntry shop/db".to_owned());
    assert_eq!(taken("10.2.0.1", "web", &[]), of_db, "every port");
    assert_eq!(taken("10.2.0.1", "web", &[(80, 5432)]), of_db);
    assert_eq!(taken("10.2.0.1", "web", &[(5432, 15432)]), of_db);
    assert_eq!(taken("10.2.0.1", "web", &[(80, 15080)]), None, "others");
    assert_eq!(taken("10.2.0.9", "web", &[]), None, "elsewhere");
    let mut listed = Fixture::shop();
    let mut service = db();
    service.subject_alt_names = vec!["spiffe://cluster.local/ns/shop/sa/db".parse().unwrap()];
    listed.put("shop", "db", Spec::ServiceEntry(service));
    let owner = workload("db-0", "db", "10.2.0.1", "v1");
    assert_eq!(listed.world().written_for_another(&owner), None);
}

#[test]
fn short_names_stand_for_hosts_of_the_own_namespace() {
    let world = Fixture::shop().world();
    for name in [
        USER,
        "user-service.shop",
        "user-service.shop.svc",
        "user-service",
    ] {
        assert_eq!(
            world.host(name, "shop").map(Host::as_str),
            Some(USER),
            "{name}"
        );
    }
    assert_eq!(world.host("user-service", "other"), None);
}

#[test]
fn a_registration_is_news_of_the_meshs_addresses_only_where_one_comes_or_goes() {
    let before = Fixture::shop();
    let mut after = before.clone();
    let mut heavier = workload("v1-a", "user", "10.1.0.1", "v1");
    heavier.weight = NonZeroU32::new(7).unwrap();
    after.register(heavier);
    let topics = changes(&before.world(), &after.world());
    assert!(topics.contains(&Topic::Address("10.1.0.1".parse().unwrap())));
    assert!(!topics.contains(&Topic::Outbound), "{topics:?}");
    after.register(workload("v1-c", "user", "10.1.0.9", "v1"));
    for (a, b) in [(&before, &after), (&after, &before)] {
        assert!(changes(&a.world(), &b.world()).contains(&Topic::Outbound));
    }
}

#[test]
fn a_change_names_what_depends_on_it_and_nothing_else() {
    let before = Fixture::shop();
    assert!(changes(&before.world(), &before.world()).is_empty());
    let mut after = before.clone();
    after.put("shop", "user-service", Spec::VirtualService(canary(50)));
    let changed = changes(&before.world(), &after.world());
    assert!(changed.contains(&Topic::Host(USER.into())), "{changed:?}");
    assert!(!changed.contains(&Topic::Host(DB.into())), "{changed:?}");
    assert!(!changed.contains(&Topic::Outbound), "{changed:?}");
    let mut after = before.clone();
    after.workloads.pop_first();
    let changed = changes(&before.world(), &after.world());
    assert!(changed.contains(&Topic::Host(USER.into())), "{changed:?}");
    assert!(
        changed.contains(&Topic::Address("10.1.0.1".parse().unwrap())),
        "{changed:?}"
    );
    assert!(!changed.contains(&Topic::InboundOfAll), "{changed:?}");
}
