//! When a certificate is renewed. Pure: both clocks are arguments.

use std::time::{Duration, Instant, SystemTime};

use rand::{RngExt, rngs::StdRng};

use crate::backoff::Backoff;

/// Longer than a control plane needs to notice the jump.
const HASTY_MAX: u32 = 8;

/// A difference between the clocks beyond this is a jump of the wall clock.
const JUMP: Duration = Duration::from_secs(5);

/// Least time between two certificates. A clock that is wrong by more than their life makes each
/// of them look useless at once; asking faster would not mend it.
const PAUSE: Duration = Duration::from_secs(10);

/// The schedule of one certificate.
#[derive(Debug)]
pub(super) struct Renewal {
    /// `None` before the first certificate.
    current: Option<Validity>,
    backoff: Backoff,
    /// Instead of `backoff`, while there are hasty attempts left after a jump of the clock.
    haste: Backoff,
    hasty_left: u32,
    /// No attempt before this, after a failure and after a success.
    retry_at: Option<Instant>,
    /// Both clocks at the last look, to notice a jump.
    seen: Option<(SystemTime, Instant)>,
}

#[derive(Debug)]
struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
    due: SystemTime,
}

impl Renewal {
    pub(super) fn new(backoff: Backoff, haste: Backoff) -> Self {
        Self {
            current: None,
            backoff,
            haste,
            hasty_left: 0,
            retry_at: None,
            seen: None,
        }
    }

    /// A certificate came; it is renewed at 50 to 60 % of the life it has left, but not at once.
    pub(super) fn received(
        &mut self,
        not_before: SystemTime,
        not_after: SystemTime,
        (wall, now): (SystemTime, Instant),
        rng: &mut StdRng,
    ) {
        let left = not_after.duration_since(wall).unwrap_or_default();
        let wait = left.mul_f64(rng.random_range(0.5..0.6));
        let due = wall + wait;
        self.current = Some(Validity {
            not_before,
            not_after,
            due,
        });
        self.backoff.succeeded();
        self.hasty_left = 0;
        // Short lives are taken at their word.
        let pause = if wait.is_zero() {
            PAUSE
        } else {
            wait.min(PAUSE)
        };
        self.retry_at = Some(now + pause);
    }

    /// An attempt failed; says how long the next one waits.
    pub(super) fn failed(&mut self, now: Instant, asked: Option<Duration>) -> Duration {
        let hasty_left = self.hasty_left.checked_sub(1);
        self.hasty_left = hasty_left.unwrap_or(0);
        let backoff = match hasty_left {
            Some(_) => &mut self.haste,
            None => &mut self.backoff,
        };
        let wait = backoff
            .failed()
            .max(asked.unwrap_or_default().min(ASKED_MAX));
        self.retry_at = Some(now + wait);
        wait
    }

    /// Whether to try now. Asked once a second, and at [`Renewal::retry_at`].
    pub(super) fn is_due(&mut self, wall: SystemTime, now: Instant) -> bool {
        if self.has_jumped(wall, now) {
            // What made us wait may have been the clock itself.
            self.retry_at = None;
            self.backoff.succeeded();
            // The control plane's clock has jumped too, and it has a certificate of its own.
            self.hasty_left = HASTY_MAX;
        }
        self.seen = Some((wall, now));
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
        }
        let is_wanted = self.current.as_ref().is_none_or(|current| {
            // Set back behind its beginning, a certificate is as useless as an expired one.
            wall >= current.due || wall < current.not_before
        });
        is_wanted && self.retry_at.is_none()
    }

    /// When to ask next, if that is not the usual second.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    pub(super) fn has_expired(&self, wall: SystemTime) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| wall >= current.not_after)
    }

    fn has_jumped(&self, wall: SystemTime, now: Instant) -> bool {
        let Some((wall_before, now_before)) = self.seen else {
            return false;
        };
        let expected = wall_before + now.saturating_duration_since(now_before);
        let ahead = wall.duration_since(expected).unwrap_or_default();
        let behind = expected.duration_since(wall).unwrap_or_default();
        ahead.max(behind) > JUMP
    }
}

