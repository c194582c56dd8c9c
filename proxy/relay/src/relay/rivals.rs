//! More than one attempt at a time: a hedge tries another endpoint beside the first, a mirror gets
//! a copy.
//!
//! Of a hedge's attempts the first answer counts. While more than one runs, all of the request is
//! kept: when it grows too long for that, only one that was sent goes on. A mirror is an exchange
//! of its own that has no client: what it is answered is dropped.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use heddle_policy::{admission::Resource, outcome::Outcome, retry::Retry, snapshot::ClusterName};
use slotmap::Key;

use super::{
    ConnId, ExchangeId, Relay,
    exchange::{Exchange, Facts, Leg, Lost, Stage, Way},
    touch,
    upload::Upload,
};
use crate::{
    event::{Code, StreamId, Then},
    input::Payload,
};

impl Relay {
    /// Tries another endpoint beside the one that has not answered yet, if there is one.
    pub(super) fn hedge(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &mut self.exchanges[id];
        let is_worth_it = exchange.stage == Stage::Sent
            && exchange.upload.is_replayable()
            && exchange.rivals.len() < RIVALS_MAX;
        if !is_worth_it {
            return;
        }
        let first = exchange.attempt.take();
        exchange.rivals.extend(first);
        if self.attempt(id, now).is_err() {
            let exchange = &mut self.exchanges[id];
            exchange.attempt = exchange.rivals.pop();
        }
    }

    /// When the attempt came to nothing and another is under way, waits for that one.
    pub(super) fn fall_back(&mut self, id: ExchangeId) -> bool {
        let Some(rival) = self.exchanges[id].rivals.pop() else {
            return false;
        };
        self.abandon(id);
        let exchange = &mut self.exchanges[id];
        exchange.facts.endpoint = Some(rival.address());
        let until = rival.until;
        exchange.attempt = Some(rival);
        exchange.stage = Stage::Sent;
        self.arm(id, until);
        true
    }

    /// An attempt that is not waited for alone came to nothing.
    pub(super) fn rival_broke(&mut self, id: ExchangeId, leg: Leg, lost: Lost, now: Instant) {
        let exchange = &mut self.exchanges[id];
        let found = exchange.rivals.iter().position(|r| r.leg == Some(leg));
        if let (Some(index), Some(way)) = (found, &exchange.way) {
            let mut rival = exchange.rivals.swap_remove(index);
            let outcome = match lost {
                Lost::Stream(Code::REFUSED_STREAM) => Outcome::Refused,
                Lost::Stream(_) | Lost::Connection | Lost::Stale | Lost::Answer(_) => {
                    Outcome::Reset
                }
            };
            rival.report(&way.cluster, outcome, now);
        }
    }

    /// Only the attempt counts from here on.
    pub(super) fn drop_rivals(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &mut self.exchanges[id];
        exchange.hedge_at = None;
        while let Some(mut rival) = self.exchanges[id].rivals.pop() {
            if let Some(way) = &self.exchanges[id].way {
                rival.report(&way.cluster, Outcome::Cancelled, now);
            }
            if let Some(leg) = rival.leg {
                self.part(leg, Some(Code::CANCEL));
            }
        }
    }

    /// A piece of a request's body for those that are not the attempt.
    pub(super) fn upload_to_rivals(
        &mut self,
        id: ExchangeId,
        data: &Payload<'_>,
        then: Then,
        now: Instant,
    ) {
        let exchange = &self.exchanges[id];
        if !exchange.upload.is_replayable() {
            // One that was not sent cannot be any more.
            if exchange.leg().is_none() {
                self.fall_back(id);
            }
            return self.drop_rivals(id, now);
        }
        for index in 0..exchange.rivals.len() {
            let Some(leg) = self.exchanges[id].rivals[index].leg else {
                continue;
            };
            if let Some(conn) = self.conns.get_mut(leg.conn) {
                let passed = conn.codec.send_data(leg.stream, data.clone(), then);
                touch(&mut self.dirty, conn, leg.conn);
                self.passed(id, leg, u64::from(passed));
            }
        }
    }

    /// Sends a copy of the request to `cluster` of the same destination, if there is room for it.
    pub(super) fn mirror(&mut self, id: ExchangeId, cluster: &ClusterName, now: Instant) {
        let exchange = &self.exchanges[id];
        let Some(way) = &exchange.way else { return };
        let Some(cluster) = way.destination.clusters.get(cluster) else {
            return;
        };
        let limit = cluster.config.limits.requests_max;
        let slot = cluster.state.admission.acquire(Resource::Requests, limit);
        let Ok(slot) = slot else { return };
        let facts = Facts::new(Arc::clone(&exchange.facts.caller), exchange.facts.spoken);
        let nobody = Leg {
            conn: ConnId::null(),
            stream: StreamId(0),
        };
        let mut upload = exchange.upload.copy(self.rooms.pop().unwrap_or_default());
        upload.end_with(exchange.upload.trailers().map(|head| self.heads.copy(head)));
        let head = self.heads.copy(&exchange.head);
        let mut mirror = Exchange::new(nobody, head, upload, facts, now);
        mirror.version = exchange.version;
        mirror.form = exchange.form;
        mirror.request = exchange.request;
        // Nobody would end it.
        let deadline = exchange.deadline.unwrap_or(now + MIRROR_MAX);
        mirror.deadline = Some(deadline);
        mirror.retry = Retry::new("", mirror.deadline);
        mirror.held.request = Some(slot);
        mirror.way = Some(Way {
            destination: Arc::clone(&way.destination),
            route: Arc::clone(&way.route),
            cluster: Arc::clone(cluster),
        });
        let mirror = self.exchanges.insert(mirror);
        self.exchanges[id].mirror = Some(mirror);
        self.try_again(mirror, now);
        self.charge_exchange(mirror);
    }

    /// A piece of a request's body for its mirror, which is given up when it does not keep up.
    pub(super) fn upload_copy(
        &mut self,
        mirror: ExchangeId,
        data: Payload<'_>,
        then: Then,
        now: Instant,
    ) {
        let Some(exchange) = self.exchanges.get(mirror) else {
            return;
        };
        let passed = exchange.attempt.as_ref().map_or(0, |a| a.passed);
        let waiting = exchange.facts.bytes_received.saturating_sub(passed);
        if waiting + data.len() as u64 > self.settings.replay_bytes_max as u64 {
            return self.client_gone(mirror, now);
        }
        self.upload(mirror, data, then, now);
        self.charge_exchange(mirror);
    }

    /// The request that a mirror copies has ended, whole or not.
    pub(super) fn end_mirror(&mut self, mirror: ExchangeId, now: Instant) {
        let exchange = self.exchanges.get(mirror);
        if exchange.is_some_and(|exchange| !exchange.upload.is_whole()) {
            self.client_gone(mirror, now);
        }
    }

    /// Of an answer that nobody reads.
    pub(super) fn drop_download(&mut self, id: ExchangeId, len: usize, then: Then, now: Instant) {
        let leg = self.exchanges[id].leg();
        self.release(leg, u32::try_from(len).unwrap_or(u32::MAX));
        if then == Then::End {
            self.complete(id, now);
        }
    }
}

impl Upload {
    /// The same request for somebody else.
    fn copy(&self, mut room: crate::output::Output) -> Self {
        for payload in self.kept().payloads() {
            room.push(payload);
        }
        self.with_kept(room)
    }
}

/// How long a copy lives whose request has no deadline.
const MIRROR_MAX: Duration = Duration::from_secs(30);
/// Attempts beside the one, each with a stream of its own.
const RIVALS_MAX: usize = 2;
