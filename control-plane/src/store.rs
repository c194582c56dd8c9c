//! Revisioned state, modelled on etcd: one number counts every change of the whole store.
//!
//! * A [`Transaction`] is applied whole or not at all, at one revision, if its conditions hold.
//! * [`Store::list`] reads a prefix at one revision; [`Store::watch`] continues from there
//!   without a gap, or says [`StoreError::Compacted`].
//! * What is acknowledged is durable.
//! * A key may hang on a lease and goes with it; [`election`] is made of that.
//!
//! Every implementation passes [`conformance`].
//!

pub mod conformance;
pub mod election;
pub mod measured;
pub mod redb;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use thiserror::Error;
use tonic::async_trait;

/// Where the control plane keeps what must outlive it.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The newest revision.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// One key.
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Every key that begins with `prefix`, in order, at one revision.
    async fn list(&self, prefix: &str) -> Result<Listing, StoreError>;

    /// The first `limit` of those keys that come after the key `after`; empty: from the first.
    async fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, StoreError>;

    /// Applies a transaction if its conditions hold, durably before it returns.
    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError>;

    /// Every change after `after` to keys that begin with `prefix`, then changes as they happen.
    /// [`StoreError::Compacted`], here or from the watch, when they are no longer all known.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Past states of one key, newest first, as far as they are kept.
    async fn history(&self, key: &str, limit: usize) -> Result<Vec<Event>, StoreError>;

    /// A lease: keys that hang on it are deleted `ttl` after the last sign of life.
    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError>;

    /// A sign of life. [`StoreError::LeaseGone`] when the lease has ended.
    async fn keep_alive(&self, lease: Lease) -> Result<(), StoreError>;

    /// Ends a lease, and its keys, at once. Ending one that is gone is no error.
    async fn revoke(&self, lease: Lease) -> Result<(), StoreError>;

    /// Why the last write failed; none when it did not. A store that fails tries again by itself.
    fn failing(&self) -> Option<Arc<str>>;
}

/// Counts the changes of a whole store; an empty one is at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// A lease of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lease(pub u64);

/// One key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// Revision of the write that made the key.
    pub created: Revision,
    /// Revision of the last write.
    pub modified: Revision,
    /// What it hangs on.
    pub lease: Option<Lease>,
}

/// What [`Store::list`] read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// The revision all of them were read at.
    pub revision: Revision,
}

/// Conditions, and what is done if all of them hold.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// All must hold.
    pub conditions: Vec<Condition>,
    /// Each key at most once. Empty: only the conditions are judged.
    pub writes: Vec<Write>,
}

/// What a key must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent(String),
    /// Its last write was at this revision.
    ModifiedAt(String, Revision),
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Bytes,
        /// What it hangs on from now on.
        lease: Option<Lease>,
    },
    /// Deletes a key. One that is not there is no error and no change.
    Delete {
        /// The key.
        key: String,
    },
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Applied: the store is at this revision, and every changed key was modified at it.
    Applied(Revision),
    /// A condition did not hold; nothing was changed.
    Conflict,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was set.
    Put(Entry),
    /// It was deleted.
    Deleted {
        /// The key.
        key: Arc<str>,
        /// When.
        revision: Revision,
    },
}

/// All changes of one revision that a watch asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Their revision.
    pub revision: Revision,
    /// In the order of their keys.
    pub events: Vec<Event>,
}

/// A stream of [`Changes`], by revision. Dropping it ends it.
#[derive(Debug)]
pub struct Watch(tokio::sync::mpsc::Receiver<Result<Changes, StoreError>>);

/// Why a store did not answer.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Changes after the asked revision are no longer all known, or the watcher is too slow.
    #[error("changes up to revision {} are no longer kept; list again", .oldest.0)]
    Compacted {
        /// Watching is possible after this revision.
        oldest: Revision,
    },
    /// The lease has ended.
    #[error("the lease has ended")]
    LeaseGone,
    /// A transaction writes one key twice or is beyond the store's limits.
    #[error("transaction refused: {0}")]
    Refused(&'static str),
    /// The disk or the network failed. Whether a transaction was applied is unknown.
    #[error("store failed while {action}; is the disk full or failing?")]
    Failed {
        /// What was attempted.
        action: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl Watch {
    /// Wraps what an implementation sends.
    pub fn new(changes: tokio::sync::mpsc::Receiver<Result<Changes, StoreError>>) -> Self {
        Self(changes)
    }

    /// The next changes. After an error, or when the store is closed, there are no more. Cancel
    /// safe.
    pub async fn next(&mut self) -> Option<Result<Changes, StoreError>> {
        self.0.recv().await
    }
}

impl Event {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Deleted { key, .. } => key,
        }
    }

    /// When it happened.
    pub fn revision(&self) -> Revision {
        match self {
            Self::Put(entry) => entry.modified,
            Self::Deleted { revision, .. } => *revision,
        }
    }
}

impl Transaction {
    /// What every store refuses.
    fn refusal(&self) -> Option<&'static str> {
        if self.writes.len().max(self.conditions.len()) > WRITES_MAX {
            return Some("it has too many writes or conditions");
        }
        let mut keys = std::collections::HashSet::new();
        for write in &self.writes {
            let (key, bytes) = match write {
                Write::Put { key, value, .. } => (key, value.len()),
                Write::Delete { key } => (key, 0),
            };
            if key.is_empty() || key.len() > KEY_BYTES_MAX || bytes > VALUE_BYTES_MAX {
                return Some("a key or a value is too large, or a key is empty");
            }
            if !keys.insert(key) {
                return Some("it writes one key twice");
            }
        }
        None
    }

    /// Sets a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
            lease: None,
        });
        self
    }

    /// Sets a key that goes with a lease.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: Lease,
    ) -> Self {
        self.writes.push(Write::Put {
            key: key.into(),
            value: value.into(),
            lease: Some(lease),
        });
        self
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write::Delete { key: key.into() });
        self
    }

    /// Only if there is no such key.
    #[must_use]
    pub fn if_absent(mut self, key: impl Into<String>) -> Self {
        self.conditions.push(Condition::Absent(key.into()));
        self
    }

    /// Only if the key's last write was at this revision.
    #[must_use]
    pub fn if_modified_at(mut self, key: impl Into<String>, revision: Revision) -> Self {
        self.conditions
            .push(Condition::ModifiedAt(key.into(), revision));
        self
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Longest key.
pub const KEY_BYTES_MAX: usize = 1024;
/// Largest value.
pub const VALUE_BYTES_MAX: usize = 2 << 20;
/// Most writes, and most conditions, of one transaction.
pub const WRITES_MAX: usize = 4096;
