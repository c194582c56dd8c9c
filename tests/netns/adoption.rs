//! Ten pods of a running service get sidecars one by one, while a meshed client keeps calling:
//! no request fails, and once a pod is meshed nothing is said to it in plaintext.
//!
//! Packet rules that come into force in a running pod cut the connections that it has. So a pod is
//! taken out of the service first, or the requests that this costs are retried.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Capture, Family, Lab},
    node::{App, ControlPlane, Load, MeshedPod, Sidecar, Wire, Workload, init},
    process::eventually,
};
use serde_json::{Value, json};

use crate::{
    Case,
    mesh::{PLANE, Service, call, control_plane, peer_authentication, workload},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("adoption::ten_pods_become_meshed_one_by_one".into(), || {
            Box::pin(one_by_one())
        }),
        Case::new("adoption::ten_pods_become_meshed_in_place".into(), || {
            Box::pin(in_place())
        }),
    ];
    for (family, family_name) in [(Family::V4, "v4"), (Family::V6, "v6")] {
        let name = format!("adoption::{family_name}::rules_applied_again_cost_nothing");
        cases.push(Case::new(name, move || Box::pin(reapplied(family))));
    }
    cases
}

async fn one_by_one() -> Result<()> {
    let lab = Lab::new(&PODS)?;
    let town = Town::open(&lab, "").await?;
    let loads = town.loads(&Wire::ALL).await?;
    let mut meshed = Vec::new();
    for name in TEN {
        take_out(&lab, &town.plane, name, &town.client.sidecar).await?;
        for load in &loads {
            load.settles().await.with_context(|| name)?;
        }
        // Nobody calls it until the client knows that it is meshed.
        let capture = lab.pod(name).capture("tcp").await?;
        meshed.push((town.adopt(&lab, name).await?, capture));
        for load in &loads {
            load.answered_by(name, 2).await.with_context(|| name)?;
        }
    }
    town.end(loads, meshed).await
}

/// Pods that serve while it happens. What the cut connections held is sent again, as the route has
/// it; an answer that was lost on its way is noticed by nobody before its time is over.
async fn in_place() -> Result<()> {
    let lab = Lab::new(&PODS)?;
    let town = Town::open(&lab, RETRIES).await?;
    let loads = town.loads(&[Wire::Http, Wire::Grpc]).await?;
    let mut meshed = Vec::new();
    for name in TEN {
        let sidecar = town.adopt(&lab, name).await?;
        // Until the client has heard of it the sidecar takes plaintext, and so it may be for requests
        // that began before.
        for load in &loads {
            load.settles().await.with_context(|| name)?;
        }
        let capture = lab.pod(name).capture("tcp").await?;
        meshed.push((sidecar, capture));
        for load in &loads {
            load.answered_by(name, 2).await.with_context(|| name)?;
        }
    }
    town.end(loads, meshed).await
}

/// A service of ten pods without sidecars and its meshed client.
struct Town<'lab> {
    plane: ControlPlane<'lab>,
    client: MeshedPod<'lab>,
    service: Service<'lab>,
    _apps: Vec<App<'lab>>,
}

impl<'lab> Town<'lab> {
    async fn open(lab: &'lab Lab, more: &str) -> Result<Self> {
        let plane = control_plane(lab).await?;
        let service = Service::of_workloads("shop", 1);
        let entries: String = TEN.map(|name| workload_entry(lab, name)).concat();
        let (entry, mode) = (service.entry(Family::V4), peer_authentication("PERMISSIVE"));
        plane.apply(&format!("{entry}{entries}{mode}{more}"))?;
        let mut apps = Vec::new();
        for name in TEN {
            apps.push(App::start(lab.pod(name), name, &[]).await?);
        }
        let client = workload("client", &[], Family::V4);
        let client = MeshedPod::start(&plane, lab.pod("client"), &client, &[]).await?;
        Ok(Self {
            plane,
            client,
            service,
            _apps: apps,
        })
    }

    /// Loads that each of the ten has answered.
    async fn loads(&self, wires: &[Wire]) -> Result<Vec<Load>> {
        let (from, to) = (self.client.pod, self.service.address(Family::V4));
        let start = |wire: &Wire| Load::start(from.into(), RATE, &call(*wire, to, SECRET));
        let loads: Vec<Load> = wires.iter().map(start).collect::<Result<_>>()?;
        for load in &loads {
            for name in TEN {
                load.answered_by(name, 1)
                    .await
                    .with_context(|| self.client.sidecar.process().log())?;
            }
        }
        Ok(loads)
    }

