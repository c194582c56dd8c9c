//! HTTP/2 peers that abuse the protocol: their connection is ended or held, others go on being
//! answered, and memory stays flat.

use std::{net::SocketAddr, num::NonZeroUsize, sync::Arc, time::Duration};

use heddle_policy::snapshot::DestinationKey;
use heddle_proxy::{
    settings::{Bounds, InboundListeners, OutboundListeners, Settings},
    tls::Credentials,
};
use heddle_shell::{
    task::Tasks,
    tls::{self, Accept, Clients, Trust},
};
use heddle_tests::{
    call::{Caller, Feed, grpc},
    echo::{App, Speaks},
    eventually,
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    memory::{Peak, alone},
    wire::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY,
        PUSH_PROMISE, RST_STREAM, SETTINGS, UNKNOWN, WINDOW_UPDATE, Wire, codes, frame, grpc_head,
        head, literal,
    },
};

const KIB_MAX: u64 = 8 * 1024;

/// Writes everything while reading; what came back until the other side closed, or, when
/// everything was written and nothing closed, until the answer to a last PING.
async fn exchange<S>(stream: S, frames: &[Vec<u8>]) -> Vec<u8>
where
    S: AsyncRead + AsyncWrite,
{
    const LAST: [u8; 8] = *b"lastping";
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = async {
        let mut all = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        all.extend(frames.iter().flatten());
        all.extend(frame(PING, 0, 0, &LAST));
        // The other side may close before it has read everything.
        _ = write.write_all(&all).await;
        _ = write.flush().await;
        write
    };
    let reading = async {
        let mut answer = Vec::new();
        let mut block = [0; 4096];
        while let Ok(n @ 1..) = read.read(&mut block).await {
            answer.extend_from_slice(&block[..n]);
            if answer.windows(8).any(|window| window == LAST) {
                break;
            }
        }
        answer
    };
    let (_write, answer) = tokio::join!(writing, reading);
    answer
}

/// Both sides of a mesh, and those who call well.
struct Mesh {
    app: App,
    pair: Pair,
    authority: Authority,
}

/// Where an abuser comes from.
#[derive(Clone, Copy, Debug)]
enum Door {
    /// The workload.
    Workload,
    /// A peer with a certificate of the mesh.
    Peer,
}

/// A connection, in the clear or not.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection for S {}

impl Mesh {
    async fn start() -> Self {
        let app = App::good(Speaks::Http2).await;
        let authority = Authority::new();
        let (web, echo) = (authority.credentials(WEB), authority.credentials(ECHO));
        let pair = Pair::with(web, echo, app.address, &Plan::default());
        Self {
            app,
            pair,
            authority,
        }
    }

    async fn dial(&self, door: Door) -> Box<dyn Connection> {
        let socket = TcpSocket::new_v4().unwrap();
        // What is not read fills up soon.
        socket.set_recv_buffer_size(4096).unwrap();
        match door {
            Door::Workload => Box::new(socket.connect(self.pair.entry).await.unwrap()),
            Door::Peer => {
                let stream = socket.connect(self.pair.inbound).await.unwrap();
                let web = self.authority.credentials(WEB);
                Box::new(mesh::speak_as(&web, stream, b"heddle-h2").await)
            }
        }
    }
}

const DOORS: [Door; 2] = [Door::Workload, Door::Peer];

/// A name, what is sent, and the codes that may be told.
type Row = (&'static str, Vec<Vec<u8>>, &'static [u32]);

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const CALM: u32 = 11;

