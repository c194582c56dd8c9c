//! Limits, ejection, budget: the same counts whatever the number of workers.

use std::{
    cell::Cell,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use heddle_policy::{
    authz::{Condition, Rule, Rules},
    outlier::{FailureKind, OutlierPolicy},
    retry::{RetryOn, RetryPolicy},
    route::{RouteTable, ValueMatch},
    snapshot::{Balancing, ClusterName, Limits, Protocol, Snapshot, Target, WeightedClusters},
};
use heddle_proxy::settings::{Bounds, InboundListeners, OutboundListeners, Settings};
use heddle_shell::{clock, task::Tasks};
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc, http1_request, raw_to},
    echo::{App, Speaks},
    eventually,
    fault::{Fault, Script},
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use parking_lot::Mutex;
use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::WORKERS;

/// Calls that run while the test goes on, each over a connection of its own.
struct Calls {
    answers: Arc<Mutex<Vec<Answer>>>,
    tasks: Tasks,
}

impl Calls {
    fn start(to: SocketAddr, speaks: Speaks, calls: usize) -> Self {
        let answers = Arc::<Mutex<Vec<Answer>>>::default();
        let mut tasks = Tasks::new();
        for _ in 0..calls {
            let answers = Arc::clone(&answers);
            tasks.spawn("call", async move {
                let answer = match speaks {
                    Speaks::Http2 => Caller::http2(to).await.unary("ping").await,
                    _ => {
                        let request = http1_request("GET", "/", Feed::empty());
                        Caller::http1(to).await.call(request).await
                    }
                };
                answers.lock().push(answer);
            });
        }
        Self { answers, tasks }
    }

    fn ended(&self) -> usize {
        self.answers.lock().len()
    }
}

fn retry(words: &str, retries_max: u32) -> Option<RetryPolicy> {
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

#[tokio::test]
async fn requests_beyond_the_limit_are_refused_and_counted_over_all_workers() {
    for workers in WORKERS {
        let app = App::start(Speaks::Http2, Script::new([Fault::Hang; 3])).await;
        let mut plan = Plan {
            workers,
            ..Plan::default()
        };
        plan.limits.requests_max = NonZeroU32::new(3);
        let pair = Pair::start(app.address, &plan);
        let hanging = Calls::start(pair.entry, Speaks::Http2, 3);
        eventually(|| app.script.calls() == 3).await;
        for _ in 0..8 {
            let answer = Caller::http2(pair.entry).await.unary("ping").await;
            assert_eq!(answer.grpc_status(), Some("14"));
            assert_eq!(answer.reason(), Some("overloaded"));
        }
        assert_eq!((app.script.calls(), hanging.ended()), (3, 0));
        // What is given up is free again.
        drop(hanging);
        eventually(|| app.script.cancelled() == 3).await;
        let answer = Caller::http2(pair.entry).await.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("0"));
    }
}

/// Where requests do not share one, as they do on the way to another sidecar.
#[tokio::test]
async fn one_connection_and_one_place_in_the_queue() {
    for workers in WORKERS {
        let app = App::start(Speaks::Http1, Script::new([Fault::Hang])).await;
        let plan = Plan {
            workers,
            protocol: Protocol::Http1,
            limits: Limits {
                connections_max: NonZeroU32::new(1),
                pending_max: NonZeroU32::new(1),
                ..Limits::UNLIMITED
            },
            ..Plan::default()
        };
        let web = Authority::new().credentials(WEB);
        let client = mesh::start_client(web, &[], &plan);
        let snapshot = mesh::snapshot(&[app.address], &plan);
        client.configure(mesh::in_plaintext(snapshot));
        let entry = client.plane.bound.outbound_fixed[0];
        let hanging = Calls::start(entry, Speaks::Http1, 1);
        eventually(|| app.script.calls() == 1).await;
        // One of these waits for the connection, the others find its place taken.
        let waiting = Calls::start(entry, Speaks::Http1, 4);
        eventually(|| waiting.ended() == 3).await;
        for answer in &*waiting.answers.lock() {
            assert_eq!((answer.status, answer.reason()), (503, Some("overloaded")));
        }
        drop(hanging);
        eventually(|| waiting.ended() == 4).await;
        assert_eq!(waiting.answers.lock()[3].status, 200);
        assert_eq!(app.script.calls(), 2);
        assert!(!waiting.tasks.is_empty());
    }
}

