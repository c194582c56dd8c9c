//! Bytes into frames (RFC 9113 section 4): a frame that is whole in the input is looked at there,
//! an incomplete one is collected, DATA is passed on in the pieces in which it comes.

use std::time::Instant;

use super::{
    Connection, Role,
    fault::Fault,
    frame::{ACK, FrameHeader, HEADER_BYTES, Kind, PREFACE},
};
use crate::{
    event::{Broken, Code, Event, StreamId, Then},
    head::Heads,
    input::Input,
};

/// Where in the input a connection is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reading {
    /// In the client's preface, of which `seen` bytes have come.
    Preface { seen: usize },
    /// At a frame's header, or in a frame that is collected.
    Frame,
    /// In the body of a DATA frame.
    Body(Body),
    /// In what is not looked at: padding, and frames that are ignored.
    Skip { left: u32 },
}

/// The rest of a DATA frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) stream: u32,
    /// Of the body; at least 1.
    pub(super) left: u32,
    /// Behind it.
    pub(super) padding: u32,
    pub(super) then: Then,
}

/// A header block of which a part has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Assembling {
    pub(super) stream: u32,
    pub(super) then: Then,
    /// Until when its end is to come.
    pub(super) due: Instant,
}

impl Connection {
    /// The next event of `input`; `None` when all of it is used up. What is incomplete is kept
    /// within. Call it until it is `None`.
    ///
    /// # Errors
    /// The peer did what ends the connection. The output has a GOAWAY; it can be written, and
    /// nothing else can be done.
    pub fn receive<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let event = self.next_event(input, heads, now);
        if let Err(broken) = event {
            self.break_off(broken);
        }
        event
    }

    fn next_event<'a>(
        &mut self,
        input: &mut Input<'a>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'a>>, Broken> {
        loop {
            if let Some(event) = self.next_refused() {
                return Ok(Some(event));
            }
            if input.is_empty() {
                return Ok(None);
            }
            match self.reading {
                Reading::Preface { seen } => self.preface(seen, input)?,
                Reading::Frame => match self.frame(input, heads, now) {
                    Ok(None) => {}
                    found => return found,
                },
                Reading::Body(body) => {
                    if let Some(event) = self.body(body, input) {
                        return Ok(Some(event));
                    }
                }
                Reading::Skip { left } => {
                    let skipped = left.min(available(input));
                    input.take(skipped as usize);
                    self.skip(left - skipped);
                }
            }
        }
    }

    /// Section 3.4: the first bytes of a client.
    fn preface(&mut self, seen: usize, input: &mut Input<'_>) -> Result<(), Broken> {
        let expected = &PREFACE[seen..];
        let n = expected.len().min(input.rest().len());
        if input.take(n) != &expected[..n] {
            return Err(Broken {
                code: Code::PROTOCOL_ERROR,
                reason: "the client's preface is wrong (3.4)",
            });
        }
        self.reading = match seen + n {
            seen if seen < PREFACE.len() => Reading::Preface { seen },
            _ => Reading::Frame,
        };
        Ok(())
    }

    /// A frame that is whole in the input is taken there; another is collected first.
    fn frame(
        &mut self,
        input: &mut Input<'_>,
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Broken> {
        let in_place = input
            .rest()
            .first_chunk()
            .filter(|_| self.partial.is_empty());
        let header = match in_place {
            Some(bytes) => FrameHeader::parse(*bytes),
            None if !self.collect_to(HEADER_BYTES, input, now) => return Ok(None),
            None => {
                let bytes = self.partial.first_chunk().expect("it was collected");
                FrameHeader::parse(*bytes)
            }
        };
        if let Err(fault) = self.admit(header) {
            input.take(if in_place.is_some() { HEADER_BYTES } else { 0 });
            self.partial.clear();
            self.partial_due = None;
            self.skip(header.len);
            return self.found(fault, now);
        }
        let whole = HEADER_BYTES + header.wanted();
        let mut collected = Vec::new();
        let frame = if in_place.is_some() && input.rest().len() >= whole {
            input.take(whole)
        } else if self.collect_to(whole, input, now) {
            collected = std::mem::take(&mut self.partial);
            self.partial_due = None;
            &collected[..]
        } else {
            return Ok(None);
        };
        let event = self.take_frame(header, &frame[HEADER_BYTES..], heads, now);
        if !collected.is_empty() {
            collected.clear();
            collected.shrink_to(BUFFER_KEPT_BYTES);
            self.partial = collected;
        }
        event
    }

    fn collect_to(&mut self, len: usize, input: &mut Input<'_>, now: Instant) -> bool {
        let due = now + self.limits.block_timeout;
        self.partial_due.get_or_insert(due);
        let missing = len.saturating_sub(self.partial.len());
        let n = missing.min(input.rest().len());
        self.partial.extend_from_slice(input.take(n));
        n == missing
    }

    /// What a frame's header alone can break, so that nothing is kept of such a frame.
    fn admit(&self, header: FrameHeader) -> Result<(), Fault> {
        if !self.has_settings && (header.kind != Kind::Settings || header.has(ACK)) {
            return Err(Fault::protocol("the first frame is not SETTINGS (3.4)"));
        }
        match (self.assembling, header.kind) {
            (None, Kind::Continuation) => {
                let why = "CONTINUATION, and no header block is open (6.10)";
                return Err(Fault::protocol(why));
            }
            (Some(block), kind) if kind != Kind::Continuation || header.stream != block.stream => {
                return Err(Fault::protocol("a frame within a header block (6.10)"));
            }
            (Some(_), _)
                if self.block.len() + header.len as usize > self.limits.block_bytes_max() =>
            {
                return Err(Fault::calm("a header block over twice its limit (10.5.1)"));
            }
            (_, _) => {}
        }
        header.check(self.limits.frame_bytes_max)?;
        let are_heads_many =
            self.role == Role::Server && self.pieces.head_bytes() > self.limits.heads_bytes_max();
        if are_heads_many || self.output.len() > self.limits.output_bytes_max() {
            return Err(Fault::calm("answers are asked for and not read (10.5)"));
        }
        Ok(())
    }

    /// Takes a frame of which all that is wanted is there; the rest is skipped, or read as the
    /// body that the frame began.
    fn take_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Broken> {
        let seen = u32::try_from(payload.len()).unwrap_or(header.len);
        self.skip(header.len - seen);
        let event = match header.kind {
            Kind::Data => self.data(header, payload, now),
            Kind::Headers => self.headers(header, payload, heads, now),
            Kind::Continuation => self.continuation(header, payload, heads, now),
            Kind::RstStream => self.rst_stream(header, payload, now),
            Kind::WindowUpdate => self.window_update(header, payload, now),
            Kind::Settings => self.settings(header, payload, heads, now),
            Kind::Ping => self.ping_frame(header, payload, now),
            Kind::GoAway => self.goaway(payload, now),
            Kind::Priority | Kind::Unknown | Kind::PushPromise => {
                self.spend_idle(now).map(|()| None)
            }
        };
        event.or_else(|fault| self.found(fault, now))
    }

    /// A piece of a body, as it comes.
    fn body<'a>(&mut self, body: Body, input: &mut Input<'a>) -> Option<Event<'a>> {
        let n = body.left.min(available(input));
        let left = body.left - n;
        let Some(slot) = self.streams.find(body.stream) else {
            // It was reset since the frame began.
            self.skip(body.left + body.padding);
            return None;
        };
        let data = input.payload(n as usize);
        let then = match left {
            0 => {
                self.skip(body.padding);
                body.then
            }
            left => {
                self.reading = Reading::Body(Body { left, ..body });
                Then::More
            }
        };
        if then == Then::End {
            self.receive_ended(slot);
        }
        Some(Event::Data {
            stream: StreamId(body.stream),
            data,
            credit: n,
            then,
        })
    }

    /// Goes on behind the next `left` bytes.
    fn skip(&mut self, left: u32) {
        self.reading = match left {
            0 => Reading::Frame,
            left => Reading::Skip { left },
        };
    }
}

/// How much of the input a frame, whose length has 24 bits, can take.
fn available(input: &Input<'_>) -> u32 {
    u32::try_from(input.rest().len()).unwrap_or(u32::MAX)
}

/// Room that buffers keep between frames.
pub(super) const BUFFER_KEPT_BYTES: usize = 4 * 1024;
