//! Least request over ten endpoints with real queues: fair when all are alike, away from one
//! that is slow, and not drawn to one that fails at once.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    num::NonZeroU32,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use heddle_policy::{
    balance::{Balancer, Candidates, Penalty, Standing, Turn},
    outcome::Outcome,
    snapshot::Balancing,
};
use rand::RngExt as _;

use crate::seeds::{Sim, run};

#[test]
fn an_endpoint_that_fails_at_once_attracts_no_traffic() {
    run(|sim| hold_first(sim, First::FailsAtOnce, 0.0..=0.15, 0.0..=0.15));
}

#[test]
fn a_slow_endpoint_gets_less_than_its_part() {
    run(|sim| hold_first(sim, First::TenTimesSlower, 0.0..=0.13, 0.0..=0.10));
}

#[test]
fn equal_endpoints_get_equal_parts() {
    run(|sim| hold_first(sim, First::LikeTheOthers, 0.04..=0.16, 0.07..=0.13));
}

/// What the first of the endpoints does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    LikeTheOthers,
    TenTimesSlower,
    FailsAtOnce,
}

/// Ten endpoints and their requests.
struct Cluster {
    first: First,
    gap: Duration,
    latency: Duration,
    balancer: Balancer,
    live: Live,
    running: BinaryHeap<Reverse<(Instant, usize)>>,
}

struct Live {
    outstanding: Vec<u16>,
    penalties: Vec<Penalty>,
    now: Instant,
}

impl Candidates for Live {
    fn standing(&self, _endpoint: usize) -> Standing {
        Standing::Open
    }

    fn load(&self, endpoint: usize) -> f32 {
        f32::from(self.outstanding[endpoint]) + self.penalties[endpoint].load(self.now)
    }

    fn share(&self, _endpoint: usize) -> f32 {
        1.0
    }
}

/// An error unless the share of the first endpoint is within bounds: of each [`LOOK`] requests of
/// the second half of a run, and of the whole of that half.
fn hold_first(
    sim: &mut Sim,
    first: First,
    of_each_look: RangeInclusive<f64>,
    of_the_half: RangeInclusive<f64>,
) -> Result<()> {
    let mut cluster = Cluster::new(sim, first);
    for _ in 0..LOOKS * LOOK {
        cluster.request(sim)?;
    }
    let mut to_first = 0;
    for _ in 0..LOOKS {
        let before = to_first;
        for _ in 0..LOOK {
            to_first += u32::from(cluster.request(sim)? == 0);
        }
        let share = f64::from(to_first - before) / f64::from(LOOK);
        ensure!(of_each_look.contains(&share), "{share:.3} of {LOOK}");
    }
    let share = f64::from(to_first) / f64::from(LOOKS * LOOK);
    ensure!(of_the_half.contains(&share), "{share:.3} of the requests");
    Ok(())
}

impl Cluster {
    /// Of random rate (50 to 2,000 requests a second) and latency (1 ms to 1 s).
    fn new(sim: &mut Sim, first: First) -> Self {
        let exponents = match first {
            First::LikeTheOthers | First::FailsAtOnce => -3.0..0.0,
            // From 10 ms: below, no request waits anywhere, and nothing tells it from the others.
            First::TenTimesSlower => -2.0..0.0,
        };
        let weights = (0..ENDPOINTS).map(|_| NonZeroU32::MIN);
        Self {
            first,
            gap: Duration::from_secs_f64(2.0 / sim.rng.random_range(50.0..2_000.0)),
            latency: Duration::from_secs_f64(10f64.powf(sim.rng.random_range(exponents))),
            balancer: Balancer::new(Balancing::LeastRequest, weights),
            live: Live {
                outstanding: vec![0; ENDPOINTS],
                penalties: (0..ENDPOINTS).map(|_| Penalty::new(sim.now)).collect(),
                now: sim.now,
            },
            running: BinaryHeap::new(),
        }
    }

    /// The next request, and which endpoint takes it.
    fn request(&mut self, sim: &mut Sim) -> Result<usize> {
        let Self { live, running, .. } = self;
        sim.pass(self.gap);
        live.now = sim.now;
        while let Some(next) = running.peek_mut()
            && next.0.0 <= sim.now
        {
            let Reverse((_, endpoint)) = PeekMut::pop(next);
            live.outstanding[endpoint] -= 1;
        }
        let picked = self.balancer.pick(live, &mut Turn(0), &mut sim.rng);
        let picked = picked.expect("none is closed");
        let latency = match self.first {
            First::FailsAtOnce if picked == 0 => {
                ensure!(Outcome::ConnectFailed.is_failure(), "it is none");
                live.penalties[0].failed(sim.now);
                return Ok(picked);
            }
            First::TenTimesSlower if picked == 0 => self.latency * 10,
            First::LikeTheOthers | First::TenTimesSlower | First::FailsAtOnce => self.latency,
        };
        live.outstanding[picked] += 1;
        running.push(Reverse((sim.now + latency, picked)));
        Ok(picked)
    }
}

const ENDPOINTS: usize = 10;

/// Requests whose share is taken.
const LOOK: u32 = 500;

/// So many of them in each half of a run.
const LOOKS: u32 = 4;
