//! Everything that gets old: the control plane's own certificate, the administrator's, the
//! intermediate, the ledger. One task looks at the wall clock once a second, so that a clock that
//! jumped is noticed within that second.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use heddle_shell::{
    clock,
    publish::Published,
    tls::{Identity, TrustBundle},
};
use rustls::ServerConfig;
use tracing::{error, info, warn};

use super::server_config;
use crate::{
    ca::{Administrator, Authority, Bundle, Ledger, Own, Renewal},
    telemetry::Metrics,
};

const STEP: Duration = Duration::from_secs(1);

/// After a renewal failed; the certificates in use stay valid for half of their life.
const RETRY: Duration = Duration::from_secs(10);

/// Between two purges of the ledger.
const PURGE: Duration = Duration::from_secs(600);

/// What clocks that are disciplined drift apart between two purges, and a suspend of the machine
/// that nobody would notice.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);

/// What is rotated.
pub(super) struct Rotation {
    pub(super) authority: Arc<Authority>,
    pub(super) own: Own,
    pub(super) identity: Arc<Identity>,
    pub(super) administrator: Arc<Administrator>,
    pub(super) bundle: Arc<Bundle>,
    pub(super) ledger: Ledger,
    pub(super) tls_config: Arc<Published<ServerConfig>>,
    pub(super) metrics: Arc<Metrics>,
}

impl Rotation {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let mut clocks = Clocks::read();
        // Not at once: the clock of a machine that boots may be wrong for a while.
        let mut purge_at = clock::now() + PURGE;
        let mut trust = self.bundle.published().load();
        loop {
            let wall = clock::wall();
            let (rotation, mut is_done) = self.renew(wall).await;
            self = rotation;
            if let Err(error) = self.administrator.renew(wall).await {
                is_done = false;
                error!(%error, "renewing the administrator's certificate failed");
            }
            self.follow_trust(&mut trust);
            if clock::now() >= purge_at {
                match clocks.agree_again(clock::now(), wall) {
                    true => self.purge(wall).await,
                    false => warn!("the wall clock was set; the ledger is purged later"),
                }
                purge_at = clock::now() + PURGE;
            }
            self.metrics.expires(self.authority.not_after(), wall);
            let pause = if is_done { STEP } else { RETRY };
            let mut changed = self.bundle.published().subscribe();
            let wake = clock::now() + pause;
            tokio::select! {
                // Order does not matter: both lead to the same look.
                biased;
                _ = changed.changed() => {}
                () = clock::sleep_until(wake) => {}
            }
        }
    }

    /// Renews what is due, off the async threads: it writes and syncs files.
    async fn renew(mut self, wall: SystemTime) -> (Self, bool) {
        let renewed = tokio::task::spawn_blocking(move || {
            let is_done = self.renew_now(wall);
            (self, is_done)
        });
        renewed.await.expect("renewing does not panic")
    }

    fn renew_now(&mut self, wall: SystemTime) -> bool {
        let mut is_done = true;
        match self.authority.renew(wall) {
            Ok(Renewal::Renewed) => info!("renewed the intermediate certificate"),
            Ok(Renewal::NotDue | Renewal::NotOurs) => {}
            Err(error) => {
                is_done = false;
                error!(%error, "renewing the intermediate certificate failed");
            }
        }
        if is_half_over(&self.identity, wall) {
            match self.own.issue(wall) {
                Ok(identity) => {
                    self.identity = Arc::new(identity);
                    self.publish();
                    info!("renewed the control plane's own certificate");
                }
                Err(error) => {
                    is_done = false;
                    error!(%error, "renewing the control plane's own certificate failed");
                }
            }
        }
        is_done
    }

    fn follow_trust(&self, trust: &mut Arc<TrustBundle>) {
        let current = self.bundle.published().load();
        if current.revision != trust.revision {
            *trust = current;
            self.publish();
        }
    }

    fn publish(&self) {
        match server_config(&self.identity, &self.bundle) {
            Ok(config) => self.tls_config.publish(config),
            Err(error) => error!(%error, "configuring TLS failed; the old configuration stays"),
        }
    }

    async fn purge(&self, wall: SystemTime) {
        match self.ledger.purge(wall).await {
            Ok(0) => {}
            Ok(purged) => info!(purged, "purged expired certificates from the ledger"),
            Err(error) => warn!(%error, "purging the ledger failed"),
        }
    }
}

/// Both clocks at one moment.
struct Clocks {
    now: Instant,
    wall: SystemTime,
}

impl Clocks {
    fn read() -> Self {
        Self {
            now: clock::now(),
            wall: clock::wall(),
        }
    }

    /// Whether both have moved alike since the last look.
    fn agree_again(&mut self, now: Instant, wall: SystemTime) -> bool {
        let expected = self.wall + now.saturating_duration_since(self.now);
        *self = Self { now, wall };
        let apart = match wall.duration_since(expected) {
            Ok(ahead) => ahead,
            Err(behind) => behind.duration(),
        };
        apart <= CLOCKS_APART_MAX
    }
}

/// Whether the time since the certificate was made is half of its life. Its backdating does not
/// count: a leaf of seconds is backdated by as much.
fn is_half_over(identity: &Identity, wall: SystemTime) -> bool {
    let life = identity
        .not_after()
        .duration_since(identity.not_before())
        .unwrap_or_default();
    wall + life / 4 >= identity.not_after() || wall < identity.not_before()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_noticed_once() {
        let start = Clocks::read();
        let (now, wall) = (start.now, start.wall);
        let mut clocks = start;
        let after = Duration::from_secs;
        assert!(clocks.agree_again(now + after(600), wall + after(601)));
        assert!(!clocks.agree_again(now + after(1200), wall + after(86_400)));
        assert!(clocks.agree_again(now + after(1800), wall + after(87_000)));
        assert!(!clocks.agree_again(now + after(2400), wall + after(2400)));
        assert!(clocks.agree_again(now + after(3000), wall + after(3000)));
    }
}
