//! Retries: when a failed attempt is worth another, and how long to wait before it.
//!
//! Two different things follow a failed attempt:
//!
//! - A *re-pick*: nothing was processed (no connection, or a refused stream), so another
//!   endpoint is tried at once. It is always on, is no retry, and is not charged to the budget.
//! - A *retry*: the route asks for it, its method and body allow it, attempts, time and the
//!   cluster's budget are left. It waits a random time between zero and `base x 2^n`, at most
//!   the maximum (full jitter), or exactly what the endpoint asked for (gRFC A6).
//!
//! Once response headers were forwarded the response is committed and nothing can be repeated:
//! [`Retry::commit`] consumes the value.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

use crate::{
    admission::{Admission, Slot},
    outcome::{Outcome, grpc},
    snapshot::Limits,
};

/// Retry policy of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Retries after the first attempt (`attempts`).
    pub retries_max: NonZeroU32,
    /// Time for one attempt, response headers included. `None`: only the whole deadline.
    pub attempt_timeout: Option<Duration>,
    /// What is retried.
    pub on: RetryOn,
    /// First wait.
    pub backoff_base: Duration,
    /// Longest wait.
    pub backoff_max: Duration,
}

/// Conditions of `retryOn`, in the words of Envoy, Istio and gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// A connection could not be made.
    pub connect_failure: bool,
    /// HTTP/2 REFUSED_STREAM.
    pub refused_stream: bool,
    /// Disconnect, reset or attempt timeout before response headers.
    pub reset: bool,
    /// Any 5xx, and everything above.
    pub server_error: bool,
    /// 502, 503, 504; a reset or attempt timeout too, which a proxy would answer with them.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// gRPC statuses, as bits by code.
    pub grpc: u32,
    /// HTTP statuses named one by one.
    pub statuses: StatusSet,
    /// The method may be repeated although HTTP does not call it idempotent. True when the
    /// route asks for conditions beyond those that prove nothing was processed.
    pub any_method: bool,
}

/// A set of HTTP statuses, 100 to 599.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatusSet([u64; 8]);

/// The attempts of one exchange.
#[derive(Debug)]
pub struct Retry {
    /// No wait ends after it.
    deadline: Option<Instant>,
    is_idempotent: bool,
    tried: Tried,
    repicks: u32,
    retries: u32,
    /// Exponent of the next wait. Not `retries`: push-back starts it anew (gRFC A6).
    backoff_step: u32,
    /// Held while a retry is in flight.
    slot: Option<Slot>,
}

/// What a route and its cluster say about retries; the same for all attempts of an exchange.
#[derive(Clone, Copy, Debug)]
pub struct RetryTerms<'a> {
    /// The route's. `None`: no retries.
    pub policy: Option<&'a RetryPolicy>,
    /// Where permission for a retry comes from.
    pub admission: &'a Arc<Admission>,
    /// The cluster's.
    pub limits: &'a Limits,
}

/// Endpoints an exchange was sent to, by their index in the cluster. The latest
/// [`Tried::CAPACITY`] are remembered; there is no allocation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    endpoints: [usize; Tried::CAPACITY],
    count: usize,
}

/// A failed attempt, as far as it matters to what follows.
#[derive(Clone, Copy, Debug)]
pub struct Attempted {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the request body can be sent again, or none of it was consumed.
    pub is_replayable: bool,
    /// How many endpoints of the cluster take requests.
    pub endpoints: usize,
    /// `grpc-retry-pushback-ms`, if the endpoint sent it.
    pub pushback: Option<Pushback>,
}

/// `grpc-retry-pushback-ms` (gRFC A6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushback {
    /// Retry after exactly this time.
    After(Duration),
    /// Do not retry: the value was negative or no number.
    Never,
}

/// What to do after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Pick again at once: not a retry.
    Repick,
    /// Wait, then pick again.
    After(Duration),
    /// Answer with what there is.
    Stop(Stop),
}

/// Why there is no further attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A success, or a failure that the route does not retry.
    NotAsked,
    /// The method is not idempotent and the endpoint may have processed the request.
    NotIdempotent,
    /// The request body is gone.
    NotReplayable,
    /// Every allowed attempt was made.
    Exhausted,
    /// The endpoint asked for no retry, or for one so late that nobody waits for it here.
    PushedBack,
    /// The next attempt would start after the deadline.
    Deadline,
    /// Too many retries are in flight already.
    Budget,
}

