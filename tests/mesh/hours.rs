//! What takes hours, by a clock that only the test moves. Everything runs on the test's thread:
//! the sidecars, the applications and the callers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use bytes::Bytes;
use heddle_proxy::drain::Phase;
use heddle_shell::{clock, task::Tasks};
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc},
    echo::{App, Speaks},
    mesh::{self, Authority, ECHO, Plan, Sidecar, Threads, WEB},
};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_blocking, yield_now},
    time::advance,
};

const MINUTE: Duration = Duration::from_mins(1);

/// Time stands still unless [`Clock::forward`] moves it: while a blocking task runs, tokio does
/// not move a paused clock by itself.
struct Clock {
    _still: mpsc::Sender<()>,
    /// Two ends of a connection that nobody else uses.
    ends: (TcpStream, TcpStream),
}

impl Clock {
    async fn stop() -> Self {
        let (still, moves_again) = mpsc::channel::<()>();
        // Its end is the end of the test.
        drop(spawn_blocking(move || moves_again.recv()));
        let listener = TcpListener::bind(mesh::any()).await.unwrap();
        let connecting = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(connecting, listener.accept());
        Self {
            _still: still,
            ends: (near.unwrap(), far.unwrap().0),
        }
    }

    /// Until what was sent before has arrived, and what that caused, and so on: loopback keeps
    /// the order, so a byte of our own comes behind it.
    async fn settle(&mut self) {
        let mut byte = [0];
        for _ in 0..HOPS {
            self.ends.0.write_all(&byte).await.unwrap();
            self.ends.1.read_exact(&mut byte).await.unwrap();
            yield_now().await;
        }
    }

    /// In steps much shorter than any answer is waited for, each with time for what it causes.
    async fn forward(&mut self, by: Duration) {
        const STEP: Duration = Duration::from_secs(1);
        let until = clock::now() + by;
        while clock::now() < until {
            advance(STEP).await;
            self.settle().await;
        }
    }
}

/// Lets everything else run: each turn looks once at all sockets.
async fn turns() {
    for _ in 0..TURNS_MAX {
        yield_now().await;
    }
}

/// What must come without any time passing.
async fn now<T>(what: &str, coming: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        came = coming => came,
        () = turns() => panic!("{what} did not come"),
    }
}

/// Enough for a message to go to and fro through all sidecars and taps.
const HOPS: usize = 16;
const TURNS_MAX: usize = 100_000;

/// Passes connections on to a sidecar, and counts them.
struct Tap {
    address: SocketAddr,
    counts: Arc<Counts>,
    _tasks: Tasks,
}

#[derive(Default)]
struct Counts {
    opened: AtomicUsize,
    closed: AtomicUsize,
}

