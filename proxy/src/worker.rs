//! The threads that carry traffic, and the handle on them. Each worker is one thread with one
//! runtime; nothing but traffic runs there. A test may run it on its own thread instead.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::AtomicUsize},
    thread,
    time::Duration,
};

use heddle_policy::{balance::Turn, retry::Tried, snapshot::ClusterName, spiffe::Peer};
use heddle_relay::{
    budget::Budget,
    cluster::LiveCluster,
    error::{ProxyError, RESET},
    view::View,
};
use heddle_shell::{
    clock,
    publish::{Published, Reader},
    task::Tasks,
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpStream,
    runtime,
    sync::{mpsc, watch},
    task::{LocalSet, spawn_local},
    time::{MissedTickBehavior, interval},
};
use tracing::error;

use crate::{
    demand::Demand,
    dial::Dialler,
    drain::{Draining, Phase},
    driver::{self, Driver},
    exchange::Exchange,
    inbound,
    intercept::{self, LoopGuard},
    listener::{Accepted, Door, Listeners, Origin},
    outbound,
    relay::{Passed, relay},
    session::{Scratch, Session},
    settings::Settings,
    telemetry::Telemetry,
    tls::{Configs, Credentials},
};

/// Everything the data plane is given.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Fixed at start.
    pub settings: Arc<Settings>,
    /// What the request path loads.
    pub views: Arc<Published<View>>,
    /// Who we are and whom we trust.
    pub credentials: Arc<Published<Option<Credentials>>>,
    /// Asks for unknown destinations.
    pub demand: Demand,
    /// Takes the records.
    pub telemetry: Arc<Telemetry>,
    /// Watched by every connection.
    pub draining: Draining,
}

/// Where the listeners ended up, in the order of the settings (ports of `:0` are known now).
#[derive(Clone, Debug, Default)]
pub struct Bound {
    /// `outbound.intercepted`.
    pub outbound_intercepted: Option<SocketAddr>,
    /// `outbound.http`.
    pub outbound_http: Option<SocketAddr>,
    /// `outbound.fixed`.
    pub outbound_fixed: Vec<SocketAddr>,
    /// `inbound.intercepted`.
    pub inbound_intercepted: Option<SocketAddr>,
    /// `inbound.ports`.
    pub inbound_ports: Vec<SocketAddr>,
}

/// The running data plane. It ends by its drain signal, not by dropping this.
#[derive(Debug)]
pub struct DataPlane {
    /// Where it listens.
    pub bound: Bound,
    /// Closed when every worker and the acceptor have ended; told of a worker that broke down.
    running: watch::Receiver<Health>,
}

/// One worker: what its connections share. Nothing in here is shared with other threads but
/// through atomics and published values.
#[derive(Debug)]
pub struct Worker {
    pub(crate) settings: Arc<Settings>,
    pub(crate) views: Arc<Published<View>>,
    pub(crate) demand: Demand,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) draining: Draining,
    pub(crate) configs: Rc<RefCell<Configs>>,
    pub(crate) dialler: Rc<Dialler>,
    pub(crate) driver: Rc<Driver>,
    pub(crate) rng: RefCell<SmallRng>,
    pub(crate) scratch: Scratch,
    pub(crate) guard: LoopGuard,
    view: RefCell<Reader<View>>,
    turns: RefCell<HashMap<ClusterName, Turn>>,
}

