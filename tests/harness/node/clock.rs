//! A wall clock that a test can move, for programs that it starts: libfaketime reads the offset
//! from a file at each question. Timers and the machine's own clock are left alone.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The clock of every program started with it.
#[derive(Debug)]
pub struct Clock {
    directory: TempDir,
    library: PathBuf,
}

impl Clock {
    /// A clock that tells the time.
    pub fn new() -> Result<Self> {
        let library = LIBRARIES.iter().map(Path::new).find(|path| path.is_file());
        let clock = Self {
            directory: TempDir::with_prefix("heddle-clock")?,
            library: library
                .context("libfaketime (Debian: faketime)")?
                .to_owned(),
        };
        // For the sidecar's user.
        let readable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(clock.directory.path(), readable)?;
        fs::write(clock.started(), "")?;
        fs::set_permissions(clock.started(), fs::Permissions::from_mode(0o666))?;
        clock.jump("+0")?;
        Ok(clock)
    }

    /// Sets the offset, such as `+25h`.
    pub fn jump(&self, offset: &str) -> Result<()> {
        // Moved into place: a half-written offset would be another time.
        let aside = self.directory.path().join("aside");
        fs::write(&aside, offset)?;
        Ok(fs::rename(aside, self.file())?)
    }

    /// Words to write in front of a program's name.
    pub(super) fn words(&self) -> Vec<String> {
        // The process id is the same after it.
        let note = format!("echo $$ >> {}; exec \"$@\"", self.started().display());
        vec![
            "sh".to_owned(),
            "-c".to_owned(),
            note,
            "sh".to_owned(),
            "env".to_owned(),
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file().display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            // Only the wall clock: timers go on as they were.
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }

    /// The process ids of all programs that were started by this clock.
    fn started(&self) -> PathBuf {
        self.directory.path().join("started")
    }
}

impl Drop for Clock {
    /// Killed programs leave behind what libfaketime shares with their children.
    fn drop(&mut self) {
        let started = fs::read_to_string(self.started()).unwrap_or_default();
        for id in started.lines() {
            for name in [
                format!("faketime_shm_{id}"),
                format!("sem.faketime_sem_{id}"),
            ] {
                // Gone, if the program ended by itself.
                _ = fs::remove_file(Path::new("/dev/shm").join(name));
            }
        }
    }
}

/// Of Debian, by architecture.
const LIBRARIES: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];
