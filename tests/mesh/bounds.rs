//! What one side takes does not fail the other, and what this side lacks is nobody else's fault.

use std::{
    collections::HashMap,
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    outlier::{FailureKind, OutlierPolicy},
    snapshot::{ClusterProtocol, Health, Inbound, InboundPort, MtlsMode, Protocol, Transport},
};
use heddle_proxy::settings::{
    Bounds, InboundForward, InboundListeners, OutboundListeners, OutboundPort, Settings,
};
use heddle_shell::task::Tasks;
use heddle_tests::{
    call::{Caller, Feed, grpc, http1_request, raw, raw_to},
    echo::{App, Speaks},
    fault::{Fault, Script},
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Peers that open connections and say nothing must not keep the workload from calling others.
#[tokio::test]
async fn a_flood_from_outside_leaves_the_workloads_own_calls_alone() {
    let app = App::good(Speaks::Http2).await;
    let bounds = Bounds {
        connections_max: 2,
        ..Bounds::default()
    };
    let plan = Plan {
        bounds,
        ..Plan::default()
    };
    let authority = Authority::new();
    let other = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let mut snapshot = mesh::snapshot(&[other.plane.bound.inbound_ports[0]], &plan);
    let port = InboundPort {
        mtls: MtlsMode::Strict,
        protocol: Protocol::Http2,
        authz: Arc::default(),
    };
    snapshot.inbound = Some(Arc::new(Inbound {
        ports: HashMap::new(),
        default: Arc::new(port),
    }));
    let settings = Settings {
        workers: NonZeroUsize::MIN,
        outbound: OutboundListeners {
            fixed: vec![OutboundPort {
                listen: mesh::any(),
                destination: mesh::key(),
            }],
            ..OutboundListeners::default()
        },
        inbound: InboundListeners {
            intercepted: None,
            ports: vec![InboundForward {
                port: app.address.port(),
                listen: mesh::any(),
                forward: app.address,
                protocol: Protocol::Detect,
            }],
        },
        bounds,
    };
    let sidecar = Sidecar::start(authority.credentials(WEB), snapshot, settings);
    let mut flood = Vec::new();
    for _ in 0..10 {
        let inbound = sidecar.plane.bound.inbound_ports[0];
        flood.push(TcpStream::connect(inbound).await.unwrap());
    }
    let mut caller = Caller::http2(sidecar.plane.bound.outbound_fixed[0]).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
}

/// A listener whom nobody calls does not take what another needs.
#[tokio::test]
async fn more_listeners_than_connections_are_served() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        bounds: Bounds {
            connections_max: 1,
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let authority = Authority::new();
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let snapshot = mesh::snapshot(&[server.plane.bound.inbound_ports[0]], &plan);
    let port = OutboundPort {
        listen: mesh::any(),
        destination: mesh::key(),
    };
    let settings = Settings {
        workers: NonZeroUsize::MIN,
        outbound: OutboundListeners {
            fixed: vec![port; 3],
            ..OutboundListeners::default()
        },
        inbound: InboundListeners::default(),
        bounds: plan.bounds,
    };
    let client = Sidecar::start(authority.credentials(WEB), snapshot, settings);
    // The first that listens is the last that is called.
    for entry in client.plane.bound.outbound_fixed.iter().rev() {
        let answered = timeout(Duration::from_secs(10), async {
            Caller::http2(*entry).await.unary("ping").await
        });
        assert_eq!(answered.await.unwrap().grpc_status(), Some("0"));
    }
}

/// An endpoint that says that it closes, and leaves that to us.
async fn leaving_it_to_us() -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("endpoint", async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            kept.push(stream);
        }
    });
    (address, tasks)
}

/// One connection is allowed, and one that has done its work is not counted: the next request
/// would wait for it longer than it may.
#[tokio::test]
async fn a_connection_that_we_close_frees_its_place() {
    let (address, _tasks) = leaving_it_to_us().await;
    let mut plan = Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    };
    plan.limits.connections_max = NonZeroU32::new(1);
    let client = mesh::start_client(Authority::new().credentials(WEB), &[], &plan);
    client.configure(mesh::in_plaintext(mesh::snapshot(&[address], &plan)));
    let mut caller = Caller::http1(client.plane.bound.outbound_fixed[0]).await;
    for _ in 0..3 {
        let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
        assert_eq!((answer.status, answer.reason()), (200, None));
    }
}

fn strict_outlier() -> OutlierPolicy {
    OutlierPolicy {
        failures_in_a_row: NonZeroU32::MIN,
        counts: FailureKind::GatewayErrors,
        interval: Duration::from_secs(1),
        base_ejection_time: Duration::from_mins(5),
        max_ejection_time: Duration::from_mins(5),
        max_ejection_percent: 100,
        min_health_percent: 0,
    }
}

