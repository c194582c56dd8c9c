//! Sidecars in this process with static configuration and real TLS.

use std::{
    collections::HashMap,
    future::{pending, ready},
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_policy::{
    authz::Rules,
    outlier::OutlierPolicy,
    retry::RetryPolicy,
    route::{PathMatch, Route, RouteMatch, RouteTable, VirtualHost},
    snapshot::{
        Balancing, Cluster, ClusterName, ClusterProtocol, Destination, DestinationKey, Endpoint,
        Health, Inbound, InboundPort, Limits, MtlsMode, Protocol, Snapshot, Target, Transport,
        WeightedClusters,
    },
    spiffe::SpiffeId,
};
use heddle_proxy::{
    demand::{Asks, Demand},
    drain::{self, Awaited, Drain, Phase},
    exchange::Record,
    settings::{
        Bounds, InboundForward, InboundListeners, OutboundListeners, OutboundPort, Settings,
    },
    telemetry::Telemetry,
    tls::Credentials,
    worker::{DataPlane, Inputs},
};
use heddle_relay::view::{self, View};
use heddle_shell::{
    clock,
    publish::Published,
    tls::{self, Accept, Identity, Trust, TrustBundle},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// The callers' identity.
pub const WEB: &str = "spiffe://td/ns/shop/sa/web";
/// The application's identity.
pub const ECHO: &str = "spiffe://td/ns/shop/sa/echo";

/// One root.
#[expect(missing_debug_implementations, reason = "a CertifiedIssuer has none")]
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
}

/// A sidecar; it is cut when this is dropped.
#[derive(Debug)]
pub struct Sidecar {
    /// Where it listens.
    pub plane: DataPlane,
    /// Stops it.
    pub drain: Drain,
    /// Its configuration.
    pub views: Arc<Published<View>>,
    /// Its certificate.
    pub credentials: Arc<Published<Option<Credentials>>>,
    /// What it counts.
    pub telemetry: Arc<Telemetry>,
    /// What it reports.
    pub records: mpsc::Receiver<Record>,
    /// What it asks for.
    pub asks: Asks,
}

/// What the callers' sidecar knows of the one destination.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Workers of each sidecar.
    pub workers: usize,
    /// Declared protocol; `Tcp` makes the destination one of bytes.
    pub protocol: Protocol,
    /// Name of the one route. Empty, and without more, it is what nobody has written.
    pub route: &'static str,
    /// Of the route.
    pub timeout: Option<Duration>,
    /// Of the route.
    pub retry: Option<RetryPolicy>,
    /// Identities accepted from endpoints.
    pub accepted: Vec<&'static str>,
    /// How the cluster chooses an endpoint.
    pub balancing: Balancing,
    /// Limits of the cluster.
    pub limits: Limits,
    /// Of the cluster.
    pub outlier: Option<OutlierPolicy>,
    /// How the application's port is served.
    pub mtls: MtlsMode,
    /// Rules of that port.
    pub rules: Rules,
    /// Bounds of both sidecars.
    pub bounds: Bounds,
    /// Where the sidecars run.
    pub threads: Threads,
}

/// Whose threads a sidecar runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// Its own, as in production.
    Own,
    /// The test's, in its `LocalSet`: there the test holds the clock.
    Tests,
}

/// Two sidecars and the way through both to the application.
#[derive(Debug)]
pub struct Pair {
    /// The callers' sidecar.
    pub client: Sidecar,
    /// The application's sidecar.
    pub server: Sidecar,
    /// Where callers dial.
    pub entry: SocketAddr,
    /// Where the application's sidecar listens.
    pub inbound: SocketAddr,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: 1,
            protocol: Protocol::Http2,
            route: "all",
            timeout: None,
            retry: None,
            accepted: vec![ECHO],
            balancing: Balancing::RoundRobin,
            limits: Limits::UNLIMITED,
            outlier: None,
            mtls: MtlsMode::Strict,
            rules: Rules::default(),
            bounds: Bounds::default(),
            threads: Threads::Own,
        }
    }
}

