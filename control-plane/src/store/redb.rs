//! The embedded store: one file, written by one thread.
//!
//! ```text
//! commit ──► queue ──► writer thread: all that wait, one fsync ──► answers ──► newest revision
//!                                                                                   │
//! watch ◄── reads the change log up to there ◄───────────────────────────────────────┘
//! ```
//!
//! An answer is given after redb's durable commit, never before. Commands that wait together
//! share one commit, each with a revision of its own. A watch follows the change log by itself,
//! so a slow watcher holds nobody up; it is told when the log no longer reaches back to it.

mod ledger;

use std::{
    collections::HashMap, fs, fs::OpenOptions, io, os::unix::fs::OpenOptionsExt, path::Path,
    sync::Arc, thread, time::Duration, time::Instant,
};

use ::redb::{Builder, Database};
use heddle_shell::{clock, task::Tasks};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::async_trait;

use self::ledger::{Command, Done, Ledger, failed};
use super::{
    Entry, Event, Lease, Listing, Outcome, Revision, Store, StoreError, Transaction, Watch,
};

/// How much of the past is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Revisions that a watch can start from.
    pub revisions: u64,
    /// States of one key for [`Store::history`].
    pub states_per_key: usize,
}

/// See the module. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct RedbStore {
    database: Arc<Database>,
    commands: mpsc::Sender<Request>,
    newest: watch::Receiver<Revision>,
    leases: Arc<Leases>,
    /// Watches and the lease clock; stopped with the store.
    tasks: Mutex<Tasks>,
    writer: thread::JoinHandle<()>,
}

/// When each lease ends, unless it is kept alive. Not durable: a restart grants every lease its
/// whole time again, as etcd does.
#[derive(Debug, Default)]
struct Leases {
    ends: Mutex<HashMap<Lease, (Instant, Duration)>>,
    /// An earlier end than all others was added.
    changed: Notify,
}

struct Request {
    command: Command,
    answer: oneshot::Sender<Result<Done, StoreError>>,
}

impl RedbStore {
    /// Opens the store at `path`, creating it if needed. Blocks on the disk. Needs a runtime.
    ///
    /// # Errors
    /// The file cannot be opened, is locked by another process, or is not ours.
    pub fn open(path: &Path, retention: Retention) -> Result<Self, StoreError> {
        if !path.exists() {
            create(path).map_err(failed("creating its file"))?;
        }
        let database = open(path).map_err(failed("opening its file"))?;
        let database = Arc::new(database);
        let ledger = Ledger::open(database.clone(), retention)?;
        let now = clock::now();
        let leases = Arc::new(Leases::default());
        let ends = ledger.leases()?;
        let ends = ends
            .into_iter()
            .map(|(lease, ttl)| (lease, (now + ttl, ttl)));
        leases.ends.lock().extend(ends);

        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (announce, newest) = watch::channel(ledger.revision()?);
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let leases = leases.clone();
                move || write(ledger, queue, &announce, &leases)
            })
            .map_err(failed("starting its thread"))?;
        let mut tasks = Tasks::new();
        tasks.spawn("store-leases", expire(leases.clone(), commands.clone()));
        Ok(Self {
            database,
            commands,
            newest,
            leases,
            tasks: Mutex::new(tasks),
            writer,
        })
    }

    /// Ends watches, finishes what is queued and closes the file.
    pub async fn close(self) {
        let Self {
            database,
            commands,
            tasks,
            writer,
            ..
        } = self;
        tasks.into_inner().finish(Duration::ZERO).await;
        drop((commands, database));
        // A panic of the writer has already been answered with `Closed`.
        let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    }

    async fn send(&self, command: Command) -> Result<Done, StoreError> {
        send(&self.commands, command).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = self.database.clone();
        tokio::task::spawn_blocking(move || read(&database))
            .await
            .map_err(|_stopped| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn revision(&self) -> Result<Revision, StoreError> {
        self.read(ledger::revision).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let key = key.to_owned();
        self.read(move |database| ledger::get(database, &key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let prefix = prefix.to_owned();
        self.read(move |database| ledger::list(database, &prefix))
            .await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        if let Some(why) = transaction.refusal() {
            return Err(StoreError::Refused(why));
        }
        match self.send(Command::Commit(transaction)).await? {
            Done::Outcome(outcome) => Ok(outcome),
            Done::Lease(..) => Err(StoreError::Closed),
        }
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let oldest = self.read(ledger::oldest).await?;
        if after < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let (changes, receiver) = mpsc::channel(WATCH_QUEUE_MAX);
        let follower = Follower {
            database: self.database.clone(),
            prefix: prefix.into(),
            after,
            newest: self.newest.clone(),
            changes,
        };
        let mut tasks = self.tasks.lock();
        tasks.reap_ended();
        tasks.spawn("store-watch", follower.run());
        Ok(Watch::new(receiver))
    }

    async fn history(&self, key: &str, limit: usize) -> Result<Vec<Event>, StoreError> {
        let key = key.to_owned();
        self.read(move |database| ledger::history(database, &key, limit))
            .await
    }

    async fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        match self.send(Command::Grant(ttl)).await? {
            Done::Lease(lease, _) => Ok(lease),
            Done::Outcome(_) => Err(StoreError::Closed),
        }
    }

    async fn keep_alive(&self, lease: Lease) -> Result<(), StoreError> {
        let mut ends = self.leases.ends.lock();
        let (end, ttl) = ends.get_mut(&lease).ok_or(StoreError::LeaseGone)?;
        *end = clock::now() + *ttl;
        Ok(())
    }

    async fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        self.leases.ends.lock().remove(&lease);
        self.send(Command::Revoke(lease)).await.map(|_| ())
    }
}

fn open(path: &Path) -> Result<Database, ::redb::Error> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    Ok(Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_file(file)?)
}

