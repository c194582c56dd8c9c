//! What is sent, and what is asked of the figures: a scenario file.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::Path,
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::subject::Subject;

/// One load, the same for every subject.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// Its file's name without the ending; results carry it.
    #[serde(default)]
    pub(crate) name: String,
    /// Its row in the report.
    pub(crate) title: String,
    /// Proxies between generator and backend.
    pub(crate) way: Way,
    pub(crate) load: Load,
    /// What CPU time is divided by.
    pub(crate) per: Unit,
    /// Addresses behind the destination, all of them the one next hop.
    #[serde(default = "one")]
    pub(crate) endpoints: u16,
    /// Limits of connections to the next hop. Without it there are none.
    #[serde(default)]
    pub(crate) pool: Option<Pool>,
    /// Key exchange of the pair.
    #[serde(default)]
    pub(crate) group: Group,
    /// What Heddle's figures must be, against others of the same round.
    #[serde(default)]
    pub(crate) bars: Vec<Bar>,
    /// Fewer rounds than these decide nothing.
    pub(crate) rounds: NonZeroU32,
    pub(crate) warm_up_s: u32,
    pub(crate) duration_s: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Way {
    /// One proxy, plaintext on both sides.
    Hop,
    /// Two proxies with mutual TLS between them.
    Pair,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Load {
    /// Requests over kept connections.
    Http(Http),
    /// Calls of a real gRPC client, answered by a real gRPC server.
    Grpcio(Calls),
    /// Bytes that the backend sends back, over kept connections, as fast as they go.
    Stream(Stream),
    /// One connection after another, closed after as many bytes up and down.
    Connect(Stream),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Http {
    pub(crate) version: Version,
    /// Client connections.
    pub(crate) connections: NonZeroU32,
    /// Streams in flight on each connection, at most, where the loop is closed.
    #[serde(default = "one_stream")]
    pub(crate) streams: NonZeroU32,
    /// Fixed arrival rate over all connections: an open loop. Without it a stream is reused as
    /// soon as its response has ended.
    #[serde(default)]
    pub(crate) requests_per_s: Option<NonZeroU32>,
    /// Requests of the open loop that are due at once. One: they are apart by the same time.
    #[serde(default = "one_stream")]
    pub(crate) burst: NonZeroU32,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
    /// Fields of each request whose values no other request has.
    #[serde(default)]
    pub(crate) unique_headers: u8,
}

/// A closed loop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calls {
    pub(crate) connections: NonZeroU32,
    /// In flight on each connection.
    pub(crate) streams: NonZeroU32,
    pub(crate) request_bytes: usize,
    pub(crate) response_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Version {
    Http1,
    Http2,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stream {
    /// At once.
    pub(crate) connections: NonZeroU32,
    /// Sent in one go, then waited for.
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Request,
    /// Of body, in both directions together.
    Mib,
    Connection,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    pub(crate) connections_max: NonZeroU32,
    pub(crate) requests_per_connection_max: NonZeroU32,
    pub(crate) requests_max: NonZeroU32,
    pub(crate) pending_max: NonZeroU32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    #[default]
    X25519,
    /// X25519MLKEM768, the post-quantum hybrid.
    Hybrid,
}

/// A ratio that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bar {
    /// Whose figure is judged.
    #[serde(default = "heddle")]
    pub(crate) of: Subject,
    pub(crate) figure: Figure,
    /// Whose figure is 1.
    pub(crate) against: Subject,
    pub(crate) most: f64,
    /// Beyond the bar.
    #[serde(default)]
    pub(crate) aim: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Figure {
    /// CPU time per unit.
    Cpu,
    /// Median latency, less that of direct in the same round.
    P50Added,
    P99Added,
}

impl Figure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU",
            Self::P50Added => "p50 added",
            Self::P99Added => "p99 added",
        }
    }
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Mib => "MiB",
            Self::Connection => "connection",
        }
    }
}

