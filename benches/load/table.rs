//! Tables in Markdown, for the terminal and for the README, which has them between two marks.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

use crate::{
    report::{Report, Round, Row, Says, Spread, Verdict},
    scenario::Scenario,
    subject::Subject,
};

/// One scenario: a line for each subject, and the verdicts.
pub(crate) fn of(report: &Report) -> String {
    let scenario = &report.scenario;
    let mut text = format!(
        "**{}** (`{}`): medians of {} rounds, least and most in brackets.\n\n\
        | subject | CPU us/{} | core % | others % | {}s/s | p50 us | p99 us | RSS MiB |\n|---|---|---|---|---|---|---|---|\n",
        scenario.title,
        scenario.name,
        report
            .rows
            .iter()
            .map(|row| row.rounds.len())
            .max()
            .unwrap_or(0),
        scenario.per.name(),
        scenario.per.name(),
    );
    for row in &report.rows {
        text += &line(scenario, row);
    }
    text.push('\n');
    for verdict in &report.verdicts {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "* {}", sentence(verdict));
    }
    text
}

fn line(scenario: &Scenario, row: &Row) -> String {
    if let Some(why) = &row.missing {
        return format!("| {} | - | - | - | - | - | - | {why} |\n", row.subject);
    }
    #[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
    let latency = |of: fn(crate::generator::Latency) -> u64| {
        let spread = row.spread(|round| Some(of(round.answers.latency?) as f64));
        spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.0}", spread.median))
    };
    let cpu = row.spread(|round| Some(round.cpu_us_per_unit));
    let rate = |round: &Round| round.answers.units(scenario.per) / round.answers.elapsed_s;
    // Of the proxies' one core. Far below 100 in a closed loop: they were not what it waited for.
    let core = row.spread(|round| Some(round.cpu_us_per_unit * rate(round) / 1e4));
    let others = row.spread(|round| Some(round.others * 100.0));
    let rate = row.spread(|round| Some(rate(round)));
    let whole = |spread: Spread| format!("{:.0}", spread.median);
    let is_proxied = row.subject != Subject::Direct;
    format!(
        "| {} | {} | {} | {} | {} | {} | {} | {} |\n",
        row.subject,
        cpu.filter(|_| is_proxied)
            .map_or_else(String::new, brackets),
        core.filter(|_| is_proxied).map_or_else(String::new, whole),
        others.map_or_else(String::new, whole),
        rate.map_or_else(String::new, whole),
        latency(|latency| latency.p50),
        latency(|latency| latency.p99),
        resident(row),
    )
}

/// Of each proxy, outbound first.
fn resident(row: &Row) -> String {
    let proxies = row
        .rounds
        .first()
        .map_or(0, |round| round.resident_kib.len());
    let each = (0..proxies).filter_map(|i| {
        #[expect(clippy::cast_precision_loss, reason = "a figure for people to read")]
        let mib = row.spread(|round| Some(*round.resident_kib.get(i)? as f64 / 1024.0))?;
        Some(format!("{:.1}", mib.median))
    });
    each.collect::<Vec<_>>().join(" + ")
}

fn sentence(verdict: &Verdict) -> String {
    let bar = &verdict.bar;
    let ratio = verdict.ratio.map_or_else(|| "none".to_owned(), brackets);
    let aim = bar
        .aim
        .map_or_else(String::new, |aim| format!(", aim {aim}"));
    format!(
        "{} of {} against {}: {ratio}; bar {}{aim}: **{}**",
        bar.figure.name(),
        bar.of,
        bar.against,
        bar.most,
        says(&verdict.says),
    )
}

fn says(says: &Says) -> String {
    match says {
        Says::Holds => "holds".to_owned(),
        Says::Fails => "does not hold".to_owned(),
        Says::NotDecidable(why) => format!("not decidable ({why})"),
    }
}

fn brackets(spread: Spread) -> String {
    format!(
        "{:.2} ({:.2}-{:.2})",
        spread.median, spread.least, spread.most
    )
}

/// Writes the tables of `results` into `readme`.
pub(crate) fn write(readme: &Path, scenarios: &Path, results: &Path) -> anyhow::Result<()> {
    let old =
        fs::read_to_string(readme).with_context(|| format!("reading {}", readme.display()))?;
    let new = with_tables(&old, scenarios, results)
        .with_context(|| format!("in {}", readme.display()))?;
    fs::write(readme, new).with_context(|| format!("writing {}", readme.display()))
}

