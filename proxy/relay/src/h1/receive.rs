//! What comes, and the events that it makes.

mod end;
mod head;

use std::time::Instant;

use bytes::Bytes;

use super::{Connection, Malformed, Reading, chunked::Next, fault::Fault, hop::Method, parse};
use crate::{
    event::{Event, Then},
    head::Heads,
    input::{Input, Payload},
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
