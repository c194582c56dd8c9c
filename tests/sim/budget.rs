//! Retries: the budget in an outage, and attempts and waits against the deadline.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use heddle_policy::{
    admission::{Admission, Resource, Slot},
    deadline,
    outcome::Outcome,
    retry::{Attempted, Pushback, Retry, RetryDecision, RetryOn, RetryPolicy, RetryTerms},
    snapshot::Limits,
};
use rand::RngExt as _;

use crate::seeds::{Sim, run};

#[test]
fn retries_in_flight_stay_within_the_budget_in_an_outage() {
    run(|sim| {
        let policy = policy(sim);
        let limits = Limits {
            retries_max: NonZeroU32::new(sim.rng.random_range(0..30)),
            ..Limits::UNLIMITED
        };
        let cluster: Arc<Admission> = Arc::default();
        let terms = RetryTerms {
            policy: Some(&policy),
            admission: &cluster,
            limits: &limits,
        };
        let mut running: Vec<(Slot, Retry)> = Vec::new();
        for _ in 0..400 {
            sim.pass(Duration::from_millis(10));
            if running.is_empty() || sim.rng.random() {
                let slot = cluster.acquire(Resource::Requests, None)?;
                running.push((slot, Retry::new("GET", None)));
                continue;
            }
            let index = sim.rng.random_range(0..running.len());
            let outage = attempted(Outcome::response(503, None));
            let decision = running[index]
                .1
                .after(&outage, &terms, sim.now, &mut sim.rng);
            let retries = cluster.in_use(Resource::Retries);
            if let RetryDecision::Stop(_) = decision {
                drop(running.swap_remove(index));
                continue;
            }
            let requests = u32::try_from(running.len())?;
            ensure!(
                retries <= 3 || retries * 5 <= requests,
                "{retries} of {requests}"
            );
            let max = limits.retries_max.map_or(u32::MAX, NonZeroU32::get);
            ensure!(retries <= max, "{retries} of at most {max}");
        }
        drop(running);
        let left = cluster.in_use(Resource::Retries) + cluster.in_use(Resource::Requests);
        ensure!(left == 0, "{left} slots are lost");
        Ok(())
    });
}

#[test]
fn no_attempt_starts_or_ends_after_the_deadline() {
    run(|sim| {
        let policy = policy(sim);
        let limits = Limits::UNLIMITED;
        let cluster: Arc<Admission> = Arc::default();
        for _ in 0..20 {
            exchange(sim, &policy, &limits, &cluster)?;
        }
        Ok(())
    });
}

/// One exchange against endpoints that answer anything, or nothing.
fn exchange(
    sim: &mut Sim,
    policy: &RetryPolicy,
    limits: &Limits,
    cluster: &Arc<Admission>,
) -> Result<()> {
    let start = sim.now;
    let mut millis = || Some(Duration::from_millis(sim.rng.random_range(1..3_000)));
    let (route, client) = (millis(), millis());
    let shortest = route.min(client).expect("both are set");
    let whole = deadline::earliest(start, [route, client]).expect("it is near");
    let terms = RetryTerms {
        policy: Some(policy),
        admission: cluster,
        limits,
    };
    let mut retry = Retry::new("GET", Some(whole));
    let mut attempts = 0;
    loop {
        ensure!(sim.now < start + shortest, "an attempt starts late");
        attempts += 1;
        retry.picked(sim.rng.random_range(0..3));
        let until = deadline::of_attempt(sim.now, policy.attempt_timeout, Some(whole));
        let until = until.expect("the whole has a deadline");
        let forwarded = deadline::remaining(sim.now, whole).0;
        ensure!(
            sim.now + forwarded <= start + shortest,
            "forwarded {forwarded:?}"
        );
        sim.pass(Duration::from_millis(500));
        let mut outcome = any_outcome(sim);
        if sim.now >= until {
            sim.now = until;
            outcome = Outcome::TimedOut;
        }
        let attempted = Attempted {
            pushback: any_pushback(sim),
            ..attempted(outcome)
        };
        match retry.after(&attempted, &terms, sim.now, &mut sim.rng) {
            RetryDecision::Stop(_) => break,
            RetryDecision::Repick => ensure!(outcome.is_unprocessed(), "{outcome:?}"),
            RetryDecision::After(wait) => sim.now += wait,
        }
    }
    ensure!(sim.now <= start + shortest, "the exchange ends late");
    let attempts_max = 1 + policy.retries_max.get() + 3;
    ensure!(
        attempts <= attempts_max,
        "{attempts} of {attempts_max} attempts"
    );
    Ok(())
}

fn policy(sim: &mut Sim) -> RetryPolicy {
    let (on, _) = RetryOn::parse("5xx,unavailable,refused-stream,connect-failure,reset");
    let base = Duration::from_millis(sim.rng.random_range(0..500));
    let timeout = Duration::from_millis(sim.rng.random_range(1..1_000));
    RetryPolicy {
        retries_max: NonZeroU32::new(sim.rng.random_range(1..=5)).expect("at least one"),
        attempt_timeout: sim.rng.random::<bool>().then_some(timeout),
        on,
        backoff_base: base,
        backoff_max: base * 10,
    }
}

fn attempted(outcome: Outcome) -> Attempted {
    Attempted {
        outcome,
        is_replayable: true,
        endpoints: 3,
        pushback: None,
    }
}

fn any_outcome(sim: &mut Sim) -> Outcome {
    let outcomes = [
        Outcome::ConnectFailed,
        Outcome::Refused,
        Outcome::Reset,
        Outcome::response(503, None),
        Outcome::response(200, Some(b"14")),
        Outcome::response(200, None),
    ];
    outcomes[sim.rng.random_range(0..outcomes.len())]
}

fn any_pushback(sim: &mut Sim) -> Option<Pushback> {
    let wait = Duration::from_millis(sim.rng.random_range(0..2_000));
    match sim.rng.random_range(0..10) {
        0 => Some(Pushback::After(wait)),
        1 => Some(Pushback::Never),
        _ => None,
    }
}
