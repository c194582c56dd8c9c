//! The process: the only file that knows every module. Builds, starts, drains, stops.
//!
//! Everything but traffic runs on the control runtime, one thread; traffic has threads of its own
//! (`worker`), so nothing here can delay it.
//!
//! ```text
//! state ──► credentials ──► workers ──► registration
//!             ▲   ▲            ▲
//!        issuer   bundle    xDS client ──► reports, state
//! ```

use std::{
    io, panic,
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::Context;
use heddle_proto::xds::envoy::config::core::v3::Node;
use heddle_relay::view::View;
use heddle_shell::{clock, log::Level, publish::Published, task::Tasks};
use rand::{
    RngExt, SeedableRng,
    rngs::{StdRng, SysRng},
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{info, warn};

use crate::{
    admin::{self, Admin, Interface},
    capacity,
    config::{AccessLog, Config, Mode},
    demand::{Asks, Demand},
    dns::{Dns, Search, Sockets},
    drain::{self, Awaited, Drain},
    health::Health,
    identity::{self, Issuer, Keyring},
    intercept,
    register::{Registration, Stage},
    report::Reporter,
    settings::{InboundListeners, OutboundListeners, Settings},
    state::{Binding, KeyStorage, StateDirectory, keeper, key_storage},
    telemetry::{Telemetry, access_log, trace},
    uplink::Uplink,
    worker::{DataPlane, Inputs},
    xds::{self, Client, Outputs},
};

/// For the last write of the state.
const LAST_WRITE: Duration = Duration::from_secs(5);

/// Runs until told to stop, and then until everything has ended.
///
/// # Errors
/// When it cannot start, or when the data plane ends by itself.
pub async fn run(config: Config, level: Level) -> anyhow::Result<()> {
    let mut rng = StdRng::try_from_rng(&mut SysRng).context("reading randomness")?;
    let mut tasks = Tasks::new();
    let parts = Parts::new(&config, &mut tasks)?;
    parts.count_panics();
    let drain = Drain::default();
    let health = Health {
        held: Arc::clone(parts.keyring.held()),
        views: Arc::clone(&parts.outputs.views),
        client: Arc::clone(&parts.outputs.state),
        draining: drain.watch(),
    };
    let asked_to_stop = parts
        .serve_admin(&config, health, level, &mut tasks)
        .await?;

    let mut client = Client::new(parts.node.clone(), parts.outputs.clone());
    let directory = parts.restore(&config, &mut client);
    let (demand, asks) = Demand::channel();
    let inputs = Inputs {
        settings: Arc::new(data_plane_settings(&config)),
        views: Arc::clone(&parts.outputs.views),
        credentials: Arc::clone(parts.keyring.credentials()),
        demand,
        telemetry: Arc::clone(&parts.telemetry),
        draining: drain.watch(),
    };
    let mut plane = DataPlane::start(&inputs, rng.random()).context("starting the data plane")?;
    drop(inputs);
    info!(bound = ?plane.bound, workers = config.workers, "data plane started");

    parts.spawn_clients(client, asks, &mut tasks, &mut rng);
    parts.spawn_dns(&config, &mut tasks).await?;
    let (stop_keeping, keep) = watch::channel(false);
    let mut keeping = Tasks::new();
    if let Some(directory) = directory {
        let sources = keeper::Sources {
            resources: Arc::clone(&parts.outputs.resources),
            held: Arc::clone(parts.keyring.held()),
            meshed: Arc::clone(&parts.outputs.views.load().meshed),
        };
        keeping.spawn("state", keeper::run(directory, sources, keep));
    }
    let (stage, staged) = watch::channel(Stage::Ready);
    let (withdrawn, mut is_withdrawn) = watch::channel(false);
    let registration = Registration::new(
        &config.workload,
        &registered_ports(&config, &plane),
        Arc::clone(&parts.uplink),
        staged,
        withdrawn,
    );
    let views = Arc::clone(&parts.outputs.views);
    let register = register_when_ready(views, registration, StdRng::from_rng(&mut rng));
    tasks.spawn("register", register);

    let stopped = told_to_stop(asked_to_stop, &mut tasks, &mut plane).await;
    stage.send_replace(Stage::Draining);
    let awaited = Awaited {
        withdrawn: async { _ = is_withdrawn.wait_for(|is_withdrawn| *is_withdrawn).await },
        application_gone: drain::application_gone(&parts.telemetry.metrics),
        ended: plane.ended(),
        told_again: signalled()?,
    };
    drain.stop(config.drain_limit, awaited).await;
    stop_keeping.send_replace(true);
    keeping.finish(LAST_WRITE).await;
    info!("stopped");
    stopped
}

/// What several modules share.
struct Parts {
    keyring: Arc<Keyring>,
    uplink: Arc<Uplink>,
    issuer: Arc<Issuer>,
    outputs: Outputs,
    telemetry: Arc<Telemetry>,
    node: Node,
}

impl Parts {
    fn new(config: &Config, tasks: &mut Tasks) -> anyhow::Result<Self> {
        let keyring = Arc::new(Keyring::new(config.control_plane.trust_domain.clone()));
        let held = Arc::clone(keyring.held());
        let uplink = Arc::new(Uplink::new(config.control_plane.clone(), held));
        let issuer = Arc::new(Issuer {
            uplink: Arc::clone(&uplink),
            keyring: Arc::clone(&keyring),
            token_file: config.control_plane.token_file.clone(),
            id: config.workload.id.clone(),
        });
        let lines = match config.access_log {
            AccessLog::Off => None,
            AccessLog::Json => Some(access_log::start().context("starting the access log")?),
        };
        let spans = config.otlp_endpoint.as_ref().map(|endpoint| {
            let (spans, queue) = mpsc::channel(trace::SPANS_MAX);
            let id = &config.workload.id;
            let service = format!("{}.{}", id.service_account(), id.namespace());
            let instance = config.workload.name.clone();
            let export = trace::export(endpoint.to_string(), service, instance, queue);
            tasks.spawn("spans", export);
            spans
        });
        Ok(Self {
            keyring,
            uplink,
            issuer,
            outputs: Outputs::new(),
            telemetry: Arc::new(Telemetry::new(lines, spans)),
            node: xds::node(&config.workload),
        })
    }

    /// Takes over what an earlier process left, and says in words what a start without control
    /// plane would lack.
    fn restore(&self, config: &Config, client: &mut Client) -> Option<StateDirectory> {
        let path = &config.state_directory;
        let id = &config.workload.id;
        let binding = Binding::new(id.as_str(), &config.control_plane.anchor);
        let opened = StateDirectory::open(path, binding, || key_storage(path))
            .and_then(|mut directory| Ok((directory.load(clock::now())?, directory)));
        let (saved, directory) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                warn!(%error, path = %path.display(), "the state directory is not usable: a start without control plane will not serve");
                return None;
            }
        };
        if directory.keys() == KeyStorage::Never {
            warn!(path = %path.display(), "the state directory is not on tmpfs: the private key is not kept, and a start without control plane will refuse meshed traffic");
        }
        let Some(saved) = saved else {
            return Some(directory);
        };
        self.outputs.views.load().meshed.restore(saved.meshed());
        if let Some(bundle) = saved.trust_bundle
            && let Err(error) = self.keyring.set_bundle(bundle)
        {
            warn!(%error, "the stored trust bundle is not usable");
        }
        match saved
            .identity
            .and_then(|saved| identity::restored(saved, id))
        {
            Some(identity) => self.keyring.set_identity(identity),
            None => info!(
                "no usable certificate is stored: nothing meshed is served until the control plane issues one"
            ),
        }
        client.restore(saved.resources);
        Some(directory)
    }

    async fn serve_admin(
        &self,
        config: &Config,
        health: Health,
        level: Level,
        tasks: &mut Tasks,
    ) -> anyhow::Result<watch::Receiver<bool>> {
        let (drain, asked) = watch::channel(false);
        let admin = Arc::new(Admin {
            health,
            telemetry: Arc::clone(&self.telemetry),
            level,
            filter: Published::new(config.log.clone()),
            drain,
        });
        let (health, admin_page) = (config.health_listen, config.admin_listen);
        for (name, setting, address, interface) in [
            ("health", "telemetry.listen", health, Interface::Platform),
            ("admin", "admin.listen", admin_page, Interface::Admin),
        ] {
            let listener = intercept::listen(address)
                .and_then(TcpListener::from_std)
                .with_context(|| format!("binding the {name} listener to {address} ({setting}); is it another sidecar's?"))?;
            tasks.spawn(name, admin::serve(Arc::clone(&admin), listener, interface));
        }
        Ok(asked)
    }

    /// A panic ends its own task; it must still be seen.
    fn count_panics(&self) {
        let telemetry = Arc::clone(&self.telemetry);
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            telemetry.metrics.panics.fetch_add(1, Relaxed);
            report(info);
        }));
    }

    async fn spawn_dns(&self, config: &Config, tasks: &mut Tasks) -> anyhow::Result<()> {
        let Some(settings) = &config.dns else {
            return Ok(());
        };
        let dns = Arc::new(Dns::new(
            settings,
            Search::of_namespace(config.workload.id.namespace()),
            Arc::clone(&self.outputs.views),
            Arc::clone(&self.telemetry),
        ));
        for address in &settings.listen {
            match Sockets::bind(*address).await {
                Ok(sockets) => tasks.spawn("dns", Arc::clone(&dns).serve(sockets)),
                Err(error) if address.is_ipv6() && intercept::is_without_ipv6(&error) => {
                    warn!(%address, %error, "DNS is not served here: there is no such IPv6 address");
                }
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("binding DNS to {address} (dns.listen)"));
                }
            }
        }
        Ok(())
    }

    fn spawn_clients(&self, client: Client, asks: Asks, tasks: &mut Tasks, rng: &mut StdRng) {
        let mut seed = || StdRng::from_rng(rng);
        let issuer = &self.issuer;
        tasks.spawn("issue", identity::renew(Arc::clone(issuer), seed()));
        tasks.spawn(
            "trust-bundle",
            identity::watch_bundle(Arc::clone(issuer), seed()),
        );
        tasks.spawn(
            "xds",
            Box::pin(client.run(Arc::clone(&self.uplink), asks, seed())),
        );
        let reporter = Reporter {
            node_id: self.node.id.clone(),
            active: Arc::clone(&self.outputs.active),
            held: Arc::clone(self.keyring.held()),
            uplink: Arc::clone(&self.uplink),
        };
        tasks.spawn("report", reporter.run(seed()));
    }
}

