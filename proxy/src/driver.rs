//! Sockets around the relay of a worker: every connection has a task that reads, and one flusher
//! does the rest.
//!
//! ```text
//! connection's task:  readable ─► read into the worker's buffer ─► Relay::received ─► wake flusher
//!
//! flusher:  view, credentials ─► timers ─► writes ─► dials, closes, questions ─► records ─► sleep
//! ```
//!
//! The flusher is behind all tasks that were ready before it in the worker's queue, so that what
//! they have for one connection goes out in one write. Nothing here decides: what is done with a
//! request is in `heddle-relay`.

mod conn;
mod flush;
mod open;

use std::{
    cell::{Cell, RefCell, RefMut},
    ops::{Deref, DerefMut},
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::DestinationKey;
use heddle_relay::{
    budget::{Account, Budget},
    error::ConnectError,
    h1, h2,
    record::Direction,
    relay::{self, Caller, Connected, Dial, Relay, Speaks},
    request::Terms,
    view::View,
};
use heddle_shell::{
    clock,
    publish::{Published, Reader},
    task::Tasks,
};
use slotmap::SecondaryMap;

use self::{
    conn::Conn,
    open::{Open, Other},
};
use crate::{
    demand::Demand,
    detect::Rewound,
    dial::{Dialler, Target},
    error::of_io,
    intercept::{self, Leg},
    settings::Bounds,
    telemetry::Telemetry,
    tls::{self, Agreed, AsSocket, Carries, Configs, Established, Stream},
};

/// One worker's relay with its sockets.
#[derive(Debug)]
pub struct Driver {
    state: RefCell<State>,
    /// Somebody panicked while holding the state: it may be half changed, and nothing is done with
    /// it any more. The worker ends by its flusher.
    is_torn: Cell<bool>,
    dialler: Rc<Dialler>,
    demand: Demand,
    views: Arc<Published<View>>,
    lookup_wait: Duration,
    telemetry: Arc<Telemetry>,
    /// Dials, the connections to endpoints that they become, and questions.
    tasks: RefCell<Tasks>,
}

/// What connections' tasks and the flusher share.
#[derive(Debug)]
struct State {
    relay: Relay,
    conns: SecondaryMap<relay::ConnId, Conn>,
    /// Of what the connections keep beside the relay.
    account: Rc<RefCell<Account>>,
    views: Reader<View>,
    /// What the relay was told.
    view: Arc<View>,
    configs: Rc<RefCell<Configs>>,
    /// The credentials that the relay was told of.
    generation: u64,
    flusher: Option<Waker>,
    /// Exchanges that have been counted as begun, by direction.
    begun: [u64; 2],
}

/// See [`Driver::is_torn`].
struct Held<'a> {
    state: RefMut<'a, State>,
    is_torn: &'a Cell<bool>,
}

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// Patience and bounds.
    pub bounds: Bounds,
    /// What the process may keep.
    pub budget: Arc<Budget>,
    /// Of the relay's generator.
    pub seed: u64,
    /// What the relay decides by.
    pub views: Arc<Published<View>>,
    /// Who we are, for as long as connections are good.
    pub configs: Rc<RefCell<Configs>>,
    /// Makes connections to endpoints.
    pub dialler: Rc<Dialler>,
    /// Asks for unknown destinations.
    pub demand: Demand,
    /// Takes the records.
    pub telemetry: Arc<Telemetry>,
}

impl Driver {
    /// One without connections. [`Driver::flush`] must run.
    pub fn new(parts: Parts) -> Self {
        let now = clock::now();
        let mut views = parts.views.reader();
        let view = Arc::clone(views.get());
        let account = Account::new(&parts.budget);
        let settings = settings(&parts.bounds, parts.budget);
        let generation = parts.configs.borrow_mut().generation();
        let mut relay = Relay::new(settings, Arc::clone(&view), parts.seed, now);
        relay.credentials(generation, now);
        let state = State {
            relay,
            conns: SecondaryMap::new(),
            account: Rc::new(RefCell::new(account)),
            views,
            view,
            configs: parts.configs,
            generation,
            flusher: None,
            begun: [0; 2],
        };
        Self {
            state: RefCell::new(state),
            is_torn: Cell::new(false),
            dialler: parts.dialler,
            demand: parts.demand,
            views: parts.views,
            lookup_wait: parts.bounds.lookup_wait,
            telemetry: parts.telemetry,
            tasks: RefCell::default(),
        }
    }

    /// Serves a client that speaks HTTP. Returns when its connection has ended, which is at once if
    /// it is denied.
    pub async fn serve(self: &Rc<Self>, stream: Rewound<Stream>, caller: Caller) {
        let id = {
            let state = &mut *self.state();
            let now = clock::now();
            state.look(now);
            // After the look, which cuts only whom the relay has.
            if state.configs.borrow_mut().is_revoked(&caller.peer) {
                return intercept::reset(stream.socket());
            }
            let id = state.relay.accepted(caller, now);
            let conn = Conn::new(stream.into(), &state.account);
            state.conns.insert(id, conn);
            state.wake();
            id
        };
        Open::new(self, id, Other::Client).run().await;
    }

