//! The one reader of the clock here.

pub(crate) use tokio::time::Instant;

/// Monotonic; the runtime's own, which nothing pauses in a measurement.
pub(crate) fn now() -> Instant {
    Instant::now()
}
