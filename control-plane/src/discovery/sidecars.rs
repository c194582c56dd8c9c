//! Which sidecars exist, beyond the life of this process: one key of the store per node, on a
//! lease that its xDS stream keeps alive. It is written before the sidecar is told anything, and
//! outlives the stream for as long as the sidecar may take to come back: until then nobody is told
//! that a change is active everywhere.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_shell::clock;
use tracing::warn;

use crate::store::{Lease, Store, StoreError, Transaction};

/// Prefix of every sidecar's key; the rest is its node id.
pub const SIDECARS: &str = "sidecars/";

/// For a sidecar to come back: it waits up to 10 s between two attempts, and dials for up to 5 s.
pub const RETURN: Duration = Duration::from_secs(15);

/// Signs of life per lease time.
const BEATS: u32 = 3;

/// Writes the keys.
#[derive(Clone, Debug)]
pub struct Sidecars {
    store: Arc<dyn Store>,
    ttl: Duration,
}

/// One stream's sign of life.
#[derive(Debug)]
pub(super) struct Presence {
    sidecars: Sidecars,
    node_id: Arc<str>,
    /// None while the store refuses it.
    lease: Option<Lease>,
    /// When the next sign is due.
    pub(super) beat: Instant,
}

impl Sidecars {
    /// In `store`; awaited for as long as a registration would be, and not shorter than a
    /// sidecar may take.
    pub fn new(store: Arc<dyn Store>, grace: Duration) -> Self {
        Self {
            store,
            ttl: grace.max(RETURN),
        }
    }

    /// A sidecar's stream begins. A failing store is no reason to leave it without configuration:
    /// it is tried again with each sign of life.
    pub(super) async fn arrived(&self, node_id: &Arc<str>) -> Presence {
        let mut presence = Presence {
            sidecars: self.clone(),
            node_id: Arc::clone(node_id),
            lease: None,
            beat: clock::now(),
        };
        presence.beat().await;
        presence
    }

    /// Keeps the lease of a known one alive, or writes the key on a new one.
    async fn note(&self, node_id: &str) -> Result<Lease, StoreError> {
        let key = format!("{SIDECARS}{node_id}");
        let known = self.store.get(&key).await?.and_then(|entry| entry.lease);
        if let Some(lease) = known
            && self.store.keep_alive(lease).await.is_ok()
        {
            return Ok(lease);
        }
        let lease = self.store.grant(self.ttl).await?;
        let write = Transaction::default().put_leased(key, Vec::new(), lease);
        self.store.commit(write).await?;
        Ok(lease)
    }
}

impl Presence {
    /// Gives a sign of life.
    pub(super) async fn beat(&mut self) {
        self.beat = clock::now() + self.sidecars.ttl / BEATS;
        if let Some(lease) = self.lease
            && self.sidecars.store.keep_alive(lease).await.is_ok()
        {
            return;
        }
        match self.sidecars.note(&self.node_id).await {
            Ok(lease) => self.lease = Some(lease),
            Err(error) => {
                self.lease = None;
                warn!(%error, node = &*self.node_id, "a sidecar is not in the store: nobody waits for it after a restart");
            }
        }
    }

    /// The stream has ended: for good, or to come back, for which the time counts from now.
    pub(super) async fn end(self, is_for_good: bool) {
        let Some(lease) = self.lease else {
            return;
        };
        let store = &self.sidecars.store;
        let ended = if is_for_good {
            store.revoke(lease).await
        } else {
            store.keep_alive(lease).await
        };
        match ended {
            Ok(()) | Err(StoreError::LeaseGone | StoreError::Closed) => {}
            Err(error) => {
                warn!(%error, node = &*self.node_id, "a sidecar is awaited for another time than it should");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Event, Revision,
        redb::{RedbStore, Retention},
    };

    fn sidecars(directory: &std::path::Path) -> Sidecars {
        let store = RedbStore::open(&directory.join("store"), Retention::default());
        Sidecars {
            store: Arc::new(store.unwrap()),
            ttl: Duration::from_millis(300),
        }
    }

    #[tokio::test]
    async fn a_sidecar_is_in_the_store_until_its_time_to_return_is_over() {
        let directory = tempfile::tempdir().unwrap();
        let sidecars = sidecars(directory.path());
        let node_id: Arc<str> = "shop/web/web-1".into();
        let presence = sidecars.arrived(&node_id).await;
        // A second stream of the same sidecar writes nothing.
        let revision = sidecars.store.revision().await.unwrap();
        let second = sidecars.arrived(&node_id).await;
        assert_eq!(sidecars.store.revision().await.unwrap(), revision);
        let mut watch = sidecars.store.watch(SIDECARS, Revision(0)).await.unwrap();
        let mut next = async || {
            let changes = watch.next().await.unwrap().unwrap();
            changes.events.into_iter().next().unwrap()
        };
        assert!(matches!(next().await, Event::Put(_)));
        let ended = clock::now();
        presence.end(false).await;
        second.end(false).await;
        let gone = next().await;
        assert!(matches!(&gone, Event::Deleted { key, .. } if key.ends_with(&*node_id)));
        assert!(clock::now() - ended >= sidecars.ttl);
        // For good is at once.
        let presence = sidecars.arrived(&node_id).await;
        assert!(matches!(next().await, Event::Put(_)));
        presence.end(true).await;
        assert!(
            sidecars
                .store
                .list(SIDECARS)
                .await
                .unwrap()
                .entries
                .is_empty()
        );
    }

    #[tokio::test]
    async fn a_lease_that_ran_out_under_a_stream_is_made_good() {
        let directory = tempfile::tempdir().unwrap();
        let sidecars = sidecars(directory.path());
        let mut presence = sidecars.arrived(&"shop/web/web-1".into()).await;
        sidecars
            .store
            .revoke(presence.lease.unwrap())
            .await
            .unwrap();
        assert!(
            sidecars
                .store
                .list(SIDECARS)
                .await
                .unwrap()
                .entries
                .is_empty()
        );
        presence.beat().await;
        assert_eq!(
            sidecars.store.list(SIDECARS).await.unwrap().entries.len(),
            1
        );
    }
}
