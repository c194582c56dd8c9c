//! A relay, its clients and its endpoints, and a network that delivers in pieces and late.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{admission::Resource, retry::RetryPolicy, snapshot::Limits};
use heddle_relay::{
    cluster::LiveCluster,
    error::ConnectError,
    h2,
    input::Input,
    relay::{Closing, ConnId, Dial, ExchangeId, Relay, Task, Verdict},
    view::{self, View},
};
use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::{
    peer::Peer,
    policies::{Ledger, Treating, Treatment, VERDICT_TIME},
    scene,
    upheaval::Upheavals,
};

/// What an endpoint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Sends back what comes.
    Echo,
    /// There is nobody.
    RefuseConnections,
    /// REFUSED_STREAM.
    RefuseStreams,
    /// INTERNAL_ERROR before an answer.
    ResetStreams,
    /// Answers UNAVAILABLE at once.
    Unavailable,
    /// Never answers.
    Silent,
    /// Is not heard of any more once a request has come.
    Dies,
    /// Echoes, and breaks off within.
    BreakInAnswer,
    /// Begins an answer and goes no further.
    Stuck,
    /// Answers after a second or two.
    Late,
    /// INTERNAL_ERROR once 70,000 bytes have come.
    ResetLongUploads,
}

/// What is played.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) requests: u32,
    pub(crate) clients: usize,
    /// Whether a request waits until the one before has ended.
    pub(crate) one_at_a_time: bool,
    pub(crate) body_bytes_max: usize,
    pub(crate) body_bytes_min: usize,
    /// Streams that an endpoint takes at a time.
    pub(crate) endpoint_streams: u32,
    /// What clients let come of an answer.
    pub(crate) client_window: u32,
    pub(crate) endpoints: Vec<Behaviour>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) timeout: Option<Duration>,
    /// Whether readers take their time.
    pub(crate) stalls: bool,
    /// Share of steps in which a client gives one up.
    pub(crate) cancels: f64,
    /// Share of steps in which a connection breaks.
    pub(crate) breaks: f64,
    /// What a filter does to an exchange.
    pub(crate) treatment: Option<fn(u32) -> Treatment>,
    /// Of the cluster.
    pub(crate) limits: Limits,
    /// What else happens to connections.
    pub(crate) upheavals: Upheavals,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            requests: 10,
            clients: 3,
            one_at_a_time: false,
            body_bytes_max: 3_000,
            body_bytes_min: 0,
            endpoint_streams: 100,
            client_window: 64 * 1024,
            endpoints: vec![Behaviour::Echo; 3],
            retry: None,
            timeout: None,
            stalls: false,
            cancels: 0.0,
            breaks: 0.0,
            treatment: None,
            limits: Limits::UNLIMITED,
            upheavals: Upheavals::default(),
        }
    }
}

/// What a record said.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) reason: Option<&'static str>,
    pub(crate) attempts: u32,
    pub(crate) duration: Duration,
}

