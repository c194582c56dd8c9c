//! Builds the control plane, runs it and stops it. The only file that knows every module.

mod rotation;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use heddle_proto::v1::{
    self, certificate_authority_server::CertificateAuthorityServer, config_server::ConfigServer,
    registry_server::RegistryServer, status_server::StatusServer, traffic_server::TrafficServer,
};
use heddle_shell::{
    clock,
    publish::Published,
    task::Tasks,
    tls::{self, Accept, Clients, Identity, Trust},
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::Router};
use tracing::{error, info};

use crate::{
    audit::{Audit, Refusals},
    authn::{Gate, GateLayer, Refusal, STREAMS_PER_IDENTITY_MAX, WARNING_INTERVAL, WARNINGS_BURST},
    ca::{
        Administrator, Administrators, AdministratorsError, Authority, Bundle, BundleError,
        CertificateService, Ledger, LedgerError, MaterialError, Own, OwnError, Pace, Parts,
    },
    config::Config,
    config_api::{ConfigService, Desired, Validate},
    discovery::{Discovery, Fleet, sidecars::Sidecars},
    files::{self, FileError},
    follow::Follower,
    health::{self, Health},
    model::Unreadable,
    registry::Registry,
    shares::Shares,
    status::StatusService,
    store::{
        Store, StoreError,
        measured::Measured,
        redb::{RedbStore, Retention},
    },
    streams::Streams,
    telemetry::Metrics,
    tls_listener::{Established, TlsListener},
    token::{TokenKeyError, Tokens},
    traffic_api::{Activation, TrafficService},
};
use rotation::Rotation;

/// Established connections that wait for the server to take them.
const ESTABLISHED_QUEUE: usize = 64;

/// Refusals that wait to be audited; what finds no room is only logged.
const REFUSALS_QUEUE: usize = 64;

/// HTTP/2 limits. A sidecar has half a dozen streams.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Connections are retired this often in the life of a certificate; their streams go on.
const CONNECTIONS_PER_LEAF: u32 = 4;
const HEADER_BYTES_MAX: u32 = 32 * 1024;
/// A peer that answers no ping within the timeout is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// For the last writes of streams, at a stop.
const STREAMS_PATIENCE: Duration = Duration::from_secs(2);

/// Largest requests: documents, a sidecar's first report, and everything else.
const CONFIG_BYTES_MAX: usize = 16 << 20;
const REPORT_BYTES_MAX: usize = 8 << 20;
const REQUEST_BYTES_MAX: usize = 256 << 10;

/// A running control plane. Dropping it stops it at once; [`ControlPlane::stop`] does so
/// gracefully.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where gRPC is served, with the port that was given.
    pub grpc: SocketAddr,
    /// Where health and metrics are served.
    pub http: SocketAddr,
    stopping: watch::Sender<bool>,
    drain: Duration,
    servers: Tasks,
    streams: Streams,
    background: Tasks,
    store: Arc<RedbStore>,
    _lock: files::Lock,
}