/// One connection is allowed and in use: whoever waits too long for it is told so, and no
/// endpoint is set aside or tried instead.
#[tokio::test]
async fn a_full_pool_is_no_endpoints_failure() {
    let script = Script::new([Fault::Hang]);
    let app = App::start(Speaks::Http1, Arc::clone(&script)).await;
    let mut plan = Plan {
        protocol: Protocol::Http1,
        outlier: Some(strict_outlier()),
        ..Plan::default()
    };
    plan.limits.connections_max = NonZeroU32::new(1);
    plan.limits.pending_max = NonZeroU32::new(1);
    let authority = Authority::new();
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let endpoint = server.plane.bound.inbound_ports[0];
    let second = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let endpoints = [endpoint, second.plane.bound.inbound_ports[0]];
    let mut client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
    let entry = client.plane.bound.outbound_fixed[0];
    let mut holder = Caller::http1(entry).await;
    let held = http1_request("GET", "/held", Feed::empty());
    let holding = async { _ = holder.send(held).await };
    let others = async {
        heddle_tests::eventually(|| script.calls() == 1).await;
        // One waits until its time is over, the next finds the queue full.
        let mut waiting = Caller::http1(entry).await;
        let answer = waiting.call(http1_request("GET", "/", Feed::empty())).await;
        assert_eq!((answer.status, answer.reason()), (503, Some("overloaded")));
        let record = client.record().await;
        assert_eq!(record.attempts, 1, "{record:?}");
        let view = client.views.load();
        let clusters = view.destinations.values().flat_map(|d| d.clusters.values());
        for endpoint in clusters.flat_map(|cluster| &cluster.endpoints) {
            let now = heddle_shell::clock::now();
            assert!(!endpoint.state.is_ejected(now), "{endpoint:?}");
        }
    };
    tokio::select! {
        () = holding => panic!("it is held"),
        () = others => {}
    }
}

/// Without a certificate nobody can be asked, so nobody is to blame.
#[tokio::test]
async fn a_missing_certificate_is_no_endpoints_failure() {
    let app = App::good(Speaks::Http2).await;
    let authority = Authority::new();
    let plan = Plan {
        outlier: Some(strict_outlier()),
        ..Plan::default()
    };
    let mut pair = Pair::with(
        authority.credentials(WEB),
        authority.credentials(ECHO),
        app.address,
        &plan,
    );
    pair.client.credentials.publish(Arc::new(None));
    let mut caller = Caller::http2(pair.entry).await;
    for _ in 0..3 {
        let answer = caller.unary("ping").await;
        assert_eq!(answer.reason(), Some("no_certificate"));
        assert_eq!(pair.client.record().await.attempts, 1);
    }
    // As soon as there is one, the endpoint is used: it was not set aside.
    let web = authority.credentials(WEB);
    pair.client.credentials.publish(Arc::new(Some(web)));
    heddle_tests::eventually(|| pair.client.credentials.load().is_some()).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
}

