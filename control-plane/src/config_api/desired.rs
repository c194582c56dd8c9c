//! Desired state: read, judged and changed as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt,
    future::Future,
    sync::Arc,
};

use heddle_shell::{clock, task::Tasks};
use parking_lot::Mutex;

use crate::{
    addresses,
    audit::{self, Audit},
    model::{
        Catalog, Fault, Host, Record, Resource, ResourceId, Spec, Stored,
        check::{Finding, check, warnings},
        document::{CANONICAL_BYTES_MAX, Document},
        yaml::Position,
    },
    store::{Outcome, Revision, Store, StoreError, Transaction},
};

/// Judges a catalog by what would be sent to sidecars: the compiler's part of validation.
pub type Validate = Arc<dyn Fn(&Catalog) -> Vec<Finding> + Send + Sync>;

/// Desired state in a store.
pub struct Desired {
    store: Arc<dyn Store>,
    audit: Audit,
    validate: Validate,
    /// The last one read: what did not change since is not decoded again.
    last: Mutex<Catalog>,
    tasks: Mutex<Tasks>,
}

/// A change that somebody wants.
#[derive(Debug)]
pub struct Change {
    /// A SPIFFE id, or `administrator`.
    pub who: String,
    /// Resources to create or replace; each id once.
    pub documents: Vec<Document>,
    /// Resources to delete.
    pub deletions: Vec<ResourceId>,
    /// Revisions that resources must have; zero: there must be none.
    pub expectations: Vec<(ResourceId, Revision)>,
    /// Judge only.
    pub dry_run: bool,
}

/// A change that was made.
#[derive(Debug)]
pub struct Changed {
    /// One for each document, in their order.
    pub applied: Vec<Applied>,
    /// Of the store.
    pub revision: Revision,
}

/// What became of one document.
#[derive(Debug)]
pub struct Applied {
    /// Its resource.
    pub id: ResourceId,
    /// What became of it.
    pub outcome: WriteOutcome,
    /// Revision of the resource's last write; zero in a dry run that would create it.
    pub revision: Revision,
    /// What does not stop it.
    pub warnings: Vec<String>,
}

/// What became of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// There was none.
    Created,
    /// It said something else.
    Updated,
    /// It said the same.
    Unchanged,
}

/// Why nothing was changed.
#[derive(Debug)]
pub enum Refusal {
    /// The documents, or what they would lead to, are wrong.
    Faults(Vec<Fault>),
    /// Another resource needs what would be deleted.
    InUse(Vec<Fault>),
    /// An expectation does not hold.
    Changed {
        /// Of which resource.
        id: ResourceId,
        /// What it has; zero: there is none.
        revision: Revision,
    },
    /// There is no such resource.
    NotFound(ResourceId),
    /// Others changed desired state again and again meanwhile.
    Contended,
    /// Every address is allotted.
    NoAddress,
    /// The store failed.
    Store(StoreError),
}

impl Desired {
    /// Desired state in `store`, judged by `validate` besides the model's own rules.
    pub fn new(store: Arc<dyn Store>, validate: Validate) -> Self {
        Self {
            audit: Audit::new(store.clone()),
            store,
            validate,
            last: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// Where it is kept.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Who changed it.
    pub fn audit(&self) -> &Audit {
        &self.audit
    }

    /// All of it, now.
    ///
    /// # Errors
    /// The store's.
    pub async fn catalog(&self) -> Result<Catalog, StoreError> {
        let last = self.last.lock().clone();
        let catalog = Catalog::load(self.store.as_ref(), &last).await?;
        self.last.lock().clone_from(&catalog);
        Ok(catalog)
    }

    /// Makes a change, whole or not at all.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn change(&self, change: &Change) -> Result<Changed, Refusal> {
        for _ in 0..ATTEMPTS_MAX {
            // Read first: all that is read below is of this generation, or the commit conflicts.
            let generation = self.store.get(GENERATION).await?;
            let before = self.catalog().await?;
            let plan = Plan::new(change, &before, &self.validate)?;
            if change.dry_run || plan.is_empty() {
                return Ok(plan.changed(before.revision, before.revision));
            }
            let guarded = match generation {
                None => Transaction::default().if_absent(GENERATION),
                Some(entry) => Transaction::default().if_modified_at(GENERATION, entry.modified),
            };
            let transaction = plan.transaction(guarded.put(GENERATION, ""), &before, &change.who);
            if let Outcome::Applied(revision) = self.store.commit(transaction).await? {
                if let Err(error) = self.audit.trim().await {
                    tracing::warn!(%error, "old audit events not deleted; will try again");
                }
                return Ok(plan.changed(before.revision, revision));
            }
        }
        Err(Refusal::Contended)
    }

    /// Runs a task that ends with this value.
    pub(super) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut tasks = self.tasks.lock();
        tasks.reap_ended();
        tasks.spawn(name, task);
    }
}

