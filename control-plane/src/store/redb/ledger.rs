//! The tables, and what a command does to them. Synchronous; knows no task and no clock.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | the newest revision, the newest that was compacted, the next lease |
//! | `current` | key | entry |
//! | `log` | revision, key | event; what watches read |
//! | `history` | key, revision | event; what [`history`] reads |
//! | `leases` | lease | its time in ms |
//! | `leased` | lease, key | nothing; which keys go with a lease |
//!
//! The log keeps the last `Retention::revisions`. History keeps `Retention::states_per_key` of
//! each key; that of a deleted key goes when its deletion leaves the log, so that neither grows
//! with the number of keys that ever were.

use std::{ops::Bound, sync::Arc, time::Duration};

use ::redb::{
    Database, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError, WriteTransaction,
};
use bytes::Bytes;

use super::{
    super::{
        Changes, Condition, Entry, Event, Lease, Listing, Outcome, Revision, StoreError,
        Transaction, Write,
    },
    Retention,
    file::File,
};

type Key = &'static str;
const META: TableDefinition<'static, Key, u64> = TableDefinition::new("meta");
const CURRENT: TableDefinition<'static, Key, &[u8]> = TableDefinition::new("current");
const LOG: TableDefinition<'static, (u64, Key), &[u8]> = TableDefinition::new("log");
const HISTORY: TableDefinition<'static, (Key, u64), &[u8]> = TableDefinition::new("history");
const LEASES: TableDefinition<'static, u64, u64> = TableDefinition::new("leases");
const LEASED: TableDefinition<'static, (u64, Key), ()> = TableDefinition::new("leased");

const FORMAT: &str = "format";
const REVISION: &str = "revision";
const OLDEST: &str = "oldest";
const LEASE: &str = "lease";
const PROBES: &str = "probes";
/// Of the tables above.
const FORMAT_VERSION: u64 = 1;

/// The one writer.
#[derive(Debug)]
pub(super) struct Ledger {
    file: Arc<File>,
    retention: Retention,
}

/// What the writer is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Commit(Transaction),
    Grant(Duration),
    Revoke(Lease),
    /// Writes something, to see whether it can.
    Probe,
}

/// What it did with a group of them.
pub(super) struct Applied {
    pub(super) results: Vec<Result<Done, StoreError>>,
    /// If it grew.
    pub(super) revision: Option<Revision>,
    /// Why nothing was written, or nobody knows.
    pub(super) failure: Option<String>,
}

/// What it did.
#[derive(Debug)]
pub(super) enum Done {
    Outcome(Outcome),
    Lease(Lease, Duration),
}

impl Ledger {
    /// Makes the tables, or checks that they are ours.
    pub(super) fn open(file: Arc<File>, retention: Retention) -> Result<Self, StoreError> {
        let database = file.database().map_err(failed("preparing its tables"))?;
        match format(&database).map_err(failed("preparing its tables"))? {
            FORMAT_VERSION => Ok(Self { file, retention }),
            _ => Err(StoreError::Refused(
                "the file was written by another version of Heddle",
            )),
        }
    }

    pub(super) fn revision(&self) -> Result<Revision, StoreError> {
        let database = self.file.database();
        revision(&*database.map_err(failed("reading the revision"))?)
    }

    /// Every lease with its time.
    pub(super) fn leases(&self) -> Result<Vec<(Lease, Duration)>, StoreError> {
        let read = || -> Result<_, ::redb::Error> {
            let table = self.file.database()?.begin_read()?.open_table(LEASES)?;
            let mut leases = Vec::new();
            for row in table.iter()? {
                let (lease, ttl) = row?;
                leases.push((Lease(lease.value()), Duration::from_millis(ttl.value())));
            }
            Ok(leases)
        };
        read().map_err(failed("reading leases"))
    }

