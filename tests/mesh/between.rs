//! What changes while a connection is being made: it is served by what is in force at its end.

use std::{collections::HashMap, io::Write, sync::Arc, time::Duration};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    snapshot::{Inbound, InboundPort, MtlsMode, Protocol, Snapshot},
};
use heddle_proxy::tls::Credentials;
use heddle_shell::tls::{self, Accept, Clients, Trust};
use heddle_tests::{
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Plan, Sidecar, WEB},
};
use rustls::ClientConnection;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

fn nobody() -> Rules {
    Rules::new(vec![Rule::new("nobody", Condition::Always)], None)
}

/// Changes the application's port.
fn change(server: &Sidecar, mtls: MtlsMode, protocol: Protocol, rules: Rules) {
    let port = InboundPort {
        mtls,
        protocol,
        authz: Arc::new(rules),
    };
    server.configure(Snapshot {
        inbound: Some(Arc::new(Inbound {
            ports: HashMap::new(),
            default: Arc::new(port),
        })),
        ..Snapshot::default()
    });
}

/// Who says the first word after the change.
#[derive(Clone, Copy, Debug)]
enum First {
    Client,
    Application,
}

/// A client in plaintext that has said nothing, on a port that takes both, when the port changes.
async fn check_silent(protocol: Protocol, first: First, mtls: MtlsMode, rules: Rules, why: &str) {
    let listener = TcpListener::bind(mesh::any()).await.unwrap();
    let plan = Plan {
        protocol,
        mtls: MtlsMode::Permissive,
        ..Plan::default()
    };
    let credentials = Authority::new().credentials(ECHO);
    let mut server = mesh::start_server(credentials, listener.local_addr().unwrap(), &plan);
    let mut client = TcpStream::connect(server.plane.bound.inbound_ports[0])
        .await
        .unwrap();
    // It might speak first.
    let (mut application, _) = listener.accept().await.unwrap();
    change(&server, mtls, protocol, rules);
    match first {
        First::Client => client.write_all(b"\x00 late").await.unwrap(),
        First::Application => application.write_all(b"\x00 late").await.unwrap(),
    }
    let mut heard = Vec::new();
    let ended = timeout(Duration::from_secs(10), async {
        _ = client.read_to_end(&mut heard).await;
        _ = application.read_to_end(&mut heard).await;
    });
    let is_ended = ended.await.is_ok();
    let row = format!("{protocol:?} {first:?} {mtls:?}");
    assert!(is_ended && heard.is_empty(), "{row}: {heard:?}");
    assert_eq!(server.record().await.reason, Some(why), "{row}");
}

#[tokio::test]
async fn a_client_that_said_nothing_is_judged_by_what_is_in_force_when_somebody_does() {
    for protocol in [Protocol::Tcp, Protocol::Detect] {
        for first in [First::Client, First::Application] {
            let (strict, permissive) = (MtlsMode::Strict, MtlsMode::Permissive);
            check_silent(
                protocol,
                first,
                strict,
                Rules::default(),
                "plaintext_refused",
            )
            .await;
            check_silent(protocol, first, permissive, nobody(), "denied").await;
        }
    }
}

/// A peer of the mesh that has heard our side of the handshake, and keeps back its own.
struct Hesitant {
    tls: ClientConnection,
    socket: TcpStream,
}

impl Hesitant {
    async fn begin(credentials: &Credentials, server: &Sidecar, token: &'static [u8]) -> Self {
        let trust = Trust::Bundle(Arc::clone(&credentials.trust));
        let accept = Accept::OneOf(Arc::new([ECHO.parse().unwrap()]));
        let config = tls::client(Some(&credentials.identity), trust, accept, &[token]).unwrap();
        let mut tls = ClientConnection::new(config, "echo.shop".try_into().unwrap()).unwrap();
        let to = server.plane.bound.inbound_ports[0];
        let mut socket = TcpStream::connect(to).await.unwrap();
        socket.write_all(&records(&mut tls)).await.unwrap();
        let mut bytes = vec![0; 1 << 14];
        while tls.is_handshaking() {
            let size = socket.read(&mut bytes).await.unwrap();
            assert_ne!(size, 0, "it shakes hands");
            tls.read_tls(&mut &bytes[..size]).unwrap();
            tls.process_new_packets().unwrap();
        }
        Self { tls, socket }
    }

    /// Shakes hands, and says this at once.
    async fn go_on(&mut self, content: &[u8]) {
        self.tls.writer().write_all(content).unwrap();
        let records = records(&mut self.tls);
        self.socket.write_all(&records).await.unwrap();
    }
}

fn records(tls: &mut ClientConnection) -> Vec<u8> {
    let mut records = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut records).unwrap();
    }
    records
}

#[tokio::test]
async fn a_caller_that_is_denied_in_its_handshake_reaches_nobody() {
    for (protocol, token, speaks) in [
        (Protocol::Tcp, &b"heddle-tcp"[..], Speaks::Bytes),
        (Protocol::Detect, b"heddle-tcp", Speaks::Bytes),
        (Protocol::Http2, b"heddle-h2", Speaks::Http2),
    ] {
        let app = App::good(speaks).await;
        let plan = Plan {
            protocol,
            ..Plan::default()
        };
        let authority = Authority::new();
        let web = authority.credentials(WEB);
        let mut server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
        let mut peer = Hesitant::begin(&web, &server, token).await;
        server.deny(WEB);
        peer.go_on(crate::wire::PREFACE).await;
        assert_eq!(server.record().await.reason, Some("denied"), "{protocol:?}");
        assert_eq!(app.script.calls(), 0, "{protocol:?}");
    }
}

#[tokio::test]
async fn rules_that_change_during_a_handshake_judge_its_bytes() {
    let app = App::good(Speaks::Bytes).await;
    let plan = Plan {
        protocol: Protocol::Tcp,
        ..Plan::default()
    };
    let authority = Authority::new();
    let web = authority.credentials(WEB);
    let mut server = mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let mut peer = Hesitant::begin(&web, &server, b"heddle-tcp").await;
    change(&server, MtlsMode::Strict, Protocol::Tcp, nobody());
    peer.go_on(b"ping").await;
    assert_eq!(server.record().await.reason, Some("denied"));
    assert_eq!(app.script.calls(), 0);
}

#[tokio::test]
async fn an_endpoint_that_is_denied_in_its_handshake_hears_nothing() {
    let listener = TcpListener::bind(mesh::any()).await.unwrap();
    let plan = Plan {
        protocol: Protocol::Tcp,
        ..Plan::default()
    };
    let authority = Authority::new();
    let echo = authority.credentials(ECHO);
    let endpoints = [listener.local_addr().unwrap()];
    let mut client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
    let mut workload = TcpStream::connect(client.plane.bound.outbound_fixed[0])
        .await
        .unwrap();
    workload.write_all(b"ping").await.unwrap();
    let (endpoint, _) = listener.accept().await.unwrap();
    // Its handshake has begun.
    endpoint.peek(&mut [0]).await.unwrap();
    client.deny(ECHO);
    let trust = Trust::Bundle(Arc::clone(&echo.trust));
    let config = tls::server(
        &echo.identity,
        trust,
        Accept::Mesh,
        Clients::Anyone,
        &[b"heddle-tcp"],
    );
    let mut heard = Vec::new();
    if let Ok(mut endpoint) = TlsAcceptor::from(config.unwrap()).accept(endpoint).await {
        _ = endpoint.read_to_end(&mut heard).await;
    }
    assert_eq!(heard, b"");
    assert_eq!(client.record().await.reason, Some("tls"));
}
