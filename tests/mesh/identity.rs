//! Who may talk to whom.

use std::{io::ErrorKind, time::Duration};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    route::ValueMatch,
    snapshot::{MtlsMode, Protocol},
};
use heddle_proxy::settings::Bounds;
use heddle_tests::{
    call::{Caller, Feed, http1_request},
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

#[tokio::test]
async fn an_expired_certificate_is_named() {
    let app = App::good(Speaks::Http2).await;
    let authority = Authority::new();
    let hour = Duration::from_secs(3600);
    let mut expired = authority.credentials(WEB);
    let ended = heddle_shell::clock::wall() - hour;
    expired.identity = std::sync::Arc::new(authority.issue(WEB, ended));
    let server = authority.credentials(ECHO);
    let pair = Pair::with(expired, server, app.address, &Plan::default());
    let answer = Caller::http2(pair.entry).await.unary("ping").await;
    assert_eq!(answer.reason(), Some("certificate_expired"));
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
