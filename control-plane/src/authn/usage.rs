//! Whether a connection without a certificate is of any use: something on it was proven by a
//! token. One that is not is closed after a while.

use std::{sync::Arc, time::Instant};

use heddle_shell::clock;
use parking_lot::Mutex;

/// Of one connection.
#[derive(Debug)]
pub struct Usage(Mutex<State>);

#[derive(Debug)]
struct State {
    open: usize,
    /// The last end of a request, or the connection's begin.
    since: Instant,
}

/// One proven request, for as long as anything of it lives.
#[derive(Debug)]
pub struct InUse(Arc<Usage>);

impl Usage {
    /// A proven request begins.
    pub fn begin(self: &Arc<Self>) -> InUse {
        self.0.lock().open += 1;
        InUse(Arc::clone(self))
    }

    /// Whether there is a proven request.
    pub fn is_open(&self) -> bool {
        self.0.lock().open > 0
    }

    /// Since when there is none; `None` while there is one.
    pub fn idle_since(&self) -> Option<Instant> {
        let state = self.0.lock();
        (state.open == 0).then_some(state.since)
    }
}

impl Default for Usage {
    fn default() -> Self {
        Self(Mutex::new(State {
            open: 0,
            since: clock::now(),
        }))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.open -= 1;
        state.since = clock::now();
    }
}
