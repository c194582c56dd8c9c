//! The state directory: what lets a sidecar serve after a restart while the control plane is
//! away (`ARCHITECTURE.md`, invariants 5 and 10).
//!
//! One file per generation, written aside, synced and renamed. A file that is torn, changed,
//! or of another identity, trust domain, anchor or format is as good as absent. A generation is
//! on trial for 30 s from its activation; one whose trial did not end is not used again, so a
//! configuration that kills the sidecar does so once.
//!
//! ```text
//! <n>.state      magic, SHA-256 of the rest, Saved
//! <n>.trial      exists from the activation of n until it has lived for 30 s
//! ```

mod format;
pub mod keeper;
mod tmpfs;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tracing::{info, warn};

pub use format::{Binding, Saved, SavedIdentity, SavedMeshed, SavedResource};
pub use tmpfs::{KeyStorage, key_storage};

/// How long a generation must live before it is used again after a death.
pub const TRIAL: Duration = Duration::from_secs(30);

/// The directory, opened for one identity.
#[derive(Debug)]
pub struct StateDirectory {
    path: PathBuf,
    binding: Binding,
    keys: KeyStorage,
    /// Highest number used so far.
    newest: u64,
    /// Activated by this process and still on trial.
    on_trial: BTreeMap<u64, Instant>,
}

