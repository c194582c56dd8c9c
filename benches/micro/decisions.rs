//! What the policies decide for a request, at several sizes of what they know: each a closure
//! that decides once. `hot_path` measures their time, `instructions` counts.

use std::{
    collections::HashMap,
    hint::black_box,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    balance::{Balancer, Candidates, Standing, Turn},
    deadline::GrpcTimeout,
    head::RequestHead,
    outcome::Outcome,
    outlier::{FailureKind, Outlier, OutlierPolicy},
    path::{Normal, Strictness},
    retry::Tried,
    route::{PathMatch, Route, RouteMatch, RouteTable, ValueMatch, VirtualHost},
    snapshot::{
        Balancing, CONNECT_TIMEOUT, Cluster, ClusterName, ClusterProtocol, Destination,
        DestinationKey, Endpoint, Health, Limits, Protocol, Snapshot, Target, Transport,
        WeightedClusters,
    },
    spiffe::Peer,
};
use heddle_relay::cluster::{EndpointState, LiveCluster};
use rand::{SeedableRng as _, rngs::StdRng};

pub(crate) struct Decision {
    /// `<what>/<size>`.
    pub(crate) name: String,
    /// Decides once.
    pub(crate) run: Box<dyn FnMut()>,
}

pub(crate) fn all() -> Vec<Decision> {
    let mut all = Vec::new();
    all.extend([3, 10, 100, 1_000].map(pick));
    all.extend([3, 1_000].map(|endpoints| pick_by_weight(Balancing::LeastRequest, endpoints)));
    all.extend([3, 1_000].map(|endpoints| pick_by_weight(Balancing::RoundRobin, endpoints)));
    all.extend([3, 1_000].map(pick_live));
    all.extend([1, 10, 100, 1_000].map(find));
    all.extend([1, 1_000].map(find_host));
    all.extend([1, 10, 100, 1_000].map(decide));
    all.extend([1, 1_000].map(outbound));
    all.extend(normalise());
    all.push(observe());
    all.push(timeout());
    all
}

type Pairs = &'static [(&'static str, &'static [u8])];

const HEADERS: Pairs = &[("x-user", b"a"), ("content-type", b"application/grpc")];

const HEAD: RequestHead<'_> = RequestHead {
    method: "POST",
    scheme: "https",
    authority: "user-service:8080",
    path: "/users.v1.Users/Get",
    headers: &HEADERS,
};

fn decision<T>(name: String, mut decide: impl FnMut() -> T + 'static) -> Decision {
    let run = Box::new(move || {
        black_box(decide());
    });
    Decision { name, run }
}

struct Busy(Vec<f32>);

impl Candidates for Busy {
    fn standing(&self, _endpoint: usize) -> Standing {
        Standing::Open
    }

    fn load(&self, endpoint: usize) -> f32 {
        self.0[endpoint]
    }

    fn share(&self, _endpoint: usize) -> f32 {
        1.0
    }
}

/// An endpoint out of as many.
fn pick(endpoints: u16) -> Decision {
    let weights = (0..endpoints).map(|_| NonZeroU32::MIN);
    let balancer = Balancer::new(Balancing::LeastRequest, weights);
    picked(format!("pick/{endpoints}"), balancer)
}

/// The same where weights differ.
fn pick_by_weight(balancing: Balancing, endpoints: u16) -> Decision {
    let weights = (0..endpoints).map(|i| NonZeroU32::MIN.saturating_add(u32::from(i % 3)));
    let name = match balancing {
        Balancing::LeastRequest => "pick-by-weight",
        Balancing::RoundRobin => "pick-in-turn",
        Balancing::Random => "pick-at-random",
    };
    picked(
        format!("{name}/{endpoints}"),
        Balancer::new(balancing, weights),
    )
}

fn picked(name: String, balancer: Balancer) -> Decision {
    let busy = Busy(
        (0..balancer.len())
            .map(|i| if i % 7 < 3 { 1.0 } else { 0.0 })
            .collect(),
    );
    let (mut turn, mut rng) = (Turn(0), StdRng::seed_from_u64(1));
    decision(name, move || {
        balancer.pick(black_box(&busy), &mut turn, &mut rng)
    })
}

/// The same with the live state of the data path; one in flight at each third endpoint.
fn pick_live(endpoints: u16) -> Decision {
    let now = now();
    let endpoint = |i: u16| {
        let [high, low] = i.to_be_bytes();
        Arc::new(Endpoint {
            address: ([10, 1, high, low], 8080).into(),
            transport: Transport::Plain,
            weight: NonZeroU32::MIN,
            health: Health::Healthy,
        })
    };
    let config = Cluster {
        name: ClusterName("a".into()),
        endpoints: (0..endpoints).map(endpoint).collect(),
        balancing: Balancing::LeastRequest,
        outlier: Some(outlier()),
        limits: Limits::UNLIMITED,
        connect_timeout: CONNECT_TIMEOUT,
        protocol: ClusterProtocol::AsClient,
    };
    let states = config.endpoints.iter();
    let states = states.map(|endpoint| Arc::new(EndpointState::new(endpoint.key(), now)));
    let states: Vec<_> = states.collect();
    let busy: Vec<_> = states.iter().step_by(3).map(EndpointState::begin).collect();
    let cluster = LiveCluster::new(Arc::new(config), Arc::default(), states);
    let (mut turn, mut rng) = (Turn(0), StdRng::seed_from_u64(1));
    decision(format!("pick-live/{endpoints}"), move || {
        let _in_flight = &busy;
        cluster.pick(black_box(&Tried::default()), now, &mut turn, &mut rng)
    })
}

