use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::at;

const LIMITS: Limits = Limits::UNLIMITED;

fn policy(words: &str, retries: u32) -> RetryPolicy {
    let (on, unknown) = RetryOn::parse(words);
    assert!(unknown.is_empty(), "{unknown:?}");
    RetryPolicy {
        retries_max: NonZeroU32::new(retries).unwrap(),
        attempt_timeout: None,
        on,
        backoff_base: Duration::from_millis(100),
        backoff_max: Duration::from_secs(1),
    }
}

const fn http(status: u16) -> Outcome {
    Outcome::Response { status, grpc: None }
}

fn failed(outcome: Outcome) -> Attempted {
    Attempted {
        outcome,
        is_replayable: true,
        endpoints: 5,
        pushback: None,
    }
}

fn terms<'a>(policy: &'a RetryPolicy, admission: &'a Arc<Admission>) -> RetryTerms<'a> {
    RetryTerms {
        policy: Some(policy),
        admission,
        limits: &LIMITS,
    }
}

/// The words of the decisions for one attempt after the other, `method` on a route that retries
/// twice.
#[track_caller]
fn check(on: &str, method: &str, attempts: &[Attempted], expected: &[&str]) {
    let policy = policy(on, 2);
    let admission = Arc::default();
    let terms = terms(&policy, &admission);
    let mut retry = Retry::new(method, None);
    let mut rng = StdRng::seed_from_u64(1);
    let decisions = attempts.iter().enumerate().map(|(endpoint, attempted)| {
        retry.picked(endpoint);
        match retry.after(attempted, &terms, at(0.0), &mut rng) {
            RetryDecision::Repick => "repick".to_owned(),
            RetryDecision::After(_) => "retry".to_owned(),
            RetryDecision::Stop(stop) => format!("{stop:?}"),
        }
    });
    assert_eq!(decisions.collect::<Vec<_>>(), expected);
}

#[test]
fn a_route_gets_the_retries_it_asks_for_and_no_more() {
    let attempts = [failed(http(503)); 3];
    check("5xx", "GET", &attempts, &["retry", "retry", "Exhausted"]);
    check("retriable-4xx", "GET", &attempts[..1], &["NotAsked"]);
    check("5xx", "GET", &[failed(http(200))], &["NotAsked"]);
    check("5xx", "GET", &[failed(Outcome::Cancelled)], &["NotAsked"]);
}

#[test]
fn every_word_means_its_outcomes() {
    let code = |code| Outcome::Response {
        status: 200,
        grpc: Some(code),
    };
    for (word, outcome, is_retried) in [
        ("5xx", http(500), true),
        ("5xx", Outcome::Reset, true),
        ("5xx", Outcome::ConnectFailed, true),
        ("5xx", http(499), false),
        ("gateway-error", http(502), true),
        ("gateway-error", http(500), false),
        ("gateway-error", Outcome::TimedOut, true),
        ("reset", Outcome::TimedOut, true),
        ("reset", http(503), false),
        ("connect-failure", Outcome::ConnectFailed, true),
        ("connect-failure", Outcome::Unreached, true),
        ("connect-failure", Outcome::Reset, false),
        ("refused-stream", Outcome::Refused, true),
        ("retriable-4xx", http(409), true),
        ("retriable-4xx", http(408), false),
        ("429", http(429), true),
        ("retriable-status-codes,429", http(430), false),
        ("cancelled", code(1), true),
        ("deadline-exceeded", code(4), true),
        ("resource-exhausted", code(8), true),
        ("internal", code(13), true),
        ("unavailable", code(14), true),
        ("unavailable", code(13), false),
        ("unavailable", code(0), false),
        ("unavailable", code(46), false),
        ("5xx", code(0), false),
    ] {
        let on = RetryOn::parse(word).0;
        assert_eq!(outcome.is_retried(&on), is_retried, "{word} {outcome:?}");
    }
}

