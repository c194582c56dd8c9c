//! A store that counts how long its commits take.

use std::{sync::Arc, time::Duration};

use heddle_shell::clock;
use tonic::async_trait;

use super::{
    Entry, Event, Lease, Listing, Outcome, Revision, Store, StoreError, Transaction, Watch,
};
use crate::telemetry::Metrics;

/// The same store, measured.
#[derive(Debug)]
pub struct Measured<S> {
    store: Arc<S>,
    metrics: Arc<Metrics>,
}

impl<S: Store> Measured<S> {
    /// Measures `store`.
    pub fn new(store: Arc<S>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

#[async_trait]
impl<S: Store> Store for Measured<S> {
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.store.list(prefix).await
    }

    async fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, StoreError> {
        self.store.page(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        let before = clock::now();
        let outcome = self.store.commit(transaction).await;
        let took = clock::now() - before;
        self.metrics.store_latency.observe(took.as_secs_f64());
        outcome
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn history(&self, key: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        self.store.history(key, limit).await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: Lease) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        self.store.revoke(lease).await
    }
    fn failing(&self) -> Option<Arc<str>> {
        self.store.failing()
    }
}
