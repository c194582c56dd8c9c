//! What one connection may take, and the budgets that make floods end.

use std::time::{Duration, Instant};

/// Bounds of a connection. Those that its settings announce hold for an honest peer without
/// loss; the others end a connection with ENHANCE_YOUR_CALM.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams at a time (SETTINGS_MAX_CONCURRENT_STREAMS). As a client, our own bound beside
    /// the peer's. At least 1.
    pub streams_max: u32,
    /// Bytes of a header list, 32 of them per field (SETTINGS_MAX_HEADER_LIST_SIZE). Above it a
    /// request is told as too large; a compressed block of twice as much ends the connection.
    pub list_bytes_max: u32,
    /// Fields of a header list; cookies come in crumbs (RFC 9113 section 8.2.3).
    pub fields_max: u32,
    /// Bytes of the HPACK table that the peer fills (SETTINGS_HEADER_TABLE_SIZE).
    pub table_bytes_max: u32,
    /// Bytes of a frame's payload (SETTINGS_MAX_FRAME_SIZE): 16 KiB to 16 MiB - 1.
    pub frame_bytes_max: u32,
    /// Bytes of a stream that may be on their way to whoever releases them
    /// (SETTINGS_INITIAL_WINDOW_SIZE): at most 2^31 - 1.
    pub stream_window: u32,
    /// Bytes of all streams that may be on the wire: 65,535 to 2^31 - 1.
    pub connection_window: u32,
    /// Interim answers before a final one.
    pub interims_max: u8,
    /// How long the acknowledgement of our first SETTINGS may take.
    pub settings_timeout: Duration,
    /// How long a header block may take from its first frame to its last, and a frame that is not
    /// DATA from its first byte to its last.
    pub block_timeout: Duration,
    /// Streams that the peer resets, or makes us reset, before their end (CVE-2023-44487,
    /// CVE-2025-8671): one stream that an endpoint answers and that ends well pays for one of them.
    pub resets: Rate,
    /// RST_STREAM that we send as a client before others are to be used, see
    /// [`Connection::is_worn`].
    ///
    /// [`Connection::is_worn`]: super::Connection::is_worn
    pub resets_sent: Rate,
    /// Frames that bring nothing: PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, empty
    /// DATA, short CONTINUATION, unknown ones, and those of streams that are over. What is
    /// sent and received of messages pays for some of them.
    pub idle_frames: Rate,
    /// Bytes of output from which on heads and bodies wait within.
    pub output_bytes: usize,
    /// What `:protocol` means on requests.
    pub upgrade: Upgrade,
}

/// What `:protocol` means on a request, as both sides of a connection know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// It makes the request malformed (RFC 9113 section 8.3).
    Refused,
    /// Extended CONNECT (RFC 8441), which SETTINGS announce.
    ExtendedConnect,
    /// An upgrade of the HTTP/1.1 that is carried between two sidecars, beside the request's own
    /// method; 101 grants it. See the module.
    Http1,
}

/// What may come at once, and how fast that is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once. After a rest, up to twice as many.
    pub burst: u32,
    /// Given back per second.
    pub per_second: u32,
}

impl Limits {
    /// Towards other sidecars. Whatever one takes from its application, over HTTP/1.1 too, the next
    /// one has to take with what was added on the way (a request id, a trace, who asks): so header
    /// lists may be larger here by [`ADDED_BYTES_MAX`] and [`ADDED_FIELDS_MAX`].
    pub const fn of_mesh() -> Self {
        let application = Self::of_application();
        Self {
            list_bytes_max: application.list_bytes_max + ADDED_BYTES_MAX,
            fields_max: application.fields_max + ADDED_FIELDS_MAX,
            stream_window: 256 * 1024,
            // Half of what the other end takes (`resets`).
            resets_sent: Rate {
                burst: 2_500,
                per_second: 250,
            },
            ..application
        }
    }

    /// Towards the application beside us: what it sends need not lie here, it is near.
    pub const fn of_application() -> Self {
        Self {
            streams_max: 1_000,
            list_bytes_max: 64 * 1024,
            fields_max: 256,
            table_bytes_max: 4_096,
            frame_bytes_max: 16 * 1024,
            stream_window: 64 * 1024,
            connection_window: 4 * 1024 * 1024,
            interims_max: 16,
            settings_timeout: Duration::from_secs(30),
            block_timeout: Duration::from_secs(30),
            // Streams of several connections of applications share one between sidecars: all
            // of them may be cancelled at once when these end.
            resets: Rate {
                burst: 5_000,
                per_second: 500,
            },
            // Netty takes 200 in 30 seconds, with 50 of them at once.
            resets_sent: Rate {
                burst: 25,
                per_second: 5,
            },
            idle_frames: Rate {
                burst: 10_000,
                per_second: 1_000,
            },
            output_bytes: 64 * 1024,
            upgrade: Upgrade::Refused,
        }
    }