    /// Applies commands in order in one durable commit.
    pub(super) fn apply(&mut self, commands: Vec<Command>) -> Applied {
        let count = commands.len();
        match self.try_apply(commands) {
            Ok((results, revision)) => Applied {
                results,
                revision,
                failure: None,
            },
            Err(error) => {
                // One failing disk fails all that wait for it; each is told.
                let text = error.to_string();
                Applied {
                    results: (0..count)
                        .map(|_| Err(failed("writing")(text.clone())))
                        .collect(),
                    revision: None,
                    failure: Some(text),
                }
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "as `apply`, fallible")]
    fn try_apply(
        &mut self,
        commands: Vec<Command>,
    ) -> Result<(Vec<Result<Done, StoreError>>, Option<Revision>), ::redb::Error> {
        let database = self.file.database()?;
        let transaction = database.begin_write()?;
        let (results, before, after) = {
            let mut tables = Tables::open(&transaction)?;
            let before = tables.number(REVISION)?;
            let mut results = Vec::with_capacity(commands.len());
            for command in commands {
                results.push(tables.run(command, self.retention.states_per_key)?);
            }
            let after = tables.number(REVISION)?;
            tables.compact(after.saturating_sub(self.retention.revisions))?;
            (results, before, after)
        };
        transaction.commit()?;
        Ok((results, (after > before).then_some(Revision(after))))
    }
}

/// All tables of one write transaction.
struct Tables<'t> {
    meta: Table<'t, Key, u64>,
    current: Table<'t, Key, &'static [u8]>,
    log: Table<'t, (u64, Key), &'static [u8]>,
    history: Table<'t, (Key, u64), &'static [u8]>,
    leases: Table<'t, u64, u64>,
    leased: Table<'t, (u64, Key), ()>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, TableError> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            current: transaction.open_table(CURRENT)?,
            log: transaction.open_table(LOG)?,
            history: transaction.open_table(HISTORY)?,
            leases: transaction.open_table(LEASES)?,
            leased: transaction.open_table(LEASED)?,
        })
    }

    fn run(
        &mut self,
        command: Command,
        states_per_key: usize,
    ) -> Result<Result<Done, StoreError>, ::redb::Error> {
        match command {
            Command::Commit(transaction) => self.commit(transaction, states_per_key),
            Command::Probe => {
                let probes = self.number(PROBES)?;
                self.meta.insert(PROBES, probes.wrapping_add(1))?;
                let newest = Revision(self.number(REVISION)?);
                Ok(Ok(Done::Outcome(Outcome::Applied(newest))))
            }
            Command::Grant(ttl) => {
                let lease = self.number(LEASE)? + 1;
                self.meta.insert(LEASE, lease)?;
                let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
                self.leases.insert(lease, ttl_ms)?;
                Ok(Ok(Done::Lease(Lease(lease), ttl)))
            }
            Command::Revoke(Lease(lease)) => {
                let mut transaction = Transaction::default();
                for row in self.leased.range((lease, "")..(lease + 1, ""))? {
                    transaction = transaction.delete(row?.0.value().1);
                }
                self.leases.remove(lease)?;
                self.commit(transaction, states_per_key)
            }
        }
    }

    fn commit(
        &mut self,
        transaction: Transaction,
        states_per_key: usize,
    ) -> Result<Result<Done, StoreError>, ::redb::Error> {
        for condition in &transaction.conditions {
            let (key, wanted) = match condition {
                Condition::Absent(key) => (key, None),
                Condition::ModifiedAt(key, revision) => (key, Some(*revision)),
            };
            if self.entry(key)?.map(|entry| entry.modified) != wanted {
                return Ok(Ok(Done::Outcome(Outcome::Conflict)));
            }
        }
        // Everything that can refuse comes before the first change.
        for write in &transaction.writes {
            if let Write::Put {
                lease: Some(lease), ..
            } = write
                && self.leases.get(lease.0)?.is_none()
            {
                return Ok(Err(StoreError::LeaseGone));
            }
        }
        let newest = Revision(self.number(REVISION)?);
        let next = Revision(newest.0 + 1);
        let mut has_changed = false;
        for write in transaction.writes {
            has_changed |= self.write(write, next, states_per_key)?;
        }
        if has_changed {
            self.meta.insert(REVISION, next.0)?;
        }
        let revision = if has_changed { next } else { newest };
        Ok(Ok(Done::Outcome(Outcome::Applied(revision))))
    }

    fn write(
        &mut self,
        write: Write,
        revision: Revision,
        states_per_key: usize,
    ) -> Result<bool, ::redb::Error> {
        let (key, put) = match write {
            Write::Put { key, value, lease } => (key, Some((value, lease))),
            Write::Delete { key } => (key, None),
        };
        let before = self.entry(&key)?;
        if let Some(Lease(lease)) = before.as_ref().and_then(|entry| entry.lease) {
            self.leased.remove((lease, key.as_str()))?;
        }
        let event = match (put, before) {
            (None, None) => return Ok(false),
            (None, Some(_)) => {
                self.current.remove(key.as_str())?;
                Event::Deleted {
                    key: key.as_str().into(),
                    revision,
                }
            }
            (Some((value, lease)), before) => {
                let entry = Entry {
                    key: key.as_str().into(),
                    value,
                    created: before.map_or(revision, |entry| entry.created),
                    modified: revision,
                    lease,
                };
                if let Some(Lease(lease)) = lease {
                    self.leased.insert((lease, key.as_str()), ())?;
                }
                self.current
                    .insert(key.as_str(), encode(&entry).as_slice())?;
                Event::Put(entry)
            }
        };
        let bytes = match &event {
            Event::Put(entry) => encode(entry),
            Event::Deleted { .. } => Vec::new(),
        };
        self.log
            .insert((revision.0, key.as_str()), bytes.as_slice())?;
        self.history
            .insert((key.as_str(), revision.0), bytes.as_slice())?;
        self.trim(&key, states_per_key)?;
        Ok(true)
    }

    /// Keeps the newest states of a key. It had at most one too many.
    fn trim(&mut self, key: &str, states_per_key: usize) -> Result<(), ::redb::Error> {
        let surplus = {
            let mut states = self.history.range((key, 0)..=(key, u64::MAX))?;
            let mut count = states.by_ref().count();
            let mut surplus = Vec::new();
            for row in self.history.range((key, 0)..=(key, u64::MAX))? {
                if count <= states_per_key {
                    break;
                }
                surplus.push(row?.0.value().1);
                count -= 1;
            }
            surplus
        };
        for revision in surplus {
            self.history.remove((key, revision))?;
        }
        Ok(())
    }

    /// Forgets changes up to `upto`.
    fn compact(&mut self, upto: u64) -> Result<(), ::redb::Error> {
        if upto <= self.number(OLDEST)? {
            return Ok(());
        }
        let mut gone = Vec::new();
        for row in self.log.range(..(upto + 1, ""))? {
            let (position, event) = row?;
            let (revision, key) = position.value();
            gone.push((revision, key.to_owned(), event.value().is_empty()));
        }
        for (revision, key, is_deletion) in gone {
            self.log.remove((revision, key.as_str()))?;
            if is_deletion {
                let old: Vec<u64> = self
                    .history
                    .range((key.as_str(), 0)..=(key.as_str(), revision))?
                    .map(|row| row.map(|(position, _)| position.value().1))
                    .collect::<Result<_, _>>()?;
                for revision in old {
                    self.history.remove((key.as_str(), revision))?;
                }
            }
        }
        self.meta.insert(OLDEST, upto)?;
        Ok(())
    }

    fn number(&self, name: &str) -> Result<u64, ::redb::StorageError> {
        number(&self.meta, name)
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, ::redb::StorageError> {
        Ok(self
            .current
            .get(key)?
            .and_then(|bytes| decode(key, bytes.value())))
    }
}

