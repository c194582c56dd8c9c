//! Proxyless gRPC (C-core through Python): a client by `xds:///`, its mutual TLS by the
//! certificate provider `file_watcher`, into our sidecars.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Lab, Pod},
    node::{ControlPlane, MeshedPod, Workload},
    process::{PATIENCE, Process, User, eventually},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::peers::{self, Conversation};

/// What became of an order of `grpc_client.py`.
#[derive(Debug, Deserialize)]
pub(crate) struct Ended {
    pub(crate) answers: BTreeMap<String, u64>,
    pub(crate) failures: BTreeMap<String, u64>,
}

impl Ended {
    /// Per cent of answers from `name`; failures are an error.
    fn percent(&self, name: &str) -> Result<f64> {
        ensure!(self.failures.is_empty(), "{self:?}");
        let all: u64 = self.answers.values().sum();
        ensure!(all > 0, "nothing was answered");
        let of = self.answers.get(name).copied().unwrap_or_default();
        Ok(100.0 * of as f64 / all as f64)
    }
}

#[tokio::test]
async fn grpc_follows_splits_headers_and_retries_over_mutual_tls() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "v1", "v2", "caller"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let _v1 = server(&plane, lab.pod("v1"), "version=v1").await?;
    let _v2 = server(&plane, lab.pod("v2"), "version=v2").await?;
    let files = peers::shared()?;
    let mut client = client(&plane, lab.pod("caller"), files.path(), "caller")?;
    let mut call = |method: &str, metadata: Value, calls: u32| -> Result<Ended> {
        client.ask(&json!({ "method": method, "metadata": metadata, "calls": calls }))
    };

    let split = call("Name", json!({}), 2000)?;
    let share = split.percent("v2")?;
    ensure!((6.5..13.5).contains(&share), "10 % is {share} %");
    let canary = call("Name", json!({ "x-canary": "yes" }), 50)?;
    ensure!(canary.percent("v2")? == 100.0, "{canary:?}");
    let retried = call("Flaky", json!({ "x-id": "a", "x-failures": "3" }), 1)?;
    ensure!(retried.answers.contains_key("4"), "{retried:?}");
    let given_up = call("Flaky", json!({ "x-id": "b", "x-failures": "4" }), 1)?;
    let last = given_up.failures.keys().next().context("a failure")?;
    ensure!(last == "UNAVAILABLE: asked to fail", "{given_up:?}");

    plane.heddle(&["traffic", "set", "echo", "v1=50", "v2=50"])?;
    eventually(PATIENCE, "the new split is used", || {
        let share = call("Name", json!({}), 100).and_then(|ended| ended.percent("v2"));
        async move { share.is_ok_and(|share| share > 30.0) }
    })
    .await?;
    let split = call("Name", json!({}), 2000)?;
    let share = split.percent("v2")?;
    ensure!((44.0..56.0).contains(&share), "50 % is {share} %");
    peers::nothing_was_refused(&plane, "grpc").await
}

#[tokio::test]
async fn grpc_is_known_by_its_certificate() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "v1", "caller"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let _v1 = server(&plane, lab.pod("v1"), "version=v1").await?;
    let files = peers::shared()?;
    let order =
        json!({ "method": "Flaky", "metadata": { "x-id": "a", "x-failures": "0" }, "calls": 1 });

    // Its certificate is a good one, of somebody whom no rule names.
    let mut stranger = client(&plane, lab.pod("caller"), files.path(), "stranger")?;
    let refused: Ended = stranger.ask(&order)?;
    let why = refused.failures.keys().next().context("a failure")?;
    ensure!(why.starts_with("PERMISSION_DENIED"), "{refused:?}");

    let mut caller = client(&plane, lab.pod("caller"), files.path(), "caller")?;
    let served: Ended = caller.ask(&order)?;
    ensure!(served.failures.is_empty(), "{served:?}");

    peers::nothing_was_refused(&plane, "grpc").await
}

/// A sidecar and, behind it, a gRPC server of the registry.
async fn server<'lab>(
    plane: &ControlPlane<'lab>,
    pod: &'lab Pod,
    version: &str,
) -> Result<(MeshedPod<'lab>, Process)> {
    let labels = ["app=echo", version];
    let workload = Workload::new(pod.name(), "echo", &labels);
    let meshed = MeshedPod::start(plane, pod, &workload, &[]).await?;
    let words = peers::script("grpc_server.py", &[pod.name(), "9191"])?;
    let mut server = pod.spawn("grpc-server", User::Root, &words)?;
    server.says("ready").await?;
    Ok((meshed, server))
}

/// A gRPC client with a certificate of `account`, for the control plane and for endpoints.
pub(crate) fn client(
    plane: &ControlPlane<'_>,
    pod: &Pod,
    files: &Path,
    account: &str,
) -> Result<Conversation> {
    let workload = Workload::new(account, account, &[]);
    let directory = peers::certificate(plane, files, &workload, 0)?;
    let paths = json!({
        "certificate_file": directory.join("certificate.pem"),
        "private_key_file": directory.join("key.pem"),
        "ca_certificate_file": directory.join("roots.pem"),
        "refresh_interval": "1s",
    });
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": peers::ads(plane).to_string(),
            "channel_creds": [{ "type": "tls", "config": paths }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": format!("default/{account}/grpc") },
        "certificate_providers": {
            "default": { "plugin_name": "file_watcher", "config": paths },
        },
    });
    let file = files.join(format!("{account}.json"));
    fs::write(&file, bootstrap.to_string())?;
    let words = peers::script("grpc_client.py", &[TARGET])?;
    Conversation::start(pod, &words, &[("GRPC_XDS_BOOTSTRAP", &file)])
}

const TARGET: &str = "xds:///echo.default.svc.cluster.local:9191";

const RESOURCES: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: echo}
spec:
  hosts: [echo]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 9191, name: grpc, protocol: GRPC}]
  workloadSelector: {labels: {app: echo}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/echo]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec:
  host: echo
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
    - name: canary
      match: [{headers: {x-canary: {exact: "yes"}}}]
      route: [{destination: {host: echo, subset: v2}}]
    - name: flaky
      match: [{uri: {prefix: /interop.Echo/Flaky}}]
      route: [{destination: {host: echo, subset: v1}}]
      retries: {attempts: 3, retryOn: unavailable}
    - name: everything
      route:
        - {destination: {host: echo, subset: v1}, weight: 90}
        - {destination: {host: echo, subset: v2}, weight: 10}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo}
spec:
  selector: {matchLabels: {app: echo}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/caller]}}]
"#;
