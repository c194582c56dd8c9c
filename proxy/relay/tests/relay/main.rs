//! The relay among simulated peers, network and clock. A failure names its seed.

mod peer;
mod policies;
mod scene;
mod world;

use std::{num::NonZeroU32, time::Duration};

use heddle_policy::retry::{RetryOn, RetryPolicy};

use crate::{
    policies::{HEDGE_AFTER, Treatment, VERDICT_TIME},
    world::{Behaviour, Plan, World},
};

/// Plays `plan` for many seeds: as many as `HEDDLE_SIM_SEEDS` says, or the one that
/// `HEDDLE_SIM_SEED` names.
fn play(plan: impl Fn(u64) -> Plan, check: impl Fn(&World)) {
    let set = |name| std::env::var(name).ok()?.parse().ok();
    let seeds = match set("HEDDLE_SIM_SEED") {
        Some(one) => one..one + 1,
        None => 0..set("HEDDLE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut world = World::new(plan(seed), seed);
            world.play();
            check(&world);
        }));
        assert!(played.is_ok(), "seed {seed}");
    }
}

const SEEDS: u64 = 10;

fn retrying(on: &str) -> Option<RetryPolicy> {
    Some(RetryPolicy {
        retries_max: NonZeroU32::new(3).expect("it is not zero"),
        attempt_timeout: None,
        on: RetryOn::parse(on).0,
        backoff_base: Duration::from_millis(100),
        backoff_max: Duration::from_secs(1),
    })
}

#[test]
fn what_is_sent_is_echoed_whatever_the_network_does() {
    play(
        |_| Plan {
            requests: 40,
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 40);
            assert!(world.records.iter().all(|record| record.reason.is_none()));
        },
    );
}

#[test]
fn large_bodies_pass_between_readers_that_stall() {
    play(
        |_| Plan {
            requests: 12,
            body_bytes_max: 600_000,
            client_window: 10_000,
            stalls: true,
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 12),
    );
}

#[test]
fn what_was_not_processed_goes_to_another_endpoint() {
    play(
        |_| Plan {
            requests: 40,
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::RefuseStreams,
                Behaviour::RefuseConnections,
            ],
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 40),
    );
}

#[test]
fn a_failed_attempt_is_repeated_as_the_route_asks() {
    play(
        |_| Plan {
            requests: 20,
            one_at_a_time: true,
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::Unavailable,
                Behaviour::ResetStreams,
            ],
            retry: retrying("unavailable,reset"),
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 20),
    );
}

#[test]
fn an_answer_that_comes_after_its_attempt_was_given_up_is_nobodys() {
    play(
        |_| Plan {
            requests: 12,
            endpoints: vec![Behaviour::Echo, Behaviour::Late, Behaviour::Late],
            one_at_a_time: true,
            retry: retrying("reset").map(|retry| RetryPolicy {
                attempt_timeout: Some(Duration::from_millis(500)),
                ..retry
            }),
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 12),
    );
}

#[test]
fn windows_open_once_for_what_is_sent_twice() {
    play(
        |_| Plan {
            requests: 12,
            body_bytes_min: 40_000,
            body_bytes_max: 60_000,
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::RefuseStreams,
                Behaviour::ResetStreams,
            ],
            one_at_a_time: true,
            retry: retrying("reset"),
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 12),
    );
}

#[test]
fn what_is_too_long_to_keep_is_not_repeated() {
    play(
        |_| Plan {
            requests: 6,
            body_bytes_min: 100_000,
            body_bytes_max: 200_000,
            endpoints: vec![Behaviour::ResetLongUploads; 3],
            retry: retrying("reset"),
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("status 14"), 6);
            assert!(world.records.iter().all(|record| record.attempts == 1));
        },
    );
}

#[test]
fn who_waits_for_a_stream_gets_one_though_connections_break() {
    play(
        |seed| Plan {
            requests: 60,
            endpoints: vec![Behaviour::Echo, Behaviour::ResetStreams],
            endpoint_streams: 1 + u32::try_from(seed % 3).expect("it is small"),
            breaks: 0.01,
            ..Plan::default()
        },
        |world| assert!(world.outcomes("ok") > 0),
    );
}

