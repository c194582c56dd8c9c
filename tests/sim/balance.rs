//! Least request over ten endpoints with real queues: fair when all are alike, away from one
//! that is slow, and not drawn to one that fails at once.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use heddle_policy::{
    balance::{Balancer, Candidates, Penalty, Standing, Turn},
    outcome::Outcome,
    snapshot::Balancing,
};
use rand::RngExt as _;

use crate::seeds::{Sim, run_long};

#[test]
fn an_endpoint_that_fails_at_once_attracts_no_traffic() {
    run_long(|sim| {
        let share = share_of_first(sim, First::FailsAtOnce)?;
        ensure!(share <= 0.15, "{share:.3} of the requests");
        Ok(())
    });
}

#[test]
fn a_slow_endpoint_gets_less_than_its_part() {
    run_long(|sim| {
        let share = share_of_first(sim, First::TenTimesSlower)?;
        ensure!(share < 0.10, "{share:.3} of the requests");
        Ok(())
    });
}

#[test]
fn equal_endpoints_get_equal_parts() {
    run_long(|sim| {
        let share = share_of_first(sim, First::LikeTheOthers)?;
        ensure!((0.07..=0.13).contains(&share), "{share:.3} of the requests");
        Ok(())
    });
}

/// What the first of the endpoints does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    LikeTheOthers,
    TenTimesSlower,
    FailsAtOnce,
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

/// The share of the first endpoint in the second half of a run of random rate (50 to 2,000
/// requests a second) and latency (1 ms to 1 s).
fn share_of_first(sim: &mut Sim, first: First) -> Result<f64> {
    let gap = Duration::from_secs_f64(2.0 / sim.rng.random_range(50.0..2_000.0));
    let latency = Duration::from_secs_f64(10f64.powf(sim.rng.random_range(-3.0..0.0)));
    let balancer = Balancer::new(
        Balancing::LeastRequest,
        (0..ENDPOINTS).map(|_| NonZeroU32::MIN),
    );
    let mut live = Live {
        outstanding: vec![0; ENDPOINTS],
        penalties: (0..ENDPOINTS).map(|_| Penalty::new(sim.now)).collect(),
        now: sim.now,
    };
    let mut running: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut to_first = 0u32;
    for request in 0..REQUESTS {
        sim.pass(gap);
        live.now = sim.now;
        while let Some(Reverse((end, endpoint))) = running.peek().copied() {
            if end > sim.now {
                break;
            }
            running.pop();
            live.outstanding[endpoint] -= 1;
        }
        let picked = balancer.pick(&live, &mut Turn(0), &mut sim.rng);
        let picked = picked.expect("none is closed");
        to_first += u32::from(picked == 0 && request >= REQUESTS / 2);
        let latency = match first {
            First::FailsAtOnce if picked == 0 => {
                ensure!(Outcome::ConnectFailed.is_failure(), "it is none");
                live.penalties[0].failed(sim.now);
                continue;
            }
            First::TenTimesSlower if picked == 0 => latency * 10,
            First::LikeTheOthers | First::TenTimesSlower | First::FailsAtOnce => latency,
        };
        live.outstanding[picked] += 1;
        running.push(Reverse((sim.now + latency, picked)));
    }
    Ok(f64::from(to_first) / f64::from(REQUESTS - REQUESTS / 2))
}

const ENDPOINTS: usize = 10;
const REQUESTS: u32 = 4_000;
