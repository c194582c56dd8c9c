//! Waiting longer after each failure, with jitter, so that a fleet does not come back in step.

use std::time::Duration;

use rand::{RngExt, rngs::StdRng};

/// Doubles from `base` to `max`; each wait is between half of that and all of it.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
    rng: StdRng,
}

impl Backoff {
    /// No failure yet.
    pub fn new(base: Duration, max: Duration, rng: StdRng) -> Self {
        Self {
            base,
            max,
            failures: 0,
            rng,
        }
    }

    /// Between streams to the control plane: short, because a fleet without configuration is worse
    /// than a few connects.
    pub fn reconnecting(rng: StdRng) -> Self {
        Self::new(RECONNECT_BASE, RECONNECT_MAX, rng)
    }

    /// Counts a failure and says how long to wait after it.
    pub fn failed(&mut self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        let whole = self.base.saturating_mul(factor).min(self.max);
        whole.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// Starts over.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

const RECONNECT_BASE: Duration = Duration::from_millis(250);
const RECONNECT_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over() {
        let second = Duration::from_secs(1);
        let mut backoff = Backoff::new(second, second * 150, StdRng::seed_from_u64(1));
        for expected in [1, 2, 4, 8, 16, 32, 64, 128, 150, 150] {
            let wait = backoff.failed();
            let whole = second * expected;
            assert!(whole / 2 <= wait && wait <= whole, "{wait:?} for {whole:?}");
        }
        for _ in 0..100 {
            assert!(backoff.failed() <= second * 150);
        }
        backoff.succeeded();
        assert!(backoff.failed() <= second);
    }
}
