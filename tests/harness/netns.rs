//! Pods as network namespaces, for tests that need real packet rules.
//!
//! ```text
//! node namespace:  br0 10.77.0.1/16, fd77::1/64 ── veth ── pod namespace: eth0, default routes
//!                                               └─ veth ── pod namespace ...
//! ```
//!
//! The root namespace holds nothing but the namespaces' names: no address, no rule, no bridge.
//! Everything is deleted when the [`Lab`] is dropped; what a killed run left behind is deleted by
//! the next.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::process::{Process, User, checked};

/// What a suite needs of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Requires<'a> {
    /// Programs that must be in `PATH`.
    pub programs: &'a [&'a str],
}

impl Requires<'_> {
    /// `false` after saying what is missing. Under `CI=true` that is a failure, so that no suite
    /// is green because it did not run.
    pub fn check(&self) -> Result<bool> {
        let mut missing = Vec::new();
        if !is_root()? {
            missing.push("root".to_owned());
        }
        missing.extend(
            self.programs
                .iter()
                .filter(|program| !is_in_path(program))
                .map(|program| format!("`{program}`")),
        );
        if missing.is_empty() {
            return Ok(true);
        }
        let missing = missing.join(", ");
        ensure!(
            std::env::var("CI").as_deref() != Ok("true"),
            "this suite needs {missing}"
        );
        writeln!(io::stdout(), "SKIP: this suite needs {missing}")?;
        Ok(false)
    }
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")])
        .any(|directory| directory.join(program).is_file())
}

/// A node and its pods.
#[derive(Debug)]
pub struct Lab {
    /// Where probes of a kubelet come from.
    pub node: Namespace,
    pods: Vec<Pod>,
    /// Logs of the processes.
    directory: TempDir,
}

impl Lab {
    /// Makes a node and a pod of each name.
    pub fn new(pods: &[&str]) -> Result<Self> {
        delete_stale()?;
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{PREFIX}{}-{run}", std::process::id());
        let directory = TempDir::new()?;
        // Of every process: they ask the node, and a sidecar may answer instead.
        let resolv_conf = format!("nameserver {NODE_V4}\noptions timeout:2 attempts:2\n");
        fs::write(directory.path().join(RESOLV_CONF), resolv_conf)?;
        let node = Namespace::new(format!("{prefix}-node"), directory.path())?;
        node.ip_batch(&format!(
            "link set lo up\n\
             link add br0 type bridge\n\
             addr add {NODE_V4}/16 dev br0\n\
             addr add {NODE_V6}/64 dev br0 nodad\n\
             link set br0 up\n"
        ))?;
        let mut lab = Self {
            node,
            pods: Vec::new(),
            directory,
        };
        for (index, name) in pods.iter().enumerate() {
            let number = u16::try_from(index)? + 2;
            let pod = lab.add_pod(&prefix, name, number)?;
            lab.pods.push(pod);
        }
        Ok(lab)
    }

    fn add_pod(&self, prefix: &str, name: &str, number: u16) -> Result<Pod> {
        let namespace = Namespace::new(format!("{prefix}-{name}"), self.directory.path())?;
        let [high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(10, 77, high, low);
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number + 0x100);
        self.node.ip_batch(&format!(
            "link add v{number} type veth peer name eth0 netns {}\n\
             link set v{number} master br0 up\n",
            namespace.name
        ))?;
        // Without nodad IPv6 addresses are tentative for a second and binds fail at random.
        namespace.ip_batch(&format!(
            "link set lo up\n\
             addr add {v4}/16 dev eth0\n\
             addr add {v6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {NODE_V4}\n\
             route add default via {NODE_V6}\n"
        ))?;
        Ok(Pod {
            name: name.to_owned(),
            v4,
            v6,
            namespace,
            directory: self.directory.path().to_owned(),
        })
    }

    /// The pod of this name. Panics on a name that the lab was not made with.
    #[track_caller]
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .expect("a pod the lab was made with")
    }

    /// Directory for the test's own files; it goes with the lab.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// A network namespace with a name, deleted on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    /// The lab's: its `resolv.conf` is bound over that of its processes, and their logs are there.
    directory: PathBuf,
}

impl Namespace {
    fn new(name: String, directory: &Path) -> Result<Self> {
        checked(Command::new("ip").args(["netns", "add", &name]))?;
        let directory = directory.to_owned();
        let namespace = Self { name, directory };
        ensure!(
            !is_root_namespace(&namespace.path())?,
            "{} is the root namespace",
            namespace.name
        );
        Ok(namespace)
    }

