//! A client, the relay, and an endpoint that is dialled as often as the relay wants.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::spiffe::Peer;
use heddle_relay::{
    input::Input,
    relay::{Caller, Closing, ConnId, Connected, Relay, Speaks, Task},
    view::{self, View},
};

use crate::scene;

pub(crate) struct Talk {
    relay: Relay,
    client: ConnId,
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

impl Talk {
    pub(crate) fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let endpoint: SocketAddr = ([10, 0, 0, 1], 80).into();
        let snapshot = scene::snapshot(&[endpoint], None, Some(Duration::from_secs(10)));
        let view = view::reconcile(&View::empty(now), snapshot, now);
        let mut relay = Relay::new(scene::settings(), Arc::new(view), 7, now);
        let caller = Caller {
            speaks: Speaks::Http1,
            ..scene::caller()
        };
        let client = relay.accepted(caller, now);
        Self {
            relay,
            client,
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
        self.says(self.client, text);
    }

    pub(crate) fn endpoint_says(&mut self, text: &str) {
        let endpoint = self.endpoint.expect("it was dialled");
        self.says(endpoint, text);
    }

    pub(crate) fn client_hears(&mut self) -> String {
        self.drive();
        std::mem::take(&mut self.to_client)
    }

    pub(crate) fn endpoint_hears(&mut self) -> String {
        std::mem::take(&mut self.to_endpoint)
    }

    pub(crate) fn client_ends(&mut self) {
        self.relay.ended(self.client, self.now);
        self.drive();
    }

    pub(crate) fn endpoint_ends(&mut self) {
        let endpoint = self.endpoint.expect("it was dialled");
        self.relay.ended(endpoint, self.now);
        self.drive();
    }

    pub(crate) fn endpoint_is_lost(&mut self) {
        let endpoint = self.endpoint.take().expect("it was dialled");
        self.relay.lost(endpoint, self.now);
        self.drive();
    }

    pub(crate) fn endpoint_room(&mut self) -> usize {
        self.drive();
        self.relay.room(self.endpoint.expect("it was dialled"))
    }

    /// What was closed since the last look, in which order.
    pub(crate) fn closed(&mut self) -> Vec<(&'static str, Closing)> {
        std::mem::take(&mut self.closed)
    }

    pub(crate) fn shut(&mut self) -> Vec<&'static str> {
        std::mem::take(&mut self.shut)
    }

    /// Status, reason and attempts of what has ended.
    pub(crate) fn records(&self) -> &[String] {
        &self.records
    }

    fn says(&mut self, conn: ConnId, text: &str) {
        self.relay
            .received(conn, Input::lent(text.as_bytes()), self.now);
        self.drive();
    }

    fn drive(&mut self) {
        loop {
            while let Some(id) = self.relay.next_write(self.now) {
                let to = match id == self.client {
                    true if !self.client_reads => continue,
                    true => &mut self.to_client,
                    false => &mut self.to_endpoint,
                };
                let output = self.relay.output(id).expect("it is open");
                for payload in output.payloads() {
                    to.push_str(std::str::from_utf8(payload.as_slice()).expect("text"));
                }
                output.consume(output.len());
                self.relay.touch(id);
            }
            while let Some(record) = self.relay.next_record() {
                let status = record.status.map(|status| status.to_string());
                let (status, reason) = (status.as_deref().unwrap_or("-"), record.reason);
                let reason = reason.unwrap_or("-");
                self.records
                    .push(format!("{status} {reason} {}", record.attempts));
                self.relay.recycle(record);
            }
            match self.relay.next_task() {
                Some(task) => self.task(task),
                None => return self.relay.touch(self.client),
            }
        }
    }

    fn task(&mut self, task: Task) {
        match task {
            Task::Dial(dial) => {
                self.dials += 1;
                let connected = Connected {
                    peer: Peer::Anonymous,
                    is_sidecar: false,
                    speaks: Speaks::Http1,
                };
                self.endpoint = self.relay.dialled(dial.channel, Ok(connected), self.now);
            }
            Task::Shut(id) => self.shut.push(self.name(id)),
            Task::Close(id, closing) => {
                self.closed.push((self.name(id), closing));
                self.relay.lost(id, self.now);
            }
            Task::Ask(key) => unreachable!("{key} is described"),
        }
    }

    fn name(&self, id: ConnId) -> &'static str {
        match id == self.client {
            true => "client",
            false => "endpoint",
        }
    }
}
