//! What was issued: one entry of the store per certificate, by serial, until a while after it
//! expires.
//!
//! A certificate proves an identity; the ledger says what else its holder's token fixed (labels,
//! addresses) and when a token was last presented. A certificate that is not in the ledger
//! proves nothing to the control plane: without its labels the holder could get a weaker policy
//! than it should.
//!
//! How many live certificates an identity has is counted, so that none can fill the store.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::clock;
use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Fingerprint, Serial};
use crate::store::{Entry, Store, StoreError, Transaction};

/// Where the entries are.
const PREFIX: &str = "issued/";

/// Entries read, and deleted in one transaction.
const PAGE: usize = 256;

/// Entries stay for so long after their certificates: a clock that was ahead for days, once, must
/// not delete what is still in use.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Live certificates of one identity: of 1,000 replicas, ten each.
pub const LIVE_PER_IDENTITY_MAX: usize = 10_000;

/// The entries, in the store.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
    live: Arc<Mutex<Live>>,
}

/// How many certificates of each identity end in which minute. At most as many numbers as there
/// are entries.
#[derive(Debug, Default)]
struct Live(HashMap<SpiffeId, BTreeMap<i64, usize>>);

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whom it certifies.
    pub id: SpiffeId,
    /// Of the whole certificate: another issuer under the root can repeat id and serial.
    pub fingerprint: Fingerprint,
    /// When it ends.
    pub not_after: SystemTime,
    /// When a token was last presented on the way to it.
    pub token_proven_at: SystemTime,
    /// Fixed in that token.
    pub labels: BTreeMap<String, String>,
    /// Fixed in that token.
    pub addresses: Vec<IpNet>,
}

/// Why the ledger did not answer.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The store did not.
    #[error("the issuance ledger is not available")]
    Store(#[from] StoreError),
    /// Somebody else wrote it.
    #[error("entry {serial} of the issuance ledger does not parse: {message}")]
    Malformed {
        /// Which.
        serial: Serial,
        /// Why.
        message: String,
    },
}

/// As stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: String,
    /// Empty, which is no certificate's, in an entry from before it was kept.
    #[serde(default)]
    sha256: Fingerprint,
    not_after_ms: i64,
    token_proven_at_ms: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    addresses: Vec<String>,
}

