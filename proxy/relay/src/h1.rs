//! HTTP/1.1 (RFC 9112), and 1.0 where others speak it: one connection, either side of it.
//!
//! One exchange at a time. Its two directions end for themselves; when both have, the connection
//! waits for the next, or ends.
//!
//! ```text
//!                    ┌──────────────── the next ────────────────┐
//! what comes:        ▼                                          │
//!   Head ──► Length, Chunked ─► Trailers, UntilClose ──► Done ──┤ both done
//! what goes:                                                    │
//!   Idle ──► Head ──► Nothing, Length, Chunked, UntilClose ► Done
//!    both after 101, or 2xx to CONNECT: Raw ──► RawEnded
//! ```
//!
//! Events and heads are those of HTTP/2. What belongs to the connection is taken from heads that
//! come (`connection` and what it names, `transfer-encoding`, `keep-alive`, ...) and written into
//! those that go; [`Hop`] says what there is no field for, and [`Form`] how it is to be said again. A request for an upgrade has
//! `:protocol`, and so has the 101 that grants it; `:method` is the client's own. Its message is
//! over where HTTP/1.1 says so (`Then::End`); the 101 makes both directions open again, for bytes.
//!
//! # Flow
//!
//! Of a body no more comes as events than the window, which `release` refills;
//! [`Connection::room`] says how much a driver may read. What is sent is all taken, and counts as
//! gone while the output is short; what has waited is told by [`Connection::next_written`].
//!
//! # Strictness
//!
//! Refused, since servers on the way may read it another way: several `Content-Length`, also equal
//! ones, or several `Host`; another transfer coding than one `chunked`; bare CR or LF in heads and
//! chunk lines; folded lines; white space before a colon or around a chunk's size. One case is
//! let through in its safe form: with `Transfer-Encoding` beside `Content-Length` the coding counts,
//! the length is dropped, and the connection ends behind the answer (RFC 9112 section 6.1).
//!
//! No request is answered with 411 (one without a length has no body, RFC 9112 section 6.3) nor
//! with 417: what else than 100 a client may expect is for its server to judge.

mod chunked;
mod fault;
mod fields;
mod hop;
mod kept;
mod limits;
mod parse;
mod receive;
mod send;
mod target;
mod write;

#[cfg(test)]
mod tests;

use std::time::Instant;

use self::{chunked::Chunked, fault::Fault, hop::Method, kept::Kept};
pub use self::{
    fault::Malformed,
    hop::{Form, Hop, Version},
    limits::{FIELDS_MAX, Limits},
    send::Refusal,
};
use crate::{event::StreamId, output::Output};

/// One HTTP/1.1 connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    limits: Limits,
    reading: Reading,
    writing: Writing,
    /// The exchange under way, or the last one.
    stream: StreamId,
    /// Of its request.
    method: Method,
    /// What its request asks to switch to.
    asked: Option<Box<[u8]>>,
    /// Of the head that came last.
    hop: Hop,
    /// Whether another exchange may follow this one.
    persists: bool,
    /// No other exchange may follow, because of whoever relays.
    is_leaving: bool,
    /// A server's: the client does not send its body before it is told to.
    is_awaited: bool,
    /// A server's: nobody wants the rest of the request; so many bytes of it may still come.
    discards: Option<u32>,
    /// Of this exchange.
    interim_bytes: u32,
    /// Bytes of the body that comes which may still be told.
    window: u32,
    /// The message that went ends with the connection.
    ends_by_closing: bool,
    /// Bytes of the body that goes which have been taken and wait for the output to get short.
    waiting: u32,
    /// Those that have waited, until they are told as gone.
    written: u32,
    kept: Kept,
    /// When the first byte came of a head that is not whole.
    head_began: Option<Instant>,
    /// The other side has ended its direction; what that means may not have been told yet.
    is_at_end: bool,
    end: Ending,
    output: Output,
}

/// Which side of a connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Requests come.
    Server,
    /// Requests go.
    Client,
}

/// Whether a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It goes on.
    Open,
    /// Nothing is written behind the output, so our direction can be shut; what comes is read on.
    /// Only of tunnels.
    HalfClosed,
    /// It ends in order once the output is written: shut our direction, then read until the other
    /// side ends too, for a bounded time, and close. Else what it still sends makes the kernel
    /// destroy what it has not read yet (RFC 9112 section 9.6).
    Finishing,
    /// It is reset at once: what was sent must not pass for a whole message.
    Aborted,
}

