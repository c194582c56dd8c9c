//! The sidecar's program: in a pod as the proxy's user without capabilities, behind the redirect
//! rules; on loopback with a port for each purpose.

use std::{
    fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Once,
    thread,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Clock, ControlPlane, Place, give, merge, program, scratch};
use crate::{
    netns::Family,
    process::{MemoryLimit, PATIENCE, Process, User, eventually},
};

/// Who a sidecar serves, as its token says.
#[derive(Clone, Copy, Debug)]
pub struct Workload<'a> {
    /// Unique in the namespace.
    pub name: &'a str,
    /// Of the identity.
    pub namespace: &'a str,
    /// Of the identity.
    pub service_account: &'a str,
    /// `key=value` each, fixed in the token.
    pub labels: &'a [&'a str],
    /// What it may register besides the address it calls from.
    pub addresses: &'a [&'a str],
    /// How long its token is good.
    pub token_hours: u32,
    /// Which family it reaches the control plane by, and is registered with.
    pub family: Family,
}

impl<'a> Workload<'a> {
    /// A workload of an account, in the namespace `default`.
    pub fn new(name: &'a str, service_account: &'a str, labels: &'a [&'a str]) -> Self {
        Self {
            name,
            namespace: "default",
            service_account,
            labels,
            addresses: &[],
            token_hours: 24,
            family: Family::V4,
        }
    }
}

/// A sidecar with its state. None may use more than [`MEMORY_BYTES_MAX`]: that is looked at whenever
/// one ends, and where the test may make a cgroup, the kernel holds it to that.
#[derive(Debug)]
pub struct Sidecar<'lab> {
    place: Place<'lab>,
    clock: Option<&'lab Clock>,
    /// `/health/*` and `/metrics`, as seen from within its place.
    health: SocketAddr,
    /// The admin interface.
    admin: SocketAddr,
    directory: TempDir,
    process: Process,
    /// After the process, which must be gone before its group can be.
    memory: Option<MemoryLimit>,
}

impl<'lab> Sidecar<'lab> {
    /// Starts one with a fresh token. `settings` are written over the test's own; without any it
    /// intercepts. [`Sidecar::ready`] waits for it.
    pub fn start(
        plane: &ControlPlane<'lab>,
        place: Place<'lab>,
        workload: &Workload<'_>,
        settings: &Value,
    ) -> Result<Self> {
        Self::start_with(plane, place, workload, settings, None)
    }

    /// As [`Sidecar::start`], by another clock.
    pub fn start_with(
        plane: &ControlPlane<'lab>,
        place: Place<'lab>,
        workload: &Workload<'_>,
        settings: &Value,
        clock: Option<&'lab Clock>,
    ) -> Result<Self> {
        let directory = scratch(PROXY)?;
        let file = |name: &str| directory.path().join(name);
        fs::write(file("token"), plane.token(workload)?)?;
        give(&file("token"), PROXY)?;
        fs::copy(plane.root(), file("root.pem")).context("copying the root certificate")?;
        give(&file("root.pem"), PROXY)?;
        let (health, admin) = (place.port(15020)?, place.port(15000)?);
        let mut all = json!({
            "control_plane": {
                "addresses": [plane.address(workload.family).to_string()],
                "trust_anchor": file("root.pem"),
                "token_file": file("token"),
            },
            "workload": {
                "namespace": workload.namespace,
                "service_account": workload.service_account,
                "name": workload.name,
            },
            "state": { "directory": file("state") },
            "admin": { "listen": admin.to_string() },
        });
        if let Place::Loopback(_) = place {
            merge(
                &mut all,
                &json!({ "telemetry": { "listen": health.to_string() } }),
            );
        }
        merge(&mut all, settings);
        fs::write(file("settings.json"), all.to_string())?;
        let memory = memory_limit()?;
        let process = launch(place, directory.path(), clock, memory.as_ref())?;
        Ok(Self {
            place,
            clock,
            health,
            admin,
            directory,
            process,
            memory,
        })
    }

    /// Waits until it takes connections, whether or not it can serve them.
    pub async fn started(&mut self) -> Result<()> {
        self.process.says("\"data plane started\"").await
    }

    /// Waits until it says that it is ready.
    pub async fn ready(&mut self) -> Result<()> {
        let ready = eventually(PATIENCE, "a sidecar is ready", || {
            let ready = self.process.has_ended() || self.place.is_ok(self.health, "/health/ready");
            async move { ready }
        })
        .await;
        ready.with_context(|| self.process.log())?;
        let has_ended = self.process.has_ended();
        ensure!(!has_ended, "it ended: {}", self.process.log());
        Ok(())
    }

    /// Waits until the control plane has confirmed its registration.
    pub async fn registered(&mut self) -> Result<()> {
        self.process.says("\"registered\"").await
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.within_memory()?;
        self.process.kill()
    }