/// Makes the file aside and links it when it is whole: redb takes a file that it was killed in
/// the middle of making for somebody else's.
fn create(path: &Path) -> Result<(), ::redb::Error> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = Path::new(&aside);
    match fs::remove_file(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    drop(open(aside)?);
    match fs::hard_link(aside, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    fs::remove_file(aside)?;
    // The file's name must be as durable as what is in it.
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

/// The writer thread: it ends when every sender is gone.
fn write(
    mut ledger: Ledger,
    mut queue: mpsc::Receiver<Request>,
    newest: &watch::Sender<Revision>,
    leases: &Leases,
) {
    while let Some(first) = queue.blocking_recv() {
        let mut requests = vec![first];
        while requests.len() < GROUP_MAX
            && let Ok(next) = queue.try_recv()
        {
            requests.push(next);
        }
        let (commands, answers): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|request| (request.command, request.answer))
            .unzip();
        let (results, revision) = ledger.apply(commands);
        if let Some(revision) = revision {
            newest.send_replace(revision);
        }
        for (answer, result) in answers.into_iter().zip(results) {
            // Here, so that a lease ends also if who asked for it has gone.
            if let Ok(Done::Lease(lease, ttl)) = &result {
                let end = (clock::now() + *ttl, *ttl);
                leases.ends.lock().insert(*lease, end);
                leases.changed.notify_one();
            }
            // The caller may have gone; what was done stays done.
            let _ = answer.send(result);
        }
    }
}

async fn send(queue: &mpsc::Sender<Request>, command: Command) -> Result<Done, StoreError> {
    let (answer, result) = oneshot::channel();
    let request = Request { command, answer };
    queue
        .send(request)
        .await
        .map_err(|_closed| StoreError::Closed)?;
    result.await.map_err(|_closed| StoreError::Closed)?
}

/// Revokes leases whose time has come.
async fn expire(leases: Arc<Leases>, queue: mpsc::Sender<Request>) {
    loop {
        let next = leases.ends.lock().values().map(|(end, _)| *end).min();
        match next {
            None => leases.changed.notified().await,
            // A lease whose time has come goes first, however many are granted meanwhile.
            Some(end) => tokio::select! {
                biased;
                () = clock::sleep_until(end) => {}
                () = leases.changed.notified() => continue,
            },
        }
        let now = clock::now();
        let ended: Vec<_> = leases
            .ends
            .lock()
            .extract_if(|_, (end, _)| *end <= now)
            .collect();
        for (lease, (_, ttl)) in ended {
            match send(&queue, Command::Revoke(lease)).await {
                Ok(_) => {}
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, lease = lease.0, "lease not ended; will try again");
                    let again = now + ttl.max(LEASE_RETRY);
                    leases.ends.lock().insert(lease, (again, ttl));
                }
            }
        }
    }
}

/// Brings the change log to one watcher.
struct Follower {
    database: Arc<Database>,
    prefix: Arc<str>,
    after: Revision,
    newest: watch::Receiver<Revision>,
    changes: mpsc::Sender<Result<super::Changes, StoreError>>,
}

impl Follower {
    async fn run(mut self) {
        loop {
            if let Err(error) = self.catch_up().await {
                // The watcher may have gone first.
                let _ = self.changes.send(Err(error)).await;
                return;
            }
            // Nothing is read for a watcher that has gone.
            tokio::select! {
                biased;
                () = self.changes.closed() => return,
                changed = self.newest.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Sends what happened up to the newest revision.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let newest = *self.newest.borrow_and_update();
        while self.after < newest {
            let (database, prefix, after) =
                (self.database.clone(), self.prefix.clone(), self.after);
            let read = move || ledger::changes(&database, &prefix, after, CHANGES_READ_MAX);
            let (changes, reached) = tokio::task::spawn_blocking(read)
                .await
                .map_err(|_stopped| StoreError::Closed)??;
            for change in changes {
                if self.changes.send(Ok(change)).await.is_err() {
                    return Ok(());
                }
            }
            self.after = reached;
        }
        Ok(())
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            revisions: 10_000,
            states_per_key: 100,
        }
    }
}

/// redb's page cache; its own default is 1 GiB.
const CACHE_BYTES: usize = 32 << 20;
/// Commands that wait; more wait in their callers.
const QUEUE_MAX: usize = 1024;
/// Commands that share one fsync.
const GROUP_MAX: usize = 256;
/// Changes read ahead of a watcher.
const WATCH_QUEUE_MAX: usize = 64;
/// Revisions read from the log at once.
const CHANGES_READ_MAX: usize = 256;
/// Wait before a failed revocation is tried again.
const LEASE_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
