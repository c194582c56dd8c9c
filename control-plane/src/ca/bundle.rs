//! Whom everybody trusts: the root and the deny list, under one revision that never goes back.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use heddle_policy::spiffe::{SpiffeId, TrustDomain};
use heddle_proto::v1;
use heddle_shell::{clock, publish::Published, tls::TrustBundle};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use super::Fingerprint;
use crate::{
    audit::{Action, Audit, Event},
    store::{Outcome, Revision, Store, StoreError, Transaction},
};

/// Where it is stored.
const KEY: &str = "trust-bundle";

/// Identities that can be denied at once: the list goes to every sidecar.
const DENIED_MAX: usize = 10_000;

/// Attempts at a change that another one overtook.
const ATTEMPTS_MAX: usize = 8;

/// The bundle and its stored form.
#[derive(Debug)]
pub struct Bundle {
    store: Arc<dyn Store>,
    audit: Audit,
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    published: Arc<Published<TrustBundle>>,
}

/// Why the bundle was not read or changed.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The store did not answer.
    #[error("the trust bundle is not available")]
    Store(#[from] StoreError),
    /// Somebody else wrote it.
    #[error("the stored trust bundle does not parse: {0}")]
    Malformed(String),
    /// The deny list is full.
    #[error("{DENIED_MAX} identities are denied already")]
    Full,
    /// Nobody in the mesh would trust what this one signs.
    #[error(
        "the authority's root has the SHA-256 {given}, the mesh trusts {stored}; give that one \
         back (`authority.source` in the settings, `authority/root.pem` in the data directory). \
         To begin anew with another root, and certify every workload again, use an empty data \
         directory; one root cannot be replaced by another yet"
    )]
    OtherRoot {
        /// Of the root that is stored.
        stored: String,
        /// Of the root of these settings.
        given: String,
    },
    /// Other changes were always faster.
    #[error("the trust bundle changes too fast")]
    Contended,
}

/// As stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    revision: u64,
    root_sha256: String,
    denied: BTreeSet<String>,
}

/// A change of the deny list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Onto the list.
    Deny,
    /// Off the list.
    Allow,
}

impl Bundle {
    /// Reads the stored bundle, or makes the first one.
    ///
    /// # Errors
    /// [`BundleError`]; [`BundleError::OtherRoot`] when the stored one has another root: sidecars
    /// trust that one alone, and could not even reach this control plane to hear of the new one.
    pub async fn open(
        store: Arc<dyn Store>,
        trust_domain: TrustDomain,
        root: CertificateDer<'static>,
        wall: SystemTime,
    ) -> Result<Self, BundleError> {
        let bundle = Self {
            audit: Audit::new(Arc::clone(&store)),
            store,
            trust_domain,
            root,
            published: Published::new(TrustBundle::default()),
        };
        bundle.update(wall, None, |_denied| Ok(())).await?;
        Ok(bundle)
    }

    /// The current bundle and its changes.
    pub fn published(&self) -> &Arc<Published<TrustBundle>> {
        &self.published
    }

    /// Lower-case hexadecimal SHA-256 of the root's DER.
    pub fn root_sha256(&self) -> String {
        Fingerprint::of(&self.root).to_string()
    }

    /// Changes the deny list; the revision that holds the change. Audited, as done by `who`, in
    /// the transaction that makes it.
    ///
    /// # Errors
    /// [`BundleError`].
    pub async fn change(
        &self,
        change: Change,
        id: &SpiffeId,
        who: &str,
        wall: SystemTime,
    ) -> Result<u64, BundleError> {
        let (action, before, after) = match change {
            Change::Deny => (Action::Denied, "allowed", "denied"),
            Change::Allow => (Action::Allowed, "denied", "allowed"),
        };
        let event = Event {
            before: Some(before.to_owned()),
            after: Some(after.to_owned()),
            ..Event::now(who, action, id.as_str())
        };
        let revision = self
            .update(wall, Some(&event), |denied| {
                match change {
                    Change::Deny => denied.insert(id.to_string()),
                    Change::Allow => denied.remove(id.as_str()),
                };
                if denied.len() > DENIED_MAX {
                    return Err(BundleError::Full);
                }
                Ok(())
            })
            .await?;
        // Done is done; the next event trims.
        if let Err(error) = self.audit.trim().await {
            warn!(%error, "old audit events stay for now");
        }
        Ok(revision)
    }

