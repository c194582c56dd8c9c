//! What the cases share: where peers are, their certificates, and a control plane that tells
//! whether one of them refused anything.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Family, Lab, Pod, Requires},
    node::{ControlPlane, Workload, program},
    process::{PATIENCE, Process, User, checked, eventually},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Whether every program of [`COMMON`], `more` and the Python peers are here; says what is not.
pub(crate) fn are_here(more: &[&str]) -> Result<bool> {
    let peers = [peer("python")?, peer("envoy")?];
    let peers = peers.iter().filter_map(|path| path.to_str());
    let programs: Vec<&str> = COMMON.iter().chain(more).copied().chain(peers).collect();
    Requires {
        programs: &programs,
    }
    .check()
}

/// A program of the Python environment.
pub(crate) fn peer(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("HEDDLE_PEERS") {
        Some(directory) => PathBuf::from(directory),
        // `target` of `target/PROFILE/deps/TEST`.
        None => std::env::current_exe()?
            .ancestors()
            .nth(3)
            .context("a directory of tests")?
            .join("peers"),
    };
    Ok(directory.join("bin").join(name))
}

/// Words that run one of our peer scripts.
pub(crate) fn script(name: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("interop")
        .join(name);
    let words = [peer("python")?, file];
    let words = words.iter().map(|path| path.display().to_string());
    let arguments = arguments.iter().map(|&word| word.to_owned());
    Ok(words.chain(arguments).collect())
}

/// A control plane in the pod `plane`, named as peers dial it, with these resources.
pub(crate) async fn control_plane<'lab>(lab: &'lab Lab, yaml: &str) -> Result<ControlPlane<'lab>> {
    control_plane_with(lab, yaml, json!({})).await
}

/// As [`control_plane`], with certificates as `authority` says.
pub(crate) async fn control_plane_with<'lab>(
    lab: &'lab Lab,
    yaml: &str,
    authority: Value,
) -> Result<ControlPlane<'lab>> {
    let pod = lab.pod("plane");
    let settings = json!({ "listen": { "names": [pod.v4] }, "authority": authority });
    let plane = ControlPlane::start(pod.into(), settings).await?;
    plane.apply(yaml)?;
    Ok(plane)
}

/// Where it listens for ADS.
pub(crate) fn ads(plane: &ControlPlane<'_>) -> SocketAddr {
    plane.address(Family::V4)
}

/// A directory of files for peers, readable by every user.
pub(crate) fn shared() -> Result<TempDir> {
    let directory = TempDir::with_prefix("heddle-interop")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// A certificate as `heddle certs issue` writes it for a peer without a sidecar, below
/// `directory` and owned by `owner`.
pub(crate) fn certificate(
    plane: &ControlPlane<'_>,
    directory: &Path,
    workload: &Workload<'_>,
    owner: u32,
) -> Result<PathBuf> {
    let (out, token) = (directory.join(workload.name), directory.join("token"));
    fs::write(&token, plane.token(workload)?)?;
    let word = |path: &Path| path.display().to_string();
    plane.heddle(&[
        "certs",
        "issue",
        "--out",
        &word(&out),
        "--token",
        &word(&token),
        "--trust-anchor",
        &word(&plane.root()),
    ])?;
    let owner = format!("{owner}:{owner}");
    checked(Command::new("chown").args(["-R", &owner]).arg(&out))?;
    Ok(out)
}

/// Keeps a certificate that [`certificate`] wrote renewed, as the user who reads it.
pub(crate) fn renewal(
    plane: &ControlPlane<'_>,
    pod: &Pod,
    directory: &Path,
    workload: &Workload<'_>,
    user: User,
) -> Result<Process> {
    let (out, token) = (directory.join(workload.name), directory.join("renewal"));
    let token = token.with_extension(workload.name);
    fs::write(&token, plane.token(workload)?)?;
    // Everybody in the test may be the caller of this workload.
    let root = directory.join("root.pem");
    fs::copy(plane.root(), &root)?;
    for file in [&token, &root] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644))?;
    }
    let word = |path: &Path| path.display().to_string();
    let words = [
        word(&program("heddle")?),
        "--server".to_owned(),
        ads(plane).to_string(),
        "certs".to_owned(),
        "issue".to_owned(),
        "--renew".to_owned(),
        "--out".to_owned(),
        word(&out),
        "--token".to_owned(),
        word(&token),
        "--trust-anchor".to_owned(),
        word(&root),
    ];
    pod.spawn("renewal", user, &words)
}

/// Waits for a connected peer of this flavour, and checks that no proxy refused anything, also on
/// streams that have ended.
pub(crate) async fn nothing_was_refused(plane: &ControlPlane<'_>, flavour: &str) -> Result<()> {
    let mut proxies = Vec::new();
    eventually(PATIENCE, "a peer has acknowledged everything", || {
        proxies = plane.proxies().unwrap_or_default();
        let has_all = proxies.iter().any(|proxy| {
            let count = |key: &str| proxy[key].as_u64().unwrap_or_default();
            proxy["flavour"] == flavour
                && count("resourcesSubscribed") > 0
                && count("resourcesAcknowledged") == count("resourcesSubscribed")
        });
        async move { has_all }
    })
    .await
    .with_context(|| format!("{:?}", plane.proxies()))?;
    for proxy in &proxies {
        let rejections = proxy["rejections"].as_array();
        ensure!(rejections.is_some_and(Vec::is_empty), "{proxy}");
    }
    let metrics = plane.metrics()?;
    // A type that nobody refused has no line.
    let mut counted = metrics
        .lines()
        .filter(|line| line.starts_with("heddle_control_plane_xds_rejections_total{"));
    ensure!(counted.all(|line| line.ends_with(" 0")), "{metrics}");
    Ok(())
}

/// A peer that answers a line of JSON with another.
#[derive(Debug)]
pub(crate) struct Conversation {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Conversation {
    /// Starts one in a pod, for at most two minutes.
    pub(crate) fn start(
        pod: &Pod,
        words: &[String],
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let mut command = pod.namespace.command(User::Root, "timeout");
        command.args(["-k", "1", "120"]).args(words);
        command.envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting a peer")?;
        Ok(Self {
            orders: child.stdin.take().context("a piped stdin")?,
            answers: BufReader::new(child.stdout.take().context("a piped stdout")?),
            child,
        })
    }

    /// Says a line and reads the answer.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, order: &impl Serialize) -> Result<T> {
        writeln!(self.orders, "{}", serde_json::to_string(order)?)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the peer said {line:?}"))
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// What a program prints in a pod.
pub(crate) fn output(pod: &Pod, user: User, words: &[&str]) -> Result<String> {
    pod.namespace.output(user, words)
}

/// A number at a path of a JSON text.
pub(crate) fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

/// Debian: iproute2, util-linux, coreutils, nftables, curl.
const COMMON: &[&str] = &["ip", "nsenter", "unshare", "setpriv", "timeout", "curl"];
