//! Verdicts from rounds.

use super::{Bar, Report, Round, Row, Says, Scenario, Spread, verdict};
use crate::{
    generator::{Answers, Latency},
    scenario::Figure,
    subject::Subject,
};

const SCENARIO: &str = r#"{
    "title": "t", "way": "pair", "per": "request", "rounds": 3, "warm_up_s": 0, "duration_s": 1,
    "load": {"stream": {"connections": 1, "bytes": 1}}
}"#;

fn rows(figures: &[(Subject, &[(f64, u64)])]) -> Vec<Row> {
    let round = |(cpu, p50): &(f64, u64)| Round {
        cpu_us_per_unit: *cpu,
        others: 0.0,
        answers: Answers {
            count: 1,
            bytes: 1,
            elapsed_s: 1.0,
            latency: Some(Latency {
                p50: *p50,
                p90: *p50,
                p99: *p50,
                p999: *p50,
            }),
        },
        resident_kib: vec![],
    };
    figures
        .iter()
        .map(|(subject, rounds)| Row {
            subject: *subject,
            version: String::new(),
            rounds: rounds.iter().map(round).collect(),
            missing: None,
        })
        .collect()
}

/// What is said of Heddle against Envoy at most 0.5, and the median ratio.
#[track_caller]
fn check(figure: Figure, rows: &[Row], says: Says, ratio: Option<f64>) {
    let scenario: Scenario = serde_json::from_str(SCENARIO).expect("it is one");
    let bar = Bar {
        of: Subject::Heddle,
        figure,
        against: Subject::Envoy,
        most: 0.5,
        aim: None,
    };
    let verdict = verdict(bar, &scenario, rows);
    assert_eq!(verdict.says, says);
    assert_eq!(verdict.ratio.map(|ratio| ratio.median), ratio);
}

const DIRECT: (Subject, &[(f64, u64)]) = (Subject::Direct, &[(0.0, 100), (0.0, 110), (0.0, 100)]);

#[test]
fn ratios_are_of_the_same_round_and_their_median_is_judged() {
    let heddle: &[_] = &[(10.0, 0), (40.0, 0), (10.0, 0)];
    let envoy: &[_] = &[(20.0, 0), (80.0, 0), (40.0, 0)];
    let all = rows(&[(Subject::Heddle, heddle), (Subject::Envoy, envoy)]);
    check(Figure::Cpu, &all, Says::Holds, Some(0.5));
    let all = rows(&[(Subject::Heddle, envoy), (Subject::Envoy, heddle)]);
    check(Figure::Cpu, &all, Says::Fails, Some(2.0));
}

#[test]
fn latency_is_what_is_added_to_that_of_direct() {
    let heddle: &[_] = &[(0.0, 140), (0.0, 150), (0.0, 140)];
    let envoy: &[_] = &[(0.0, 200), (0.0, 210), (0.0, 200)];
    let all = rows(&[DIRECT, (Subject::Heddle, heddle), (Subject::Envoy, envoy)]);
    check(Figure::P50Added, &all, Says::Holds, Some(0.4));
}

#[test]
fn nothing_is_decided_where_direct_spreads_by_more_than_a_fifth() {
    let direct: &[_] = &[(0.0, 100), (0.0, 121), (0.0, 100)];
    let other: &[_] = &[(0.0, 200), (0.0, 221), (0.0, 200)];
    let all = rows(&[
        (Subject::Direct, direct),
        (Subject::Heddle, other),
        (Subject::Envoy, other),
    ]);
    let says = Says::NotDecidable("direct itself spreads by 21 %".into());
    check(Figure::P50Added, &all, says, Some(1.0));
}

#[test]
fn nothing_is_decided_where_something_else_used_the_core() {
    let three: &[_] = &[(1.0, 1), (1.0, 1), (1.0, 1)];
    let mut all = rows(&[(Subject::Heddle, three), (Subject::Envoy, three)]);
    all[1].rounds[0].others = 0.5;
    check(Figure::Cpu, &all, Says::Fails, Some(1.0));
    all[1].rounds[1].others = 0.06;
    let says = Says::NotDecidable("something else used 6 % of envoy's core".into());
    check(Figure::Cpu, &all, says, Some(1.0));
}

#[test]
fn nothing_is_decided_by_too_few_rounds_or_without_figures() {
    let two: &[_] = &[(1.0, 1), (1.0, 1)];
    let mut all = rows(&[(Subject::Heddle, two), (Subject::Envoy, two)]);
    let says = Says::NotDecidable("2 of 3 rounds".into());
    check(Figure::Cpu, &all, says, Some(1.0));
    check(
        Figure::P50Added,
        &all,
        Says::NotDecidable("direct has no figures".into()),
        None,
    );
    all[1].failed(&anyhow::anyhow!("status 503\nand more"));
    let says = Says::NotDecidable("envoy: failed in round 3: status 503".into());
    check(Figure::Cpu, &all, says, None);
    all.pop();
    let says = Says::NotDecidable("envoy was left out".into());
    check(Figure::Cpu, &all, says, None);
}

#[test]
fn a_failed_subject_has_no_figure_even_of_its_good_rounds() {
    let mut all = rows(&[DIRECT]);
    let cpu = |round: &Round| round.answers.latency.map(|_| 1.0);
    let one = Spread {
        median: 1.0,
        least: 1.0,
        most: 1.0,
    };
    assert_eq!(all[0].spread(cpu), Some(one));
    all[0].failed(&anyhow::anyhow!("x"));
    assert_eq!(all[0].spread(cpu), None);
}

#[test]
fn what_is_saved_is_read_again() {
    let scenario: Scenario = serde_json::from_str(SCENARIO).expect("it is one");
    let machine = super::Machine::here("x".into());
    let report = Report::new(machine, scenario, rows(&[DIRECT]));
    let directory = tempfile::tempdir().expect("there is room");
    let file = directory.path().join("x.json");
    report.save(&file).expect("it is written");
    let again = Report::read(&file).expect("it is read");
    assert_eq!(format!("{again:?}"), format!("{report:?}"));
}