/// An endpoint that fails three times in a row is left alone for a while, by all workers.
#[tokio::test]
async fn a_failing_endpoint_is_ejected_and_returns() {
    for workers in WORKERS {
        let good = App::good(Speaks::Http2).await;
        let bad = App::start(Speaks::Http2, Script::new([Fault::GrpcStatus(14); 3])).await;
        let authority = Authority::new();
        let plan = Plan {
            workers,
            outlier: Some(OutlierPolicy {
                failures_in_a_row: NonZeroU32::new(3).unwrap(),
                counts: FailureKind::GatewayErrors,
                interval: Duration::from_secs(10),
                base_ejection_time: Duration::from_secs(2),
                max_ejection_time: Duration::from_secs(2),
                max_ejection_percent: 50,
                min_health_percent: 0,
            }),
            ..Plan::default()
        };
        let servers = [&good, &bad]
            .map(|app| mesh::start_server(authority.credentials(ECHO), app.address, &plan));
        let endpoints = servers.each_ref().map(|s| s.plane.bound.inbound_ports[0]);
        let client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
        let entry = client.plane.bound.outbound_fixed[0];
        let mut callers = Vec::new();
        for _ in 0..4 {
            callers.push(Caller::http2(entry).await);
        }
        let mut failures = 0;
        let mut calls = 0;
        while failures < 3 {
            for caller in &mut callers {
                let answer = caller.unary("ping").await;
                failures += usize::from(answer.grpc_status() == Some("14"));
                calls += 1;
            }
            assert!(calls < 100, "{failures} of {calls}");
        }
        for n in 0..20 {
            let answer = callers[n % 4].unary("ping").await;
            assert_eq!(answer.grpc_status(), Some("0"));
        }
        assert_eq!((failures, bad.script.calls()), (3, 3));
        // It comes back, and serves.
        let until = clock::now() + Duration::from_secs(10);
        while bad.script.calls() < 5 {
            assert!(clock::now() < until, "it did not return");
            for caller in &mut callers {
                assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
            }
        }
    }
}

/// Fifty requests fail in the same moment: a fifth of them may be tried again.
#[tokio::test]
async fn the_retry_budget_holds_in_an_outage() {
    const CALLS: usize = 50;
    for workers in WORKERS {
        let failing = std::iter::repeat_n(Fault::GrpcStatusAtTheGate(14), CALLS);
        // A retry stays in flight, so that its place is not taken by another.
        let script = Script::new(failing.chain([Fault::Hang; CALLS]));
        let app = App::start(Speaks::Http2, script).await;
        let plan = Plan {
            workers,
            retry: retry("unavailable", 1),
            ..Plan::default()
        };
        let pair = Pair::start(app.address, &plan);
        let calls = Calls::start(pair.entry, Speaks::Http2, CALLS);
        eventually(|| app.script.calls() == CALLS).await;
        app.script.gate.0.add_permits(CALLS);
        eventually(|| app.script.calls() + calls.ended() == 2 * CALLS).await;
        let retries = app.script.calls() - CALLS;
        assert!((3..=CALLS / 5).contains(&retries), "{retries} retries");
        for answer in &*calls.answers.lock() {
            assert_eq!(answer.grpc_status(), Some("14"));
        }
        assert!(!calls.tasks.is_empty());
    }
}

/// A request with a body of this size fails once; how often it arrives.
async fn check_replay(bytes: usize, calls: usize) {
    for workers in WORKERS {
        let app = App::start(Speaks::Http2, Script::new([Fault::GrpcStatusAfterBody(14)])).await;
        let plan = Plan {
            workers,
            retry: retry("unavailable", 3),
            bounds: Bounds {
                replay_bytes_max: 1024,
                ..Bounds::default()
            },
            ..Plan::default()
        };
        let pair = Pair::start(app.address, &plan);
        let mut caller = Caller::http2(pair.entry).await;
        let request = grpc("/echo.Echo/Sum", Feed::of(vec![7; bytes]));
        let answer = caller.call(request).await;
        assert_eq!(app.script.calls(), calls);
        if calls == 1 {
            assert_eq!(answer.grpc_status(), Some("14"));
        } else {
            assert_eq!(answer.body, bytes.to_string().as_bytes());
        }
    }
}