    /// Starts it again on the same state and settings.
    pub fn restart(&mut self) -> Result<()> {
        self.within_memory()?;
        self.process = launch(
            self.place,
            self.directory.path(),
            self.clock,
            self.memory.as_ref(),
        )?;
        Ok(())
    }

    /// Stops it with SIGTERM and waits for its drain; an error unless it ends well.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.signal("TERM")?;
        let status = self.process.ended().await?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        self.within_memory()
    }

    /// The most memory that the process of now has had.
    pub fn peak_bytes(&mut self) -> u64 {
        self.process.peak_bytes()
    }

    /// An error when it used more than [`MEMORY_BYTES_MAX`], or was ended for wanting to.
    fn within_memory(&mut self) -> Result<()> {
        let peak = self.peak_bytes();
        ensure!(
            peak <= MEMORY_BYTES_MAX,
            "a sidecar used {} KiB of memory, more than {}",
            peak >> 10,
            MEMORY_BYTES_MAX >> 10
        );
        let killed = self.memory.as_ref().map_or(Ok(0), MemoryLimit::killed)?;
        ensure!(
            killed == 0,
            "the kernel ended a sidecar that wanted more than {} KiB of memory",
            MEMORY_BYTES_MAX >> 10
        );
        Ok(())
    }

    /// Its metrics in the Prometheus text form.
    pub fn metrics(&self) -> Result<String> {
        self.place.get(self.health, "/metrics")
    }

    /// A page of `/health/`.
    pub fn health_page(&self, path: &str) -> Result<String> {
        self.place.get(self.health, path)
    }

    /// The sum of a metric over all its series that have each of these labels (`key="value"`).
    pub fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        sum(&self.metrics()?, name, labels)
    }

    /// A page of the admin interface.
    pub fn admin(&self, path: &str) -> Result<String> {
        self.place.get(self.admin, path)
    }

    /// Where `/health/*` and `/metrics` are, as seen from within its place.
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// Its state directory.
    pub fn state(&self) -> std::path::PathBuf {
        self.directory.path().join("state")
    }

    /// The process that runs now, or the last one.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

impl Drop for Sidecar<'_> {
    fn drop(&mut self) {
        let within = self.within_memory();
        // A test that has failed already says why.
        if !thread::panicking() {
            assert!(within.is_ok(), "{within:?}");
        }
    }
}

/// `None`, and said so, where the test may not make one.
fn memory_limit() -> Result<Option<MemoryLimit>> {
    static SAID: Once = Once::new();
    let why = match MemoryLimit::new(MEMORY_BYTES_MAX) {
        Ok(limit) => return Ok(Some(limit)),
        Err(why) => why,
    };
    let mut said = Ok(());
    SAID.call_once(|| {
        let what = "sidecars run without a limit, their peaks are looked at";
        said = writeln!(io::stdout(), "{what}: {why:#}");
    });
    Ok(said.map(|()| None)?)
}

fn launch(
    place: Place<'_>,
    directory: &Path,
    clock: Option<&Clock>,
    memory: Option<&MemoryLimit>,
) -> Result<Process> {
    let mut words = memory.map(MemoryLimit::words).unwrap_or_default();
    words.extend(clock.map(Clock::words).unwrap_or_default());
    words.push(program("heddle-proxy")?.display().to_string());
    words.extend(["run".to_owned(), "--config".to_owned()]);
    words.push(directory.join("settings.json").display().to_string());
    let process = place.start("sidecar", PROXY, &words)?;
    if let Some(memory) = memory {
        memory.admit(&process)?;
    }
    Ok(process)
}

/// The sum of the series of `name` that have all `labels`; an error when there is none of the
/// name at all, which a typing error would look like.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let mut series = metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter(|line| line[name.len()..].starts_with(['{', ' ']))
        .peekable();
    ensure!(series.peek().is_some(), "no metric {name} in {metrics}");
    let mut sum = 0.0;
    for line in series.filter(|line| labels.iter().all(|label| line.contains(label))) {
        let value = line.rsplit(' ').next().context("a value")?;
        sum += value.parse::<f64>().with_context(|| line.to_owned())?;
    }
    Ok(sum)
}

/// The user that the redirect rules except.
pub(super) const PROXY: User = User::Unprivileged(1337);

/// The ceiling of every [`Sidecar`].
pub const MEMORY_BYTES_MAX: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_the_series_that_have_the_labels() {
        let metrics = "# TYPE a counter\na_total{b=\"1\",c=\"x\"} 2\na_total{b=\"2\"} 3\na_total_other 9\nplain 4\n";
        let check = |name, labels: &[&str], expected| {
            assert_eq!(sum(metrics, name, labels).ok(), expected, "{name}");
        };
        check("a_total", &[], Some(5.0));
        check("a_total", &["b=\"1\"", "c=\"x\""], Some(2.0));
        check("a_total", &["b=\"3\""], Some(0.0));
        check("plain", &[], Some(4.0));
        check("a", &[], None);
    }
}
