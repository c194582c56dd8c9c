//! How often somebody may have something, such as an identity a certificate: a token bucket each,
//! kept as the time at which it will be full again (GCRA), so that who is idle needs no entry.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use heddle_policy::spiffe::SpiffeId;

/// Identities tracked at once. Beyond it everybody not tracked waits: an entry lives for at
/// most burst x interval, so the map empties by itself.
const IDENTITIES_MAX: usize = 65_536;

/// The buckets.
#[derive(Debug)]
pub struct Pace<K = SpiffeId> {
    interval: Duration,
    /// What a full bucket holds, as time.
    depth: Duration,
    full_at: HashMap<K, Instant>,
    identities_max: usize,
}

impl<K: Clone + Eq + Hash> Pace<K> {
    /// `burst` at once, then one per `interval`.
    pub fn new(interval: Duration, burst: NonZeroU32) -> Self {
        Self {
            interval,
            depth: interval.saturating_mul(burst.get()),
            full_at: HashMap::new(),
            identities_max: IDENTITIES_MAX,
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait when there is none.
    pub fn take(&mut self, id: &K, now: Instant) -> Result<(), Duration> {
        if self.full_at.len() >= self.identities_max && !self.full_at.contains_key(id) {
            self.full_at.retain(|_, full_at| *full_at > now);
            if self.full_at.len() >= self.identities_max {
                return Err(self.interval);
            }
        }
        let full_at = self.full_at.get(id).map_or(now, |at| (*at).max(now)) + self.interval;
        let over = (full_at - now).saturating_sub(self.depth);
        if over > Duration::ZERO {
            return Err(over);
        }
        self.full_at.insert(id.clone(), full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use heddle_shell::clock;

    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap()
    }

    fn pace() -> Pace {
        Pace::new(Duration::from_secs(10), NonZeroU32::new(2).unwrap())
    }

    #[test]
    fn a_burst_then_one_per_interval() {
        let (mut pace, start) = (pace(), clock::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pace.take(&id("web"), at(0)), Ok(()));
        assert_eq!(pace.take(&id("web"), at(0)), Ok(()));
        assert_eq!(pace.take(&id("web"), at(4)), Err(Duration::from_secs(6)));
        assert_eq!(pace.take(&id("user"), at(4)), Ok(()), "its own bucket");
        assert_eq!(pace.take(&id("web"), at(10)), Ok(()));
        assert!(pace.take(&id("web"), at(10)).is_err());
        assert_eq!(pace.take(&id("web"), at(100)), Ok(()));
    }

    #[test]
    fn the_map_is_bounded_and_empties_itself() {
        let (mut pace, start) = (pace(), clock::now());
        pace.identities_max = 2;
        assert_eq!(pace.take(&id("a"), start), Ok(()));
        assert_eq!(pace.take(&id("b"), start), Ok(()));
        assert!(pace.take(&id("c"), start).is_err());
        let later = start + Duration::from_secs(30);
        assert_eq!(pace.take(&id("c"), later), Ok(()));
        assert_eq!(pace.full_at.len(), 1);
    }
}
