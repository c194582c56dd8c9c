//! What changes under load: configuration, certificates, connections, sidecars.

use std::{
    collections::{BTreeSet, VecDeque},
    net::SocketAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use heddle_policy::{
    route::{PathMatch, Route, RouteMatch, RouteTable, VirtualHost},
    snapshot::{
        Balancing, ClusterName, ClusterProtocol, Health, Limits, Protocol, WeightedClusters,
        xds::{
            ClusterSpec, DestinationListener, EndpointSpec, Endpoints, Listener, ListenerTarget,
            Piece, ResourceName,
        },
    },
};
use heddle_proxy::{drain::Phase, settings::Bounds, tls::Credentials, xds::units::Units};
use heddle_shell::clock;
use heddle_tests::{
    call::{Answer, Caller, Feed, grpc},
    echo::{App, Speaks},
    eventually,
    load::Load,
    mesh::{self, Authority, ECHO, Pair, Plan, Sidecar, WEB},
};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

/// A stream that is open while things change around it.
struct Stream {
    feed: mpsc::Sender<Bytes>,
    response: Response<Incoming>,
    _caller: Caller,
}

impl Stream {
    async fn open(to: SocketAddr) -> Self {
        let mut caller = Caller::http2(to).await;
        let (feed, body) = Feed::channel();
        let response = caller.send(grpc("/echo.Echo/Bidi", body)).await.unwrap();
        Self {
            feed,
            response,
            _caller: caller,
        }
    }

    async fn echoes(&mut self) {
        self.feed.send(Bytes::from("still here")).await.unwrap();
        let frame = self.response.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "still here");
    }

    async fn ends_well(self) {
        drop(self.feed);
        let answer = Answer::read(self.response).await.unwrap();
        assert_eq!(answer.grpc_status(), Some("0"));
    }
}

/// The control plane's side of the callers' sidecar: what it says becomes views in the way of
/// the xDS client, on a clock of its own.
struct ControlPlane {
    units: Units,
    subscribed: BTreeSet<ResourceName>,
    now: Instant,
    endpoint: SocketAddr,
}

impl ControlPlane {
    fn new(endpoint: SocketAddr) -> Self {
        let mut plane = Self {
            units: Units::default(),
            subscribed: BTreeSet::new(),
            now: clock::now(),
            endpoint,
        };
        assert!(plane.units.demand(&mesh::key()));
        plane.says(Piece::Listener(Listener::Destination(Arc::new(
            DestinationListener {
                listener: mesh::key().listener_name().into(),
                key: mesh::key(),
                name: "echo.shop:80".into(),
                protocol: Protocol::Http2,
                target: ListenerTarget::Routes("echo.shop:80".into()),
            },
        ))));
        plane
    }

    fn says(&mut self, piece: Piece) {
        let name = piece.name();
        self.subscribed.insert(name.clone());
        self.units.accept(name, "1".into(), piece);
    }

    /// All requests go to `subset` from now on.
    fn names(&mut self, subset: usize) {
        let name = cluster(subset);
        let route = Route {
            name: "all".into(),
            matches: RouteMatch {
                path: PathMatch::Any,
                headers: vec![],
            },
            clusters: WeightedClusters::single(name.clone()),
            timeout: None,
            retry: None,
        };
        let host = VirtualHost {
            domains: vec!["*".into()],
            routes: vec![Arc::new(route)],
        };
        let table = RouteTable::new("echo.shop:80", vec![host]);
        self.says(Piece::Routes(Arc::new(table)));
        self.says(Piece::Cluster(Arc::new(ClusterSpec {
            endpoints: Arc::clone(&name.0),
            name,
            identities: Some(Arc::new([ECHO.parse().unwrap()])),
            allows_plain: false,
            balancing: Balancing::default(),
            outlier: None,
            limits: Limits::UNLIMITED,
            connect_timeout: Duration::from_secs(2),
            protocol: ClusterProtocol::AsClient,
        })));
    }

    fn fills(&mut self, subset: usize) {
        self.says(Piece::Endpoints(Arc::new(Endpoints {
            name: cluster(subset).0,
            list: vec![EndpointSpec {
                address: self.endpoint,
                is_meshed: true,
                identity: None,
                weight: NonZeroU32::MIN,
                health: Health::Healthy,
            }],
        })));
    }

    fn settle(&mut self, sidecar: &Sidecar) -> bool {
        let settled = self.units.settle(&self.subscribed, self.now);
        self.subscribed.extend(settled.want);
        for name in &settled.unwant {
            self.subscribed.remove(name);
        }
        assert!(settled.incomplete.is_empty(), "{:?}", settled.incomplete);
        let is_changed = settled.snapshot.is_some();
        if let Some(snapshot) = settled.snapshot {
            sidecar.configure(snapshot);
        }
        is_changed
    }
}

fn cluster(subset: usize) -> ClusterName {
    ClusterName(format!("echo.shop:80#v{subset}").into())
}

#[tokio::test]
async fn a_thousand_new_subsets_whose_endpoints_come_late_lose_no_call() {
    flips(1).await;
}

#[tokio::test]
async fn a_thousand_new_subsets_of_which_most_are_overtaken_lose_no_call() {
    flips(10).await;
}

