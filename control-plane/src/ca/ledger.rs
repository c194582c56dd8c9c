//! What was issued: one entry of the store per certificate, by serial, until it expires.
//!
//! A certificate proves an identity; the ledger says what else its holder's token fixed (labels,
//! addresses) and when a token was last presented. A certificate that is not in the ledger
//! proves nothing to the control plane: without its labels the holder could get a weaker policy
//! than it should.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use heddle_policy::spiffe::SpiffeId;
use heddle_shell::clock;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Serial;
use crate::store::{Store, StoreError, Transaction};

/// Where the entries are.
const PREFIX: &str = "issued/";

/// Entries deleted in one transaction of a purge.
const PURGE_BATCH: usize = 256;

/// The entries, in the store.
#[derive(Clone, Debug)]
pub struct Ledger {
    store: Arc<dyn Store>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whom it certifies.
    pub id: SpiffeId,
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
        Self { store }
    }

    /// Writes an entry, durably before it returns.
    ///
    /// # Errors
    /// [`LedgerError::Store`]; the certificate must then not be handed out.
    pub async fn record(&self, serial: &Serial, record: &Record) -> Result<(), LedgerError> {
        let stored = Stored {
            id: record.id.to_string(),
            not_after_ms: clock::unix_ms(record.not_after),
            token_proven_at_ms: clock::unix_ms(record.token_proven_at),
            labels: record.labels.clone(),
            addresses: record.addresses.iter().map(ToString::to_string).collect(),
        };
        let value = serde_json::to_vec(&stored).expect("strings and numbers are JSON");
        let transaction = Transaction::default().put(key(serial), value);
        self.store.commit(transaction).await?;
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
            not_after: clock::from_unix_ms(stored.not_after_ms),
            token_proven_at: clock::from_unix_ms(stored.token_proven_at_ms),
            labels: stored.labels,
            addresses: addresses.map_err(|error| malformed(error.to_string()))?,
        }))
    }

    /// Deletes the entries of certificates that have expired at `wall`; how many.
    ///
    /// # Errors
    /// [`LedgerError::Store`].
    pub async fn purge(&self, wall: SystemTime) -> Result<usize, LedgerError> {
        let now_ms = clock::unix_ms(wall);
        let listing = self.store.list(PREFIX).await?;
        // What does not parse stays: it is a fault to be looked at, not rubbish.
        let expired: Vec<_> = listing
            .entries
            .iter()
            .filter(|entry| {
                serde_json::from_slice::<Stored>(&entry.value)
                    .is_ok_and(|stored| stored.not_after_ms <= now_ms)
            })
            .collect();
        for batch in expired.chunks(PURGE_BATCH) {
            let delete = batch.iter().fold(Transaction::default(), |delete, entry| {
                delete.delete(&*entry.key)
            });
            self.store.commit(delete).await?;
        }
        Ok(expired.len())
    }
}

fn key(serial: &Serial) -> String {
    format!("{PREFIX}{serial}")
}
