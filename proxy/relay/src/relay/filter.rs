//! What may stand in an exchange's way: somebody who is asked at its turning points, and may hold
//! it up, answer in place of its endpoint, change its heads, or have it tried more than once.
//!
//! ```text
//!  Head ─► request ─► route or rules ─► sending ─► attempts ─► answer ─► commit
//!             │                            │                      │
//!             └──── Hold: until `Relay::resume`; Answer: instead of what would have come
//! ```
//!
//! What comes meanwhile waits within the windows that were given to its senders, so that whoever
//! is held up holds up its sender.

use std::{
    fmt,
    time::{Duration, Instant},
};

use heddle_policy::snapshot::ClusterName;

use super::{ExchangeId, Relay, answer, exchange::Stage};
use crate::{
    error::ProxyError, event::Then, head::Head, input::Payload, output::Output, record::Direction,
};

/// Somebody who is asked. Calls that it makes of others are its own; it answers with
/// [`super::Relay::resume`] when it has said [`Verdict::Hold`].
pub trait Filter: fmt::Debug {
    /// A request has been read, and will be judged and routed by what `head` then says.
    fn request(&mut self, _id: ExchangeId, _head: &mut Head) -> Verdict {
        Verdict::Pass
    }

    /// A request will be sent for the first time.
    fn sending(&mut self, _id: ExchangeId, _head: &mut Head) -> Verdict {
        Verdict::Pass
    }

    /// What is made of a request that is sent, beside its one attempt at a time.
    fn plan(&mut self, _id: ExchangeId) -> Plan {
        Plan::default()
    }

    /// An answer will be forwarded.
    fn answer(&mut self, _id: ExchangeId, _head: &mut Head) -> Verdict {
        Verdict::Pass
    }

    /// Trailers will be forwarded: of the request, or of the answer.
    fn trailers(&mut self, _id: ExchangeId, _of: Message, _head: &mut Head) {}
}

/// What is to become of an exchange.
#[derive(Debug)]
pub enum Verdict {
    /// It goes on.
    Pass,
    /// It waits, at most until its deadline.
    Hold,
    /// It ends with this answer.
    Answer(Box<Answer>),
}

/// An answer that no endpoint gave.
#[derive(Debug)]
pub struct Answer {
    /// With `:status`, and without a length.
    pub head: Head,
    /// What follows it.
    pub body: Vec<u8>,
}

/// See [`Filter::plan`].
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Outbound: who is sent a copy, and whose answer nobody waits for. A copy that is slower than
    /// the request by more than a replay holds is given up.
    pub mirror: Option<ClusterName>,
    /// Outbound: when there is no answer after so long, another endpoint is tried beside; the
    /// first answer counts, and the other attempt is cancelled. Only while the request can be sent
    /// again as a whole.
    pub hedge_after: Option<Duration>,
}

/// One of the two messages of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The client's.
    Request,
    /// The endpoint's.
    Answer,
}

/// Where an exchange is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Request,
    Sending,
    Answer,
}

/// An answer that a filter holds, and what has come of its body.
#[derive(Debug)]
pub(super) struct Pending {
    head: Head,
    is_sidecar: bool,
    then: Then,
    /// At most what the endpoint's window lets come.
    body: Output,
    trailers: Option<Head>,
    is_whole: bool,
}

impl Pending {
    /// A piece of the body.
    pub(super) fn push(&mut self, data: Payload<'_>, then: Then) {
        self.body.push(data);
        self.is_whole = then == Then::End;
    }

    /// The end of the body.
    pub(super) fn end(&mut self, trailers: Head) {
        self.trailers = Some(trailers);
        self.is_whole = true;
    }

    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Bytes that it keeps.
    pub(super) fn kept_bytes(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, Head::memory_bytes);
        self.head.memory_bytes() + self.body.len() + trailers
    }
}

impl Relay {
    /// Goes on with an exchange that a filter holds. Nothing happens when it is not held any more.
    pub fn resume(&mut self, id: ExchangeId, verdict: Verdict, now: Instant) {
        let Some(Stage::Held(point)) = self.exchanges.get(id).map(|exchange| exchange.stage) else {
            return;
        };
        if !self.heed(id, point, verdict, now) {
            return self.charge_exchange(id);
        }
        match point {
            Point::Request => {
                self.exchanges[id].stage = Stage::Looking;
                self.direct(id, now);
            }
            Point::Sending => {
                if let Err(error) = self.begin_attempts(id, now) {
                    self.fail(id, &error, now);
                }
            }
            Point::Answer => self.commit_pending(id, now),
        }
        self.charge_exchange(id);
    }