#[expect(clippy::too_many_lines, reason = "one row per flood")]
fn refused() -> Vec<Row> {
    let opened = |stream| frame(HEADERS, END_HEADERS, stream, &head());
    let cancel = |stream| frame(RST_STREAM, 0, stream, &8u32.to_be_bytes());
    let odd = |n: u32| 2 * n + 1;
    let resets: Vec<Vec<u8>> = (0..10_000)
        .flat_map(|n| [opened(odd(n)), cancel(odd(n))])
        .collect();
    let block: Vec<u8> = literal("x-filler", &"y".repeat(120)).repeat(100);
    let mut continued = vec![frame(HEADERS, 0, 1, &head())];
    continued.extend(vec![frame(CONTINUATION, 0, 1, &block); 100]);
    let mut empty = vec![frame(HEADERS, 0, 1, &head())];
    empty.extend(vec![frame(CONTINUATION, 0, 1, &[]); 20_000]);
    let mut nothing = vec![opened(1)];
    nothing.extend(vec![frame(DATA, 0, 1, &[]); 20_000]);
    vec![
        ("rapid reset", resets, &[CALM][..]),
        (
            "continuation",
            continued,
            &[CALM, COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        ("empty continuation", empty, &[CALM, PROTOCOL_ERROR]),
        ("empty data", nothing, &[CALM]),
        ("even stream", vec![opened(2)], &[PROTOCOL_ERROR]),
        (
            "older stream",
            vec![opened(5), opened(3)],
            &[PROTOCOL_ERROR, 5],
        ),
        (
            "stream 0",
            vec![frame(HEADERS, END_HEADERS, 0, &head())],
            &[PROTOCOL_ERROR],
        ),
        (
            "data on idle",
            vec![frame(DATA, 0, 1, b"x")],
            &[PROTOCOL_ERROR],
        ),
        (
            "push",
            vec![frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4])],
            &[PROTOCOL_ERROR],
        ),
        (
            "too large",
            vec![frame(DATA, 0, 1, &[0; 20_000])],
            &[FRAME_SIZE_ERROR],
        ),
        (
            "short ping",
            vec![frame(PING, 0, 0, &[0; 7])],
            &[FRAME_SIZE_ERROR, PROTOCOL_ERROR],
        ),
        (
            "zero window",
            vec![frame(WINDOW_UPDATE, 0, 0, &[0; 4])],
            &[PROTOCOL_ERROR],
        ),
        (
            "window overflow",
            vec![frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())],
            &[FLOW_CONTROL_ERROR],
        ),
        (
            "bad hpack",
            vec![frame(HEADERS, END_HEADERS, 1, &[0xff; 9])],
            &[COMPRESSION_ERROR, PROTOCOL_ERROR],
        ),
        (
            "garbage",
            vec![vec![0xff; 4096]],
            &[FRAME_SIZE_ERROR, PROTOCOL_ERROR],
        ),
    ]
}

/// These are answered in kind, as fast as the answers are read; of what brings nothing only so much.
fn answered() -> Vec<Row> {
    let reopened: Vec<Vec<u8>> = (0..2_000u32)
        .flat_map(|n| {
            let (stream, update) = (2 * n + 1, 1u32.to_be_bytes());
            [
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &head()),
                frame(WINDOW_UPDATE, 0, 0, &update),
            ]
        })
        .collect();
    vec![
        (
            "settings",
            vec![frame(SETTINGS, 0, 0, &[]); 20_000],
            &[NO_ERROR, CALM],
        ),
        (
            "pings",
            vec![frame(PING, 0, 0, &[0; 8]); 20_000],
            &[NO_ERROR, CALM],
        ),
        (
            "priorities",
            vec![frame(PRIORITY, 0, 1, &[0; 5]); 20_000],
            &[NO_ERROR, CALM],
        ),
        (
            "unknown frames",
            vec![frame(UNKNOWN, 0, 1, &[0; 64]); 20_000],
            &[NO_ERROR, CALM],
        ),
        // More than may be open at once.
        ("requests", reopened, &[NO_ERROR, CALM]),
    ]
}

async fn floods() {
    let mesh = Mesh::start().await;
    let mut caller = Caller::http2(mesh.pair.entry).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    for door in DOORS {
        let rows = refused().into_iter().chain(answered());
        for (name, frames, expected) in rows {
            let connection = mesh.dial(door).await;
            let peak = Peak::begin();
            let answer = exchange(connection, &frames).await;
            let told = codes(&answer, GOAWAY);
            let last = told.last().copied().unwrap_or(NO_ERROR);
            assert!(expected.contains(&last), "{door:?} {name}: GOAWAY {told:?}");
            let answer = caller.unary("ping").await;
            assert_eq!(answer.grpc_status(), Some("0"), "{door:?} {name}");
            let grew = peak.grew_kib();
            assert!(grew <= KIB_MAX, "{door:?} {name}: {grew} KiB");
        }
    }
}

#[test]
fn floods_of_frames_are_refused_in_flat_memory() {
    alone(
        "floods::floods_of_frames_are_refused_in_flat_memory",
        floods(),
    );
}

/// Writes the same for ever and never reads.
async fn deaf(mut connection: Box<dyn Connection>, begin: Vec<u8>, block: Vec<u8>) {
    let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &begin].concat();
    if connection.write_all(&begin).await.is_err() {
        return;
    }
    while connection.write_all(&block).await.is_ok() {}
}

async fn floods_without_reading() {
    const CALLS: usize = 100;
    let mesh = Mesh::start().await;
    let mut caller = Caller::http2(mesh.pair.entry).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    let opened = frame(HEADERS, END_HEADERS, 1, &grpc_head("/echo.Echo/Bidi"));
    for door in DOORS {
        for (name, begin, one) in [
            ("pings", vec![], frame(PING, 0, 0, &[0; 8])),
            ("settings", vec![], frame(SETTINGS, 0, 0, &[])),
            ("an echo", opened.clone(), frame(DATA, 0, 1, &[7; 1024])),
        ] {
            let mut flooding = Tasks::new();
            let connection = mesh.dial(door).await;
            let peak = Peak::begin();
            flooding.spawn("flood", deaf(connection, begin, one.repeat(64)));
            for _ in 0..CALLS {
                let answer = caller.unary("ping").await;
                assert_eq!(answer.grpc_status(), Some("0"), "{door:?} {name}");
            }
            let grew = peak.grew_kib();
            assert!(grew <= KIB_MAX, "{door:?} {name}: {grew} KiB");
        }
    }
}

