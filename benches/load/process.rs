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
    use super::Usage;

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
}
