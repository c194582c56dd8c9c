//! An answer on its way to the client: an endpoint's, or one of our own.

use std::time::{Duration, Instant};

use heddle_policy::{
    outcome::{Outcome, grpc},
    retry::Pushback,
};

use super::{
    ConnId, ExchangeId, Relay,
    conn::{Conn, Side},
    exchange::{Leg, Stage},
    filter::Message,
    route::Decided,
};
use crate::{
    error::{Disposition, ProxyError, grpc_message},
    event::{Code, Event, Then},
    head::Head,
    input::Payload,
    record::{Direction, Spoken},
    request::{self, Version},
    token::Token,
};

impl Relay {
    /// An endpoint's answer begins. It is forwarded, unless another attempt is worth more.
    pub(super) fn judge(
        &mut self,
        id: ExchangeId,
        leg: Leg,
        mut head: Head,
        then: Then,
        now: Instant,
    ) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return self.heads.give(head);
        };
        if !exchange.prefer(leg) {
            return self.heads.give(head);
        }
        exchange.stage = Stage::Sent;
        let conn = &self.conns[leg.conn];
        let is_sidecar = conn.is_sidecar();
        if let Side::Endpoint { peer, .. } = &conn.side
            && exchange.facts.direction == Direction::Outbound
        {
            exchange.facts.peer = peer.clone();
        }
        let answer = Answer::read(&head, is_sidecar);
        let policy = exchange
            .way
            .as_ref()
            .and_then(|way| way.route.retry.as_ref());
        let is_retried = answer.unseen.is_some()
            || policy.is_some_and(|policy| answer.outcome().is_retried(&policy.on));
        if is_retried {
            exchange.report(answer.outcome(), now);
            if self.decide(id, answer.outcome(), answer.pushback, now) == Decided::Again {
                return self.heads.give(head);
            }
        }
        if !is_sidecar {
            request::strip_ours(&mut head);
        }
        self.drop_rivals(id, now);
        if self.may_commit(id, &mut head, is_sidecar, then, now) {
            let answer = Answer::read(&head, is_sidecar);
            self.commit(id, &head, &answer, then, now);
        }
        self.heads.give(head);
    }

    /// From here on nothing is repeated.
    pub(super) fn commit(
        &mut self,
        id: ExchangeId,
        head: &Head,
        answer: &Answer,
        then: Then,
        now: Instant,
    ) {
        let exchange = &mut self.exchanges[id];
        exchange.stage = Stage::Committed;
        exchange.upload.give_up();
        if answer.status == SWITCHING_PROTOCOLS {
            // Bytes from here on, for as long as it takes.
            exchange.is_tunnel = true;
            exchange.deadline = None;
            exchange.upload.reopen();
        }
        exchange.facts.status = Some(answer.status);
        exchange.facts.grpc_status = answer.grpc;
        exchange.facts.first_response = Some(now.saturating_duration_since(exchange.started));
        let client = exchange.client;
        self.arm(id, None);
        if let Some(conn) = self.conns.get_mut(client.conn) {
            conn.codec.served(client.stream);
            conn.codec
                .send_head(client.stream, head, then, &mut self.heads);
            self.touch(client.conn);
        }
        if then == Then::End {
            self.complete(id, now);
        }
    }

    /// An interim answer passes (RFC 9110 section 15.2).
    pub(super) fn interim(&mut self, id: ExchangeId, head: Head) {
        if let Some(exchange) = self.exchanges.get(id) {
            let client = exchange.client;
            if let Some(conn) = self.conns.get_mut(client.conn) {
                conn.codec
                    .send_head(client.stream, &head, Then::More, &mut self.heads);
                self.touch(client.conn);
            }
        }
        self.heads.give(head);
    }

    /// A piece of an answer's body has come.
    pub(super) fn download(&mut self, id: ExchangeId, data: Payload<'_>, then: Then, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return;
        };
        let len = data.len() as u64;
        if let Some(pending) = &mut exchange.pending {
            pending.push(data, then);
            return self.charge_exchange(id);
        }
        let (client, leg) = (exchange.client, exchange.leg());
        exchange.facts.bytes_sent += len;
        let Some(conn) = self.conns.get_mut(client.conn) else {
            return self.drop_download(id, data.len(), then, now);
        };
        let passed = conn.codec.send_data(client.stream, data, then);
        exchange.facts.unsent += len - u64::from(passed);
        self.touch(client.conn);
        self.release(leg, passed);
        if then == Then::End {
            self.complete(id, now);
        }
    }

    /// The end of an answer's body has come.
    pub(super) fn download_trailers(&mut self, id: ExchangeId, mut head: Head, now: Instant) {
        if let Some(exchange) = self.exchanges.get_mut(id) {
            let conn = exchange.leg().and_then(|leg| self.conns.get(leg.conn));
            if !conn.is_some_and(Conn::is_sidecar) {
                request::strip_ours(&mut head);
            }
            if let Some(pending) = &mut exchange.pending {
                pending.end(head);
                return self.charge_exchange(id);
            }
            if let Some(filter) = &mut self.filter {
                filter.trailers(id, Message::Answer, &mut head);
            }
            if let Some(status) = head.get(Token::GrpcStatus) {
                exchange.facts.grpc_status = Some(grpc_status(status));
            }
            let client = exchange.client;
            if let Some(conn) = self.conns.get_mut(client.conn) {
                conn.codec
                    .send_trailers(client.stream, &head, &mut self.heads);
                self.touch(client.conn);
            }
            self.complete(id, now);
        }
        self.heads.give(head);
    }

    /// What waited in a connection has gone.
    pub(super) fn written(&mut self, id: ConnId, event: &Event<'_>, now: Instant) {
        let Event::Writable { stream, sent } = event else {
            return;
        };
        let conn = &self.conns[id];
        let is_client = matches!(conn.side, Side::Client(_));
        let Some(exchange) = conn.exchange(*stream) else {
            return;
        };
        if !is_client {
            let leg = Leg {
                conn: id,
                stream: *stream,
            };
            return self.passed(exchange, leg, u64::from(*sent));
        }
        let Some(found) = self.exchanges.get_mut(exchange) else {
            return;
        };
        found.facts.unsent = found.facts.unsent.saturating_sub(u64::from(*sent));
        let is_over = found.stage == Stage::Ending && found.facts.unsent == 0;
        let leg = found.leg();
        self.release(leg, *sent);
        if is_over {
            self.finish(exchange, now);
        }
    }

    /// The answer is whole. A tunnel is over when the other direction is too.
    pub(super) fn complete(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &mut self.exchanges[id];
        exchange.is_answered = exchange.is_tunnel;
        // What is left is for the client to read.
        exchange.deadline = None;
        if exchange.is_tunnel && !exchange.upload.is_whole() {
            return;
        }
        if let Some(status) = exchange.facts.status
            && exchange.attempt.is_some()
        {
            let grpc = exchange.facts.grpc_status;
            exchange.report(Outcome::Response { status, grpc }, now);
        }
        exchange.stage = Stage::Ending;
        if exchange.facts.unsent == 0 {
            self.finish(id, now);
        }
    }

    /// The endpoint may send as many bytes more.
    pub(super) fn release(&mut self, leg: Option<Leg>, bytes: u32) {
        if let Some(leg) = leg
            && let Some(conn) = self.conns.get_mut(leg.conn)
        {
            conn.codec.release(leg.stream, bytes);
            self.touch(leg.conn);
        }
    }

    /// Answers in place of an endpoint.
    pub(super) fn fail(&mut self, id: ExchangeId, error: &ProxyError, now: Instant) {
        let Disposition {
            status,
            grpc,
            reason,
        } = error.disposition();
        let exchange = &mut self.exchanges[id];
        exchange.facts.reason = Some(reason);
        if error.is_malformed()
            && let Some(conn) = self.conns.get_mut(exchange.client.conn)
            && conn.codec.version() == Version::Http1
        {
            // Where the next request of such a client begins is anybody's guess.
            conn.codec.goodbye();
        }
        let mut head = self.heads.take();
        let mut put = |token: Token, value: &[u8]| head.set(token, value);
        let text = error.text();
        let is_grpc = exchange.facts.spoken == Spoken::Grpc;
        if is_grpc {
            put(Token::Status, b"200");
            put(Token::ContentType, b"application/grpc");
            put(Token::GrpcStatus, grpc.to_string().as_bytes());
            put(Token::GrpcMessage, grpc_message(&text).as_bytes());
        } else {
            put(Token::Status, status.to_string().as_bytes());
            put(Token::ContentType, b"text/plain; charset=utf-8");
        }
        put(Token::XHeddleReason, reason.as_bytes());
        let body = match is_grpc {
            true => String::new(),
            false => format!("{text}\n"),
        };
        self.answer_here(id, head, body.as_bytes(), now);
    }

    /// Answers in place of an endpoint, with this.
    pub(super) fn answer_here(
        &mut self,
        id: ExchangeId,
        mut head: Head,
        body: &[u8],
        now: Instant,
    ) {
        self.abandon(id);
        self.drop_rivals(id, now);
        let exchange = &mut self.exchanges[id];
        // It has had its effect.
        exchange.deadline = None;
        exchange.hedge_at = None;
        exchange.pending = None;
        exchange.upload.give_up();
        let answer = Answer::read(&head, false);
        exchange.facts.first_response = Some(now.saturating_duration_since(exchange.started));
        exchange.facts.status = Some(answer.status);
        exchange.facts.grpc_status = answer.grpc;
        exchange.stage = Stage::Ending;
        let client = exchange.client;
        if let Some(conn) = self.conns.get_mut(client.conn) {
            if answer.grpc.is_none() {
                head.set(Token::ContentLength, body.len().to_string().as_bytes());
            }
            // What answers HEAD has no body, whatever it says of one (RFC 9110 section 9.3.2).
            let is_all = body.is_empty() || exchange.head.get(Token::Method) == Some(b"HEAD");
            let then = if is_all { Then::End } else { Then::More };
            conn.codec
                .send_head(client.stream, &head, then, &mut self.heads);
            if !is_all {
                let data = Payload::Lent(body);
                let passed = conn.codec.send_data(client.stream, data, Then::End);
                exchange.facts.bytes_sent = body.len() as u64;
                exchange.facts.unsent = body.len() as u64 - u64::from(passed);
            }
            self.touch(client.conn);
        }
        self.heads.give(head);
        if self.exchanges[id].facts.unsent == 0 {
            self.finish(id, now);
        } else {
            self.arm(id, now.checked_add(LAST_WORDS));
        }
    }

    /// Ends an answer that has begun: in words where the protocol has them.
    pub(super) fn break_off(
        &mut self,
        id: ExchangeId,
        reason: &'static str,
        status: u32,
        now: Instant,
    ) {
        let exchange = &mut self.exchanges[id];
        exchange.facts.reason = Some(reason);
        exchange.deadline = None;
        let client = exchange.client;
        let mut is_over = true;
        if exchange.facts.spoken == Spoken::Grpc && exchange.stage == Stage::Committed {
            exchange.facts.grpc_status = Some(status);
            // The trailers go behind what waits for the client.
            is_over = exchange.facts.unsent == 0;
            let mut head = self.heads.take();
            head.set(Token::GrpcStatus, status.to_string().as_bytes());
            head.set(Token::GrpcMessage, reason.as_bytes());
            head.set(Token::XHeddleReason, reason.as_bytes());
            if let Some(conn) = self.conns.get_mut(client.conn) {
                conn.codec
                    .send_trailers(client.stream, &head, &mut self.heads);
            }
            self.heads.give(head);
            self.exchanges[id].stage = Stage::Ending;
        } else if let Some(conn) = self.conns.get_mut(client.conn) {
            conn.codec.reset(client.stream, Code::INTERNAL_ERROR);
        }
        self.touch(client.conn);
        if is_over {
            self.finish(id, now);
        } else {
            self.abandon(id);
            self.arm(id, now.checked_add(LAST_WORDS));
        }
    }
}

const SWITCHING_PROTOCOLS: u16 = 101;
/// How long a client may take to read why its request failed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What matters of an endpoint's answer.
pub(super) struct Answer {
    status: u16,
    grpc: Option<u32>,
    /// What the reason word of another sidecar proves.
    unseen: Option<Outcome>,
    pushback: Option<Pushback>,
}

impl Answer {
    pub(super) fn read(head: &Head, is_sidecar: bool) -> Self {
        let status = head.get(Token::Status).unwrap_or_default();
        let status = std::str::from_utf8(status).ok();
        let reason = head.get(Token::XHeddleReason).filter(|_| is_sidecar);
        Self {
            status: status.and_then(|text| text.parse().ok()).unwrap_or(0),
            grpc: head.get(Token::GrpcStatus).map(grpc_status),
            unseen: reason.and_then(ProxyError::unseen),
            pushback: head.get(Token::GrpcRetryPushbackMs).map(Pushback::parse),
        }
    }

    fn outcome(&self) -> Outcome {
        self.unseen.unwrap_or(Outcome::Response {
            status: self.status,
            grpc: self.grpc,
        })
    }
}

fn grpc_status(value: &[u8]) -> u32 {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.parse().unwrap_or(grpc::UNKNOWN)
}
