//! GOAWAY both ways: towards callers whose connection is retired, and from endpoints.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use heddle_policy::snapshot::Snapshot;
use heddle_proxy::{
    drain::Phase,
    settings::{Bounds, InboundListeners, OutboundListeners, Settings},
    tls::Credentials,
};
use heddle_shell::{
    task::Tasks,
    tls::{self, Accept, Clients, Trust},
};
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::wire::{
    ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, NO_STREAM_YET, PING, Wire, answer, frame,
    goaway, grpc_head,
};

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;

/// A connection with an open stream is retired: what its client sends before it has heard is
/// answered, what comes later is left to another connection, the open stream goes on.
async fn check_two_steps<S>(connection: S, app: &App, retire: impl FnOnce())
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let calls = app.script.calls();
    let mut wire = Wire::client(connection).await;
    let head = grpc_head("/echo.Echo/Bidi");
    wire.send(&[
        frame(HEADERS, END_HEADERS, 1, &head),
        frame(DATA, 0, 1, b"one"),
    ])
    .await;
    let echo = wire.until(|f| f.kind == DATA && f.stream == 1).await;
    assert_eq!(echo.payload, b"one");

    retire();
    let first = wire.until(|f| f.kind == GOAWAY).await;
    assert_eq!(first.goodbye(), (NO_STREAM_YET, NO_ERROR));
    let heard = wire.until(|f| f.kind == PING && f.flags & ACK == 0).await;
    wire.send(&[
        frame(HEADERS, END_HEADERS, 3, &head),
        frame(DATA, END_STREAM, 3, b"not heard"),
    ])
    .await;
    let echo = wire.until(|f| f.kind == DATA && f.stream == 3).await;
    assert_eq!(echo.payload, b"not heard");
    wire.until(|f| f.stream == 3 && f.ends()).await;

    wire.send(&[frame(PING, ACK, 0, &heard.payload)]).await;
    let second = wire.until(|f| f.kind == GOAWAY).await;
    assert_eq!(second.goodbye(), (3, NO_ERROR));
    wire.send(&[
        frame(HEADERS, END_HEADERS | END_STREAM, 5, &head),
        frame(DATA, 0, 1, b"two"),
    ])
    .await;
    let echo = wire.until(|f| f.kind == DATA && f.stream == 1).await;
    assert_eq!(echo.payload, b"two");
    wire.send(&[frame(DATA, END_STREAM, 1, b"")]).await;
    wire.until(|f| f.stream == 1 && f.ends()).await;
    while let Some(frame) = wire.next().await {
        assert_ne!(frame.stream, 5, "{frame:?}");
    }
    assert_eq!(app.script.calls(), calls + 2);
}

/// The callers' sidecar as one that takes every name.
fn by_name(credentials: Credentials, snapshot: Snapshot, bounds: Bounds) -> Sidecar {
    let outbound = OutboundListeners {
        http: Some(mesh::any()),
        ..OutboundListeners::default()
    };
    let settings = Settings {
        workers: NonZeroUsize::MIN,
        outbound,
        inbound: InboundListeners::default(),
        bounds,
    };
    Sidecar::start(credentials, snapshot, settings)
}

/// Every kind of connection that a sidecar takes, retired by `retire` or by its age.
async fn check_every_door(bounds: Bounds, retire: impl Fn(&Sidecar, Phase)) {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        bounds,
        ..Plan::default()
    };
    let authority = Authority::new();
    let web = || authority.credentials(WEB);
    let pair = Pair::with(web(), authority.credentials(ECHO), app.address, &plan);
    let named = by_name(web(), mesh::snapshot(&[pair.inbound], &plan), bounds);
    for (sidecar, entry) in [
        (&pair.client, pair.entry),
        (&named, named.plane.bound.outbound_http.unwrap()),
    ] {
        let stream = TcpStream::connect(entry).await.unwrap();
        check_two_steps(stream, &app, || retire(sidecar, Phase::All)).await;
    }
    let stream = mesh::dial_as(&web(), pair.inbound, b"heddle-h2").await;
    check_two_steps(stream, &app, || retire(&pair.server, Phase::Inbound)).await;
}

#[tokio::test]
async fn callers_of_a_sidecar_that_stops_are_told_in_two_steps() {
    check_every_door(Bounds::default(), |sidecar, phase| {
        sidecar.drain.advance(phase);
    })
    .await;
}

#[tokio::test]
async fn callers_on_an_old_connection_are_told_in_two_steps() {
    let bounds = Bounds {
        connection_age: Duration::from_millis(200),
        ..Bounds::default()
    };
    check_every_door(bounds, |_, _| {}).await;
}

/// What an endpoint heard: on which of its connections, over which stream, and the message.
type Heard = Arc<Mutex<Vec<(usize, u32, Vec<u8>)>>>;

/// What an endpoint that has said goodbye does with the request that it has taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    Answered,
    Lost,
}

const AT_ONCE: usize = 3;

/// An endpoint that takes one of three requests on its first connection and says goodbye to the
/// others; it answers everything on later connections.
struct Endpoint {
    address: SocketAddr,
    heard: Heard,
    _tasks: Tasks,
}

