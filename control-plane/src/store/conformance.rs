//! What every [`Store`] promises, as a suite that any implementation runs in its tests. It
//! panics where a promise is broken.

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Changes, Entry, Event, Outcome, Revision, Store, StoreError, Transaction, election};

/// Runs the suite. `make` gives an empty store that keeps the changes of `revisions` revisions
/// (a store that compacts on command may ignore the number and compact in `make`'s stead).
pub async fn conformance<F: Future<Output = Arc<dyn Store>>>(make: impl Fn(u64) -> F) {
    writes_are_revisioned(make(PLENTY).await).await;
    conditions_guard_the_whole_transaction(make(PLENTY).await).await;
    one_of_many_rivals_wins(make(PLENTY).await).await;
    a_list_is_of_one_revision(make(PLENTY).await).await;
    pages_are_a_list_in_parts(make(PLENTY).await).await;
    a_watch_has_no_gap_and_no_repeat(make(PLENTY).await).await;
    a_watch_from_too_far_back_is_told(make(10).await).await;
    history_is_newest_first(make(PLENTY).await).await;
    keys_go_with_their_lease(make(PLENTY).await).await;
    one_candidate_leads(make(PLENTY).await).await;
    nonsense_is_refused(make(PLENTY).await).await;
}

type Shared = Arc<dyn Store>;

async fn writes_are_revisioned(store: Shared) {
    assert_eq!(store.get("a").await.expect("get"), None);
    let first = put(&store, "a", "1").await;
    let second = put(&store, "a", "2").await;
    assert!(first > Revision(0) && second > first);
    let entry = store.get("a").await.expect("get").expect("was put");
    assert_eq!((entry.created, entry.modified), (first, second));
    assert_eq!(&entry.value[..], b"2");

    let gone = apply(&store, Transaction::default().delete("a")).await;
    assert!(gone > second);
    assert_eq!(store.get("a").await.expect("get"), None);
    let nothing = apply(&store, Transaction::default().delete("a")).await;
    assert_eq!(nothing, gone, "deleting nothing is no change");
    let again = put(&store, "a", "3").await;
    let entry = store.get("a").await.expect("get").expect("was put");
    assert_eq!(entry.created, again, "a new life begins anew");
    assert_eq!(store.revision().await.expect("revision"), again);
}

async fn conditions_guard_the_whole_transaction(store: Shared) {
    let first = put(&store, "a", "1").await;
    for refused in [
        Transaction::default().if_absent("a").put("b", "x"),
        Transaction::default()
            .if_modified_at("a", Revision(first.0 + 1))
            .put("b", "x"),
        Transaction::default()
            .if_modified_at("a", first)
            .if_modified_at("none", first)
            .put("b", "x")
            .delete("a"),
    ] {
        let outcome = store.commit(refused).await.expect("commit");
        assert_eq!(outcome, Outcome::Conflict);
    }
    assert_eq!(store.revision().await.expect("revision"), first);
    let swap = Transaction::default()
        .if_modified_at("a", first)
        .if_absent("b")
        .delete("a")
        .put("b", "x");
    let second = apply(&store, swap).await;
    let entry = store.get("b").await.expect("get").expect("was put");
    assert_eq!(entry.modified, second);
    assert_eq!(store.get("a").await.expect("get"), None);
}

async fn one_of_many_rivals_wins(store: Shared) {
    let base = put(&store, "counter", "0").await;
    let rivals = (0..32).map(|rival: u32| {
        let store = store.clone();
        async move {
            let swap = Transaction::default()
                .if_modified_at("counter", base)
                .put("counter", rival.to_string());
            store.commit(swap).await.expect("commit")
        }
    });
    let outcomes = futures_util::future::join_all(rivals).await;
    let wins = outcomes.iter().filter(|won| **won != Outcome::Conflict);
    assert_eq!(wins.count(), 1);
}

