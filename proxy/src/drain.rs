//! Graceful stop: one signal that every listener and connection watches, and the order of its
//! phases, in which nothing is lost: nobody comes any more, then nobody is kept, then nothing
//! goes out.
//!
//! ```text
//! Running ─ withdrawn, or 5 s ─► Inbound ─ application gone ─► All ─ everything ended ─► end
//!                                                └─── the limit, or told again ─► Cut ────┘
//! ```

use std::{fmt, pin::pin, time::Duration};

use heddle_shell::clock;
use tokio::{
    sync::watch,
    time::{sleep, timeout, timeout_at},
};
use tracing::{info, warn};

use crate::{exchange::Direction, telemetry::metrics::Metrics};

/// How far the stop has come; it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    #[default]
    Running,
    /// Inbound connections say goodbye (GOAWAY, `Connection: close`); new ones are still taken
    /// from clients that have not heard. Outbound works as before.
    Inbound,
    /// Nothing new on either side; what runs may finish.
    All,
    /// Whatever is left is cut.
    Cut,
}

/// What a stop waits for.
pub struct Awaited<W, G, E, T> {
    /// No sidecar sends anybody here any more.
    pub withdrawn: W,
    /// The application needs its sidecar no longer.
    pub application_gone: G,
    /// Everything that was accepted has ended.
    pub ended: E,
    /// Whoever asked for the stop has lost patience.
    pub told_again: T,
}

/// The side that decides.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

/// The side that obeys.
#[derive(Clone, Debug)]
pub struct Draining {
    phase: watch::Receiver<Phase>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }
}

impl Drain {
    /// Moves on to `phase`; going back is ignored.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let is_later = phase > *current;
            *current = phase.max(*current);
            is_later
        });
    }

    /// Goes through the phases; returns when everything has ended. After `limit` what is left is
    /// cut; of it the last [`LAST_CALLS`] are for what runs, however busy the application is.
    pub async fn stop<W, G, E, T>(&self, limit: Duration, awaited: Awaited<W, G, E, T>)
    where
        W: Future<Output = ()>,
        G: Future<Output = ()>,
        E: Future<Output = ()>,
        T: Future<Output = ()>,
    {
        let calls_until = clock::now() + limit.saturating_sub(LAST_CALLS);
        let mut ended = pin!(awaited.ended);
        let gently = async {
            info!("draining: asking every sidecar to go elsewhere");
            // Nobody confirms without a stream; those who have not heard still come, and are
            // served.
            let withdrawn = timeout(WITHDRAWAL, awaited.withdrawn);
            _ = timeout_at(calls_until.into(), withdrawn).await;
            info!("draining: goodbye to inbound connections; outbound works on");
            self.advance(Phase::Inbound);
            _ = timeout_at(calls_until.into(), awaited.application_gone).await;
            info!("draining: nothing new is taken; what runs may finish");
            self.advance(Phase::All);
            ended.as_mut().await;
        };
        let is_over = tokio::select! {
            biased; // An end needs no cut.
            () = gently => true,
            () = sleep(limit) => false,
            () = awaited.told_again => false,
        };
        if !is_over {
            warn!("connections are left and are cut now");
            self.advance(Phase::Cut);
            _ = timeout(CUT, ended).await;
        }
    }

    /// A watcher.
    pub fn watch(&self) -> Draining {
        Draining {
            phase: self.phase.subscribe(),
        }
    }
}

impl Draining {
    /// Now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns once `phase` is reached; also when the decider is gone, because nobody could
    /// then stop the watcher any more.
    pub async fn reached(&mut self, phase: Phase) {
        _ = self.phase.wait_for(|current| *current >= phase).await;
    }
}

/// Returns once nothing of the application has gone out for [`QUIET`]: no request, no open
/// stream, no opaque connection. A connection that waits for its next request is not counted: an
/// application may keep those for hours.
pub async fn application_gone(metrics: &Metrics) {
    let mut quiet_since = clock::now();
    let mut known = 0;
    loop {
        sleep(LOOK).await;
        let (begun, active) = metrics.activity(Direction::Outbound);
        let now = clock::now();
        if active > 0 || begun != known {
            (known, quiet_since) = (begun, now);
        } else if now.saturating_duration_since(quiet_since) >= QUIET {
            return;
        }
    }
}

impl<W, G, E, T> fmt::Debug for Awaited<W, G, E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Awaited(..)")
    }
}

