//! An answer on its way to the client: an endpoint's, or one of our own.

use std::time::{Duration, Instant};

use heddle_policy::{
    outcome::{Outcome, grpc},
    retry::Pushback,
};

use super::{
    ConnId, ExchangeId, Relay,
    conn::Side,
    exchange::{Leg, Stage},
    route::Decided,
};
use crate::{
    error::{Disposition, ProxyError, grpc_message},
    event::{Code, Event, Then},
    head::Head,
    input::Payload,
    record::{Direction, Spoken},
    request,
    token::Token,
};

impl Relay {
    /// An endpoint's answer begins. It is forwarded, unless another attempt is worth more.
    pub(super) fn judge(&mut self, id: ExchangeId, mut head: Head, then: Then, now: Instant) {
        let Some(exchange) = self.exchanges.get_mut(id) else {
            return self.heads.give(head);
        };
        let Some(leg) = exchange.leg() else {
            return self.heads.give(head);
        };
        let is_sidecar = match &self.conns[leg.conn].side {
            Side::Endpoint {
                peer, is_sidecar, ..
            } => {
                if exchange.facts.direction == Direction::Outbound {
                    exchange.facts.peer = peer.clone();
                }
                *is_sidecar
            }
            Side::Client(_) => false,
        };
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
        self.commit(id, &head, &answer, then, now);
        self.heads.give(head);
    }

    /// From here on nothing is repeated.
    fn commit(&mut self, id: ExchangeId, head: &Head, answer: &Answer, then: Then, now: Instant) {
        let exchange = &mut self.exchanges[id];
        exchange.stage = Stage::Committed;
        exchange.upload.give_up();
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
        let (client, leg) = (exchange.client, exchange.leg());
        exchange.facts.bytes_sent += len;
        let Some(conn) = self.conns.get_mut(client.conn) else {
            return;
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
    pub(super) fn download_trailers(&mut self, id: ExchangeId, head: Head, now: Instant) {
        if let Some(exchange) = self.exchanges.get_mut(id) {
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
            return self.passed(exchange, u64::from(*sent));
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

    /// The answer is whole.
    fn complete(&mut self, id: ExchangeId, now: Instant) {
        let exchange = &mut self.exchanges[id];
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
    fn release(&mut self, leg: Option<Leg>, bytes: u32) {
        if let Some(leg) = leg
            && let Some(conn) = self.conns.get_mut(leg.conn)
        {
            conn.codec.release(leg.stream, bytes);
            self.touch(leg.conn);
        }
    }

    /// Answers in place of an endpoint.
    pub(super) fn fail(&mut self, id: ExchangeId, error: &ProxyError, now: Instant) {
        self.abandon(id, now);
        let exchange = &mut self.exchanges[id];
        // It has had its effect.
        exchange.deadline = None;
        exchange.upload.give_up();
        let Disposition {
            status,
            grpc,
            reason,
        } = error.disposition();
        exchange.facts.reason = Some(reason);
        exchange.facts.first_response = Some(now.saturating_duration_since(exchange.started));
        let mut head = self.heads.take();
        let mut put = |token: Token, value: &[u8]| head.set(token, value);
        let text = error.text();
        let is_grpc = exchange.facts.spoken == Spoken::Grpc;
        if is_grpc {
            exchange.facts.status = Some(200);
            exchange.facts.grpc_status = Some(grpc);
            put(Token::Status, b"200");
            put(Token::ContentType, b"application/grpc");
            put(Token::GrpcStatus, grpc.to_string().as_bytes());
            put(Token::GrpcMessage, grpc_message(&text).as_bytes());
        } else {
            exchange.facts.status = Some(status);
            put(Token::Status, status.to_string().as_bytes());
            put(Token::ContentType, b"text/plain; charset=utf-8");
            put(
                Token::ContentLength,
                (text.len() + 1).to_string().as_bytes(),
            );
        }
        put(Token::XHeddleReason, reason.as_bytes());
        exchange.stage = Stage::Ending;
        let client = exchange.client;
        if let Some(conn) = self.conns.get_mut(client.conn) {
            // What answers HEAD has no body, whatever it says of one (RFC 9110 section 9.3.2).
            let is_all = is_grpc || exchange.head.get(Token::Method) == Some(b"HEAD");
            let then = if is_all { Then::End } else { Then::More };
            conn.codec
                .send_head(client.stream, &head, then, &mut self.heads);
            if !is_all {
                let body = format!("{text}\n");
                let data = Payload::Lent(body.as_bytes());
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
    pub(super) fn cut(&mut self, id: ExchangeId, reason: &'static str, status: u32, now: Instant) {
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
            self.abandon(id, now);
            self.arm(id, now.checked_add(LAST_WORDS));
        }
    }
}

/// How long a client may take to read why its request failed.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What matters of an endpoint's answer.
struct Answer {
    status: u16,
    grpc: Option<u32>,
    /// What the reason word of another sidecar proves.
    unseen: Option<Outcome>,
    pushback: Option<Pushback>,
}

impl Answer {
    fn read(head: &Head, is_sidecar: bool) -> Self {
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