    async fn update(
        &self,
        wall: SystemTime,
        event: Option<&Event>,
        edit: impl Fn(&mut BTreeSet<String>) -> Result<(), BundleError>,
    ) -> Result<u64, BundleError> {
        for _ in 0..ATTEMPTS_MAX {
            let (stored, modified) = self.read().await?;
            let mut next = stored.clone().unwrap_or_else(|| Stored {
                revision: 0,
                root_sha256: String::new(),
                denied: BTreeSet::new(),
            });
            edit(&mut next.denied)?;
            next.root_sha256 = self.root_sha256();
            if let Some(stored) = &stored
                && stored.root_sha256 != next.root_sha256
            {
                return Err(BundleError::OtherRoot {
                    stored: stored.root_sha256.clone(),
                    given: next.root_sha256,
                });
            }
            let is_same = stored
                .as_ref()
                .is_some_and(|stored| stored.denied == next.denied);
            if is_same {
                self.publish(&next)?;
                return Ok(next.revision);
            }
            // At least the time in seconds: should the store be lost, sidecars that remember a
            // higher revision still see this one as newer.
            let seconds = u64::try_from(clock::unix_ms(wall) / 1000).unwrap_or(0);
            next.revision = (next.revision + 1).max(seconds);
            let value = serde_json::to_vec(&next).expect("strings and numbers are JSON");
            let write = Transaction::default().put(KEY, value);
            let mut write = match modified {
                Some(modified) => write.if_modified_at(KEY, modified),
                None => write.if_absent(KEY),
            };
            if let Some(event) = event {
                write = Audit::write(write, event);
            }
            if let Outcome::Applied(_) = self.store.commit(write).await? {
                self.publish(&next)?;
                return Ok(next.revision);
            }
        }
        Err(BundleError::Contended)
    }

    async fn read(&self) -> Result<(Option<Stored>, Option<Revision>), BundleError> {
        let Some(entry) = self.store.get(KEY).await? else {
            return Ok((None, None));
        };
        let stored = serde_json::from_slice(&entry.value)
            .map_err(|error| BundleError::Malformed(error.to_string()))?;
        Ok((Some(stored), Some(entry.modified)))
    }

    fn publish(&self, stored: &Stored) -> Result<(), BundleError> {
        let denied: Result<BTreeSet<SpiffeId>, _> =
            stored.denied.iter().map(|id| id.parse()).collect();
        let bundle = TrustBundle {
            revision: stored.revision,
            roots: [(self.trust_domain.clone(), vec![self.root.clone()])].into(),
            denied: denied.map_err(|error| BundleError::Malformed(error.to_string()))?,
        };
        // Two changes at once may arrive here in either order; the later one stays.
        if self.published.load().revision <= bundle.revision {
            self.published.publish(Arc::new(bundle));
        }
        Ok(())
    }
}

/// The bundle as our API writes it.
pub fn to_proto(bundle: &TrustBundle) -> v1::TrustBundle {
    let roots = |roots: &Vec<CertificateDer<'static>>| v1::TrustDomainRoots {
        roots_der: roots.iter().map(|root| root.to_vec()).collect(),
    };
    v1::TrustBundle {
        revision: bundle.revision,
        trust_domains: bundle
            .roots
            .iter()
            .map(|(domain, certificates)| (domain.to_string(), roots(certificates)))
            .collect(),
        denied_identities: bundle.denied.iter().map(ToString::to_string).collect(),
    }
}
