//! Balancing: which endpoint of a cluster takes the next attempt.
//!
//! A [`Balancer`] is built once per configuration of a cluster and shared; a pick reads the
//! live side through [`Candidates`], allocates nothing, and looks at two endpoints, however many
//! there are, unless most are unavailable.
//!
//! - *Least request*: the power of two choices. Two endpoints are drawn, distinct when weights
//!   are equal, else independently by weight; the lower `load / weight` wins and ties are
//!   decided by chance. Load is outstanding requests plus [`Penalty`]. Independent draws and
//!   load without the customary `+ 1` give an idle cluster exactly its weights; `(load + 1) /
//!   weight` would starve the lighter endpoint of a pair until the heavier is busy.
//! - *Round robin*: in turn per worker; weights are spread evenly over a round.
//! - *Random*: by weight.
//!
//! An endpoint that fails at once never has requests outstanding and would attract traffic.
//! Each failed attempt therefore counts as one more outstanding request, decaying over a second
//! ([`Penalty`]). At equal request rates its share of `n` endpoints settles near
//! `typical latency / (n - 1) / 1 s` and never passes `2 / n`; the simulation holds it to 15 %
//! of ten for latencies up to a second. Beyond, ejection is the tool.

use std::{
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

use crate::snapshot::Balancing;

/// The live side of a cluster's endpoints, by index.
pub trait Candidates {
    /// Whether an endpoint can be picked.
    fn standing(&self, endpoint: usize) -> Standing;

    /// Outstanding requests (or connections), and [`Penalty::load`].
    fn load(&self, endpoint: usize) -> f32;

    /// The share of its traffic that it takes now, 0 to 1; below 1 after an ejection
    /// ([`crate::outlier::Outlier::share`]).
    fn share(&self, endpoint: usize) -> f32;
}

/// Whether an endpoint can be picked; better ones are greater. One that is not `Open` is picked
/// only when there is no better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Never: it drains, or is not to be dialled at all.
    Closed,
    /// Ejected. Failing less certainly than no endpoint at all.
    Ejected,
    /// This exchange was sent there already.
    Tried,
    /// It takes requests.
    Open,
}

/// How a cluster picks.
#[derive(Clone, Debug)]
pub struct Balancer {
    balancing: Balancing,
    weights: Weights,
}

/// A worker's position in the round of a round robin. Start workers at different ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn(pub u64);

#[derive(Clone, Debug)]
enum Weights {
    /// So many endpoints, all equal.
    Equal(usize),
    /// Each its own.
    Unequal(Shares),
}

/// Endpoints by their part of the sum of all weights.
#[derive(Clone, Debug)]
struct Shares {
    /// Sums of the weights up to and including each endpoint.
    sums: Box<[u64]>,
    /// Where to look for a ticket: by the bits above `shift`, the endpoint of the first such
    /// ticket. One more than there are such bits. On average two endpoints have to be told
    /// apart, at worst all of them, by halving.
    guide: Box<[usize]>,
    shift: u32,
    /// How far the tickets of a round robin are apart.
    stride: u64,
}

impl Balancer {
    /// For endpoints with these weights, in the order of their indexes.
    pub fn new(balancing: Balancing, weights: impl IntoIterator<Item = NonZeroU32>) -> Self {
        let weights: Vec<NonZeroU32> = weights.into_iter().collect();
        let is_equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let weights = if is_equal {
            Weights::Equal(weights.len())
        } else {
            let sums = weights.iter().scan(0u64, |sum, weight| {
                *sum += u64::from(weight.get());
                Some(*sum)
            });
            Weights::Unequal(Shares::new(sums.collect()))
        };
        Self { balancing, weights }
    }

    /// The endpoint for the next attempt; `None` when every one is closed.
    pub fn pick(
        &self,
        candidates: &impl Candidates,
        turn: &mut Turn,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        if self.is_empty() {
            return None;
        }
        let mut draws = self.len().clamp(DRAWS_MIN, DRAWS_MAX);
        while let Some(endpoint) = self.choose(candidates, &mut draws, turn, rng) {
            if takes(candidates.share(endpoint), rng) {
                return Some(endpoint);
            }
        }
        self.pick_from_best(candidates, rng)
    }