impl Retry {
    /// Starts an exchange. `method` is that of the request, `deadline` that of the whole
    /// exchange.
    pub fn new(method: &str, deadline: Option<Instant>) -> Self {
        Self {
            deadline,
            is_idempotent: is_idempotent(method),
            tried: Tried::default(),
            repicks: 0,
            retries: 0,
            backoff_step: 0,
            slot: None,
        }
    }

    /// Remembers the endpoint of the attempt that starts now.
    pub fn picked(&mut self, endpoint: usize) {
        self.tried.insert(endpoint);
    }

    /// What to do after an attempt that was not committed.
    pub fn after(
        &mut self,
        attempted: &Attempted,
        terms: &RetryTerms<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> RetryDecision {
        // The retry that this attempt was is over, whatever follows.
        self.slot = None;
        if self.is_repicked(attempted, now) {
            self.repicks += 1;
            return RetryDecision::Repick;
        }
        match self.retry(attempted, terms, now, rng) {
            Ok(wait) => RetryDecision::After(wait),
            Err(stop) => RetryDecision::Stop(stop),
        }
    }

    /// The response is forwarded from here on. Hold what is returned until the exchange ends:
    /// a retry is in flight until then.
    pub fn commit(self) -> Option<Slot> {
        self.slot
    }

    /// Endpoints to avoid.
    pub fn tried(&self) -> &Tried {
        &self.tried
    }

    /// Retries made so far; re-picks are none.
    pub fn retries(&self) -> u32 {
        self.retries
    }

    fn is_repicked(&self, attempted: &Attempted, now: Instant) -> bool {
        let is_possible = match attempted.outcome {
            // Nothing was sent, so no body was consumed; the same endpoint would fail again.
            Outcome::ConnectFailed => self.tried.len() < attempted.endpoints,
            // As above, but the body went as far as the endpoint's sidecar.
            Outcome::Unreached => attempted.is_replayable && self.tried.len() < attempted.endpoints,
            // The only endpoint may refuse a stream because it retires the connection.
            Outcome::Refused => attempted.is_replayable,
            Outcome::Response { .. } | Outcome::Reset | Outcome::TimedOut | Outcome::Cancelled => {
                false
            }
        };
        is_possible && self.repicks < REPICKS_MAX && self.has_time(now, Duration::ZERO)
    }

    fn retry(
        &mut self,
        attempted: &Attempted,
        terms: &RetryTerms<'_>,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Duration, Stop> {
        let outcome = attempted.outcome;
        let policy = terms
            .policy
            .filter(|policy| outcome.is_retried(&policy.on))
            .ok_or(Stop::NotAsked)?;
        if !(outcome.is_unprocessed() || self.is_idempotent || policy.on.any_method) {
            return Err(Stop::NotIdempotent);
        }
        if !attempted.is_replayable {
            return Err(Stop::NotReplayable);
        }
        if self.retries >= policy.retries_max.get() {
            return Err(Stop::Exhausted);
        }
        let wait = match attempted.pushback {
            Some(Pushback::Never) => return Err(Stop::PushedBack),
            // The retry's place in the budget is held for as long.
            Some(Pushback::After(wait)) if wait > PUSHBACK_MAX.max(policy.backoff_max) => {
                return Err(Stop::PushedBack);
            }
            Some(Pushback::After(wait)) => wait,
            None => full_jitter(policy, self.backoff_step, rng),
        };
        if !self.has_time(now, wait) {
            return Err(Stop::Deadline);
        }
        let slot = terms.admission.acquire_retry(terms.limits);
        self.slot = Some(slot.map_err(|_full| Stop::Budget)?);
        self.retries += 1;
        self.backoff_step = match attempted.pushback {
            Some(_) => 0,
            None => self.backoff_step + 1,
        };
        Ok(wait)
    }

    fn has_time(&self, now: Instant, wait: Duration) -> bool {
        self.deadline
            .is_none_or(|deadline| now.checked_add(wait).is_some_and(|then| then < deadline))
    }
}

impl RetryOn {
    /// Reads a `retryOn` list: words of Envoy, Istio and gRPC and HTTP statuses (Istio),
    /// separated by commas. `retriable-status-codes` only announces statuses that are listed
    /// elsewhere and adds nothing itself. The second part holds the words that are not known.
    ///
    /// ```
    /// use heddle_policy::retry::RetryOn;
    ///
    /// let (on, unknown) = RetryOn::parse("connect-failure, 503,sometimes");
    /// assert!(on.connect_failure && on.statuses.contains(503));
    /// assert_eq!(unknown, ["sometimes"]);
    /// ```
    pub fn parse(words: &str) -> (Self, Vec<&str>) {
        let mut on = Self::default();
        let words = words.split(',').map(str::trim).filter(|w| !w.is_empty());
        let unknown = words.filter(|word| !on.add(word)).collect();
        (on, unknown)
    }

