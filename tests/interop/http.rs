//! curl and nghttp2's programs through a pair of sidecars, towards servers of the distribution.

use std::fs;

use anyhow::{Context, Result, ensure};
use heddle_tests::{
    netns::{Lab, Pod},
    node::{MeshedPod, Workload},
    process::{PATIENCE, User, eventually},
};

use super::peers;

#[tokio::test]
async fn curl_and_nghttp_and_h2load_get_every_byte_through_a_pair_of_sidecars() -> Result<()> {
    if !peers::are_here(&["nghttp", "nghttpd", "h2load", "python3"])? {
        return Ok(());
    }
    let lab = Lab::new(&["plane", "caller", "files"])?;
    let plane = peers::control_plane(&lab, RESOURCES).await?;
    let (caller, server) = (lab.pod("caller"), lab.pod("files"));
    let workload = Workload::new("files", "files", &["app=files"]);
    let served = MeshedPod::start(&plane, server, &workload, &[]).await?;
    let workload = Workload::new("caller", "caller", &["app=caller"]);
    let _caller = MeshedPod::start(&plane, caller, &workload, &[]).await?;

    let files = peers::shared()?;
    let body: Vec<u8> = (0..BODY_BYTES)
        .map(|i| b'a' + u8::try_from(i % 23).unwrap_or(0))
        .collect();
    fs::write(files.path().join("body"), &body)?;
    let root = files.path().display().to_string();
    let words = [
        "python3",
        "-m",
        "http.server",
        "--protocol",
        "HTTP/1.1",
        "--directory",
        &root,
        "8081",
    ];
    let _http1 = server.spawn("http1", User::Root, &words)?;
    let _http2 = server.spawn(
        "http2",
        APP,
        &["nghttpd", "--no-tls", "--htdocs", &root, "8082"],
    )?;
    listens(server, &["--http1.1", "http://127.0.0.1:8081/"]).await?;
    let url = "http://127.0.0.1:8082/";
    listens(server, &["--http2-prior-knowledge", url]).await?;

    let http1 = format!("http://{ADDRESS}:8081/body");
    let http2 = format!("http://{ADDRESS}:8082/body");
    every_byte_arrives(caller, &http1, &http2, &body)?;
    every_request_is_answered(caller, &http1, &http2)?;
    // It all went by mutual TLS: nothing else is let in, and this is how it was counted.
    let counted = served.sidecar.metric("http_requests_total", &[])?;
    ensure!(
        counted >= 500.0,
        "{counted} requests came through the sidecar"
    );
    Ok(())
}

/// One file, by each protocol and program.
fn every_byte_arrives(caller: &Pod, http1: &str, http2: &str, body: &[u8]) -> Result<()> {
    let cases: [(&[&str], &str); 3] = [
        (
            &[
                "curl",
                "-sS",
                "--fail",
                "--http1.1",
                "-w",
                "%{http_version}",
                http1,
            ],
            "1.1",
        ),
        (
            &[
                "curl",
                "-sS",
                "--fail",
                "--http2-prior-knowledge",
                "-w",
                "%{http_version}",
                http2,
            ],
            "2",
        ),
        (&["nghttp", http2], ""),
    ];
    for (words, end) in cases {
        let got = run(caller, words)?;
        let got = got
            .strip_suffix(end)
            .with_context(|| format!("{words:?}: not HTTP/{end}"))?;
        ensure!(got.as_bytes() == body, "{words:?}: {} bytes", got.len());
    }
    Ok(())
}

/// Several connections and streams at once.
fn every_request_is_answered(caller: &Pod, http1: &str, http2: &str) -> Result<()> {
    let clear: [&[&str]; 2] = [
        &["h2load", "-n", "400", "-c", "4", "-m", "10", http2],
        &["h2load", "--h1", "-n", "100", "-c", "4", http1],
    ];
    for words in clear {
        let report = run(caller, words)?;
        ensure!(
            report.contains(" 0 failed, 0 errored, 0 timeout"),
            "{words:?}: {report}"
        );
        let all = format!(
            "{} succeeded",
            words[words.iter().position(|word| *word == "-n").context("-n")? + 1]
        );
        ensure!(report.contains(&all), "{words:?}: {report}");
    }
    Ok(())
}

/// An application of the pod.
fn run(pod: &Pod, words: &[&str]) -> Result<String> {
    peers::output(pod, APP, words)
}

/// Waits until a server of the pod answers.
async fn listens(pod: &Pod, at: &[&str]) -> Result<()> {
    let words = [&["curl", "-s", "-o", "/dev/null", "--max-time", "1"], at].concat();
    eventually(PATIENCE, "a server answers", || {
        let listens = run(pod, &words).is_ok();
        async move { listens }
    })
    .await
}

const APP: User = User::Unprivileged(1000);
const BODY_BYTES: usize = 300_000;
const ADDRESS: &str = "10.96.0.10";

const RESOURCES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: files}
spec:
  hosts: [files]
  addresses: [10.96.0.10]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8081, name: http}, {number: 8082, name: http2, protocol: HTTP2}]
  workloadSelector: {labels: {app: files}}
  subjectAltNames: [spiffe://cluster.local/ns/default/sa/files]
";