    /// How many endpoints there are.
    pub fn len(&self) -> usize {
        match &self.weights {
            Weights::Equal(count) => *count,
            Weights::Unequal(shares) => shares.sums.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An open endpoint, by at most so many draws; `None` when they are used up.
    fn choose(
        &self,
        candidates: &impl Candidates,
        draws: &mut usize,
        turn: &mut Turn,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        match self.balancing {
            Balancing::LeastRequest => {
                let a = open(candidates, draws, || self.draw(rng))?;
                let b = open(candidates, draws, || self.draw_beside(a, rng))?;
                Some(self.better(a, b, candidates, rng))
            }
            Balancing::RoundRobin => open(candidates, draws, || self.next(turn)),
            Balancing::Random => open(candidates, draws, || self.draw(rng)),
        }
    }

    fn better(
        &self,
        a: usize,
        b: usize,
        candidates: &impl Candidates,
        rng: &mut impl Rng,
    ) -> usize {
        let score = |endpoint| candidates.load(endpoint) / self.weight(endpoint);
        let (of_a, of_b) = (score(a), score(b));
        let is_a = of_a < of_b || (of_a <= of_b && rng.random());
        if is_a { a } else { b }
    }

    fn draw(&self, rng: &mut impl Rng) -> usize {
        match &self.weights {
            Weights::Equal(count) => rng.random_range(0..*count),
            Weights::Unequal(shares) => shares.at(rng.random_range(0..shares.total())),
        }
    }

    /// One to compare with `first`; another one when weights are equal.
    fn draw_beside(&self, first: usize, rng: &mut impl Rng) -> usize {
        match &self.weights {
            Weights::Equal(1) => first,
            Weights::Equal(count) => {
                let other = rng.random_range(0..count - 1);
                if other < first { other } else { other + 1 }
            }
            Weights::Unequal(_) => self.draw(rng),
        }
    }

    /// A step of about the golden section through the sum of weights visits each point once a
    /// round and spreads those of one endpoint evenly.
    fn next(&self, turn: &mut Turn) -> usize {
        let position = turn.0;
        turn.0 = turn.0.wrapping_add(1);
        match &self.weights {
            Weights::Equal(count) => {
                let count = u64::try_from(*count).expect("a count of endpoints fits");
                usize::try_from(position % count).expect("below a usize")
            }
            Weights::Unequal(shares) => {
                let (total, stride) = (u128::from(shares.total()), u128::from(shares.stride));
                let ticket = u128::from(position) * stride % total;
                shares.at(u64::try_from(ticket).expect("below a u64"))
            }
        }
    }

    /// Few endpoints are open, or none: looks at all of them.
    fn pick_from_best(&self, candidates: &impl Candidates, rng: &mut impl Rng) -> Option<usize> {
        let best = (0..self.len()).map(|i| candidates.standing(i)).max()?;
        if best == Standing::Closed {
            return None;
        }
        let a = self.reservoir(candidates, best, None, rng)?;
        match self.balancing {
            Balancing::RoundRobin | Balancing::Random => Some(a),
            Balancing::LeastRequest => {
                let b = self.reservoir(candidates, best, Some(a), rng);
                Some(b.map_or(a, |b| self.better(a, b, candidates, rng)))
            }
        }
    }

    /// One of those with this standing, by weight and share, in one pass.
    fn reservoir(
        &self,
        candidates: &impl Candidates,
        standing: Standing,
        except: Option<usize>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let mut total = 0.0;
        let mut chosen = None;
        for endpoint in 0..self.len() {
            if Some(endpoint) == except || candidates.standing(endpoint) != standing {
                continue;
            }
            let weight = self.weight(endpoint) * candidates.share(endpoint).max(SHARE_MIN);
            total += weight;
            if rng.random::<f32>() * total < weight {
                chosen = Some(endpoint);
            }
        }
        chosen
    }

    fn weight(&self, endpoint: usize) -> f32 {
        match &self.weights {
            Weights::Equal(_) => 1.0,
            Weights::Unequal(shares) => {
                let weight = shares.weight(endpoint);
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "a weight to seven digits is exact enough"
                )]
                let weight = weight as f32;
                weight
            }
        }
    }
}

impl Shares {
    /// Of the sums of at least one weight.
    fn new(sums: Box<[u64]>) -> Self {
        let count = sums.len();
        let last = *sums.last().expect("unequal weights are at least two");
        let last_ticket = last - 1;
        let fits = |shift: &u32| {
            usize::try_from(last_ticket >> shift).is_ok_and(|places| places < 2 * count)
        };
        let shift = (0..u64::BITS)
            .find(fits)
            .expect("the highest bit alone is below 2");
        let mut guide = Vec::with_capacity(2 * count + 1);
        let mut endpoint = 0;
        for place in 0..=last_ticket >> shift {
            while sums[endpoint] <= place << shift {
                endpoint += 1;
            }
            guide.push(endpoint);
        }
        guide.push(count - 1);
        Self {
            stride: stride(u128::from(last)),
            guide: guide.into(),
            shift,
            sums,
        }
    }

    fn total(&self) -> u64 {
        *self.sums.last().expect("unequal weights are at least two")
    }