impl Tap {
    async fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(mesh::any()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::<Counts>::default();
        let counting = Arc::clone(&counts);
        let mut tasks = Tasks::new();
        tasks.spawn("tap", async move {
            let mut passing = Tasks::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let counts = Arc::clone(&counting);
                counts.opened.fetch_add(1, Ordering::SeqCst);
                passing.spawn("connection", async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    // A byte that waits for an acknowledgement waits in real time.
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    // How it ended is the sidecars' business.
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    counts.closed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        Self {
            address,
            counts,
            _tasks: tasks,
        }
    }

    fn opened(&self) -> usize {
        self.counts.opened.load(Ordering::SeqCst)
    }

    fn open(&self) -> usize {
        self.opened() - self.counts.closed.load(Ordering::SeqCst)
    }
}

/// A sidecar of the application, behind its tap.
struct Endpoint {
    app: App,
    sidecar: Sidecar,
    tap: Tap,
}

impl Endpoint {
    async fn start(authority: &Authority, plan: &Plan) -> Self {
        let app = App::good(Speaks::Http2).await;
        let sidecar = mesh::start_server(authority.credentials(ECHO), app.address, plan);
        let tap = Tap::before(sidecar.plane.bound.inbound_ports[0]).await;
        Self { app, sidecar, tap }
    }
}

/// A call that stays open.
struct Stream {
    feed: tokio::sync::mpsc::Sender<Bytes>,
    response: Response<Incoming>,
    _caller: Caller,
}

impl Stream {
    async fn open(to: SocketAddr) -> Self {
        let mut caller = now("a connection", Caller::http2(to)).await;
        let (feed, body) = Feed::channel();
        let sent = now("a head", caller.send(grpc("/echo.Echo/Bidi", body))).await;
        Self {
            feed,
            response: sent.unwrap(),
            _caller: caller,
        }
    }

    async fn echoes(&mut self) {
        self.feed.send(Bytes::from("still here")).await.unwrap();
        let frame = now("an echo", self.response.body_mut().frame()).await;
        let frame = frame.expect("the stream goes on").unwrap();
        assert_eq!(frame.into_data().unwrap(), "still here");
    }

    async fn ends_well(self) {
        drop(self.feed);
        let answer = now("the end", Answer::read(self.response)).await.unwrap();
        assert_eq!(answer.grpc_status(), Some("0"));
    }
}

async fn call(entry: SocketAddr) {
    let calling = async { Caller::http2(entry).await.unary("ping").await };
    let answer = now("an answer", calling).await;
    assert_eq!(answer.grpc_status(), Some("0"), "{answer:?}");
}

#[expect(clippy::too_many_lines, reason = "one story, in its order")]
async fn two_hours() {
    let mut clock = Clock::stop().await;
    let authority = Authority::new();
    let plan = Plan {
        threads: Threads::Tests,
        ..Plan::default()
    };
    let mut goes = Endpoint::start(&authority, &plan).await;
    let stays = Endpoint::start(&authority, &plan).await;
    let endpoints = [goes.tap.address, stays.tap.address];
    let mut client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
    let entry = client.plane.bound.outbound_fixed[0];
    let began = clock::now();

    // One to each endpoint.
    let mut streams = [Stream::open(entry).await, Stream::open(entry).await];
    assert_eq!((goes.app.script.calls(), stays.app.script.calls()), (1, 1));
    assert_eq!((goes.tap.opened(), stays.tap.opened()), (1, 1));

    // Their connections are not old yet: everybody shares them.
    clock.forward(45 * MINUTE).await;
    for _ in 0..4 {
        call(entry).await;
    }
    assert_eq!((goes.tap.opened(), stays.tap.opened()), (1, 1));

    // Older than an hour and a fifth: new requests go over others, the streams go on.
    clock.forward(30 * MINUTE).await;
    for _ in 0..4 {
        call(entry).await;
    }
    assert_eq!((goes.tap.opened(), stays.tap.opened()), (2, 2));
    assert_eq!((goes.tap.open(), stays.tap.open()), (2, 2));
    for stream in &mut streams {
        stream.echoes().await;
    }

    // The endpoint begins to stop; callers that have not heard are served.
    goes.sidecar.drain.advance(Phase::Inbound);
    clock.settle().await;
    let before = goes.app.script.calls();
    for _ in 0..4 {
        call(entry).await;
    }
    assert_eq!(goes.app.script.calls(), before + 2);
    assert!(goes.tap.opened() > 2, "its connections took new requests");
    client.configure(mesh::snapshot(&[stays.tap.address], &plan));
    goes.sidecar.drain.advance(Phase::All);
    for _ in 0..4 {
        call(entry).await;
    }
    assert_eq!(goes.app.script.calls(), before + 2);
    for stream in &mut streams {
        stream.echoes().await;
    }

    // Nothing is said for a quarter of an hour, then the callers' sidecar stops too.
    clock.forward(15 * MINUTE).await;
    client.drain.advance(Phase::All);
    clock.forward(30 * MINUTE).await;
    for stream in &mut streams {
        stream.echoes().await;
    }
    clock.forward(MINUTE).await;
    assert!(clock::now() - began >= Duration::from_hours(2));
    // All of it ends with them, and not before.
    assert_eq!((goes.tap.open(), stays.tap.open()), (1, 1));
    for stream in streams {
        stream.ends_well().await;
    }
    now("the endpoint's end", goes.sidecar.plane.ended()).await;
    now("the callers' sidecar's end", client.plane.ended()).await;
    now("an open end", async {
        while goes.tap.open() + stays.tap.open() > 0 {
            yield_now().await;
        }
    })
    .await;
    assert_eq!(
        goes.app.script.cancelled() + stays.app.script.cancelled(),
        0
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_two_hours_outlives_its_connections_age_and_two_drains() {
    LocalSet::new().run_until(two_hours()).await;
}
