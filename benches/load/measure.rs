//! Rounds of one scenario: every subject in each, in alternating order.

use std::{fs, path::Path};

use anyhow::Context;

use crate::{
    backend, generator,
    process::{Core, Process},
    ready,
    report::{Round, Row},
    scenario::Scenario,
    subject::{Place, Subject},
};

/// Rows in the order of `subjects`. A subject that fails in one round is measured in no further
/// one: its row says why, and the others go on.
pub(crate) fn rounds(
    scenario: &Scenario,
    subjects: &[Subject],
    rounds: u32,
) -> anyhow::Result<Vec<Row>> {
    let mut rows: Vec<_> = subjects
        .iter()
        .map(|subject| Row::new(*subject, scenario))
        .collect();
    let work = tempfile::tempdir().context("making a work directory")?;
    for number in 0..rounds {
        let mut order: Vec<_> = rows.iter_mut().collect();
        if number % 2 == 1 {
            order.reverse();
        }
        for row in order {
            if row.missing.is_some() {
                continue;
            }
            let place = work.path().join(format!("{number}-{}", row.subject));
            fs::create_dir(&place)?;
            match round(row.subject, scenario, &place) {
                Ok(round) => row.rounds.push(round),
                Err(error) => {
                    tell(&format!("{}: {error:#}\n{}", row.subject, logs(&place)));
                    row.failed(&error);
                }
            }
            // Logs of requests can be large.
            fs::remove_dir_all(&place)?;
        }
    }
    Ok(rows)
}

fn round(subject: Subject, scenario: &Scenario, work: &Path) -> anyhow::Result<Round> {
    let (backend, _backend_process) = backend::start(scenario, work)?;
    let running = subject.start(&Place {
        scenario,
        backend,
        work,
    })?;
    ready::wait(scenario, &running, work)?;
    let load =
        |seconds| generator::run(scenario, seconds, running.address, &running.authority, work);
    if scenario.warm_up_s > 0 {
        load(scenario.warm_up_s).context("warming up")?;
    }
    let usage = || {
        running
            .processes
            .iter()
            .filter(|process| process.is_measured)
            .map(Process::usage)
            .collect::<anyhow::Result<Vec<_>>>()
    };
    let (core_before, before) = (Core::of_proxies()?, usage()?);
    let answers = load(scenario.duration_s.get())?;
    let (core_after, after) = (Core::of_proxies()?, usage()?);
    let cpu_ns: u64 = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.cpu_ns_since(before))
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a figure for people to read")]
    let cpu_us_per_unit = cpu_ns as f64 / 1e3 / answers.units(scenario.per);
    Ok(Round {
        cpu_us_per_unit,
        others: core_after.others_since(&core_before, cpu_ns),
        answers,
        resident_kib: after.iter().map(|usage| usage.resident_kib).collect(),
    })
}

/// The last words of everything that ran.
fn logs(work: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(work).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let log = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(LOG_LINES_MAX).collect();
            let lines: Vec<_> = lines.into_iter().rev().collect();
            text += &format!("{}:\n{}\n", path.display(), lines.join("\n"));
        }
    }
    text
}

const LOG_LINES_MAX: usize = 20;

#[expect(clippy::print_stderr, reason = "why a row is missing")]
fn tell(text: &str) {
    eprintln!("{text}");
}