    /// What is shared, for one look.
    fn state(&self) -> Held<'_> {
        Held {
            state: self.state.borrow_mut(),
            is_torn: &self.is_torn,
        }
    }

    /// Connects to an endpoint for the relay, and reads from it until its end.
    fn dial(self: &Rc<Self>, dial: Dial) {
        let driver = Rc::clone(self);
        self.spawn("endpoint", async move {
            let target = target(&dial);
            // Boxed, so that its memory is not the connection's for as long as that lasts.
            let dialled = Box::pin(driver.dialler.dial(&target)).await;
            drop(target);
            if let Some(open) = driver.dialled(&dial, dialled) {
                drop(dial);
                open.run().await;
            }
        });
    }

    fn dialled(
        self: &Rc<Self>,
        dial: &Dial,
        dialled: Result<Established, ConnectError>,
    ) -> Option<Open> {
        let state = &mut *self.state();
        let now = clock::now();
        state.look(now);
        state.wake();
        let ready = dialled.and_then(|established| {
            let revoked = state.configs.borrow_mut().is_revoked(&established.peer);
            if revoked {
                // The handshake looked at the list of its own beginning.
                return Err(ConnectError::Tls(
                    "the endpoint's identity is denied".into(),
                ));
            }
            let speaks = speaks(established.agreed, dial.carries);
            if dial.direction == Direction::Outbound && speaks != Speaks::Http1 {
                let socket = established.stream.socket();
                intercept::notice_vanished(socket).map_err(|error| of_io(&error))?;
            }
            let connected = Connected {
                peer: established.peer,
                is_sidecar: established.agreed.is_sidecar,
                speaks,
            };
            Ok((established.stream, connected))
        });
        let (stream, connected) = match ready {
            Ok((stream, connected)) => (Some(stream), Ok(connected)),
            Err(error) => (None, Err(error)),
        };
        let id = state.relay.dialled(dial.channel, connected, now)?;
        let conn = Conn::new(stream?.into(), &state.account);
        state.conns.insert(id, conn);
        Some(Open::new(self, id, Other::Endpoint))
    }

    /// The relay sees the answer in the view that has it.
    fn ask(self: &Rc<Self>, key: DestinationKey) {
        let driver = Rc::clone(self);
        self.spawn("question", async move {
            let (views, wait) = (&driver.views, driver.lookup_wait);
            driver.demand.lookup(views, &key, wait).await;
        });
    }

    fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.reap_ended();
        tasks.spawn_local(name, future);
    }
}

impl Deref for Held<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.is_torn.set(true);
            self.state.wake();
        }
    }
}

impl State {
    /// Tells the relay what is in force now, before it hears anything else.
    fn look(&mut self, now: Instant) {
        let view = self.views.get();
        if !Arc::ptr_eq(view, &self.view) {
            self.view = Arc::clone(view);
            self.relay.configured(Arc::clone(view), now);
        }
        let mut configs = self.configs.borrow_mut();
        let generation = configs.generation();
        if generation != self.generation {
            self.generation = generation;
            self.relay.credentials(generation, now);
            self.relay.revoke(&|id| configs.revokes(id), now);
        }
    }

    fn wake(&self) {
        if let Some(flusher) = &self.flusher {
            flusher.wake_by_ref();
        }
    }
}

fn settings(bounds: &Bounds, budget: Arc<Budget>) -> relay::Settings {
    relay::Settings {
        terms: Terms {
            paths: bounds.paths,
            sampled_share: bounds.sampled_share,
        },
        mesh: h2::Limits::of_mesh(),
        workload: h2::Limits::of_application(),
        http1: h1::Limits {
            head_timeout: bounds.header_wait,
            ..h1::Limits::default()
        },
        replay_bytes_max: bounds.replay_bytes_max,
        lookup_wait: bounds.lookup_wait,
        bounds: relay::Bounds {
            idle: bounds.idle,
            endpoint_idle: bounds.endpoint_idle,
            unrepeatable_idle: bounds.unrepeatable_idle,
            connection_age: bounds.connection_age,
        },
        budget,
    }
}

fn target(dial: &Dial) -> Target {
    Target {
        endpoint: dial.endpoint.clone(),
        name: Arc::clone(&dial.name),
        carries: match dial.carries {
            relay::Carries::Http2 => Carries::Http2,
            relay::Carries::Http1 => Carries::Http1,
            relay::Carries::Http1OrForeignHttp2 => Carries::Http1OrForeignHttp2,
        },
        timeout: dial.timeout,
        leg: match dial.direction {
            Direction::Outbound => Leg::Outbound,
            Direction::Inbound => Leg::Inbound,
        },
    }
}

/// What was agreed on; without that, what the connection is wanted for.
fn speaks(agreed: Agreed, carries: relay::Carries) -> Speaks {
    match (agreed.speaks, carries) {
        (tls::Speaks::Http2, _) => Speaks::Http2,
        (tls::Speaks::Http1, _) if agreed.is_http1_in_http2() => Speaks::Http1InHttp2,
        (tls::Speaks::Http1, _) => Speaks::Http1,
        (tls::Speaks::Tcp | tls::Speaks::Nothing, relay::Carries::Http2) => Speaks::Http2,
        (
            tls::Speaks::Tcp | tls::Speaks::Nothing,
            relay::Carries::Http1 | relay::Carries::Http1OrForeignHttp2,
        ) => Speaks::Http1,
    }
}