/// A server that closes an idle connection at the very moment at which a request is on its way:
/// it reads the second request of a connection and closes without an answer.
async fn closing() -> (SocketAddr, Tasks) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("closing", async move {
        let mut connections = Tasks::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            connections.spawn("closing connection", async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else {
                        return;
                    };
                    head.push(byte);
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                // Whatever comes next crosses our close.
                _ = stream.read_u8().await;
            });
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn a_request_that_may_not_be_repeated_does_not_meet_a_closing_connection() {
    let (application, _tasks) = closing().await;
    let plan = Plan {
        protocol: Protocol::Http1,
        bounds: Bounds {
            unrepeatable_idle: Duration::ZERO,
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let pair = Pair::start(application, &plan);
    let mut caller = Caller::http1(pair.entry).await;
    for method in ["POST", "POST", "GET", "GET", "POST", "PATCH"] {
        let request = http1_request(method, "/", Feed::empty());
        let answer = caller.call(request).await;
        assert_eq!(answer.status, 200, "{method}: {:?}", answer.reason());
    }
}

/// A port that takes both: in front of `application`.
fn permissive(application: SocketAddr, protocol: Protocol, rules: Rules) -> (Sidecar, Authority) {
    let plan = Plan {
        protocol,
        mtls: MtlsMode::Permissive,
        rules,
        bounds: Bounds {
            // Nobody can be faster: the caller of the mesh is always late.
            detect_wait: Duration::ZERO,
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let authority = Authority::new();
    let server = mesh::start_server(authority.credentials(ECHO), application, &plan);
    (server, authority)
}

/// Silence is no answer: a caller of the mesh whose node is busy is no plaintext caller.
#[tokio::test]
async fn a_late_caller_of_the_mesh_is_one_of_the_mesh() {
    let only_web = || {
        let web = Condition::Principal(heddle_policy::route::ValueMatch::Exact(WEB.into()));
        Rules::new(vec![], Some(vec![Rule::new("web", web)]))
    };
    let app = App::good(Speaks::Http1).await;
    for protocol in [Protocol::Http1, Protocol::Detect] {
        for rules in [Rules::default(), only_web()] {
            let (server, authority) = permissive(app.address, protocol, rules);
            let inbound = server.plane.bound.inbound_ports[0];
            let web = authority.credentials(WEB);
            // Of a sidecar's tokens, by which alone an undeclared port knows the mesh.
            let stream = mesh::dial_as(&web, inbound, b"heddle-h2").await;
            let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            let answer = raw(stream, request).await;
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{protocol:?}");
        }
    }
    // The application's own first word and a late word in plaintext still pass.
    let app = App::good(Speaks::BytesServerFirst).await;
    let (server, _) = permissive(app.address, Protocol::Detect, Rules::default());
    let mut stream = TcpStream::connect(server.plane.bound.inbound_ports[0])
        .await
        .unwrap();
    let mut hello = [0; 6];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello\n");
    assert_eq!(app.script.calls(), 1);
    let app = App::good(Speaks::Bytes).await;
    let (server, _) = permissive(app.address, Protocol::Tcp, Rules::default());
    let mut stream = TcpStream::connect(server.plane.bound.inbound_ports[0])
        .await
        .unwrap();
    heddle_tests::eventually(|| app.script.calls() == 1).await;
    stream.write_all(b"\x00 late").await.unwrap();
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(app.script.calls(), 1, "dialled once");
    // A client that only listens: its end passes, and the application's with it.
    let mut stream = TcpStream::connect(server.plane.bound.inbound_ports[0])
        .await
        .unwrap();
    heddle_tests::eventually(|| app.script.calls() == 2).await;
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut hello).await.unwrap(), 0);
}

/// The application learns nothing of a caller whom the rules refuse whatever it says.
#[tokio::test]
async fn a_refused_caller_is_not_announced_to_the_application() {
    let app = App::good(Speaks::BytesServerFirst).await;
    let plan = Plan {
        protocol: Protocol::Detect,
        mtls: MtlsMode::Disable,
        rules: Rules::new(vec![Rule::new("nobody", Condition::Always)], None),
        ..Plan::default()
    };
    let authority = Authority::new();
    let mut server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    assert_eq!(raw_to(server.plane.bound.inbound_ports[0], b"").await, b"");
    assert_eq!(server.record().await.reason, Some("denied"));
    assert_eq!(app.script.calls(), 0);
}

/// HTTP/2 to anybody but a sidecar, also to an endpoint without TLS.
#[tokio::test]
async fn a_plain_endpoint_that_is_declared_http2_gets_http2() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    };
    let authority = Authority::new();
    let client = mesh::start_client(authority.credentials(WEB), &[], &plan);
    let mut snapshot = mesh::snapshot(&[app.address], &plan);
    for destination in snapshot.destinations.values_mut() {
        for cluster in Arc::make_mut(destination).clusters.values_mut() {
            let cluster = Arc::make_mut(cluster);
            cluster.protocol = ClusterProtocol::Http2;
            for endpoint in &mut cluster.endpoints {
                let endpoint = Arc::make_mut(endpoint);
                endpoint.transport = Transport::Plain;
                assert_eq!(endpoint.health, Health::Healthy);
            }
        }
    }
    client.configure(snapshot);
    let mut caller = Caller::http1(client.plane.bound.outbound_fixed[0]).await;
    let answer = caller
        .call(http1_request("POST", "/", Feed::of("ping")))
        .await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"ping"[..]));
}

/// The caller's time begins with its request, and its end is told inbound as well.
#[tokio::test]
async fn a_callers_deadline_holds_for_the_body_of_its_answer() {
    let app = App::good(Speaks::Http2).await;
    let authority = Authority::new();
    let plan = Plan {
        mtls: MtlsMode::Disable,
        ..Plan::default()
    };
    let server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let mut caller = Caller::http2(server.plane.bound.inbound_ports[0]).await;
    let (_feed, body) = Feed::channel();
    let mut request = grpc("/echo.Echo/Bidi", body);
    let within = "200m".parse().unwrap();
    request.headers_mut().insert("grpc-timeout", within);
    let answer = caller.call(request).await;
    assert_eq!(answer.grpc_status(), Some("4"));
    assert_eq!(answer.reason(), Some("deadline"));
}
