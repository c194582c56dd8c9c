//! Instructions of the hot path's decisions and of its codec, counted by callgrind and compared with the figures
//! of the tree: they do not depend on what else the machine does, so they can fail a build.
//!
//! Each decision runs in two processes, once `ITERATIONS` and once twice as often; the difference
//! of their counts is what `ITERATIONS` decisions cost, without the start of a process and what
//! a decision needs to be set up.

mod codec;
mod decisions;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, ensure};
use clap::Parser;

/// More than these instructions against the committed figure are a fault.
const GROWTH_MAX: f64 = 1.05;

/// The second decision of each pair knows more than the first, and may cost this much of it.
const SCALE_MAX: f64 = 1.10;
const SCALES: [(&str, &str); 7] = [
    ("pick/3", "pick/1000"),
    ("pick-by-weight/3", "pick-by-weight/1000"),
    ("pick-in-turn/3", "pick-in-turn/1000"),
    ("pick-live/3", "pick-live/1000"),
    ("find/10", "find/1000"),
    ("find-host/1", "find-host/1000"),
    ("outbound/1", "outbound/1000"),
];

/// So many that what differs between two starts, as by the seed of a map, is below a tenth of an
/// instruction.
const ITERATIONS: u32 = 20_000;

/// Counts instructions of decisions
#[derive(Debug, Parser)]
struct Args {
    /// Decisions whose name begins so; all unless given
    #[arg(default_value = "")]
    begin: String,

    /// Keep what was counted as what is expected from now on
    #[arg(long)]
    write: bool,

    #[arg(long, default_value = "benches/micro/instructions.json")]
    figures: PathBuf,

    /// Only decide as often: what is counted
    #[arg(long, hide = true, requires = "begin")]
    iterations: Option<u32>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.iterations {
        Some(iterations) => run(&args.begin, iterations),
        None => compare(&args),
    }
}

fn run(name: &str, iterations: u32) -> anyhow::Result<()> {
    let mut all = all();
    let mut decision = all
        .find(|decision| decision.name == name)
        .with_context(|| format!("no decision {name}"))?;
    for _ in 0..iterations {
        (decision.run)();
    }
    Ok(())
}

fn compare(args: &Args) -> anyhow::Result<()> {
    let mut figures = read(&args.figures)?;
    let mut faults = Vec::new();
    let mut out = io::stdout();
    let mut counted = BTreeMap::new();
    for decision in all() {
        let name = decision.name;
        if !name.starts_with(&args.begin) {
            continue;
        }
        let count = count(&name)?;
        let expected = figures.get(&name).copied();
        faults.extend(fault(&name, count, expected));
        let expected = expected.map_or_else(|| "-".to_owned(), |it| format!("{it:.1}"));
        writeln!(out, "{name:<20} {count:>10.1} {expected:>10}")?;
        counted.insert(name, count);
    }
    faults.retain(|_| !args.write);
    faults.extend(scale_faults(&counted));
    if args.write {
        figures.extend(counted);
        let text = serde_json::to_string_pretty(&figures)?;
        fs::write(&args.figures, text + "\n")?;
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn all() -> impl Iterator<Item = decisions::Decision> {
    decisions::all().into_iter().chain(codec::all())
}

/// What is wrong with one figure.
fn fault(name: &str, count: f64, expected: Option<f64>) -> Option<String> {
    let Some(expected) = expected else {
        return Some(format!("{name}: no figure yet; `--write` keeps this one"));
    };
    let grown = count / expected;
    (grown > GROWTH_MAX).then(|| {
        format!(
            "{name}: {count:.1} instructions instead of {expected:.1} ({:+.0} %); `--write` if that is meant",
            (grown - 1.0) * 100.0
        )
    })
}

/// What grows with what is known.
fn scale_faults(counted: &BTreeMap<String, f64>) -> Vec<String> {
    let mut faults = Vec::new();
    for (few, many) in SCALES {
        let (Some(from), Some(to)) = (counted.get(few), counted.get(many)) else {
            continue;
        };
        if to / from > SCALE_MAX {
            faults.push(format!(
                "{many} takes {to:.1} instructions, {few} {from:.1}"
            ));
        }
    }
    faults
}

fn read(file: &Path) -> anyhow::Result<BTreeMap<String, f64>> {
    if !file.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))
}

/// Instructions of one decision, to a tenth.
fn count(name: &str) -> anyhow::Result<f64> {
    let (few, many) = (counted(name, ITERATIONS)?, counted(name, 2 * ITERATIONS)?);
    let each = (many - few) / f64::from(ITERATIONS);
    Ok((each * 10.0).round() / 10.0)
}

/// Instructions of a process that decides as often.
fn counted(name: &str, iterations: u32) -> anyhow::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args([name, "--iterations", &iterations.to_string()])
        .output()
        .context("starting valgrind (Debian package valgrind)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {said}");
    // ==123== Collected : 456
    let count = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .with_context(|| format!("callgrind collected nothing: {said}"))?;
    Ok(count.1.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::{decisions, fault, run, scale_faults};

    /// Whether a count is refused against the figure of the tree.
    #[track_caller]
    fn check(count: f64, expected: Option<f64>, is_fault: bool) {
        assert_eq!(fault("x", count, expected).is_some(), is_fault);
    }

    #[test]
    fn five_percent_more_are_a_fault_and_less_never_is() {
        check(105.0, Some(100.0), false);
        check(105.1, Some(100.0), true);
        check(1.0, Some(100.0), false);
        check(100.0, None, true);
    }

    #[test]
    fn what_knows_more_may_cost_a_tenth_more() {
        let counted = |many: f64| [("pick/3".into(), 100.0), ("pick/1000".into(), many)].into();
        assert!(scale_faults(&counted(110.0)).is_empty());
        assert_eq!(scale_faults(&counted(111.0)).len(), 1);
    }

    #[test]
    fn every_decision_is_made() {
        for decision in decisions::all() {
            run(&decision.name, 1).expect("it is there");
        }
        assert!(run("no such", 1).is_err());
    }
}
