//! A client, one relay or the two of a mesh, and an endpoint that is dialled as often as is wanted.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{
    authz::Rules,
    snapshot::{Inbound, InboundPort, MtlsMode, Protocol, Snapshot},
    spiffe::Peer,
};
use heddle_relay::{
    input::Input,
    relay::{Caller, Closing, ConnId, Connected, Dialled, Port, Relay, Speaks, Task},
    view::{self, View},
};

use crate::scene;

/// What is between the client and the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    /// The client's sidecar.
    OneRelay,
    /// Both sidecars, and HTTP/2 between them.
    Mesh,
}

pub(crate) struct Talk {
    pub(crate) between: Between,
    near: Relay,
    /// The endpoint's sidecar, if it has one.
    far: Relay,
    client: ConnId,
    /// Both ends of what is between the sidecars.
    mesh: Option<(ConnId, ConnId)>,
    /// The latest.
    endpoint: Option<ConnId>,
    to_client: String,
    to_endpoint: String,
    closed: Vec<(&'static str, Closing)>,
    shut: Vec<&'static str>,
    records: Vec<String>,
    pub(crate) dials: usize,
    /// Whether what goes to the client is taken.
    pub(crate) client_reads: bool,
    now: Instant,
}

/// Which of the relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Near,
    Far,
}

