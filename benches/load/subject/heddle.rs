//! Heddle as it ships: a control plane, and sidecars that got certificates and routes from it.
//! Every policy is on, and nothing is tuned for the load.

mod resources;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{Place, Running};
use crate::{
    process::{LOAD_CORE, PROXY_CORE, Process, free_address},
    scenario::Way,
};

/// The sidecar's program.
pub(super) fn proxy() -> PathBuf {
    program("heddle-proxy")
}

/// With `workers` threads in each sidecar.
pub(super) fn start(place: &Place<'_>, workers: u8) -> anyhow::Result<Running> {
    let scenario = place.scenario;
    let plane = ControlPlane::start(place.work)?;
    let outbound = free_address()?;
    let mut processes = Vec::new();
    let port = match scenario.way {
        Way::Hop => place.backend.port(),
        Way::Pair => {
            let inbound = free_address()?;
            let listen = json!({
                "listen": format!("0.0.0.0:{}", inbound.port()),
                "forward": place.backend.to_string(),
                "protocol": resources::protocol(scenario),
            });
            // The sidecars share one network namespace, where the default port is one.
            let http = free_address()?.to_string();
            let ports = json!({ "inbound": [listen], "http": http });
            let sidecar = Sidecar {
                name: "server",
                address: "127.0.0.1",
                ports,
                listen: inbound,
                workers,
            };
            processes.push(sidecar.start(&plane)?);
            inbound.port()
        }
    };
    plane.apply(&resources::all(scenario, port))?;
    let ports = if scenario.is_opaque() {
        let destination = format!("{}:80", resources::HOST);
        json!({
            "outbound": [{ "listen": outbound.to_string(), "destination": destination }],
            "http": free_address()?.to_string(),
        })
    } else {
        json!({ "http": outbound.to_string() })
    };
    let sidecar = Sidecar {
        name: "client",
        // Where no endpoint is written: who calls must not be taken for who answers.
        address: "127.1.0.1",
        ports,
        listen: outbound,
        workers,
    };
    processes.insert(0, sidecar.start(&plane)?);
    processes.push(plane.process.unmeasured());
    Ok(Running {
        address: outbound,
        authority: format!("{}:80", resources::HOST),
        processes,
    })
}

struct ControlPlane {
    process: Process,
    address: SocketAddr,
    data: PathBuf,
    work: PathBuf,
}

impl ControlPlane {
    fn start(work: &Path) -> anyhow::Result<Self> {
        let (address, http) = (free_address()?, free_address()?);
        let data = work.join("data");
        let settings = work.join("control-plane.json");
        let text = json!({
            "data_directory": data,
            "listen": { "grpc": address.to_string(), "http": http.to_string() },
        });
        fs::write(&settings, text.to_string())?;
        let mut process = Process::start(
            "control-plane",
            LOAD_CORE,
            work,
            program("heddle-control-plane"),
            [Path::new("--config"), &settings],
        )?;
        process.wait_for(address)?;
        Ok(Self {
            process,
            address,
            data,
            work: work.to_owned(),
        })
    }

    /// JSON documents, which YAML takes too.
    fn apply(&self, resources: &[Value]) -> anyhow::Result<()> {
        let file = self.work.join("resources.yaml");
        let documents: Vec<_> = resources.iter().map(Value::to_string).collect();
        fs::write(&file, documents.join("\n---\n"))?;
        self.heddle(&["apply", "-f", &file.display().to_string()])
            .map(drop)
    }

    fn heddle(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(program("heddle"))
            .args(["--server", &self.address.to_string(), "--credentials"])
            .arg(self.data.join("administrator"))
            .args(arguments)
            .output()
            .context("starting heddle")?;
        ensure!(
            output.status.success(),
            "heddle {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// One sidecar, and the workload it stands beside.
struct Sidecar {
    /// Service account, label and name of the workload.
    name: &'static str,
    /// Where the workload says it is.
    address: &'static str,
    /// As the settings have them.
    ports: Value,
    /// What is waited for.
    listen: SocketAddr,
    workers: u8,
}

impl Sidecar {
    fn start(self, plane: &ControlPlane) -> anyhow::Result<Process> {
        let (name, namespace) = (self.name, resources::NAMESPACE);
        let label = format!("app={name}");
        let whose = ["token", name, "--namespace", namespace, "--label", &label];
        let token = plane.heddle(&[&whose[..], &["--address", self.address]].concat())?;
        let token_file = plane.work.join(format!("{name}.token"));
        fs::write(&token_file, token)?;
        let (admin, health) = (free_address()?, free_address()?);
        let settings = plane.work.join(format!("{name}.json"));
        let text = json!({
            "control_plane": {
                "addresses": [plane.address.to_string()],
                "trust_anchor": plane.data.join("root.pem"),
                "token_file": token_file,
            },
            "workload": {
                "namespace": namespace,
                "service_account": name,
                "name": name,
                "address": self.address,
            },
            "state": { "directory": plane.work.join(format!("{name}-state")) },
            "traffic": { "mode": "ports" },
            "ports": self.ports,
            "telemetry": { "listen": health.to_string() },
            "admin": { "listen": admin.to_string() },
            "runtime": { "workers": self.workers },
        });
        fs::write(&settings, text.to_string())?;
        let arguments = [Path::new("run"), Path::new("--config"), &settings];
        let mut process = Process::start(name, PROXY_CORE, &plane.work, proxy(), arguments)?;
        process.wait_for(self.listen)?;
        Ok(process)
    }
}

/// Beside the benchmark itself, so that `--profile` chooses for all, unless told otherwise.
fn program(name: &str) -> PathBuf {
    if let Some(directory) = env::var_os("HEDDLE_BIN") {
        return PathBuf::from(directory).join(name);
    }
    env::current_exe()
        .ok()
        .and_then(|own| Some(own.parent()?.join(name)))
        .unwrap_or_else(|| PathBuf::from(name))
}
