use super::*;
use crate::{
    at,
    outcome::Blame::{Failure, Neutral, Success},
};

const POLICY: OutlierPolicy = OutlierPolicy {
    failures_in_a_row: NonZeroU32::new(3).unwrap(),
    counts: FailureKind::GatewayErrors,
    interval: Duration::from_secs(10),
    base_ejection_time: Duration::from_secs(30),
    max_ejection_time: Duration::from_secs(70),
    max_ejection_percent: 50,
    min_health_percent: 0,
};

/// Ejection times for outcomes one second apart.
#[track_caller]
fn check(outcomes: &[Blame], ejected_at: &[usize]) {
    let mut endpoint = Outlier::default();
    let mut ejected = Vec::new();
    for (second, blame) in outcomes.iter().enumerate() {
        let now = at(second as f64);
        if endpoint.observe(*blame, &POLICY, now) == Verdict::Eject {
            endpoint.eject(&POLICY, now);
            ejected.push(second);
        }
    }
    assert_eq!(ejected, ejected_at);
}

#[test]
fn failures_in_a_row_eject() {
    check(&[Failure, Failure, Failure], &[2]);
}

#[test]
fn a_success_resets_the_streak() {
    check(&[Failure, Failure, Success, Failure, Failure], &[]);
}

#[test]
fn cancellation_is_neutral() {
    check(&[Failure, Failure, Neutral, Failure], &[3]);
}

#[test]
fn outcomes_during_an_ejection_are_of_earlier_requests() {
    check(&[Failure; 30], &[2]);
}

#[test]
fn an_ejection_that_was_not_allowed_is_asked_for_again() {
    let mut endpoint = Outlier::default();
    let verdicts: Vec<Verdict> = (0..4)
        .map(|second| endpoint.observe(Failure, &POLICY, at(f64::from(second))))
        .collect();
    let expected = [Verdict::Keep, Verdict::Keep, Verdict::Eject, Verdict::Eject];
    assert_eq!(verdicts, expected);
}

#[test]
fn time_grows_with_each_ejection_up_to_the_maximum_and_is_forgiven() {
    let mut endpoint = Outlier::default();
    let mut eject = |second| endpoint.eject(&POLICY, at(second)).as_secs();
    assert_eq!(eject(0.0), 30);
    assert_eq!(eject(30.0), 60);
    assert_eq!(eject(90.0), 70);
    // Ended at 160, three times counted; two intervals of good behaviour forgive two.
    assert_eq!(eject(180.0), 60);
    assert_eq!(eject(1_000.0), 30);
}

#[test]
fn a_return_is_a_comparison_with_now_and_slow() {
    let mut endpoint = Outlier::default();
    endpoint.eject(&POLICY, at(0.0));
    for (second, is_ejected, share) in [
        (0.0, true, 0.0),
        (29.9, true, 0.0),
        (30.0, false, 0.1),
        (35.0, false, 0.5),
        (40.0, false, 1.0),
        (90.0, false, 1.0),
    ] {
        assert_eq!(endpoint.is_ejected(at(second)), is_ejected, "{second}");
        assert!(
            (endpoint.share(at(second)) - share).abs() < 0.01,
            "{second}"
        );
    }
}

#[test]
fn an_endpoint_is_quiet_once_all_is_over() {
    let mut endpoint = Outlier::default();
    assert!(endpoint.is_quiet(&POLICY, at(0.0)));
    endpoint.observe(Failure, &POLICY, at(0.0));
    assert!(!endpoint.is_quiet(&POLICY, at(0.0)));
    endpoint.observe(Success, &POLICY, at(0.0));
    assert!(endpoint.is_quiet(&POLICY, at(0.0)));
    endpoint.eject(&POLICY, at(0.0));
    assert!(!endpoint.is_quiet(&POLICY, at(39.0)));
    assert!(endpoint.is_quiet(&POLICY, at(40.0)));
    assert_eq!(endpoint, Outlier::default());
}

/// How many of `n` are ejected when every one of them fails.
#[track_caller]
fn check_allowed(max_percent: u32, min_health_percent: u32, expected: &[(usize, usize)]) {
    let policy = OutlierPolicy {
        max_ejection_percent: max_percent,
        min_health_percent,
        ..POLICY
    };
    for (endpoints, expected) in expected {
        let mut ejected = 0;
        while policy.may_eject(*endpoints, ejected) {
            ejected += 1;
        }
        assert_eq!(ejected, *expected, "of {endpoints}");
    }
}

#[test]
fn some_endpoints_always_remain() {
    check_allowed(50, 0, &[(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (10, 5)]);
    check_allowed(50, 70, &[(1, 0), (2, 1), (3, 1), (10, 3)]);
    check_allowed(100, 0, &[(1, 0), (2, 1), (3, 2), (10, 9)]);
    check_allowed(0, 100, &[(1, 0), (2, 1), (10, 1)]);
    check_allowed(1_000, 1_000, &[(10, 1)]);
}
