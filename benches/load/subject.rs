//! What is measured: a way from the generator to the backend.

mod authority;
mod envoy;
mod haproxy;
mod heddle;
pub(crate) mod nginx;

use std::{fmt, net::SocketAddr, path::Path, process::Command};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    process::Process,
    report::before,
    scenario::{Group, Scenario, Way},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// No proxy: what generator and backend cost by themselves.
    Direct,
    /// Our sidecars with everything on, as shipped.
    Heddle,
    /// The same with four threads on the one core.
    #[serde(rename = "heddle-4-workers")]
    #[value(name = "heddle-4-workers")]
    Heddle4Workers,
    /// Envoy in its barest form: connection manager and router, LEAST_REQUEST, default stats, no
    /// access log, one worker.
    Envoy,
    /// Envoy that relays the same bytes without looking into them.
    EnvoyTcp,
    /// Envoy with what Istio adds to it: filters, routes, rules, ejection, retries, access log.
    EnvoyIstio,
    Nginx,
    Haproxy,
}

/// Where a subject is put.
pub(crate) struct Place<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) backend: SocketAddr,
    /// For its files and logs.
    pub(crate) work: &'a Path,
}

/// A subject that runs.
pub(crate) struct Running {
    /// Where the generator connects.
    pub(crate) address: SocketAddr,
    /// What it asks for.
    pub(crate) authority: String,
    pub(crate) processes: Vec<Process>,
}

impl Subject {
    /// Starts it in front of the backend.
    pub(crate) fn start(self, place: &Place<'_>) -> anyhow::Result<Running> {
        match self {
            Self::Direct => Ok(Running {
                address: place.backend,
                authority: AUTHORITY.to_owned(),
                processes: Vec::new(),
            }),
            Self::Heddle => heddle::start(place, 1),
            Self::Heddle4Workers => heddle::start(place, 4),
            Self::Envoy => envoy::start(place, envoy::Kind::Bare),
            Self::EnvoyTcp => envoy::start(place, envoy::Kind::Opaque),
            Self::EnvoyIstio => envoy::start(place, envoy::Kind::Istio),
            Self::Nginx => nginx::start(place),
            Self::Haproxy => haproxy::start(place),
        }
        .with_context(|| format!("starting {self}"))
    }

    /// Why it has no figures in a scenario.
    pub(crate) fn cannot(self, scenario: &Scenario) -> Option<&'static str> {
        let is_heddle = matches!(self, Self::Heddle | Self::Heddle4Workers);
        if self == Self::Direct {
            return None;
        }
        if is_heddle && scenario.group == Group::Hybrid {
            return Some("no setting chooses the key exchange");
        }
        if self == Self::Nginx && scenario.is_opaque() {
            return Some("a module of its own");
        }
        if matches!(self, Self::Nginx | Self::Haproxy) && scenario.group == Group::Hybrid {
            return Some("its TLS library has no hybrid");
        }
        if matches!(self, Self::Nginx | Self::Haproxy) && scenario.pool.is_some() {
            return Some("it has no such limits");
        }
        if self == Self::EnvoyTcp && (scenario.is_opaque() || scenario.way == Way::Hop) {
            return Some("it is measured as a pair, under requests");
        }
        None
    }

    /// For the report.
    pub(crate) fn version(self) -> String {
        let (program, argument) = match self {
            Self::Direct => return String::new(),
            Self::Heddle | Self::Heddle4Workers => (heddle::proxy(), "--version"),
            Self::Envoy | Self::EnvoyTcp | Self::EnvoyIstio => (envoy::program(), "--version"),
            Self::Nginx => ("nginx".into(), "-v"),
            Self::Haproxy => ("haproxy".into(), "-v"),
        };
        let Ok(output) = Command::new(program).arg(argument).output() else {
            return "not installed".to_owned();
        };
        // nginx tells it on the other one.
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        let mut lines = text.lines().map(str::trim);
        let first = lines.find(|line| !line.is_empty()).unwrap_or_default();
        // Envoy's begins with the path of the program.
        let version = first.rsplit("version: ").next().unwrap_or(first);
        // HAProxy's ends with where it is from.
        before(version, " - ")
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.to_possible_value();
        f.write_str(value.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Of all but Heddle, which routes by it.
pub(crate) const AUTHORITY: &str = "echo.bench:80";
