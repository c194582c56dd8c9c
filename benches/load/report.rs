//! Figures of all rounds, as a table for people and as JSON to keep.

use std::{fmt::Write, path::Path, process::Command};

use anyhow::Context;
use serde::Serialize;
use serde_json::json;

use crate::{generator::Load, scenario::Scenario, subject::Subject};

/// One subject in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Round {
    pub(crate) subject: &'static str,
    pub(crate) load: Load,
    /// CPU time of the subject's proxies per request; zero without proxies.
    pub(crate) cpu_us_per_request: f64,
    /// Resident memory of each proxy at the end of the load.
    pub(crate) resident_kib: Vec<u64>,
}

pub(crate) struct Report<'a> {
    pub(crate) scenario: &'a Scenario,
    pub(crate) subjects: &'a [Subject],
    /// Outer: rounds, in order; inner: subjects, in the order of `subjects`.
    pub(crate) rounds: &'a [Vec<Round>],
}

impl Report<'_> {
    /// Medians with the spread of the CPU figure, and ratios to Envoy's round by round.
    pub(crate) fn table(&self) -> String {
        let mut text = format!(
            "{}: {} connections x {} streams, {} rounds\n{:<8} {:>14} {:>17} {:>10} {:>9} {:>9} {:>12} {:>9}\n",
            self.scenario.name,
            self.scenario.connections,
            self.scenario.streams,
            self.rounds.len(),
            "subject",
            "cpu us/request",
            "(min-max)",
            "requests/s",
            "p50 us",
            "p99 us",
            "RSS MiB",
            "vs envoy",
        );
        for (index, subject) in self.subjects.iter().enumerate() {
            let of = |figure: &dyn Fn(&Round) -> f64| {
                let mut all: Vec<f64> = self
                    .rounds
                    .iter()
                    .map(|round| figure(&round[index]))
                    .collect();
                all.sort_by(f64::total_cmp);
                all
            };
            let cpu = of(&|round| round.cpu_us_per_request);
            let resident = self.rounds.last().map_or_else(String::new, |round| {
                let each = round[index]
                    .resident_kib
                    .iter()
                    .map(|kib| (kib / 1024).to_string());
                each.collect::<Vec<_>>().join("+")
            });
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:<8} {:>14.2} {:>17} {:>10.0} {:>9.0} {:>9.0} {:>12} {:>9}",
                subject.name(),
                median(&cpu),
                format!("({:.2}-{:.2})", cpu[0], cpu[cpu.len() - 1]),
                median(&of(&|round| round.load.requests_per_s)),
                median(&of(&|round| us(round.load.p50_us))),
                median(&of(&|round| us(round.load.p99_us))),
                resident,
                self.ratio(index),
            );
        }
        text
    }

    /// Keeps everything, with what is needed to judge it.
    pub(crate) fn save(&self, file: &Path) -> anyhow::Result<()> {
        let said = |program: &str, arguments: &[&str]| {
            Command::new(program)
                .args(arguments)
                .output()
                .ok()
                .and_then(|output| String::from_utf8(output.stdout).ok())
                .map(|text| text.trim().to_owned())
                .unwrap_or_default()
        };
        let versions: serde_json::Map<String, serde_json::Value> = self
            .subjects
            .iter()
            .map(|subject| (subject.name().to_owned(), json!(subject.version())))
            .collect();
        let all = json!({
            "commit": said("git", &["rev-parse", "HEAD"]),
            "kernel": said("uname", &["-sr"]),
            "processors": said("nproc", &[]),
            "versions": versions,
            "scenario": self.scenario,
            "rounds": self.rounds,
        });
        let text = serde_json::to_string_pretty(&all)?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
    }

    fn ratio(&self, index: usize) -> String {
        let envoy = self
            .subjects
            .iter()
            .position(|subject| *subject == Subject::Envoy);
        let Some(envoy) = envoy.filter(|_| self.subjects[index] != Subject::Direct) else {
            return String::new();
        };
        let mut ratios: Vec<f64> = self
            .rounds
            .iter()
            .map(|round| round[index].cpu_us_per_request / round[envoy].cpu_us_per_request)
            .collect();
        ratios.sort_by(f64::total_cmp);
        format!("{:.2}", median(&ratios))
    }
}

/// Of a sorted list that is not empty.
fn median(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds for people to read"
)]
fn us(us: u64) -> f64 {
    us as f64
}