/// The last of as many routes fits.
fn find(routes: usize) -> Decision {
    let table = table(routes);
    decision(format!("find/{routes}"), move || {
        table.find(black_box(&HEAD)).is_some()
    })
}

fn table(routes: usize) -> RouteTable {
    let route = |i: usize| {
        let path = if i + 1 == routes {
            PathMatch::Any
        } else {
            PathMatch::Prefix(format!("/users.v1.Users/Get{i}").into())
        };
        route(path)
    };
    let host = VirtualHost {
        domains: vec!["user-service".into()],
        routes: (0..routes).map(route).collect(),
    };
    RouteTable::new("bench", vec![host])
}

fn route(path: PathMatch) -> Arc<Route> {
    Arc::new(Route {
        name: "".into(),
        matches: RouteMatch {
            path,
            headers: vec![],
        },
        clusters: WeightedClusters::single(ClusterName("a".into())),
        timeout: None,
        retry: None,
    })
}

/// The last of as many virtual hosts fits.
fn find_host(hosts: usize) -> Decision {
    let host = |i: usize| {
        let name = format!("user-service-{i}");
        let is_last = i + 1 == hosts;
        VirtualHost {
            domains: vec![if is_last { "user-service" } else { &*name }.into()],
            routes: vec![route(PathMatch::Any)],
        }
    };
    let table = RouteTable::new("bench", (0..hosts).map(host).collect());
    decision(format!("find-host/{hosts}"), move || {
        table.find(black_box(&HEAD)).is_some()
    })
}

/// The last of as many rules, each for another peer, allows.
fn decide(rules: usize) -> Decision {
    let id = |i: usize| format!("spiffe://cluster.local/ns/shop/sa/web-{i}");
    let peer = id(rules - 1).parse().expect("it is well formed");
    let peer = Peer::Meshed(peer);
    let source = [10, 0, 0, 1].into();
    let rule = |i: usize| {
        let principal = Condition::Principal(ValueMatch::Exact(id(i).into()));
        let path = Condition::Path(ValueMatch::Prefix("/users.v1.".into()));
        Rule::new("bench", Condition::All(vec![principal, path]))
    };
    let rules_of = Rules::new(vec![], Some((0..rules).map(rule).collect()));
    decision(format!("decide/{rules}"), move || {
        let decision = rules_of.decide(&peer, source, 8080, Some(black_box(&HEAD)));
        decision.is_allowed()
    })
}

/// From the original destination, one of as many, to a cluster.
fn outbound(destinations: u16) -> Decision {
    let address = |i: u16| {
        let [high, low] = i.to_be_bytes();
        DestinationKey::Address(([10, 1, high, low], 8080).into())
    };
    let destination = Arc::new(Destination {
        name: "user-service:8080".into(),
        protocol: Protocol::Http2,
        target: Target::Http(Arc::new(table(1))),
        clusters: HashMap::new(),
    });
    let snapshot = Snapshot {
        destinations: (0..destinations)
            .map(|i| (address(i), Arc::clone(&destination)))
            .collect(),
        ..Snapshot::default()
    };
    let key = address(destinations / 2);
    decision(format!("outbound/{destinations}"), move || {
        let found = snapshot.destination(black_box(&key))?;
        match &found.target {
            Target::Http(table) => Some(table.find(black_box(&HEAD))?.clusters.at(0).clone()),
            Target::Tcp(_) | Target::Passthrough => None,
        }
    })
}

fn normalise() -> [Decision; 2] {
    [
        ("normal", "/users.v1.Users/Get?x=1"),
        ("not", "/a/%2e%2e/%7Euser//b?x=1"),
    ]
    .map(|(name, raw)| {
        decision(format!("normalise/{name}"), move || {
            Normal::parse(black_box(raw), Strictness::default()).is_ok()
        })
    })
}

/// What a response means for its endpoint.
fn observe() -> Decision {
    let (policy, now) = (outlier(), now());
    let mut outlier = Outlier::default();
    decision("observe/success".to_owned(), move || {
        let outcome = Outcome::response(black_box(200), Some(black_box(b"0")));
        outlier.observe(outcome.blame(policy.counts), &policy, now)
    })
}

fn outlier() -> OutlierPolicy {
    OutlierPolicy {
        failures_in_a_row: NonZeroU32::new(5).expect("it is not zero"),
        counts: FailureKind::GatewayErrors,
        interval: Duration::from_secs(30),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 50,
        min_health_percent: 70,
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "any instant will do: nothing is told by it"
)]
fn now() -> Instant {
    Instant::now()
}

fn timeout() -> Decision {
    decision("timeout/parse".to_owned(), || {
        GrpcTimeout::parse(black_box(b"10000000u"))
    })
}
