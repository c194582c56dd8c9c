//! The state directory of a running sidecar, poisoned and torn. Whatever is wrong with a
//! generation, it is as good as absent: without the control plane the sidecar then serves
//! nothing. The real programs, on loopback.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    node::{App, ControlPlane, Place, Sidecar, Workload, free_address},
    process::{PATIENCE, eventually},
};
use serde_json::{Value, json};

/// A caller's sidecar and that of `echo`, whose state is what this is about.
struct Mesh<'a> {
    plane: ControlPlane<'a>,
    _web: Sidecar<'a>,
    echo: Sidecar<'a>,
    _app: App<'a>,
    /// Where the caller dials.
    entry: SocketAddr,
    /// Where the sidecar of `echo` is dialled.
    inbound: SocketAddr,
}

impl<'a> Mesh<'a> {
    async fn start(logs: &'a Path) -> Result<Self> {
        let place = Place::Loopback(logs);
        let plane = ControlPlane::start(place, json!({})).await?;
        plane.apply(&resources("/one"))?;
        let (entry, inbound, application) = (free_address()?, free_address()?, free_address()?);
        let serve = vec![format!("--http={application}")];
        let app = App::start_at(place, "echo", serve).await?;
        let ports = |http: SocketAddr, inbound: Value| {
            json!({
                "traffic": { "mode": "ports" },
                "ports": { "http": http.to_string(), "inbound": inbound },
            })
        };
        let served = json!([{
            "port": 8080,
            "listen": inbound.to_string(),
            "forward": application.to_string(),
            "protocol": "http1",
        }]);
        let workload = Workload::new("echo", "echo", &["app=echo"]);
        let settings = ports(free_address()?, served);
        let mut echo = Sidecar::start(&plane, place, &workload, &settings)?;
        echo.ready().await?;
        echo.registered().await?;
        let workload = Workload::new("web", "web", &[]);
        let mut web = Sidecar::start(&plane, place, &workload, &ports(entry, json!([])))?;
        web.ready().await?;
        Ok(Self {
            plane,
            _web: web,
            echo,
            _app: app,
            entry,
            inbound,
        })
    }

    /// The status of a request through both sidecars.
    fn call(&self, path: &str) -> Result<String> {
        curl(&format!("http://{}{path}", self.entry))
    }

    /// Waits for this status of each path.
    async fn answers(&self, statuses: &[(&str, &str)]) -> Result<()> {
        let waited = eventually(PATIENCE, "the sidecar answers", || async {
            let is = |(path, status): &(&str, &str)| self.call(path).is_ok_and(|s| s == *status);
            statuses.iter().all(is)
        });
        let now = || {
            let all = statuses.iter().map(|(path, _)| (*path, self.call(path)));
            format!("{statuses:?}: {:?}: {}", Vec::from_iter(all), self.log())
        };
        waited.await.with_context(now)
    }

    fn log(&self) -> String {
        self.echo.process().log()
    }

    /// Starts the sidecar of `echo` with exactly these files of state, numbered as they are.
    fn restart_with(&mut self, generations: &[(u64, &[u8])]) -> Result<()> {
        self.echo.kill()?;
        fs::remove_dir_all(self.echo.state())?;
        fs::create_dir(self.echo.state())?;
        for (number, bytes) in generations {
            fs::write(self.echo.state().join(format!("{number}.state")), bytes)?;
        }
        self.echo.restart()
    }

    /// It has started, has nothing, says why, and serves nobody.
    async fn is_closed(&self, why: &str) -> Result<()> {
        eventually(PATIENCE, "the data plane has started", || async {
            self.log().contains("data plane started")
        })
        .await
        .with_context(|| self.log())?;
        let log = self.log();
        ensure!(log.contains(why), "no {why:?} in {log}");
        ensure!(!log.contains("state restored"), "{log}");
        let ready = self.echo.health_page("/health/ready")?;
        ensure!(ready.contains("no certificate yet"), "{ready}");
        ensure!(ready.contains("no configuration yet"), "{ready}");
        let through = self.call("/two")?;
        ensure!(through == "503", "through both: {through}");
        let plain = curl(&format!("http://{}/two", self.inbound))?;
        ensure!(plain == "000" || plain == "403", "in plaintext: {plain}");
        Ok(())
    }

    /// The newest generation.
    fn newest(&self) -> Result<(u64, Vec<u8>)> {
        let mut newest: Option<(u64, PathBuf)> = None;
        for entry in fs::read_dir(self.echo.state())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let number = name.and_then(|name| name.strip_suffix(".state"));
            if let Some(Ok(number)) = number.map(str::parse::<u64>)
                && newest.as_ref().is_none_or(|(other, _)| *other < number)
            {
                newest = Some((number, path));
            }
        }
        let (number, path) = newest.context("a generation")?;
        Ok((number, fs::read(path)?))
    }

    /// Writes over the settings of the sidecar of `echo`.
    fn set(&self, section: &str, field: &str, value: &str) -> Result<String> {
        let file = self.echo.state().with_file_name("settings.json");
        let before = fs::read_to_string(&file)?;
        let mut settings: Value = serde_json::from_str(&before)?;
        settings[section][field] = value.into();
        fs::write(&file, settings.to_string())?;
        Ok(before)
    }

    fn reset(&self, settings: &str) -> Result<()> {
        let file = self.echo.state().with_file_name("settings.json");
        Ok(fs::write(file, settings)?)
    }
}

