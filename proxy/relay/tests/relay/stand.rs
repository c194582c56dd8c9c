//! A relay between hand-written clients and endpoints, without a network between them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    admission::{Resource, Slot},
    snapshot::Limits,
};
use heddle_relay::{
    cluster::LiveCluster,
    input::Input,
    relay::{Caller, Closing, ConnId, Connected, Dial, Relay, Speaks, Task},
    view::{self, View},
};

use crate::{scene, upheaval::Upheavals};

/// What is set before it begins.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) limits: Limits,
    pub(crate) speaks: Speaks,
    pub(crate) upheavals: Upheavals,
    /// Of a request.
    pub(crate) timeout: Option<Duration>,
    /// Whether dials are answered at once.
    pub(crate) answers_dials: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits::UNLIMITED,
            speaks: Speaks::Http1,
            upheavals: Upheavals::default(),
            timeout: None,
            answers_dials: true,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Stand {
    pub(crate) relay: Relay,
    pub(crate) now: Instant,
    pub(crate) began: Instant,
    setup: Setup,
    view: Arc<View>,
    /// Connections to endpoints, in the order of their making.
    pub(crate) endpoints: Vec<ConnId>,
    pub(crate) dials: Vec<Dial>,
    /// What was written to each and not taken.
    written: BTreeMap<ConnId, Vec<u8>>,
    /// Which were closed, how, and how long after the beginning.
    pub(crate) closed: Vec<(ConnId, Closing, Duration)>,
    /// How many of `closed` have been told as lost.
    ended: usize,
    /// Of exchanges that have ended.
    pub(crate) reasons: Vec<Option<&'static str>>,
}

impl Stand {
    pub(crate) fn new(setup: Setup) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let endpoint = SocketAddr::from(([10, 0, 0, 1], 80));
        let mut snapshot = scene::snapshot(&[endpoint], None, setup.timeout);
        setup.upheavals.equip(&mut snapshot, setup.limits);
        let view = Arc::new(view::reconcile(&View::empty(now), snapshot, now));
        Self {
            relay: Relay::new(setup.upheavals.settings(), Arc::clone(&view), 7, now),
            now,
            began: now,
            setup,
            view,
            endpoints: Vec::new(),
            dials: Vec::new(),
            written: BTreeMap::new(),
            closed: Vec::new(),
            ended: 0,
            reasons: Vec::new(),
        }
    }

    pub(crate) fn client(&mut self) -> ConnId {
        let caller = Caller {
            speaks: self.setup.speaks,
            ..self.setup.upheavals.caller()
        };
        self.relay.accepted(caller, self.now)
    }

    /// A request without a body.
    pub(crate) fn request(&mut self, client: ConnId, method: &str) {
        let length = match method {
            "POST" => "content-length: 0\r\n",
            _ => "",
        };
        let head = format!("{method} / HTTP/1.1\r\nhost: echo.shop\r\n{length}\r\n");
        self.send(client, head.as_bytes());
    }

    /// Over the connection of that number.
    pub(crate) fn answer(&mut self, endpoint: usize) {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        self.send(self.endpoints[endpoint], head);
    }

    pub(crate) fn send(&mut self, conn: ConnId, bytes: &[u8]) {
        self.relay.received(conn, Input::lent(bytes), self.now);
        self.settle();
    }

    pub(crate) fn lose(&mut self, conn: ConnId) {
        self.relay.lost(conn, self.now);
        self.settle();
    }

    /// What has been written to it since the last look.
    pub(crate) fn taken(&mut self, conn: ConnId) -> Vec<u8> {
        self.written.remove(&conn).unwrap_or_default()
    }

    /// The same, in words.
    pub(crate) fn told(&mut self, conn: ConnId) -> String {
        String::from_utf8_lossy(&self.taken(conn)).into_owned()
    }

    /// Forgets what the endpoint's connections have been asked.
    pub(crate) fn asked_of_all(&mut self) {
        for conn in self.endpoints.clone() {
            self.taken(conn);
        }
    }

    /// Which of the endpoint's connections has been asked something since the last look.
    pub(crate) fn asked(&mut self) -> Option<usize> {
        let conns = self.endpoints.clone();
        let mut asked = (0..conns.len()).filter(|index| !self.taken(conns[*index]).is_empty());
        let first = asked.next();
        assert_eq!(asked.next(), None, "one at a time");
        first
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while let Some(due) = self.relay.deadline().filter(|due| *due <= until) {
            self.now = self.now.max(due);
            self.relay.expire(self.now);
            self.settle();
        }
        self.now = until;
        self.relay.expire(until);
        self.settle();
    }

    /// What a driver does, until there is nothing to be done.
    pub(crate) fn settle(&mut self) {
        loop {
            let mut is_over = true;
            while let Some(conn) = self.relay.next_write(self.now) {
                let output = self.relay.output(conn).expect("it is open");
                let written = self.written.entry(conn).or_default();
                for payload in output.payloads() {
                    written.extend_from_slice(payload.as_slice());
                }
                output.consume(output.len());
                self.relay.touch(conn);
                is_over = false;
            }
            while let Some(task) = self.relay.next_task() {
                is_over = false;
                match task {
                    Task::Dial(dial) => self.dials.push(dial),
                    Task::Close(conn, closing) => {
                        let since = self.now - self.began;
                        self.closed.push((conn, closing, since));
                        // Not before what it says has been written.
                        self.relay.touch(conn);
                    }
                    Task::Shut(_) | Task::Ask(_) => unreachable!("{task:?}"),
                }
            }
            while let Some(record) = self.relay.next_record() {
                self.reasons.push(record.reason);
                self.relay.recycle(record);
            }
            if self.setup.answers_dials && !self.dials.is_empty() {
                is_over = false;
                self.dialled();
            }
            if !is_over {
                continue;
            }
            if self.ended == self.closed.len() {
                break;
            }
            for (conn, ..) in &self.closed[self.ended..] {
                self.relay.lost(*conn, self.now);
            }
            self.ended = self.closed.len();
        }
        assert_eq!(self.relay.bytes_charged(), self.relay.bytes_kept());
    }

    /// The first dial is answered.
    pub(crate) fn dialled(&mut self) {
        let dial = self.dials.remove(0);
        let connected = Connected {
            speaks: self.setup.speaks,
            ..self.setup.upheavals.connected()
        };
        let conn = self.relay.dialled(dial.channel, Ok(connected), self.now);
        self.endpoints.extend(conn);
    }

    pub(crate) fn in_use(&self, resource: Resource) -> u32 {
        self.cluster().state.admission.in_use(resource)
    }

    /// A connection of another worker.
    pub(crate) fn take_connection(&self) -> Slot {
        let admission = &self.cluster().state.admission;
        let slot = admission.acquire(Resource::Connections, None);
        slot.expect("there is no limit")
    }

    fn cluster(&self) -> &LiveCluster {
        let clusters = self.view.destinations.values();
        let mut clusters = clusters.flat_map(|destination| destination.clusters.values());
        clusters.next().expect("there is one")
    }
}