#[tokio::test]
async fn a_body_is_sent_again_while_it_was_kept_whole() {
    check_replay(1024, 2).await;
    check_replay(1025, 1).await;
}

/// The destination in two versions, of which the second gets seven tenths.
fn split(v1: &[Sidecar], v2: &[Sidecar], plan: &Plan) -> Snapshot {
    let version = |name: &str, servers: &[Sidecar]| {
        let endpoints = servers.iter().map(|s| s.plane.bound.inbound_ports[0]);
        mesh::destination(name, &endpoints.collect::<Vec<_>>(), plan)
    };
    let (mut destination, other) = (version("v1", v1), version("v2", v2));
    destination.clusters.extend(other.clusters);
    let Target::Http(routes) = &mut destination.target else {
        unreachable!("the plan says HTTP")
    };
    let [v1, v2] = ["v1", "v2"].map(|name| ClusterName(name.into()));
    let mut hosts = routes.hosts().to_vec();
    let route = Arc::make_mut(&mut hosts[0].routes[0]);
    route.clusters = WeightedClusters::new(vec![(v1, 3), (v2, 7)]).unwrap();
    *routes = Arc::new(RouteTable::new(Arc::clone(routes.name()), hosts));
    Snapshot {
        destinations: [(mesh::key(), Arc::new(destination))].into(),
        ..Snapshot::default()
    }
}

/// One of the endpoints lets one call go for every twenty that end elsewhere or there.
#[tokio::test]
async fn least_conn_and_a_split_hold_over_all_workers() {
    const CALLERS: usize = 8;
    const CALLS: usize = 2000;
    for workers in WORKERS {
        let v1 = App::good(Speaks::Http2).await;
        let slow = App::start(
            Speaks::Http2,
            Script::new([Fault::GrpcStatusAtTheGate(0); CALLS]),
        )
        .await;
        let v2 = [
            App::good(Speaks::Http2).await,
            App::good(Speaks::Http2).await,
            slow,
        ];
        let authority = Authority::new();
        let plan = Plan {
            workers,
            balancing: Balancing::LeastRequest,
            ..Plan::default()
        };
        let server =
            |app: &App| mesh::start_server(authority.credentials(ECHO), app.address, &plan);
        let (v1_servers, v2_servers) = ([server(&v1)], v2.each_ref().map(server));
        let client = mesh::start_client(authority.credentials(WEB), &[], &plan);
        client.configure(split(&v1_servers, &v2_servers, &plan));
        let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let calling = join_all((0..CALLERS).map(async |_| {
            let mut caller = Caller::http2(client.plane.bound.outbound_fixed[0]).await;
            while begun.fetch_add(1, Ordering::SeqCst) < CALLS {
                assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
                if ended.fetch_add(1, Ordering::SeqCst) % 20 == 0 {
                    v2[2].script.gate.0.add_permits(1);
                }
            }
            // Nobody is left behind by those who are done.
            v2[2].script.gate.0.add_permits(1);
        }));
        // Otherwise all of them would wait for the slow one.
        let ended = tokio::time::timeout(Duration::from_mins(1), calling).await;
        ended.expect("least connections leaves callers free");
        let of_v2: usize = v2.iter().map(|app| app.script.calls()).sum();
        assert_eq!(v1.script.calls() + of_v2, CALLS);
        let share = of_v2 as f64 / CALLS as f64;
        assert!((0.65..=0.75).contains(&share), "{workers}: {share} of 0.7");
        let slow = v2[2].script.calls() as f64 / of_v2 as f64;
        assert!(slow < 0.15, "{workers}: {slow} went to the slow one");
    }
}