impl DataPlane {
    /// Binds and starts the threads. `seed` feeds each worker's generator.
    ///
    /// # Errors
    /// When an address cannot be bound or a thread cannot be started.
    pub fn start(inputs: &Inputs, seed: u64) -> io::Result<Self> {
        let (plane, works, accepting) = Self::bind(inputs, inputs.settings.workers.get(), seed)?;
        for (index, work) in works.into_iter().enumerate() {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    let _running = work.running.clone();
                    LocalSet::new().block_on(&runtime, work.run());
                })?;
        }
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || runtime.block_on(accepting.run()))?;
        Ok(plane)
    }

    /// As [`DataPlane::start`], with one worker in tasks of the current `LocalSet` instead of
    /// threads: whoever holds the clock of that runtime holds the worker's.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn start_here(inputs: &Inputs, seed: u64) -> io::Result<Self> {
        let (plane, works, accepting) = Self::bind(inputs, 1, seed)?;
        for work in works {
            spawn_local(work.run());
        }
        spawn_local(accepting.run());
        Ok(plane)
    }

    fn bind(
        inputs: &Inputs,
        workers: usize,
        seed: u64,
    ) -> io::Result<(Self, Vec<Work>, Accepting)> {
        let listeners = Listeners::bind(&inputs.settings)?;
        let bound = listeners.bound.clone();
        let guard = LoopGuard::new(
            [bound.outbound_intercepted, bound.inbound_intercepted]
                .into_iter()
                .flatten(),
        );
        let budget = Budget::new(inputs.settings.bounds.kept_bytes_max);
        let (ended, running) = watch::channel(Health::Whole);
        let (doors, works) = (0..workers)
            .map(|index| {
                let (queue, accepted) = mpsc::channel(QUEUE_MAX);
                let door = Door {
                    queue,
                    connections: Arc::new(AtomicUsize::new(0)),
                };
                let work = Work {
                    inputs: inputs.clone(),
                    guard: guard.clone(),
                    budget: Arc::clone(&budget),
                    accepted,
                    seed: seed.wrapping_add(index as u64),
                    running: ended.clone(),
                };
                (door, work)
            })
            .unzip();
        let accepting = Accepting {
            listeners,
            doors,
            connections_max: inputs.settings.bounds.connections_max,
            draining: inputs.draining.clone(),
            _running: ended,
        };
        Ok((Self { bound, running }, works, accepting))
    }

    /// Returns when everything of it has ended.
    pub async fn ended(&mut self) {
        while self.running.changed().await.is_ok() {}
    }

    /// Returns when one of its workers has broken down, or everything has ended: the others serve
    /// on, but the process had better begin anew.
    pub async fn failed(&mut self) {
        _ = self
            .running
            .wait_for(|health| *health == Health::Broken)
            .await;
    }
}

/// Of all workers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Whole,
    /// One has ended before its time.
    Broken,
}

/// What a worker begins with.
struct Work {
    inputs: Inputs,
    guard: LoopGuard,
    budget: Arc<Budget>,
    accepted: mpsc::Receiver<Accepted>,
    seed: u64,
    running: watch::Sender<Health>,
}

impl Work {
    /// One worker's life: serves what comes until nothing comes any more, then waits for the
    /// rest.
    async fn run(mut self) {
        let worker = Rc::new(Worker::new(self.inputs, self.guard, self.budget, self.seed));
        let driver = &worker.driver;
        let (mut flusher, mut driving) = (Tasks::new(), Tasks::new());
        flusher.spawn_local("flusher", Rc::clone(driver).flush());
        driving.spawn_local("watch", Rc::clone(driver).watch());
        let draining = worker.draining.clone();
        driving.spawn_local("drain", Rc::clone(driver).drain(draining));
        let mut tasks = Tasks::new();
        let mut maintenance = interval(MAINTENANCE);
        maintenance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // What was accepted first: it waits for us.
            tokio::select! {
                biased;
                next = self.accepted.recv() => match next {
                    Some(next) => {
                        let worker = Rc::clone(&worker);
                        tasks.spawn_local("connection", Box::pin(connection(worker, next)));
                    }
                    None => break,
                },
                () = tasks.reap(), if !tasks.is_empty() => {}
                // Nothing is written any more: it has panicked, which has been told.
                () = flusher.reap() => return broke(&self.running),
                _ = maintenance.tick() => worker.configs.borrow_mut().notice_end(),
            }
        }
        let mut draining = worker.draining.clone();
        tokio::select! {
            biased;
            () = all_ended(&mut tasks) => {}
            () = flusher.reap() => return broke(&self.running),
            () = draining.reached(Phase::Cut) => tasks.finish(CUT).await,
        }
        driver.stop();
    }
}

fn broke(running: &watch::Sender<Health>) {
    running.send_replace(Health::Broken);
}

/// What accepts for the workers.
struct Accepting {
    listeners: Listeners,
    doors: Vec<Door>,
    connections_max: usize,
    draining: Draining,
    _running: watch::Sender<Health>,
}

impl Accepting {
    async fn run(self) {
        let accepted = self
            .listeners
            .accept(self.doors, self.connections_max, self.draining);
        accepted.await;
    }
}