/// The format of the tables, which are made if there are none. An open that finds them writes
/// nothing, so that it succeeds on a full disk.
fn format(database: &Database) -> Result<u64, ::redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => {
            if let Some(found) = meta.get(FORMAT)? {
                return Ok(found.value());
            }
        }
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let transaction = database.begin_write()?;
    {
        let mut tables = Tables::open(&transaction)?;
        tables.meta.insert(FORMAT, FORMAT_VERSION)?;
    }
    transaction.commit()?;
    Ok(FORMAT_VERSION)
}

/// The newest revision.
pub(super) fn revision(database: &Database) -> Result<Revision, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(Revision(number(&meta, REVISION)?))
    };
    read().map_err(failed("reading the revision"))
}

/// Watching is possible after this revision.
pub(super) fn oldest(database: &Database) -> Result<Revision, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let meta = database.begin_read()?.open_table(META)?;
        Ok(Revision(number(&meta, OLDEST)?))
    };
    read().map_err(failed("reading the revision"))
}

/// One key.
pub(super) fn get(database: &Database, key: &str) -> Result<Option<Entry>, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let current = database.begin_read()?.open_table(CURRENT)?;
        let entry = current.get(key)?;
        Ok(entry.and_then(|bytes| decode(key, bytes.value())))
    };
    read().map_err(failed("reading a key"))
}

/// Every key with a prefix.
pub(super) fn list(database: &Database, prefix: &str) -> Result<Listing, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let transaction = database.begin_read()?;
        let revision = Revision(number(&transaction.open_table(META)?, REVISION)?);
        let mut entries = Vec::new();
        for row in transaction.open_table(CURRENT)?.range(prefix..)? {
            let (key, bytes) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.extend(decode(key.value(), bytes.value()));
        }
        Ok(Listing { entries, revision })
    };
    read().map_err(failed("reading keys"))
}