    /// Bytes of a compressed header block. Huffman coding and tables make it shorter than its
    /// list, so that one of twice the limit is no honest mistake.
    pub(super) fn block_bytes_max(&self) -> usize {
        2 * self.list_bytes_max as usize
    }

    /// Bytes of memory that heads may take which wait to be written: two of ordinary length for each
    /// stream, and some long ones. A peer that makes us keep more does not read.
    pub(super) fn heads_bytes_max(&self) -> usize {
        1024 * 1024 + 8 * 1024 * self.streams_max as usize
    }

    /// Bytes of output above which a peer makes us answer and does not read: beside what goes by
    /// `output_bytes`, one head may be there, and answers to control frames.
    pub(super) fn output_bytes_max(&self) -> usize {
        self.output_bytes + self.block_bytes_max() + 64 * 1024
    }
}

/// Bytes of header lists, as their limits count them, that sidecars may add to a message between
/// two applications.
pub const ADDED_BYTES_MAX: u32 = 8 * 1024;
/// Fields that they may add.
pub const ADDED_FIELDS_MAX: u32 = 32;

/// A token bucket that is refilled when it is used up: at most twice its burst can be spent at
/// once, and an ordinary token costs a subtraction.
#[derive(Debug)]
pub(super) struct Budget {
    rate: Rate,
    left: u32,
    filled_at: Instant,
}

impl Budget {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            left: rate.burst,
            filled_at: now,
        }
    }

    /// Takes `n`, if there are as many.
    pub(super) fn spend(&mut self, n: u32, now: Instant) -> bool {
        if self.left < n {
            self.refill(now);
        }
        let Some(left) = self.left.checked_sub(n) else {
            return false;
        };
        self.left = left;
        true
    }

    /// Takes one, if there is one.
    pub(super) fn spend_what_is_left(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    pub(super) fn is_used_up(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            self.refill(now);
        }
        self.left == 0
    }

    /// Gives back `n`.
    pub(super) fn earn(&mut self, n: u32) {
        self.left = self.left.saturating_add(n).min(self.rate.burst);
    }

    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled_at);
        let back = elapsed.as_millis() * u128::from(self.rate.per_second) / 1_000;
        if let Ok(back @ 1..) = u32::try_from(back.min(u128::from(self.rate.burst))) {
            self.earn(back);
            self.filled_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `tries` at each second are granted.
    #[track_caller]
    fn check(rate: Rate, tries: &[(u64, u32)], granted: &[u32]) {
        let start = crate::h2::tests::start();
        let mut budget = Budget::new(rate, start);
        let counts = tries.iter().map(|&(second, tries)| {
            let now = start + Duration::from_secs(second);
            (0..tries).map(|_| u32::from(budget.spend(1, now))).sum()
        });
        assert_eq!(counts.collect::<Vec<u32>>(), granted);
    }

    const RATE: Rate = Rate {
        burst: 10,
        per_second: 2,
    };

    #[test]
    fn between_sidecars_there_is_room_for_what_is_added() {
        let (mesh, h1) = (Limits::of_mesh(), crate::h1::Limits::default());
        for (bytes, fields) in [
            (
                Limits::of_application().list_bytes_max,
                Limits::of_application().fields_max,
            ),
            (h1.head_bytes_max, h1.fields_max),
        ] {
            assert!(mesh.list_bytes_max >= bytes + ADDED_BYTES_MAX);
            assert!(mesh.fields_max >= fields + ADDED_FIELDS_MAX);
        }
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        check(
            RATE,
            &[(0, 20), (0, 1), (1, 20), (2, 20), (3, 1)],
            &[10, 0, 2, 2, 1],
        );
    }

    #[test]
    fn a_rest_gives_back_at_most_a_burst() {
        check(RATE, &[(0, 1), (1_000_000_000, 40)], &[1, 19]);
    }

    #[test]
    fn what_is_earned_is_at_most_a_burst() {
        let now = crate::h2::tests::start();
        let mut budget = Budget::new(RATE, now);
        budget.earn(u32::MAX);
        assert_eq!((0..40).filter(|_| budget.spend(1, now)).count(), 10);
        budget.earn(3);
        assert_eq!((0..40).filter(|_| budget.spend(1, now)).count(), 3);
    }
}
