//! Destinations on demand: outbound asks for a key it does not know, the xDS client fetches
//! it once for all who ask, and everybody waits for the view that has the answer. At the very
//! start they first wait for the view that says what is mesh at all.
//!
//! ```text
//! outbound ── ask(key) ──► bounded queue ──► xDS client ──► Published<View> ──► outbound
//! ```

use std::time::Duration;

use heddle_policy::snapshot::DestinationKey;
use heddle_relay::view::{Lookup, View};
use heddle_shell::publish::Published;
use tokio::{sync::mpsc, time::timeout};

/// Asks that may wait for the xDS client. When it is full the asker goes on waiting for a view
/// within its budget: somebody else's ask may bring the answer, and a repeated ask would not.
pub const ASKS_MAX: usize = 1024;

/// Outbound's end.
#[derive(Clone, Debug)]
pub struct Demand {
    asks: mpsc::Sender<DestinationKey>,
}

/// The xDS client's end: keys as they are asked for, possibly more than once.
#[derive(Debug)]
pub struct Asks {
    /// Closed when the data plane is gone.
    pub keys: mpsc::Receiver<DestinationKey>,
}

impl Demand {
    /// Both ends.
    pub fn channel() -> (Self, Asks) {
        let (asks, keys) = mpsc::channel(ASKS_MAX);
        (Self { asks }, Asks { keys })
    }

    /// What `views` says about `key`, waiting at most `budget` for an answer that is not there
    /// yet.
    pub async fn lookup(
        &self,
        views: &Published<View>,
        key: &DestinationKey,
        budget: Duration,
    ) -> Lookup {
        // Before the first look, so that an answer in between is not missed.
        let mut changed = views.subscribe();
        let answered = async {
            let mut is_asked = false;
            loop {
                let view = views.load();
                if let Some(known) = view.lookup(key) {
                    return known;
                }
                if !is_asked && view.may_describe(key) {
                    is_asked = true;
                    // Full: see ASKS_MAX. Closed: the wait ends with the budget.
                    _ = self.asks.try_send(key.clone());
                }
                drop(view);
                if changed.changed().await.is_err() {
                    return Lookup::Unanswered;
                }
            }
        };
        timeout(budget, answered)
            .await
            .unwrap_or(Lookup::Unanswered)
    }
}