    /// In the order of a pod: the rules, the sidecar, which registers when it is ready. Then the
    /// client hears of it.
    async fn adopt(&self, lab: &'lab Lab, name: &str) -> Result<Sidecar<'lab>> {
        let pod = lab.pod(name);
        init(pod, "install", &[])?;
        let workload = Workload::new(name, "shop", &["app=shop"]);
        let mut sidecar = Sidecar::start(&self.plane, pod.into(), &workload, &json!({}))?;
        sidecar.ready().await?;
        sidecar.registered().await?;
        let meshed = format!("{}:", pod.v4);
        eventually(KNOWN, "the client knows that the pod is meshed", || {
            let clusters = self.client.sidecar.admin("/clusters").unwrap_or_default();
            let known = is_meshed(&clusters, &meshed);
            async move { known }
        })
        .await?;
        Ok(sidecar)
    }

    /// Nothing has failed, and nothing was said that somebody else could read.
    async fn end(&self, loads: Vec<Load>, meshed: Vec<(Sidecar<'lab>, Capture)>) -> Result<()> {
        for load in loads {
            let report = load.finish().await?;
            report
                .without_failures()
                .with_context(|| self.client.sidecar.process().log())?;
        }
        for (name, (_sidecar, capture)) in TEN.iter().zip(meshed) {
            let bytes = capture.finish().await?;
            ensure!(bytes.len() > 1000, "{name}: nothing was captured");
            let secret = SECRET.as_bytes();
            let is_said = bytes.windows(secret.len()).any(|seen| seen == secret);
            ensure!(!is_said, "plaintext to {name}, which is meshed");
        }
        Ok(())
    }
}

/// The client sends nothing new to it.
async fn take_out(
    lab: &Lab,
    plane: &ControlPlane<'_>,
    name: &str,
    client: &Sidecar<'_>,
) -> Result<()> {
    plane.heddle(&["delete", "WorkloadEntry", name])?;
    let address = format!("{}:", lab.pod(name).v4);
    eventually(KNOWN, "the client knows that the pod is out", || {
        let clusters = client.admin("/clusters").unwrap_or_default();
        let is_out = !clusters.is_empty() && !clusters.contains(&address);
        async move { is_out }
    })
    .await
}

/// Whether the client dials every port of the pod with mutual TLS.
fn is_meshed(clusters: &str, pod: &str) -> bool {
    let Ok(Value::Object(clusters)) = serde_json::from_str(clusters) else {
        return false;
    };
    let endpoints = clusters.values().flat_map(|cluster| {
        let endpoints = cluster["endpoints"].as_array();
        endpoints.into_iter().flatten()
    });
    let mut transports = endpoints
        .filter(|endpoint| {
            let address = endpoint["address"].as_str();
            address.is_some_and(|address| address.starts_with(pod))
        })
        .map(|endpoint| endpoint["transport"].as_str().unwrap_or("Plain"))
        .peekable();
    transports.peek().is_some() && transports.all(|transport| transport != "Plain")
}

/// As its operator wrote it down, before it had a sidecar.
fn workload_entry(lab: &Lab, name: &str) -> String {
    let address = lab.pod(name).v4;
    format!(
        "apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: default}}
spec: {{address: {address}, labels: {{app: shop}}}}
---
"
    )
}

/// What an init container does that runs again, under new connections.
async fn reapplied(family: Family) -> Result<()> {
    let lab = Lab::new(&[PLANE, "client", "shop"])?;
    let plane = control_plane(&lab).await?;
    let service = Service::of_workloads("shop", 1);
    plane.apply(&service.entry(family))?;
    let labels = ["app=shop"];
    let mut pods = Vec::new();
    for (name, labels) in [("shop", &labels[..]), ("client", &[])] {
        let workload = workload(name, labels, family);
        pods.push(MeshedPod::start(&plane, lab.pod(name), &workload, &[]).await?);
    }
    let to = service.address(family);
    let mut loads = Vec::new();
    for wire in [Wire::Tcp, Wire::Http] {
        loads.push(Load::start(
            lab.pod("client").into(),
            50,
            &call(wire, to, "again"),
        )?);
    }
    for _ in 0..10 {
        for pod in &pods {
            init(pod.pod, "install", &["--capture-dns"])?;
            init(pod.pod, "verify", &["--capture-dns"])?;
        }
        for load in &loads {
            load.answers(10)
                .await
                .with_context(|| pods[1].sidecar.process().log())?;
        }
    }
    for load in loads {
        load.finish().await?.without_failures()?;
    }
    Ok(())
}

const PODS: [&str; 12] = [
    PLANE, "client", "s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9",
];

const TEN: [&str; 10] = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"];

const SECRET: &str = "said-to-a-pod-that-becomes-meshed";

/// An answer that the rules cut off never comes: the request is sent again after a second.
const RETRIES: &str = "apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop]
  http:
    - route: [{destination: {host: shop}}]
      retries: {attempts: 3, perTryTimeout: 1s, retryOn: \"connect-failure,reset\"}
";

/// Requests per second and protocol.
const RATE: u32 = 40;

const KNOWN: Duration = Duration::from_secs(10);
