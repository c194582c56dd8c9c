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
    route::{PathMatch, Route, RouteMatch, RouteTable, ValueMatch, VirtualHost},
    snapshot::{
        Balancing, ClusterName, Destination, DestinationKey, Protocol, Snapshot, Target,
        WeightedClusters,
    },
    spiffe::Peer,
};
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
    all.extend([1, 100, 1_000].map(find));
    all.extend([1, 100].map(decide));
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
    let busy = Busy((0..endpoints).map(|i| f32::from(i % 7)).collect());
    let (mut turn, mut rng) = (Turn(0), StdRng::seed_from_u64(1));
    decision(format!("pick/{endpoints}"), move || {
        balancer.pick(black_box(&busy), &mut turn, &mut rng)
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
    };
    RouteTable {
        name: "bench".into(),
        hosts: vec![VirtualHost {
            domains: vec!["user-service".into()],
            routes: (0..routes).map(route).collect(),
        }],
    }
}

/// The last of as many rules allows.
fn decide(rules: usize) -> Decision {
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let peer = Peer::Meshed(id.parse().expect("it is well formed"));
    let source = [10, 0, 0, 1].into();
    let rule = |i: usize| {
        let name = if i + 1 == rules { id } else { "spiffe://other" };
        let principal = Condition::Principal(ValueMatch::Exact(name.into()));
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
    let policy = OutlierPolicy {
        failures_in_a_row: NonZeroU32::new(5).expect("it is not zero"),
        counts: FailureKind::GatewayErrors,
        interval: Duration::from_secs(30),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_time: Duration::from_secs(300),
        max_ejection_percent: 50,
        min_health_percent: 70,
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "any instant will do: nothing is told by it"
    )]
    let now = Instant::now();
    let mut outlier = Outlier::default();
    decision("observe/success".to_owned(), move || {
        let outcome = Outcome::response(black_box(200), Some(black_box(b"0")));
        outlier.observe(outcome.blame(policy.counts), &policy, now)
    })
}

fn timeout() -> Decision {
    decision("timeout/parse".to_owned(), || {
        GrpcTimeout::parse(black_box(b"10000000u"))
    })
}