/// A judged change: what would be written.
struct Plan {
    after: Catalog,
    /// Resources that are new or say something else.
    puts: Vec<Arc<Resource>>,
    deletions: Vec<ResourceId>,
    /// Tombstones beyond those that are kept.
    forgotten: Vec<ResourceId>,
    allotted: Vec<(Host, u16)>,
    released: Vec<(Host, u16)>,
    applied: Vec<Applied>,
}

impl Plan {
    fn new(change: &Change, before: &Catalog, validate: &Validate) -> Result<Self, Refusal> {
        for (id, revision) in &change.expectations {
            let found = before.revision_of(id).unwrap_or_default();
            if found != *revision {
                return Err(Refusal::Changed {
                    id: id.clone(),
                    revision: found,
                });
            }
        }
        let mut after = before.clone();
        let mut puts = Vec::new();
        let mut applied = Vec::new();
        let mut faults = Vec::new();
        for document in &change.documents {
            let id = &document.resource.id;
            let outcome = match before.get(id) {
                _ if before.unread_at(id).is_some() => WriteOutcome::Updated,
                None => WriteOutcome::Created,
                Some(stored) if *stored.resource == document.resource => WriteOutcome::Unchanged,
                Some(_) => WriteOutcome::Updated,
            };
            if outcome != WriteOutcome::Unchanged {
                faults.extend(document.check_storable().err());
                let resource = Arc::new(document.resource.clone());
                puts.push(resource.clone());
                after.insert(Stored {
                    resource,
                    revision: Revision::default(),
                    written_at_ms: 0,
                    written_by: "".into(),
                });
            }
            applied.push(Applied {
                id: id.clone(),
                outcome,
                revision: before.revision_of(id).unwrap_or_default(),
                warnings: Vec::new(),
            });
        }
        if !faults.is_empty() {
            faults.truncate(FAULTS_MAX);
            return Err(Refusal::Faults(faults));
        }
        for id in &change.deletions {
            if !after.delete(id) {
                return Err(Refusal::NotFound(id.clone()));
            }
        }
        let mut plan = Self {
            after,
            puts,
            deletions: change.deletions.clone(),
            forgotten: Vec::new(),
            allotted: Vec::new(),
            released: Vec::new(),
            applied,
        };
        plan.allot()?;
        plan.judge(change, before, validate)?;
        for applied in &mut plan.applied {
            applied.warnings = warnings(&plan.after, &applied.id);
        }
        plan.forget();
        Ok(plan)
    }

    /// Services without addresses keep what they were allotted, new ones get a number, and those
    /// that went or got addresses of their own give theirs back.
    fn allot(&mut self) -> Result<(), Refusal> {
        let mut needy = BTreeSet::new();
        for (_, stored) in self.after.iter() {
            if let Spec::ServiceEntry(service) = &stored.resource.spec
                && service.addresses.is_empty()
            {
                needy.extend(service.hosts.iter().cloned());
            }
        }
        let current: BTreeMap<Host, u16> = self
            .after
            .allotments()
            .map(|(host, number)| (host.clone(), number))
            .collect();
        let mut taken: HashSet<u16> = current.values().copied().collect();
        for host in &needy {
            if !current.contains_key(host) {
                let number = addresses::choose(host.as_str(), |number| taken.contains(&number));
                let number = number.ok_or(Refusal::NoAddress)?;
                taken.insert(number);
                self.after.allot(host.clone(), number);
                self.allotted.push((host.clone(), number));
            }
        }
        // What cannot be read may be the service of a host without one.
        if self.after.unread().next().is_some() {
            return Ok(());
        }
        for (host, number) in current {
            if !needy.contains(&host) {
                self.after.release(host.as_str());
                self.released.push((host, number));
            }
        }
        Ok(())
    }

