//! The conformance suite on redb, and what only a file can do: survive.

use std::{
    io::{BufRead, BufReader, Write as _},
    path::PathBuf,
    process::{self, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use ::redb::{StorageBackend, backends::FileBackend};
use tempfile::TempDir;

use super::{super::conformance::conformance, *};

#[tokio::test(flavor = "multi_thread")]
async fn redb_is_a_store() {
    let directories = Mutex::new(Vec::new());
    let number = std::sync::atomic::AtomicU32::new(0);
    let directory = TempDir::new().unwrap();
    conformance(|revisions| {
        let number = number.fetch_add(1, Ordering::Relaxed);
        let retention = Retention {
            revisions,
            ..Retention::default()
        };
        let path = directory.path().join(format!("{number}.redb"));
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&path, retention).unwrap());
        directories.lock().push(store.clone());
        async { store }
    })
    .await;
}

#[tokio::test]
async fn what_was_stored_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let store = RedbStore::open(&path, Retention::default()).unwrap();
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let puts = Transaction::default()
        .put("a", "1")
        .put_leased("b", "2", lease);
    store.commit(puts).await.unwrap();
    let before = store.list("").await.unwrap();
    store.close().await;

    let store = RedbStore::open(&path, Retention::default()).unwrap();
    assert_eq!(store.list("").await.unwrap(), before);
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    let changes = watch.next().await.unwrap().unwrap();
    assert_eq!(changes.events.len(), 2);
    store.keep_alive(lease).await.unwrap();
    let next = store.grant(Duration::from_secs(3600)).await.unwrap();
    assert!(next > lease, "a lease's number is used once");
    store.revoke(lease).await.unwrap();
    assert_eq!(store.list("").await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn an_interrupted_creation_is_begun_again() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    // What a kill leaves before redb has written its magic number.
    fs::write(directory.path().join("store.redb.new"), vec![0; 1 << 20]).unwrap();
    let store = RedbStore::open(&path, Retention::default()).unwrap();
    store
        .commit(Transaction::default().put("a", "1"))
        .await
        .unwrap();
    store.close().await;
    let names: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["store.redb"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // A whole file of somebody else's is not taken over.
    let foreign = directory.path().join("foreign");
    fs::write(&foreign, "not ours").unwrap();
    assert!(matches!(
        RedbStore::open(&foreign, Retention::default()),
        Err(StoreError::Failed { .. })
    ));
    assert_eq!(fs::read(&foreign).unwrap(), b"not ours");
}

#[tokio::test]
async fn one_file_has_one_store() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let _store = RedbStore::open(&path, Retention::default()).unwrap();
    let second = RedbStore::open(&path, Retention::default());
    assert!(matches!(second, Err(StoreError::Failed { .. })));
}

#[tokio::test]
async fn the_past_is_bounded() {
    let directory = TempDir::new().unwrap();
    let retention = Retention {
        revisions: 20,
        states_per_key: 5,
    };
    let store = RedbStore::open(&directory.path().join("store.redb"), retention).unwrap();
    for round in 0..100 {
        let round = round.to_string();
        let write = Transaction::default()
            .put("kept", round.clone())
            .put(format!("brief/{round}"), round.clone());
        store.commit(write).await.unwrap();
        let delete = Transaction::default().delete(format!("brief/{round}"));
        store.commit(delete).await.unwrap();
    }
    assert_eq!(store.history("kept", 1000).await.unwrap().len(), 5);
    assert_eq!(store.history("brief/0", 1000).await.unwrap(), []);
    assert_eq!(store.history("brief/99", 1000).await.unwrap().len(), 2);
    assert_eq!(
        store.read(ledger::oldest).await.unwrap(),
        Revision(200 - 20)
    );
}

/// A disk that is full for a while.
#[derive(Debug)]
struct Disk {
    file: FileBackend,
    is_full: Arc<AtomicBool>,
}

