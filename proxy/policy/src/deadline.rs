//! Deadlines: `grpc-timeout`, and the earliest of what route, client and attempt allow.
//!
//! The wire form is that of the gRPC HTTP/2 specification: 1 to 8 digits and a unit
//! (`H M S m u n`).
//!
//! ```
//! use std::time::{Duration, Instant};
//! use heddle_policy::deadline::{GrpcTimeout, earliest};
//!
//! let client: GrpcTimeout = GrpcTimeout::parse(b"250m").unwrap();
//! assert_eq!(client.0, Duration::from_millis(250));
//! assert_eq!(GrpcTimeout(Duration::from_secs(90)).to_string(), "90000000u");
//! # #[expect(clippy::disallowed_methods, reason = "an example has no clock to be given")]
//! let now = Instant::now();
//! let deadline = earliest(now, [Some(Duration::from_secs(10)), Some(client.0)]);
//! assert_eq!(deadline, Some(now + Duration::from_millis(250)));
//! ```

use std::{
    fmt,
    time::{Duration, Instant},
};

use thiserror::Error;

/// The value of a `grpc-timeout` header. `Display` prints the finest unit that fits in eight
/// digits, rounded down, so a forwarded deadline is never later than ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout(pub Duration);

/// A `grpc-timeout` that does not follow the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("grpc-timeout is not 1 to 8 digits and one of H M S m u n")]
pub struct BadTimeout;

impl GrpcTimeout {
    /// Reads a header value. Zero is accepted, though the specification says positive:
    /// grpc-go sends `0n` for a deadline that has passed.
    ///
    /// # Errors
    /// [`BadTimeout`] for anything but digits and a unit.
    pub fn parse(value: &[u8]) -> Result<Self, BadTimeout> {
        let (unit, digits) = value.split_last().ok_or(BadTimeout)?;
        if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.iter().all(u8::is_ascii_digit)
        {
            return Err(BadTimeout);
        }
        let amount = digits
            .iter()
            .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        let timeout = match unit {
            b'H' => Duration::from_secs(amount * 3600),
            b'M' => Duration::from_secs(amount * 60),
            b'S' => Duration::from_secs(amount),
            b'm' => Duration::from_millis(amount),
            b'u' => Duration::from_micros(amount),
            b'n' => Duration::from_nanos(amount),
            _ => return Err(BadTimeout),
        };
        Ok(Self(timeout))
    }
}

impl fmt::Display for GrpcTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = u128::from(self.0.as_secs());
        let units = [
            (self.0.as_nanos(), 'n'),
            (self.0.as_micros(), 'u'),
            (self.0.as_millis(), 'm'),
            (seconds, 'S'),
            (seconds / 60, 'M'),
            (seconds / 3600, 'H'),
        ];
        let (amount, unit) = units
            .into_iter()
            .find(|(amount, _)| *amount <= AMOUNT_MAX)
            .unwrap_or((AMOUNT_MAX, 'H'));
        write!(f, "{amount}{unit}")
    }
}

/// The deadline that the shortest of these times makes; `None` when none is set, or when it is
/// too far away to name.
pub fn earliest(
    now: Instant,
    timeouts: impl IntoIterator<Item = Option<Duration>>,
) -> Option<Instant> {
    let shortest = timeouts.into_iter().flatten().min()?;
    now.checked_add(shortest)
}

/// When an attempt that starts now must have response headers: the whole deadline, or earlier
/// by the route's time for one attempt.
pub fn of_attempt(
    now: Instant,
    attempt_timeout: Option<Duration>,
    deadline: Option<Instant>,
) -> Option<Instant> {
    let own = earliest(now, [attempt_timeout]);
    match (own, deadline) {
        (Some(own), Some(whole)) => Some(own.min(whole)),
        (own, whole) => own.or(whole),
    }
}

/// What to forward as `grpc-timeout`: the time left, zero once the deadline has passed.
pub fn remaining(now: Instant, deadline: Instant) -> GrpcTimeout {
    GrpcTimeout(deadline.saturating_duration_since(now))
}

const DIGITS_MAX: usize = 8;
const AMOUNT_MAX: u128 = 99_999_999;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<Duration>) {
        let parsed = GrpcTimeout::parse(text.as_bytes()).ok();
        assert_eq!(parsed, expected.map(GrpcTimeout), "{text}");
    }

    #[test]
    fn every_unit_is_read() {
        check("1H", Some(Duration::from_secs(3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("3S", Some(Duration::from_secs(3)));
        check("4m", Some(Duration::from_millis(4)));
        check("5u", Some(Duration::from_micros(5)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        check("99999999H", Some(Duration::from_secs(99_999_999 * 3600)));
        check("00000001S", Some(Duration::from_secs(1)));
        check("0n", Some(Duration::ZERO));
    }

    #[test]
    fn a_bad_value_is_refused() {
        for text in [
            "",
            "S",
            "1",
            "1s",
            "1h",
            "-1S",
            "+1S",
            "1.5S",
            " 1S",
            "1S ",
            "1 S",
            "100000000n",
            "1SS",
            "0x1S",
            "١S",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn the_finest_unit_that_fits_is_printed_and_never_rounded_up() {
        let print = |time| GrpcTimeout(time).to_string();
        assert_eq!(print(Duration::ZERO), "0n");
        assert_eq!(print(Duration::from_nanos(99_999_999)), "99999999n");
        assert_eq!(print(Duration::from_nanos(100_000_999)), "100000u");
        assert_eq!(print(Duration::from_secs(100)), "100000m");
        assert_eq!(print(Duration::from_secs(99_999_999)), "99999999S");
        assert_eq!(print(Duration::from_secs(100_000_000)), "1666666M");
        assert_eq!(print(Duration::MAX), "99999999H");
    }

    #[test]
    fn what_is_printed_is_read_back_not_later() {
        for shift in 0..64 {
            let time = Duration::from_nanos(u64::MAX >> shift);
            let printed = GrpcTimeout(time).to_string();
            let read = GrpcTimeout::parse(printed.as_bytes()).unwrap().0;
            assert!(read <= time, "{printed}");
            assert!(time - read <= time / 1000, "{printed}");
        }
    }
}