#[test]
fn unknown_words_are_reported() {
    for (words, expected) in [
        ("", &[][..]),
        ("5xx, ,reset", &[]),
        ("5XX,600,99,+50,1000", &["5XX", "600", "99", "+50", "1000"]),
    ] {
        assert_eq!(RetryOn::parse(words).1, expected, "{words}");
    }
}

#[test]
fn a_method_that_is_not_idempotent_needs_the_route_to_ask_or_proof() {
    let connect = RetryOn::parse("connect-failure,refused-stream").0;
    assert!(!connect.any_method);
    assert!(RetryOn::parse("connect-failure,reset").0.any_method);
    // Proof: more endpoints cannot be re-picked, so these are retries.
    let alone = Attempted {
        endpoints: 1,
        ..failed(Outcome::ConnectFailed)
    };
    check("connect-failure", "POST", &[alone], &["retry"]);
    let policy = RetryPolicy {
        on: RetryOn {
            reset: true,
            any_method: false,
            ..connect
        },
        ..policy("reset", 1)
    };
    for (method, is_stopped) in [
        ("POST", true),
        ("PATCH", true),
        ("get", true),
        ("PUT", false),
    ] {
        let admission = Arc::default();
        let terms = terms(&policy, &admission);
        let mut retry = Retry::new(method, None);
        let attempted = failed(Outcome::Reset);
        let decision = retry.after(&attempted, &terms, at(0.0), &mut StdRng::seed_from_u64(1));
        let stopped = RetryDecision::Stop(Stop::NotIdempotent);
        assert_eq!(decision == stopped, is_stopped, "{method}");
    }
}

#[test]
fn what_was_not_processed_is_tried_elsewhere_at_once() {
    let connect = failed(Outcome::ConnectFailed);
    let repicks = ["repick", "repick", "repick", "NotAsked"];
    check("reset", "POST", &[connect; 4], &repicks);
    check("reset", "POST", &[failed(Outcome::Unreached); 4], &repicks);
    let both = ["repick", "repick", "repick", "retry", "retry", "Exhausted"];
    check("connect-failure", "POST", &[connect; 6], &both);
    let two = Attempted {
        endpoints: 2,
        ..connect
    };
    check("reset", "POST", &[two; 2], &["repick", "NotAsked"]);
    let refused = Attempted {
        endpoints: 1,
        ..failed(Outcome::Refused)
    };
    check("reset", "POST", &[refused; 4], &repicks);
}

#[test]
fn a_body_that_is_gone_cannot_be_sent_again() {
    let gone = |outcome| Attempted {
        is_replayable: false,
        ..failed(outcome)
    };
    check("5xx", "GET", &[gone(http(503))], &["NotReplayable"]);
    check("5xx", "GET", &[gone(Outcome::Refused)], &["NotReplayable"]);
    check(
        "5xx",
        "GET",
        &[gone(Outcome::Unreached)],
        &["NotReplayable"],
    );
    check("5xx", "GET", &[gone(Outcome::ConnectFailed)], &["repick"]);
}

#[test]
fn waits_are_jittered_double_and_are_capped() {
    let policy = policy("5xx", 8);
    let mut longest = [Duration::ZERO; 8];
    for seed in 0..400 {
        let admission = Arc::default();
        let terms = terms(&policy, &admission);
        let mut retry = Retry::new("GET", None);
        let mut rng = StdRng::seed_from_u64(seed);
        for longest in &mut longest {
            let decision = retry.after(&failed(http(503)), &terms, at(0.0), &mut rng);
            let RetryDecision::After(wait) = decision else {
                panic!("{decision:?}");
            };
            *longest = wait.max(*longest);
        }
    }
    for (longest, cap) in longest
        .iter()
        .zip([100, 200, 400, 800, 1000, 1000, 1000, 1000])
    {
        let cap = Duration::from_millis(cap);
        assert!(
            *longest <= cap && *longest >= cap * 9 / 10,
            "{longest:?} {cap:?}"
        );
    }
}