async fn all_ended(tasks: &mut Tasks) {
    while !tasks.is_empty() {
        tasks.reap().await;
    }
}

async fn connection(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted {
        stream,
        client,
        origin,
        permit: _permit,
        load: _load,
    } = accepted;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            error!(%error, "an accepted connection could not be taken over");
            return;
        }
    };
    match origin {
        Origin::Outbound(origin) => {
            Box::pin(outbound::accept(&worker, stream, client, &origin)).await;
        }
        Origin::Inbound(origin) => {
            Box::pin(inbound::accept(&worker, stream, client, &origin)).await;
        }
    }
}

impl Worker {
    /// Relays bytes until both sides have ended. The first error, the end of a drain or the denial
    /// of the peer resets both, so that neither takes half of a conversation for all of it.
    pub async fn relay(
        &self,
        a: impl Into<Session>,
        b: impl Into<Session>,
        exchange: &mut Exchange,
    ) {
        let (mut a, mut b) = (a.into(), b.into());
        let passed = Passed::default();
        let mut draining = self.draining.clone();
        let revoked = self.configs.borrow().revoked(&exchange.record.peer);
        let cut = tokio::select! {
            biased;
            // Before a byte of whom it refuses has passed.
            () = revoked => Some(ProxyError::Denied.disposition().reason),
            relayed = relay(&mut a, &mut b, &self.scratch, &passed) => relayed.err().map(|_broken| RESET),
            () = draining.reached(Phase::Cut) => Some(RESET),
        };
        if cut.is_some() {
            exchange.record.reason = cut;
            intercept::reset(a.socket());
            intercept::reset(b.socket());
        }
        exchange.relayed(&passed);
    }

    fn new(inputs: Inputs, guard: LoopGuard, budget: Arc<Budget>, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let bounds = &inputs.settings.bounds;
        let configs = Configs::new(inputs.credentials, bounds.renewal_wait);
        let configs = Rc::new(RefCell::new(configs));
        let dialler = Rc::new(Dialler::new(Rc::clone(&configs)));
        let driver = Driver::new(driver::Parts {
            bounds: *bounds,
            budget,
            seed: rng.random(),
            views: Arc::clone(&inputs.views),
            configs: Rc::clone(&configs),
            dialler: Rc::clone(&dialler),
            demand: inputs.demand.clone(),
            telemetry: Arc::clone(&inputs.telemetry),
        });
        Self {
            dialler,
            driver: Rc::new(driver),
            configs,
            view: RefCell::new(inputs.views.reader()),
            rng: RefCell::new(rng),
            scratch: Scratch::of_this_thread(),
            guard,
            turns: RefCell::default(),
            settings: inputs.settings,
            views: inputs.views,
            demand: inputs.demand,
            telemetry: inputs.telemetry,
            draining: inputs.draining,
        }
    }

    /// The current view; one exchange uses one.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(self.view.borrow_mut().get())
    }

    /// Whether `peer` has been denied; a handshake looks at the list of its own beginning.
    pub(crate) fn is_revoked(&self, peer: &Peer) -> bool {
        self.configs.borrow_mut().is_revoked(peer)
    }

    /// The index of the endpoint for the next attempt.
    pub(crate) fn pick(&self, cluster: &LiveCluster, tried: &Tried) -> Option<usize> {
        let mut rng = self.rng.borrow_mut();
        let mut turns = self.turns.borrow_mut();
        // Clusters come and go: beginning a round anew is no loss.
        if turns.len() >= TURNS_MAX {
            turns.clear();
        }
        let name = &cluster.config.name;
        if !turns.contains_key(name) {
            turns.insert(name.clone(), Turn(rng.random()));
        }
        let turn = turns.get_mut(name)?;
        cluster.pick(tried, clock::now(), turn, &mut *rng)
    }
}

/// Connections accepted but not yet taken up by their worker.
const QUEUE_MAX: usize = 1024;
/// How often it is looked whether our certificate has ended.
const MAINTENANCE: Duration = Duration::from_secs(5);
/// Positions of round robins that a worker keeps.
const TURNS_MAX: usize = 4096;
/// For connections to notice that they are cut.
const CUT: Duration = Duration::from_secs(1);