impl Ledger {
    /// The ledger of a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            live: Arc::default(),
        }
    }

    /// Counts what an earlier process has issued.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub async fn load(&self) -> Result<(), LedgerError> {
        let mut pages = self.pages();
        while let Some(entries) = pages.next().await? {
            let mut live = self.live.lock();
            for entry in entries {
                // What does not parse proves nothing: it is not live.
                if let Ok(stored) = serde_json::from_slice::<Stored>(&entry.value)
                    && let Ok(id) = stored.id.parse()
                {
                    live.add(id, stored.not_after_ms);
                }
            }
        }
        Ok(())
    }

    /// Whether an identity may have one more certificate.
    pub fn has_room(&self, id: &SpiffeId, wall: SystemTime) -> bool {
        self.live.lock().count(id, clock::unix_ms(wall)) < LIVE_PER_IDENTITY_MAX
    }

    /// Writes an entry, durably before it returns.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; the certificate must then not be handed out.
    pub async fn record(&self, serial: &Serial, record: &Record) -> Result<(), LedgerError> {
        let stored = Stored {
            id: record.id.to_string(),
            sha256: record.fingerprint.clone(),
            not_after_ms: clock::unix_ms(record.not_after),
            token_proven_at_ms: clock::unix_ms(record.token_proven_at),
            labels: record.labels.clone(),
            addresses: record.addresses.iter().map(ToString::to_string).collect(),
        };
        let value = serde_json::to_vec(&stored).expect("strings and numbers are JSON");
        let transaction = Transaction::default().put(key(serial), value);
        self.store.commit(transaction).await?;
        let mut live = self.live.lock();
        live.add(record.id.clone(), stored.not_after_ms);
        Ok(())
    }

    /// The entry of a certificate, if it was issued here and has not been purged.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub async fn find(&self, serial: &Serial) -> Result<Option<Record>, LedgerError> {
        let Some(entry) = self.store.get(&key(serial)).await? else {
            return Ok(None);
        };
        let malformed = |message: String| LedgerError::Malformed {
            serial: serial.clone(),
            message,
        };
        let stored: Stored =
            serde_json::from_slice(&entry.value).map_err(|error| malformed(error.to_string()))?;
        let addresses: Result<Vec<IpNet>, _> =
            stored.addresses.iter().map(|text| text.parse()).collect();
        Ok(Some(Record {
            id: stored
                .id
                .parse()
                .map_err(|error| malformed(format!("id {error}")))?,
            fingerprint: stored.sha256,
            not_after: clock::from_unix_ms(stored.not_after_ms),
            token_proven_at: clock::from_unix_ms(stored.token_proven_at_ms),
            labels: stored.labels,
            addresses: addresses.map_err(|error| malformed(error.to_string()))?,
        }))
    }

    /// Deletes the entries of certificates that expired long before `wall`; how many.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub async fn purge(&self, wall: SystemTime) -> Result<usize, LedgerError> {
        let until_ms = clock::unix_ms(wall - KEPT);
        self.live.lock().forget(clock::unix_ms(wall));
        let mut purged = 0;
        let mut pages = self.pages();
        while let Some(entries) = pages.next().await? {
            // What does not parse stays: it is a fault to be looked at, not rubbish.
            let expired = entries.iter().filter(|entry| {
                serde_json::from_slice::<Stored>(&entry.value)
                    .is_ok_and(|stored| stored.not_after_ms <= until_ms)
            });
            let delete = expired.fold(Transaction::default(), |delete, entry| {
                delete.delete(&*entry.key)
            });
            if !delete.writes.is_empty() {
                purged += delete.writes.len();
                self.store.commit(delete).await?;
            }
        }
        Ok(purged)
    }

    fn pages(&self) -> Pages<'_> {
        Pages {
            store: self.store.as_ref(),
            after: Some(String::new()),
        }
    }
}

/// A walk over all entries, few at a time.
struct Pages<'a> {
    store: &'a dyn Store,
    /// The last key read; none after the last page.
    after: Option<String>,
}

impl Pages<'_> {
    async fn next(&mut self) -> Result<Option<Vec<Entry>>, StoreError> {
        let Some(after) = &self.after else {
            return Ok(None);
        };
        let page = self.store.page(PREFIX, after, PAGE).await?;
        let last = page.entries.last().map(|last| last.key.to_string());
        self.after = last.filter(|_| page.entries.len() == PAGE);
        Ok(Some(page.entries))
    }
}

impl Live {
    fn add(&mut self, id: SpiffeId, not_after_ms: i64) {
        let minutes = self.0.entry(id).or_default();
        *minutes.entry(not_after_ms / MINUTE_MS).or_default() += 1;
    }

    fn count(&mut self, id: &SpiffeId, now_ms: i64) -> usize {
        let Some(minutes) = self.0.get_mut(id) else {
            return 0;
        };
        *minutes = minutes.split_off(&(now_ms / MINUTE_MS));
        minutes.values().sum()
    }

    fn forget(&mut self, now_ms: i64) {
        self.0.retain(|_, minutes| {
            *minutes = minutes.split_off(&(now_ms / MINUTE_MS));
            !minutes.is_empty()
        });
    }
}

const MINUTE_MS: i64 = 60_000;

fn key(serial: &Serial) -> String {
    format!("{PREFIX}{serial}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://td/ns/shop/sa/{name}").parse().unwrap()
    }

    #[test]
    fn certificates_count_until_they_end() {
        let mut live = Live::default();
        let minute = |n: i64| n * MINUTE_MS;
        for end in [10, 10, 20] {
            live.add(id("web"), minute(end));
        }
        live.add(id("user"), minute(5));
        assert_eq!(live.count(&id("web"), minute(0)), 3);
        assert_eq!(live.count(&id("web"), minute(11)), 1);
        assert_eq!(live.count(&id("nobody"), minute(0)), 0);
        live.forget(minute(11));
        assert_eq!(live.0.len(), 1, "who has none needs no entry");
    }
}
