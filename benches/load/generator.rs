//! The load: who sends it, and what comes back.
//!
//! Closed loops of equal requests are h2load's: it costs a fifth of what a generator on the h2
//! crate costs, so it keeps the proxies busy. It cannot do two things, which are our own
//! ([`crate::send`]): to count latency from when a request was due, since it releases the
//! requests of all connections in one burst a tick and starts the clock at each one's sending;
//! and to make each request different.

pub(crate) mod grpcio;
mod h2load;

use std::{env, net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    process::LOAD_CORE,
    scenario::{Load, Scenario, Unit},
    send::Order,
};

/// The method every request names; the backend serves a file of this name.
pub(crate) const METHOD: &str = "/bench.v1.Echo/Unary";

/// The header fields of every request, beside the pseudo ones.
pub(crate) const FIELDS: [(&str, &str); 4] = [
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("grpc-timeout", "10S"),
    ("user-agent", "heddle-benches"),
];

/// What came back, all of it right: anything else is an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answers {
    /// Requests; connections, where the load is of bytes.
    pub(crate) count: u64,
    /// Of bodies, or of the streams; both directions together.
    pub(crate) bytes: u64,
    pub(crate) elapsed_s: f64,
    /// Of requests or of connections; none of endless streams.
    pub(crate) latency: Option<Latency>,
}

/// In microseconds; of an open loop from when the request was due.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p90: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
}

/// Sends the scenario's load for `seconds`; fails when a single answer is wrong or missing.
pub(crate) fn run(
    scenario: &Scenario,
    seconds: u32,
    address: SocketAddr,
    authority: &str,
    work: &Path,
) -> anyhow::Result<Answers> {
    let order = Order {
        address,
        authority: authority.to_owned(),
        load: scenario.load.clone(),
        seconds,
    };
    match &scenario.load {
        Load::Http(http) if http.requests_per_s.is_none() && http.unique_headers == 0 => {
            h2load::run(http, &order, work)
        }
        Load::Grpcio(_) => grpcio::call(&order),
        Load::Http(_) | Load::Stream(_) | Load::Connect(_) => {
            let own = env::current_exe()?;
            pinned(Command::new(&own).args(["send", &serde_json::to_string(&order)?]))
        }
    }
}

/// What a generator says that is a process of its own, because it is pinned and this one is not.
fn pinned(command: &Command) -> anyhow::Result<Answers> {
    let output = Command::new("taskset")
        .args(["--cpu-list", LOAD_CORE])
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .context("starting the generator")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

impl Answers {
    /// How many of `unit` they are.
    #[expect(clippy::cast_precision_loss, reason = "a divisor for people to read")]
    pub(crate) fn units(&self, unit: Unit) -> f64 {
        match unit {
            Unit::Request | Unit::Connection => self.count as f64,
            Unit::Mib => self.bytes as f64 / f64::from(1 << 20),
        }
    }
}

impl Latency {
    /// Of microseconds.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
        }
    }

    /// Room for a minute, to a thousandth.
    pub(crate) fn histogram() -> Histogram<u64> {
        Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are apart")
    }
}
