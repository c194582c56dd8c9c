//! Outlier ejection: an endpoint that keeps failing is set aside for a while.
//!
//! ```text
//!             failures_in_a_row reached, and allowed
//!  available ─────────────────────────────────────────► ejected (base x times, at most max)
//!      ▲                                                   │
//!      └──── returning (a growing share of its traffic) ◄──┘  a comparison with `now`
//! ```
//!
//! How a shell with several workers holds it: one [`Outlier`] per endpoint behind a mutex, and
//! beside it an atomic *mark* that is set while [`Outlier::is_quiet`] is false. A success on an
//! endpoint without a mark, and a pick of it, is one relaxed load and nothing else. Everything
//! else locks the endpoint, calls one method, stores the mark and unlocks. When
//! [`Outlier::observe`] answers [`Verdict::Eject`] the shell unlocks, takes the one mutex that
//! serialises ejections of the cluster, counts [`Outlier::is_ejected`] over its endpoints, asks
//! [`OutlierPolicy::may_eject`], and only then calls [`Outlier::eject`]. So two workers cannot
//! both take the last permission.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::outcome::Blame;

/// `outlierDetection` of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Failures in a row that eject.
    pub failures_in_a_row: NonZeroU32,
    /// What counts as a failure.
    pub counts: FailureKind,
    /// How often an endpoint's ejection count shrinks by one while it behaves.
    pub interval: Duration,
    /// Ejection time is this times the number of ejections.
    pub base_ejection_time: Duration,
    /// Longest ejection time.
    pub max_ejection_time: Duration,
    /// At most this share of endpoints is ejected, percent; one is always allowed.
    pub max_ejection_percent: u32,
    /// Ejection stops while only this share would remain, percent.
    pub min_health_percent: u32,
}

/// What counts against an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// 502, 503, 504, connect failure, timeout, gRPC UNAVAILABLE and DEADLINE_EXCEEDED
    /// (`consecutiveGatewayErrors`).
    GatewayErrors,
    /// Any 5xx as well (`consecutive5xxErrors`).
    ServerErrors,
}

/// What one endpoint did lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outlier {
    /// Failures since the last success.
    streak: u32,
    /// Ejections, not yet forgiven at `until`.
    times: u32,
    /// End of the last ejection.
    until: Option<Instant>,
}

/// What an observation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Ejection, if the cluster allows it. If not, the next failure asks again.
    Eject,
}

impl OutlierPolicy {
    /// How many of a cluster's endpoints may be ejected at once.
    pub fn ejected_max(&self, endpoints: usize) -> usize {
        let share = |percent: u32| {
            let percent = usize::try_from(percent.min(100)).expect("at most 100");
            endpoints.saturating_mul(percent) / 100
        };
        let healthy_min_complement = 100 - self.min_health_percent.min(100);
        share(self.max_ejection_percent)
            .min(share(healthy_min_complement))
            .max(1)
    }

    /// Whether one more may be ejected: within [`OutlierPolicy::ejected_max`], and never the
    /// last available one.
    pub fn may_eject(&self, endpoints: usize, ejected: usize) -> bool {
        ejected < self.ejected_max(endpoints) && ejected + 1 < endpoints
    }
}

impl Outlier {
    /// Counts an outcome. Those that arrive while the endpoint is ejected belong to requests
    /// sent before and change nothing.
    pub fn observe(&mut self, blame: Blame, policy: &OutlierPolicy, now: Instant) -> Verdict {
        if self.is_ejected(now) {
            return Verdict::Keep;
        }
        match blame {
            Blame::Success => self.streak = 0,
            Blame::Failure => self.streak = self.streak.saturating_add(1),
            Blame::Neutral => {}
        }
        if self.streak >= policy.failures_in_a_row.get() {
            Verdict::Eject
        } else {
            Verdict::Keep
        }
    }

    /// Sets the endpoint aside and returns for how long.
    pub fn eject(&mut self, policy: &OutlierPolicy, now: Instant) -> Duration {
        self.streak = 0;
        self.times = self.times_at(policy, now).saturating_add(1);
        let time = policy
            .base_ejection_time
            .saturating_mul(self.times)
            .min(policy.max_ejection_time);
        self.until = now.checked_add(time);
        time
    }

    /// Whether it is set aside.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// The share of its usual traffic that it should get: nothing while ejected, then from a
    /// tenth to all of it over [`SLOW_RETURN`].
    pub fn share(&self, now: Instant) -> f32 {
        let Some(until) = self.until else { return 1.0 };
        if now < until {
            return 0.0;
        }
        let returned = now.duration_since(until).as_secs_f32() / SLOW_RETURN.as_secs_f32();
        returned.clamp(SHARE_MIN, 1.0)
    }

    /// Ejections that still lengthen the next one: one less for every interval since the last
    /// ended.
    pub fn times_at(&self, policy: &OutlierPolicy, now: Instant) -> u32 {
        let Some(until) = self.until else { return 0 };
        let good = now.saturating_duration_since(until).as_nanos();
        let forgiven = good.checked_div(policy.interval.as_nanos());
        let forgiven = forgiven.map_or(0, |n| u32::try_from(n).unwrap_or(u32::MAX));
        self.times.saturating_sub(forgiven)
    }

    /// Whether it has nothing to remember: a success would change nothing, and it gets all of
    /// its traffic. Forgets what is over.
    pub fn is_quiet(&mut self, policy: &OutlierPolicy, now: Instant) -> bool {
        if self.share(now) >= 1.0 && self.times_at(policy, now) == 0 {
            self.times = 0;
            self.until = None;
        }
        self.streak == 0 && self.until.is_none()
    }
}

/// How long an endpoint takes to return to all of its traffic.
pub const SLOW_RETURN: Duration = Duration::from_secs(10);

/// What it begins with: enough to be seen failing again, too little to hurt.
const SHARE_MIN: f32 = 0.1;

#[cfg(test)]
mod tests;
