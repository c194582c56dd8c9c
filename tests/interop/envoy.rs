//! Envoy with delta ADS from our control plane, beside an application that knows nothing of it:
//! as a client of our sidecar and as a server of it, by mutual TLS with SDS from files.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Lab, Pod},
    node::{App, Call, ControlPlane, MeshedPod, Wire, Workload, init},
    process::{PATIENCE, Process, User, eventually},
};
use serde_json::{Value, json};

use super::peers;

#[tokio::test]
async fn envoy_and_a_sidecar_call_each_other_over_mutual_tls() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "ours", "envoy"])?;
    let (ours, envoy) = (lab.pod("ours"), lab.pod("envoy"));
    let resources = RESOURCES.replace("ENVOY", &envoy.v4.to_string());
    let plane = peers::control_plane(&lab, &resources).await?;
    let workload = Workload::new("ours", "ours", &["app=ours"]);
    let meshed = MeshedPod::start(&plane, ours, &workload, &[]).await?;
    let files = peers::shared()?;
    let _envoy = start(&plane, envoy, files.path()).await?;
    let _app = App::start(envoy, "theirs", &[]).await?;

    for wire in [Wire::Http, Wire::Grpc, Wire::Tcp] {
        for (from, to, app) in [(envoy, OURS, "ours"), (ours, THEIRS, "theirs")] {
            let call = Call {
                wire,
                to: format!("{to}:{}", wire.port()),
                say: "hello",
            };
            let answer = call.from(from.into())?;
            let answer = answer.map_err(|failure| anyhow::anyhow!("{failure:?}"));
            let answer = answer.with_context(|| format!("{wire:?} to {app}"))?;
            ensure!(
                (&*answer.app, &*answer.said) == (app, "hello"),
                "{answer:?}"
            );
        }
    }
    // Both enforce the one rule of each: who may call, told by certificates alone.
    for (from, to) in [(envoy, OURS), (ours, THEIRS)] {
        let url = format!("http://{to}:8080/secret");
        let words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", &url];
        let status = peers::output(from, User::Unprivileged(1000), &words)?;
        ensure!(status == "403", "{url} gives {status}");
    }
    let taken = meshed.sidecar.metric("http_requests_total", &[])?;
    ensure!(taken > 0.0, "the sidecar saw no request");
    let stats = stats(envoy)?;
    ensure!(
        stat(&stats, |name| name.ends_with(".update_rejected")) == 0,
        "{stats}"
    );
    ensure!(
        stat(&stats, |name| name.ends_with("update_success")) > 10,
        "{stats}"
    );
    // Towards our sidecar, and from it.
    let handshakes = |of: &str| {
        stat(&stats, |name| {
            name.starts_with(of) && name.ends_with(".ssl.handshake")
        })
    };
    ensure!(
        handshakes("cluster.ours.") > 0 && handshakes("listener.") > 0,
        "{stats}"
    );
    peers::nothing_was_refused(&plane, "envoy").await
}

/// What Envoy is asked for its counters. Not by users in the mesh: nobody but its own user may.
pub(crate) fn stats(pod: &Pod) -> Result<String> {
    let url = format!("http://127.0.0.1:{ADMIN}/stats?usedonly");
    peers::output(pod, ENVOY, &["curl", "-s", "--fail", &url])
}

