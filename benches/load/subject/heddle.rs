//! Heddle as it ships: a control plane, and two sidecars that got certificates and routes from
//! it. Every policy is on; nothing is tuned for the load.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use super::Running;
use crate::process::{LOAD_CORE, PROXY_CORE, Process, free_address};

const NAMESPACE: &str = "bench";
const HOST: &str = "echo.bench.svc.cluster.local";

/// The sidecar's program.
pub(super) fn proxy() -> PathBuf {
    program("heddle-proxy")
}

pub(super) fn start(backend: SocketAddr, work: &Path) -> anyhow::Result<Running> {
    let plane = ControlPlane::start(work)?;
    let (outbound, inbound) = (free_address()?, free_address()?);
    let server = plane.sidecar(
        "server",
        &json!({ "inbound": [{
            "listen": inbound.to_string(),
            "forward": backend.to_string(),
            "protocol": "http2",
        }]}),
        inbound,
    )?;
    plane.apply(&service(backend))?;
    let client = plane.sidecar("client", &json!({ "http": outbound.to_string() }), outbound)?;
    let running = Running {
        address: outbound,
        authority: format!("{HOST}:80"),
        processes: vec![client, server, plane.process.unmeasured()],
    };
    wait_for_route(&running)?;
    Ok(running)
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
    fn sidecar(&self, name: &str, ports: &Value, address: SocketAddr) -> anyhow::Result<Process> {
        let label = format!("app={name}");
        let token = self.heddle(&["token", name, "--namespace", NAMESPACE, "--label", &label])?;
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
            "workload": { "namespace": NAMESPACE, "service_account": name, "name": name },
            "state": { "directory": self.work.join(format!("{name}-state")) },
            "traffic": { "mode": "ports" },
            "ports": ports,
            "telemetry": { "listen": health.to_string() },
            "admin": { "listen": admin.to_string() },
            "runtime": { "workers": 1 },
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

    fn apply(&self, resource: &Value) -> anyhow::Result<()> {
        let file = self.work.join("resource.json");
        fs::write(&file, resource.to_string())?;
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

/// One meshed endpoint, found by its registration.
fn service(application: SocketAddr) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": "echo", "namespace": NAMESPACE },
        "spec": {
            "hosts": [HOST],
            "ports": [{ "number": 80, "name": "grpc", "protocol": "GRPC", "targetPort": application.port() }],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "workloadSelector": { "labels": { "app": "server" } },
            "subjectAltNames": [format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/server")],
        },
    })
}

/// Until a request comes back: configuration reaches a sidecar when it first dials.
fn wait_for_route(running: &Running) -> anyhow::Result<()> {
    for _ in 0..100 {
        let answer = Command::new("nghttp")
            .args(["--no-dep", "--verbose", "--timeout=2"])
            .arg(format!("--header=:authority: {}", running.authority))
            .arg(format!(
                "http://{}{}",
                running.address,
                crate::generator::METHOD
            ))
            .output()
            .context("starting nghttp (Debian package nghttp2-client)")?;
        if String::from_utf8_lossy(&answer.stdout).contains(":status: 200") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    bail!("no request got through the pair; see the logs")
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