impl Disk {
    fn check(&self) -> io::Result<()> {
        match self.is_full.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_the_store_works_again_when_it_has_room() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let is_full = Arc::new(AtomicBool::new(false));
    let opened = {
        let is_full = Arc::clone(&is_full);
        move || -> Result<Database, ::redb::Error> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            let file = FileBackend::new(file)?;
            let is_full = Arc::clone(&is_full);
            Ok(Builder::new().create_with_backend(Disk { file, is_full })?)
        }
    };
    let store = RedbStore::open_with(opened, Retention::default()).unwrap();
    let put = |key: &str| Transaction::default().put(key, "1");
    store.commit(put("before")).await.unwrap();
    let mut watch = store.watch("", Revision(0)).await.unwrap();
    watch.next().await.unwrap().unwrap();
    assert_eq!(store.failing(), None);

    is_full.store(true, Ordering::SeqCst);
    let refused = store.commit(put("during")).await.unwrap_err();
    assert!(matches!(refused, StoreError::Failed { .. }), "{refused:?}");
    assert!(store.failing().is_some());
    is_full.store(false, Ordering::SeqCst);
    let mut failing = store.failing.clone();
    let healed = tokio::time::timeout(Duration::from_secs(30), failing.wait_for(Option::is_none));
    healed.await.expect("it tries by itself").unwrap();
    store.commit(put("after")).await.unwrap();
    let keys: Vec<_> = store.list("").await.unwrap().entries;
    let keys: Vec<_> = keys.iter().map(|entry| &*entry.key).collect();
    assert!(
        keys.contains(&"before") && keys.contains(&"after"),
        "{keys:?}"
    );
    // Watches go on across it.
    loop {
        let changes = watch.next().await.unwrap().unwrap();
        if changes.events.iter().any(|event| event.key() == "after") {
            break;
        }
    }
    store.close().await;
}

/// SIGKILL in the middle of writes, ten times: every acknowledged write is there afterwards, and
/// no revision is given twice.
#[tokio::test]
async fn a_kill_loses_no_acknowledged_write() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("store.redb");
    let mut acknowledged = 0;
    let mut revision_min = Revision(0);
    for kill in 0..10 {
        let mut child = process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::redb::tests::crash_child", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Kills at different depths, never at a moment of rest: the child writes without end.
        let wanted = acknowledged + 5 + kill * 7;
        while acknowledged < wanted {
            let line = lines
                .next()
                .expect("the child writes until killed")
                .unwrap();
            if let Some(numbers) = line.strip_prefix("wrote ") {
                let (count, revision) = numbers.split_once(' ').unwrap();
                acknowledged = count.parse().unwrap();
                let revision = Revision(revision.parse().unwrap());
                assert!(revision > revision_min, "revision went back");
                revision_min = revision;
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            if let Some((count, _)) = line.strip_prefix("wrote ").and_then(|n| n.split_once(' ')) {
                acknowledged = count.parse().unwrap_or(acknowledged);
            }
        }

        let store = RedbStore::open(&path, Retention::default()).unwrap();
        let listing = store.list("write/").await.unwrap();
        assert!(listing.revision >= revision_min);
        let keys: Vec<_> = listing.entries.iter().map(|entry| &*entry.key).collect();
        for number in 1..=acknowledged {
            let key = format!("write/{number:08}");
            assert!(
                keys.contains(&key.as_str()),
                "{key} was acknowledged and is lost"
            );
        }
        // The next child continues after whatever made it to the disk.
        acknowledged = listing.entries.len() as u64;
        revision_min = listing.revision;
        store.close().await;
    }
}

/// Not a test by itself: the process that [`a_kill_loses_no_acknowledged_write`] kills.
#[tokio::test]
async fn crash_child() {
    let Some(path) = std::env::var_os(CHILD).map(PathBuf::from) else {
        return;
    };
    let store = RedbStore::open(&path, Retention::default()).unwrap();
    let first = store.list("write/").await.unwrap().entries.len() + 1;
    for number in first.. {
        let write = Transaction::default().put(format!("write/{number:08}"), vec![7; 2000]);
        let Outcome::Applied(revision) = store.commit(write).await.unwrap() else {
            panic!("nothing else writes here");
        };
        println!("wrote {number} {}", revision.0);
        io::stdout().flush().unwrap();
    }
}

const CHILD: &str = "HEDDLE_TEST_STORE";
