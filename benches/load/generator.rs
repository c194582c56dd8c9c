//! The load: h2load, pinned beside the backend, with gRPC-shaped requests.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, bail, ensure};
use serde::Serialize;

use crate::{process::LOAD_CORE, scenario::Scenario};

/// The method every request names; the backend serves a file of this name.
pub(crate) const METHOD: &str = "/bench.v1.Echo/Unary";

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) requests_per_s: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
}

/// Sends the scenario's load for `seconds` and fails when a single request did.
pub(crate) fn run(
    scenario: &Scenario,
    seconds: u32,
    address: SocketAddr,
    authority: &str,
    work: &Path,
) -> anyhow::Result<Load> {
    let body = work.join("request");
    fs::write(&body, vec![b'x'; scenario.request_bytes])?;
    let log = work.join("latency");
    // h2load appends.
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let output = command(scenario, seconds, address, authority, &body, &log)
        .output()
        .context("starting h2load (Debian package nghttp2-client)")?;
    let (requests, elapsed) = outcome(&output, scenario)?;
    let mut latencies = latencies(&log)?;
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "h2load logged no request");
    let percentile = |share: usize| latencies[(latencies.len() - 1) * share / 100];
    #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
    let requests_per_s = requests as f64 / elapsed;
    Ok(Load {
        requests,
        requests_per_s,
        p50_us: percentile(50),
        p90_us: percentile(90),
        p99_us: percentile(99),
    })
}

fn command(
    scenario: &Scenario,
    seconds: u32,
    address: SocketAddr,
    authority: &str,
    body: &Path,
    log: &Path,
) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", LOAD_CORE, "h2load"])
        .args(["--clients", &scenario.connections.to_string()])
        .args(["--max-concurrent-streams", &scenario.streams.to_string()])
        .arg("--data")
        .arg(body)
        .arg("--log-file")
        .arg(log)
        .args(["--header", "content-type: application/grpc"])
        .args(["--header", "te: trailers"])
        .args(["--header", "grpc-timeout: 10S"])
        .args(["--header", "user-agent: heddle-benches"]);
    match scenario.requests_per_s {
        None => command.args(["--duration", &seconds.to_string()]),
        Some(rate) => {
            let each = f64::from(rate.get()) / f64::from(scenario.connections.get());
            command.args(["--rps", &each.to_string()]).args([
                "--requests",
                &(u64::from(rate.get()) * u64::from(seconds)).to_string(),
            ])
        }
    };
    command
        // Not `--base-uri`, which would also be the authority.
        .arg(format!("--connect-to={address}"))
        .arg(format!("http://{authority}{METHOD}"));
    command
}

/// Requests done and seconds taken.
fn outcome(output: &Output, scenario: &Scenario) -> anyhow::Result<(u64, f64)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |start: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(start))
            .with_context(|| format!("h2load printed no {start:?}: {text}"))
    };
    let counts = line("requests: ")?;
    if !counts.contains(" 0 failed, 0 errored, 0 timeout") {
        bail!("requests failed: {counts}");
    }
    let codes = line("status codes: ")?;
    ensure!(
        codes.contains(" 0 3xx, 0 4xx, 0 5xx"),
        "requests were refused: {codes}"
    );
    let done: u64 = counts
        .split(", ")
        .find_map(|part| part.strip_suffix(" done"))
        .context("h2load counted nothing")?
        .parse()?;
    // A proxy's refusal of a gRPC call is a 200 too, without the body.
    let data: u64 = line("traffic: ")?
        .rsplit_once(" data")
        .and_then(|(rest, _)| rest.rsplit_once('('))
        .and_then(|(_, bytes)| bytes.trim_end_matches(')').parse().ok())
        .context("h2load counted no bytes")?;
    let expected = done * scenario.response_bytes as u64;
    ensure!(
        data >= expected,
        "{done} answers have {data} bytes, not {expected}: the application did not answer all"
    );
    let elapsed = line("finished in ")?
        .split(',')
        .next()
        .context("h2load printed no time")?;
    Ok((done, seconds(elapsed)?))
}

/// Such as `4.00s`, `54.87ms` or `1m2.0s`.
fn seconds(text: &str) -> anyhow::Result<f64> {
    let number = |text: &str| {
        text.parse::<f64>()
            .with_context(|| format!("time {text:?}"))
    };
    if let Some(ms) = text.strip_suffix("ms") {
        return Ok(number(ms)? / 1e3);
    }
    let (minutes, rest) = text.split_once('m').unwrap_or(("0", text));
    Ok(number(minutes)? * 60.0 + number(rest.trim_end_matches('s'))?)
}

/// Third column of h2load's log: microseconds per request.
fn latencies(log: &Path) -> anyhow::Result<Vec<u64>> {
    fs::read_to_string(log)?
        .lines()
        .map(|line| {
            let column = line.split('\t').nth(2).context("h2load's log is short")?;
            Ok(column.parse()?)
        })
        .collect()
}