/// The two ends of a connection and what is under way.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) conn: ConnId,
    pub(crate) peer: Peer,
    pub(crate) is_client: bool,
    to_relay: VecDeque<u8>,
    to_peer: VecDeque<u8>,
    granted: Granted,
    closing: Option<Closing>,
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: SmallRng,
    pub(crate) now: Instant,
    pub(crate) relay: Relay,
    view: Arc<View>,
    pub(crate) links: Vec<Link>,
    behaviours: HashMap<SocketAddr, Behaviour>,
    pub(crate) dials: VecDeque<Dial>,
    pub(crate) started: u32,
    /// Of our credentials.
    pub(crate) renewals: u64,
    /// How the clients saw them end.
    done: Vec<(u32, String)>,
    pub(crate) records: Vec<Seen>,
    /// Requests that came over connections to endpoints that are gone.
    asked_before: u32,
    pub(crate) ledger: Rc<RefCell<Ledger>>,
    /// Until when the filter holds what.
    held: Vec<(Instant, ExchangeId)>,
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a simulation needs some first instant"
        )]
        let now = Instant::now();
        let addresses = (1..).map(|n| SocketAddr::from(([10, 0, 0, n], 80)));
        let addresses: Vec<SocketAddr> = addresses.take(plan.endpoints.len()).collect();
        let endpoints = addresses
            .iter()
            .copied()
            .zip(plan.endpoints.iter().copied());
        let behaviours: HashMap<_, _> = endpoints.collect();
        let mut snapshot = scene::snapshot(&addresses, plan.retry.clone(), plan.timeout);
        plan.upheavals.equip(&mut snapshot, plan.limits);
        let view = Arc::new(view::reconcile(&View::empty(now), snapshot, now));
        let settings = plan.upheavals.settings();
        let ledger = Rc::<RefCell<Ledger>>::default();
        let mut relay = Relay::new(settings, Arc::clone(&view), seed, now);
        if let Some(treatment) = plan.treatment {
            relay = relay.with_filter(Box::new(Treating::new(treatment, &ledger)));
        }
        let mut world = Self {
            rng: SmallRng::seed_from_u64(seed),
            relay,
            now,
            view,
            links: Vec::new(),
            behaviours,
            dials: VecDeque::new(),
            started: 0,
            renewals: 0,
            done: Vec::new(),
            records: Vec::new(),
            asked_before: 0,
            ledger,
            held: Vec::new(),
            plan,
        };
        for _ in 0..world.plan.clients {
            world.add_client();
        }
        world
    }

    /// Runs until every exchange has ended; then nothing may be left.
    pub(crate) fn play(&mut self) {
        for _step in 0..STEPS_MAX {
            self.step();
            if self.started == self.plan.requests && self.is_quiet() {
                self.check_end();
                return self.end();
            }
        }
        unreachable!(
            "{} of {} ended; the relay has {} exchanges, {} streams; {:?}",
            self.done.len(),
            self.plan.requests,
            self.relay.exchanges_active(),
            self.relay.streams_held(),
            self.links
                .iter()
                .map(|link| (
                    link.closing,
                    link.to_relay.len(),
                    link.to_peer.len(),
                    &link.peer
                ))
                .collect::<Vec<_>>()
        );
    }

    /// How many ended so.
    pub(crate) fn outcomes(&self, how: &str) -> usize {
        self.done.iter().filter(|(_, done)| done == how).count()
    }

    /// Requests that came to endpoints.
    pub(crate) fn asked(&self) -> u32 {
        let now: u32 = self.links.iter().map(|link| link.peer.asked).sum();
        self.asked_before + now
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..20));
        self.relay.expire(self.now);
        self.decide();
        let may_call = !self.plan.one_at_a_time || self.is_quiet();
        if may_call && self.started < self.plan.requests && self.rng.random_bool(0.3) {
            self.call();
        }
        for link in &mut self.links {
            link.peer.work(&mut self.rng, self.plan.stalls);
            if link.is_client && self.rng.random_bool(self.plan.cancels / 10.0) {
                link.peer.cancel(&mut self.rng);
            }
            let output = link.peer.codec.output();
            take_output(output, usize::MAX, &mut link.to_relay);
        }
        self.deliver();
        self.disturb();
        self.drive();
        self.check_limits();
        if self.rng.random_bool(self.plan.breaks) && !self.links.is_empty() {
            let index = self.rng.random_range(0..self.links.len());
            self.break_link(index);
        }
        for link in &mut self.links {
            if link.is_client {
                self.done.append(&mut link.peer.done);
            }
        }
    }

    /// The verdicts that the filter was waiting for.
    fn decide(&mut self) {
        let held = std::mem::take(&mut self.ledger.borrow_mut().held);
        let until = self.now + VERDICT_TIME;
        self.held.extend(held.into_iter().map(|id| (until, id)));
        let (due, held) = self.held.iter().partition(|(at, _)| *at <= self.now);
        self.held = held;
        let due: Vec<(Instant, ExchangeId)> = due;
        for (_, id) in due {
            self.relay.resume(id, Verdict::Pass, self.now);
        }
    }

    fn call(&mut self) {
        let takes = |link: &Link| link.is_client && link.peer.codec.can_open();
        let clients: Vec<usize> = (0..self.links.len())
            .filter(|index| takes(&self.links[*index]))
            .collect();
        if clients.is_empty() {
            return self.add_client();
        }
        let index = clients[self.rng.random_range(0..clients.len())];
        let bytes = {
            let bytes = self.plan.body_bytes_min..=self.plan.body_bytes_max;
            self.rng.random_range(bytes)
        };
        if self.links[index].peer.call(self.started, bytes) {
            self.started += 1;
        }
    }

    fn deliver(&mut self) {
        for index in 0..self.links.len() {
            let link = &mut self.links[index];
            let n = self.rng.random_range(0..=70_000).min(link.to_relay.len());
            let bytes: Vec<u8> = link.to_relay.drain(..n).collect();
            let bytes = bytes::Bytes::from(bytes);
            let input = match self.rng.random_bool(0.5) {
                true => Input::lent(&bytes),
                false => Input::shared(&bytes),
            };
            self.relay.received(link.conn, input, self.now);
            let n = self.rng.random_range(0..=70_000).min(link.to_peer.len());
            let bytes: Vec<u8> = link.to_peer.drain(..n).collect();
            if !bytes.is_empty() {
                link.granted.check(&bytes, &link.peer.handed);
                link.peer.receive(&bytes, self.now);
            }
        }
    }

    /// What the driver of a relay does.
    fn drive(&mut self) {
        while let Some(conn) = self.relay.next_write(self.now) {
            let link = self.links.iter_mut().find(|link| link.conn == conn);
            let Some(link) = link else { continue };
            // A peer that does not read is not written to for ever.
            let room = 300_000_usize.saturating_sub(link.to_peer.len());
            let n = self.rng.random_range(0..=room);
            if let Some(output) = self.relay.output(conn) {
                take_output(output, n, &mut link.to_peer);
            }
        }
        for link in &self.links {
            self.relay.touch(link.conn);
        }
        while let Some(task) = self.relay.next_task() {
            match task {
                Task::Dial(dial) => self.dials.push_back(dial),
                Task::Shut(_) => unreachable!("HTTP/2 is not half closed"),
                Task::Close(conn, closing) => {
                    let link = self.links.iter_mut().find(|link| link.conn == conn);
                    link.expect("it is open").closing = Some(closing);
                }
                Task::Ask(key) => unreachable!("{key} is described"),
            }
        }
        while let Some(record) = self.relay.next_record() {
            self.records.push(Seen {
                reason: record.reason,
                attempts: record.attempts,
                duration: record.duration,
            });
            self.relay.recycle(record);
        }
        if self.rng.random_bool(0.5)
            && let Some(dial) = self.dials.pop_front()
        {
            self.answer_dial(&dial);
        }
        for index in (0..self.links.len()).rev() {
            let link = &self.links[index];
            let output = self.relay.output(link.conn);
            let is_written = output.is_none_or(|output| output.is_empty());
            let is_over = match link.closing {
                None => false,
                Some(Closing::Abort) => true,
                // What was written is read first, unless nobody reads.
                Some(Closing::Finish) => {
                    is_written && (link.to_peer.is_empty() || link.peer.is_dead())
                }
            };
            if is_over {
                self.break_link(index);
            }
        }
    }

    fn answer_dial(&mut self, dial: &Dial) {
        let behaviour = self.behaviours[&dial.endpoint.address];
        let result = match behaviour {
            Behaviour::RefuseConnections => Err(ConnectError::Tcp("refused".into())),
            _ => Ok(self.plan.upheavals.connected()),
        };
        if let Some(conn) = self.relay.dialled(dial.channel, result, self.now) {
            let limits = h2::Limits {
                streams_max: self.plan.endpoint_streams,
                ..h2::Limits::of_mesh()
            };
            let peer = Peer::endpoint(behaviour, &limits, self.now);
            self.link(conn, peer, false);
        }
    }

    fn add_client(&mut self) {
        let caller = self.plan.upheavals.caller();
        let conn = self.relay.accepted(caller, self.now);
        let limits = h2::Limits {
            stream_window: self.plan.client_window,
            ..h2::Limits::of_mesh()
        };
        let peer = Peer::client(&limits, self.now);
        self.link(conn, peer, true);
    }

    fn link(&mut self, conn: ConnId, peer: Peer, is_client: bool) {
        self.links.push(Link {
            conn,
            peer,
            is_client,
            to_relay: VecDeque::new(),
            to_peer: VecDeque::new(),
            granted: Granted::default(),
            closing: None,
        });
    }

    /// Ends what is left; nothing is held then any more.
    fn end(&mut self) {
        self.rest();
        self.relay.cut(self.now);
        self.drive();
        let dials = self.dials.len();
        assert_eq!((self.relay.conns_open(), self.links.len()), (0, 0));
        // A dial that is not answered is one.
        assert!(self.relay.channels_open() <= dials, "{dials} dials");
        assert_eq!(self.relay.bytes_charged(), 0);
        for cluster in self.clusters() {
            let admission = &cluster.state.admission;
            for resource in [Resource::Connections, Resource::Pending] {
                assert_eq!(admission.in_use(resource), 0, "{resource:?}");
            }
        }
    }

    /// A while after the last exchange, whatever was before, connections take little memory.
    fn rest(&mut self) {
        for _ in 0..100 {
            self.deliver();
            self.drive();
        }
        self.drive();
        self.now += Duration::from_secs(4);
        self.relay.expire(self.now);
        let (conns, memory) = (self.relay.conns_open(), self.relay.conns_memory_bytes());
        assert!(memory <= conns * CONN_BYTES_MAX, "{memory} of {conns}");
    }

    fn break_link(&mut self, index: usize) {
        let link = self.links.swap_remove(index);
        self.asked_before += link.peer.asked;
        self.relay.lost(link.conn, self.now);
        if link.is_client {
            self.done.extend(link.peer.done);
            let open = link.peer.streams.into_values();
            self.done
                .extend(open.map(|stream| (stream.id, "broken".into())));
        }
    }

    fn is_quiet(&self) -> bool {
        let is_open = |link: &Link| link.is_client && !link.peer.streams.is_empty();
        self.relay.exchanges_active() == 0
            && !self.links.iter().any(is_open)
            && self.dials.is_empty()
    }

    fn check_end(&self) {
        let mut ids: Vec<u32> = self.done.iter().map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let expected: Vec<u32> = (0..self.plan.requests).collect();
        assert_eq!(ids, expected, "each ended once");
        assert_eq!(self.relay.streams_held(), 0);
        let requests = self.plan.requests as usize;
        assert!(self.records.len() <= requests);
        if self.plan.cancels == 0.0 && self.plan.breaks == 0.0 {
            assert_eq!(self.records.len(), requests, "each has a record");
        }
        for record in &self.records {
            // A step is at most 20 ms late.
            let most = self
                .plan
                .timeout
                .map(|most| most + Duration::from_millis(50));
            let took = record.duration;
            assert!(most.is_none_or(|most| took <= most), "{took:?}");
        }
        for endpoint in self.view.endpoints() {
            assert_eq!(endpoint.outstanding(), 0, "{:?}", endpoint.key);
        }
        for cluster in self.clusters() {
            let admission = &cluster.state.admission;
            for resource in [Resource::Requests, Resource::Retries, Resource::Pending] {
                assert_eq!(admission.in_use(resource), 0, "{resource:?}");
            }
        }
    }

    pub(crate) fn clusters(&self) -> impl Iterator<Item = &Arc<LiveCluster>> {
        let destinations = self.view.destinations.values();
        destinations.flat_map(|destination| destination.clusters.values())
    }
}