#[test]
fn a_flood_of_one_who_does_not_read_is_held_in_flat_memory() {
    alone(
        "floods::a_flood_of_one_who_does_not_read_is_held_in_flat_memory",
        floods_without_reading(),
    );
}

/// Streams that ask for a MiB each and let come nothing, or one byte.
async fn tiny_windows() {
    /// More would fill the connection that the sidecars share (ARCHITECTURE.md).
    const STREAMS: u32 = 12;
    let mesh = Mesh::start().await;
    let mut caller = Caller::http2(mesh.pair.entry).await;
    assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
    for door in DOORS {
        for window in [0u32, 1] {
            let connection = mesh.dial(door).await;
            let peak = Peak::begin();
            let mut wire = Wire::client(connection).await;
            let initial_window = [&[0, 4][..], &window.to_be_bytes()].concat();
            wire.send(&[frame(SETTINGS, 0, 0, &initial_window)]).await;
            let begun = mesh.app.script.calls() + STREAMS as usize;
            let mut block = grpc_head("/echo.Echo/Repeat");
            block.extend(literal("x-repeat", "1024"));
            for stream in 0..STREAMS {
                let stream = 2 * stream + 1;
                wire.send(&[
                    frame(HEADERS, END_HEADERS, stream, &block),
                    frame(DATA, END_STREAM, stream, &[7; 1024]),
                ])
                .await;
            }
            eventually(|| mesh.app.script.calls() == begun).await;
            for _ in 0..50 {
                let answer = caller.unary("ping").await;
                assert_eq!(answer.grpc_status(), Some("0"), "{door:?} {window}");
            }
            let grew = peak.grew_kib();
            assert!(grew <= 2 * KIB_MAX, "{door:?} {window}: {grew} KiB");
            // Every head came, and of each body no more than was allowed.
            wire.send(&[frame(PING, 0, 0, b"lastping")]).await;
            for _ in 0..STREAMS {
                wire.until(|f| f.kind == HEADERS).await;
            }
            wire.until(|f| f.kind == PING && f.payload == b"lastping")
                .await;
            for stream in 0..STREAMS {
                let came = wire.data_bytes(2 * stream + 1);
                assert!(came <= window as usize, "{door:?} {window}: {came} bytes");
            }
        }
    }
}

#[test]
fn readers_with_tiny_windows_are_held_in_flat_memory() {
    alone(
        "floods::readers_with_tiny_windows_are_held_in_flat_memory",
        tiny_windows(),
    );
}

/// A peer that answers whatever comes with `begin` and then `block` for ever, and never reads
/// again.
async fn abusive(credentials: &Credentials, begin: Vec<u8>, block: Vec<u8>) -> (SocketAddr, Tasks) {
    let trust = Trust::Bundle(Arc::clone(&credentials.trust));
    let (identity, clients) = (&credentials.identity, Clients::Anyone);
    let config = tls::server(identity, trust, Accept::Mesh, clients, &[b"heddle-h2"]);
    let acceptor = TlsAcceptor::from(config.unwrap());
    let listener = TcpListener::bind(mesh::any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = Tasks::new();
    tasks.spawn("abuser", async move {
        let mut connections = Tasks::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, begin, block) = (acceptor.clone(), begin.clone(), block.clone());
            connections.spawn("connection", async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let mut wire = Wire::server(stream).await;
                wire.until(|f| f.kind == HEADERS).await;
                let mut stream = wire.into_inner();
                if stream.write_all(&begin).await.is_ok() {
                    while stream.write_all(&block).await.is_ok() {}
                }
            });
        }
    });
    (address, tasks)
}

/// The callers' sidecar with a good destination and one of `bad`.
fn between(mesh: &Mesh, bad: SocketAddr) -> Sidecar {
    let hasty = Plan {
        timeout: Some(Duration::from_millis(300)),
        ..Plan::default()
    };
    let mut snapshot = mesh::snapshot(&[mesh.pair.inbound], &Plan::default());
    let bad = mesh::destination("bad.shop:80", &[bad], &hasty);
    let key = DestinationKey::Host("bad.shop".into(), 80);
    snapshot.destinations.insert(key, Arc::new(bad));
    let settings = Settings {
        workers: NonZeroUsize::MIN,
        outbound: OutboundListeners {
            http: Some(mesh::any()),
            ..OutboundListeners::default()
        },
        inbound: InboundListeners::default(),
        bounds: Bounds::default(),
    };
    Sidecar::start(mesh.authority.credentials(WEB), snapshot, settings)
}