impl StateDirectory {
    /// Creates the directory if there is none; only its owner may enter. `keys` is asked once it
    /// exists.
    ///
    /// # Errors
    /// When it cannot be created or listed.
    pub fn open(
        path: &Path,
        binding: Binding,
        keys: impl FnOnce() -> KeyStorage,
    ) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)?;
        let mut directory = Self {
            path: path.to_owned(),
            binding,
            keys: keys(),
            newest: 0,
            on_trial: BTreeMap::new(),
        };
        let numbers = directory.numbers(STATE)?;
        directory.newest = numbers
            .union(&directory.numbers(TRIAL_MARK)?)
            .max()
            .copied()
            .unwrap_or(0);
        Ok(directory)
    }

    /// The newest generation that may be used; it is then on trial. The trust bundle is the one
    /// of the highest revision in any readable generation, and what is known as meshed is that of
    /// all of them: a fallback forgets neither a denial nor who is not to be dialled in plaintext.
    ///
    /// # Errors
    /// When the directory cannot be read, or a trial cannot be recorded.
    pub fn load(&mut self, now: Instant) -> io::Result<Option<Saved>> {
        let unproven = self.numbers(TRIAL_MARK)?;
        let mut chosen: Option<(u64, Saved)> = None;
        let mut newest_bundle: Option<heddle_proto::v1::TrustBundle> = None;
        let mut meshed: BTreeMap<String, u64> = BTreeMap::new();
        for number in self.numbers(STATE)?.into_iter().rev() {
            let bytes = fs::read(self.file(number, STATE))?;
            let saved = match format::decode(&bytes, &self.binding) {
                Ok(saved) => saved,
                Err(why) => {
                    warn!(generation = number, %why, "state is not usable; it is taken as absent");
                    continue;
                }
            };
            let revision = |bundle: &Option<heddle_proto::v1::TrustBundle>| {
                bundle.as_ref().map(|bundle| bundle.revision)
            };
            for SavedMeshed { address, unseen_s } in &saved.meshed {
                meshed.entry(address.clone()).or_insert(*unseen_s);
            }
            if revision(&saved.trust_bundle) > revision(&newest_bundle) {
                newest_bundle.clone_from(&saved.trust_bundle);
            }
            if unproven.contains(&number) {
                warn!(
                    generation = number,
                    "the sidecar died within 30 s of activating this state"
                );
            } else if chosen.is_none() {
                chosen = Some((number, saved));
            }
        }
        let meshed = meshed.into_iter();
        let meshed = meshed.map(|(address, unseen_s)| SavedMeshed { address, unseen_s });
        let meshed = meshed.collect();
        let Some((number, mut saved)) = chosen else {
            // Denials outlive the configuration they came with.
            return Ok(newest_bundle.map(|bundle| Saved {
                trust_bundle: Some(bundle),
                meshed,
                ..Saved::default()
            }));
        };
        saved.trust_bundle = newest_bundle;
        saved.meshed = meshed;
        self.begin_trial(number, now)?;
        info!(
            generation = number,
            resources = saved.resources.len(),
            "state restored"
        );
        Ok(Some(saved))
    }

    /// Writes the next generation and puts it on trial. The private key is left out unless the
    /// directory may hold it.
    ///
    /// # Errors
    /// When it cannot be written; older generations are as they were.
    pub fn store(&mut self, saved: &Saved, now: Instant) -> io::Result<()> {
        let bytes = format::encode(saved, &self.binding, self.keys);
        let number = self.newest + 1;
        let aside = self.path.join("aside");
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        // The mark first: a generation never looks proven before its trial.
        self.begin_trial(number, now)?;
        fs::rename(&aside, self.file(number, STATE))?;
        self.sync()?;
        self.newest = number;
        self.prune()
    }

    /// Ends the trials of generations that have lived long enough.
    ///
    /// # Errors
    /// When a mark cannot be removed.
    pub fn settle(&mut self, now: Instant) -> io::Result<()> {
        let proven: Vec<u64> = self
            .on_trial
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= TRIAL)
            .map(|(number, _)| *number)
            .collect();
        self.end_trials(&proven)
    }

    /// Ends all trials of this process: it stops because it was told to.
    ///
    /// # Errors
    /// When a mark cannot be removed.
    pub fn stop(&mut self) -> io::Result<()> {
        let numbers: Vec<u64> = self.on_trial.keys().copied().collect();
        self.end_trials(&numbers)
    }

    /// When the next trial ends.
    pub fn next_settle(&self) -> Option<Instant> {
        self.on_trial.values().min().map(|since| *since + TRIAL)
    }

    /// Whether the private key is stored.
    pub fn keys(&self) -> KeyStorage {
        self.keys
    }

    fn begin_trial(&mut self, number: u64, now: Instant) -> io::Result<()> {
        File::create(self.file(number, TRIAL_MARK))?;
        self.sync()?;
        self.on_trial.insert(number, now);
        Ok(())
    }

    fn end_trials(&mut self, numbers: &[u64]) -> io::Result<()> {
        for number in numbers {
            remove(&self.file(*number, TRIAL_MARK))?;
            self.on_trial.remove(number);
        }
        if numbers.is_empty() {
            Ok(())
        } else {
            self.prune()
        }
    }

    /// Keeps the newest generation and the two newest proven ones; of those on trial all since,
    /// because any of them may yet become the newest proven one.
    fn prune(&self) -> io::Result<()> {
        let marks = self.numbers(TRIAL_MARK)?;
        let states = self.numbers(STATE)?;
        let mut proven = states.iter().rev().filter(|number| !marks.contains(number));
        let proven = proven.nth(PROVEN_KEPT - 1).copied();
        let oldest_kept = proven.unwrap_or(0);
        for number in states.union(&marks) {
            let is_dead_trial = marks.contains(number)
                && !self.on_trial.contains_key(number)
                && *number < self.newest;
            if *number < oldest_kept || is_dead_trial {
                remove(&self.file(*number, STATE))?;
                remove(&self.file(*number, TRIAL_MARK))?;
            }
        }
        Ok(())
    }

    /// Numbers of the files with this extension.
    fn numbers(&self, extension: &str) -> io::Result<BTreeSet<u64>> {
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new(extension)) {
                let number = path.file_stem().and_then(OsStr::to_str);
                numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
            }
        }
        Ok(numbers)
    }

    fn file(&self, number: u64, extension: &str) -> PathBuf {
        self.path.join(format!("{number}.{extension}"))
    }

    /// Makes renames and marks durable.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

const STATE: &str = "state";
const TRIAL_MARK: &str = "trial";
/// Two, so that the death of one during its next trial leaves another.
const PROVEN_KEPT: usize = 2;

#[cfg(test)]
mod tests;
