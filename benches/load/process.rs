//! Processes of a run: pinned to a core, measured by the kernel's own accounting, ended on drop.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};

/// The generator and the backend run here.
pub(crate) const LOAD_CORE: &str = "0";
/// The proxies under test run here.
pub(crate) const PROXY_CORE: &str = "1";

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    /// Whether its CPU time counts as the subject's.
    pub(crate) is_measured: bool,
}

/// What the kernel has accounted to a process so far.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    /// Time on a CPU, in nanoseconds, by thread: what a thread has used goes when it ends.
    threads: BTreeMap<OsString, u64>,
    /// Resident memory in KiB.
    pub(crate) resident_kib: u64,
}

impl Process {
    /// Starts `program` pinned to `core`; its output goes to `<log>/<name>.log`.
    pub(crate) fn start<A: AsRef<OsStr>>(
        name: &str,
        core: &str,
        log: &Path,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Self> {
        let output = File::create(log.join(format!("{name}.log")))?;
        let child = Command::new("taskset")
            .args(["--cpu-list", core])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            is_measured: core == PROXY_CORE,
        })
    }

    /// Leaves the process out of the subject's figures: a control plane serves many sidecars.
    #[must_use]
    pub(crate) fn unmeasured(mut self) -> Self {
        self.is_measured = false;
        self
    }

    pub(crate) fn usage(&self) -> anyhow::Result<Usage> {
        let pid = self.child.id();
        let mut threads = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?;
            // A thread may end between the listing and the reading.
            let Ok(accounted) = fs::read_to_string(task.path().join("schedstat")) else {
                continue;
            };
            let ran = accounted.split(' ').next().context("schedstat is empty")?;
            threads.insert(task.file_name(), ran.parse()?);
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let resident_kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.split_whitespace().next())
            .context("the process has no memory")?
            .parse()?;
        Ok(Usage {
            threads,
            resident_kib,
        })
    }

    /// Waits until somebody listens on `address`.
    pub(crate) fn wait_for(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        for _ in 0..300 {
            if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at its start: {status}; see its log", self.name);
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("{} does not listen on {address}; see its log", self.name)
    }
}

impl Usage {
    /// Time on a CPU since `before`, in nanoseconds. Of a thread that has ended since then, what it
    /// used in between is missing.
    pub(crate) fn cpu_ns_since(&self, before: &Self) -> u64 {
        let used = |(thread, now): (&OsString, &u64)| {
            let then = before.threads.get(thread).copied().unwrap_or_default();
            now.saturating_sub(then)
        };
        self.threads.iter().map(used).sum()
    }
}

/// What the kernel has accounted to a core so far, in its ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    /// All of it.
    total: u64,
    /// Nothing to do, or waiting for a disk.
    idle: u64,
}

impl Core {
    /// The proxies'.
    pub(crate) fn of_proxies() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        Self::parse(&stat, PROXY_CORE).context("the kernel accounts no time to the proxies' core")
    }

    /// Of `/proc/stat`: user nice system idle iowait irq softirq steal, then what is in user.
    fn parse(stat: &str, core: &str) -> Option<Self> {
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name))?;
        let times: Option<Vec<u64>> = line
            .split_whitespace()
            .take(8)
            .map(|time| time.parse().ok())
            .collect();
        let times = times?;
        Some(Self {
            total: times.iter().sum(),
            idle: times.get(3)? + times.get(4)?,
        })
    }

    /// The share of the time since `before` in which the core did what is not in `own_ns`.
    #[expect(clippy::cast_precision_loss, reason = "a share for people to read")]
    pub(crate) fn others_since(&self, before: &Self, own_ns: u64) -> f64 {
        let total = self.total.saturating_sub(before.total).max(1) as f64;
        let idle = self.idle.saturating_sub(before.idle) as f64;
        let own = own_ns as f64 / TICK_NS;
        ((total - idle - own) / total).max(0.0)
    }
}

/// `USER_HZ` is 100 wherever we run.
const TICK_NS: f64 = 1e7;

impl Drop for Process {
    fn drop(&mut self) {
        // Measured processes have nothing to lose; an error means that it has already ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A loopback address that was free a moment ago.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::{Core, Usage};

    type Threads<'a> = &'a [(&'a str, u64)];

    /// Time used between two readings.
    #[track_caller]
    fn check(before: Threads<'_>, after: Threads<'_>, expected: u64) {
        let usage = |threads: Threads<'_>| Usage {
            threads: threads
                .iter()
                .map(|(thread, ns)| ((*thread).into(), *ns))
                .collect(),
            resident_kib: 0,
        };
        assert_eq!(usage(after).cpu_ns_since(&usage(before)), expected);
    }

    #[test]
    fn threads_that_come_and_go_do_not_turn_the_account_over() {
        check(&[("1", 5)], &[("1", 7)], 2);
        check(&[("1", 5)], &[("1", 7), ("2", 3)], 5);
        check(&[("1", 5), ("2", 1_000)], &[("1", 7)], 2);
    }

    #[test]
    fn what_others_did_is_what_is_neither_idle_nor_ours() {
        let read = |line: &str| Core::parse(line, "1").expect("it is there");
        let before = read("cpu  9 9\ncpu0 1 2\ncpu1 100 0 50 800 50 0 0 0 7 7\n");
        let after = read("cpu1 150 0 60 820 50 5 5 10 7 7\n");
        // 100 ticks, 20 of them idle, 70 ours.
        let others = after.others_since(&before, 700_000_000);
        assert!((others - 0.10).abs() < 1e-9, "{others}");
        assert_eq!(Core::parse("cpu0 1 2 3 4 5 6 7 8\n", "1"), None);
    }
}
