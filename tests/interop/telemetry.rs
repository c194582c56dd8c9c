//! Prometheus scrapes both programs, and an OTLP receiver gets the spans of both sidecars.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Lab, Pod},
    node::{ControlPlane, MeshedPod, Workload},
    process::{PATIENCE, Process, User, eventually},
};
use serde_json::{Value, json};

use super::peers;

#[tokio::test]
async fn prometheus_scrapes_both_programs_and_finds_nothing_to_criticise() -> Result<()> {
    if !peers::are_here(&["prometheus", "promtool"])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "caller", "server", "prometheus"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let (caller, server) = pair(&plane, &lab, &json!({})).await?;
    request(caller.pod, Some(TRACEPARENT))?;
    for metrics in [
        plane.metrics()?,
        caller.sidecar.metrics()?,
        server.sidecar.metrics()?,
    ] {
        lint(&metrics)?;
    }

    let files = peers::shared()?;
    let target = |pod: &str, port: u16| format!("{}:{port}", lab.pod(pod).v4);
    let targets = [
        target("plane", plane.http().port()),
        target("caller", 15020),
        target("server", 15020),
    ];
    let config = json!({
        "global": { "scrape_interval": "1s" },
        "scrape_configs": [{ "job_name": "heddle", "static_configs": [{ "targets": targets }] }],
    });
    let file = files.path().join("prometheus.yml");
    fs::write(&file, config.to_string())?;
    let words = [
        "prometheus".to_owned(),
        format!("--config.file={}", file.display()),
        format!(
            "--storage.tsdb.path={}",
            files.path().join("data").display()
        ),
        "--web.listen-address=127.0.0.1:9090".to_owned(),
    ];
    let pod = lab.pod("prometheus");
    let prometheus = pod.spawn("prometheus", User::Root, &words)?;
    let asked = [
        ("sum(up)", 3.0),
        ("count(http_requests_total > 0) > bool 1", 1.0),
    ];
    for (query, expected) in asked {
        let scraped = eventually(PATIENCE, query, || {
            let value = ask(pod, query);
            async move { value.is_ok_and(|value| value == Some(expected)) }
        })
        .await;
        scraped.with_context(|| prometheus.log())?;
    }
    Ok(())
}

#[tokio::test]
async fn the_spans_of_one_request_are_one_trace_through_both_sidecars() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "caller", "server", "collector"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let collector = Collector::start(lab.pod("collector")).await?;
    let settings = json!({ "telemetry": { "otlp_endpoint": collector.endpoint } });
    let (caller, _server) = pair(&plane, &lab, &settings).await?;
    request(caller.pod, Some(TRACEPARENT))?;

    let spans = collector.two(|span| span["trace_id"] == TRACE).await?;
    let outbound = child_of(&spans, SPAN)?;
    let inbound = child_of(&spans, outbound["span_id"].as_str().context("an id")?)?;
    ensure!(outbound["resource"] != inbound["resource"], "{spans:?}");
    Ok(())
}

#[tokio::test]
async fn a_trace_that_a_sidecar_begins_is_sampled_as_its_settings_say() -> Result<()> {
    if !peers::are_here(&[])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "caller", "server", "collector"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let collector = Collector::start(lab.pod("collector")).await?;
    let telemetry = json!({ "otlp_endpoint": collector.endpoint, "sampled_share": 1 });
    let settings = json!({ "telemetry": telemetry });
    let (caller, _server) = pair(&plane, &lab, &settings).await?;
    // Its caller has decided otherwise.
    request(caller.pod, Some(&TRACEPARENT.replace("-01", "-00")))?;
    request(caller.pod, None)?;

    let spans = collector.two(|_| true).await?;
    let outbound = child_of(&spans, "")?;
    ensure!(outbound["trace_id"] != TRACE, "{spans:?}");
    let inbound = child_of(&spans, outbound["span_id"].as_str().context("an id")?)?;
    ensure!(outbound["trace_id"] == inbound["trace_id"], "{spans:?}");
    Ok(())
}

/// A receiver of spans.
struct Collector {
    endpoint: String,
    process: Process,
}

impl Collector {
    async fn start(pod: &Pod) -> Result<Self> {
        let words = peers::script("otlp_receiver.py", &["4317"])?;
        let mut process = pod.spawn("otlp-receiver", User::Root, &words)?;
        process.says("ready").await?;
        let endpoint = format!("http://{}:4317", pod.v4);
        Ok(Self { endpoint, process })
    }

    /// Waits for the spans that are meant: one of each sidecar.
    async fn two(&self, is_meant: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let mut spans = Vec::new();
        let received = eventually(PATIENCE, "both sidecars sent their span", || {
            let log = self.process.log();
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            spans = lines.filter(&is_meant).collect();
            let is_enough = spans.len() >= 2;
            async move { is_enough }
        })
        .await;
        received.with_context(|| self.process.log())?;
        ensure!(spans.len() == 2, "one span a sidecar: {spans:?}");
        Ok(spans)
    }
}

/// The span below this one, or below none.
fn child_of<'a>(spans: &'a [Value], parent: &str) -> Result<&'a Value> {
    let found = spans.iter().find(|span| span["parent_span_id"] == parent);
    found.with_context(|| format!("no child of {parent:?} in {spans:?}"))
}

/// `caller` and `server`, each with a sidecar with these settings.
async fn pair<'lab>(
    plane: &ControlPlane<'lab>,
    lab: &'lab Lab,
    settings: &Value,
) -> Result<(MeshedPod<'lab>, MeshedPod<'lab>)> {
    let server = Workload::new("server", "server", &["app=server"]);
    let server =
        MeshedPod::start_with(plane, lab.pod("server"), &server, &[], settings, None).await?;
    let caller = Workload::new("caller", "caller", &["app=caller"]);
    let caller =
        MeshedPod::start_with(plane, lab.pod("caller"), &caller, &[], settings, None).await?;
    Ok((caller, server))
}

/// An application's request, under its own span or none.
fn request(pod: &Pod, traceparent: Option<&str>) -> Result<()> {
    let mut words = vec!["curl", "-sS", "--fail"];
    let header = traceparent.map(|span| format!("traceparent: {span}"));
    words.extend(header.iter().flat_map(|header| ["-H", header]));
    words.push("http://10.96.0.10:8080/");
    peers::output(pod, User::Unprivileged(1000), &words).map(drop)
}

/// What `promtool` finds wrong with a page of metrics is an error.
fn lint(metrics: &str) -> Result<()> {
    ensure!(metrics.contains("# TYPE"), "no metrics: {metrics}");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut stdin = promtool.stdin.take().context("a piped stdin")?;
    stdin.write_all(metrics.as_bytes())?;
    drop(stdin);
    let output = promtool.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "{said}");
    Ok(())
}

/// The value of a query that gives one, or nothing yet.
fn ask(pod: &Pod, query: &str) -> Result<Option<f64>> {
    let query = format!("query={query}");
    let url = "http://127.0.0.1:9090/api/v1/query";
    let words = [
        "curl",
        "-sS",
        "--fail",
        "-G",
        url,
        "--data-urlencode",
        &query,
    ];
    let answer = peers::parsed(&peers::output(pod, User::Root, &words)?)?;
    let value = answer["data"]["result"][0]["value"][1].as_str();
    Ok(value.map(str::parse).transpose()?)
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

const RESOURCES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: server}
spec:
  hosts: [server]
  addresses: [10.96.0.10]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: server}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/server]
";