/// Bytes from `WEB` to a port with these rules.
async fn check_bytes(rule: Condition, reaches: bool) {
    let app = App::good(Speaks::BytesServerFirst).await;
    let plan = Plan {
        protocol: Protocol::Tcp,
        rules: Rules::new(vec![Rule::new("deny", rule)], None),
        ..Plan::default()
    };
    let mut pair = Pair::start(app.address, &plan);
    // The reset may come before the kernel tells that the connection is made.
    let greeted = async {
        let mut stream = TcpStream::connect(pair.entry).await?;
        stream.read_exact(&mut [0; 6]).await
    };
    assert_eq!(greeted.await.is_ok(), reaches);
    let reason = pair.server.record().await.reason;
    assert_eq!(reason == Some("denied"), !reaches);
    assert_eq!(app.script.calls(), usize::from(reaches));
}

#[tokio::test]
async fn a_connection_of_bytes_is_judged_by_who_opens_it() {
    check_bytes(Condition::Principal(ValueMatch::Exact(WEB.into())), false).await;
    check_bytes(Condition::Principal(ValueMatch::Exact(ECHO.into())), true).await;
    check_bytes(Condition::Namespace(ValueMatch::Present), false).await;
}

/// The callers' sidecar with a listener that routes by authority.
fn by_authority(pair: &Pair, snapshot: Snapshot) -> Sidecar {
    let settings = Settings {
        workers: std::num::NonZeroUsize::MIN,
        outbound: OutboundListeners {
            http: Some(mesh::any()),
            ..OutboundListeners::default()
        },
        inbound: InboundListeners::default(),
        bounds: Bounds {
            lookup_wait: Duration::from_millis(100),
            ..Bounds::default()
        },
    };
    let credentials = pair.client.credentials.load();
    let credentials = (*credentials).clone().expect("it has some");
    Sidecar::start(credentials, snapshot, settings)
}

#[tokio::test]
async fn a_listener_for_all_routes_each_request_by_its_authority() {
    let app = App::good(Speaks::Http1).await;
    let plan = Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    let mut snapshot = mesh::snapshot(&[pair.inbound], &plan);
    let absent = heddle_policy::snapshot::DestinationKey::Host("absent.shop".into(), 80);
    snapshot.absent.insert(absent);
    let mut sidecar = by_authority(&pair, snapshot);
    let entry = sidecar.plane.bound.outbound_http.unwrap();
    for (host, status, reason) in [
        ("echo.shop", "200", ""),
        ("ECHO.shop:80", "200", ""),
        ("absent.shop", "502", "unknown_destination"),
        ("silent.shop", "503", "undescribed"),
        ("echo.shop:81", "503", "undescribed"),
    ] {
        let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw_to(entry, request.as_bytes()).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains(&format!("x-heddle-reason: {reason}")) != reason.is_empty());
    }
    assert_eq!(app.script.calls(), 2);
    assert_eq!(
        sidecar.asks.keys.recv().await.unwrap().listener_name(),
        "host/silent.shop:80"
    );
    // What absolute-form names overrules `Host`, and is what is sent on.
    let request =
        b"GET http://echo.shop/ HTTP/1.1\r\nhost: silent.shop\r\nconnection: close\r\n\r\n";
    assert!(raw_to(entry, request).await.starts_with(b"HTTP/1.1 200"));
    assert_eq!(
        app.script.heads.lock().last().unwrap().headers["host"],
        "echo.shop"
    );
}

/// Else it would be forgotten under the requests, and a drain would not see the application.
#[tokio::test]
async fn a_destination_is_in_use_from_a_request_to_the_end_of_its_answer() {
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    let snapshot = mesh::snapshot(&[pair.inbound], &Plan::default());
    let sidecar = by_authority(&pair, snapshot);
    let mut caller = Caller::http2(sidecar.plane.bound.outbound_http.unwrap()).await;
    let (feed, body) = Feed::channel();
    let response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
    // Each look is an hour after the one before.
    let hours = Cell::new(0);
    let idle = || {
        hours.set(hours.get() + 1);
        let later = clock::now() + Duration::from_hours(hours.get());
        let view = sidecar.views.load();
        view.idle_destinations(later, Duration::from_mins(10))
    };
    assert_eq!(idle(), []);
    // Also when it is described anew meanwhile.
    sidecar.configure(mesh::snapshot(&[pair.inbound], &Plan::default()));
    assert_eq!(idle(), []);
    drop(feed);
    assert_eq!(
        Answer::read(response).await.unwrap().grpc_status(),
        Some("0")
    );
    eventually(|| idle() == [mesh::key()]).await;
}
