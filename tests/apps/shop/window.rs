//! What came of the requests that began in one stretch of time.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::wire::{Call, Half, Hop, Kind};

/// Failures kept whole; more are only counted.
const FAILURES_MAX: usize = 500;

/// Counts of the requests that began while it was the current one.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub(crate) number: u64,
    begun_us: u64,
    halves: [Tally; 2],
    kinds: [u64; 3],
    served: BTreeMap<String, BTreeMap<String, u64>>,
    versions: BTreeMap<String, BTreeMap<String, u64>>,
    failures: Vec<Failure>,
    latencies: Latencies,
}

/// Requests of one half.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Tally {
    sent: u64,
    ok: u64,
    failed: u64,
}

/// One failed request.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) id: u64,
    pub(crate) half: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) code: String,
    /// The mesh's word for it, if the mesh made it.
    pub(crate) reason: Option<String>,
    pub(crate) message: String,
    /// `head`: no answer had begun; `body`: it broke off.
    pub(crate) phase: &'static str,
    pub(crate) begun_us: u64,
    pub(crate) ended_us: u64,
}

/// [`Window`] as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    window: u64,
    begun_us: u64,
    now_us: u64,
    halves: BTreeMap<&'static str, Tally>,
    kinds: BTreeMap<&'static str, u64>,
    /// Service -> instance -> requests it took part in.
    served: BTreeMap<String, BTreeMap<String, u64>>,
    /// Service -> version -> requests it took part in.
    versions: BTreeMap<String, BTreeMap<String, u64>>,
    failures: Vec<Failure>,
    p50_ms: f64,
    p99_ms: f64,
}

impl Window {
    pub(crate) fn new(number: u64, begun_us: u64) -> Self {
        Self {
            number,
            begun_us,
            ..Self::default()
        }
    }

    pub(crate) fn sent(&mut self, call: Call) {
        self.tally(call.half).sent += 1;
        self.kinds[call.kind as usize] += 1;
    }

    pub(crate) fn succeeded(&mut self, call: Call, hops: Vec<Hop>, took: Duration) {
        self.tally(call.half).ok += 1;
        self.latencies.record(took);
        for hop in hops {
            let instances = self.served.entry(hop.service.clone()).or_default();
            *instances.entry(hop.instance).or_default() += 1;
            let versions = self.versions.entry(hop.service).or_default();
            *versions.entry(hop.version).or_default() += 1;
        }
    }

    pub(crate) fn failed(&mut self, half: Half, failure: Failure) {
        self.tally(half).failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push(failure);
        }
    }

    pub(crate) fn report(&self, now_us: u64) -> Report {
        let halves = Half::ALL.map(|half| (half.as_str(), self.halves[half as usize]));
        let kinds = Kind::ALL.map(|kind| (kind.as_str(), self.kinds[kind as usize]));
        Report {
            window: self.number,
            begun_us: self.begun_us,
            now_us,
            halves: halves.into(),
            kinds: kinds.into(),
            served: self.served.clone(),
            versions: self.versions.clone(),
            failures: self.failures.clone(),
            p50_ms: self.latencies.permille(500),
            p99_ms: self.latencies.permille(990),
        }
    }

    fn tally(&mut self, half: Half) -> &mut Tally {
        &mut self.halves[half as usize]
    }
}

/// Counts by powers of two of a microsecond, each in eight steps: at most 12 % off.
#[derive(Debug)]
struct Latencies {
    counts: [u64; Self::BUCKETS],
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            counts: [0; Self::BUCKETS],
        }
    }
}

impl Latencies {
    const STEPS: u32 = 8;
    /// Up to 2^32 us, over an hour.
    const BUCKETS: usize = 32 * Self::STEPS as usize;

    fn record(&mut self, took: Duration) {
        let us = u32::try_from(took.as_micros())
            .unwrap_or(u32::MAX)
            .max(Self::STEPS);
        let power = us.ilog2();
        let step = (us >> (power - Self::STEPS.ilog2())) - Self::STEPS;
        self.counts[(power * Self::STEPS + step) as usize] += 1;
    }

    /// Upper end of the bucket below which this share of a thousand lies, in milliseconds; zero
    /// without any.
    fn permille(&self, share: u64) -> f64 {
        let total: u64 = self.counts.iter().sum();
        let mut left = (total * share).div_ceil(1000);
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count >= left && left > 0 {
                let (power, step) = (bucket / 8, bucket % 8 + 1);
                let us = (1_u64 << power) as f64 * (1.0 + step as f64 / 8.0);
                return (us / 10.0).round() / 100.0;
            }
            left -= count;
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_an_eighth_too_high() {
        let mut latencies = Latencies::default();
        assert!(latencies.permille(500).abs() < f64::EPSILON);
        for ms in 1..=1000 {
            latencies.record(Duration::from_millis(ms));
        }
        for (share, exact) in [(10, 10.0), (500, 500.0), (990, 990.0), (1000, 1000.0)] {
            let found = latencies.permille(share);
            assert!(
                found >= exact && found <= exact * 1.13,
                "{share}: {found}, not {exact}"
            );
        }
    }
}