/// How long a stopping sidecar waits for the word that nobody is sent here any more.
const WITHDRAWAL: Duration = Duration::from_secs(5);
/// After so long without anything from the application, it is taken as gone.
const QUIET: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// The end of the limit, in which nothing new is taken and what runs may finish.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// For those who are cut to notice.
const CUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Arc,
    };

    use super::*;
    use crate::{
        exchange::{Exchange, Record, Spoken},
        telemetry::Telemetry,
    };

    const DAY: Duration = Duration::from_hours(24);

    /// Stops, with what else happens at which second, and tells when the phases came.
    async fn stopped(
        limit: Duration,
        gone_at: Option<u64>,
        ended_at: Option<u64>,
        told_again_at: Option<u64>,
    ) -> Vec<(Phase, u64)> {
        let at = |seconds: Option<u64>| async move {
            match seconds {
                Some(seconds) => sleep(Duration::from_secs(seconds)).await,
                None => pending().await,
            }
        };
        let drain = Drain::default();
        let mut watched = drain.watch().phase;
        let began = clock::now();
        let watching = async {
            let mut seen = Vec::new();
            while watched.changed().await.is_ok() {
                let seconds = clock::now().saturating_duration_since(began).as_secs();
                seen.push((*watched.borrow_and_update(), seconds));
            }
            seen
        };
        let stopping = async move {
            let awaited = Awaited {
                withdrawn: ready(()),
                application_gone: at(gone_at),
                ended: at(ended_at),
                told_again: at(told_again_at),
            };
            drain.stop(limit, awaited).await;
        };
        let ((), seen) = tokio::join!(stopping, watching);
        seen
    }

    const TWO_HOURS: u64 = 2 * 60 * 60;

    #[tokio::test(start_paused = true)]
    async fn a_stream_of_two_hours_is_not_cut() {
        let seen = stopped(DAY, Some(2), Some(TWO_HOURS), None).await;
        assert_eq!(seen, [(Phase::Inbound, 0), (Phase::All, 2)]);
        // The application's own streams keep the way out open.
        let seen = stopped(DAY, Some(TWO_HOURS), Some(TWO_HOURS), None).await;
        assert_eq!(seen, [(Phase::Inbound, 0), (Phase::All, TWO_HOURS)]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_cuts_what_is_left_and_its_end_is_for_what_runs() {
        let seen = stopped(DAY, Some(2), None, None).await;
        let day = DAY.as_secs();
        assert_eq!(seen[2], (Phase::Cut, day));
        let busy = stopped(DAY, None, None, None).await;
        assert_eq!(busy[1..], [(Phase::All, day - 5), (Phase::Cut, day)]);
        let short = stopped(Duration::from_secs(1), None, None, None).await;
        // The first phase is over before anybody looks.
        assert_eq!(short, [(Phase::All, 0), (Phase::Cut, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_twice_does_not_wait() {
        let seen = stopped(DAY, None, None, Some(7)).await;
        assert_eq!(seen[1..], [(Phase::Cut, 7)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_application_is_there_while_something_of_it_is_under_way() {
        let telemetry = Arc::new(Telemetry::default());
        let begin = || {
            let client = ([127, 0, 0, 1], 1).into();
            let record = Record::new(Direction::Outbound, Spoken::Tcp, "".into(), client);
            Exchange::start(record, Arc::clone(&telemetry))
        };
        let began = clock::now();
        let long = begin();
        let calling = async {
            sleep(Duration::from_secs(60)).await;
            drop(long);
            // Too short to be seen under way.
            sleep(Duration::from_millis(1550)).await;
            begin().retract();
        };
        let gone = async {
            application_gone(&telemetry.metrics).await;
            clock::now().saturating_duration_since(began)
        };
        let ((), gone_after) = tokio::join!(calling, gone);
        let quiet_from = Duration::from_millis(61_550);
        assert!(gone_after >= quiet_from + QUIET, "{gone_after:?}");
        assert!(
            gone_after <= quiet_from + QUIET + 2 * LOOK,
            "{gone_after:?}"
        );
    }

    #[tokio::test]
    async fn a_phase_is_seen_and_never_taken_back() {
        let drain = Drain::default();
        let mut early = drain.watch();
        drain.advance(Phase::All);
        drain.advance(Phase::Inbound);
        early.reached(Phase::Inbound).await;
        assert_eq!(early.phase(), Phase::All);
        drop(drain);
        early.reached(Phase::Cut).await;
    }
}
