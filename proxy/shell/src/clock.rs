//! The only reader of the clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time. Tokio's clock, so that a paused test runtime moves timers and policies
/// together.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Wall time, for certificates and for people. It can jump: ask it once a second and at each
/// handshake, never derive it from [`now`].
#[expect(clippy::disallowed_methods, reason = "the one reader of wall time")]
pub fn wall() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since the Unix epoch, as our API writes times. Zero before 1970.
pub fn unix_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

/// The inverse of [`unix_ms`]; negative times are 1970.
pub fn from_unix_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// Sleeps by the monotonic clock.
pub async fn sleep_until(deadline: Instant) {
    tokio::time::sleep_until(deadline.into()).await;
}
