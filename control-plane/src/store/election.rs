//! One leader among replicas: who holds the key `election/<name>`, which hangs on a lease.
//!
//! A leader that stops giving signs of life loses the key after the lease's time. What it still
//! writes must carry the condition of [`Leadership::condition`], which then no longer holds.

use std::{sync::Arc, time::Duration};

use super::{Condition, Event, Lease, Outcome, Revision, Store, StoreError, Transaction};

/// Proof of having been elected.
#[derive(Debug)]
pub struct Leadership {
    store: Arc<dyn Store>,
    key: String,
    lease: Lease,
    revision: Revision,
}

/// Waits until `candidate` leads the election `name`. Cancel safe: an unused lease ends by
/// itself.
///
/// # Errors
/// The store's.
pub async fn campaign(
    store: Arc<dyn Store>,
    name: &str,
    candidate: &str,
    ttl: Duration,
) -> Result<Leadership, StoreError> {
    let key = format!("election/{name}");
    loop {
        let lease = store.grant(ttl).await?;
        let claim =
            Transaction::default()
                .if_absent(&key)
                .put_leased(&key, candidate.to_owned(), lease);
        if let Outcome::Applied(revision) = store.commit(claim).await? {
            return Ok(Leadership {
                store,
                key,
                lease,
                revision,
            });
        }
        store.revoke(lease).await?;
        until_vacant(store.as_ref(), &key).await?;
    }
}

/// Who leads now.
///
/// # Errors
/// The store's.
pub async fn leader(store: &dyn Store, name: &str) -> Result<Option<String>, StoreError> {
    let entry = store.get(&format!("election/{name}")).await?;
    Ok(entry.map(|entry| String::from_utf8_lossy(&entry.value).into_owned()))
}

impl Leadership {
    /// A sign of life; due well before the lease's time. An error ends the leadership.
    ///
    /// # Errors
    /// [`StoreError::LeaseGone`], or the store's.
    pub async fn keep_alive(&self) -> Result<(), StoreError> {
        self.store.keep_alive(self.lease).await
    }

    /// Gives the leadership up at once.
    ///
    /// # Errors
    /// The store's; the lease then ends by itself.
    pub async fn resign(self) -> Result<(), StoreError> {
        self.store.revoke(self.lease).await
    }

    /// Holds as long as the leadership does.
    pub fn condition(&self) -> Condition {
        Condition::ModifiedAt(self.key.clone(), self.revision)
    }
}

async fn until_vacant(store: &dyn Store, key: &str) -> Result<(), StoreError> {
    let listing = store.list(key).await?;
    if listing.entries.iter().all(|entry| &*entry.key != key) {
        return Ok(());
    }
    let mut watch = store.watch(key, listing.revision).await?;
    while let Some(changes) = watch.next().await {
        let is_vacant =
            |event: &Event| event.key() == key && matches!(event, Event::Deleted { .. });
        if changes?.events.iter().any(is_vacant) {
            return Ok(());
        }
    }
    Err(StoreError::Closed)
}