    /// Adds the condition of one word; `false` when it is not known.
    pub fn add(&mut self, word: &str) -> bool {
        match word {
            "connect-failure" => self.connect_failure = true,
            "refused-stream" => self.refused_stream = true,
            "reset" | "reset-before-request" => self.reset = true,
            "5xx" => self.server_error = true,
            "gateway-error" => self.gateway_error = true,
            "retriable-4xx" => self.retriable_4xx = true,
            "cancelled" => self.grpc |= 1 << grpc::CANCELLED,
            "deadline-exceeded" => self.grpc |= 1 << grpc::DEADLINE_EXCEEDED,
            "resource-exhausted" => self.grpc |= 1 << grpc::RESOURCE_EXHAUSTED,
            "internal" => self.grpc |= 1 << grpc::INTERNAL,
            "unavailable" => self.grpc |= 1 << grpc::UNAVAILABLE,
            "retriable-status-codes" => return true,
            number => {
                let is_status = number.len() == 3 && number.bytes().all(|b| b.is_ascii_digit());
                if !is_status || !number.parse().is_ok_and(|s| self.statuses.insert(s)) {
                    return false;
                }
            }
        }
        // These two prove that nothing was processed, so they say nothing about the method.
        self.any_method |= !matches!(word, "connect-failure" | "refused-stream");
        true
    }
}

impl StatusSet {
    /// Adds a status; `false` when it is none.
    pub fn insert(&mut self, status: u16) -> bool {
        let Some((word, bit)) = Self::position(status) else {
            return false;
        };
        self.0[word] |= bit;
        true
    }

    /// Whether a status was added.
    pub fn contains(&self, status: u16) -> bool {
        Self::position(status).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }

    fn position(status: u16) -> Option<(usize, u64)> {
        let at = (100..600).contains(&status).then(|| status - 100)?;
        Some((usize::from(at / 64), 1 << (at % 64)))
    }
}

impl Tried {
    /// How many are remembered.
    pub const CAPACITY: usize = 16;

    /// Whether the exchange was sent to this endpoint.
    pub fn contains(&self, endpoint: usize) -> bool {
        self.endpoints[..self.len()].contains(&endpoint)
    }

    /// Different endpoints tried, at most [`Tried::CAPACITY`].
    pub fn len(&self) -> usize {
        self.count.min(Self::CAPACITY)
    }

    /// Whether this is the first attempt.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn insert(&mut self, endpoint: usize) {
        if !self.contains(endpoint) {
            self.endpoints[self.count % Self::CAPACITY] = endpoint;
            self.count += 1;
        }
    }
}

impl Pushback {
    /// Reads `grpc-retry-pushback-ms`: a signed 32-bit number. Negative, or anything else,
    /// asks for no retry (gRFC A6).
    pub fn parse(value: &[u8]) -> Self {
        let text = std::str::from_utf8(value).unwrap_or_default();
        let millis: Option<i32> = text.parse().ok();
        millis
            .and_then(|millis| u64::try_from(millis).ok())
            .map_or(Self::Never, |millis| {
                Self::After(Duration::from_millis(millis))
            })
    }
}

/// Retries that may be in flight while this many requests are: a fifth of them, at least three.
pub fn budget(requests_in_flight: u32) -> u32 {
    (requests_in_flight / 5).max(3)
}

/// Whether HTTP defines that repeating the method has the effect of doing it once
/// (RFC 9110 section 9.2.2).
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

/// Uniform between zero and `base x 2^step`, at most the maximum.
fn full_jitter(policy: &RetryPolicy, step: u32, rng: &mut impl Rng) -> Duration {
    let factor = 1u32.checked_shl(step).unwrap_or(u32::MAX);
    let longest = policy
        .backoff_base
        .saturating_mul(factor)
        .min(policy.backoff_max);
    rng.random_range(Duration::ZERO..=longest)
}

/// Other endpoints tried at once after an attempt of which nothing was processed.
const REPICKS_MAX: u32 = 3;
/// Longest wait that an endpoint may ask for, unless the route's own waits are longer.
const PUSHBACK_MAX: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests;