#[test]
fn push_back_is_obeyed() {
    assert_eq!(
        Pushback::parse(b"250"),
        Pushback::After(Duration::from_millis(250))
    );
    for value in [&b"-1"[..], b"", b"x", b"1.5", b"3000000000", b"\xff"] {
        assert_eq!(Pushback::parse(value), Pushback::Never);
    }
    let policy = policy("unavailable", 3);
    let admission = Arc::default();
    let terms = terms(&policy, &admission);
    let mut retry = Retry::new("POST", None);
    let mut rng = StdRng::seed_from_u64(1);
    let mut after = |pushback| {
        let outcome = Outcome::response(200, Some(b"14"));
        let attempted = Attempted {
            pushback,
            ..failed(outcome)
        };
        retry.after(&attempted, &terms, at(0.0), &mut rng)
    };
    let wait = Duration::from_secs(5);
    assert_eq!(
        after(Some(Pushback::After(wait))),
        RetryDecision::After(wait)
    );
    // Nobody waits here for as long as that, holding a place in the budget.
    let wait = Duration::from_secs(31);
    assert_eq!(
        after(Some(Pushback::After(wait))),
        RetryDecision::Stop(Stop::PushedBack)
    );
    // It starts the back-off anew.
    let RetryDecision::After(first) = after(None) else {
        panic!("a retry is left");
    };
    assert!(first <= Duration::from_millis(100));
    assert_eq!(
        after(Some(Pushback::Never)),
        RetryDecision::Stop(Stop::PushedBack)
    );
}

#[test]
fn no_wait_ends_after_the_deadline() {
    let policy = policy("unavailable", 3);
    let admission = Arc::default();
    for (pushback_ms, expected) in [
        (999, RetryDecision::After(Duration::from_millis(999))),
        (1_000, RetryDecision::Stop(Stop::Deadline)),
    ] {
        let deadline = Some(at(1.0));
        let terms = terms(&policy, &admission);
        let mut retry = Retry::new("GET", deadline);
        let attempted = Attempted {
            pushback: Some(Pushback::After(Duration::from_millis(pushback_ms))),
            ..failed(Outcome::response(200, Some(b"14")))
        };
        let decision = retry.after(&attempted, &terms, at(0.0), &mut StdRng::seed_from_u64(1));
        assert_eq!(decision, expected);
    }
}

#[test]
fn a_retry_is_in_flight_until_it_is_over() {
    let policy = policy("5xx", 9);
    let admission: Arc<Admission> = Arc::default();
    let mut rng = StdRng::seed_from_u64(1);
    let terms = terms(&policy, &admission);
    let start = || Retry::new("GET", None);
    let mut running: Vec<Retry> = (0..4).map(|_| start()).collect();
    let mut decide = |retry: &mut Retry| retry.after(&failed(http(503)), &terms, at(0.0), &mut rng);
    for retry in &mut running[..3] {
        assert!(matches!(decide(retry), RetryDecision::After(_)));
    }
    assert_eq!(decide(&mut running[3]), RetryDecision::Stop(Stop::Budget));
    // Its second retry takes the place of its first.
    assert!(matches!(decide(&mut running[0]), RetryDecision::After(_)));
    let slot = running.remove(0).commit();
    assert_eq!(
        decide(running.last_mut().unwrap()),
        RetryDecision::Stop(Stop::Budget)
    );
    drop(slot);
    assert!(matches!(
        decide(running.last_mut().unwrap()),
        RetryDecision::After(_)
    ));
}

#[test]
fn tried_endpoints_are_remembered_once_each() {
    let mut tried = Tried::default();
    assert!(tried.is_empty());
    for endpoint in (0..20).chain(0..20) {
        tried.insert(endpoint);
        assert!(tried.contains(endpoint));
        assert!(tried.len() <= Tried::CAPACITY);
    }
    assert!(!tried.contains(99));
}
