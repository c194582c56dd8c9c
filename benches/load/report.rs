//! Figures of all rounds, with what is needed to judge them, and the judgement.

use std::{fmt, fs, path::Path, process::Command};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{
    generator::Answers,
    scenario::{Bar, Figure, Scenario},
    subject::Subject,
};

/// What is kept of a run, one file for each scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) scenario: Scenario,
    pub(crate) rows: Vec<Row>,
    /// In the order of the scenario's bars.
    pub(crate) verdicts: Vec<Verdict>,
}

/// Where and of what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) command: String,
    pub(crate) date: String,
    /// With `-dirty` where files were not as committed.
    pub(crate) commit: String,
    pub(crate) kernel: String,
    pub(crate) processor: String,
    pub(crate) processors: String,
    /// Of the minute before; what else ran.
    pub(crate) load_average: String,
}

/// One subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) subject: Subject,
    pub(crate) version: String,
    pub(crate) rounds: Vec<Round>,
    /// Why it has no figures, or none of all rounds.
    pub(crate) missing: Option<Missing>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Missing {
    /// The subject has no such thing.
    Cannot(String),
    /// A round did.
    Failed(String),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cannot(why) => f.write_str(why),
            Self::Failed(why) => write!(f, "failed in {why}"),
        }
    }
}

/// One subject in one round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Round {
    /// CPU time of the subject's proxies; zero without proxies.
    pub(crate) cpu_us_per_unit: f64,
    /// Share of the proxies' core that something else used meanwhile.
    pub(crate) others: f64,
    pub(crate) answers: Answers,
    /// Resident memory of each proxy at the end of the load.
    pub(crate) resident_kib: Vec<u64>,
}

/// Of a bar.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) bar: Bar,
    /// Median and extremes of the ratios of the rounds.
    pub(crate) ratio: Option<Spread>,
    pub(crate) says: Says,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Says {
    Holds,
    Fails,
    NotDecidable(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Report {
    pub(crate) fn new(machine: Machine, scenario: Scenario, rows: Vec<Row>) -> Self {
        let verdicts = scenario
            .bars
            .iter()
            .map(|bar| verdict(*bar, &scenario, &rows))
            .collect();
        Self {
            machine,
            scenario,
            rows,
            verdicts,
        }
    }

    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let text =
            fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("in {}", file.display()))
    }

    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    pub(crate) fn row(&self, subject: Subject) -> Option<&Row> {
        row(&self.rows, subject)
    }
}

impl Machine {
    /// As it is now.
    pub(crate) fn here(command: String) -> Self {
        let said = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                .output()
                .ok()
                .and_then(|output| String::from_utf8(output.stdout).ok())
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = file("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name"))
            .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
            .unwrap_or_default();
        let load_average = file("/proc/loadavg");
        let load_average = load_average.split(' ').next().unwrap_or_default();
        Self {
            command,
            date: said("date", &["-u", "+%F"]),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            // Without what a distributor appends.
            kernel: before(&said("uname", &["-sr"]), "-"),
            processor,
            processors: said("nproc", &[]),
            load_average: load_average.to_owned(),
        }
    }
}

impl Row {
    pub(crate) fn new(subject: Subject, scenario: &Scenario) -> Self {
        Self {
            subject,
            version: subject.version(),
            rounds: Vec::new(),
            missing: subject
                .cannot(scenario)
                .map(|why| Missing::Cannot(why.to_owned())),
        }
    }

    /// Whether figures were expected.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.missing, Some(Missing::Failed(_)))
    }

    pub(crate) fn failed(&mut self, error: &anyhow::Error) {
        // The first line: what the programs printed is told at once and not kept.
        let why = format!("{error:#}");
        let why = why.lines().next().unwrap_or_default();
        let why = format!("round {}: {why}", self.rounds.len() + 1);
        self.missing = Some(Missing::Failed(why));
    }

    /// Of `figure` over all rounds; `None` for a row without figures.
    pub(crate) fn spread(&self, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        if self.missing.is_some() {
            return None;
        }
        let all: Option<Vec<_>> = self.rounds.iter().map(figure).collect();
        Spread::of(all?)
    }
}

