//! Who may talk to whom.

use std::{cell::RefCell, io::ErrorKind, sync::Arc, time::Duration};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    route::ValueMatch,
    snapshot::{MtlsMode, Protocol},
};
use heddle_proxy::{
    settings::Bounds,
    tls::{Configs, Credentials, renewed},
};
use heddle_shell::{clock, publish::Published};
use heddle_tests::{
    call::{Caller, Feed, http1_request, raw_to},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, WEB},
};
use rustls::server::Acceptor;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};
use tokio_rustls::LazyConfigAcceptor;

#[tokio::test]
async fn strict_refuses_plaintext_and_says_why() {
    let app = App::good(Speaks::Http1).await;
    let plan = Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    };
    let mut pair = Pair::start(app.address, &plan);
    let mut caller = Caller::http1(pair.inbound).await;
    let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
    assert_eq!(
        (answer.status, answer.reason()),
        (403, Some("plaintext_refused"))
    );
    assert_eq!(pair.server.record().await.reason, Some("plaintext_refused"));

    let mut caller = Caller::http2(pair.inbound).await;
    let answer = caller.unary("ping").await;
    assert_eq!(answer.grpc_status(), Some("7"));
    assert_eq!(answer.reason(), Some("plaintext_refused"));
    assert_eq!(app.script.calls(), 0);
}

/// It may be a client that waits for the server to speak; nobody can tell it what is wrong.
#[tokio::test]
async fn strict_resets_a_caller_that_says_nothing_and_counts_it() {
    let app = App::good(Speaks::BytesServerFirst).await;
    let plan = Plan {
        protocol: Protocol::Tcp,
        bounds: Bounds {
            header_wait: Duration::from_millis(200),
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let mut pair = Pair::start(app.address, &plan);
    let mut stream = TcpStream::connect(pair.inbound).await.unwrap();
    let error = stream.read(&mut [0]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(pair.server.record().await.reason, Some("plaintext_refused"));
}

#[tokio::test]
async fn permissive_takes_plaintext_and_mesh() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        mtls: MtlsMode::Permissive,
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    for to in [pair.inbound, pair.entry] {
        let answer = Caller::http2(to).await.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("0"));
    }
}

#[tokio::test]
async fn an_endpoint_with_another_identity_is_not_called() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        accepted: vec!["spiffe://td/ns/shop/sa/other"],
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    let answer = Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(
        (answer.grpc_status(), answer.reason()),
        (Some("14"), Some("tls"))
    );
    let message = answer.headers["grpc-message"].to_str().unwrap();
    assert!(
        message.contains("expected spiffe://td/ns/shop/sa/other"),
        "{message}"
    );
    assert_eq!(app.script.calls(), 0);
}

/// What a passthrough on the way or a gateway would go by.
#[tokio::test]
async fn an_endpoint_is_told_the_destinations_name_without_its_port() {
    let endpoint = TcpListener::bind(mesh::any()).await.unwrap();
    let address = endpoint.local_addr().unwrap();
    let credentials = Authority::new().credentials(WEB);
    let sidecar = mesh::start_client(credentials, &[address], &Plan::default());
    let entry = sidecar.plane.bound.outbound_fixed[0];
    let asking = async { Caller::http2(entry).await.unary("ping").await };
    let hearing = async {
        let (stream, _) = endpoint.accept().await.unwrap();
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await;
        let hello = hello.unwrap();
        hello.client_hello().server_name().map(str::to_owned)
    };
    let (answer, name) = tokio::join!(asking, hearing);
    assert_eq!(name.as_deref(), Some("echo.shop"));
    assert_eq!(answer.grpc_status(), Some("14"));
}

#[tokio::test]
async fn a_caller_of_another_root_is_refused() {
    let app = App::good(Speaks::Http2).await;
    let (ours, theirs) = (Authority::new(), Authority::new());
    let pair = Pair::with(
        theirs.credentials(WEB),
        ours.credentials(ECHO),
        app.address,
        &Plan::default(),
    );
    let answer = Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(answer.grpc_status(), Some("14"));
    assert_eq!(app.script.calls(), 0);
}

