use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::at;

struct Live {
    standing: Vec<Standing>,
    load: Vec<f32>,
    share: Vec<f32>,
}

impl Live {
    fn idle(endpoints: usize) -> Self {
        Self {
            standing: vec![Standing::Open; endpoints],
            load: vec![0.0; endpoints],
            share: vec![1.0; endpoints],
        }
    }
}

impl Candidates for Live {
    fn standing(&self, endpoint: usize) -> Standing {
        self.standing[endpoint]
    }
    fn load(&self, endpoint: usize) -> f32 {
        self.load[endpoint]
    }
    fn share(&self, endpoint: usize) -> f32 {
        self.share[endpoint]
    }
}

const ALL: [Balancing; 3] = [
    Balancing::LeastRequest,
    Balancing::RoundRobin,
    Balancing::Random,
];

fn balancer(balancing: Balancing, weights: &[u32]) -> Balancer {
    let weights = weights.iter().filter_map(|weight| NonZeroU32::new(*weight));
    Balancer::new(balancing, weights)
}

/// Shares of 10,000 picks in percent, each within two points.
#[track_caller]
fn check(balancing: Balancing, weights: &[u32], live: &Live, expected: &[f64]) {
    let balancer = balancer(balancing, weights);
    let (mut rng, mut turn) = (StdRng::seed_from_u64(1), Turn(0));
    let mut picks = vec![0u32; weights.len()];
    for _ in 0..10_000 {
        picks[balancer.pick(live, &mut turn, &mut rng).unwrap()] += 1;
    }
    let shares: Vec<f64> = picks.iter().map(|n| f64::from(*n) / 100.0).collect();
    let is_close = shares
        .iter()
        .zip(expected)
        .all(|(a, b)| (a - b).abs() < 2.0);
    assert!(is_close, "{balancing:?}: {shares:?}, not {expected:?}");
}

#[test]
fn an_idle_cluster_follows_its_weights() {
    for balancing in ALL {
        check(balancing, &[1], &Live::idle(1), &[100.0]);
        check(balancing, &[5, 5], &Live::idle(2), &[50.0, 50.0]);
        check(balancing, &[2, 1, 1], &Live::idle(3), &[50.0, 25.0, 25.0]);
        check(balancing, &[98, 1, 1], &Live::idle(3), &[98.0, 1.0, 1.0]);
    }
}

#[test]
fn the_less_loaded_of_two_distinct_endpoints_is_picked() {
    let mut live = Live::idle(3);
    live.load = vec![0.0, 1.0, 2.0];
    check(
        Balancing::LeastRequest,
        &[1, 1, 1],
        &live,
        &[66.7, 33.3, 0.0],
    );
    check(Balancing::Random, &[1, 1, 1], &live, &[33.3, 33.3, 33.3]);
}

#[test]
fn load_counts_in_proportion_to_weight() {
    let mut live = Live::idle(2);
    live.load = vec![3.0, 2.0];
    // Twice the weight carries up to twice the load: the lighter wins only a pair of itself.
    check(Balancing::LeastRequest, &[2, 1], &live, &[88.9, 11.1]);
}

#[test]
fn what_is_not_open_is_picked_only_when_there_is_no_better() {
    use Standing::{Closed, Ejected, Open, Tried};
    for balancing in ALL {
        for (standing, expected) in [
            ([Ejected, Open, Closed, Tried], [0.0, 100.0, 0.0, 0.0]),
            ([Ejected, Ejected, Closed, Tried], [0.0, 0.0, 0.0, 100.0]),
            ([Ejected, Ejected, Closed, Closed], [50.0, 50.0, 0.0, 0.0]),
            ([Open, Ejected, Open, Ejected], [50.0, 0.0, 50.0, 0.0]),
        ] {
            let mut live = Live::idle(4);
            live.standing = standing.to_vec();
            check(balancing, &[1; 4], &live, &expected);
        }
    }
}

#[test]
fn a_closed_or_empty_cluster_has_nothing_to_pick() {
    let mut live = Live::idle(2);
    live.standing = vec![Standing::Closed; 2];
    let mut rng = StdRng::seed_from_u64(1);
    for balancing in ALL {
        for weights in [&[1, 1][..], &[]] {
            let picked = balancer(balancing, weights).pick(&live, &mut Turn(0), &mut rng);
            assert_eq!(picked, None);
        }
    }
}

#[test]
fn a_returning_endpoint_gets_its_share() {
    for balancing in ALL {
        let mut live = Live::idle(10);
        live.share[0] = 0.1;
        let mut expected = [11.0; 10];
        expected[0] = 1.0;
        check(balancing, &[1; 10], &live, &expected);
    }
    let mut live = Live::idle(1);
    live.share[0] = 0.1;
    check(Balancing::LeastRequest, &[1], &live, &[100.0]);
}

