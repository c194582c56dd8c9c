//! What comes, and the events that it makes.

use std::time::Instant;

use bytes::Bytes;

use super::{
    Connection, Ending, Malformed, Reading, Role, Writing,
    chunked::{Chunked, Next},
    fault::Fault,
    hop::{Framing, Method},
    parse::{self, Answer, Request},
};
use crate::{
    event::{By, Code, Event, Then},
    head::{Head, Heads},
    input::{Input, Payload},
    token::Token,
};

/// What a look at the input came to.
#[derive(Debug)]
enum Step<'a> {
    /// There is something to tell.
    Event(Event<'a>),
    /// Another look is needed.
    Again,
    /// More input is needed, or someone's leave to take it.
    More,
}

/// A head that came.
#[derive(Debug)]
enum Parsed {
    Request(Request),
    Answer(Answer),
}

impl Connection {
    /// The next event of what came; `None` when nothing more can be made of it. What is incomplete
    /// is kept within; what the limits leave no room for stays in `input`, see [`Self::room`].
    ///
    /// # Errors
    /// [`Malformed`] once; then nothing comes any more, and what is handed in is thrown away.
    pub fn receive<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Malformed> {
        // Ends: each turn takes bytes, or goes on to what follows in the message.
        loop {
            let step = match self.reading {
                Reading::Head => self.receive_head(input, heads, now),
                Reading::Length(left) => Ok(self.receive_length(input, left)),
                Reading::Chunked(_) => self.receive_chunks(input),
                Reading::Trailers => self.receive_trailers(input, heads),
                Reading::UntilClose | Reading::Raw => Ok(self.receive_rest(input)),
                Reading::Done | Reading::Ended => Ok(self.receive_ahead(input)),
            };
            match step {
                Ok(Step::Event(event)) => return Ok(Some(event)),
                Ok(Step::Again) => {}
                Ok(Step::More) if self.is_at_end => return self.receive_end(),
                Ok(Step::More) => return Ok(None),
                // Nobody is there any more who would want to know.
                Err(_) if self.discards.is_some() => self.finish(),
                Err(fault) => return Err(self.broken(fault)),
            }
        }
    }

    /// The other side has ended its direction in order: what that means is told by
    /// [`Self::receive`]. Over TLS that is a `close_notify`; without one, whoever drives knows
    /// that the connection broke.
    pub fn ended(&mut self) {
        self.is_at_end = true;
    }

    fn receive_head<'a>(
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
        const NOT_WHOLE: Fault = Fault::bad("the head is not whole");
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

