//! Writes the state as it changes: coalesced, off the control runtime's thread.

use std::{sync::Arc, time::Duration};

use heddle_relay::meshed::Meshed;
use heddle_shell::{clock, publish::Published};
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, sleep_until},
};
use tracing::warn;

use super::{Saved, SavedMeshed, SavedResource, StateDirectory};
use crate::identity::Held;

/// Changes gather for this long before one write.
const GATHER: Duration = Duration::from_secs(1);

/// Least time between two writes: an endpoint that flaps must not wear out a disk.
const PAUSE: Duration = Duration::from_secs(5);

/// What the keeper watches.
#[derive(Debug)]
pub struct Sources {
    /// Accepted resources; published by the xDS client.
    pub resources: Arc<Published<Vec<SavedResource>>>,
    /// Certificate and trust bundle.
    pub held: Arc<Published<Held>>,
    /// What is known as meshed; it grows with the resources and is written with them. Written
    /// late, it is kept for longer.
    pub meshed: Arc<Meshed>,
}

/// Writes until `stop` turns true, then once more if needed, and ends the trials. Returns when
/// the last write is done.
///
/// An error is a warning: traffic does not depend on the state directory.
pub async fn run(mut directory: StateDirectory, sources: Sources, mut stop: watch::Receiver<bool>) {
    let mut resources = sources.resources.subscribe();
    let mut held = sources.held.subscribe();
    let mut is_stopping = false;
    while !is_stopping {
        let settle = directory.next_settle();
        let trial_ends = async {
            match settle {
                Some(at) => sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let is_changed = tokio::select! {
            biased; // A stop is never delayed by a stream of changes.
            () = stopped(&mut stop) => { is_stopping = true; true }
            Ok(()) = resources.changed() => true,
            Ok(()) = held.changed() => true,
            () = trial_ends => false,
        };
        if is_changed {
            pause(GATHER, &mut stop).await;
        }
        resources.mark_unchanged();
        held.mark_unchanged();
        let saved = is_changed.then(|| gather(&sources));
        directory = match spawn_blocking(move || write(directory, saved, is_stopping)).await {
            Ok(directory) => directory,
            Err(error) => {
                warn!(%error, "the state is no longer kept: its writer failed");
                return;
            }
        };
        if is_changed {
            pause(PAUSE, &mut stop).await;
        }
    }
}

fn write(mut directory: StateDirectory, saved: Option<Saved>, is_stopping: bool) -> StateDirectory {
    let now = clock::now();
    let stored = match saved {
        // An empty state helps nobody and would push out one that does.
        Some(saved) if !saved.resources.is_empty() => directory.store(&saved, now),
        Some(_) | None => Ok(()),
    };
    let settled = if is_stopping {
        directory.stop()
    } else {
        directory.settle(now)
    };
    if let Err(error) = stored.and(settled) {
        warn!(%error, "writing the state failed; is the state directory writable?");
    }
    directory
}

fn gather(sources: &Sources) -> Saved {
    let held = sources.held.load();
    Saved {
        resources: sources.resources.load().as_ref().clone(),
        trust_bundle: held.wire_bundle(),
        identity: held.saved_identity(),
        meshed: sources
            .meshed
            .known()
            .into_iter()
            .map(SavedMeshed::from)
            .collect(),
    }
}

async fn pause(time: Duration, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        biased; // As above.
        () = stopped(stop) => {}
        () = sleep(time) => {}
    }
}

/// Also when the sender is gone: nobody could stop us any more.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}