#[test]
fn a_round_gives_each_endpoint_exactly_its_weight() {
    for weights in [&[1, 1, 1][..], &[5, 1, 1], &[3, 7, 11, 2], &[100, 1]] {
        let balancer = balancer(Balancing::RoundRobin, weights);
        let live = Live::idle(weights.len());
        let (mut rng, mut turn) = (StdRng::seed_from_u64(1), Turn(12_345));
        let mut picks = vec![0; weights.len()];
        let mut again = 0;
        let mut last = None;
        for _ in 0..weights.iter().sum() {
            let picked = balancer.pick(&live, &mut turn, &mut rng);
            again += u32::from(picked == last);
            last = picked;
            picks[picked.unwrap()] += 1;
        }
        assert_eq!(picks, weights);
        if weights == [3, 7, 11, 2] {
            assert!(again <= 2, "the heaviest is not spread: {again} in a row");
        }
    }
}

#[test]
fn failures_count_as_load_for_about_a_second() {
    let penalty = Penalty::new(at(0.0));
    assert!(penalty.load(at(1.0)) <= 0.0);
    penalty.failed(at(1.0));
    penalty.failed(at(1.0));
    for (second, expected) in [
        (1.0, 2.0),
        (2.0, 0.736),
        (3.0, 0.271),
        (4.0, 0.0),
        (9e9, 0.0),
    ] {
        let load = penalty.load(at(second));
        assert!((load - expected).abs() < 0.01, "{load} at {second}");
    }
    penalty.failed(at(2.0));
    assert!((penalty.load(at(2.0)) - 1.736).abs() < 0.01);
    // A worker whose clock was read earlier.
    penalty.failed(at(1.5));
    assert!((penalty.load(at(2.0)) - 2.736).abs() < 0.01);
}

#[test]
fn a_penalty_is_bounded() {
    let penalty = Penalty::new(at(0.0));
    for _ in 0..10_000 {
        penalty.failed(at(1.0));
    }
    assert!((penalty.load(at(1.0)) - SUM_MAX).abs() < 1.0);
}

/// By the definition: the first endpoint whose sum of weights is above the ticket.
#[test]
fn a_ticket_is_that_of_the_endpoint_whose_part_it_is_in() {
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(2..40);
        let max = [2, 100, u32::MAX][rng.random_range(0..3)];
        let weights = (0..count).map(|_| u64::from(rng.random_range(1..=max)));
        let sums = weights.scan(0, |sum, weight| {
            *sum += weight;
            Some(*sum)
        });
        let shares = Shares::new(sums.collect());
        let edges = shares.sums.iter().flat_map(|sum| [sum - 1, *sum]);
        let within = (0..100).map(|_| rng.random_range(0..shares.total()));
        let tickets: Vec<_> = edges.chain(within).chain([0]).collect();
        for ticket in tickets {
            let expected = shares.sums.iter().position(|sum| *sum > ticket);
            let found = (ticket < shares.total()).then(|| shares.at(ticket));
            assert_eq!(found, expected, "seed {seed}: {ticket} in {shares:?}");
        }
    }
}

/// How many endpoints are asked for their standing by one pick, at most, of 1,000 of which
/// every other is closed.
#[test]
fn a_pick_looks_at_few_endpoints_while_half_are_open() {
    struct Counted(std::cell::Cell<usize>);

    impl Candidates for Counted {
        fn standing(&self, endpoint: usize) -> Standing {
            self.0.set(self.0.get() + 1);
            if endpoint.is_multiple_of(2) {
                Standing::Open
            } else {
                Standing::Closed
            }
        }
        fn load(&self, _endpoint: usize) -> f32 {
            0.0
        }
        fn share(&self, _endpoint: usize) -> f32 {
            1.0
        }
    }

    let (mut rng, mut turn) = (StdRng::seed_from_u64(1), Turn(0));
    for balancing in ALL {
        for weights in [vec![1; 1_000], (1..=1_000).collect()] {
            let balancer = balancer(balancing, &weights);
            for _ in 0..2_000 {
                let counted = Counted(std::cell::Cell::new(0));
                let picked = balancer.pick(&counted, &mut turn, &mut rng);
                assert!(picked.is_some_and(|endpoint| endpoint.is_multiple_of(2)));
                assert!(counted.0.get() <= DRAWS_MAX, "{balancing:?}");
            }
        }
    }
}