/// A thousand new subsets. Each `waited_for`th serves; the others are overtaken before their
/// endpoints come.
async fn flips(waited_for: usize) {
    const FLIPS: usize = 1000;
    const STEP: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_secs(1);
    /// One more than there are callers: one of these calls began after the flip.
    const AFTERWARDS: usize = 4;
    let app = App::good(Speaks::Http2).await;
    let mut pair = Pair::start(app.address, &Plan::default());
    let mut plane = ControlPlane::new(pair.inbound);
    plane.names(0);
    plane.fills(0);
    assert!(plane.settle(&pair.client));
    let load = Load::start(pair.entry, AFTERWARDS - 1).await;
    let mut stream = Stream::open(pair.entry).await;

    let mut late = VecDeque::new();
    let mut served = BTreeSet::new();
    for flip in 1..=FLIPS {
        plane.names(flip);
        plane.settle(&pair.client);
        late.push_back((plane.now + LATE, flip));
        let is_waited_for = flip % waited_for == 0;
        plane.now += if is_waited_for { LATE } else { STEP };
        while let Some((_, due)) = late.pop_front_if(|(at, _)| *at <= plane.now) {
            plane.fills(due);
        }
        let is_changed = plane.settle(&pair.client);
        assert!(is_changed || !is_waited_for, "flip {flip} did not come");
        load.goes_on(if is_waited_for { AFTERWARDS } else { 1 })
            .await;
        while let Ok(record) = pair.client.records.try_recv() {
            served.extend(record.cluster);
        }
    }
    stream.echoes().await;
    stream.ends_well().await;
    assert!(load.all_succeeded().await >= FLIPS);
    let expected: BTreeSet<_> = (0..=FLIPS).step_by(waited_for).map(cluster).collect();
    while served.len() < expected.len() {
        served.extend(pair.client.record().await.cluster);
    }
    assert_eq!(served, expected);
}

#[tokio::test]
async fn certificates_that_change_five_times_a_second_lose_no_call() {
    /// Shorter than the test: whoever goes on with the first certificates fails.
    const FIRST_LIFE: Duration = Duration::from_secs(2);
    let app = App::good(Speaks::Http2).await;
    let authority = Authority::new();
    let credentials = |id: &str, life| Credentials {
        identity: Arc::new(authority.issue(id, clock::wall() + life)),
        ..authority.credentials(id)
    };
    let pair = Pair::with(
        credentials(WEB, FIRST_LIFE),
        credentials(ECHO, FIRST_LIFE),
        app.address,
        &Plan::default(),
    );
    let load = Load::start(pair.entry, 3).await;
    let mut stream = Stream::open(pair.entry).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    for round in 0..20 {
        ticks.tick().await;
        // Never both at the same moment.
        let (sidecar, id) = match round % 2 {
            0 => (&pair.client, WEB),
            _ => (&pair.server, ECHO),
        };
        let fresh = credentials(id, Duration::from_secs(20));
        sidecar.credentials.publish(Arc::new(Some(fresh)));
        load.goes_on(3).await;
        stream.echoes().await;
    }
    stream.ends_well().await;
    assert!(load.all_succeeded().await >= 60);
}

/// The connections of both sidecars retire all the time; streams that began on them do not.
#[tokio::test]
async fn aged_connections_lose_no_call_and_cut_no_stream() {
    let app = App::good(Speaks::Http2).await;
    let plan = Plan {
        bounds: Bounds {
            connection_age: Duration::from_millis(100),
            ..Bounds::default()
        },
        ..Plan::default()
    };
    let pair = Pair::start(app.address, &plan);
    let mut stream = Stream::open(pair.entry).await;
    let load = Load::start(pair.entry, 3).await;
    let ends = clock::now() + 30 * plan.bounds.connection_age;
    while clock::now() < ends {
        load.goes_on(10).await;
        stream.echoes().await;
    }
    stream.ends_well().await;
    load.all_succeeded().await;
}

#[tokio::test]
async fn a_sidecar_that_stops_loses_no_call_and_cuts_no_stream() {
    let (stays, goes) = (
        App::good(Speaks::Http2).await,
        App::good(Speaks::Http2).await,
    );
    let authority = Authority::new();
    let plan = Plan::default();
    let server = |app: &App| mesh::start_server(authority.credentials(ECHO), app.address, &plan);
    let (staying, mut going) = (server(&stays), server(&goes));
    let at = |sidecar: &Sidecar| sidecar.plane.bound.inbound_ports[0];
    let endpoints = [at(&going), at(&staying)];
    let client = mesh::start_client(authority.credentials(WEB), &endpoints, &plan);
    let entry = client.plane.bound.outbound_fixed[0];
    let mut streams = [Stream::open(entry).await, Stream::open(entry).await];
    assert_eq!(goes.script.calls(), 1);
    let load = Load::start(entry, 3).await;
    load.goes_on(20).await;

    // Callers that have not heard yet are still served.
    going.drain.advance(Phase::Inbound);
    load.goes_on(50).await;
    client.configure(mesh::snapshot(&[at(&staying)], &plan));
    load.goes_on(20).await;
    let calls = goes.script.calls();
    assert!(calls > 20);
    going.drain.advance(Phase::All);
    load.goes_on(50).await;
    for stream in &mut streams {
        stream.echoes().await;
    }
    assert_eq!(goes.script.calls(), calls);
    // It ends when its last stream does.
    for stream in streams {
        stream.ends_well().await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(10), going.plane.ended());
    ended.await.expect("nothing runs there any more");
    eventually(|| load.calls() > 140).await;
    load.all_succeeded().await;
}