    fn judge(&self, change: &Change, before: &Catalog, validate: &Validate) -> Result<(), Refusal> {
        let mut findings = check(&self.after);
        if before.unread().next().is_some() {
            // Others may miss what cannot be read; that is no fault of this change.
            let known = check(before);
            findings.retain(|finding| !known.contains(finding));
        }
        if findings.is_empty() {
            // What does not fit together cannot be compiled.
            findings = validate(&self.after);
        }
        if findings.is_empty() {
            return Ok(());
        }
        let faults = findings.into_iter().map(|finding| located(change, finding));
        let faults = faults.take(FAULTS_MAX).collect();
        if change.documents.is_empty() {
            Err(Refusal::InUse(faults))
        } else {
            Err(Refusal::Faults(faults))
        }
    }

    /// Deleted resources beyond the newest few lose their history.
    fn forget(&mut self) {
        let mut oldest: Vec<_> = self
            .after
            .tombstones()
            .map(|(id, revision)| (revision, id.clone()))
            .collect();
        let surplus = (oldest.len() + self.deletions.len()).saturating_sub(TOMBSTONES_MAX);
        oldest.sort_unstable();
        let oldest = oldest.into_iter().take(surplus.min(FORGOTTEN_MAX));
        self.forgotten.extend(oldest.map(|(_, id)| id));
    }

    fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.deletions.is_empty()
    }

    fn transaction(&self, guarded: Transaction, before: &Catalog, who: &str) -> Transaction {
        let at_ms = clock::unix_ms(clock::wall());
        let puts = self.puts.iter().map(|new| (&new.id, Some(new.to_json())));
        let deletions = self.deletions.iter().map(|id| (id, None));
        let mut transaction = guarded;
        for (id, json) in puts.chain(deletions) {
            let stored = || before.get(id).map(|stored| stored.resource.to_json());
            let unread = before.unread_at(id).map(|unread| unread.text.to_string());
            let old = unread.or_else(stored);
            let action = match (&old, &json) {
                (_, None) => audit::Action::Deleted,
                (None, Some(_)) => audit::Action::Created,
                (Some(_), Some(_)) => audit::Action::Updated,
            };
            // Both of two large ones do not fit one event; the history has the older one.
            let bytes = json.as_ref().map_or(0, String::len);
            let event = audit::Event {
                at_ms,
                who: who.to_owned(),
                action,
                subject: id.to_string(),
                before: old.filter(|old| old.len() + bytes <= CANONICAL_BYTES_MAX),
                after: json.clone(),
                reason: None,
            };
            let record = Record {
                written_at_ms: at_ms,
                written_by: who.to_owned(),
                json,
            };
            transaction = Audit::write(transaction.put(id.key(), record.to_bytes()), &event);
        }
        for id in &self.forgotten {
            transaction = transaction.delete(id.key());
        }
        // Given back before given out: a number may do both in one transaction.
        let given: HashSet<u16> = self.allotted.iter().map(|(_, number)| *number).collect();
        for (host, number) in &self.released {
            transaction = transaction.delete(addresses::host_key(host.as_str()));
            if !given.contains(number) {
                transaction = transaction.delete(addresses::number_key(*number));
            }
        }
        for (host, number) in &self.allotted {
            transaction = transaction
                .if_absent(addresses::number_key(*number))
                .put(addresses::host_key(host.as_str()), number.to_string())
                .put(addresses::number_key(*number), host.as_str().to_owned());
        }
        transaction
    }

    /// The answer: the store was at `before` and is at `revision`.
    fn changed(mut self, before: Revision, revision: Revision) -> Changed {
        for applied in &mut self.applied {
            if applied.outcome != WriteOutcome::Unchanged && revision > before {
                applied.revision = revision;
            }
        }
        Changed {
            applied: self.applied,
            revision,
        }
    }
}

/// A finding where the user can see it: in a document of the request, else by its resource.
fn located(change: &Change, finding: Finding) -> Fault {
    let document = change
        .documents
        .iter()
        .find(|document| document.resource.id == finding.id);
    match document {
        Some(document) => document.fault(&finding.path, finding.message),
        None => Fault {
            file: String::new(),
            at: Position::default(),
            path: finding.path,
            message: format!("{}, of stored {}", finding.message, finding.id),
        },
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl fmt::Debug for Desired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desired")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

/// Written by every change of desired state: two changes of one generation conflict, so what
/// was judged together is stored together.
const GENERATION: &str = "config-generation";
/// Changes by others that one change waits out.
const ATTEMPTS_MAX: u32 = 16;
/// Deleted resources whose history is kept.
const TOMBSTONES_MAX: usize = 1000;
/// Of them that one change forgets.
const FORGOTTEN_MAX: usize = 100;
/// Faults told of one request.
const FAULTS_MAX: usize = 100;
