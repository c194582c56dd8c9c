//! h2load, pinned beside the backend, with gRPC-shaped requests.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, ensure};

use super::{Answers, FIELDS, Latency, METHOD};
use crate::{
    process::LOAD_CORE,
    scenario::{Http, Version},
    send::Order,
};

pub(super) fn run(http: &Http, order: &Order, work: &Path) -> anyhow::Result<Answers> {
    let body = work.join("request");
    fs::write(&body, vec![b'x'; http.request_bytes])?;
    let log = work.join("latency");
    // h2load appends.
    if log.exists() {
        fs::remove_file(&log)?;
    }
    let output = command(http, order, &body, &log)
        .output()
        .context("starting h2load (Debian package nghttp2-client)")?;
    let (count, elapsed_s) = outcome(&output, http.response_bytes)?;
    let bytes = count * (http.request_bytes + http.response_bytes) as u64;
    Ok(Answers {
        count,
        bytes,
        elapsed_s,
        latency: Some(latency(&log)?),
    })
}

fn command(http: &Http, order: &Order, body: &Path, log: &Path) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", LOAD_CORE, "h2load"])
        .args(["--clients", &http.connections.to_string()])
        .args(["--max-concurrent-streams", &http.streams.to_string()])
        .args(["--duration", &order.seconds.to_string()])
        .args(["--connection-inactivity-timeout", "10"])
        .arg("--data")
        .arg(body)
        .arg("--log-file")
        .arg(log);
    match http.version {
        Version::Http1 => command.arg("--no-tls-proto=http/1.1"),
        Version::Http2 => command.arg("--no-tls-proto=h2c"),
    };
    for (name, value) in FIELDS {
        command.arg(format!("--header={name}: {value}"));
    }
    command
        // Not `--base-uri`, which would also be the authority.
        .arg(format!("--connect-to={}", order.address))
        .arg(format!("http://{}{METHOD}", order.authority));
    command
}

/// Requests done and seconds taken.
fn outcome(output: &Output, response_bytes: usize) -> anyhow::Result<(u64, f64)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = |start: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(start))
            .with_context(|| format!("h2load printed no {start:?}: {text}"))
    };
    let counts = line("requests: ")?;
    ensure!(
        counts.contains(" 0 failed, 0 errored, 0 timeout"),
        "requests failed: {counts}"
    );
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
    ensure!(done > 0, "no request was answered");
    // A proxy's refusal of a gRPC call is a 200 too, without the body.
    let data: u64 = line("traffic: ")?
        .rsplit_once(" data")
        .and_then(|(rest, _)| rest.rsplit_once('('))
        .and_then(|(_, bytes)| bytes.trim_end_matches(')').parse().ok())
        .context("h2load counted no bytes")?;
    let expected = done * response_bytes as u64;
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
fn latency(log: &Path) -> anyhow::Result<Latency> {
    let mut histogram = Latency::histogram();
    let log = File::open(log).context("h2load wrote no log")?;
    for line in BufReader::new(log).lines() {
        let line = line?;
        let column = line.split('\t').nth(2).context("h2load's log is short")?;
        histogram.saturating_record(column.parse()?);
    }
    ensure!(!histogram.is_empty(), "h2load logged no request");
    Ok(Latency::of(&histogram))
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::process::ExitStatusExt,
        process::{ExitStatus, Output},
    };

    use super::{outcome, seconds};

    const PRINTED: &str = "
finished in 4.00s, 10.00 req/s, 1.00KB/s
requests: 40 total, 41 started, 40 done, 40 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 40 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.0KB (1000) total, 0B (0) headers (space savings 0.00%), 400B (400) data
";

    /// What h2load's words come to: requests and seconds, or a part of the refusal.
    #[track_caller]
    fn check(printed: &str, expected: Result<(u64, f64), &str>) {
        let output = Output {
            status: ExitStatus::from_raw(0),
            stdout: printed.into(),
            stderr: Vec::new(),
        };
        match (outcome(&output, 10), expected) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            (got, _) => panic!("{got:?}"),
        }
    }

    #[test]
    fn only_right_answers_are_counted() {
        check(PRINTED, Ok((40, 4.0)));
        check(&PRINTED.replace("0 failed", "1 failed"), Err("1 failed"));
        check(&PRINTED.replace("0 5xx", "1 5xx"), Err("1 5xx"));
        check(&PRINTED.replace("(400) data", "(399) data"), Err("399"));
        check(&PRINTED.replace("40 done", "0 done"), Err("no request"));
        check("", Err("printed no"));
    }

    #[test]
    fn times_are_read_as_h2load_writes_them() {
        for (text, expected) in [("4.00s", 4.0), ("500.00ms", 0.5), ("1m2.0s", 62.0)] {
            assert_eq!(seconds(text).expect("it is a time"), expected, "{text}");
        }
    }
}