    /// The name under which `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that will run inside, as this user. It keeps its process id.
    pub fn command(&self, user: User, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        command.args(["unshare", "--mount", "sh", "-c"]);
        command.arg("mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"");
        command.arg(self.directory.join(RESOLV_CONF));
        // A killed run leaves no process behind, which would keep its namespace alive.
        command.args(["setpriv", "--pdeathsig=KILL"]);
        if let User::Unprivileged(uid) = user {
            command
                .args([format!("--reuid={uid}"), format!("--regid={uid}")])
                .args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"])
                .arg("--no-new-privs");
        }
        command.arg(program);
        command
    }

    /// Starts a process inside; its output goes to a file of its own.
    pub fn spawn<S: AsRef<OsStr>>(&self, what: &str, user: User, words: &[S]) -> Result<Process> {
        let (program, arguments) = words.split_first().context("a program to start")?;
        let log = self.directory.join(format!("{}-{what}.log", self.name));
        let mut command = self.command(user, program);
        let what = format!("{what} in {}", self.name);
        Process::start(what, command.args(arguments), log)
    }

    /// Runs a command inside to its end, at most [`COMMAND_SECONDS_MAX`].
    pub fn run<S: AsRef<OsStr>>(&self, user: User, words: &[S]) -> Result<Output> {
        let mut command = self.command(user, "timeout");
        command.args(["-k", "1", COMMAND_SECONDS_MAX]).args(words);
        command
            .output()
            .with_context(|| format!("running {command:?}"))
    }

    /// As [`Namespace::run`]; its output, and failure is an error.
    pub fn output<S: AsRef<OsStr>>(&self, user: User, words: &[S]) -> Result<String> {
        let output = self.run(user, words)?;
        let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
        ensure!(
            output.status.success(),
            "{words:?} in {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("a piped stdin")?
            .write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip -batch in {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        delete(&self.name);
    }
}

/// Deletes a namespace; the next run deletes what could not be deleted now.
fn delete(name: &str) {
    _ = Command::new("ip")
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

/// Whether this is the test's own namespace or the first process's, where no rule may appear.
fn is_root_namespace(path: &Path) -> Result<bool> {
    let inode = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino()));
    let ours = inode(Path::new("/proc/self/ns/net"))?;
    // Containers may not look at the first process; then it shares our namespace or is unreachable.
    let first = inode(Path::new("/proc/1/ns/net")).unwrap_or(ours);
    let this = inode(path)?;
    Ok(this == ours || this == first)
}

/// Deletes the namespaces of runs whose process is gone.
fn delete_stale() -> Result<()> {
    let Ok(names) = fs::read_dir("/run/netns") else {
        return Ok(());
    };
    for name in names {
        let name = name?.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner
            && owner.parse::<u32>().is_ok()
            && !Path::new("/proc").join(owner).exists()
        {
            delete(&name);
        }
    }
    Ok(())
}

/// A pod: a namespace with an IPv4 and an IPv6 address.
#[derive(Debug)]
pub struct Pod {
    name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Where its processes run.
    pub namespace: Namespace,
    /// Of the lab.
    directory: PathBuf,
}

impl Pod {
    /// What the lab calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address of one family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// As [`Namespace::spawn`].
    pub fn spawn<S: AsRef<OsStr>>(&self, what: &str, user: User, words: &[S]) -> Result<Process> {
        self.namespace.spawn(what, user, words)
    }

    /// Captures what passes the pod's interface into a file, whole packets, until dropped.
    pub async fn capture(&self, filter: &str) -> Result<Capture> {
        let file = self.directory.join(format!("{}.pcap", self.name));
        let path = file.to_string_lossy().into_owned();
        let mut process = self.spawn(
            "tcpdump",
            User::Root,
            &[
                "tcpdump",
                "--immediate-mode",
                "-i",
                "eth0",
                "-U",
                "-s",
                "0",
                "-w",
                &path,
                filter,
            ],
        )?;
        process.says("listening on").await?;
        Ok(Capture { process, file })
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
}

impl Capture {
    /// Ends the capture and returns its bytes, in which a plaintext would be found.
    pub async fn finish(mut self) -> Result<Vec<u8>> {
        self.process.signal("INT")?;
        self.process.ended().await?;
        Ok(fs::read(&self.file)?)
    }
}

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// The node's address, which is every pod's router.
pub const NODE_V4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// As [`NODE_V4`].
pub const NODE_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// Labs of this process, for their names.
static RUNS: AtomicU32 = AtomicU32::new(0);

const RESOLV_CONF: &str = "resolv.conf";
const PREFIX: &str = "heddle";
const COMMAND_SECONDS_MAX: &str = "20";
