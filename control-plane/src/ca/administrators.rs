//! Which certificates are the administrator's: those that this control plane made and has not
//! revoked, by fingerprint, under one key of the store.
//!
//! The id alone proves nothing. A user's own root may have signed other intermediates, and each
//! of them can certify the administrator's id.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use heddle_shell::{clock, publish::Published};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use super::Fingerprint;
use crate::{
    audit::{Action, Audit, Event},
    store::{Outcome, Revision, Store, StoreError, Transaction},
};

/// Where they are stored.
const KEY: &str = "administrators";

/// Accepted at once: each start makes one, each lives for a day. Beyond it the ones that end first
/// are not accepted any more.
const ACCEPTED_MAX: usize = 64;

/// Attempts at a change that another one overtook.
const ATTEMPTS_MAX: usize = 8;

/// The certificates, in the store.
#[derive(Debug)]
pub struct Administrators {
    store: Arc<dyn Store>,
    audit: Audit,
    accepted: Arc<Published<Accepted>>,
}

/// Certificates that are accepted, with their ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Accepted(BTreeMap<Fingerprint, i64>);

/// Why they were not read or changed.
#[derive(Debug, Error)]
pub enum AdministratorsError {
    /// The store did not answer.
    #[error("the list of administrators' certificates is not available")]
    Store(#[from] StoreError),
    /// Somebody else wrote it.
    #[error("the stored list of administrators' certificates does not parse: {0}")]
    Malformed(String),
    /// Other changes were always faster.
    #[error("the list of administrators' certificates changes too fast")]
    Contended,
}

impl Accepted {
    /// Whether a certificate is one of them.
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.0.contains_key(fingerprint)
    }

    fn forget_ended(&mut self, wall: SystemTime) {
        let now = clock::unix_ms(wall);
        self.0.retain(|_, not_after_ms| *not_after_ms > now);
        while self.0.len() > ACCEPTED_MAX {
            let first = self.0.iter().min_by_key(|(_, not_after_ms)| **not_after_ms);
            let first = first.map(|(fingerprint, _)| fingerprint.clone());
            self.0.remove(&first.expect("there are many"));
        }
    }

    fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers are JSON")
    }
}

impl Administrators {
    /// Reads those that earlier processes made.
    ///
    /// # Errors
    /// [`AdministratorsError`].
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, AdministratorsError> {
        let administrators = Self {
            audit: Audit::new(Arc::clone(&store)),
            store,
            accepted: Published::new(Accepted::default()),
        };
        let (accepted, _) = administrators.read().await?;
        administrators.accepted.publish(Arc::new(accepted));
        Ok(administrators)
    }

    /// The accepted ones and their changes.
    pub fn accepted(&self) -> &Arc<Published<Accepted>> {
        &self.accepted
    }

    /// Accepts one more, durably before it returns.
    ///
    /// # Errors
    /// [`AdministratorsError`]; then it is not accepted.
    pub async fn add(
        &self,
        fingerprint: &Fingerprint,
        not_after: SystemTime,
        wall: SystemTime,
    ) -> Result<(), AdministratorsError> {
        self.update(wall, None, |accepted| {
            accepted
                .0
                .insert(fingerprint.clone(), clock::unix_ms(not_after));
        })
        .await
        .map(drop)
    }

    /// Refuses all but one from now on; how many. Audited as done by `who`.
    ///
    /// # Errors
    /// [`AdministratorsError`]; then all of them are still accepted.
    pub async fn keep_only(
        &self,
        fingerprint: &Fingerprint,
        who: &str,
        wall: SystemTime,
    ) -> Result<usize, AdministratorsError> {
        let before = self
            .update(wall, Some(who), |accepted| {
                accepted.0.retain(|known, _| known == fingerprint);
            })
            .await?;
        // Done is done; the next event trims.
        if let Err(error) = self.audit.trim().await {
            warn!(%error, "old audit events stay for now");
        }
        Ok(before.0.len().saturating_sub(1))
    }

    /// Changes the list; what it was before.
    async fn update(
        &self,
        wall: SystemTime,
        audited_as: Option<&str>,
        edit: impl Fn(&mut Accepted),
    ) -> Result<Accepted, AdministratorsError> {
        for _ in 0..ATTEMPTS_MAX {
            let (before, modified) = self.read().await?;
            let mut next = before.clone();
            edit(&mut next);
            next.forget_ended(wall);
            let write = Transaction::default().put(KEY, next.to_text());
            let mut write = match modified {
                Some(modified) => write.if_modified_at(KEY, modified),
                None => write.if_absent(KEY),
            };
            if let Some(who) = audited_as {
                let event = Event {
                    before: Some(before.to_text()),
                    after: Some(next.to_text()),
                    ..Event::now(who, Action::Revoked, SUBJECT)
                };
                write = Audit::write(write, &event);
            }
            if let Outcome::Applied(_) = self.store.commit(write).await? {
                self.accepted.publish(Arc::new(next));
                return Ok(before);
            }
        }
        Err(AdministratorsError::Contended)
    }

    async fn read(&self) -> Result<(Accepted, Option<Revision>), AdministratorsError> {
        let Some(entry) = self.store.get(KEY).await? else {
            return Ok((Accepted::default(), None));
        };
        let accepted = serde_json::from_slice(&entry.value)
            .map_err(|error| AdministratorsError::Malformed(error.to_string()))?;
        Ok((accepted, Some(entry.modified)))
    }
}

/// In the audit.
const SUBJECT: &str = "certificates of the administrator";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_list_is_bounded_and_forgets_what_has_ended() {
        let wall = clock::wall();
        let name = |n: usize| Fingerprint::of(&vec![u8::try_from(n).unwrap()].into());
        let mut accepted = Accepted::default();
        for n in 0..=ACCEPTED_MAX {
            let end = clock::unix_ms(wall + Duration::from_secs(100 + n as u64));
            accepted.0.insert(name(n), end);
        }
        accepted.forget_ended(wall);
        assert_eq!(accepted.0.len(), ACCEPTED_MAX);
        assert!(!accepted.contains(&name(0)), "the first to end");
        accepted.forget_ended(wall + Duration::from_secs(100 + ACCEPTED_MAX as u64 - 1));
        assert_eq!(accepted.0.len(), 1);
        assert!(accepted.contains(&name(ACCEPTED_MAX)));
    }
}