async fn pages_are_a_list_in_parts(store: Shared) {
    for key in ["b/1", "a/3", "a/1", "a0", "a/10", "a/2"] {
        put(&store, key, key).await;
    }
    let mut keys: Vec<String> = Vec::new();
    loop {
        let after = keys.last().cloned().unwrap_or_default();
        let page = store.page("a/", &after, 3).await.expect("page");
        let found = page.entries.iter().map(|entry| entry.key.to_string());
        keys.extend(found);
        if page.entries.len() < 3 {
            break;
        }
    }
    assert_eq!(keys, ["a/1", "a/10", "a/2", "a/3"]);
    let page = store.page("a/", "a/", 10).await.expect("page");
    assert_eq!(page.entries.len(), 4, "a key that is not there is a place");
    assert_eq!(store.failing(), None);
}

async fn a_list_is_of_one_revision(store: Shared) {
    for key in ["b/1", "a/2", "a/1", "a0", "a/10"] {
        put(&store, key, key).await;
    }
    let listing = store.list("a/").await.expect("list");
    let keys: Vec<_> = listing.entries.iter().map(|entry| &*entry.key).collect();
    assert_eq!(keys, ["a/1", "a/10", "a/2"]);
    assert_eq!(listing.revision, store.revision().await.expect("revision"));
    assert_eq!(store.list("").await.expect("list").entries.len(), 5);
    assert_eq!(store.list("zzz").await.expect("list").entries, []);

    // Two keys that always change together are never seen apart.
    let writer = async {
        for round in 0..50 {
            let both = Transaction::default()
                .put("pair/a", round.to_string())
                .put("pair/b", round.to_string());
            apply(&store, both).await;
        }
    };
    let reader = async {
        for _ in 0..50 {
            let pair = store.list("pair/").await.expect("list").entries;
            let values: Vec<_> = pair.iter().map(|entry| &entry.value).collect();
            assert!(values.windows(2).all(|two| two[0] == two[1]), "{values:?}");
        }
    };
    futures_util::future::join(writer, reader).await;
}

async fn a_watch_has_no_gap_and_no_repeat(store: Shared) {
    let first = put(&store, "w/a", "1").await;
    let second = put(&store, "w/b", "2").await;
    put(&store, "other", "x").await;
    let mut watch = store.watch("w/", first).await.expect("watch");
    let third = apply(
        &store,
        Transaction::default()
            .delete("w/a")
            .put("w/b", "3")
            .put("w/c", "4")
            .put("other", "y"),
    )
    .await;
    assert_eq!(next(&mut watch).await.revision, second);
    let changes = next(&mut watch).await;
    assert_eq!(changes.revision, third);
    let keys: Vec<_> = changes.events.iter().map(Event::key).collect();
    assert_eq!(keys, ["w/a", "w/b", "w/c"]);
    assert!(matches!(changes.events[0], Event::Deleted { .. }));

    let mut watch = store.watch("w/", third).await.expect("watch");
    let mut expected = Vec::new();
    for round in 0..500 {
        expected.push(put(&store, "w/x", &round.to_string()).await);
    }
    for revision in expected {
        assert_eq!(next(&mut watch).await.revision, revision);
    }
}

async fn a_watch_from_too_far_back_is_told(store: Shared) {
    let first = put(&store, "a", "0").await;
    let mut last = first;
    for round in 0..50 {
        last = put(&store, "a", &round.to_string()).await;
    }
    let refused = store.watch("a", first).await.map(|_| ());
    let Err(StoreError::Compacted { oldest }) = refused else {
        unreachable!("a compacted revision was watched: {refused:?}");
    };
    assert!(first < oldest && oldest < last);
    let mut watch = store.watch("a", oldest).await.expect("watch");
    assert_eq!(next(&mut watch).await.revision, Revision(oldest.0 + 1));
}

async fn history_is_newest_first(store: Shared) {
    assert_eq!(store.history("h", 10).await.expect("history"), []);
    let first = put(&store, "h", "1").await;
    let second = put(&store, "h", "2").await;
    put(&store, "ha", "other").await;
    let third = apply(&store, Transaction::default().delete("h")).await;
    let fourth = put(&store, "h", "4").await;
    let history = store.history("h", 10).await.expect("history");
    let revisions: Vec<_> = history.iter().map(Event::revision).collect();
    assert_eq!(revisions, [fourth, third, second, first]);
    assert!(matches!(&history[1], Event::Deleted { .. }));
    assert!(matches!(&history[3], Event::Put(Entry { value, .. }) if value == "1"));
    assert_eq!(store.history("h", 2).await.expect("history").len(), 2);
}

