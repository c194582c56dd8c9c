//! What the policies cost per request.

use std::{hint::black_box, num::NonZeroU32, sync::Arc};

use criterion::{Criterion, criterion_group, criterion_main};
use heddle_policy::{
    authz::{Condition, Rule, Rules},
    balance::{Balancer, Candidates, Standing, Turn},
    head::RequestHead,
    path::{Normal, Strictness},
    route::{PathMatch, Route, RouteMatch, RouteTable, ValueMatch, VirtualHost},
    snapshot::{Balancing, ClusterName, WeightedClusters},
    spiffe::Peer,
};
use rand::{SeedableRng as _, rngs::StdRng};

type Pairs = &'static [(&'static str, &'static [u8])];

const HEADERS: Pairs = &[("x-user", b"a"), ("content-type", b"application/grpc")];

const HEAD: RequestHead<'_> = RequestHead {
    method: "POST",
    scheme: "https",
    authority: "user-service:8080",
    path: "/users.v1.Users/Get",
    headers: &HEADERS,
};

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

fn pick(criterion: &mut Criterion) {
    for endpoints in [3u16, 10, 1_000] {
        let weights = (0..endpoints).map(|_| NonZeroU32::MIN);
        let balancer = Balancer::new(Balancing::LeastRequest, weights);
        let busy = Busy((0..endpoints).map(|i| f32::from(i % 7)).collect());
        let (mut turn, mut rng) = (Turn(0), StdRng::seed_from_u64(1));
        criterion.bench_function(&format!("pick/{endpoints}"), |bench| {
            bench.iter(|| balancer.pick(black_box(&busy), &mut turn, &mut rng));
        });
    }
}

/// The last of the routes fits.
fn find(criterion: &mut Criterion) {
    for routes in [1, 100, 1_000] {
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
        let table = RouteTable {
            name: "bench".into(),
            hosts: vec![VirtualHost {
                domains: vec!["user-service".into()],
                routes: (0..routes).map(route).collect(),
            }],
        };
        criterion.bench_function(&format!("find/{routes}"), |bench| {
            bench.iter(|| table.find(black_box(&HEAD)).is_some());
        });
    }
}

/// The last of the rules allows.
fn decide(criterion: &mut Criterion) {
    let id = "spiffe://cluster.local/ns/shop/sa/web";
    let peer = Peer::Meshed(id.parse().expect("it is well formed"));
    let source = [10, 0, 0, 1].into();
    for rules in [1, 100] {
        let rule = |i: usize| {
            let name = if i + 1 == rules { id } else { "spiffe://other" };
            let principal = Condition::Principal(ValueMatch::Exact(name.into()));
            let path = Condition::Path(ValueMatch::Prefix("/users.v1.".into()));
            Rule::new("bench", Condition::All(vec![principal, path]))
        };
        let rules_of = Rules::new(vec![], Some((0..rules).map(rule).collect()));
        criterion.bench_function(&format!("decide/{rules}"), |bench| {
            bench.iter(|| {
                let decision = rules_of.decide(&peer, source, 8080, Some(black_box(&HEAD)));
                decision.is_allowed()
            });
        });
    }
}

fn normalise(criterion: &mut Criterion) {
    for (name, raw) in [
        ("normal", "/users.v1.Users/Get?x=1"),
        ("not", "/a/%2e%2e/%7Euser//b?x=1"),
    ] {
        criterion.bench_function(&format!("normalise/{name}"), |bench| {
            bench.iter(|| Normal::parse(black_box(raw), Strictness::default()).is_ok());
        });
    }
}

criterion_group!(hot_path, pick, find, decide, normalise);
criterion_main!(hot_path);
