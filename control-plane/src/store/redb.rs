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
//!
//! A commit that fails (a full disk) is told to those who wait for it and to [`Store::failing`].
//! The file is opened again, and something is written every second until that succeeds.

mod file;
mod ledger;

use std::{
    collections::HashMap,
    fs,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ::redb::{Builder, Database};
use heddle_shell::{clock, task::Tasks};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tonic::async_trait;

use tracing::{error, info};

use self::{
    file::File,
    ledger::{Command, Done, Ledger, failed},
};
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
    file: Arc<File>,
    commands: mpsc::Sender<Request>,
    newest: watch::Receiver<Revision>,
    failing: watch::Receiver<Option<Arc<str>>>,
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
        let path = path.to_owned();
        Self::open_with(move || open(&path), retention)
    }

    fn open_with(
        open: impl Fn() -> Result<Database, ::redb::Error> + Send + Sync + 'static,
        retention: Retention,
    ) -> Result<Self, StoreError> {
        let file = Arc::new(File::open(open).map_err(failed("opening its file"))?);
        let ledger = Ledger::open(Arc::clone(&file), retention)?;
        let leases = Arc::new(Leases::default());
        leases.load(&ledger)?;

        let (commands, queue) = mpsc::channel(QUEUE_MAX);
        let (announce, newest) = watch::channel(ledger.revision()?);
        let (complain, failing) = watch::channel(None);
        let writer = Writer {
            file: Arc::clone(&file),
            ledger,
            newest: announce,
            failing: complain,
            leases: Arc::clone(&leases),
        };
        let writer = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(failed("starting its thread"))?;
        let mut tasks = Tasks::new();
        tasks.spawn("store-leases", expire(leases.clone(), commands.clone()));
        tasks.spawn("store-probe", probe(failing.clone(), commands.clone()));
        Ok(Self {
            file,
            commands,
            newest,
            failing,
            leases,
            tasks: Mutex::new(tasks),
            writer,
        })
    }

    /// Resolves when the writer has ended before [`RedbStore::close`]: it panicked, and nothing
    /// is written any more.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    /// Ends watches, finishes what is queued and closes the file.
    pub async fn close(self) {
        let Self {
            file,
            commands,
            tasks,
            writer,
            ..
        } = self;
        tasks.into_inner().finish(Duration::ZERO).await;
        drop(commands);
        let closed = tokio::task::spawn_blocking(move || {
            // A panic of the writer has already been answered with `Closed`.
            let _ = writer.join();
            file.close();
        });
        // Nor does closing panic.
        let _ = closed.await;
    }

    async fn send(&self, command: Command) -> Result<Done, StoreError> {
        send(&self.commands, command).await
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Database) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let file = Arc::clone(&self.file);
        tokio::task::spawn_blocking(move || read(&*file.database().map_err(failed("reading"))?))
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

    async fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Listing, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        self.read(move |database| ledger::page(database, &prefix, &after, limit))
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
            file: Arc::clone(&self.file),
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

    fn failing(&self) -> Option<Arc<str>> {
        self.failing.borrow().clone()
    }
}

impl Leases {
    /// Every stored lease that has no end yet gets its whole time.
    fn load(&self, ledger: &Ledger) -> Result<(), StoreError> {
        let now = clock::now();
        let stored = ledger.leases()?;
        let mut ends = self.ends.lock();
        for (lease, ttl) in stored {
            ends.entry(lease).or_insert((now + ttl, ttl));
        }
        self.changed.notify_one();
        Ok(())
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
struct Writer {
    file: Arc<File>,
    ledger: Ledger,
    newest: watch::Sender<Revision>,
    failing: watch::Sender<Option<Arc<str>>>,
    leases: Arc<Leases>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(first) = queue.blocking_recv() {
            let mut requests = vec![first];
            while requests.len() < GROUP_MAX
                && let Ok(next) = queue.try_recv()
            {
                requests.push(next);
            }
            self.write(requests);
        }
    }

    fn write(&mut self, requests: Vec<Request>) {
        let (commands, answers): (Vec<_>, Vec<_>) = requests
            .into_iter()
            .map(|request| (request.command, request.answer))
            .unzip();
        let applied = self.ledger.apply(commands);
        if let Some(revision) = applied.revision {
            self.newest.send_replace(revision);
        }
        match applied.failure {
            Some(why) => self.recover(&why),
            None => self.has_recovered(),
        }
        for (answer, result) in answers.into_iter().zip(applied.results) {
            // Here, so that a lease ends also if who asked for it has gone.
            if let Ok(Done::Lease(lease, ttl)) = &result {
                let end = (clock::now() + *ttl, *ttl);
                self.leases.ends.lock().insert(*lease, end);
                self.leases.changed.notify_one();
            }
            // The caller may have gone; what was done stays done.
            let _ = answer.send(result);
        }
    }

    /// Opens the file again, and looks at what became of the last commit.
    fn recover(&mut self, why: &str) {
        if self.failing.borrow().is_none() {
            error!(
                error = why,
                "a commit failed; nothing is stored until one succeeds"
            );
        }
        self.failing.send_replace(Some(why.into()));
        if let Err(error) = self.file.reopen() {
            error!(%error, "opening the store's file again failed; will try again");
            return;
        }
        let looked = self.ledger.revision().and_then(|newest| {
            self.newest.send_replace(newest);
            self.leases.load(&self.ledger)
        });
        if let Err(error) = looked {
            error!(%error, "reading the store after a failure failed; will try again");
        }
    }

    fn has_recovered(&self) {
        let was_failing = self
            .failing
            .send_if_modified(|failing| failing.take().is_some());
        if was_failing {
            info!("the store can be written again");
        }
    }
}

/// Writes something once in a while for as long as the last commit has failed.
async fn probe(mut failing: watch::Receiver<Option<Arc<str>>>, queue: mpsc::Sender<Request>) {
    while failing.wait_for(Option::is_some).await.is_ok() {
        clock::sleep_until(clock::now() + PROBE_INTERVAL).await;
        if let Err(StoreError::Closed) = send(&queue, Command::Probe).await {
            return;
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
    file: Arc<File>,
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
            let (file, prefix, after) = (Arc::clone(&self.file), self.prefix.clone(), self.after);
            let read = move || {
                let database = file.database().map_err(failed("reading changes"))?;
                ledger::changes(&database, &prefix, after, CHANGES_READ_MAX)
            };
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
/// Between two attempts to write after one failed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Wait before a failed revocation is tried again.
const LEASE_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
