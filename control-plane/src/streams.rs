//! The tasks behind long streams. They belong to whoever holds this, not to their connections, so
//! that a stop can wait for what they write last.

use std::{future::Future, mem, sync::Arc, time::Duration};

use heddle_shell::task::Tasks;
use parking_lot::Mutex;

/// Shared by the services that spawn and the control plane that stops. A task must not hold it:
/// it would keep itself alive.
#[derive(Clone, Debug, Default)]
pub struct Streams(Arc<Mutex<Tasks>>);

impl Streams {
    /// Runs a task until it ends or the last holder is dropped.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock();
        tasks.reap_ended();
        tasks.spawn(name, task);
    }

    /// Waits for the tasks to end, at most `patience`, and stops the rest.
    pub async fn finish(&self, patience: Duration) {
        let mut tasks = mem::take(&mut *self.0.lock());
        tasks.finish(patience).await;
    }
}
