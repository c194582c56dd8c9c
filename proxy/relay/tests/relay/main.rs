//! The relay among simulated peers, network and clock. A failure names its seed.

mod channels;
mod lifetimes;
mod peer;
mod policies;
mod scene;
mod stand;
mod upheaval;
mod world;

use std::{num::NonZeroU32, time::Duration};

use heddle_policy::{
    retry::{RetryOn, RetryPolicy},
    snapshot::Limits,
};

use crate::{
    upheaval::Upheavals,
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

fn limit(n: u32) -> Option<NonZeroU32> {
    NonZeroU32::new(n)
}

#[test]
fn connections_and_their_requests_stay_within_the_limits_of_the_cluster() {
    play(
        |seed| Plan {
            requests: 40,
            endpoints: vec![Behaviour::Echo; 2],
            endpoint_streams: 1,
            limits: Limits {
                connections_max: limit(2 + u32::try_from(seed % 4).expect("it is small")),
                requests_per_connection_max: limit(
                    1 + u32::try_from(seed % 3).expect("it is small"),
                ),
                ..Limits::UNLIMITED
            },
            ..Plan::default()
        },
        |world| {
            let others = world.records.iter().filter_map(|record| record.reason);
            assert!(others.clone().all(|reason| reason == "overloaded"));
            assert_eq!(world.outcomes("ok"), 40 - others.count());
            assert!(world.outcomes("ok") > 20);
        },
    );
}

#[test]
fn who_would_wait_beyond_the_limit_is_refused() {
    play(
        |_| Plan {
            requests: 60,
            endpoints: vec![Behaviour::Late],
            endpoint_streams: 1,
            limits: Limits {
                connections_max: limit(1),
                pending_max: limit(3),
                ..Limits::UNLIMITED
            },
            ..Plan::default()
        },
        |world| {
            assert!(world.outcomes("ok") > 0);
            let overloaded = |seen: &&world::Seen| seen.reason == Some("overloaded");
            assert!(world.records.iter().filter(overloaded).count() > 20);
        },
    );
}

#[test]
fn a_goodbye_of_an_endpoint_loses_nothing() {
    play(
        |_| Plan {
            requests: 60,
            upheavals: Upheavals {
                goodbyes: 0.03,
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| assert_eq!(world.outcomes("ok"), 60),
    );
}

#[test]
fn connections_that_age_or_are_retired_lose_nothing() {
    play(
        |seed| Plan {
            requests: 60,
            body_bytes_max: 50_000,
            upheavals: Upheavals {
                is_meshed: true,
                is_inbound: seed % 2 == 0,
                age: Some(Duration::from_millis(100 + 50 * (seed % 7))),
                renewals: 0.05,
                retires: true,
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("ok"), 60);
            assert!(world.records.iter().all(|record| record.reason.is_none()));
        },
    );
}

#[test]
fn an_endpoint_that_is_denied_is_cut_off_and_dialled_again() {
    play(
        |_| Plan {
            requests: 60,
            upheavals: Upheavals {
                is_meshed: true,
                revocations: 0.02,
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| {
            assert!(world.outcomes("ok") > 0);
            let reasons = world.records.iter().filter_map(|record| record.reason);
            assert!(reasons.clone().all(|reason| reason == "reset"));
        },
    );
}

#[test]
fn who_waits_for_a_sidecar_that_is_gone_is_told_so_in_time() {
    play(
        |_| Plan {
            requests: 12,
            endpoints: vec![Behaviour::Dies; 2],
            upheavals: Upheavals {
                is_meshed: true,
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| {
            assert_eq!(world.outcomes("status 14"), 12);
            let longest = world.records.iter().map(|record| record.duration).max();
            assert!(longest < Some(Duration::from_secs(42)), "{longest:?}");
        },
    );
}

#[test]
fn the_application_is_asked_over_few_connections() {
    play(
        |seed| Plan {
            requests: 60,
            endpoint_streams: 1 + u32::try_from(seed % 9).expect("it is small"),
            cancels: 0.05,
            upheavals: Upheavals {
                is_inbound: true,
                goodbyes: 0.01,
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| assert!(world.outcomes("ok") > 40),
    );
}

#[test]
fn near_the_end_of_the_budget_what_has_begun_ends_well() {
    play(
        |seed| Plan {
            requests: 30,
            body_bytes_max: 150_000,
            stalls: true,
            upheavals: Upheavals {
                budget_bytes: Some(65_536 * (1 + usize::try_from(seed % 5).expect("it is small"))),
                ..Upheavals::default()
            },
            ..Plan::default()
        },
        |world| {
            let refused = world.outcomes("reset 7");
            assert_eq!(world.outcomes("ok"), 30 - refused);
            let overloaded = |seen: &&world::Seen| seen.reason == Some("overloaded");
            assert_eq!(world.records.iter().filter(overloaded).count(), refused);
        },
    );
}