fn with_tables(readme: &str, scenarios: &Path, results: &Path) -> anyhow::Result<String> {
    let (before, rest) = readme.split_once(BEGIN).context("the first mark")?;
    let (_, after) = rest.split_once(END).context("the second mark")?;
    let mut summary =
        String::from("| scenario | figure | ratio | bar | |\n|---|---|---|---|---|\n");
    let mut details = String::new();
    for file in files(scenarios)? {
        let scenario = Scenario::read(&file)?;
        let result = results.join(format!("{}.json", scenario.name));
        let report = result.exists().then(|| Report::read(&result)).transpose()?;
        // What was measured of a scenario that has changed since then answers another question.
        let report = report.filter(|report| report.scenario == scenario);
        summary += &lines(&scenario, report.as_ref());
        if let Some(report) = report {
            // Writing to a String cannot fail.
            let _ = write!(details, "\n{}\n{}", of(&report), source(&report));
        }
    }
    Ok(format!("{before}{BEGIN}\n{summary}{details}{END}{after}"))
}

/// Of the summary: one for each bar.
fn lines(scenario: &Scenario, report: Option<&Report>) -> String {
    let mut text = String::new();
    for (i, bar) in scenario.bars.iter().enumerate() {
        let verdict = report.and_then(|report| report.verdicts.get(i));
        let ratio = verdict.and_then(|verdict| verdict.ratio).map(brackets);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} of {} against {} | {} | {} | {} |",
            scenario.title,
            bar.figure.name(),
            bar.of,
            bar.against,
            ratio.unwrap_or_default(),
            bar.most,
            verdict.map_or_else(|| "not measured yet".to_owned(), |it| says(&it.says)),
        );
    }
    if scenario.bars.is_empty() {
        let says = report.map_or("not measured yet", |_| "below");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {} | | | none | {says} |", scenario.title);
    }
    text
}

fn source(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "`{}` at {}, {}, {}, {} x {}, load average {} at its start.",
        machine.command,
        machine.commit,
        machine.date,
        machine.kernel,
        machine.processors,
        machine.processor,
        machine.load_average,
    );
    for subject in [Subject::Envoy, Subject::Nginx, Subject::Haproxy] {
        if let Some(row) = report.row(subject).filter(|row| !row.rounds.is_empty()) {
            // Writing to a String cannot fail.
            let _ = write!(text, " {subject}: {}.", row.version);
        }
    }
    text + "\n"
}

/// All scenarios of `directory`, by name.
pub(crate) fn files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

const BEGIN: &str = "<!-- Written by `load tables` from results/: do not edit. -->";
const END: &str = "<!-- End of what `load tables` writes. -->";

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{BEGIN, END, with_tables};
    use crate::{
        report::{Machine, Report, Row},
        scenario::Scenario,
        subject::Subject,
    };

    const SCENARIO: &str = "
title: The title
way: pair
load:
  stream: {connections: 1, bytes: 1}
per: mib
bars:
  - {figure: cpu, against: envoy, most: 0.5}
rounds: 1
warm_up_s: 0
duration_s: 1
";

    #[test]
    fn a_result_of_a_scenario_that_has_changed_is_not_shown() {
        let directory = tempfile::tempdir().expect("there is room");
        let (scenarios, results) = (directory.path().join("s"), directory.path().join("r"));
        for made in [&scenarios, &results] {
            fs::create_dir(made).expect("there is room");
        }
        let file = scenarios.join("x.yaml");
        fs::write(&file, SCENARIO).expect("there is room");
        let scenario = Scenario::read(&file).expect("it is good");
        let machine = Machine::here("load measure".to_owned());
        let rows = vec![Row::new(Subject::Direct, &scenario)];
        let report = Report::new(machine, scenario, rows);
        report.save(&results.join("x.json")).expect("there is room");
        let tables = || {
            let readme = format!("before {BEGIN} old {END} after");
            with_tables(&readme, &scenarios, &results).expect("it has the marks")
        };
        let shown = tables();
        assert!(shown.starts_with("before ") && shown.ends_with(" after"));
        assert!(!shown.contains("old"), "{shown}");
        assert!(
            shown.contains("not decidable (heddle was left out)"),
            "{shown}"
        );
        assert!(shown.contains("`load measure`"), "{shown}");
        fs::write(&file, SCENARIO.replace("0.5", "0.4")).expect("there is room");
        let shown = tables();
        assert!(shown.contains("not measured yet"), "{shown}");
        assert!(!shown.contains("`load measure`"), "{shown}");
    }

    #[test]
    fn the_tables_of_the_readme_are_those_of_the_results() {
        let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = fs::read_to_string(benches.join("README.md")).expect("it is there");
        let (scenarios, results) = (benches.join("load/scenarios"), benches.join("results"));
        let fresh = with_tables(&readme, &scenarios, &results).expect("it has the marks");
        assert!(fresh == readme, "`load tables` has not been run");
    }
}
