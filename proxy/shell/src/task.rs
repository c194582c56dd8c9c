//! Every task has a name and an owner: dropping the [`Tasks`] stops what was spawned into it.

use std::{future::Future, pin::pin, time::Duration};

use tokio::{task::JoinSet, time::timeout};
use tracing::{Instrument, error, info_span};

/// The tasks of one owner.
#[derive(Debug, Default)]
pub struct Tasks {
    set: JoinSet<()>,
}

impl Tasks {
    /// An owner without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` until it ends or the owner is dropped.
    pub fn spawn(&mut self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(future.instrument(info_span!("task", name)));
    }

    /// As [`Tasks::spawn`], on the current thread's `LocalSet`.
    pub fn spawn_local(&mut self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        self.set
            .spawn_local(future.instrument(info_span!("task", name)));
    }

    /// Number of tasks that have not been reaped.
    pub fn len(&self) -> usize {
        self.set.len()
    }

    /// Whether there is no task.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for the next task to end; pending forever when there is none. A panic is logged:
    /// it ends its own task only.
    pub async fn reap(&mut self) {
        match self.set.join_next().await {
            Some(ended) => report(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for `next`, and reaps what ends meanwhile: room is made before it is used.
    pub async fn reaping<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = pin!(next);
        loop {
            tokio::select! {
                biased;
                () = self.reap(), if !self.is_empty() => {}
                next = next.as_mut() => return next,
            }
        }
    }

    /// Reaps what has already ended, without waiting.
    pub fn reap_ended(&mut self) {
        while let Some(ended) = self.set.try_join_next() {
            report(ended);
        }
    }

    /// Waits until all tasks have ended, at most `patience`, and stops the rest.
    pub async fn finish(&mut self, patience: Duration) {
        let ended = async {
            while let Some(ended) = self.set.join_next().await {
                report(ended);
            }
        };
        if timeout(patience, ended).await.is_err() {
            self.set.shutdown().await;
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a task panicked; this is a bug");
    }
}
