//! The head of a message, and what it makes of the connection.

use std::time::Instant;

use super::Step;
use crate::{
    event::{Event, Then},
    h1::{
        Connection, Reading, Role, Writing,
        chunked::Chunked,
        fault::Fault,
        hop::{Framing, Method},
        parse::{self, Answer, Request},
    },
    head::{Head, Heads},
    input::Input,
    token::Token,
};

/// A head that came.
#[derive(Debug)]
pub(super) enum Parsed {
    Request(Request),
    Answer(Answer),
}

impl Connection {
    pub(super) fn receive_head<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Step<'a>, Fault> {
        match self.role {
            Role::Server => self.skip_empty_lines(input),
            Role::Client if self.writing == Writing::Idle && !self.ahead(input).is_empty() => {
                // RFC 9112 section 9.2.
                return Err(Fault::bad("bytes came that answer no request"));
            }
            Role::Client => {}
        }
        if self.ahead(input).is_empty() {
            self.head_began = None;
            return Ok(Step::More);
        }
        let head_max = self.limits.head_bytes_max as usize;
        let mut head = heads.take();
        let parsed = if self.kept.is_empty() {
            let parsed = self.parse(input.rest(), &mut head);
            match parsed {
                Ok(Some((used, _))) => {
                    input.take(used);
                    parsed
                }
                Ok(None) if self.kept.section(input, head_max).is_some() => Err(NOT_WHOLE),
                Ok(None) | Err(_) => parsed,
            }
        } else if let Some(n) = self.kept.section(input, head_max) {
            let parsed = self.parse(&self.kept.rest()[..n], &mut head);
            self.kept.advance(n);
            parsed.and_then(|parsed| parsed.map(Some).ok_or(NOT_WHOLE))
        } else if self.kept.is_worth_a_look() || self.kept.rest().len() >= head_max {
            self.parse(self.kept.rest(), &mut head)
        } else {
            Ok(None)
        };
        match parsed {
            Ok(Some((used, parsed))) => {
                self.head_began = None;
                self.head_came(parsed, used, head)
            }
            Ok(None) => {
                heads.give(head);
                self.head_began.get_or_insert(now);
                Ok(Step::More)
            }
            Err(fault) => {
                heads.give(head);
                Err(fault)
            }
        }
    }

    pub(super) fn parse(
        &self,
        bytes: &[u8],
        head: &mut Head,
    ) -> Result<Option<(usize, Parsed)>, Fault> {
        match self.role {
            Role::Server => {
                let parsed = parse::request(bytes, &self.limits, head)?;
                Ok(parsed.map(|(used, request)| (used, Parsed::Request(request))))
            }
            Role::Client => {
                let parsed = parse::answer(bytes, &self.limits, self.asked.as_deref(), head)?;
                Ok(parsed.map(|(used, answer)| (used, Parsed::Answer(answer))))
            }
        }
    }

    /// Those before a request (RFC 9112 section 2.2): some clients end a body with one.
    fn skip_empty_lines(&mut self, input: &mut Input<'_>) {
        loop {
            if self.kept.rest() == b"\r" {
                self.kept.fill(input, 2);
            }
            if !self.ahead(input).starts_with(b"\r\n") {
                return;
            }
            self.advance(input, 2);
        }
    }

    fn head_came<'a>(
        &mut self,
        parsed: Parsed,
        used: usize,
        head: Head,
    ) -> Result<Step<'a>, Fault> {
        match parsed {
            Parsed::Request(request) => Ok(self.request_came(request, head)),
            Parsed::Answer(answer) => self.answer_came(&answer, used, head),
        }
    }

    fn request_came<'a>(&mut self, request: Request, head: Head) -> Step<'a> {
        self.begin(request.method, request.upgrade);
        self.hop = request.hop;
        self.persists = request.persists;
        self.writing = Writing::Head;
        let then = self.begin_body(request.framing);
        self.is_awaited = self.hop.expects_continue && then == Then::More;
        Step::Event(Event::Head {
            stream: self.stream,
            head,
            then,
        })
    }

    fn answer_came<'a>(
        &mut self,
        answer: &Answer,
        used: usize,
        mut head: Head,
    ) -> Result<Step<'a>, Fault> {
        let stream = self.stream;
        let (status, method) = (answer.status, self.method);
        let is_tunnel = method == Method::Connect && matches!(status, 200..=299);
        if is_tunnel || status < 200 || status == 204 {
            // RFC 9110 section 8.6: there it means nothing.
            head.retain(|field| field.token != Token::ContentLength);
        }
        if (100..200).contains(&status) && status != 101 {
            self.interim_bytes += u32::try_from(used).unwrap_or(u32::MAX);
            if self.interim_bytes > self.limits.interim_bytes_max {
                return Err(Fault::bad("there are too many interim answers"));
            }
            return Ok(Step::Event(Event::Interim { stream, head }));
        }
        if status == 101 && (!answer.switches || self.writing != Writing::Done) {
            return Err(Fault::bad(
                "it switches to a protocol that was not asked for",
            ));
        }
        self.hop = answer.hop;
        self.persists &= answer.persists;
        if is_tunnel || status == 101 {
            self.hop.ends_by_closing = false;
            self.begin_tunnel();
            let then = Then::More;
            return Ok(Step::Event(Event::Head { stream, head, then }));
        }
        let has_none = method == Method::Head || matches!(status, 204 | 304);
        let framing = if has_none {
            Framing::Nothing
        } else {
            answer.framing
        };
        self.hop.ends_by_closing = framing == Framing::UntilClose;
        let then = self.begin_body(framing);
        Ok(Step::Event(Event::Head { stream, head, then }))
    }

    fn begin_body(&mut self, framing: Framing) -> Then {
        self.reading = match framing {
            Framing::Nothing | Framing::Length(0) => {
                self.received();
                return Then::End;
            }
            Framing::Length(left) => Reading::Length(left),
            Framing::Chunked => Reading::Chunked(Chunked::new()),
            Framing::UntilClose => {
                self.persists = false;
                Reading::UntilClose
            }
        };
        Then::More
    }
}

/// What ends a head did not make it one: empty lines before it, in pieces.
const NOT_WHOLE: Fault = Fault::bad("the head is not whole");