/// The head of a response, to be followed by more.
fn begun(flags: u8) -> Vec<u8> {
    frame(HEADERS, flags, 1, &[0x88])
}

#[expect(clippy::too_many_lines, reason = "one row per flood")]
async fn abusive_endpoints() {
    const CALLS: usize = 20;
    let mesh = Mesh::start().await;
    let hint = [literal(":status", "103"), literal("link", &"x".repeat(100))].concat();
    let filler = literal("x-filler", &"y".repeat(120)).repeat(100);
    let update = 1u32.to_be_bytes();
    for (name, begin, block) in [
        ("settings", vec![], frame(SETTINGS, 0, 0, &[]).repeat(64)),
        ("pings", vec![], frame(PING, 0, 0, &[0; 8]).repeat(64)),
        (
            "windows",
            vec![],
            frame(WINDOW_UPDATE, 0, 0, &update).repeat(64),
        ),
        (
            "hints",
            vec![],
            frame(HEADERS, END_HEADERS, 1, &hint).repeat(16),
        ),
        ("continuation", begun(0), frame(CONTINUATION, 0, 1, &filler)),
        (
            "empty continuation",
            begun(0),
            frame(CONTINUATION, 0, 1, &[]).repeat(64),
        ),
        (
            "push",
            vec![],
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]).repeat(16),
        ),
        (
            "resets",
            begun(END_HEADERS),
            frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()).repeat(64),
        ),
        (
            "empty data",
            begun(END_HEADERS),
            frame(DATA, 0, 1, &[]).repeat(64),
        ),
        (
            "too much data",
            begun(END_HEADERS),
            frame(DATA, 0, 1, &[7; 16 * 1024]),
        ),
        ("garbage", vec![], vec![0xff; 4096]),
    ] {
        let echo = mesh.authority.credentials(ECHO);
        let (bad, _abuser) = abusive(&echo, begin, block).await;
        let sidecar = between(&mesh, bad);
        let entry = sidecar.plane.bound.outbound_http.unwrap();
        let (mut caller, mut other) = (Caller::http2(entry).await, Caller::http2(entry).await);
        assert_eq!(caller.unary("ping").await.grpc_status(), Some("0"));
        let peak = Peak::begin();
        let abused = async {
            let mut request = grpc("/echo.Echo/Unary", Feed::of("ping"));
            *request.uri_mut() = "http://bad.shop:80/echo.Echo/Unary".parse().unwrap();
            let mut response = other.send(request).await.unwrap();
            // Whatever comes of it, the route's timeout is its end.
            while let Some(Ok(_)) = response.body_mut().frame().await {}
        };
        let answered = async {
            for _ in 0..CALLS {
                let answer = caller.unary("ping").await;
                assert_eq!(answer.grpc_status(), Some("0"), "{name}");
            }
        };
        tokio::join!(abused, answered);
        let grew = peak.grew_kib();
        assert!(grew <= KIB_MAX, "{name}: {grew} KiB");
        let answer = caller.unary("ping").await;
        assert_eq!(answer.grpc_status(), Some("0"), "{name}");
    }
}

#[test]
fn an_abusive_endpoint_costs_only_its_own_calls() {
    alone(
        "floods::an_abusive_endpoint_costs_only_its_own_calls",
        abusive_endpoints(),
    );
}

#[tokio::test]
async fn an_http2_request_that_is_none_reaches_nobody() {
    let app = App::good(Speaks::Http2).await;
    let pair = Pair::start(app.address, &Plan::default());
    for (name, block) in [
        ("upper case", [head(), literal("X-Upper", "1")].concat()),
        (
            "connection",
            [head(), literal("connection", "close")].concat(),
        ),
        (
            "transfer-encoding",
            [head(), literal("transfer-encoding", "chunked")].concat(),
        ),
        ("te", [head(), literal("te", "gzip")].concat()),
        (
            "late pseudo",
            [head(), literal("x", "1"), literal(":path", "/")].concat(),
        ),
        ("two paths", [head(), literal(":path", "/b")].concat()),
        ("unknown pseudo", [head(), literal(":what", "x")].concat()),
        (
            "no path",
            [&[0x83, 0x86, 0x01, 12][..], b"echo.shop:80"].concat(),
        ),
        (
            "empty path",
            [vec![0x83, 0x86], literal(":path", "")].concat(),
        ),
        ("status", [head(), literal(":status", "200")].concat()),
    ] {
        let frames = [frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)];
        let answer = exchange(TcpStream::connect(pair.entry).await.unwrap(), &frames).await;
        let told = [codes(&answer, RST_STREAM), codes(&answer, GOAWAY)].concat();
        assert!(!told.is_empty(), "{name}");
    }
    assert_eq!(app.script.calls(), 0);
}
