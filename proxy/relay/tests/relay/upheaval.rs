//! What happens to connections beside what happens to exchanges, and what holds all the same.

use std::{sync::Arc, time::Duration};

use heddle_policy::{
    admission::Resource,
    authz::Rules,
    snapshot::{Inbound, InboundPort, Limits, MtlsMode, Protocol, Snapshot, Transport},
    spiffe::{Peer, SpiffeId},
};
use heddle_relay::{
    event::Code,
    record::Direction,
    relay::{Caller, Connected, Dialled, Port, Settings, Speaks},
};
use rand::RngExt;

use crate::{scene, world::World};

/// What is played beside exchanges. Shares are of steps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Upheavals {
    /// Whether exchanges go to the workload's own port, the first endpoint.
    pub(crate) is_inbound: bool,
    /// Whether endpoints have sidecars.
    pub(crate) is_meshed: bool,
    /// Of connections.
    pub(crate) age: Option<Duration>,
    /// Share in which an endpoint says goodbye.
    pub(crate) goodbyes: f64,
    /// Share in which our credentials change.
    pub(crate) renewals: f64,
    /// Share in which endpoints are denied.
    pub(crate) revocations: f64,
    /// Whether clients are told to go when half of the requests have been made.
    pub(crate) retires: bool,
    /// Of the budget.
    pub(crate) budget_bytes: Option<usize>,
}

impl Upheavals {
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = scene::settings();
        if let Some(age) = self.age {
            settings.bounds.connection_age = age;
        }
        if let Some(bytes) = self.budget_bytes {
            settings.budget = heddle_relay::budget::Budget::new(bytes);
        }
        settings
    }

    pub(crate) fn caller(&self) -> Caller {
        let mut caller = scene::caller();
        if self.is_inbound {
            caller.dialled = Dialled::Port(Port {
                number: 80,
                application: ([10, 0, 0, 1], 80).into(),
            });
        }
        caller
    }

    pub(crate) fn connected(&self) -> Connected {
        Connected {
            peer: match self.is_meshed {
                true => Peer::Meshed(id()),
                false => Peer::Anonymous,
            },
            is_sidecar: self.is_meshed,
            speaks: Speaks::Http2,
        }
    }

    /// Makes of a plain scene without limits what is wanted.
    pub(crate) fn equip(&self, snapshot: &mut Snapshot, limits: Limits) {
        let port = InboundPort {
            mtls: MtlsMode::Permissive,
            protocol: Protocol::Http2,
            authz: Arc::new(Rules::default()),
        };
        snapshot.inbound = Some(Arc::new(Inbound {
            ports: [].into(),
            default: Arc::new(port),
        }));
        for destination in snapshot.destinations.values_mut() {
            let destination = Arc::get_mut(destination).expect("it is new");
            for cluster in destination.clusters.values_mut() {
                let cluster = Arc::get_mut(cluster).expect("it is new");
                cluster.limits = limits;
                for endpoint in &mut cluster.endpoints {
                    if self.is_meshed {
                        let endpoint = Arc::get_mut(endpoint).expect("it is new");
                        endpoint.transport = Transport::Mtls([id()].into());
                    }
                }
            }
        }
    }
}

fn id() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/echo"
        .parse()
        .expect("it is one")
}

impl World {
    pub(crate) fn disturb(&mut self) {
        let upheavals = self.plan.upheavals.clone();
        if self.rng.random_bool(upheavals.goodbyes) {
            let endpoints = self.links.iter_mut().filter(|link| !link.is_client);
            let mut endpoints: Vec<_> = endpoints.collect();
            if !endpoints.is_empty() {
                let index = self.rng.random_range(0..endpoints.len());
                endpoints[index].peer.codec.goodbye(Code::NO_ERROR);
            }
        }
        if self.rng.random_bool(upheavals.renewals) {
            self.renewals += 1;
            self.relay.credentials(self.renewals, self.now);
        }
        if self.rng.random_bool(upheavals.revocations) {
            self.relay.revoke(&|peer| *peer == id(), self.now);
        }
        if upheavals.retires && self.started == self.plan.requests / 2 {
            let direction = match upheavals.is_inbound {
                true => Direction::Inbound,
                false => Direction::Outbound,
            };
            self.relay.retire(direction, self.now);
        }
    }

    /// What holds at any time.
    pub(crate) fn check_limits(&mut self) {
        let endpoints = self.links.iter().filter(|link| !link.is_client);
        let uses_max = self.plan.limits.requests_per_connection_max;
        for link in endpoints.clone() {
            assert!(uses_max.is_none_or(|max| link.peer.asked <= max.get()));
        }
        let conns = endpoints.count() + self.dials.len();
        let Limits {
            connections_max,
            pending_max,
            ..
        } = self.plan.limits;
        assert!(connections_max.is_none_or(|max| conns <= max.get() as usize));
        let is_outbound = !self.plan.upheavals.is_inbound;
        for cluster in self.clusters().filter(|_| is_outbound) {
            let admission = &cluster.state.admission;
            let held = admission.in_use(Resource::Connections);
            // Those that are to be dialled are not seen here.
            assert!(held as usize >= conns, "{held} counted, {conns} open");
            assert!(connections_max.is_none_or(|max| held <= max.get()));
            let pending = admission.in_use(Resource::Pending);
            assert!(pending_max.is_none_or(|max| pending <= max.get()));
        }
        // Once all has been looked at; nothing is written, so it is looked at again.
        while self.relay.next_write(self.now).is_some() {}
        assert_eq!(self.relay.bytes_charged(), self.relay.bytes_kept());
        for link in &self.links {
            self.relay.touch(link.conn);
        }
    }
}