    /// Whether a request may be judged and routed at once.
    pub(super) fn may_pass(&mut self, id: ExchangeId, now: Instant) -> bool {
        let Some(filter) = &mut self.filter else {
            return true;
        };
        let exchange = &mut self.exchanges[id];
        let verdict = filter.request(id, &mut exchange.head);
        let paths = self.settings.terms.paths;
        let (version, head) = (exchange.version, &mut exchange.head);
        let request = exchange.request.as_mut();
        // What it has changed is judged in its one form too.
        if let Some(Err(error)) = request.map(|request| request.read_again(head, version, paths)) {
            self.fail(id, &error, now);
            return false;
        }
        self.heed(id, Point::Request, verdict, now)
    }

    /// Before the first attempt.
    pub(super) fn ask_before_sending(
        &mut self,
        id: ExchangeId,
        now: Instant,
    ) -> Result<(), ProxyError> {
        let exchange = &mut self.exchanges[id];
        let verdict = match &mut self.filter {
            Some(filter) => filter.sending(id, &mut exchange.head),
            None => Verdict::Pass,
        };
        match self.heed(id, Point::Sending, verdict, now) {
            true => self.begin_attempts(id, now),
            false => Ok(()),
        }
    }

    fn begin_attempts(&mut self, id: ExchangeId, now: Instant) -> Result<(), ProxyError> {
        let plan = self.filter.as_mut().map(|filter| filter.plan(id));
        let plan = plan.unwrap_or_default();
        let exchange = &mut self.exchanges[id];
        if exchange.facts.direction == Direction::Inbound {
            let freshness = self.freshness(id);
            self.connect(id, freshness, now);
            return Ok(());
        }
        exchange.hedge_at = plan.hedge_after.and_then(|after| now.checked_add(after));
        if let Some(cluster) = &plan.mirror {
            self.mirror(id, cluster, now);
        }
        self.attempt(id, now)
    }

    /// Whether an answer may be forwarded at once.
    pub(super) fn may_commit(
        &mut self,
        id: ExchangeId,
        head: &mut Head,
        is_sidecar: bool,
        then: Then,
        now: Instant,
    ) -> bool {
        let Some(filter) = &mut self.filter else {
            return true;
        };
        let verdict = filter.answer(id, head);
        if let Verdict::Hold = verdict {
            let head = self.heads.copy(head);
            self.exchanges[id].pending = Some(Box::new(Pending {
                head,
                is_sidecar,
                then,
                body: Output::default(),
                trailers: None,
                is_whole: then == Then::End,
            }));
        }
        self.heed(id, Point::Answer, verdict, now)
    }

    /// Does what the verdict says; whether the exchange goes on.
    fn heed(&mut self, id: ExchangeId, point: Point, verdict: Verdict, now: Instant) -> bool {
        match verdict {
            Verdict::Pass => true,
            Verdict::Hold => {
                self.exchanges[id].stage = Stage::Held(point);
                self.arm(id, None);
                false
            }
            Verdict::Answer(answer) => {
                let Answer { head, body } = *answer;
                self.answer_here(id, head, &body, now);
                false
            }
        }
    }

    fn commit_pending(&mut self, id: ExchangeId, now: Instant) {
        let Some(pending) = self.exchanges[id].pending.take() else {
            return;
        };
        let Pending {
            head,
            is_sidecar,
            then,
            body,
            trailers,
            is_whole,
        } = *pending;
        let answer = answer::Answer::read(&head, is_sidecar);
        self.commit(id, &head, &answer, then, now);
        self.heads.give(head);
        let mut left = body.len();
        for payload in body.payloads() {
            left -= payload.len();
            let is_last = left == 0 && is_whole && trailers.is_none();
            let then = if is_last { Then::End } else { Then::More };
            self.download(id, payload, then, now);
        }
        match trailers {
            Some(trailers) => self.download_trailers(id, trailers, now),
            None if is_whole && then == Then::More && body.is_empty() => {
                self.download(id, Payload::Lent(b""), Then::End, now);
            }
            None => {}
        }
    }
}
