use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::*;

fn binding(identity: &str) -> Binding {
    Binding::new(identity, &heddle_shell::tls::Anchor::Sha256([7; 32]))
}

fn open(dir: &TempDir) -> StateDirectory {
    StateDirectory::open(dir.path(), binding("a"), || KeyStorage::Tmpfs).unwrap()
}

fn at(seconds: u64) -> Instant {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *START.get_or_init(heddle_shell::clock::now) + Duration::from_secs(seconds)
}

fn saved(version: &str, revision: u64) -> Saved {
    Saved {
        resources: vec![SavedResource {
            type_url: "t".to_owned(),
            name: "n".to_owned(),
            version: version.to_owned(),
            raw: vec![1, 2, 3],
        }],
        trust_bundle: Some(heddle_proto::v1::TrustBundle {
            revision,
            ..Default::default()
        }),
        identity: Some(SavedIdentity {
            chain: vec![vec![1]],
            key: vec![2],
        }),
        meshed: vec![SavedMeshed {
            address: format!("10.0.0.{version}:80"),
            unseen_s: 60,
        }],
    }
}

/// Version and bundle revision of what a new process would start with at `second`.
fn restart(dir: &TempDir, second: u64) -> Option<(String, u64)> {
    open(dir).load(at(second)).unwrap().map(|saved| {
        let version = saved.resources.first().map(|one| one.version.clone());
        let revision = saved.trust_bundle.map_or(0, |bundle| bundle.revision);
        (version.unwrap_or_default(), revision)
    })
}

#[test]
fn what_was_stored_is_restored_after_its_trial() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    assert_eq!(state.load(at(0)).unwrap(), None);
    state.store(&saved("1", 1), at(0)).unwrap();
    state.settle(at(30)).unwrap();
    assert_eq!(state.next_settle(), None);
    assert_eq!(open(&dir).load(at(40)).unwrap(), Some(saved("1", 1)));
}

#[test]
fn a_death_within_30_seconds_falls_back_and_keeps_the_newest_denials() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    state.store(&saved("1", 1), at(0)).unwrap();
    state.settle(at(30)).unwrap();
    state.store(&saved("2", 5), at(31)).unwrap();
    state.settle(at(60)).unwrap();
    drop(state);
    assert_eq!(restart(&dir, 61), Some(("1".to_owned(), 5)));
}

#[test]
fn a_state_that_kills_at_the_start_is_used_once() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    for (version, second) in [("1", 0), ("2", 40), ("3", 80)] {
        state.store(&saved(version, 1), at(second)).unwrap();
        state.settle(at(second + 30)).unwrap();
    }
    drop(state);
    assert_eq!(restart(&dir, 200), Some(("3".to_owned(), 1)));
    assert_eq!(restart(&dir, 201), Some(("2".to_owned(), 1)));
    // Nothing proven is left; the bundle still is.
    assert_eq!(restart(&dir, 202), Some((String::new(), 1)));
}

/// Whatever becomes of the configuration: nothing is dialled in plaintext for a fallback.
#[test]
fn what_is_known_as_meshed_is_that_of_all_generations() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    for (version, second) in [("1", 0), ("2", 40), ("1", 80)] {
        let mut saved = saved(version, 1);
        saved.meshed[0].unseen_s += second;
        state.store(&saved, at(second)).unwrap();
        state.settle(at(second + 30)).unwrap();
    }
    drop(state);
    for second in [200, 201, 202, 203] {
        let saved = open(&dir).load(at(second)).unwrap().unwrap();
        let meshed: Vec<_> = saved
            .meshed
            .iter()
            .map(|one| (one.address.as_str(), one.unseen_s))
            .collect();
        assert!(meshed.contains(&("10.0.0.2:80", 100)), "{meshed:?}");
        assert!(meshed.contains(&("10.0.0.1:80", 140)), "{meshed:?}");
    }
}

#[test]
fn an_orderly_stop_ends_the_trial() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    state.store(&saved("1", 1), at(0)).unwrap();
    state.stop().unwrap();
    assert_eq!(restart(&dir, 1), Some(("1".to_owned(), 1)));
}

#[test]
fn the_directory_stays_small_and_private() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("state");
    let mut state = StateDirectory::open(&path, binding("a"), || KeyStorage::Tmpfs).unwrap();
    for round in 0..100 {
        state.store(&saved("1", 1), at(round * 5)).unwrap();
        state.settle(at(round * 5)).unwrap();
        assert!(fs::read_dir(&path).unwrap().count() <= 20);
    }
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o700
    );
    for file in fs::read_dir(&path).unwrap() {
        let file = file.unwrap();
        if file.path().extension() == Some(OsStr::new("state")) {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}

#[test]
fn a_torn_or_changed_file_is_absent_at_every_byte() {
    let bytes = format::encode(&saved("1", 1), &binding("a"), KeyStorage::Tmpfs);
    assert!(format::decode(&bytes, &binding("a")).is_ok());
    for cut in 0..bytes.len() {
        assert!(
            format::decode(&bytes[..cut], &binding("a")).is_err(),
            "cut at {cut}"
        );
        let mut changed = bytes.clone();
        changed[cut] ^= 0x40;
        assert!(
            format::decode(&changed, &binding("a")).is_err(),
            "changed at {cut}"
        );
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(format::decode(&longer, &binding("a")).is_err());
}

#[test]
fn a_poisoned_newest_file_leaves_the_one_before() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    for (version, second) in [("1", 0), ("2", 40)] {
        state.store(&saved(version, 1), at(second)).unwrap();
        state.settle(at(second + 30)).unwrap();
    }
    fs::write(dir.path().join("2.state"), b"poison").unwrap();
    fs::write(dir.path().join("x.state"), b"not a number").unwrap();
    assert_eq!(restart(&dir, 100), Some(("1".to_owned(), 1)));
}

#[test]
fn a_state_of_somebody_else_is_absent() {
    let dir = TempDir::new().unwrap();
    let mut state = open(&dir);
    state.store(&saved("1", 1), at(0)).unwrap();
    state.stop().unwrap();
    let other_anchor = Binding::new("a", &heddle_shell::tls::Anchor::Sha256([8; 32]));
    for other in [binding("b"), other_anchor] {
        let mut state = StateDirectory::open(dir.path(), other, || KeyStorage::Tmpfs).unwrap();
        assert_eq!(state.load(at(1)).unwrap(), None);
    }
}

#[test]
fn the_key_is_left_out_where_it_would_outlive_the_machine() {
    let dir = TempDir::new().unwrap();
    let mut state = StateDirectory::open(dir.path(), binding("a"), || KeyStorage::Never).unwrap();
    state.store(&saved("1", 1), at(0)).unwrap();
    state.stop().unwrap();
    let identity = open(&dir).load(at(1)).unwrap().unwrap().identity.unwrap();
    assert!(identity.key.is_empty());
    assert_eq!(identity.chain, [[1]]);
}