impl Authority {
    /// A new root.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("randomness");
        let root = CertifiedIssuer::self_signed(params, key).expect("a valid root");
        Self { root }
    }

    /// A leaf for `id`, valid until `not_after`.
    pub fn issue(&self, id: &str, not_after: SystemTime) -> Identity {
        let key = KeyPair::generate().expect("randomness");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(id.try_into().expect("ASCII"))];
        params.not_before = (not_after - Duration::from_hours(2)).into();
        params.not_after = not_after.into();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(&key, &self.root).expect("a valid leaf");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Identity::new(vec![leaf.der().clone()], key).expect("key and leaf fit")
    }

    /// Credentials for `id`, valid for an hour.
    pub fn credentials(&self, id: &str) -> Credentials {
        let not_after = clock::wall() + Duration::from_hours(1);
        Credentials {
            identity: Arc::new(self.issue(id, not_after)),
            trust: Arc::new(TrustBundle {
                revision: 1,
                roots: [("td".parse().expect("a name"), vec![self.root.der().clone()])].into(),
                denied: [].into(),
            }),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Sidecar {
    /// Starts one.
    pub fn start(credentials: Credentials, snapshot: Snapshot, settings: Settings) -> Self {
        Self::start_on(Threads::Own, credentials, snapshot, settings)
    }

    /// Starts one on these threads.
    pub fn start_on(
        threads: Threads,
        credentials: Credentials,
        snapshot: Snapshot,
        settings: Settings,
    ) -> Self {
        let drain = Drain::default();
        let now = clock::now();
        let views = Published::new(view::reconcile(&View::empty(now), snapshot, now));
        let credentials = Published::new(Some(credentials));
        let (demand, asks) = Demand::channel();
        let (tap, records) = mpsc::channel(10_000);
        let telemetry = Arc::new(Telemetry::with_tap(tap));
        let inputs = Inputs {
            settings: Arc::new(settings),
            views: Arc::clone(&views),
            credentials: Arc::clone(&credentials),
            demand,
            telemetry: Arc::clone(&telemetry),
            draining: drain.watch(),
        };
        let started = match threads {
            Threads::Own => DataPlane::start(&inputs, 7),
            Threads::Tests => DataPlane::start_here(&inputs, 7),
        };
        let plane = started.expect("loopback has free ports");
        Self {
            plane,
            drain,
            views,
            credentials,
            telemetry,
            records,
            asks,
        }
    }

    /// Stops it as its program does once no sidecar sends anybody there.
    pub async fn stop(&mut self, limit: Duration) {
        let awaited = Awaited {
            withdrawn: ready(()),
            application_gone: drain::application_gone(&self.telemetry.metrics),
            ended: self.plane.ended(),
            told_again: pending(),
        };
        self.drain.stop(limit, awaited).await;
    }

    /// Replaces the configuration.
    pub fn configure(&self, snapshot: Snapshot) {
        let previous = self.views.load();
        let view = view::reconcile(&previous, snapshot, clock::now());
        self.views.publish(Arc::new(view));
    }

    /// Puts `id` on the deny list.
    pub fn deny(&self, id: &str) {
        let current = self.credentials.load();
        let current = (*current).as_ref().expect("it has credentials");
        let mut trust = (*current.trust).clone();
        trust.revision += 1;
        trust.denied.insert(id.parse().expect("a SPIFFE id"));
        self.credentials.publish(Arc::new(Some(Credentials {
            identity: Arc::clone(&current.identity),
            trust: Arc::new(trust),
        })));
    }

    /// The next record.
    pub async fn record(&mut self) -> Record {
        let record = tokio::time::timeout(Duration::from_secs(10), self.records.recv());
        record.await.expect("a record in time").expect("it runs")
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.drain.advance(Phase::Cut);
    }
}

impl Pair {
    /// Callers as [`WEB`], the application as [`ECHO`], one root.
    pub fn start(application: SocketAddr, plan: &Plan) -> Self {
        let authority = Authority::new();
        let server = authority.credentials(ECHO);
        Self::with(authority.credentials(WEB), server, application, plan)
    }

    /// With other credentials.
    pub fn with(
        client: Credentials,
        server: Credentials,
        application: SocketAddr,
        plan: &Plan,
    ) -> Self {
        let server = start_server(server, application, plan);
        let inbound = server.plane.bound.inbound_ports[0];
        let client = start_client(client, &[inbound], plan);
        let entry = client.plane.bound.outbound_fixed[0];
        Self {
            client,
            server,
            entry,
            inbound,
        }
    }
}

/// A TLS connection to a sidecar by somebody who holds `credentials`, speaking for itself.
///
/// # Panics
/// When the handshake fails.
pub async fn dial_as(
    credentials: &Credentials,
    to: SocketAddr,
    token: &'static [u8],
) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(to).await.expect("the sidecar listens");
    speak_as(credentials, stream, token).await
}

/// As [`dial_as`], over a connection that is there.
///
/// # Panics
/// When the handshake fails.
pub async fn speak_as(
    credentials: &Credentials,
    stream: TcpStream,
    token: &'static [u8],
) -> TlsStream<TcpStream> {
    let accepted = [ECHO.parse().expect("a SPIFFE id")];
    let config = tls::client(
        Some(&credentials.identity),
        Trust::Bundle(Arc::clone(&credentials.trust)),
        Accept::OneOf(Arc::new(accepted)),
        &[token],
    );
    let name = "echo.shop".try_into().expect("a name");
    TlsConnector::from(config.expect("a valid identity"))
        .connect(name, stream)
        .await
        .expect("a handshake")
}

/// The application's sidecar.
pub fn start_server(credentials: Credentials, application: SocketAddr, plan: &Plan) -> Sidecar {
    let port = InboundPort {
        mtls: plan.mtls,
        protocol: plan.protocol,
        authz: Arc::new(plan.rules.clone()),
    };
    let snapshot = Snapshot {
        inbound: Some(Arc::new(Inbound {
            ports: HashMap::new(),
            default: Arc::new(port),
        })),
        ..Snapshot::default()
    };
    let ports = vec![InboundForward {
        port: application.port(),
        listen: any(),
        forward: application,
        protocol: Protocol::Detect,
    }];
    let inbound = InboundListeners {
        intercepted: None,
        ports,
    };
    let settings = Settings {
        workers: NonZeroUsize::new(plan.workers).expect("at least one"),
        outbound: OutboundListeners::default(),
        inbound,
        bounds: plan.bounds,
    };
    Sidecar::start_on(plan.threads, credentials, snapshot, settings)
}

/// The callers' sidecar, with mutual TLS to each of `endpoints`.
pub fn start_client(credentials: Credentials, endpoints: &[SocketAddr], plan: &Plan) -> Sidecar {
    let fixed = vec![OutboundPort {
        listen: any(),
        destination: key(),
    }];
    let outbound = OutboundListeners {
        fixed,
        ..OutboundListeners::default()
    };
    let settings = Settings {
        workers: NonZeroUsize::new(plan.workers).expect("at least one"),
        outbound,
        inbound: InboundListeners::default(),
        bounds: plan.bounds,
    };
    Sidecar::start_on(
        plan.threads,
        credentials,
        snapshot(endpoints, plan),
        settings,
    )
}

/// What the callers' sidecar knows.
pub fn snapshot(endpoints: &[SocketAddr], plan: &Plan) -> Snapshot {
    let destination = destination("echo.shop:80", endpoints, plan);
    Snapshot {
        destinations: HashMap::from([(key(), Arc::new(destination))]),
        ..Snapshot::default()
    }
}

/// The same, its endpoints as what has no sidecar.
pub fn in_plaintext(mut snapshot: Snapshot) -> Snapshot {
    for destination in snapshot.destinations.values_mut() {
        for cluster in Arc::make_mut(destination).clusters.values_mut() {
            for endpoint in &mut Arc::make_mut(cluster).endpoints {
                Arc::make_mut(endpoint).transport = Transport::Plain;
            }
        }
    }
    snapshot
}

/// A destination of one cluster, both of this name.
pub fn destination(name: &str, endpoints: &[SocketAddr], plan: &Plan) -> Destination {
    let accepted: Vec<SpiffeId> = plan
        .accepted
        .iter()
        .map(|id| id.parse().expect("a SPIFFE id"))
        .collect();
    let accepted: Arc<[SpiffeId]> = accepted.into();
    let endpoints = endpoints.iter().map(|address| {
        Arc::new(Endpoint {
            address: *address,
            transport: Transport::Mtls(Arc::clone(&accepted)),
            weight: NonZeroU32::MIN,
            health: Health::Healthy,
        })
    });
    let name = ClusterName(name.into());
    let cluster = Cluster {
        name: name.clone(),
        endpoints: endpoints.collect(),
        balancing: plan.balancing,
        outlier: plan.outlier,
        limits: plan.limits,
        connect_timeout: Duration::from_secs(2),
        protocol: ClusterProtocol::AsClient,
    };
    let clusters = WeightedClusters::single(name.clone());
    let target = match plan.protocol {
        Protocol::Tcp => Target::Tcp(clusters),
        Protocol::Http1 | Protocol::Http2 | Protocol::Detect => {
            Target::Http(Arc::new(routes(clusters, plan)))
        }
    };
    Destination {
        name: Arc::clone(&name.0),
        protocol: plan.protocol,
        target,
        clusters: HashMap::from([(name, Arc::new(cluster))]),
    }
}

fn routes(clusters: WeightedClusters, plan: &Plan) -> RouteTable {
    let route = Route {
        name: plan.route.into(),
        matches: RouteMatch {
            path: PathMatch::Any,
            headers: vec![],
        },
        clusters,
        timeout: plan.timeout,
        retry: plan.retry.clone(),
    };
    let host = VirtualHost {
        domains: vec!["*".into()],
        routes: vec![Arc::new(route)],
    };
    RouteTable::new("echo.shop:80", vec![host])
}

/// What the callers dial.
pub fn key() -> DestinationKey {
    DestinationKey::Host("echo.shop".into(), 80)
}

/// A free port on loopback.
pub fn any() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
