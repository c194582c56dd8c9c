use heddle_policy::{
    route::{PathMatch, Route, RouteMatch, RouteTable, VirtualHost},
    snapshot::{
        Balancing, ClusterName, ClusterProtocol, Limits, Protocol, Target, WeightedClusters,
        xds::{ClusterSpec, Endpoints, ListenerTarget},
    },
};

use super::*;

use ResourceType::{Cluster, Endpoints as Eds, Listener as Lds, Route as Rds};

/// Units with a clock and subscriptions that follow.
struct Mesh {
    units: Units,
    subscribed: BTreeSet<ResourceName>,
    start: Instant,
    snapshot: Option<Snapshot>,
}

impl Mesh {
    fn new() -> Self {
        Self {
            units: Units::default(),
            subscribed: BTreeSet::from([eager(MESH_INBOUND), eager(MESH_OUTBOUND)]),
            start: heddle_shell::clock::now(),
            snapshot: None,
        }
    }

    /// `web` with its address listener and a route to `clusters`, all of them delivered.
    fn with_web(clusters: &[&str]) -> Self {
        let mut mesh = Self::new();
        mesh.demand().listener().route("1", clusters);
        for cluster in clusters {
            mesh.cluster(cluster).endpoints(cluster);
        }
        mesh.settle(0);
        assert_eq!(mesh.clusters(), clusters);
        mesh
    }

    fn demand(&mut self) -> &mut Self {
        assert!(self.units.demand(&key()));
        self.settle(0);
        self
    }

    fn take(&mut self, kind: ResourceType, name: &str, version: &str, piece: Piece) -> &mut Self {
        self.subscribed.insert(resource(kind, name));
        self.units
            .accept(resource(kind, name), version.into(), piece);
        self
    }

    fn listener(&mut self) -> &mut Self {
        let listener = DestinationListener {
            listener: OUT.into(),
            key: key(),
            name: "web".into(),
            protocol: Protocol::Http2,
            target: ListenerTarget::Routes("web".into()),
        };
        self.take(
            Lds,
            OUT,
            "1",
            Piece::Listener(Listener::Destination(Arc::new(listener))),
        )
    }

    fn route(&mut self, version: &str, clusters: &[&str]) -> &mut Self {
        let weights = clusters
            .iter()
            .map(|name| (ClusterName((*name).into()), 1))
            .collect();
        let route = Route {
            name: "".into(),
            matches: RouteMatch {
                path: PathMatch::Any,
                headers: Vec::new(),
            },
            clusters: WeightedClusters::new(weights).unwrap(),
            timeout: None,
            retry: None,
        };
        let host = VirtualHost {
            domains: vec!["*".into()],
            routes: vec![Arc::new(route)],
        };
        let table = RouteTable::new("web", vec![host]);
        self.take(Rds, "web", version, Piece::Routes(Arc::new(table)))
    }

    fn cluster(&mut self, name: &str) -> &mut Self {
        let spec = ClusterSpec {
            name: ClusterName(name.into()),
            endpoints: name.into(),
            identities: None,
            allows_plain: true,
            balancing: Balancing::default(),
            outlier: None,
            limits: Limits::UNLIMITED,
            connect_timeout: Duration::from_secs(2),
            protocol: ClusterProtocol::AsClient,
        };
        self.take(Cluster, name, "1", Piece::Cluster(Arc::new(spec)))
    }

    fn endpoints(&mut self, name: &str) -> &mut Self {
        let endpoints = Endpoints {
            name: name.into(),
            list: Vec::new(),
        };
        self.take(Eds, name, "1", Piece::Endpoints(Arc::new(endpoints)))
    }

