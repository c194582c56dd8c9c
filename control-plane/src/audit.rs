//! Who changed what, when: events in the store, under `audit/<time>-<random>`.
//!
//! An event about a change is written by the transaction that makes the change. The newest
//! [`EVENTS_MAX`] are kept; older ones go in batches, so that at times there are
//! [`TRIM_EVERY`] more of each replica.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::clock;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::error;

use crate::{
    ca::Pace,
    store::{Store, StoreError, Transaction, WRITES_MAX},
};

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// A SPIFFE id, or `administrator`.
    pub who: String,
    /// What happened.
    pub action: Action,
    /// To what, such as `VirtualService default/web`.
    pub subject: String,
    /// What it was like before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is like now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Why, for a refusal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// A resource came to be.
    Created,
    /// A resource changed.
    Updated,
    /// A resource went.
    Deleted,
    /// Somebody asked for what they may not have.
    Refused,
    /// An identity came onto the deny list.
    Denied,
    /// An identity came off the deny list.
    Allowed,
    /// A workload token was made.
    Minted,
    /// Administrators' certificates were revoked.
    Revoked,
}

/// Writes events.
#[derive(Debug)]
pub struct Audit {
    store: Arc<dyn Store>,
    /// Events written since the last trim; the first event trims what others left.
    since_trim: AtomicU32,
}

/// Writes refusals, so many of each identity: beyond them they are only logged and counted.
#[derive(Debug)]
pub struct Refusals {
    audit: Audit,
    /// Locked for one look-up.
    pace: Mutex<Pace>,
}

impl Audit {
    /// An audit in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            since_trim: AtomicU32::new(TRIM_EVERY),
        }
    }

    /// Writes one event that is no change, such as a refusal. The caller bounds how often.
    ///
    /// # Errors
    /// The store's.
    pub async fn record(&self, event: &Event) -> Result<(), StoreError> {
        let write = Self::write(Transaction::default(), event);
        self.store.commit(write).await?;
        self.trim().await
    }

    /// Adds an event to the transaction that makes it true. Call [`Audit::trim`] afterwards.
    #[must_use]
    pub fn write(transaction: Transaction, event: &Event) -> Transaction {
        let value = serde_json::to_vec(event).expect("texts and a number always serialize");
        // Random, so that replicas do not meet; in the order of time for who lists them.
        let mut suffix = [0; 8];
        aws_lc_rs::rand::fill(&mut suffix).expect("the system's random source works");
        let suffix = u64::from_be_bytes(suffix);
        transaction.put(format!("{PREFIX}{:013}-{suffix:016x}", event.at_ms), value)
    }

    /// Deletes the oldest events, now and then.
    ///
    /// # Errors
    /// The store's.
    pub async fn trim(&self) -> Result<(), StoreError> {
        if self.since_trim.fetch_add(1, Ordering::Relaxed) < TRIM_EVERY {
            return Ok(());
        }
        self.since_trim.store(0, Ordering::Relaxed);
        let events = self.store.list(PREFIX).await?.entries;
        let surplus = events.len().saturating_sub(EVENTS_MAX);
        for batch in events[..surplus].chunks(WRITES_MAX) {
            let delete = batch.iter().fold(Transaction::default(), |delete, entry| {
                delete.delete(&*entry.key)
            });
            self.store.commit(delete).await?;
        }
        Ok(())
    }

    /// Events about what begins with `subject`, newest first, each with its key: all of them, or
    /// those before a key.
    ///
    /// # Errors
    /// The store's.
    pub async fn newest(
        &self,
        subject: &str,
        before: &str,
    ) -> Result<impl Iterator<Item = (Arc<str>, Event)>, StoreError> {
        let entries = self.store.list(PREFIX).await?.entries.into_iter().rev();
        Ok(entries
            .filter(move |entry| before.is_empty() || *entry.key < *before)
            .filter_map(|entry| {
                let event = serde_json::from_slice::<Event>(&entry.value).ok()?;
                Some((entry.key, event))
            })
            .filter(move |(_, event)| event.subject.starts_with(subject)))
    }
}

impl Event {
    /// An event of this moment, without more about it.
    pub fn now(who: &str, action: Action, subject: &str) -> Self {
        Self {
            at_ms: clock::unix_ms(clock::wall()),
            who: who.to_owned(),
            action,
            subject: subject.to_owned(),
            before: None,
            after: None,
            reason: None,
        }
    }

    /// A refusal, now.
    pub fn refused(who: &str, subject: &str, reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            ..Self::now(who, Action::Refused, subject)
        }
    }
}

impl Refusals {
    /// Refusals in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            audit: Audit::new(store),
            pace: Mutex::new(Pace::new(REFUSAL_INTERVAL, REFUSALS_BURST)),
        }
    }

    /// Writes that `who` was refused something. A failure is logged: the refusal stands.
    pub async fn record(&self, who: &SpiffeId, subject: &str, reason: &str) {
        if self.pace.lock().take(who, clock::now()).is_err() {
            return;
        }
        let event = Event::refused(who.as_str(), subject, reason);
        if let Err(error) = self.audit.record(&event).await {
            error!(%error, "a refusal was not audited");
        }
    }
}

/// Events that are kept.
pub const EVENTS_MAX: usize = 5_000;
/// Events between two trims.
pub const TRIM_EVERY: u32 = 256;
/// What the keys of events begin with.
pub const PREFIX: &str = "audit/";
/// Audited refusals of one identity.
const REFUSAL_INTERVAL: Duration = Duration::from_secs(30);
const REFUSALS_BURST: NonZeroU32 = NonZeroU32::new(20).unwrap();