#[test]
fn without_a_policy_a_failure_is_the_answer() {
    play(
        |_| Plan {
            requests: 10,
            endpoints: vec![Behaviour::ResetStreams],
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("status 14"), 10);
            let is_reset = |record: &world::Seen| record.reason == Some("reset");
            assert!(world.records.iter().all(is_reset));
        },
    );
}

#[test]
fn every_exchange_ends_once_in_a_world_that_breaks() {
    play(
        |seed| Plan {
            requests: 60,
            body_bytes_max: 100_000,
            stalls: true,
            cancels: 0.1,
            breaks: 0.02,
            timeout: Some(Duration::from_secs(1 + seed % 10)),
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::ResetStreams,
                Behaviour::RefuseStreams,
                Behaviour::Unavailable,
                Behaviour::Silent,
                Behaviour::Stuck,
                Behaviour::BreakInAnswer,
            ],
            retry: retrying("5xx,unavailable,reset,connect-failure"),
            ..Plan::default()
        },
        |world| assert!(world.outcomes("ok") > 0),
    );
}

#[test]
fn a_verdict_that_takes_its_time_holds_up_what_it_is_about() {
    play(
        |_| Plan {
            requests: 30,
            body_bytes_max: 300_000,
            treatment: Some(|number| Treatment::Delayed(number % 3)),
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 30);
            assert_eq!(world.ledger.borrow().holds, 30);
            assert_eq!(world.ledger.borrow().trailers, 30);
            let quickest = world.records.iter().map(|record| record.duration).min();
            assert!(quickest >= Some(VERDICT_TIME), "{quickest:?}");
        },
    );
}

#[test]
fn what_a_filter_answers_goes_nowhere() {
    play(
        |_| Plan {
            requests: 30,
            treatment: Some(|_| Treatment::Answered),
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("status 7"), 30);
            assert_eq!(world.asked, 0);
        },
    );
}

#[test]
fn a_mirror_gets_a_copy_and_nobody_waits_for_it() {
    play(
        |_| Plan {
            requests: 30,
            body_bytes_max: 30_000,
            treatment: Some(|_| Treatment::Mirrored),
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 30);
            assert_eq!(world.records.len(), 30);
            assert_eq!(world.asked, 60);
        },
    );
}

#[test]
fn of_a_hedge_the_first_answer_counts_and_the_other_is_cancelled() {
    play(
        |_| Plan {
            requests: 20,
            body_bytes_max: 20_000,
            endpoints: vec![Behaviour::Echo, Behaviour::Late],
            treatment: Some(|_| Treatment::Hedged),
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 20);
            // Late ones take 1.5 s.
            let slowest = world.records.iter().map(|record| record.duration).max();
            assert!(slowest < Some(Duration::from_secs(1)), "{slowest:?}");
            let hedged = world.records.iter().filter(|record| record.attempts > 1);
            assert!(hedged.clone().count() > 0);
            assert!(hedged.clone().all(|record| record.duration >= HEDGE_AFTER));
        },
    );
}

#[test]
fn filters_leave_nothing_behind_in_a_world_that_breaks() {
    play(
        |_| Plan {
            requests: 60,
            body_bytes_max: 200_000,
            endpoints: vec![
                Behaviour::Echo,
                Behaviour::Late,
                Behaviour::BreakInAnswer,
                Behaviour::RefuseStreams,
                Behaviour::ResetLongUploads,
            ],
            retry: retrying("5xx"),
            timeout: Some(Duration::from_secs(3)),
            cancels: 0.2,
            breaks: 0.01,
            treatment: Some(|number| match number % 6 {
                3 => Treatment::Answered,
                4 => Treatment::Mirrored,
                5 => Treatment::Hedged,
                point => Treatment::Delayed(point),
            }),
            ..Plan::default()
        },
        |_| {},
    );
}
