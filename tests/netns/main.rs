//! The mesh in pods with real packet rules: each case builds its own pods as network namespaces
//! and deletes them. Needs root; see [`REQUIRED`] for the programs.
//!
//! Answers `--list` like a libtest binary, so that nextest runs each case in a process of its own.
//! [`cases`] is the table of everything there is.

mod adoption;
mod application;
mod change;
mod clocks;
mod connectivity;
mod crashes;
mod dns;
mod interception;
mod memory;
mod mesh;
mod quickstart;
mod secrecy;

use std::{
    io::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow};
use heddle_tests::netns::Requires;

/// A named case and what it runs.
struct Case {
    name: String,
    run: Box<dyn Fn() -> Outcome>,
}

type Outcome = Pin<Box<dyn Future<Output = Result<()>>>>;

impl Case {
    fn new<F: Future<Output = Result<()>> + 'static>(
        name: String,
        run: impl Fn() -> F + 'static,
    ) -> Self {
        Self {
            name,
            run: Box::new(move || Box::pin(run())),
        }
    }
}

fn cases() -> Vec<Case> {
    [
        interception::cases(),
        application::cases(),
        connectivity::cases(),
        dns::cases(),
        secrecy::cases(),
        crashes::cases(),
        clocks::cases(),
        adoption::cases(),
        change::cases(),
        memory::cases(),
        quickstart::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            _ = writeln!(io::stderr(), "netns: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The number of failed cases.
fn run(arguments: &[String]) -> Result<usize> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let mut out = io::stdout().lock();
    if has("--list") {
        // There are no ignored cases.
        if !has("--ignored") {
            for case in cases() {
                writeln!(out, "{}: test", case.name)?;
            }
        }
        return Ok(0);
    }
    drop(out);
    if !(Requires { programs: REQUIRED }).check()? {
        return Ok(0);
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    let is_wanted = |name: &str| match filter {
        Some(filter) if has("--exact") => name == filter,
        Some(filter) => name.contains(filter.as_str()),
        None => true,
    };
    let mut failed = 0;
    for case in cases().iter().filter(|case| is_wanted(&case.name)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("building a runtime")?;
        // The cases after one that panics run all the same.
        let run = AssertUnwindSafe(|| runtime.block_on((case.run)()));
        let outcome = catch_unwind(run).unwrap_or_else(|said| {
            let said = said.downcast_ref::<String>();
            Err(anyhow!("{}", said.map_or("it panicked", String::as_str)))
        });
        let mut out = io::stdout().lock();
        match outcome {
            Ok(()) => writeln!(out, "ok      {}", case.name)?,
            Err(error) => {
                failed += 1;
                writeln!(out, "FAILED  {}: {error:#}", case.name)?;
            }
        }
    }
    Ok(failed)
}

/// Debian: iproute2, util-linux, coreutils, nftables, iptables, tcpdump.
const REQUIRED: &[&str] = &[
    "ip", "nsenter", "setpriv", "timeout", "nft", "iptables", "tcpdump", "bash", "curl", "python3",
];
