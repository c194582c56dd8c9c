//! The real programs, as a user starts them: a control plane, sidecars, pods that have one.
//!
//! ```text
//! let plane = ControlPlane::start(lab.pod("cp").into(), json!({})).await?;
//! plane.apply("..")?;
//! let web = MeshedPod::start(&plane, lab.pod("web"), &Workload::named("web"), &["--tcp=[::]:7000"]).await?;
//! ```
//!
//! Nothing of the mesh is linked into the test here: programs, settings files, the command line
//! and ports are all there is to it.

mod app;
mod clock;
mod control_plane;
mod pod;
mod sidecar;

use std::{
    ffi::OsStr,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    netns::Pod,
    process::{Process, User},
};

pub use self::{
    app::{APP, Answer, App, Call, Failure, LOST_MAX, Load, Lost, Report, Wire},
    clock::Clock,
    control_plane::ControlPlane,
    pod::{MeshedPod, init},
    sidecar::{MEMORY_BYTES_MAX, Sidecar, Workload},
};

/// A program of the mesh: in the directory that `HEDDLE_BIN` names, or else where cargo put it
/// for the profile of this test (`cargo build --bins`).
pub fn program(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("HEDDLE_BIN") {
        Some(directory) => PathBuf::from(directory),
        None => beside_the_test()?,
    };
    built(directory.join(name))
}

/// A program of the tests, which cargo builds with them.
fn own_program(name: &str) -> Result<PathBuf> {
    built(beside_the_test()?.join(name))
}

fn built(program: PathBuf) -> Result<PathBuf> {
    ensure!(
        program.is_file(),
        "no {}: build it (`make binaries`) or point HEDDLE_BIN at a directory that has it",
        program.display()
    );
    Ok(program)
}

/// `target/PROFILE` of the running test; its own program is in `deps` below that.
fn beside_the_test() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.ancestors().nth(2).context("a directory of tests")?;
    Ok(directory.to_owned())
}

/// Where a program runs.
#[derive(Clone, Copy, Debug)]
pub enum Place<'lab> {
    /// In a pod.
    Pod(&'lab Pod),
    /// In the test's own network, as the test's own user; logs go to this directory.
    Loopback(&'lab Path),
}

impl<'lab> From<&'lab Pod> for Place<'lab> {
    fn from(pod: &'lab Pod) -> Self {
        Self::Pod(pod)
    }
}

impl Place<'_> {
    /// Starts a program; `what` names it and its log.
    fn start<S: AsRef<OsStr>>(self, what: &str, user: User, words: &[S]) -> Result<Process> {
        // A program that is started again gets a log of its own.
        let what = format!("{what}-{}", STARTS.fetch_add(1, Ordering::Relaxed));
        match self {
            Self::Pod(pod) => pod.spawn(&what, user, words),
            Self::Loopback(directory) => {
                let (program, arguments) = words.split_first().context("a program to start")?;
                let log = directory.join(format!("{what}.log"));
                let mut command = Command::new("setpriv");
                command.arg("--pdeathsig=KILL").arg(program).args(arguments);
                Process::start(what, &mut command, log)
            }
        }
    }

    /// What a program prints that ends by itself; failure is an error with its complaint.
    fn output<S: AsRef<OsStr>>(self, user: User, words: &[S]) -> Result<String> {
        match self {
            Self::Pod(pod) => pod.namespace.output(user, words),
            Self::Loopback(_) => {
                let (program, arguments) = words.split_first().context("a program to run")?;
                let output = Command::new(program).args(arguments).output()?;
                let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
                let complaint = String::from_utf8_lossy(&output.stderr);
                ensure!(output.status.success(), "{words:?}: {complaint}");
                Ok(String::from_utf8(output.stdout)?)
            }
        }
    }

    /// The body of an HTTP answer, whatever its status, from within the place.
    fn get(self, address: SocketAddr, path: &str) -> Result<String> {
        let url = format!("http://{address}{path}");
        self.output(User::Root, &["curl", "--silent", "--max-time", "5", &url])
    }

    /// Whether that answer has a status of success.
    fn is_ok(self, address: SocketAddr, path: &str) -> bool {
        let url = format!("http://{address}{path}");
        let words = ["curl", "--silent", "--fail", "--max-time", "5", &url];
        self.output(User::Root, &words).is_ok()
    }

    /// A loopback address in it for a port of the mesh: the usual one in a pod, a free one
    /// where others run beside it.
    fn port(self, usual: u16) -> Result<SocketAddr> {
        match self {
            Self::Pod(_) => Ok((Ipv4Addr::LOCALHOST, usual).into()),
            Self::Loopback(_) => free_address(),
        }
    }
}

/// A loopback address that was free a moment ago, of a port that the kernel gives to nobody who
/// dials: between now and the program that listens there, others do.
pub fn free_address() -> Result<SocketAddr> {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    // Processes of one run begin apart.
    let first = std::process::id().wrapping_mul(97);
    for _ in 0..PORTS {
        let tried = first.wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(PORT_MIN + tried % PORTS)?;
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return Ok(listener.local_addr()?);
        }
    }
    bail!("no port is free from {PORT_MIN} on")
}

/// Below what Linux gives to those who dial (`ip_local_port_range`).
const PORT_MIN: u32 = 20_000;
const PORTS: u32 = 10_000;

/// A directory in memory that a user may write to; keys are stored nowhere else.
fn scratch(owner: User) -> Result<TempDir> {
    let directory = TempDir::with_prefix_in("heddle", "/dev/shm")
        .or_else(|_no_tmpfs| TempDir::with_prefix("heddle"))?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    give(directory.path(), owner)?;
    Ok(directory)
}

/// Gives a file to a user, when the test may.
fn give(path: &Path, owner: User) -> Result<()> {
    if let User::Unprivileged(uid) = owner
        && fs::metadata("/proc/self")?.uid() == 0
    {
        chown(path, Some(uid), Some(uid))?;
    }
    Ok(())
}

/// Writes `more` over `settings`, field by field.
fn merge(settings: &mut Value, more: &Value) {
    match (settings, more) {
        (Value::Object(settings), Value::Object(more)) => {
            for (name, value) in more {
                merge(settings.entry(name).or_insert(Value::Null), value);
            }
        }
        (settings, more) => *settings = more.clone(),
    }
}

static STARTS: AtomicU32 = AtomicU32::new(0);
