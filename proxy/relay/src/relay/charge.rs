//! What connections and exchanges keep, on the account of the worker, and what follows when the
//! process's budget comes to its end: streams begin with small windows, then new requests are
//! refused, newest first. Nothing that has begun is ended.
//!
//! A connection is charged anew with each look at it, an exchange with each event of it: both are
//! sums of a few counters. What a driver has written since is refunded with the next look.

use std::time::Instant;

use super::{ConnId, ExchangeId, Relay, conn::Conn, exchange::Exchange};
use crate::{
    budget::Room,
    error::ProxyError,
    event::{Code, StreamId, Then},
    head::Head,
    request::Version,
};

impl Relay {
    /// Bytes that connections and exchanges keep, all looked at: for tests.
    pub fn bytes_kept(&self) -> usize {
        let conns = self.conns.values().map(Conn::kept_bytes);
        let exchanges = self.exchanges.values().map(Exchange::kept_bytes);
        conns.chain(exchanges).sum()
    }

    /// Bytes of memory that connections take, with their buffers and tables; exchanges are not in
    /// it.
    pub fn conns_memory_bytes(&self) -> usize {
        self.conns.values().map(Conn::memory_bytes).sum()
    }

    /// Bytes that are charged. Once there is nothing to write or to be looked at they are
    /// [`Relay::bytes_kept`].
    pub fn bytes_charged(&self) -> usize {
        self.account.used()
    }

    pub(super) fn charge_exchange(&mut self, id: ExchangeId) {
        if let Some(exchange) = self.exchanges.get_mut(id) {
            let kept = exchange.kept_bytes();
            let before = std::mem::replace(&mut exchange.charged, kept);
            self.recharge(before, kept);
        }
    }

    pub(super) fn charge_conn(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id) {
            let kept = conn.kept_bytes();
            let before = std::mem::replace(&mut conn.charged, kept);
            self.recharge(before, kept);
        }
    }

    fn recharge(&mut self, before: usize, kept: usize) {
        if kept > before {
            self.account.charge(kept - before);
        } else if kept < before {
            self.account.refund(before - kept);
        }
    }

    /// Whether nothing new may begin.
    pub(super) fn is_out_of_room(&self) -> bool {
        self.account.room() == Room::None
    }

    /// Has a client's streams begin with windows that the budget still has room for. A connection
    /// at rest hears of it when it is used: to tell all of them at once would be work when there
    /// is least time.
    pub(super) fn fit_windows(&mut self, id: ConnId) {
        let room = self.account.room();
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        if conn.channel().is_some() || std::mem::replace(&mut conn.room, room) == room {
            return;
        }
        let ample = match conn.is_sidecar() {
            true => self.settings.mesh.stream_window,
            false => self.settings.workload.stream_window,
        };
        let bytes = match room {
            Room::Ample => ample,
            Room::Scarce | Room::None => ample.min(SMALL_WINDOW),
        };
        conn.codec.set_stream_window(bytes);
    }

    /// Refuses a request for which there is no room. In HTTP/2 it may be sent elsewhere at once.
    pub(super) fn turn_away(
        &mut self,
        conn: ConnId,
        stream: StreamId,
        head: Head,
        then: Then,
        now: Instant,
    ) {
        let Some(id) = self.start(conn, stream, head, then, now) else {
            return;
        };
        let error = ProxyError::Overloaded("this sidecar has no memory left for requests".into());
        let codec = &mut self.conns[conn].codec;
        match codec.version() {
            Version::Http1 => {
                codec.goodbye();
                self.fail(id, &error, now);
            }
            Version::Http2 => {
                codec.reset(stream, Code::REFUSED_STREAM);
                self.exchanges[id].facts.reason = Some(error.disposition().reason);
                self.touch(conn);
                self.finish(id, now);
            }
        }
    }
}

/// What a stream may receive when the budget is nearly used up: a message of common size still
/// comes at once.
const SMALL_WINDOW: u32 = 16 * 1024;
