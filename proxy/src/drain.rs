//! Graceful stop: one signal that every listener and connection watches.

use tokio::sync::watch;

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

#[cfg(test)]
mod tests {
    use super::*;

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