/// The sum of the counters that `is_wanted`; absent ones are zero.
pub(crate) fn stat(stats: &str, is_wanted: impl Fn(&str) -> bool) -> u64 {
    let pairs = stats.lines().filter_map(|line| line.split_once(": "));
    pairs
        .filter(|(name, _)| is_wanted(name))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// The rules of our `init`, a certificate and Envoy in place of a sidecar.
pub(crate) async fn start(plane: &ControlPlane<'_>, pod: &Pod, files: &Path) -> Result<Process> {
    init(pod, "install", &[])?;
    let workload = workload();
    let certificates = peers::certificate(plane, files, &workload, ENVOY_UID)?;
    let file = files.join("envoy.json");
    fs::write(&file, bootstrap(plane, &certificates).to_string())?;
    let words = [
        peers::peer("envoy")?.display().to_string(),
        "--disable-hot-restart".to_owned(),
        "--concurrency".to_owned(),
        "1".to_owned(),
        "--config-path".to_owned(),
        file.display().to_string(),
    ];
    let envoy = pod.spawn("envoy", ENVOY, &words)?;
    let ready = format!("http://127.0.0.1:{ADMIN}/ready");
    let words = ["curl", "-s", "--fail", &ready];
    eventually(PATIENCE, "Envoy is ready", || {
        let is_ready = peers::output(pod, ENVOY, &words).is_ok();
        async move { is_ready }
    })
    .await
    .with_context(|| envoy.log())?;
    Ok(envoy)
}

/// Whom Envoy serves.
pub(crate) fn workload() -> Workload<'static> {
    Workload::new("envoy", "envoy", &["app=envoy"])
}

fn bootstrap(plane: &ControlPlane<'_>, certificates: &Path) -> Value {
    let ads = peers::ads(plane);
    let sds = |name: &str| {
        let path = certificates.join(format!("{name}.yaml"));
        let watched = json!({ "path": certificates });
        json!({
            "name": name,
            "sds_config": {
                "resource_api_version": "V3",
                "path_config_source": { "path": path, "watched_directory": watched },
            },
        })
    };
    let control_plane = "spiffe://cluster.local/ns/heddle-system/sa/heddle-control-plane";
    let tls = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
            "alpn_protocols": ["h2"],
            "tls_certificate_sds_secret_configs": [sds("default")],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [
                        { "san_type": "URI", "matcher": { "exact": control_plane } },
                    ],
                },
                "validation_context_sds_secret_config": sds("ROOTCA"),
            },
        },
    });
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    });
    let socket = |address: String, port: u16| json!({ "socket_address": { "address": address, "port_value": port } });
    let endpoint = json!({ "endpoint": { "address": socket(ads.ip().to_string(), ads.port()) } });
    json!({
        "node": {
            "id": "default/envoy/envoy",
            "cluster": "envoy",
            "metadata": { "heddle.certificates": certificates },
        },
        "admin": { "address": socket("127.0.0.1".to_owned(), ADMIN) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "heddle" } }],
            },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "heddle",
            "type": "STATIC",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
            },
            "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": tls },
            "load_assignment": {
                "cluster_name": "heddle",
                "endpoints": [{ "lb_endpoints": [endpoint] }],
            },
        }] },
    })
}

/// The user that our redirect rules except.
const ENVOY_UID: u32 = 1337;
pub(crate) const ENVOY: User = User::Unprivileged(ENVOY_UID);
const ADMIN: u16 = 15000;

const OURS: &str = "10.96.0.10";
const THEIRS: &str = "10.96.0.20";

/// Endpoints of Envoy are written: it has nothing that registers it.
const RESOURCES: &str = r#"
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ours}
spec:
  hosts: [ours]
  addresses: [10.96.0.10]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {number: 8080, name: http, protocol: HTTP}
    - {number: 9090, name: grpc, protocol: GRPC}
    - {number: 7000, name: tcp, protocol: TCP}
  workloadSelector: {labels: {app: ours}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/ours]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: theirs}
spec:
  hosts: [theirs]
  addresses: [10.96.0.20]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
    - {number: 8080, name: http, protocol: HTTP}
    - {number: 9090, name: grpc, protocol: GRPC}
    - {number: 7000, name: tcp, protocol: TCP}
  workloadSelector: {labels: {app: envoy}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/envoy]
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: envoy}
spec:
  address: ENVOY
  labels: {app: envoy, security.istio.io/tlsMode: istio}
  serviceAccount: envoy
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ours}
spec:
  selector: {matchLabels: {app: ours}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/envoy]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: theirs}
spec:
  selector: {matchLabels: {app: envoy}}
  action: ALLOW
  rules:
    - from: [{source: {principals: [cluster.local/ns/default/sa/ours]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret}
spec:
  action: DENY
  rules:
    - to: [{operation: {paths: [/secret], ports: ["8080"]}}]
"#;