/// What is expected to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// A head. To a client without an exchange: nothing.
    Head,
    /// So many bytes of a body.
    Length(u64),
    /// Chunks.
    Chunked(Chunked),
    /// What follows the last chunk.
    Trailers,
    /// A body until the end of the connection.
    UntilClose,
    /// The message is over. What comes waits for the end of the exchange.
    Done,
    /// Bytes of a tunnel.
    Raw,
    /// Nothing any more; what comes is thrown away.
    Ended,
}

/// What is expected to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writing {
    /// There is no exchange.
    Idle,
    /// A server's: an answer's head, interim or final.
    Head,
    /// No bytes, though an end.
    Nothing,
    /// So many bytes of a body.
    Length(u64),
    /// Chunks.
    Chunked,
    /// A body until the end of the connection.
    UntilClose,
    /// The message is over.
    Done,
    /// Bytes of a tunnel.
    Raw,
    /// The tunnel's direction has been ended.
    RawEnded,
}

impl Connection {
    /// A new one, on which nothing has come or gone.
    pub fn new(role: Role, limits: &Limits) -> Self {
        Self {
            role,
            limits: *limits,
            reading: Reading::Head,
            writing: Writing::Idle,
            stream: BEFORE_THE_FIRST,
            method: Method::Other,
            asked: None,
            hop: Hop::default(),
            persists: true,
            is_leaving: false,
            is_awaited: false,
            discards: None,
            interim_bytes: 0,
            window: limits.window,
            ends_by_closing: false,
            waiting: 0,
            written: 0,
            kept: Kept::default(),
            head_began: None,
            is_at_end: false,
            end: Ending::Open,
            output: Output::default(),
        }
    }

    /// The exchange under way is the last; without one the connection ends. A server says so in its
    /// answer, unless that has begun.
    pub fn goodbye(&mut self) {
        self.is_leaving = true;
        if self.is_idle() || self.discards.is_some() {
            self.finish();
        }
    }

    /// Gives back `credit` bytes of window of events that have been dealt with.
    pub fn release(&mut self, stream: StreamId, credit: u32) {
        if self.is_current(stream) {
            let window = self.window.saturating_add(credit);
            self.window = window.min(self.limits.window);
        }
    }

    /// What is to be sent.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Whether the connection ends, and how.
    pub fn ending(&self) -> Ending {
        let is_half = self.writing == Writing::RawEnded;
        if self.end == Ending::Open && is_half {
            Ending::HalfClosed
        } else {
            self.end
        }
    }

    /// How many bytes a driver may hand in at once: 0 while nobody takes them. What it hands in
    /// beyond may stay in the input.
    pub fn room(&self) -> usize {
        let ahead = self.limits.ahead_bytes_max as usize;
        match self.reading {
            Reading::Head | Reading::Trailers if self.kept.is_news() => 0,
            Reading::Head | Reading::Trailers | Reading::Ended => ahead,
            // With something kept the end of input would not be seen anyway before it is used.
            Reading::Done if self.kept.is_empty() => ahead,
            Reading::Length(_) | Reading::Chunked(_) | Reading::UntilClose | Reading::Raw
                if self.kept.is_empty() =>
            {
                let window = self.discards.map_or(self.window, |_| u32::MAX);
                ahead.min(window as usize)
            }
            Reading::Done
            | Reading::Length(_)
            | Reading::Chunked(_)
            | Reading::UntilClose
            | Reading::Raw => 0,
        }
    }

    /// Whether [`Self::receive`] has something to do without more input: after the end of an
    /// exchange, a release, or the end of input.
    pub fn is_ready(&self) -> bool {
        let has_more = match self.reading {
            Reading::Head | Reading::Trailers => self.kept.is_news(),
            Reading::Length(_) | Reading::Chunked(_) | Reading::UntilClose | Reading::Raw => {
                !self.kept.is_empty() && (self.window > 0 || self.discards.is_some())
            }
            Reading::Done => false,
            Reading::Ended => return false,
        };
        // What is kept of a body comes before the end.
        let is_end = match self.reading {
            Reading::Length(_) | Reading::Chunked(_) | Reading::UntilClose | Reading::Raw => {
                self.is_at_end && self.kept.is_empty()
            }
            Reading::Head | Reading::Trailers | Reading::Done | Reading::Ended => self.is_at_end,
        };
        has_more || is_end
    }

    /// By when the head that has begun to come has to be whole. A connection without one may wait
    /// for long: that is for whoever relays to bound, and so is the wait for an answer.
    pub fn deadline(&self) -> Option<Instant> {
        let began = self.head_began.filter(|_| self.role == Role::Server);
        began.and_then(|began| began.checked_add(self.limits.head_timeout))
    }

