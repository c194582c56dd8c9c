//! Certificates between our sidecars and peers of the registries: a wrong one is refused by them,
//! and none that changes costs a call.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::Lab,
    node::{App, Call, Load, MeshedPod, Sidecar, Wire, Workload},
    process::{PATIENCE, User, eventually},
};
use serde_json::json;

use super::{
    envoy,
    grpc::{self, Ended},
    peers,
};

/// The control plane is told that the endpoint is `echo`; its certificate says `impostor`.
#[tokio::test]
async fn an_endpoint_with_the_identity_of_another_is_refused_by_peers() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "impostor", "caller", "envoy"])?;
    let (impostor, envoy) = (lab.pod("impostor"), lab.pod("envoy"));
    let resources = |account: &str| {
        let text = RESOURCES.replace("ADDRESS", &impostor.v4.to_string());
        text.replace("ACCOUNT", account)
    };
    let plane = peers::control_plane(&lab, &resources("echo")).await?;
    // Its registration, which would tell the truth, is of another address.
    let workload = Workload {
        addresses: &[ELSEWHERE],
        ..Workload::new("impostor", "impostor", &[])
    };
    let elsewhere = json!({ "workload": { "address": ELSEWHERE } });
    let meshed = MeshedPod::start_with(&plane, impostor, &workload, &[], &elsewhere, None).await?;
    let words = peers::script("grpc_server.py", &["impostor", "9191"])?;
    let mut server = impostor.spawn("grpc-server", User::Root, &words)?;
    server.says("ready").await?;
    let files = peers::shared()?;
    let mut client = grpc::client(&plane, lab.pod("caller"), files.path(), "caller")?;
    let _envoy = envoy::start(&plane, envoy, files.path()).await?;
    let order = json!({ "method": "Name", "metadata": {}, "calls": 3, "fresh": true });
    let call = Call {
        wire: Wire::Http,
        to: format!("{ECHO}:8080"),
        say: "hello",
    };

    let refused: Ended = client.ask(&order)?;
    ensure!(refused.answers.is_empty(), "{refused:?}");
    let is_unavailable = |why: &String| why.starts_with("UNAVAILABLE");
    ensure!(refused.failures.keys().all(is_unavailable), "{refused:?}");
    let failure = call.from(envoy.into())?;
    let failure = failure.err().context("Envoy let it through")?;
    ensure!(failure.reason.contains("503"), "{failure:?}");
    let stats = envoy::stats(envoy)?;
    let refusals = envoy::stat(&stats, |name| name.ends_with(".ssl.fail_verify_san"));
    ensure!(refusals > 0, "{stats}");
    ensure!(meshed.app.begun()?.is_empty());
    // Without any request there is no such series.
    let taken = || meshed.sidecar.metric("http_requests_total", &[]);
    ensure!(taken().is_err(), "a request got in");

    // It was that and nothing else.
    plane.apply(&resources("impostor"))?;
    eventually(PATIENCE, "gRPC calls it", || {
        let ended = client.ask::<Ended>(&order);
        async move { ended.is_ok_and(|ended| ended.failures.is_empty()) }
    })
    .await?;
    eventually(PATIENCE, "Envoy calls it", || {
        let outcome = call.from(envoy.into());
        async move { outcome.is_ok_and(|answer| answer.is_ok()) }
    })
    .await?;
    ensure!(taken()? > 0.0);
    // Over a connection that stays, so that it can be asked about.
    let order = json!({ "method": "Name", "metadata": {}, "calls": 1 });
    let served: Ended = client.ask(&order)?;
    ensure!(served.failures.is_empty(), "{served:?}");
    peers::nothing_was_refused(&plane, "grpc").await?;
    peers::nothing_was_refused(&plane, "envoy").await
}

/// Every certificate that was seen in some place.
#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    fn file(&mut self, directory: &Path) -> Result<()> {
        let pem = fs::read_to_string(directory.join("certificate.pem"));
        self.0.insert(pem.context("reading a certificate")?);
        Ok(())
    }

    fn sidecar(&mut self, sidecar: &Sidecar<'_>) -> Result<()> {
        let page = sidecar.health_page("/health/detailed")?;
        let page = peers::parsed(&page)?;
        let ends = &page["certificate"]["not_after_ms"];
        ensure!(ends.is_number(), "{page}");
        self.0.insert(ends.to_string());
        Ok(())
    }

    fn changes(&self) -> usize {
        self.0.len().saturating_sub(1)
    }
}