impl Talk {
    pub(crate) fn new(between: Between) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let endpoint: SocketAddr = ([10, 0, 0, 1], 80).into();
        let snapshot = scene::snapshot(&[endpoint], None, Some(Duration::from_secs(10)));
        let relay = |snapshot| {
            let view = view::reconcile(&View::empty(now), snapshot, now);
            Relay::new(scene::settings(), Arc::new(view), 7, now)
        };
        let mut near = relay(snapshot);
        let far = relay(inbound());
        let caller = Caller {
            speaks: Speaks::Http1,
            ..scene::caller()
        };
        let client = near.accepted(caller, now);
        Self {
            between,
            near,
            far,
            client,
            mesh: None,
            endpoint: None,
            to_client: String::new(),
            to_endpoint: String::new(),
            closed: Vec::new(),
            shut: Vec::new(),
            records: Vec::new(),
            dials: 0,
            client_reads: true,
            now,
        }
    }

    pub(crate) fn client_says(&mut self, text: &str) {
        self.near
            .received(self.client, Input::lent(text.as_bytes()), self.now);
        self.drive();
    }

    pub(crate) fn endpoint_says(&mut self, text: &str) {
        let (now, endpoint) = (self.now, self.endpoint.expect("it was dialled"));
        self.endpoints_relay()
            .received(endpoint, Input::lent(text.as_bytes()), now);
        self.drive();
    }

    pub(crate) fn client_hears(&mut self) -> String {
        self.drive();
        std::mem::take(&mut self.to_client)
    }

    pub(crate) fn endpoint_hears(&mut self) -> String {
        std::mem::take(&mut self.to_endpoint)
    }

    pub(crate) fn client_ends(&mut self) {
        self.near.ended(self.client, self.now);
        self.drive();
    }

    pub(crate) fn endpoint_ends(&mut self) {
        let (now, endpoint) = (self.now, self.endpoint.expect("it was dialled"));
        self.endpoints_relay().ended(endpoint, now);
        self.drive();
    }

    pub(crate) fn endpoint_is_lost(&mut self) {
        let (now, endpoint) = (self.now, self.endpoint.take().expect("it was dialled"));
        self.endpoints_relay().lost(endpoint, now);
        self.drive();
    }

    pub(crate) fn endpoint_room(&mut self) -> usize {
        self.drive();
        let endpoint = self.endpoint.expect("it was dialled");
        self.endpoints_relay().room(endpoint)
    }

    /// What was closed since the last look, by name.
    pub(crate) fn closed(&mut self) -> Vec<(&'static str, Closing)> {
        let mut closed = std::mem::take(&mut self.closed);
        closed.sort_by_key(|(name, _)| *name);
        closed
    }

    pub(crate) fn shut(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.shut)
    }

    /// Status, reason and attempts of what has ended, as the client's sidecar has them. What the
    /// endpoint's found is its own to tell, in the answer.
    #[track_caller]
    pub(crate) fn check_records(&self, expected: &[&str]) {
        let is_mesh = self.between == Between::Mesh;
        let statuses = |records: &[String]| -> Vec<String> {
            let first = |record: &String| record.split(' ').next().map(str::to_owned);
            records.iter().filter_map(first).collect()
        };
        let expected: Vec<String> = expected.iter().map(|text| (*text).to_owned()).collect();
        match is_mesh {
            true => assert_eq!(statuses(&self.records), statuses(&expected)),
            false => assert_eq!(self.records, expected),
        }
    }

    fn endpoints_relay(&mut self) -> &mut Relay {
        match self.between {
            Between::OneRelay => &mut self.near,
            Between::Mesh => &mut self.far,
        }
    }

    fn drive(&mut self) {
        while self.turn(Side::Near) | self.turn(Side::Far) {}
        self.near.touch(self.client);
    }

    /// Whether there was something to do.
    fn turn(&mut self, side: Side) -> bool {
        let (mut has_moved, now) = (false, self.now);
        while let Some(id) = self.relay(side).next_write(now) {
            if side == Side::Near && id == self.client && !self.client_reads {
                continue;
            }
            has_moved = true;
            let output = self.relay(side).output(id).expect("it is open");
            let pieces = output.payloads().map(|piece| piece.as_slice().to_vec());
            let bytes = pieces.collect::<Vec<_>>().concat();
            output.consume(output.len());
            self.relay(side).touch(id);
            self.deliver(side, id, &bytes);
        }
        while let Some(record) = self.relay(side).next_record() {
            let status = record.status.map(|status| status.to_string());
            let (status, reason) = (status.as_deref().unwrap_or("-"), record.reason);
            let reason = reason.unwrap_or("-");
            if side == Side::Near {
                self.records
                    .push(format!("{status} {reason} {}", record.attempts));
            }
            self.relay(side).recycle(record);
        }
        while let Some(task) = self.relay(side).next_task() {
            has_moved = true;
            self.task(side, task);
        }
        has_moved
    }

    fn relay(&mut self, side: Side) -> &mut Relay {
        match side {
            Side::Near => &mut self.near,
            Side::Far => &mut self.far,
        }
    }

    fn deliver(&mut self, side: Side, id: ConnId, bytes: &[u8]) {
        let text = || std::str::from_utf8(bytes).expect("text");
        match (side, self.mesh) {
            (Side::Near, _) if id == self.client => self.to_client.push_str(text()),
            (Side::Near, Some((near, far))) if id == near => {
                self.far.received(far, Input::lent(bytes), self.now);
            }
            (Side::Far, Some((near, far))) if id == far => {
                self.near.received(near, Input::lent(bytes), self.now);
            }
            (Side::Near | Side::Far, _) => self.to_endpoint.push_str(text()),
        }
    }

    fn task(&mut self, side: Side, task: Task) {
        match task {
            Task::Dial(dial) if side == Side::Near && self.between == Between::Mesh => {
                let connected = Connected {
                    peer: Peer::Anonymous,
                    is_sidecar: true,
                    speaks: Speaks::Http1InHttp2,
                };
                let near = self.near.dialled(dial.channel, Ok(connected), self.now);
                let caller = Caller {
                    is_sidecar: true,
                    dialled: Dialled::Port(Port {
                        number: 80,
                        application: ([127, 0, 0, 1], 80).into(),
                    }),
                    speaks: Speaks::Http1InHttp2,
                    ..scene::caller()
                };
                let far = self.far.accepted(caller, self.now);
                self.mesh = near.map(|near| (near, far));
            }
            Task::Dial(dial) => {
                self.dials += 1;
                let connected = Connected {
                    peer: Peer::Anonymous,
                    is_sidecar: false,
                    speaks: Speaks::Http1,
                };
                let now = self.now;
                let relay = self.relay(side);
                self.endpoint = relay.dialled(dial.channel, Ok(connected), now);
            }
            Task::Shut(id) => self.shut.push(self.name(side, id)),
            Task::Close(id, closing) => {
                self.closed.push((self.name(side, id), closing));
                let now = self.now;
                self.relay(side).lost(id, now);
            }
            Task::Ask(key) => unreachable!("{key} is described"),
        }
    }

    fn name(&self, side: Side, id: ConnId) -> &'static str {
        match (side, self.mesh) {
            (Side::Near, _) if id == self.client => "client",
            (Side::Near, Some((near, _))) if id == near => "mesh",
            (Side::Far, Some((_, far))) if id == far => "mesh",
            (Side::Near | Side::Far, _) => "endpoint",
        }
    }
}

/// Whoever comes may do everything.
fn inbound() -> Snapshot {
    let port = InboundPort {
        mtls: MtlsMode::Permissive,
        protocol: Protocol::Http1,
        authz: Arc::new(Rules::default()),
    };
    Snapshot {
        inbound: Some(Arc::new(Inbound {
            ports: [].into(),
            default: Arc::new(port),
        })),
        ..Snapshot::default()
    }
}
