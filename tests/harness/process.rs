//! Processes that a test starts: killed on drop, their output in a file, their memory bounded.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

/// As whom a process runs.
#[derive(Clone, Copy, Debug)]
pub enum User {
    /// With all rights of the test.
    Root,
    /// With this user id and no capability, now or ever.
    Unprivileged(u32),
}

/// A process of a test, killed on drop.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
    /// The most memory that it was seen to have had.
    peak_bytes: u64,
}

impl Process {
    /// Starts `command`; its output goes to the file `log`.
    pub fn start(what: String, command: &mut Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        Ok(Self {
            what,
            child,
            log,
            peak_bytes: 0,
        })
    }

    /// What it has written.
    pub fn log(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| error.to_string(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has written `text`; an error when it ends without.
    pub async fn says(&mut self, text: &str) -> Result<()> {
        let heard = eventually(PATIENCE, text, || {
            let heard = self.has_ended() || self.log().contains(text);
            async move { heard }
        })
        .await;
        let log = self.log();
        heard.with_context(|| format!("waiting for {}, which wrote: {log}", self.what))?;
        ensure!(log.contains(text), "{} ended and wrote: {log}", self.what);
        Ok(())
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> Result<()> {
        checked(Command::new("kill").args([format!("-{name}"), self.id().to_string()]))
    }

    /// Whether it is gone.
    pub fn has_ended(&mut self) -> bool {
        let has_ended = matches!(self.child.try_wait(), Ok(Some(_)));
        // Nothing of it can be read afterwards, and its number may be another's.
        if !has_ended && let Ok(peak) = self.memory("VmHWM:") {
            self.peak_bytes = self.peak_bytes.max(peak);
        }
        has_ended
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let what = format!("{} ends", self.what);
        eventually(PATIENCE, &what, || {
            let ended = self.has_ended();
            async move { ended }
        })
        .await?;
        self.child.try_wait()?.context("an end that was seen")
    }

    /// Ends it without a word.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// The most memory it ever had resident, in bytes; of one that has ended, when it was last
    /// looked at.
    pub fn peak_bytes(&mut self) -> u64 {
        self.has_ended();
        self.peak_bytes
    }

    /// The same of one that still runs.
    pub fn peak_bytes_now(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .and_then(|value| value.split_whitespace().next());
        let kib = kib.with_context(|| format!("{field} of {}", self.what))?;
        Ok(kib.parse::<u64>()? << 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A memory limit on processes: a cgroup, of the version by which the machine counts memory.
#[derive(Debug)]
pub struct MemoryLimit {
    directory: PathBuf,
    files: Files,
}

/// What a memory group is made of.
#[derive(Clone, Copy, Debug)]
struct Files {
    parent: &'static str,
    limit: &'static str,
    events: &'static str,
}

const V1: Files = Files {
    parent: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    events: "memory.oom_control",
};

const V2: Files = Files {
    parent: "/sys/fs/cgroup",
    limit: "memory.max",
    events: "memory.events",
};

impl MemoryLimit {
    /// Makes a group with this limit.
    pub fn new(bytes: u64) -> Result<Self> {
        let files = if Path::new(V2.parent).join("cgroup.controllers").exists() {
            // Where systemd runs it is on already; elsewhere it is turned on, and stays on, or the
            // kernel refuses.
            let control = Path::new(V2.parent).join("cgroup.subtree_control");
            if !fs::read_to_string(&control)?.contains("memory") {
                fs::write(&control, "+memory").context("having memory counted by cgroup v2")?;
            }
            V2
        } else {
            V1
        };
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let directory = Path::new(files.parent).join(format!("heddle{}-{run}", std::process::id()));
        fs::create_dir(&directory)
            .with_context(|| format!("making the memory group {}", directory.display()))?;
        let group = Self { directory, files };
        fs::write(group.directory.join(files.limit), bytes.to_string())?;
        Ok(group)
    }

    /// What to put before the words of a program that is to start within the group, once
    /// [`MemoryLimit::admit`] has let it in.
    pub fn words(&self) -> Vec<String> {
        let name = self.directory.file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        let wait = format!("until grep -q {name}$ /proc/self/cgroup; do sleep 0.01; done");
        let wait = format!("{wait}; exec \"$@\"");
        ["sh", "-c", &wait, "sh"].map(str::to_owned).into()
    }

    /// Puts a process into the group. The program's own user may not: version 2 wants rights over
    /// the group that it leaves.
    pub fn admit(&self, process: &Process) -> Result<()> {
        let entrance = self.directory.join("cgroup.procs");
        fs::write(entrance, process.id().to_string()).context("entering a memory group")
    }

    /// How many processes of the group were ended because it was too small for them.
    pub fn killed(&self) -> Result<u64> {
        let events = fs::read_to_string(self.directory.join(self.files.events))?;
        let killed = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "));
        let killed = killed.with_context(|| format!("no oom_kill in {events}"))?;
        Ok(killed.trim().parse()?)
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // Fails while processes are inside; drop those first.
        _ = fs::remove_dir(&self.directory);
    }
}

/// Waits for a condition of the outside world, asking again every few milliseconds.
pub async fn eventually<F: Future<Output = bool>>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> Result<()> {
    let asking = async {
        while !condition().await {
            tokio::time::sleep(POLL).await;
        }
    };
    if tokio::time::timeout(patience, asking).await.is_err() {
        bail!("not within {patience:?}: {what}");
    }
    Ok(())
}

/// Runs a command to its end; failure is an error with what it complained about.
pub fn checked(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    if output.status.success() {
        return Ok(());
    }
    bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr))
}

/// Groups of this process, for their names.
static RUNS: AtomicU32 = AtomicU32::new(0);

/// How long to wait for what takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(10);