    fn parse(&self, bytes: &[u8], head: &mut Head) -> Result<Option<(usize, Parsed)>, Fault> {
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

    fn receive_length<'a>(&mut self, input: &mut Input<'a>, left: u64) -> Step<'a> {
        let Some(data) = self.piece(input, left) else {
            return Step::More;
        };
        let left = left - data.len() as u64;
        self.reading = Reading::Length(left);
        self.data(data, if left == 0 { Then::End } else { Then::More })
    }

    fn receive_chunks<'a>(&mut self, input: &mut Input<'a>) -> Result<Step<'a>, Fault> {
        let Reading::Chunked(mut chunked) = self.reading else {
            return Ok(Step::Again);
        };
        let (used, next) = chunked.read(self.ahead(input), &self.limits)?;
        self.advance(input, used);
        self.reading = Reading::Chunked(chunked);
        match next {
            Next::Framing if used == 0 => Ok(Step::More),
            Next::Framing => Ok(Step::Again),
            Next::Trailers => {
                self.reading = Reading::Trailers;
                self.kept.begin_section_of_lines();
                Ok(Step::Again)
            }
            Next::Data(size) => {
                let Some(data) = self.piece(input, size) else {
                    return Ok(Step::More);
                };
                chunked.took(data.len() as u64);
                self.reading = Reading::Chunked(chunked);
                // Often it is here already: then the end needs no event of its own.
                let is_last = chunked.is_behind_data() && self.ahead(input).starts_with(LAST_CHUNK);
                if is_last {
                    self.advance(input, LAST_CHUNK.len());
                }
                Ok(self.data(data, if is_last { Then::End } else { Then::More }))
            }
        }
    }

    fn receive_trailers<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
    ) -> Result<Step<'a>, Fault> {
        const EMPTY_LINE: &[u8] = b"\r\n";
        const TOO_LONG: Fault = Fault::too_large("the trailers are too long");
        if self.kept.is_empty() && input.rest().starts_with(EMPTY_LINE) {
            input.take(EMPTY_LINE.len());
            self.kept.clear();
            return Ok(self.data(Payload::Lent(b""), Then::End));
        }
        let bytes_max = self.limits.trailer_bytes_max as usize;
        let Some(n) = self.kept.section(input, bytes_max) else {
            let is_over = self.kept.rest().len() >= bytes_max;
            return if is_over {
                Err(TOO_LONG)
            } else {
                Ok(Step::More)
            };
        };
        if n > bytes_max {
            return Err(TOO_LONG);
        }
        let section = &self.kept.rest()[..n];
        if section == EMPTY_LINE {
            self.kept.advance(n);
            return Ok(self.data(Payload::Lent(b""), Then::End));
        }
        let mut head = heads.take();
        let parsed = parse::trailers(section, &self.limits, &mut head);
        self.kept.advance(n);
        if parsed.is_err() || self.discards.is_some() {
            heads.give(head);
            parsed?;
            self.received();
            return Ok(Step::Again);
        }
        let stream = self.stream;
        self.received();
        Ok(Step::Event(Event::Trailers { stream, head }))
    }

    fn receive_rest<'a>(&mut self, input: &mut Input<'a>) -> Step<'a> {
        match self.piece(input, u64::MAX) {
            Some(data) => self.data(data, Then::More),
            None => Step::More,
        }
    }

    /// What comes behind a message waits for the end of the exchange, if another can follow or it
    /// may become a tunnel; else it is nothing.
    fn receive_ahead<'a>(&mut self, input: &mut Input<'a>) -> Step<'a> {
        let is_wanted = self.persists || self.asked.is_some() || self.method == Method::Connect;
        if self.reading == Reading::Done && is_wanted {
            self.kept.fill(input, self.limits.ahead_bytes_max as usize);
        } else {
            self.kept.clear();
            input.take(input.rest().len());
        }
        Step::More
    }

    /// What the end of input means where we are.
    fn receive_end(&mut self) -> Result<Option<Event<'static>>, Malformed> {
        let stream = self.stream;
        let ended = Event::Data {
            stream,
            data: Payload::Lent(b""),
            credit: 0,
            then: Then::End,
        };
        match self.reading {
            // They end with the connection, once what is kept of them has been told.
            Reading::UntilClose | Reading::Raw if !self.kept.is_empty() => Ok(None),
            Reading::UntilClose => {
                self.received();
                Ok(Some(ended))
            }
            Reading::Raw => {
                self.reading = Reading::Ended;
                if self.writing == Writing::RawEnded {
                    self.finish();
                }
                Ok(Some(ended))
            }
            Reading::Length(_) | Reading::Chunked(_) if !self.kept.is_empty() => Ok(None),
            Reading::Head if !self.kept.is_empty() => {
                // It may have been wrong as far as it came.
                let parsed = self.parse(self.kept.rest(), &mut Head::new());
                match (parsed, self.role) {
                    (Err(fault), _) => Err(self.broken(fault)),
                    (Ok(_), Role::Server) => {
                        Err(self.broken(Fault::bad("the connection ended inside the head")))
                    }
                    (Ok(_), Role::Client) => Ok(self.lost()),
                }
            }
            Reading::Head if self.writing == Writing::Idle => {
                self.finish();
                Ok(None)
            }
            Reading::Ended => Ok(None),
            Reading::Head
            | Reading::Length(_)
            | Reading::Chunked(_)
            | Reading::Trailers
            | Reading::Done => Ok(self.lost()),
        }
    }

    /// The other side is gone before the end of the exchange.
    fn lost(&mut self) -> Option<Event<'static>> {
        // A client gave up. An endpoint's answer is incomplete (RFC 9112 section 8), unless it had
        // not begun.
        let is_incomplete =
            self.role == Role::Client && self.is_answered() && self.reading != Reading::Done;
        let code = if is_incomplete {
            Code::PROTOCOL_ERROR
        } else {
            Code::CANCEL
        };
        let is_told = self.discards.is_none() && self.writing != Writing::Idle;
        let stream = self.stream;
        self.give_up();
        let by = By::Peer;
        is_told.then_some(Event::Reset { stream, code, by })
    }

    /// `fault` came: nothing behind it can be understood.
    fn broken(&mut self, fault: Fault) -> Malformed {
        let Fault { status, reason } = fault;
        if self.role == Role::Client {
            self.abort();
            return Malformed {
                status: 502,
                reason,
                answer: None,
            };
        }
        self.persists = false;
        if self.reading == Reading::Head {
            self.begin(Method::Other, None);
            self.writing = Writing::Head;
        }
        let (stream, writing) = (self.stream, self.writing);
        self.give_up();
        if writing != Writing::Head {
            return Malformed {
                status,
                reason,
                answer: None,
            };
        }
        self.writing = writing;
        Malformed {
            status,
            reason,
            answer: Some(stream),
        }
    }

    /// Ends the connection: in order, unless what was sent could pass for a whole message.
    pub(super) fn give_up(&mut self) {
        let is_whole = match self.writing {
            Writing::Idle | Writing::Head => true,
            Writing::Done | Writing::Nothing => self.role == Role::Server,
            Writing::Length(_)
            | Writing::Chunked
            | Writing::UntilClose
            | Writing::Raw
            | Writing::RawEnded => false,
        };
        self.stop(if is_whole {
            Ending::Finishing
        } else {
            Ending::Aborted
        });
    }

    /// What is to be looked at next.
    fn ahead<'i>(&'i self, input: &Input<'i>) -> &'i [u8] {
        if self.kept.is_empty() {
            input.rest()
        } else {
            self.kept.rest()
        }
    }

    fn advance(&mut self, input: &mut Input<'_>, n: usize) {
        if self.kept.is_empty() {
            input.take(n);
        } else {
            self.kept.advance(n);
        }
    }

    /// The next piece of a body, `max` bytes at most. `None` when none came, or the window is used
    /// up; what came waits then.
    fn piece<'a>(&mut self, input: &mut Input<'a>, max: u64) -> Option<Payload<'a>> {
        let window = self.discards.map_or(self.window, |_| u32::MAX);
        let max = window.min(u32::try_from(max).unwrap_or(u32::MAX)) as usize;
        let n = self.ahead(input).len().min(max);
        if n == 0 {
            self.kept.fill(input, self.limits.ahead_bytes_max as usize);
            return None;
        }
        self.is_awaited = false;
        if self.kept.is_empty() {
            return Some(input.payload(n));
        }
        let data = Bytes::copy_from_slice(&self.kept.rest()[..n]);
        self.kept.advance(n);
        Some(Payload::Shared(data))
    }

    /// Tells of a piece of a body, unless nobody wants to know.
    fn data<'a>(&mut self, data: Payload<'a>, then: Then) -> Step<'a> {
        let stream = self.stream;
        let credit = u32::try_from(data.len()).expect("no piece is larger than the window");
        let step = if let Some(left) = self.discards {
            let Some(left) = left.checked_sub(credit) else {
                self.finish();
                return Step::Again;
            };
            self.discards = Some(left);
            Step::Again
        } else {
            self.window -= credit;
            Step::Event(Event::Data {
                stream,
                data,
                credit,
                then,
            })
        };
        if then == Then::End {
            self.received();
        }
        step
    }
}

/// The end of a chunk, the last chunk, and no trailers.
const LAST_CHUNK: &[u8] = b"\r\n0\r\n\r\n";