async fn keys_go_with_their_lease(store: Shared) {
    let lease = store.grant(TTL).await.expect("grant");
    let kept = store.grant(Duration::from_secs(3600)).await.expect("grant");
    let puts = Transaction::default()
        .put_leased("l/a", "1", lease)
        .put_leased("l/b", "2", lease)
        .put_leased("l/kept", "3", kept)
        .put("l/free", "4");
    let revision = apply(&store, puts).await;
    let freed = apply(&store, Transaction::default().put("l/b", "5")).await;
    assert!(freed > revision);
    let mut watch = store.watch("l/", freed).await.expect("watch");
    let changes = next(&mut watch).await;
    let keys: Vec<_> = changes.events.iter().map(Event::key).collect();
    assert_eq!(
        keys,
        ["l/a"],
        "only what hangs on the lease goes, at its end"
    );
    assert!(matches!(
        store.keep_alive(lease).await,
        Err(StoreError::LeaseGone)
    ));
    let late = Transaction::default().put_leased("l/late", "6", lease);
    assert!(matches!(
        store.commit(late).await,
        Err(StoreError::LeaseGone)
    ));
    assert_eq!(store.get("l/late").await.expect("get"), None);

    store.keep_alive(kept).await.expect("keep_alive");
    store.revoke(kept).await.expect("revoke");
    store
        .revoke(kept)
        .await
        .expect("revoking twice is no error");
    assert_eq!(store.get("l/kept").await.expect("get"), None);
    assert!(store.get("l/free").await.expect("get").is_some());
}

async fn one_candidate_leads(store: Shared) {
    let first = election::campaign(store.clone(), "e", "one", Duration::from_secs(3600))
        .await
        .expect("campaign");
    assert_eq!(
        election::leader(&*store, "e")
            .await
            .expect("leader")
            .as_deref(),
        Some("one")
    );
    let second = election::campaign(store.clone(), "e", "two", Duration::from_secs(3600));
    let mut second = Box::pin(second);
    let early = timeout(Duration::from_millis(50), &mut second).await;
    assert!(early.is_err(), "two leaders");
    let as_first = Transaction {
        conditions: vec![first.condition()],
        writes: Vec::new(),
    }
    .put("led", "one");
    apply(&store, as_first.clone()).await;
    first.keep_alive().await.expect("keep_alive");
    first.resign().await.expect("resign");
    let second = timeout(PATIENCE, second)
        .await
        .expect("in time")
        .expect("campaign");
    let outcome = store.commit(as_first).await.expect("commit");
    assert_eq!(outcome, Outcome::Conflict, "a former leader writes");
    second.resign().await.expect("resign");
}

async fn nonsense_is_refused(store: Shared) {
    let long = "k".repeat(super::KEY_BYTES_MAX + 1);
    for refused in [
        Transaction::default().put("a", "1").put("a", "2"),
        Transaction::default().put("", "1"),
        Transaction::default().put(long, "1"),
        Transaction::default().put("a", vec![0; super::VALUE_BYTES_MAX + 1]),
        (0..=super::WRITES_MAX).fold(Transaction::default(), |all, i| all.delete(i.to_string())),
    ] {
        assert!(matches!(
            store.commit(refused).await,
            Err(StoreError::Refused(_))
        ));
    }
    assert_eq!(store.revision().await.expect("revision"), Revision(0));
}

async fn put(store: &Shared, key: &str, value: &str) -> Revision {
    apply(store, Transaction::default().put(key, value.to_owned())).await
}

async fn apply(store: &Shared, transaction: Transaction) -> Revision {
    match store.commit(transaction).await.expect("commit") {
        Outcome::Applied(revision) => revision,
        Outcome::Conflict => unreachable!("nothing else writes here"),
    }
}

async fn next(watch: &mut super::Watch) -> Changes {
    let changes = timeout(PATIENCE, watch.next()).await.expect("in time");
    changes.expect("open").expect("not compacted")
}

/// Revisions kept where compaction is not the subject.
const PLENTY: u64 = 10_000;
/// Of the lease that is left to end.
const TTL: Duration = Duration::from_millis(200);
/// For what happens in another task or process.
const PATIENCE: Duration = Duration::from_secs(20);