impl Endpoint {
    /// With TLS when there are credentials.
    async fn start(credentials: Option<&Credentials>, taken: Taken) -> Self {
        let acceptor = credentials.map(|credentials| {
            let trust = Trust::Bundle(Arc::clone(&credentials.trust));
            let (identity, clients) = (&credentials.identity, Clients::Anyone);
            let config = tls::server(identity, trust, Accept::Mesh, clients, &[b"heddle-h2"]);
            TlsAcceptor::from(config.unwrap())
        });
        let listener = TcpListener::bind(mesh::any()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Heard::default();
        let hears = Arc::clone(&heard);
        let mut tasks = Tasks::new();
        tasks.spawn("endpoint", async move {
            let mut connections = Tasks::new();
            for connection in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, heard) = (acceptor.clone(), Arc::clone(&hears));
                connections.spawn("connection", async move {
                    match acceptor {
                        None => serve(stream, connection, taken, &heard).await,
                        Some(acceptor) => {
                            let stream = acceptor.accept(stream).await.unwrap();
                            serve(stream, connection, taken, &heard).await;
                        }
                    }
                });
            }
        });
        Self {
            address,
            heard,
            _tasks: tasks,
        }
    }

    /// How often each message was heard, over all connections.
    fn times(&self, message: &str) -> usize {
        let heard = self.heard.lock();
        let same = |(_, _, other): &&(usize, u32, Vec<u8>)| other == message.as_bytes();
        heard.iter().filter(same).count()
    }
}

/// The request that the first connection takes.
fn taken_one(heard: &Heard) -> (usize, u32, Vec<u8>) {
    let heard = heard.lock();
    let first = heard
        .iter()
        .min_by_key(|(connection, id, _)| (*connection, *id));
    first.unwrap().clone()
}

async fn serve<S>(stream: S, connection: usize, taken: Taken, heard: &Heard)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire::server(stream).await;
    let mut here = 0;
    while let Some(came) = wire.next().await {
        if came.kind == PING && came.flags & ACK == 0 {
            wire.send(&[frame(PING, ACK, 0, &came.payload)]).await;
        }
        if came.kind != DATA || came.payload.is_empty() {
            continue;
        }
        let (id, message) = (came.stream, came.payload);
        heard.lock().push((connection, id, message.clone()));
        here += 1;
        if connection > 0 {
            wire.send(&answer(id, &message)).await;
        } else if here == AT_ONCE {
            let first = taken_one(heard);
            if taken == Taken::Lost {
                wire.send(&[goaway(first.1, INTERNAL_ERROR)]).await;
                // Not at once: with bytes unread the kernel would reset, and what it had not sent
                // yet, this goodbye maybe, would be lost with the connection.
                return end(wire.into_inner()).await;
            }
            wire.send(&[goaway(first.1, NO_ERROR)]).await;
            wire.send(&answer(first.1, &first.2)).await;
        }
    }
}

/// Ends our side, and waits for the other's end.
async fn end<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    stream.shutdown().await.unwrap();
    _ = stream.read_to_end(&mut Vec::new()).await;
}

/// Three calls at once to an endpoint that takes one and says goodbye to the others.
async fn check_goodbye(entry: SocketAddr, endpoint: &Endpoint, taken: Taken) {
    const MESSAGES: [&str; AT_ONCE] = ["one", "two", "three"];
    let calls = MESSAGES.map(|message| async move {
        let mut caller = Caller::http2(entry).await;
        let request = grpc("/echo.Echo/Unary", Feed::of(message));
        (message, caller.call(request).await)
    });
    let [first, second, third] = calls;
    let answers: [(&str, Answer); AT_ONCE] = tokio::join!(first, second, third).into();
    let (_, _, first) = taken_one(&endpoint.heard);
    for (message, answer) in &answers {
        let is_taken = first == message.as_bytes();
        if is_taken && taken == Taken::Lost {
            // Whether it was processed is not known: never again without leave.
            assert_eq!(answer.grpc_status(), Some("14"), "{answer:?}");
            assert_eq!(answer.reason(), Some("reset"), "{answer:?}");
        } else {
            assert_eq!(answer.grpc_status(), Some("0"), "{message}: {answer:?}");
            assert_eq!(answer.body, message.as_bytes());
        }
        assert_eq!(endpoint.times(message), if is_taken { 1 } else { 2 });
    }
}

#[tokio::test]
async fn what_an_endpoint_did_not_take_is_sent_elsewhere_and_the_rest_is_not() {
    let authority = Authority::new();
    let plan = Plan::default();
    for taken in [Taken::Answered, Taken::Lost] {
        // A sidecar, or whoever else speaks for the endpoint.
        let echo = authority.credentials(ECHO);
        let endpoint = Endpoint::start(Some(&echo), taken).await;
        let client = mesh::start_client(authority.credentials(WEB), &[endpoint.address], &plan);
        check_goodbye(client.plane.bound.outbound_fixed[0], &endpoint, taken).await;

        // The application behind its sidecar.
        let endpoint = Endpoint::start(None, taken).await;
        let pair = Pair::start(endpoint.address, &plan);
        check_goodbye(pair.entry, &endpoint, taken).await;
    }
}