/// A control plane may slow us down, not stop us.
const ASKED_MAX: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rand::SeedableRng;

    use super::*;

    const HOUR: u64 = 3600;

    /// Two clocks that a test moves.
    struct Clocks {
        renewal: Renewal,
        rng: StdRng,
        wall: SystemTime,
        now: Instant,
    }

    impl Clocks {
        fn new(seed: u64) -> Self {
            let rng = StdRng::seed_from_u64(seed);
            let backoff = Backoff::new(
                Duration::from_secs(1),
                Duration::from_secs(150),
                StdRng::seed_from_u64(seed),
            );
            let quarter = Duration::from_millis(250);
            let haste = Backoff::new(quarter, quarter, StdRng::seed_from_u64(seed));
            Self {
                renewal: Renewal::new(backoff, haste),
                rng,
                wall: UNIX_EPOCH + Duration::from_hours(1_000_000),
                now: heddle_shell::clock::now(),
            }
        }

        fn receive(&mut self, seconds: u64) {
            let (from, to) = (
                self.wall - Duration::from_mins(10),
                self.wall + Duration::from_secs(seconds),
            );
            self.receive_within(from, to);
        }

        fn receive_within(&mut self, from: SystemTime, to: SystemTime) {
            let clocks = (self.wall, self.now);
            self.renewal.received(from, to, clocks, &mut self.rng);
        }

        fn tick(&mut self) -> bool {
            self.wall += Duration::from_secs(1);
            self.now += Duration::from_secs(1);
            self.renewal.is_due(self.wall, self.now)
        }

        /// Seconds until an attempt is due.
        fn wait(&mut self) -> u64 {
            (1..=100_000).find(|_| self.tick()).unwrap()
        }
    }

    #[test]
    fn the_first_certificate_is_due_at_once() {
        assert_eq!(Clocks::new(1).wait(), 1);
    }

    #[test]
    fn renewal_comes_at_50_to_60_percent_of_the_life_left() {
        for seed in 0..20 {
            for life in [20, 24 * HOUR] {
                let mut clocks = Clocks::new(seed);
                clocks.receive(life);
                let waited = clocks.wait();
                assert!(waited >= life / 2, "{waited} of {life}, seed {seed}");
                assert!(
                    waited <= life * 6 / 10 + 1,
                    "{waited} of {life}, seed {seed}"
                );
            }
        }
    }

    #[test]
    fn failures_back_off_to_150_seconds() {
        let mut clocks = Clocks::new(1);
        clocks.receive(24 * HOUR);
        clocks.wait();
        let mut longest = 0;
        for _ in 0..20 {
            clocks.renewal.failed(clocks.now, None);
            longest = longest.max(clocks.wait());
        }
        assert!((75..=151).contains(&longest), "{longest}");
        clocks.receive(20);
        clocks.wait();
        clocks.renewal.failed(clocks.now, None);
        assert!(clocks.wait() <= 2);
    }

    #[test]
    fn the_control_plane_may_ask_for_more_patience() {
        let mut clocks = Clocks::new(1);
        clocks
            .renewal
            .failed(clocks.now, Some(Duration::from_secs(60)));
        assert_eq!(clocks.wait(), 60);
        clocks
            .renewal
            .failed(clocks.now, Some(Duration::from_hours(9)));
        assert_eq!(clocks.wait(), 300);
    }

    #[test]
    fn a_jump_of_the_wall_clock_renews_within_two_ticks_also_in_back_off() {
        for hours in [-25, 25] {
            let mut clocks = Clocks::new(1);
            clocks.receive(24 * HOUR);
            clocks.tick();
            for _ in 0..10 {
                clocks.renewal.failed(clocks.now, None);
            }
            let jump = Duration::from_hours(25);
            clocks.wall = if hours > 0 {
                clocks.wall + jump
            } else {
                clocks.wall - jump
            };
            assert!(clocks.wait() <= 2, "{hours}");
            assert_eq!(clocks.renewal.has_expired(clocks.wall), hours > 0);
        }
    }

    /// Before its beginning or after its end by our clock, each certificate looks useless.
    #[test]
    fn a_wrong_clock_asks_every_ten_seconds() {
        let day = Duration::from_hours(24);
        for skew in [Duration::from_mins(20), 3 * day] {
            for is_behind in [true, false] {
                let mut clocks = Clocks::new(1);
                let mut waits = Vec::new();
                for _ in 0..5 {
                    let truth = if is_behind {
                        clocks.wall + skew
                    } else {
                        clocks.wall - skew
                    };
                    clocks.receive_within(truth - Duration::from_mins(10), truth + day);
                    waits.push(clocks.wait());
                }
                let is_useless = is_behind || skew > day;
                assert_eq!(
                    waits == [10; 5],
                    is_useless,
                    "{skew:?} {is_behind} {waits:?}"
                );
            }
        }
    }

    #[test]
    fn after_a_jump_failures_are_repeated_in_haste_for_a_while() {
        let mut clocks = Clocks::new(1);
        clocks.receive(24 * HOUR);
        clocks.tick();
        clocks.wall += Duration::from_hours(25);
        assert!(clocks.tick());
        for _ in 0..HASTY_MAX {
            let wait = clocks.renewal.failed(clocks.now, None);
            assert!(wait <= Duration::from_millis(250), "{wait:?}");
        }
        let wait = clocks.renewal.failed(clocks.now, None);
        assert!(wait >= Duration::from_millis(500), "{wait:?}");
    }

    #[test]
    fn a_small_step_of_the_wall_clock_is_not_a_jump() {
        let mut clocks = Clocks::new(1);
        clocks.receive(24 * HOUR);
        clocks.tick();
        clocks.wall += Duration::from_secs(4);
        assert!(!clocks.tick());
    }
}