/// Registers once this sidecar could serve: before, it would only refuse.
async fn register_when_ready(views: Arc<Published<View>>, registration: Registration, rng: StdRng) {
    let mut changed = views.subscribe();
    while views.load().inbound.is_none() {
        if changed.changed().await.is_err() {
            return;
        }
    }
    registration.run(rng).await;
}

/// Returns when a signal or the admin interface says stop.
async fn told_to_stop(
    mut asked: watch::Receiver<bool>,
    tasks: &mut Tasks,
    plane: &mut DataPlane,
) -> anyhow::Result<()> {
    let mut signalled = pin!(signalled()?);
    loop {
        tokio::select! {
            biased; // A stop goes before everything.
            () = signalled.as_mut() => return Ok(()),
            Ok(_) = asked.wait_for(|asked| *asked) => return Ok(()),
            () = plane.failed() => anyhow::bail!("a worker of the data plane has broken down"),
            () = tasks.reap() => {}
        }
    }
}

/// Returns at the next signal that says stop.
fn signalled() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Application's port -> port where it is taken, as bound.
fn registered_ports(config: &Config, plane: &DataPlane) -> Vec<(u16, u16)> {
    match &config.mode {
        Mode::Intercept { .. } => Vec::new(),
        Mode::Ports { inbound, .. } => inbound
            .iter()
            .zip(&plane.bound.inbound_ports)
            .map(|(port, bound)| (port.port, bound.port()))
            .collect(),
    }
}

fn data_plane_settings(config: &Config) -> Settings {
    let mut settings = Settings {
        workers: config.workers,
        outbound: OutboundListeners::default(),
        inbound: InboundListeners::default(),
        bounds: config.bounds(),
    };
    let wanted = settings.bounds.connections_max;
    settings.bounds.connections_max = capacity::connections_max(wanted);
    match &config.mode {
        Mode::Intercept { outbound, inbound } => {
            settings.outbound.intercepted = Some(*outbound);
            settings.inbound.intercepted = Some(*inbound);
        }
        Mode::Ports {
            http,
            inbound,
            outbound,
        } => {
            settings.outbound.http = Some(*http);
            settings.outbound.fixed.clone_from(outbound);
            settings.inbound.ports.clone_from(inbound);
        }
    }
    settings
}
