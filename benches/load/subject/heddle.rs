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
            processes.push(plane.sidecar("server", &ports, inbound, workers)?);
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
    processes.insert(0, plane.sidecar("client", &ports, outbound, workers)?);
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

    /// A sidecar of service account `name`, listening on `address`.
    fn sidecar(
        &self,
        name: &str,
        ports: &Value,
        address: SocketAddr,
        workers: u8,
    ) -> anyhow::Result<Process> {
        let label = format!("app={name}");
        let namespace = resources::NAMESPACE;
        let token = self.heddle(&["token", name, "--namespace", namespace, "--label", &label])?;
        let token_file = self.work.join(format!("{name}.token"));
        fs::write(&token_file, token)?;
        let (admin, health) = (free_address()?, free_address()?);
        let settings = self.work.join(format!("{name}.json"));
        let text = json!({
            "control_plane": {
                "addresses": [self.address.to_string()],
                "trust_anchor": self.data.join("root.pem"),
                "token_file": token_file,
            },
            "workload": { "namespace": namespace, "service_account": name, "name": name },
            "state": { "directory": self.work.join(format!("{name}-state")) },
            "traffic": { "mode": "ports" },
            "ports": ports,
            "telemetry": { "listen": health.to_string() },
            "admin": { "listen": admin.to_string() },
            "runtime": { "workers": workers },
        });
        fs::write(&settings, text.to_string())?;
        let mut process = Process::start(
            name,
            PROXY_CORE,
            &self.work,
            proxy(),
            [Path::new("run"), Path::new("--config"), &settings],
        )?;
        process.wait_for(address)?;
        Ok(process)
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