impl Scenario {
    /// Reads `file` strictly: what it does not know is an error with line and field.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text).with_context(|| format!("in {}", file.display()))
    }

    fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let mut scenario: Self = serde_saphyr::from_str(text)?;
        ensure!(scenario.name.is_empty(), "name: it is that of the file");
        name.clone_into(&mut scenario.name);
        ensure!(
            (1..=ENDPOINTS_MAX).contains(&scenario.endpoints),
            "endpoints: 1 to {ENDPOINTS_MAX}"
        );
        ensure!(
            scenario.endpoints == 1 || scenario.way == Way::Pair,
            "endpoints: the backend of a hop has one address"
        );
        if let Load::Http(http) = &scenario.load {
            let is_plain = http.requests_per_s.is_none() && http.unique_headers == 0;
            ensure!(
                http.burst.get() == 1 || http.requests_per_s.is_some(),
                "load.http: burst belongs to requests_per_s"
            );
            ensure!(
                http.version == Version::Http2 || is_plain,
                "load.http: requests_per_s and unique_headers need version http2"
            );
        }
        Ok(scenario)
    }

    /// Who is measured unless chosen: all that every scenario has, and who else a bar names.
    pub(crate) fn subjects(&self) -> Vec<Subject> {
        let mut subjects = vec![
            Subject::Direct,
            Subject::Heddle,
            Subject::Envoy,
            Subject::EnvoyIstio,
            Subject::Nginx,
            Subject::Haproxy,
        ];
        for subject in self.bars.iter().flat_map(|bar| [bar.of, bar.against]) {
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        subjects
    }

    /// Whether proxies relay bytes without looking into them.
    pub(crate) fn is_opaque(&self) -> bool {
        match self.load {
            Load::Http(_) | Load::Grpcio(_) => false,
            Load::Stream(_) | Load::Connect(_) => true,
        }
    }

    /// Whether requests are HTTP/1.1.
    pub(crate) fn is_http1(&self) -> bool {
        match &self.load {
            Load::Http(http) => http.version == Version::Http1,
            Load::Grpcio(_) | Load::Stream(_) | Load::Connect(_) => false,
        }
    }

    /// The addresses of a next hop that listens on `port` of all loopback addresses.
    pub(crate) fn endpoints_at(&self, port: u16) -> Vec<SocketAddr> {
        let first = u32::from(Ipv4Addr::LOCALHOST);
        (0..u32::from(self.endpoints))
            .map(|i| (Ipv4Addr::from(first + i), port).into())
            .collect()
    }
}

/// They are addresses from 127.0.0.1 on.
const ENDPOINTS_MAX: u16 = 1_000;

fn one() -> u16 {
    1
}

fn one_stream() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn heddle() -> Subject {
    Subject::Heddle
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::Scenario;

    const GOOD: &str = "
title: t
way: pair
load:
  http: {version: http2, connections: 1, request_bytes: 1, response_bytes: 1}
per: request
rounds: 5
warm_up_s: 0
duration_s: 1
";

    /// What is said of a scenario file.
    #[track_caller]
    fn check(text: &str, said: &[&str]) {
        let error = Scenario::parse("x", text).expect_err("it is refused");
        let error = format!("{error:#}");
        for words in said {
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn every_scenario_of_the_tree_is_read() {
        assert!(Scenario::parse("x", GOOD).is_ok());
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("load/scenarios");
        for entry in fs::read_dir(directory).expect("it is there") {
            let file = entry.expect("it is there").path();
            Scenario::read(&file).expect("it is good");
        }
    }

    #[test]
    fn an_unknown_field_is_told_with_its_line() {
        check(&format!("{GOOD}surplus: 1\n"), &["line 10", "surplus"]);
        let inner = GOOD.replace("connections: 1,", "connections: 1, surplus: 1,");
        check(&inner, &["line 5", "surplus"]);
        check(&format!("{GOOD}name: y\n"), &["name"]);
    }

    #[test]
    fn what_no_generator_can_do_is_refused() {
        let rate = GOOD
            .replace("http2", "http1")
            .replace("connections", "requests_per_s: 1, connections");
        check(&rate, &["requests_per_s"]);
        let burst = GOOD.replace("connections", "burst: 2, connections");
        check(&burst, &["burst"]);
        check(&format!("{GOOD}endpoints: 0\n"), &["endpoints"]);
        let hop = GOOD.replace("pair", "hop");
        check(&format!("{hop}endpoints: 2\n"), &["endpoints"]);
    }
}