    /// What is wrong at `now` with what has not come by [`Self::deadline`].
    ///
    /// # Errors
    /// [`Malformed`] with 408, as [`Self::receive`] does. Who sends half a head mostly waits for no
    /// answer.
    pub fn expire(&mut self, now: Instant) -> Result<(), Malformed> {
        let is_late = self.deadline().is_some_and(|deadline| now >= deadline);
        if is_late {
            Err(self.broken(Fault::LATE))
        } else {
            Ok(())
        }
    }

    /// Whether there is no exchange, and none has begun to come.
    pub fn is_idle(&self) -> bool {
        self.writing == Writing::Idle && self.kept.is_empty()
    }

    /// A client's: whether an exchange can be opened.
    pub fn can_open(&self) -> bool {
        self.role == Role::Client
            && self.is_idle()
            && self.reading == Reading::Head
            && !self.is_leaving
            && !self.is_at_end
    }

    /// A client's: whether anything of an answer to the exchange under way has come.
    pub fn is_answered(&self) -> bool {
        self.reading != Reading::Head || !self.kept.is_empty() || self.interim_bytes > 0
    }

    /// Whether bytes pass instead of messages.
    pub fn is_tunnel(&self) -> bool {
        matches!(self.writing, Writing::Raw | Writing::RawEnded)
    }

    /// What the last head that came said beside its fields.
    pub fn hop(&self) -> Hop {
        self.hop
    }

    /// Gives back memory that a connection at rest does not need.
    pub fn shrink(&mut self) {
        self.kept.shrink();
        self.output.shrink();
    }

    /// Bytes that it keeps of what has come or is to be sent.
    pub fn kept_bytes(&self) -> usize {
        self.kept.memory_bytes() + self.output.len()
    }

    /// Bytes of memory that it takes, its output included.
    pub fn memory_bytes(&self) -> usize {
        let asked = self.asked.as_ref().map_or(0, |asked| asked.len());
        size_of::<Self>() + self.kept.memory_bytes() + asked + self.output.memory_bytes()
    }

    /// Whether `stream` is the exchange under way.
    fn is_current(&self, stream: StreamId) -> bool {
        stream == self.stream && self.writing != Writing::Idle && self.discards.is_none()
    }

    /// Begins the next exchange.
    fn begin(&mut self, method: Method, asked: Option<Box<[u8]>>) {
        // Only one is there at a time, so numbers may come again.
        self.stream = StreamId(self.stream.0.wrapping_add(2));
        self.method = method;
        self.asked = asked;
        self.is_awaited = false;
        self.interim_bytes = 0;
        self.window = self.limits.window;
        self.waiting = 0;
        self.written = 0;
    }

    /// The message that comes is over.
    fn received(&mut self) {
        if self.reading != Reading::Ended {
            self.reading = Reading::Done;
            self.settle();
        }
    }

    /// The message that goes is over.
    fn sent(&mut self) {
        self.ends_by_closing = self.writing == Writing::UntilClose;
        self.writing = Writing::Done;
        self.settle();
    }

    /// When both messages are over, so is the exchange. A server's is not before its answer has
    /// gone: a client that asks for more and reads nothing would have us keep all the answers.
    fn settle(&mut self) {
        if !self.has_gone() {
            return;
        }
        match (self.reading, self.writing) {
            (_, Writing::Done) if self.ends_by_closing => self.finish(),
            (Reading::Ended, Writing::RawEnded) => self.finish(),
            (Reading::Done, Writing::Done) if self.persists && !self.is_leaving => {
                self.discards = None;
                self.reading = Reading::Head;
                self.writing = Writing::Idle;
            }
            (Reading::Done, Writing::Done) => self.finish(),
            (_, _) => {}
        }
    }

    /// Whether what was sent of the exchange is all gone, or near it.
    fn has_gone(&self) -> bool {
        let is_short = self.output.len() <= self.limits.output_bytes;
        self.role == Role::Client || (self.waiting == 0 && self.written == 0 && is_short)
    }

    /// Ends the connection in order.
    fn finish(&mut self) {
        self.stop(Ending::Finishing);
    }

    /// Ends the connection in the middle of something.
    fn abort(&mut self) {
        self.stop(Ending::Aborted);
    }

    fn stop(&mut self, end: Ending) {
        if self.end == Ending::Open {
            self.end = end;
        }
        self.reading = Reading::Ended;
        self.writing = Writing::Idle;
        self.head_began = None;
        self.discards = None;
        self.kept.clear();
    }
}

/// Streams have odd numbers from 1 on, as a client's in HTTP/2.
const BEFORE_THE_FIRST: StreamId = StreamId(u32::MAX);
