//! Failures of endpoints: counted exactly, repeated exactly as often as the route says.

use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

use heddle_policy::{
    retry::{RetryOn, RetryPolicy},
    snapshot::Protocol,
};
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc, http1_request},
    echo::{App, Speaks},
    fault::{Fault, Script},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use http_body_util::BodyExt;

use crate::WORKERS;

fn retries(words: &str, retries_max: u32) -> Option<RetryPolicy> {
    let (on, unknown) = RetryOn::parse(words);
    assert!(unknown.is_empty());
    Some(RetryPolicy {
        retries_max: NonZeroU32::new(retries_max).expect("at least one"),
        attempt_timeout: None,
        on,
        backoff_base: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
    })
}

/// A call to an application that misbehaves as `faults` say: calls that arrived and the status.
async fn check(retry: Option<RetryPolicy>, faults: &[Fault], calls: usize, status: &str) {
    for workers in WORKERS {
        let app = App::start(Speaks::Http2, Script::new(faults.iter().copied())).await;
        let plan = Plan {
            workers,
            retry: retry.clone(),
            ..Plan::default()
        };
        let mut pair = Pair::start(app.address, &plan);
        let answer = Caller::http2(pair.entry).await.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some(status), "{answer:?}");
        assert_eq!(app.script.calls(), calls);
        let record = pair.client.record().await;
        assert_eq!(record.attempts as usize, calls);
    }
}

#[tokio::test]
async fn three_failures_and_a_success_are_exactly_four_calls() {
    let faults = [Fault::GrpcStatus(14); 3];
    check(retries("unavailable", 3), &faults, 4, "0").await;
}

#[tokio::test]
async fn retries_end_and_the_last_failure_is_the_answer() {
    let faults = [Fault::GrpcStatus(14); 9];
    check(retries("unavailable", 2), &faults, 3, "14").await;
}

#[tokio::test]
async fn without_a_policy_nothing_is_repeated() {
    check(None, &[Fault::GrpcStatus(14)], 1, "14").await;
}

#[tokio::test]
async fn nothing_is_repeated_after_the_first_byte() {
    let script = Script::new([Fault::BreakAfterFirstMessage]);
    let app = App::start(Speaks::Http2, script).await;
    let plan = Plan {
        retry: retries("unavailable,reset,5xx", 3),
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    let mut caller = Caller::http2(pair.entry).await;
    let (feed, body) = Feed::channel();
    let mut response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
    feed.send("one".into()).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    feed.send("two".into()).await.unwrap();
    let answer = Answer::read(response).await.unwrap();
    assert_eq!(answer.grpc_status(), Some("14"));
    assert_eq!(answer.reason(), Some("reset"));
    assert_eq!(app.script.calls(), 1);
}

/// Calls while the application keeps saying goodbye: none is lost, none arrives twice.
async fn check_goodbyes(protocol: Protocol, speaks: Speaks) {
    let app = App::good(speaks).await;
    let plan = Plan {
        protocol,
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    let mut caller = match speaks {
        Speaks::Http2 => Caller::http2(pair.entry).await,
        _ => Caller::http1(pair.entry).await,
    };
    for round in 0..100 {
        if round % 5 == 0 {
            app.say_goodbye();
        }
        let answer = match speaks {
            Speaks::Http2 => caller.unary("ping").await,
            _ => caller.call(http1_request("GET", "/", Feed::empty())).await,
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.reason(), None);
    }
    assert_eq!(app.script.calls(), 100);
}

#[tokio::test]
async fn a_goaway_from_the_application_loses_no_call() {
    check_goodbyes(Protocol::Http2, Speaks::Http2).await;
}

#[tokio::test]
async fn a_closed_idle_connection_loses_no_request() {
    check_goodbyes(Protocol::Http1, Speaks::Http1).await;
}

#[tokio::test]
async fn recycled_connections_lose_no_call() {
    let app = App::good(Speaks::Http2).await;
    let mut plan = Plan::default();
    plan.limits.requests_per_connection_max = NonZeroU32::new(3);
    let pair = Pair::start(app.address, &plan);
    let mut caller = Caller::http2(pair.entry).await;
    for _ in 0..30 {
        assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    }
    assert_eq!(app.script.calls(), 30);
}

/// A caller on every worker, whatever their number: connections go where there are the fewest.
async fn callers(entry: SocketAddr) -> Vec<Caller> {
    let mut callers = Vec::new();
    for _ in 0..WORKERS[2] {
        callers.push(Caller::http2(entry).await);
    }
    callers
}

const CALLS: usize = 20;

/// Calls through every worker, [`CALLS`] in all.
async fn all_answered(entry: SocketAddr) {
    for caller in &mut callers(entry).await {
        for _ in 0..CALLS / WORKERS[2] {
            assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
        }
    }
}

/// Where nobody listens.
fn gone() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_no_retry() {
    for workers in WORKERS {
        let app = App::good(Speaks::Http2).await;
        let authority = Authority::new();
        let plan = Plan {
            workers,
            ..Plan::default()
        };
        let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
        let endpoints = [gone(), server.plane.bound.inbound_ports[0]];
        let mut client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
        all_answered(client.plane.bound.outbound_fixed[0]).await;
        assert_eq!(app.script.calls(), CALLS);
        let mut attempts = 0;
        for _ in 0..CALLS {
            attempts += client.record().await.attempts;
        }
        assert!(
            usize::try_from(attempts).unwrap() > CALLS,
            "the dead endpoint was never picked"
        );
    }
}

/// The sidecar of a dead application says so, and that proves that nothing was processed.
#[tokio::test]
async fn an_application_that_is_gone_loses_no_call_and_is_no_retry() {
    for workers in WORKERS {
        let app = App::good(Speaks::Http2).await;
        let authority = Authority::new();
        let plan = Plan {
            workers,
            ..Plan::default()
        };
        let dead = mesh::start_server(authority.credentials(ECHO), gone(), &plan);
        let alive = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
        let endpoints = [&dead, &alive].map(|server| server.plane.bound.inbound_ports[0]);
        let client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
        all_answered(client.plane.bound.outbound_fixed[0]).await;
        assert_eq!(app.script.calls(), CALLS);
    }
}

#[tokio::test]
async fn a_deadline_is_a_status_before_and_after_the_head() {
    for workers in WORKERS {
        let app = App::start(Speaks::Http2, Script::new([Fault::Hang])).await;
        let plan = Plan {
            workers,
            timeout: Some(Duration::from_millis(200)),
            ..Plan::default()
        };
        let pair = Pair::start(app.address, &plan);
        let mut caller = Caller::http2(pair.entry).await;
        let answer = caller.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("4"));
        assert_eq!(answer.reason(), Some("deadline"));

        let (_feed, body) = Feed::channel();
        let response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
        let answer = Answer::read(response).await.unwrap();
        assert_eq!(answer.grpc_status(), Some("4"));
        let sent = app.script.heads.lock().last().unwrap().headers.clone();
        assert!(sent.contains_key("grpc-timeout"), "{sent:?}");
        assert_eq!(app.script.calls(), 2);
    }
}