/// The first keys with a prefix that come after another key.
pub(super) fn page(
    database: &Database,
    prefix: &str,
    after: &str,
    limit: usize,
) -> Result<Listing, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let transaction = database.begin_read()?;
        let revision = Revision(number(&transaction.open_table(META)?, REVISION)?);
        let first = match after {
            "" => Bound::Included(prefix),
            after => Bound::Excluded(after),
        };
        let mut entries = Vec::new();
        let current = transaction.open_table(CURRENT)?;
        for row in current
            .range::<&str>((first, Bound::Unbounded))?
            .take(limit)
        {
            let (key, bytes) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            entries.extend(decode(key.value(), bytes.value()));
        }
        Ok(Listing { entries, revision })
    };
    read().map_err(failed("reading keys"))
}

/// Past states of a key, newest first.
pub(super) fn history(
    database: &Database,
    key: &str,
    limit: usize,
) -> Result<Vec<Event>, StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let table = database.begin_read()?.open_table(HISTORY)?;
        let states = table.range((key, 0)..=(key, u64::MAX))?.rev().take(limit);
        let mut events = Vec::new();
        for row in states {
            let (position, bytes) = row?;
            events.push(event(key, position.value().1, bytes.value()));
        }
        Ok(events)
    };
    read().map_err(failed("reading history"))
}

/// Changes after `after`, of at most `limit` revisions, and the revision they reach up to.
pub(super) fn changes(
    database: &Database,
    prefix: &str,
    after: Revision,
    limit: usize,
) -> Result<(Vec<Changes>, Revision), StoreError> {
    let read = || -> Result<_, ::redb::Error> {
        let transaction = database.begin_read()?;
        let meta = transaction.open_table(META)?;
        let (oldest, newest) = (number(&meta, OLDEST)?, number(&meta, REVISION)?);
        if after.0 < oldest {
            return Ok(Err(Revision(oldest)));
        }
        let upto = newest.min(after.0.saturating_add(limit as u64));
        let log = transaction.open_table(LOG)?;
        let mut changes: Vec<Changes> = Vec::new();
        for row in log.range((after.0 + 1, "")..(upto + 1, ""))? {
            let (position, bytes) = row?;
            let (revision, key) = position.value();
            if !key.starts_with(prefix) {
                continue;
            }
            let event = event(key, revision, bytes.value());
            match changes.last_mut() {
                Some(last) if last.revision.0 == revision => last.events.push(event),
                _ => changes.push(Changes {
                    revision: Revision(revision),
                    events: vec![event],
                }),
            }
        }
        Ok(Ok((changes, Revision(upto))))
    };
    read()
        .map_err(failed("reading changes"))?
        .map_err(|oldest| StoreError::Compacted { oldest })
}

fn number(meta: &impl ReadableTable<Key, u64>, name: &str) -> Result<u64, ::redb::StorageError> {
    Ok(meta.get(name)?.map_or(0, |value| value.value()))
}

fn event(key: &str, revision: u64, bytes: &[u8]) -> Event {
    decode(key, bytes).map_or_else(
        || Event::Deleted {
            key: key.into(),
            revision: Revision(revision),
        },
        Event::Put,
    )
}

/// Created, modified and lease (zero: none), big endian, then the value.
fn encode(entry: &Entry) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + entry.value.len());
    bytes.extend(entry.created.0.to_be_bytes());
    bytes.extend(entry.modified.0.to_be_bytes());
    bytes.extend(entry.lease.map_or(0, |lease| lease.0).to_be_bytes());
    bytes.extend(&entry.value);
    bytes
}

/// The inverse. `None` for a deletion, which is written as nothing.
fn decode(key: &str, bytes: &[u8]) -> Option<Entry> {
    let (head, value) = bytes.split_at_checked(HEAD_BYTES)?;
    let (numbers, _) = head.as_chunks::<8>();
    let [created, modified, lease] = [0, 1, 2].map(|index| u64::from_be_bytes(numbers[index]));
    Some(Entry {
        key: key.into(),
        value: Bytes::copy_from_slice(value),
        created: Revision(created),
        modified: Revision(modified),
        lease: (lease > 0).then_some(Lease(lease)),
    })
}

pub(super) fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    action: &'static str,
) -> impl FnOnce(E) -> StoreError {
    move |error| StoreError::Failed {
        action,
        source: error.into(),
    }
}

const HEAD_BYTES: usize = 24;