impl Spread {
    /// Of a list that is not empty.
    pub(crate) fn of(mut all: Vec<f64>) -> Option<Self> {
        all.sort_by(f64::total_cmp);
        let (least, most) = (*all.first()?, *all.last()?);
        let median = f64::midpoint(all[(all.len() - 1) / 2], all[all.len() / 2]);
        Some(Self {
            median,
            least,
            most,
        })
    }
}

fn row(rows: &[Row], subject: Subject) -> Option<&Row> {
    rows.iter().find(|row| row.subject == subject)
}

fn verdict(bar: Bar, scenario: &Scenario, rows: &[Row]) -> Verdict {
    let of = |says: Says, ratio: Option<Spread>| Verdict { bar, ratio, says };
    let cannot = |why: String| of(Says::NotDecidable(why), None);
    let direct = row(rows, Subject::Direct);
    for subject in [bar.of, bar.against] {
        let Some(row) = row(rows, subject) else {
            return cannot(format!("{subject} was left out"));
        };
        if let Some(why) = &row.missing {
            return cannot(format!("{subject}: {why}"));
        }
    }
    let ratios: Option<Vec<_>> = (0..)
        .map_while(|round| {
            let figure = |subject| {
                let row = row(rows, subject)?;
                Some(value(bar.figure, row.rounds.get(round)?, direct, round))
            };
            figure(bar.of).zip(figure(bar.against))
        })
        .map(|(own, other)| Some(own? / other?))
        .collect();
    let Some(ratio) = ratios.and_then(Spread::of) else {
        return cannot("direct has no figures".to_owned());
    };
    if let Some(why) = doubt(&bar, direct, rows) {
        return of(Says::NotDecidable(why), Some(ratio));
    }
    let had = row(rows, bar.of).map_or(0, |row| row.rounds.len());
    let needed = scenario.rounds.get() as usize;
    if had < needed {
        let why = format!("{had} of {needed} rounds");
        return of(Says::NotDecidable(why), Some(ratio));
    }
    let says = if ratio.median <= bar.most {
        Says::Holds
    } else {
        Says::Fails
    };
    of(says, Some(ratio))
}

fn value(figure: Figure, own: &Round, direct: Option<&Row>, round: usize) -> Option<f64> {
    match figure {
        Figure::Cpu => Some(own.cpu_us_per_unit),
        Figure::P50Added | Figure::P99Added => {
            let direct = direct?.rounds.get(round)?;
            Some(latency(figure, own)? - latency(figure, direct)?)
        }
    }
}

/// What stands in `text` before `mark`, all of it without one.
pub(crate) fn before(text: &str, mark: &str) -> String {
    text.split(mark).next().unwrap_or_default().to_owned()
}

/// Why figures say nothing.
fn doubt(bar: &Bar, direct: Option<&Row>, rows: &[Row]) -> Option<String> {
    for subject in [bar.of, bar.against] {
        let others = row(rows, subject)?.spread(|round| Some(round.others))?;
        if others.median > OTHERS_MAX {
            let share = others.median * 100.0;
            return Some(format!(
                "something else used {share:.0} % of {subject}'s core"
            ));
        }
    }
    match bar.figure {
        Figure::Cpu => None,
        Figure::P50Added | Figure::P99Added => {
            let spread = direct?.spread(|round| latency(bar.figure, round))?;
            let share = (spread.most - spread.least) / spread.median;
            (share > DIRECT_SPREAD_MAX)
                .then(|| format!("direct itself spreads by {:.0} %", share * 100.0))
        }
    }
}

/// More than this evicts caches and delays batches: CPU time is no longer the subject's own doing.
const OTHERS_MAX: f64 = 0.05;

/// Beyond this the machine decides, not the proxies.
const DIRECT_SPREAD_MAX: f64 = 0.20;

#[expect(clippy::cast_precision_loss, reason = "microseconds to compare")]
fn latency(figure: Figure, round: &Round) -> Option<f64> {
    let latency = round.answers.latency?;
    match figure {
        Figure::Cpu => None,
        Figure::P50Added => Some(latency.p50 as f64),
        Figure::P99Added => Some(latency.p99 as f64),
    }
}

#[cfg(test)]
mod tests;