/// What the relay has granted of windows, read from its own frames.
#[derive(Debug, Default)]
struct Granted {
    partial: Vec<u8>,
    by_stream: HashMap<u32, u64>,
}

impl Granted {
    /// No stream may be granted more than its peer has sent.
    fn check(&mut self, bytes: &[u8], handed: &BTreeMap<u32, u64>) {
        self.partial.extend_from_slice(bytes);
        while let Some((head, rest)) = self.partial.split_first_chunk::<9>() {
            let payload_bytes = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            if rest.len() < payload_bytes {
                return;
            }
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if head[3] == WINDOW_UPDATE && stream != 0 {
                let increment = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
                let granted = self.by_stream.entry(stream).or_default();
                *granted += u64::from(increment);
                let sent = handed.get(&stream).copied().unwrap_or(0);
                assert!(*granted <= sent, "{granted} granted of {sent} sent");
            }
            self.partial.drain(..9 + payload_bytes);
        }
    }
}

const WINDOW_UPDATE: u8 = 8;

fn take_output(output: &mut heddle_relay::output::Output, n: usize, to: &mut VecDeque<u8>) {
    let n = n.min(output.len());
    let bytes: Vec<u8> = output
        .payloads()
        .flat_map(|payload| payload.as_slice().to_vec())
        .take(n)
        .collect();
    output.consume(n);
    to.extend(bytes);
}

/// Of a connection at rest: half of what one in plaintext may cost the process. It takes 2.1 KiB,
/// and what few fields there are here in the tables of HPACK.
const CONN_BYTES_MAX: usize = 3 * 1024;

/// Far more than any play takes.
const STEPS_MAX: usize = 200_000;
