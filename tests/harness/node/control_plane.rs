//! The control plane's program and the command line beside it.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Clock, Place, Workload, merge, program, scratch};
use crate::{
    netns::Family,
    process::{PATIENCE, Process, User, eventually},
};

/// A control plane with its data; both go when it is dropped.
#[derive(Debug)]
pub struct ControlPlane<'lab> {
    place: Place<'lab>,
    clock: Option<&'lab Clock>,
    /// gRPC, as seen from within its place.
    grpc: SocketAddr,
    /// Health and metrics, as seen from within its place.
    http: SocketAddr,
    directory: TempDir,
    process: Process,
}

impl<'lab> ControlPlane<'lab> {
    /// Starts one and waits until it serves. `settings` are written over the test's own.
    pub async fn start(place: Place<'lab>, settings: Value) -> Result<Self> {
        Self::start_with(place, settings, None).await
    }

    /// As [`ControlPlane::start`], by another clock.
    pub async fn start_with(
        place: Place<'lab>,
        settings: Value,
        clock: Option<&'lab Clock>,
    ) -> Result<Self> {
        let directory = scratch(User::Root)?;
        let (grpc, http) = (place.port(15012)?, place.port(15014)?);
        let listen = |at: SocketAddr| match place {
            Place::Pod(_) => format!("[::]:{}", at.port()),
            Place::Loopback(_) => at.to_string(),
        };
        let mut all = json!({
            "data_directory": directory.path().join("data"),
            "listen": { "grpc": listen(grpc), "http": listen(http) },
        });
        merge(&mut all, &settings);
        fs::write(directory.path().join("settings.json"), all.to_string())?;
        let mut process = launch(place, directory.path(), clock)?;
        process.says("\"serving\"").await?;
        Ok(Self {
            place,
            clock,
            grpc,
            http,
            directory,
            process,
        })
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()
    }

    /// Starts it again on the same data, ports and settings.
    pub async fn restart(&mut self) -> Result<()> {
        self.process = launch(self.place, self.directory.path(), self.clock)?;
        self.process.says("\"serving\"").await
    }

    /// Stops it with SIGTERM; an error unless it ends well.
    pub async fn stop(&mut self) -> Result<()> {
        self.process.signal("TERM")?;
        let status = self.process.ended().await?;
        ensure!(status.success(), "{status}: {}", self.process.log());
        Ok(())
    }

    /// Runs the command line against it, as its administrator; what it printed.
    pub fn heddle(&self, words: &[&str]) -> Result<String> {
        let heddle = program("heddle")?;
        let credentials = self.data().join("administrator");
        let server = self.grpc.to_string();
        let mut all = self.clock.map(Clock::words).unwrap_or_default();
        all.push(heddle.display().to_string());
        all.extend(["--server".to_owned(), server, "--credentials".to_owned()]);
        all.push(credentials.display().to_string());
        all.extend(words.iter().map(|&word| word.to_owned()));
        self.place.output(User::Root, &all)
    }

    /// Applies resources, as YAML.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        let file = self.directory.path().join("resources.yaml");
        fs::write(&file, yaml)?;
        let file = file.display().to_string();
        self.heddle(&["apply", "-f", &file])
            .map(drop)
            .with_context(|| format!("applying {yaml}"))
    }

    /// A token that proves a workload's identity.
    pub fn token(&self, workload: &Workload<'_>) -> Result<String> {
        let mut words = vec!["token", workload.service_account];
        words.extend(["--namespace", workload.namespace]);
        let hours = workload.token_hours.to_string();
        words.extend(["--hours", &hours]);
        for label in workload.labels {
            words.extend(["--label", label]);
        }
        for address in workload.addresses {
            words.extend(["--address", address]);
        }
        self.heddle(&words).context("minting a token")
    }

    /// Connected proxies, as `heddle proxies -o json` prints them.
    pub fn proxies(&self) -> Result<Vec<Value>> {
        Ok(serde_json::from_str(
            &self.heddle(&["proxies", "-o", "json"])?,
        )?)
    }

    /// Waits until so many proxies are connected.
    pub async fn connected(&self, proxies: usize) -> Result<()> {
        eventually(PATIENCE, "proxies connect", || {
            let connected = self.proxies().map_or(0, |all| all.len());
            async move { connected >= proxies }
        })
        .await
    }

    /// Where gRPC is served for sidecars: of a pod, its address of this family.
    pub fn address(&self, family: Family) -> SocketAddr {
        match self.place {
            Place::Pod(pod) => (pod.address(family), self.grpc.port()).into(),
            Place::Loopback(_) => self.grpc,
        }
    }

    /// Metrics in the Prometheus text form.
    pub fn metrics(&self) -> Result<String> {
        self.place.get(self.http, "/metrics")
    }

    /// Health and metrics over plain HTTP.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// The mesh's root certificate, PEM.
    pub fn root(&self) -> PathBuf {
        self.data().join("root.pem")
    }

    /// Everything it keeps.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The process that runs now, or the last one.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn launch(place: Place<'_>, directory: &Path, clock: Option<&Clock>) -> Result<Process> {
    let mut words = clock.map(Clock::words).unwrap_or_default();
    words.push(program("heddle-control-plane")?.display().to_string());
    words.push("--config".to_owned());
    words.push(directory.join("settings.json").display().to_string());
    place.start("control-plane", User::Root, &words)
}
