//! Load side by side with other proxies: scenarios, several subjects, interleaved rounds.
//!
//! Core 0 runs the generator and the backend, core 1 the proxies under test. All processes of a
//! subject are new in every round and the order alternates, so that drift of the machine meets
//! all of them alike. The first figure is CPU time per request, as the kernel accounts it. An
//! answer that is wrong or missing is a failed run, never a number.
//!
//! ```text
//! scenario ──► measure ──► backend, subject, generator ──► report ──► results/*.json
//!                              (process: pinned)                └───► table ──► README.md
//! ```

mod answer;
mod backend;
mod clock;
mod generator;
mod measure;
mod process;
mod ready;
mod report;
mod scenario;
mod send;
mod subject;
mod table;

use std::{
    env, fs,
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::{
    report::{Machine, Report},
    scenario::Scenario,
    subject::Subject,
};

#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measures subjects under scenarios, interleaved, and prints the tables
    Measure(Measure),
    /// Writes the tables of the results into the README
    Tables {
        #[arg(long, default_value = "benches/README.md")]
        readme: PathBuf,
        #[arg(long, default_value = SCENARIOS)]
        scenarios: PathBuf,
        #[arg(long, default_value = "benches/results")]
        results: PathBuf,
    },
    /// Is the generator of a measurement
    #[command(hide = true)]
    Send { order: String },
    /// Is the backend of a measurement of opaque bytes
    #[command(hide = true)]
    Answer { listen: SocketAddr },
}

#[derive(Debug, clap::Args)]
struct Measure {
    /// Scenario files; all of them unless given
    scenarios: Vec<PathBuf>,

    /// What to measure; all unless given
    #[arg(long, value_enum, value_delimiter = ',')]
    subjects: Vec<Subject>,

    /// Interleaved rounds; as many as the scenario asks for unless given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,

    /// Directory to keep the figures in, a file for each scenario
    #[arg(long)]
    results: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Action::Measure(args) => measure(args),
        Action::Tables {
            readme,
            scenarios,
            results,
        } => table::write(&readme, &scenarios, &results),
        Action::Send { order } => {
            let answers = send::run(&serde_json::from_str(&order)?)?;
            serde_json::to_writer(io::stdout(), &answers)?;
            Ok(())
        }
        Action::Answer { listen } => answer::run(listen),
    }
}

fn measure(args: Measure) -> anyhow::Result<()> {
    let files = match args.scenarios.as_slice() {
        [] => table::files(SCENARIOS.as_ref())?,
        some => some.to_vec(),
    };
    // All of them first: a fault in the last must not show after an hour.
    let scenarios: Vec<_> = files
        .iter()
        .map(|file| Scenario::read(file))
        .collect::<anyhow::Result<_>>()?;
    if let Some(results) = &args.results {
        fs::create_dir_all(results).with_context(|| format!("making {}", results.display()))?;
    }
    let command: Vec<_> = ["load".to_owned()]
        .into_iter()
        .chain(env::args().skip(1))
        .collect();
    let mut missing = Vec::new();
    for scenario in scenarios {
        let subjects = match args.subjects.as_slice() {
            [] => scenario.subjects(),
            some => some.to_vec(),
        };
        let machine = Machine::here(command.join(" "));
        let rounds = args.rounds.unwrap_or(scenario.rounds.get());
        let rows = measure::rounds(&scenario, &subjects, rounds)?;
        let failed = rows.iter().filter(|row| row.has_failed());
        missing.extend(failed.map(|row| format!("{} in {}", row.subject, scenario.name)));
        let report = Report::new(machine, scenario, rows);
        writeln!(io::stdout(), "{}", table::of(&report))?;
        if let Some(results) = &args.results {
            report.save(&results.join(format!("{}.json", report.scenario.name)))?;
        }
    }
    if !missing.is_empty() {
        bail!("no figures of {}", missing.join(", "));
    }
    Ok(())
}

const SCENARIOS: &str = "benches/load/scenarios";