/// By a status where the protocol has one, in the records of the caller's sidecar always.
async fn check_expired(client_left: Left, server_left: Left, speaks: Speaks) {
    let app = App::good(speaks).await;
    let authority = Authority::new();
    let mut plan = Plan {
        protocol: match speaks {
            Speaks::Http2 => Protocol::Http2,
            Speaks::Http1 => Protocol::Http1,
            Speaks::Bytes | Speaks::BytesServerFirst => Protocol::Tcp,
        },
        ..Plan::default()
    };
    plan.bounds.renewal_wait = Duration::ZERO;
    let mut pair = Pair::with(
        client_left.credentials(&authority, WEB),
        server_left.credentials(&authority, ECHO),
        app.address,
        &plan,
    );
    match speaks {
        Speaks::Http2 => {
            let answer = Caller::http2(pair.entry).await.unary("ping").await;
            let expected = (Some("14"), Some("certificate_expired"));
            assert_eq!((answer.grpc_status(), answer.reason()), expected);
        }
        Speaks::Http1 => {
            let mut caller = Caller::http1(pair.entry).await;
            let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
            let expected = (503, Some("certificate_expired"));
            assert_eq!((answer.status, answer.reason()), expected);
        }
        Speaks::Bytes | Speaks::BytesServerFirst => {
            assert_eq!(raw_to(pair.entry, b"ping\n").await, b"");
        }
    }
    let record = pair.client.record().await;
    assert_eq!(record.reason, Some("certificate_expired"));
    assert_eq!(app.script.calls(), 0);
}

#[derive(Clone, Copy)]
enum Left {
    Hour,
    Nothing,
}

impl Left {
    fn credentials(self, authority: &Authority, id: &str) -> Credentials {
        let mut credentials = authority.credentials(id);
        if let Self::Nothing = self {
            let ended = clock::wall() - Duration::from_hours(1);
            credentials.identity = Arc::new(authority.issue(id, ended));
        }
        credentials
    }
}

#[tokio::test]
async fn an_expired_certificate_is_named_whoever_holds_it() {
    for (client, server) in [(Left::Nothing, Left::Hour), (Left::Hour, Left::Nothing)] {
        for speaks in [Speaks::Http2, Speaks::Http1, Speaks::Bytes] {
            check_expired(client, server, speaks).await;
        }
    }
}

/// A certificate that has ended is waited for, once: when nobody renews it, others do not wait.
#[tokio::test(start_paused = true)]
async fn connections_wait_for_a_renewal_and_only_as_long_as_it_is_likely() {
    let authority = Authority::new();
    let ended = || Arc::new(Some(Left::Nothing.credentials(&authority, WEB)));
    let published = Published::new(None);
    published.publish(ended());
    let wait = Duration::from_secs(5);
    let configs = RefCell::new(Configs::new(Arc::clone(&published), wait));
    let waited = async || {
        let begun = clock::now();
        renewed(&configs).await;
        (clock::now() - begun).as_secs()
    };
    assert_eq!(waited().await, 5);
    assert_eq!(waited().await, 0);
    // Another that has ended, then one that has not.
    published.publish(ended());
    let renewal = async {
        clock::sleep_until(clock::now() + Duration::from_secs(2)).await;
        published.publish(Arc::new(Some(Left::Hour.credentials(&authority, WEB))));
    };
    assert_eq!(tokio::join!(waited(), renewal).0, 2);
    assert_eq!(waited().await, 0);
}

#[tokio::test]
async fn a_denied_request_does_not_reach_the_application() {
    let app = App::good(Speaks::Http2).await;
    let unary = Condition::Path(ValueMatch::Prefix("/echo.Echo/".into()));
    let plan = Plan {
        rules: Rules::new(vec![Rule::new("no echo", unary)], None),
        ..Plan::default()
    };
    let mut pair = Pair::start(app.address, &plan);
    let answer = Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(
        (answer.grpc_status(), answer.reason()),
        (Some("7"), Some("denied"))
    );
    assert_eq!(app.script.calls(), 0);
    assert_eq!(pair.server.record().await.reason, Some("denied"));
}
