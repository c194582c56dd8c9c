//! A request's body on its way to the endpoint: kept for another attempt while it is small.

use std::time::Instant;

use super::{
    ExchangeId, Relay,
    codec::Codec,
    exchange::{Exchange, Leg, Stage},
    filter::Message,
    touch,
};
use crate::{
    event::{StreamId, Then},
    head::{Head, Heads},
    input::Payload,
    output::Output,
    request,
    token::Token,
};

/// What has come of a request's body.
#[derive(Debug)]
pub(super) struct Upload {
    /// From its first byte, unless it was given up.
    kept: Output,
    /// Behind the body.
    trailers: Option<Head>,
    is_whole: bool,
    /// It was too long to be kept, or will not be sent again.
    is_given_up: bool,
    /// Bytes for which the client has got its window back.
    credited: u64,
}

impl Upload {
    /// Of a request whose head has come; `room` is empty.
    pub(super) fn new(then: Then, room: Output) -> Self {
        Self {
            kept: room,
            trailers: None,
            is_whole: then == Then::End,
            is_given_up: false,
            credited: 0,
        }
    }

    /// Whether the head was all.
    pub(super) fn is_empty(&self) -> bool {
        self.is_whole && self.kept.is_empty() && self.trailers.is_none()
    }

    /// Whether all of it can be kept, as far as the head says.
    pub(super) fn fits(&self, head: &Head, bytes_max: usize) -> bool {
        let length = head.get(Token::ContentLength);
        let length = length.and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        self.is_whole || length.is_some_and(|length: usize| length <= bytes_max)
    }

    /// Whether all that has come can be sent again.
    pub(super) fn is_replayable(&self) -> bool {
        !self.is_given_up
    }

    pub(super) fn trailers(&self) -> Option<&Head> {
        self.trailers.as_ref()
    }

    pub(super) fn end_with(&mut self, trailers: Option<Head>) {
        self.trailers = trailers;
    }

    pub(super) fn kept(&self) -> &Output {
        &self.kept
    }

    /// The same, kept in `room`, and nothing of it sent yet.
    pub(super) fn with_kept(&self, room: Output) -> Self {
        Self {
            kept: room,
            trailers: None,
            is_whole: self.is_whole,
            is_given_up: false,
            credited: 0,
        }
    }

    /// Bytes that it keeps.
    pub(super) fn kept_bytes(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, Head::memory_bytes);
        self.kept.len() + trailers
    }

    /// Whether its end has come.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// What was the whole message is followed by the bytes of a tunnel.
    pub(super) fn reopen(&mut self) {
        self.is_whole = false;
    }

    /// Keeps nothing from here on.
    pub(super) fn give_up(&mut self) {
        self.is_given_up = true;
        self.kept.consume(self.kept.len());
        if self.kept.memory_bytes() > ROOM_BYTES_MAX {
            self.kept.shrink();
        }
    }

    /// What was used to keep it, empty, and the trailers.
    pub(super) fn into_room(mut self) -> (Output, Option<Head>) {
        self.give_up();
        (self.kept, self.trailers)
    }

    /// Keeps no more than `bytes_max` once it has been sent.
    pub(super) fn sent(&mut self, bytes_max: usize) {
        if self.kept.len() > bytes_max {
            self.give_up();
        }
    }

    /// Sends what has come; how much of it has gone.
    pub(super) fn send(
        &self,
        codec: &mut Codec,
        stream: StreamId,
        head_then: Then,
        heads: &mut Heads,
    ) -> u64 {
        if head_then == Then::End {
            return 0;
        }
        let mut passed = 0;
        let mut left = self.kept.len();
        for payload in self.kept.payloads() {
            left -= payload.len();
            let is_last = left == 0 && self.is_whole && self.trailers.is_none();
            let then = if is_last { Then::End } else { Then::More };
            passed += u64::from(codec.send_data(stream, payload, then));
        }
        if let Some(trailers) = &self.trailers {
            codec.send_trailers(stream, trailers, heads);
        }
        passed
    }
}

impl Relay {
    /// A piece of a request's body has come.
    pub(super) fn upload(&mut self, id: ExchangeId, data: Payload<'_>, then: Then, now: Instant) {
        let bytes_max = self.settings.replay_bytes_max;
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        exchange.facts.bytes_received += data.len() as u64;
        if let Some(mirror) = exchange.mirror {
            self.upload_copy(mirror, data.clone(), then, now);
        }
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        let is_sent = exchange.leg().is_some() || !exchange.rivals.is_empty();
        let upload = &mut exchange.upload;
        upload.is_whole = then == Then::End;
        if !upload.is_given_up {
            // What cannot go yet is kept whatever its length: the client's window bounds it.
            if is_sent && upload.kept.len() + data.len() > bytes_max {
                upload.give_up();
            } else {
                upload.kept.push(data.clone());
            }
        }
        if !exchange.rivals.is_empty() {
            self.upload_to_rivals(id, &data, then, now);
        }
        // The attempt may be another one by now.
        let leg = self.exchanges.get(id).and_then(Exchange::leg);
        let Some(leg) = leg else { return };
        let Some(conn) = self.conns.get_mut(leg.conn) else {
            return;
        };
        let passed = conn.codec.send_data(leg.stream, data, then);
        self.touch(leg.conn);
        self.passed(id, leg, u64::from(passed));
        if then == Then::End && self.exchanges[id].is_answered {
            self.complete(id, now);
        }
    }

    /// The end of a request's body has come.
    pub(super) fn upload_trailers(&mut self, id: ExchangeId, mut head: Head) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return self.heads.give(head);
        };
        request::strip_ours(&mut head);
        if let Some(filter) = &mut self.filter {
            filter.trailers(id, Message::Request, &mut head);
        }
        exchange.upload.is_whole = true;
        let attempts = exchange.attempt.iter().chain(&exchange.rivals);
        for leg in attempts.filter_map(|attempt| attempt.leg) {
            if let Some(conn) = self.conns.get_mut(leg.conn) {
                conn.codec.send_trailers(leg.stream, &head, &mut self.heads);
                touch(&mut self.dirty, conn, leg.conn);
            }
        }
        if let Some(mirror) = exchange.mirror {
            let copy = self.heads.copy(&head);
            self.upload_trailers(mirror, copy);
            self.charge_exchange(mirror);
        }
        if let Some(exchange) = self.exchanges.get_mut(id) {
            exchange.upload.trailers = Some(head);
        }
    }

    /// So many bytes more of the body have gone to the endpoint: the client may send as many,
    /// once, whatever the number of attempts.
    pub(super) fn passed(&mut self, id: ExchangeId, leg: Leg, bytes: u64) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        let mut attempts = exchange.attempt.iter_mut().chain(&mut exchange.rivals);
        let Some(attempt) = attempts.find(|attempt| attempt.leg == Some(leg)) else {
            return;
        };
        attempt.passed += bytes;
        let credit = attempt.passed.saturating_sub(exchange.upload.credited);
        if credit == 0 || exchange.stage == Stage::Looking {
            return;
        }
        exchange.upload.credited += credit;
        let client = exchange.client;
        if let Some(conn) = self.conns.get_mut(client.conn) {
            let credit = u32::try_from(credit).unwrap_or(u32::MAX);
            conn.codec.release(client.stream, credit);
            self.touch(client.conn);
        }
    }
}

/// Room that is used again for another request; what is larger is given back, since nobody counts
/// it.
const ROOM_BYTES_MAX: usize = 4 * 1024;