    /// The endpoint of a ticket below the total.
    fn at(&self, ticket: u64) -> usize {
        let place = usize::try_from(ticket >> self.shift).expect("below a count of endpoints");
        let (first, last) = (self.guide[place], self.guide[place + 1]);
        let skipped = self.sums[first..=last].partition_point(|sum| *sum <= ticket);
        first + skipped
    }

    fn weight(&self, endpoint: usize) -> u32 {
        let before = endpoint.checked_sub(1).map_or(0, |i| self.sums[i]);
        u32::try_from(self.sums[endpoint] - before).expect("it was made of a u32")
    }
}

/// Failed attempts of an endpoint as additional load: each adds one, and the sum decays with a
/// time constant of one second. Shared by workers; touched only by failures, and one relaxed
/// load for the others.
#[derive(Debug)]
pub struct Penalty {
    epoch: Instant,
    /// Milliseconds since the epoch in the upper 44 bits, the sum in 1/256 in the lower 20.
    packed: AtomicU64,
}

impl Penalty {
    /// None yet. `epoch` is any moment before those it will be asked about.
    pub const fn new(epoch: Instant) -> Self {
        Self {
            epoch,
            packed: AtomicU64::new(0),
        }
    }

    /// Counts a failed attempt ([`crate::outcome::Outcome::is_failure`]).
    pub fn failed(&self, now: Instant) {
        let millis = self.millis(now);
        let _previous = self
            .packed
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |packed| {
                let (then, sum) = unpack(packed);
                // Workers' clocks are read in any order.
                let millis = millis.max(then);
                Some(pack(millis, decayed(sum, millis - then) + 1.0))
            });
    }

    /// What is left of the failures.
    pub fn load(&self, now: Instant) -> f32 {
        let packed = self.packed.load(Ordering::Relaxed);
        if packed == 0 {
            return 0.0;
        }
        let (then, sum) = unpack(packed);
        decayed(sum, self.millis(now).saturating_sub(then))
    }

    fn millis(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.epoch).as_millis();
        u64::try_from(millis).map_or(MILLIS_MAX, |millis| millis.min(MILLIS_MAX))
    }
}

/// Below an eighth it is nothing, so that an idle endpoint is a tie again about two seconds
/// after its last failure.
fn decayed(sum: f32, millis: u64) -> f32 {
    let elapsed = Duration::from_millis(millis).as_secs_f32();
    let left = sum * (-elapsed / DECAY.as_secs_f32()).exp();
    if left < 0.125 { 0.0 } else { left }
}

fn pack(millis: u64, sum: f32) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between zero and SUM_MAX"
    )]
    let sum = (sum.min(SUM_MAX) * SUM_UNIT) as u64;
    millis << SUM_BITS | sum
}

fn unpack(packed: u64) -> (u64, f32) {
    let sum = packed & ((1 << SUM_BITS) - 1);
    #[expect(clippy::cast_precision_loss, reason = "20 bits are exact in an f32")]
    let sum = sum as f32;
    (packed >> SUM_BITS, sum / SUM_UNIT)
}

/// The first open one of what is drawn.
fn open(
    candidates: &impl Candidates,
    draws: &mut usize,
    mut draw: impl FnMut() -> usize,
) -> Option<usize> {
    while let Some(left) = draws.checked_sub(1) {
        *draws = left;
        let endpoint = draw();
        if candidates.standing(endpoint) == Standing::Open {
            return Some(endpoint);
        }
    }
    None
}

fn takes(share: f32, rng: &mut impl Rng) -> bool {
    share >= 1.0 || rng.random::<f32>() < share
}

/// The number next to the golden section of `total` that shares no divisor with it.
fn stride(total: u128) -> u64 {
    let golden = total * 618_034 / 1_000_000;
    let stride = (golden.max(1)..).find(|stride| divisor(*stride, total) == 1);
    u64::try_from(stride.expect("total + 1 at the latest")).expect("about a u64")
}

fn divisor(a: u128, b: u128) -> u128 {
    if b == 0 { a } else { divisor(b, a % b) }
}

const DECAY: Duration = Duration::from_secs(1);
const SUM_BITS: u32 = 20;
const SUM_UNIT: f32 = 256.0;
const SUM_MAX: f32 = 4095.0;
const MILLIS_MAX: u64 = (1 << 44) - 1;

/// Draws before all endpoints are looked at: as many as there are endpoints, since looking at
/// one costs about as much as a draw, within these bounds. With half of 1,000 open, one pick in
/// a hundred million looks at all, with a quarter open one in a thousand.
const DRAWS_MIN: usize = 4;
const DRAWS_MAX: usize = 32;

/// Keeps the sum of a reservoir above zero.
const SHARE_MIN: f32 = 0.01;

#[cfg(test)]
mod tests;