    fn remove(&mut self, kind: ResourceType, name: &str, second: u64) -> &mut Self {
        let now = self.at(second);
        self.units.remove(resource(kind, name), now);
        self
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    fn settle(&mut self, second: u64) -> Settled {
        let mut settled = self.units.settle(&self.subscribed.clone(), self.at(second));
        self.subscribed.extend(settled.want.iter().cloned());
        for name in &settled.unwant {
            self.subscribed.remove(name);
        }
        if let Some(snapshot) = settled.snapshot.take() {
            self.snapshot = Some(snapshot.clone());
            settled.snapshot = Some(snapshot);
        }
        settled
    }

    fn destination(&self) -> Option<&Arc<Destination>> {
        self.snapshot.as_ref()?.destinations.get(&key())
    }

    /// Of the published destination, those that can be used.
    fn clusters(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .destination()
            .iter()
            .flat_map(|destination| destination.clusters.keys())
            .map(|name| &*name.0)
            .collect();
        names.sort_unstable();
        names
    }

    /// What the published route names.
    fn routed(&self) -> Vec<&str> {
        let Some(Target::Http(table)) = self.destination().map(|one| &one.target) else {
            return Vec::new();
        };
        table.hosts()[0].routes[0]
            .clusters
            .iter()
            .map(|(name, _)| &*name.0)
            .collect()
    }

    fn active_route(&self) -> Option<&str> {
        self.units
            .active()
            .get(&resource(Rds, "web"))
            .map(AsRef::as_ref)
    }
}

fn key() -> DestinationKey {
    DestinationKey::from_listener_name(OUT).unwrap()
}

fn resource(kind: ResourceType, name: &str) -> ResourceName {
    ResourceName {
        kind,
        name: name.into(),
    }
}

const OUT: &str = "out/10.0.0.1:80";

#[test]
fn a_new_destination_is_published_when_it_is_whole() {
    let mut mesh = Mesh::new();
    mesh.demand().listener();
    mesh.settle(0);
    // The rest of the chain is asked for in one go, as far as it can be named.
    assert!(mesh.subscribed.contains(&resource(Rds, "web")));
    mesh.route("1", &["a"]);
    mesh.settle(0);
    assert!(mesh.destination().is_none());
    assert!(mesh.subscribed.contains(&resource(Cluster, "a")));
    assert!(mesh.subscribed.contains(&resource(Eds, "a")));
    mesh.cluster("a").endpoints("a");
    mesh.settle(0);
    assert_eq!(mesh.clusters(), ["a"]);
    assert_eq!(mesh.active_route(), Some("1"));
}

#[test]
fn the_old_route_serves_until_the_new_ones_clusters_have_come() {
    let mut mesh = Mesh::with_web(&["a"]);
    mesh.route("2", &["b"]).cluster("b");
    mesh.settle(1);
    assert_eq!((mesh.routed(), mesh.active_route()), (vec!["a"], Some("1")));
    mesh.settle(4);
    assert_eq!(mesh.routed(), ["a"]);
    mesh.endpoints("b");
    mesh.settle(4);
    assert_eq!((mesh.routed(), mesh.active_route()), (vec!["b"], Some("2")));
    assert_eq!(mesh.clusters(), ["b"]);
}

#[test]
fn after_five_seconds_only_the_missing_cluster_is_unroutable() {
    let mut mesh = Mesh::with_web(&["a"]);
    mesh.route("2", &["a", "late"]);
    assert!(mesh.settle(1).incomplete.is_empty());
    assert_eq!(mesh.units.deadline(), Some(mesh.at(6)));
    assert!(mesh.settle(5).incomplete.is_empty());
    let incomplete = mesh.settle(6).incomplete;
    assert_eq!(incomplete.len(), 1);
    assert!(incomplete[0].1.contains(&resource(Cluster, "late")));
    assert_eq!(
        (mesh.routed(), mesh.clusters()),
        (vec!["a", "late"], vec!["a"])
    );
    assert!(mesh.settle(20).incomplete.is_empty());
    mesh.cluster("late").endpoints("late");
    mesh.settle(21);
    assert_eq!(mesh.clusters(), ["a", "late"]);
}

/// Newer versions keep coming faster than what they name: the last whole one serves.
#[test]
fn a_version_that_names_something_new_is_held_for_itself() {
    let mut mesh = Mesh::with_web(&["a"]);
    let names = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7"];
    for (second, name) in (1..).zip(names) {
        mesh.route(&second.to_string(), &[name]).cluster(name);
        assert!(mesh.settle(second).incomplete.is_empty());
        assert_eq!(mesh.clusters(), ["a"]);
    }
    mesh.endpoints("b7");
    mesh.settle(9);
    assert_eq!(mesh.clusters(), ["b7"]);
}

#[test]
fn a_removed_cluster_lives_until_no_route_names_it() {
    let mut mesh = Mesh::with_web(&["a"]);
    mesh.remove(Cluster, "a", 1).remove(Eds, "a", 1);
    mesh.settle(1);
    mesh.settle(60);
    assert_eq!(mesh.clusters(), ["a"]);
    mesh.route("2", &["b"]).cluster("b").endpoints("b");
    mesh.settle(61);
    assert_eq!(mesh.clusters(), ["b"]);
    assert!(!mesh.units.active().contains_key(&resource(Cluster, "a")));
}

#[test]
fn an_unchanged_destination_is_the_same_object_in_the_next_snapshot() {
    let mut mesh = Mesh::with_web(&["a"]);
    let before = Arc::clone(mesh.destination().unwrap());
    let outbound = Piece::Listener(Listener::Outbound(Arc::default()));
    mesh.units
        .accept(eager(MESH_OUTBOUND), "2".into(), outbound);
    assert!(mesh.settle(1).snapshot.is_some());
    assert!(Arc::ptr_eq(&before, mesh.destination().unwrap()));
    assert!(mesh.settle(2).snapshot.is_none());
}

#[test]
fn an_absent_destination_is_remembered_for_a_minute_and_may_appear() {
    let mut mesh = Mesh::new();
    mesh.demand().remove(Lds, OUT, 1);
    assert!(mesh.settle(1).snapshot.unwrap().absent.contains(&key()));
    assert!(mesh.units.is_known(&key()));
    mesh.listener()
        .route("1", &["a"])
        .cluster("a")
        .endpoints("a");
    assert!(mesh.settle(2).snapshot.unwrap().absent.is_empty());
    assert_eq!(mesh.clusters(), ["a"]);
    mesh.remove(Lds, OUT, 3);
    assert!(mesh.settle(3).snapshot.unwrap().destinations.is_empty());
    assert!(mesh.settle(64).snapshot.unwrap().absent.is_empty());
    // Its subscriptions end after the grace.
    mesh.settle(70);
    assert_eq!(
        mesh.subscribed,
        BTreeSet::from([eager(MESH_INBOUND), eager(MESH_OUTBOUND)])
    );
    assert_eq!(mesh.units.deadline(), None);
}

#[test]
fn a_forgotten_destination_takes_its_subscriptions_with_it() {
    let mut mesh = Mesh::with_web(&["a"]);
    let used = mesh.units.forget(&key());
    assert_eq!(used.len(), 4);
    assert!(mesh.settle(1).snapshot.unwrap().destinations.is_empty());
    mesh.settle(6);
    assert_eq!(
        mesh.subscribed,
        BTreeSet::from([eager(MESH_INBOUND), eager(MESH_OUTBOUND)])
    );
    assert!(mesh.units.active().is_empty());
}

/// Its subscription must not outlive what it brought: it would not be asked for again.
#[test]
fn a_destination_dialled_again_right_after_it_was_forgotten_is_asked_for() {
    let forgotten = {
        let mut mesh = Mesh::with_web(&["a"]);
        mesh.units.forget(&key());
        mesh
    };
    let mut absent = Mesh::new();
    absent.demand().remove(Lds, OUT, 1);
    absent.settle(1);
    for (mut mesh, second) in [(forgotten, 1), (absent, 62)] {
        let settled = mesh.settle(second);
        assert!(settled.unwant.contains(&resource(Lds, OUT)), "{second}");
        assert!(mesh.units.demand(&key()));
        let settled = mesh.settle(second + 1);
        assert!(settled.want.contains(&resource(Lds, OUT)), "{second}");
        mesh.listener()
            .route("1", &["a"])
            .cluster("a")
            .endpoints("a");
        mesh.settle(second + 2);
        assert_eq!(mesh.clusters(), ["a"]);
        // And it stays.
        mesh.settle(second + 20);
        assert_eq!(mesh.clusters(), ["a"]);
        assert!(mesh.subscribed.contains(&resource(Lds, OUT)));
    }
}

#[test]
fn what_came_before_its_listener_is_kept_for_a_while() {
    let mut mesh = Mesh::new();
    mesh.demand().cluster("a").endpoints("a").route("1", &["a"]);
    mesh.settle(1);
    mesh.listener();
    mesh.settle(3);
    assert_eq!(mesh.clusters(), ["a"]);
    mesh.cluster("nobodys");
    mesh.settle(4);
    assert!(
        mesh.settle(9)
            .unwant
            .contains(&resource(Cluster, "nobodys"))
    );
}

#[test]
fn the_workloads_own_protection_outlives_its_withdrawal() {
    let mut mesh = Mesh::new();
    let port = heddle_policy::snapshot::InboundPort {
        mtls: heddle_policy::snapshot::MtlsMode::Strict,
        protocol: Protocol::Detect,
        authz: Arc::default(),
    };
    let inbound = Inbound {
        ports: HashMap::new(),
        default: Arc::new(port),
    };
    let piece = Piece::Listener(Listener::Inbound(Arc::new(inbound)));
    mesh.units.accept(eager(MESH_INBOUND), "1".into(), piece);
    mesh.settle(0);
    mesh.remove(Lds, MESH_INBOUND, 1);
    mesh.settle(1);
    assert!(mesh.snapshot.unwrap().inbound.is_some());
}

#[test]
fn destinations_have_a_bound() {
    let mut mesh = Mesh::new();
    for port in 1..=DESTINATIONS_MAX {
        let port = u16::try_from(port).unwrap();
        assert!(mesh.units.demand(&DestinationKey::Host("a".into(), port)));
    }
    assert!(!mesh.units.demand(&DestinationKey::Host("b".into(), 1)));
    assert!(mesh.units.demand(&DestinationKey::Host("a".into(), 1)));
}