/// Why a control plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store.
    #[error("opening the store")]
    Store(#[from] StoreError),
    /// What is stored.
    #[error("reading what is stored")]
    Unreadable(#[from] Unreadable),
    /// Root or intermediate.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The token key.
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    /// The trust bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// What was issued.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The list of the administrator's certificates.
    #[error(transparent)]
    Administrators(#[from] AdministratorsError),
    /// Its own certificates.
    #[error(transparent)]
    Own(#[from] OwnError),
    /// TLS does not take its own certificates.
    #[error("configuring TLS")]
    Tls(#[from] rustls::Error),
    /// A port.
    #[error("listening on {address} ({setting}); is it in use?")]
    Listen {
        /// Which setting.
        setting: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Reflection does not take its own descriptors.
    #[error("building reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// What the servers are made of.
struct Core {
    metrics: Arc<Metrics>,
    authority: Arc<Authority>,
    bundle: Arc<Bundle>,
    ledger: Ledger,
    tokens: Arc<Tokens>,
    administrators: Arc<Administrators>,
    administrator: Arc<Administrator>,
    refusals: Arc<Refusals>,
    store: Arc<dyn Store>,
    discovery: Arc<Discovery>,
}

impl ControlPlane {
    /// Starts everything; when this returns, the ports are served.
    ///
    /// # Errors
    /// [`StartError`], with what to do about it.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let wall = clock::wall();
        let lock = files::lock(&config.data_directory)?;
        let store = Arc::new(RedbStore::open(
            &config.data_directory.join("heddle.redb"),
            Retention::default(),
        )?);
        let core = match Core::open(&config, Arc::clone(&store)).await {
            Ok(core) => core,
            Err(error) => {
                // So that it can be opened by the next who tries.
                if let Ok(store) = Arc::try_unwrap(store) {
                    store.close().await;
                }
                return Err(error);
            }
        };
        let own = Own::new(
            Arc::clone(&core.authority),
            &config.trust_domain,
            &config.names,
        )?;
        let identity = own.issue(wall)?;
        core.administrator.renew(wall).await?;
        let tls_config = Published::new(Arc::unwrap_or_clone(server_config(
            &identity,
            &core.bundle,
        )?));

        // Before a port is open: nothing is served from half a store.
        let follower = Follower::open(
            Arc::clone(&core.store),
            Arc::clone(&core.discovery),
            config.mesh.clone(),
            Arc::clone(&core.metrics),
        )
        .await?;
        let grpc = listen("listen.grpc", config.grpc).await?;
        let http = listen("listen.http", config.http).await?;
        let (stopping, _) = watch::channel(false);
        let mut control_plane = Self {
            grpc: address(&grpc, config.grpc),
            http: address(&http, config.http),
            drain: config.drain,
            servers: Tasks::new(),
            streams: Streams::default(),
            background: Tasks::new(),
            store,
            _lock: lock,
            stopping,
        };
        control_plane.serve_grpc(&core, &config, grpc, Arc::clone(&tls_config))?;
        control_plane.serve_http(&core, http);
        let rotation = Rotation {
            authority: core.authority,
            own,
            identity: Arc::new(identity),
            administrator: core.administrator,
            bundle: core.bundle,
            ledger: core.ledger,
            tls_config,
            metrics: core.metrics,
        };
        control_plane.background.spawn("rotation", rotation.run());
        control_plane.background.spawn("follow", follower.run());
        info!(grpc = %control_plane.grpc, http = %control_plane.http, "serving");
        Ok(control_plane)
    }

    /// Resolves when something has ended that should run until the stop: a bug, after which this
    /// process does not do what it should. It says what.
    pub async fn failed(&mut self) -> &'static str {
        tokio::select! {
            biased; // Any of them is the end.
            () = self.background.reap() => "a background task has ended",
            () = self.servers.reap() => "the gRPC server has ended",
            () = self.store.ended() => "the store's writer has ended",
        }
    }

    /// Tells every connection to go (GOAWAY), waits for streams at most as long as the settings
    /// say, and closes the store.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        self.servers.finish(self.drain).await;
        // They end with their sessions; what is left is what they write last.
        self.streams.finish(STREAMS_PATIENCE).await;
        self.background.finish(Duration::ZERO).await;
        match Arc::try_unwrap(self.store) {
            Ok(store) => store.close().await,
            Err(_shared) => error!("the store is still in use at the end; this is a bug"),
        }
        info!("stopped");
    }

    fn serve_grpc(
        &mut self,
        core: &Core,
        config: &Config,
        listener: TcpListener,
        tls_config: Arc<Published<ServerConfig>>,
    ) -> Result<(), StartError> {
        let gate = Gate {
            tokens: Arc::clone(&core.tokens),
            bundle: Arc::clone(core.bundle.published()),
            administrators: Arc::clone(core.administrators.accepted()),
            refusals: self.audit_refusals(core),
            metrics: Arc::clone(&core.metrics),
            stopping: self.stopping.subscribe(),
            streams: Shares::new(STREAMS_PER_IDENTITY_MAX),
            warnings: Mutex::new(Pace::new(WARNING_INTERVAL, WARNINGS_BURST)),
        };
        let (health_reporter, health_service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let router = Server::builder()
            .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            // A stream that ends with its proof is opened again on the same connection, by gRPC
            // and Envoy both: one made in time has the certificate of that time.
            .max_connection_age(config.authority.leaf_lifetime / CONNECTIONS_PER_LEAF)
            .layer(GateLayer(Arc::new(gate)))
            .add_service(health_service)
            .add_service(reflection)
            .add_service(
                CertificateAuthorityServer::new(core.certificates(config))
                    .max_decoding_message_size(REQUEST_BYTES_MAX),
            )
            .add_service(core.discovery.service(
                Sidecars::new(Arc::clone(&core.store), config.registration_grace),
                self.streams.clone(),
            ));
        let router = self.with_api(router, core, config);

        let (established, connections) =
            mpsc::channel::<io::Result<Established>>(ESTABLISHED_QUEUE);
        let listener = TlsListener {
            listener,
            config: tls_config,
            ledger: core.ledger.clone(),
            metrics: Arc::clone(&core.metrics),
        };
        self.background.spawn("accept", listener.run(established));
        let mut told = self.stopping.subscribe();
        let stopping = async move {
            // An error is the sender's end, which is the same.
            drop(told.wait_for(|is_stopping| *is_stopping).await);
            health_reporter
                .set_service_status("", tonic_health::ServingStatus::NotServing)
                .await;
        };
        self.servers.spawn("grpc", async move {
            let connections = ReceiverStream::new(connections);
            // Boxed: some 6 KiB, once per process.
            let served = Box::pin(router.serve_with_incoming_shutdown(connections, stopping)).await;
            if let Err(error) = served {
                error!(%error, "the gRPC server ended");
            }
        });
        Ok(())
    }

    /// Where the gate leaves its refusals: it waits for nothing.
    fn audit_refusals(&mut self, core: &Core) -> mpsc::Sender<Refusal> {
        let (sender, mut queue) = mpsc::channel::<Refusal>(REFUSALS_QUEUE);
        let refusals = Arc::clone(&core.refusals);
        self.background.spawn("refusals", async move {
            while let Some(refusal) = queue.recv().await {
                let recorded = refusals.record(&refusal.who, &refusal.method, &refusal.why);
                recorded.await;
            }
        });
        sender
    }

    /// Desired state, registrations and reports.
    fn with_api<L>(&self, router: Router<L>, core: &Core, config: &Config) -> Router<L> {
        let (discovery, mesh) = (Arc::clone(&core.discovery), Arc::new(config.mesh.clone()));
        let validate: Validate = Arc::new(move |candidate| discovery.validate(&mesh, candidate));
        let desired = Arc::new(Desired::new(Arc::clone(&core.store), validate));
        let registry = Registry::new(
            Arc::clone(&core.store),
            Arc::clone(&core.discovery),
            Arc::clone(&core.metrics),
            Arc::clone(&core.refusals),
            config.registration_grace,
            self.streams.clone(),
        );
        registry.await_return();
        let activation: Arc<dyn Activation> = Arc::new(Fleet {
            discovery: Arc::clone(&core.discovery),
            holds: registry.holds(),
        });
        let status = StatusService::new(
            Arc::clone(&core.discovery),
            Arc::clone(&core.metrics),
            self.streams.clone(),
        );
        router
            .add_service(
                ConfigServer::new(ConfigService::new(Arc::clone(&desired)))
                    .max_decoding_message_size(CONFIG_BYTES_MAX),
            )
            .add_service(
                TrafficServer::new(TrafficService::new(desired, activation))
                    .max_decoding_message_size(REQUEST_BYTES_MAX),
            )
            .add_service(RegistryServer::new(registry).max_decoding_message_size(REQUEST_BYTES_MAX))
            .add_service(StatusServer::new(status).max_decoding_message_size(REPORT_BYTES_MAX))
    }

    fn serve_http(&mut self, core: &Core, listener: TcpListener) {
        let router = health::router(Health {
            stopping: self.stopping.subscribe(),
            authority: Arc::clone(&core.authority),
            store: Arc::clone(&core.store),
            metrics: Arc::clone(&core.metrics),
        });
        // Not among the servers: health answers "stopping" until the end.
        self.background
            .spawn("http", health::serve(listener, router));
    }
}

impl Core {
    async fn open(config: &Config, store: Arc<RedbStore>) -> Result<Self, StartError> {
        let wall = clock::wall();
        let metrics = Metrics::new();
        let store: Arc<dyn Store> = Arc::new(Measured::new(store, Arc::clone(&metrics)));
        let authority = Authority::open(
            &config.authority,
            &config.data_directory,
            rand::make_rng::<StdRng>(),
            wall,
        )?;
        let authority = Arc::new(authority);
        let administrators = Arc::new(Administrators::open(Arc::clone(&store)).await?);
        let bundle = Bundle::open(
            Arc::clone(&store),
            config.trust_domain.clone(),
            authority.root(),
            wall,
        )
        .await?;
        // Only now: the copy must not be of a root that the mesh does not trust.
        authority.write_root()?;
        let ledger = Ledger::new(Arc::clone(&store));
        ledger.load().await?;
        Ok(Self {
            discovery: Discovery::new(Arc::clone(&metrics)),
            metrics,
            administrator: Arc::new(Administrator::new(
                Arc::clone(&authority),
                &config.trust_domain,
                &config.data_directory,
                Arc::clone(&administrators),
            )),
            administrators,
            refusals: Arc::new(Refusals::new(Arc::clone(&store))),
            authority,
            bundle: Arc::new(bundle),
            ledger,
            tokens: Arc::new(Tokens::open(
                &config.tokens,
                &config.trust_domain,
                &config.data_directory,
            )?),
            store,
        })
    }

    fn certificates(&self, config: &Config) -> CertificateService {
        CertificateService::new(Parts {
            authority: Arc::clone(&self.authority),
            ledger: self.ledger.clone(),
            bundle: Arc::clone(&self.bundle),
            tokens: Arc::clone(&self.tokens),
            administrator: Arc::clone(&self.administrator),
            audit: Audit::new(Arc::clone(&self.store)),
            pace: Mutex::new(Pace::new(
                config.authority.issue_interval,
                config.authority.issue_burst,
            )),
            rng: Mutex::new(rand::make_rng()),
            metrics: Arc::clone(&self.metrics),
        })
    }
}

/// TLS with this identity and the current trust: any certificate of the mesh, or none.
fn server_config(identity: &Identity, bundle: &Bundle) -> Result<Arc<ServerConfig>, rustls::Error> {
    // Denied identities are refused here as well as at the gate, which tells them why.
    let trust = Trust::Bundle(bundle.published().load());
    tls::server(identity, trust, Accept::Mesh, Clients::Anyone, &[b"h2"])
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Listen {
            setting,
            address,
            source,
        })
}

fn address(listener: &TcpListener, asked: SocketAddr) -> SocketAddr {
    listener.local_addr().unwrap_or(asked)
}

#[cfg(test)]
mod tests;