/// The status of an answer, `000` for none.
fn curl(url: &str) -> Result<String> {
    let mut command = Command::new("curl");
    command.args(["-s", "-o", "/dev/null", "--max-time", "5"]);
    command.args(["-w", "%{http_code}", "-H", "host: echo.test:8080", url]);
    Ok(String::from_utf8(command.output()?.stdout)?)
}

fn find(bytes: &[u8], text: &str) -> Result<usize> {
    let mut windows = bytes.windows(text.len());
    let found = windows.position(|window| window == text.as_bytes());
    found.with_context(|| format!("{text} in the state"))
}

/// Offsets in every part of a generation: magic, version, checksum, whose it is, under which
/// anchor, resources, trust bundle, certificate, key, and evenly between.
fn offsets(state: &[u8]) -> Result<Vec<usize>> {
    const MAGIC: usize = 16;
    let identity = "spiffe://cluster.local/ns/default/sa/echo";
    let bound = find(state, identity)?;
    let mut offsets = vec![0, MAGIC - 1, MAGIC, MAGIC + 31, MAGIC + 32];
    offsets.extend([bound, bound + identity.len() + 4]);
    offsets.push(find(state, "mesh/inbound")?);
    offsets.push(find(state, "type.googleapis.com/")?);
    offsets.extend([state.len() - 150, state.len() - 40, state.len() - 1]);
    offsets.extend((1..8).map(|part| part * state.len() / 8));
    Ok(offsets)
}

#[tokio::test]
async fn a_poisoned_or_torn_state_is_absent_and_nothing_is_served() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let mut mesh = Mesh::start(logs.path()).await?;
    mesh.answers(&[("/one", "403"), ("/two", "200")]).await?;
    mesh.plane.kill()?;
    mesh.echo.stop().await?;
    let (_, good) = mesh.newest()?;

    mesh.restart_with(&[(7, &good)])?;
    mesh.answers(&[("/one", "403"), ("/two", "200")]).await?;
    for cut in [0, 1, 15, 16, 47, 48, good.len() / 2, good.len() - 1] {
        mesh.restart_with(&[(7, &good[..cut])])?;
        let closed = mesh.is_closed("state is not usable").await;
        closed.with_context(|| format!("cut at {cut}"))?;
    }
    for at in offsets(&good)? {
        let mut bad = good.clone();
        bad[at] ^= 1;
        mesh.restart_with(&[(7, &bad)])?;
        let closed = mesh.is_closed("state is not usable").await;
        closed.with_context(|| format!("changed at {at}"))?;
    }
    let longer = [&good[..], b"\0"].concat();
    mesh.restart_with(&[(7, &longer)])?;
    mesh.is_closed("its checksum does not fit").await?;

    // As it was, but somebody else's.
    for (section, field, value, why) in [
        (
            "workload",
            "service_account",
            "other",
            "it belongs to another identity",
        ),
        (
            "control_plane",
            "trust_domain",
            "other.local",
            "it belongs to another identity",
        ),
        (
            "control_plane",
            "trust_anchor",
            &*"0".repeat(64),
            "it was written under another trust anchor",
        ),
    ] {
        let before = mesh.set(section, field, value)?;
        mesh.restart_with(&[(7, &good)])?;
        let closed = mesh.is_closed(why).await;
        closed.with_context(|| format!("another {field}"))?;
        mesh.reset(&before)?;
    }

    // What is wrong with the newest leaves the one before, and what a write left behind nothing.
    mesh.restart_with(&[(7, &good), (8, &good[..good.len() / 2]), (9, b"poison")])?;
    fs::write(mesh.echo.state().join("aside"), &good[..100])?;
    mesh.answers(&[("/one", "403"), ("/two", "200")]).await?;
    mesh.restart_with(&[(7, &good)])?;
    mesh.answers(&[("/one", "403"), ("/two", "200")]).await
}

#[tokio::test]
async fn a_generation_that_the_sidecar_did_not_outlive_is_not_used_again() -> Result<()> {
    const ONE: &[(&str, &str)] = &[("/one", "403"), ("/two", "200")];
    const TWO: &[(&str, &str)] = &[("/one", "200"), ("/two", "403")];
    let logs = tempfile::tempdir()?;
    let mut mesh = Mesh::start(logs.path()).await?;
    mesh.answers(ONE).await?;
    // Told to stop: what it had is proven.
    mesh.echo.stop().await?;
    let (number, one) = mesh.newest()?;
    mesh.echo.restart()?;
    mesh.echo.registered().await?;
    mesh.plane.apply(&resources("/two"))?;
    mesh.answers(TWO).await?;
    mesh.plane.kill()?;
    mesh.echo.stop().await?;
    let (later, two) = mesh.newest()?;
    ensure!(later > number, "{later} after {number}");

    mesh.restart_with(&[(number, &one), (later, &two)])?;
    mesh.answers(TWO).await?;
    // Dead within 30 s of each.
    mesh.echo.kill()?;
    mesh.echo.restart()?;
    mesh.answers(ONE).await?;
    mesh.echo.kill()?;
    mesh.echo.restart()?;
    mesh.is_closed("died within 30 s").await?;

    mesh.plane.restart().await?;
    mesh.answers(TWO).await
}

fn resources(denied: &str) -> String {
    RESOURCES.replace("DENIED", denied)
}

const RESOURCES: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo.test]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: echo}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/echo]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  mtls: {mode: STRICT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  action: DENY
  rules:
    - to: [{operation: {paths: [DENIED]}}]
"#;
