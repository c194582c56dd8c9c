//! One run of a scenario: its random numbers, its time and where it is.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

/// What a scenario runs in.
pub(crate) struct Sim {
    /// Made from the seed.
    pub(crate) rng: StdRng,
    /// Moves only by [`Sim::pass`].
    pub(crate) now: Instant,
    step: u32,
}

impl Sim {
    /// The next step of the scenario, up to `time_max` later.
    pub(crate) fn pass(&mut self, time_max: Duration) {
        self.step += 1;
        self.now += self.rng.random_range(Duration::ZERO..=time_max);
    }
}

/// Runs a scenario for every seed.
#[track_caller]
pub(crate) fn run(scenario: fn(&mut Sim) -> Result<()>) {
    #[expect(clippy::disallowed_methods, reason = "virtual time begins somewhere")]
    let epoch = Instant::now();
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>());
    let number = |name| number(name).map(|parsed| parsed.expect("a seed is a number"));
    let seeds = match number("HEDDLE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HEDDLE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let mut sim = Sim {
            rng: StdRng::seed_from_u64(seed),
            now: epoch,
            step: 0,
        };
        let result = scenario(&mut sim);
        let step = sim.step;
        let result = result.with_context(|| format!("HEDDLE_SIM_SEED={seed}, step {step}"));
        assert!(result.is_ok(), "{:#}", result.expect_err("it is none"));
    }
}

/// How far a share of `requests` independent draws may be from `share`: by Bernstein's inequality
/// further in 4 of a thousand million.
pub(crate) fn chance(share: f64, requests: u32) -> f64 {
    const EXPONENT: f64 = 20.0;
    let requests = f64::from(requests);
    let variance = requests * share * (1.0 - share);
    let third = EXPONENT / 3.0;
    (third + (third * third + 2.0 * EXPONENT * variance).sqrt()) / requests
}

const SEEDS: u64 = 2_000;
