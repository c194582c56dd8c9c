use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::*;

#[expect(clippy::disallowed_methods, reason = "tests need some first instant")]
fn zero() -> Instant {
    Instant::now()
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_timer_expires_at_its_time_or_within_a_millisecond() {
    let zero = zero();
    for micros in [0, 1, 999, 1_000, 1_001, 63_000, 64_000, 64_001, 5_000_000] {
        let mut timers = Timers::new(zero);
        let at = zero + Duration::from_micros(micros);
        timers.set(at, ());
        if micros > 0 {
            assert_eq!(timers.expired(at - Duration::from_micros(1)), None);
        }
        assert_eq!(timers.expired(at + MS), Some(()), "{micros}");
        assert!(timers.is_empty() && timers.next().is_none());
    }
}

#[test]
fn whoever_sleeps_until_next_wakes_in_time_and_seldom() {
    let zero = zero();
    for after in [1, 64, 100, 4_095, 4_096, 1_000_000, 20_000_000, 40_000_000] {
        let mut timers = Timers::new(zero);
        let at = zero + after * MS;
        timers.set(at, ());
        let mut now = zero;
        let mut wakes = 0;
        while timers.expired(now).is_none() {
            let next = timers.next().expect("it is still set");
            assert!(next > now && next <= at, "{after}");
            now = next;
            wakes += 1;
        }
        assert_eq!(now, at);
        assert!(wakes <= 8, "{after}: {wakes}");
    }
}

/// Against a sorted map, with cancelling and long pauses.
#[test]
fn timers_expire_in_order_and_none_is_lost() {
    for seed in 0..50 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let zero = zero();
        let mut timers = Timers::new(zero);
        let mut expected = BTreeMap::new();
        let mut now_ms = 0_u64;
        for id in 0..2_000_u64 {
            let ahead = match rng.random_range(0..4) {
                0 => rng.random_range(0..64),
                1 => rng.random_range(0..5_000),
                2 => rng.random_range(0..300_000),
                _ => rng.random_range(0..100_000_000),
            };
            let at = now_ms + ahead;
            let timer = timers.set(zero + Duration::from_millis(at), (at, id));
            expected.insert((at, id), timer);
            if rng.random_bool(0.4) {
                let nth = rng.random_range(0..expected.len());
                let (key, timer) = expected.iter().nth(nth).map(|(k, t)| (*k, *t)).unwrap();
                assert_eq!(timers.cancel(timer), key, "seed {seed}");
                expected.remove(&key);
            }
            if rng.random_bool(0.1) {
                now_ms += rng.random_range(0..200_000);
                let mut last = 0;
                while let Some((at, id)) = timers.expired(zero + Duration::from_millis(now_ms)) {
                    assert!(last <= at && at <= now_ms, "seed {seed}");
                    last = at;
                    assert!(expected.remove(&(at, id)).is_some(), "seed {seed}");
                }
                let late = expected.keys().next().is_some_and(|(at, _)| *at <= now_ms);
                assert!(!late, "seed {seed}");
            }
            assert_eq!(timers.len(), expected.len());
        }
    }
}

#[test]
fn what_was_cancelled_leaves_nothing_behind() {
    let zero = zero();
    let mut timers = Timers::new(zero);
    for after in 0..100_000 {
        let timer = timers.set(zero + after * MS, after);
        assert_eq!(timers.cancel(timer), after);
    }
    assert_eq!(timers.links.len(), 1);
    assert_eq!(timers.occupied, [0; LEVELS]);
}
