//! Ejection: endpoints that come and go, and a cluster that always has one left.

use std::{num::NonZeroU32, time::Duration};

use anyhow::{Result, ensure};
use heddle_policy::{
    balance::{Balancer, Candidates, Standing, Turn},
    outcome::Outcome,
    outlier::{FailureKind, Outlier, OutlierPolicy, SLOW_RETURN, Verdict},
    snapshot::Balancing,
};
use rand::RngExt as _;

use crate::seeds::{Sim, run};

#[test]
fn a_cluster_keeps_available_endpoints_and_gets_all_of_them_back() {
    run(|sim| {
        let mut cluster = Cluster::new(sim);
        for _ in 0..300 {
            sim.pass(Duration::from_secs(2));
            if sim.rng.random_ratio(1, 20) {
                let endpoint = sim.rng.random_range(0..cluster.endpoints.len());
                cluster.fails[endpoint] = !cluster.fails[endpoint];
            }
            cluster.request(sim)?;
        }
        cluster.all_return(sim)
    });
}

struct Cluster {
    policy: OutlierPolicy,
    balancer: Balancer,
    turn: Turn,
    endpoints: Vec<Outlier>,
    fails: Vec<bool>,
}

struct Now<'a>(&'a [Outlier], std::time::Instant);

impl Candidates for Now<'_> {
    fn standing(&self, endpoint: usize) -> Standing {
        if self.0[endpoint].is_ejected(self.1) {
            Standing::Ejected
        } else {
            Standing::Open
        }
    }

    fn load(&self, _endpoint: usize) -> f32 {
        0.0
    }

    fn share(&self, endpoint: usize) -> f32 {
        self.0[endpoint].share(self.1)
    }
}

impl Cluster {
    fn new(sim: &mut Sim) -> Self {
        let endpoints = sim.rng.random_range(1..=10);
        let base = Duration::from_secs(sim.rng.random_range(1..=30));
        let balancings = [
            Balancing::LeastRequest,
            Balancing::RoundRobin,
            Balancing::Random,
        ];
        let balancing = balancings[sim.rng.random_range(0..balancings.len())];
        let weights = (0..endpoints).map(|_| NonZeroU32::MIN);
        Self {
            policy: OutlierPolicy {
                failures_in_a_row: NonZeroU32::new(sim.rng.random_range(1..=5))
                    .expect("at least one"),
                counts: FailureKind::GatewayErrors,
                interval: Duration::from_secs(10),
                base_ejection_time: base,
                max_ejection_time: base * 4,
                max_ejection_percent: sim.rng.random_range(0..=100),
                min_health_percent: sim.rng.random_range(0..=100),
            },
            balancer: Balancer::new(balancing, weights),
            turn: Turn(sim.rng.random()),
            endpoints: vec![Outlier::default(); endpoints],
            fails: (0..endpoints).map(|_| sim.rng.random()).collect(),
        }
    }

    fn request(&mut self, sim: &mut Sim) -> Result<()> {
        let live = Now(&self.endpoints, sim.now);
        let picked = self.balancer.pick(&live, &mut self.turn, &mut sim.rng);
        let Some(picked) = picked else {
            anyhow::bail!("nothing picked of {}", self.endpoints.len());
        };
        ensure!(
            live.standing(picked) == Standing::Open,
            "an ejected endpoint was picked, {} of {} are ejected",
            self.ejected(sim),
            self.endpoints.len()
        );
        let status = if self.fails[picked] { 503 } else { 200 };
        let blame = Outcome::response(status, None).blame(self.policy.counts);
        let verdict = self.endpoints[picked].observe(blame, &self.policy, sim.now);
        let ejected = self.ejected(sim);
        if verdict == Verdict::Eject && self.policy.may_eject(self.endpoints.len(), ejected) {
            let time = self.endpoints[picked].eject(&self.policy, sim.now);
            ensure!(time >= self.policy.base_ejection_time, "{time:?}");
            ensure!(time <= self.policy.max_ejection_time, "{time:?}");
        }
        self.check_bounds(sim)
    }

    /// The bounds as the design words them, not as the policy computes them.
    fn check_bounds(&self, sim: &Sim) -> Result<()> {
        let (n, ejected) = (self.endpoints.len(), self.ejected(sim));
        let max_percent = usize::try_from(self.policy.max_ejection_percent)?;
        let min_percent = usize::try_from(self.policy.min_health_percent)?;
        ensure!(ejected < n, "all {n} are ejected");
        ensure!(
            ejected <= 1 || ejected * 100 <= n * max_percent,
            "{ejected} of {n} at most {max_percent} %"
        );
        ensure!(
            ejected <= 1 || (n - ejected) * 100 >= n * min_percent,
            "{ejected} of {n} with {min_percent} % left"
        );
        Ok(())
    }

    /// The worst is over: within the longest ejection and the slow return all serve again.
    fn all_return(&mut self, sim: &mut Sim) -> Result<()> {
        self.fails.fill(false);
        sim.now += self.policy.max_ejection_time;
        ensure!(self.ejected(sim) == 0, "{} stay away", self.ejected(sim));
        sim.now += SLOW_RETURN;
        let mut has_served = vec![false; self.endpoints.len()];
        for _ in 0..300 {
            let live = Now(&self.endpoints, sim.now);
            let picked = self.balancer.pick(&live, &mut self.turn, &mut sim.rng);
            has_served[picked.expect("none is closed")] = true;
        }
        ensure!(has_served.iter().all(|served| *served), "{has_served:?}");
        Ok(())
    }

    fn ejected(&self, sim: &Sim) -> usize {
        let ejected = |endpoint: &&Outlier| endpoint.is_ejected(sim.now);
        self.endpoints.iter().filter(ejected).count()
    }
}
