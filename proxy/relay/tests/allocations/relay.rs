//! Exchanges through a relay.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use allocation_counter::measure;
use heddle_policy::spiffe;
use heddle_relay::{
    event::{Event, Then},
    h2::{Connection, Limits, Role},
    head::{Head, Heads, Indexing},
    input::{Input, Payload},
    relay::{ConnId, Connected, Relay, Speaks, Task},
    view::{self, View},
};

use crate::{
    http2::{next, take},
    request, scene,
};

/// A client, the relay, and an endpoint, with buffers between them.
struct Chain {
    relay: Relay,
    client: (ConnId, Connection),
    endpoint: Option<(ConnId, Connection)>,
    heads: Heads,
    wire: Vec<u8>,
    now: Instant,
    ended: u64,
}

impl Chain {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant does")]
        let now = Instant::now();
        let endpoint: SocketAddr = ([10, 0, 0, 1], 80).into();
        let snapshot = scene::snapshot(&[endpoint], None, Some(Duration::from_secs(10)));
        let view = view::reconcile(&View::empty(now), snapshot, now);
        let mut relay = Relay::new(scene::settings(), Arc::new(view), 7, now);
        let conn = relay.accepted(scene::caller(), now);
        let client = Connection::new(Role::Client, &Limits::of_mesh(), now);
        Self {
            relay,
            client: (conn, client),
            endpoint: None,
            heads: Heads::default(),
            wire: Vec::new(),
            now,
            ended: 0,
        }
    }

    /// Some calls at once, until nothing is under way any more.
    fn calls(&mut self, n: u64, head: &mut Head, answer: &Head, trailers: &Head) {
        for call in 0..10 {
            request((n + call).wrapping_mul(0x9e37_79b9_7f4a_7c15), head);
            let (_, client) = &mut self.client;
            let stream = client.open(head, Then::More, &mut self.heads);
            let stream = stream.expect("there is room");
            client.send_data(stream, Payload::Lent(&[7; 100]), Then::End);
        }
        let until = self.ended + 10;
        while self.ended < until {
            self.now += Duration::from_millis(1);
            self.relay.expire(self.now);
            self.client.1.fill(usize::MAX, &mut self.heads);
            take(self.client.1.output(), &mut self.wire);
            self.relay
                .received(self.client.0, Input::lent(&self.wire), self.now);
            if let Some((id, endpoint)) = &mut self.endpoint {
                take(endpoint.output(), &mut self.wire);
                self.relay.received(*id, Input::lent(&self.wire), self.now);
            }
            while let Some(id) = self.relay.next_write(self.now) {
                let output = self.relay.output(id).expect("it is open");
                take(output, &mut self.wire);
                match id == self.client.0 {
                    true => self.answered(),
                    false => self.asked(answer, trailers),
                }
            }
            while let Some(task) = self.relay.next_task() {
                let Task::Dial(dial) = task else { continue };
                let connected = Connected {
                    peer: spiffe::Peer::Anonymous,
                    is_sidecar: true,
                    speaks: Speaks::Http2,
                };
                let id = self.relay.dialled(dial.channel, Ok(connected), self.now);
                let endpoint = Connection::new(Role::Server, &Limits::of_mesh(), self.now);
                self.endpoint = id.map(|id| (id, endpoint));
            }
            while let Some(record) = self.relay.next_record() {
                assert_eq!((record.status, record.grpc_status), (Some(200), Some(0)));
                self.relay.recycle(record);
            }
        }
    }

    fn asked(&mut self, answer: &Head, trailers: &Head) {
        let (_, endpoint) = self.endpoint.as_mut().expect("it was dialled");
        let mut input = Input::lent(&self.wire);
        while let Some(event) = next(endpoint, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { stream, head, .. } => {
                    self.heads.give(head);
                    endpoint.send_head(stream, answer, Then::More, &mut self.heads);
                }
                Event::Data { stream, credit, .. } => {
                    endpoint.release(stream, credit);
                    endpoint.send_data(stream, Payload::Lent(&[7; 100]), Then::More);
                    endpoint.send_trailers(stream, trailers, &mut self.heads);
                }
                _ => {}
            }
        }
    }

    fn answered(&mut self) {
        let (_, client) = &mut self.client;
        let mut input = Input::lent(&self.wire);
        while let Some(event) = next(client, &mut input, &mut self.heads, self.now) {
            match event {
                Event::Head { head, .. } => self.heads.give(head),
                Event::Trailers { head, .. } => {
                    self.heads.give(head);
                    self.ended += 1;
                }
                Event::Data { stream, credit, .. } => client.release(stream, credit),
                _ => {}
            }
        }
    }
}

#[test]
fn calls_through_a_relay_allocate_nothing() {
    let mut chain = Chain::new();
    let (mut head, mut answer, mut trailers) = (Head::new(), Head::new(), Head::new());
    answer.push(b":status", b"200", Indexing::Allowed);
    answer.push(b"content-type", b"application/grpc", Indexing::Allowed);
    trailers.push(b"grpc-status", b"0", Indexing::Allowed);
    let mut call = |n: u64| chain.calls(n * 10, &mut head, &answer, &trailers);
    let cold = measure(|| (0..2_000).for_each(&mut call));
    assert!(cold.count_total > 0, "the count counts");
    let warm = measure(|| (2_000..3_000).for_each(&mut call));
    assert_eq!(warm.count_total, 0);
}
