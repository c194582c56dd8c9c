//! Load side by side with other proxies: one scenario, several subjects, interleaved rounds.
//!
//! Core 0 runs the generator and the backend, core 1 the proxies under test. All processes of a
//! subject are new in every round and the order alternates, so that drift of the machine meets
//! all of them alike. The first figure is CPU time per request, as the kernel accounts it.

mod generator;
mod process;
mod report;
mod scenario;
mod subject;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Parser;

use crate::{
    generator::METHOD,
    process::{LOAD_CORE, Process, free_address},
    report::{Report, Round},
    scenario::Scenario,
    subject::Subject,
};

/// Measures subjects under one scenario, interleaved.
#[derive(Debug, Parser)]
struct Args {
    /// Scenario file.
    scenario: PathBuf,

    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Subject::Direct, Subject::Heddle, Subject::Envoy])]
    subjects: Vec<Subject>,

    /// Interleaved rounds.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Where to keep the figures.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scenario = Scenario::read(&args.scenario)?;
    let work = tempfile::tempdir().context("making a work directory")?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let mut round: Vec<Option<Round>> = vec![None; args.subjects.len()];
        let mut order: Vec<usize> = (0..args.subjects.len()).collect();
        if number % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let subject = args.subjects[index];
            let place = work.path().join(format!("{number}-{}", subject.name()));
            fs::create_dir(&place)?;
            round[index] = Some(measure(subject, &scenario, &place).map_err(|error| {
                // The logs would go with the directory.
                error.context(logs(&place))
            })?);
        }
        rounds.push(round.into_iter().flatten().collect());
    }
    let report = Report {
        scenario: &scenario,
        subjects: &args.subjects,
        rounds: &rounds,
    };
    print!("{}", report.table());
    args.json.map_or(Ok(()), |file| report.save(&file))
}

fn measure(subject: Subject, scenario: &Scenario, work: &Path) -> anyhow::Result<Round> {
    let (backend, mut backend_process) = backend(scenario, work)?;
    backend_process.wait_for(backend)?;
    let running = subject.start(backend, work)?;
    let load =
        |seconds| generator::run(scenario, seconds, running.address, &running.authority, work);
    if scenario.warm_up_s > 0 {
        load(scenario.warm_up_s).context("warming up")?;
    }
    let measured = || {
        running
            .processes
            .iter()
            .filter(|process| process.is_measured)
    };
    let usage = || {
        measured()
            .map(Process::usage)
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let before = usage()?;
    let load = load(scenario.duration_s.get())?;
    let after = usage()?;
    let cpu_ns: u64 = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.cpu_ns - before.cpu_ns)
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people to read")]
    let cpu_us_per_request = cpu_ns as f64 / 1e3 / load.requests as f64;
    Ok(Round {
        subject: subject.name(),
        load,
        cpu_us_per_request,
        resident_kib: after.iter().map(|usage| usage.resident_kib).collect(),
    })
}

/// nghttpd with a file of the response's size and a gRPC status in its trailers.
fn backend(scenario: &Scenario, work: &Path) -> anyhow::Result<(SocketAddr, Process)> {
    let documents = work.join("documents");
    let file = documents.join(METHOD.trim_start_matches('/'));
    fs::create_dir_all(file.parent().context("a method has a service")?)?;
    fs::write(&file, vec![b'y'; scenario.response_bytes])?;
    let address = free_address()?;
    let process = Process::start(
        "backend",
        LOAD_CORE,
        work,
        "nghttpd",
        [
            "--no-tls",
            "--address=127.0.0.1",
            "--trailer=grpc-status: 0",
            &format!("--htdocs={}", documents.display()),
            &address.port().to_string(),
        ],
    )?;
    Ok((address, process))
}

fn logs(work: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "log")
        {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            text += &format!("{}:\n{log}\n", entry.path().display());
        }
    }
    text
}