#[tokio::test]
async fn certificates_that_change_under_calls_of_peers_cost_none() -> Result<()> {
    /// Of each certificate.
    const CHANGES: usize = 2;
    const ROUNDS_MAX: usize = 500;
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "ours", "caller", "envoy"])?;
    let (ours, caller, envoy) = (lab.pod("ours"), lab.pod("caller"), lab.pod("envoy"));
    let brief = json!({ "leaf_lifetime": "20s", "issue_interval": "1s", "issue_burst": 20 });
    let resources = ROTATING.replace("ADDRESS", &envoy.v4.to_string());
    let plane = peers::control_plane_with(&lab, &resources, brief).await?;
    let workload = Workload::new("ours", "echo", &["app=echo"]);
    let meshed = MeshedPod::start(&plane, ours, &workload, &[]).await?;
    let words = peers::script("grpc_server.py", &["ours", "9191"])?;
    let mut server = ours.spawn("grpc-server", User::Root, &words)?;
    server.says("ready").await?;
    let files = peers::shared()?;
    let mut client = grpc::client(&plane, caller, files.path(), "caller")?;
    let calling = Workload::new("caller", "caller", &[]);
    let _renewed = peers::renewal(&plane, caller, files.path(), &calling, User::Root)?;
    let _envoy = envoy::start(&plane, envoy, files.path()).await?;
    let workload = envoy::workload();
    let _renewed_too = peers::renewal(&plane, envoy, files.path(), &workload, envoy::ENVOY)?;
    let _app = App::start(envoy, "theirs", &[]).await?;

    let load = |from, to: &str| {
        let to = format!("{to}:8080");
        let wire = Wire::Http;
        Load::start(from, 50, &Call { wire, to, say: "x" })
    };
    let (into, out_of) = (load(envoy.into(), ECHO)?, load(ours.into(), THEIRS)?);
    into.answers(20).await?;
    out_of.answers(20).await?;
    let mut seen = [Seen::default(), Seen::default(), Seen::default()];
    let mut calls = 0;
    for round in 0.. {
        ensure!(
            round < ROUNDS_MAX,
            "{:?}",
            seen.each_ref().map(Seen::changes)
        );
        // Every other time over a connection that is made now.
        let order = json!({
            "method": "Name", "metadata": {}, "calls": 20, "fresh": round % 2 == 0,
        });
        let ended: Ended = client.ask(&order)?;
        ensure!(ended.failures.is_empty(), "round {round}: {ended:?}");
        calls += ended.answers.values().sum::<u64>();
        seen[0].sidecar(&meshed.sidecar)?;
        seen[1].file(&files.path().join("caller"))?;
        seen[2].file(&files.path().join("envoy"))?;
        if seen.iter().all(|seen| seen.changes() >= CHANGES) {
            break;
        }
        // Both have had connections of this round too.
        into.answers(5).await?;
        out_of.answers(5).await?;
    }
    ensure!(calls > 0);
    for load in [into, out_of] {
        load.finish().await?.without_failures()?;
    }
    let stats = envoy::stats(envoy)?;
    let count = |end: &str| envoy::stat(&stats, |name| name.ends_with(end));
    ensure!(count(".update_rejected") == 0, "{stats}");
    ensure!(count(".ssl_context_update_by_sds") >= 2, "{stats}");
    peers::nothing_was_refused(&plane, "grpc").await?;
    peers::nothing_was_refused(&plane, "envoy").await
}

const ECHO: &str = "10.96.0.30";
/// Where nobody is.
const ELSEWHERE: &str = "10.99.0.9";
const THEIRS: &str = "10.96.0.20";

const RESOURCES: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo]
  addresses: [10.96.0.30]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {number: 8080, name: http, protocol: HTTP}
    - {number: 9191, name: grpc, protocol: GRPC}
  workloadSelector: {labels: {app: echo}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/ACCOUNT]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: echo}
spec:
  address: ADDRESS
  labels: {app: echo, security.istio.io/tlsMode: istio}
  serviceAccount: ACCOUNT
"#;

/// A connection of either is used for ten requests, so that handshakes go on.
const ROTATING: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo]
  addresses: [10.96.0.30]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {number: 8080, name: http, protocol: HTTP}
    - {number: 9191, name: grpc, protocol: GRPC}
  workloadSelector: {labels: {app: echo}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/echo]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: theirs}
spec:
  hosts: [theirs]
  addresses: [10.96.0.20]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: envoy}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/envoy]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: theirs}
spec:
  host: theirs
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: envoy}
spec:
  address: ADDRESS
  labels: {app: envoy, security.istio.io/tlsMode: istio}
  serviceAccount: envoy
"#;
