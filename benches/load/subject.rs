//! What is measured: a way from the generator to the backend.

mod authority;
mod envoy;
mod heddle;

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::Context;
use clap::ValueEnum;

use crate::process::Process;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// No proxy: what generator and backend cost by themselves.
    Direct,
    /// Two of our sidecars with everything on, as shipped.
    Heddle,
    /// Two Envoys in their barest form: connection manager and router, LEAST_REQUEST, default
    /// stats, no access log, one worker.
    Envoy,
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
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Heddle => "heddle",
            Self::Envoy => "envoy",
        }
    }

    /// Starts it in front of `backend`. Files and logs go to `work`.
    pub(crate) fn start(self, backend: SocketAddr, work: &Path) -> anyhow::Result<Running> {
        match self {
            Self::Direct => Ok(Running {
                address: backend,
                authority: backend.to_string(),
                processes: Vec::new(),
            }),
            Self::Heddle => heddle::start(backend, work),
            Self::Envoy => envoy::start(backend, work),
        }
        .with_context(|| format!("starting {}", self.name()))
    }

    /// For the report.
    pub(crate) fn version(self) -> String {
        let (program, argument) = match self {
            Self::Direct => return String::new(),
            Self::Heddle => (heddle::proxy(), "--version"),
            Self::Envoy => (envoy::program(), "--version"),
        };
        Command::new(program)
            .arg(argument)
            .output()
            .ok()
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    }
}
