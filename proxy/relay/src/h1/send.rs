//! What is sent, and the bytes that it becomes.

use super::{
    Connection, Form, Reading, Role, Version, Writing,
    fields::parse_length,
    hop::{Framing, Method},
    write::{self, Length, Options},
};
use crate::{
    event::{Event, StreamId, Then},
    head::Head,
    input::Payload,
    token::Token,
};

/// Why an exchange was not opened. Nothing has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// See [`Connection::can_open`].
    #[error("the connection is in use, or takes no more requests")]
    Busy,
    /// HTTP/1.1 cannot say it; HTTP/2 let it through.
    #[error("{0}")]
    Malformed(&'static str),
}

impl Connection {
    /// A client's: sends a request. With an unknown length a body goes in chunks, and the version
    /// is HTTP/1.1 whatever `form` says. `:protocol` asks for an upgrade; `then` says whether the
    /// request has a body, as always: what comes behind the 101 is none.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(&mut self, head: &Head, form: Form, then: Then) -> Result<StreamId, Refusal> {
        if !self.can_open() {
            return Err(Refusal::Busy);
        }
        write::check_request(head).map_err(Refusal::Malformed)?;
        let method = Method::of(head.get(Token::Method).unwrap_or_default());
        let said = write::length(head);
        if then == Then::End && said.is_some_and(|length| length > 0) {
            return Err(Refusal::Malformed("there is a length and no body"));
        }
        let (framing, length) = match (said, then) {
            _ if method == Method::Connect => (Framing::Nothing, Length::Dropped),
            (Some(length), _) => (Framing::Length(length), Length::Kept),
            (None, Then::More) => (Framing::Chunked, Length::Dropped),
            // RFC 9110 section 8.6.
            (None, Then::End) if method == Method::Sending => (Framing::Nothing, Length::Zero),
            (None, Then::End) => (Framing::Nothing, Length::Dropped),
        };
        let is_chunked = framing == Framing::Chunked;
        let form = Form {
            version: if is_chunked {
                Version::Http11
            } else {
                form.version
            },
            ..form
        };
        let upgrade = head.get(Token::Protocol);
        let upgrade = upgrade.filter(|_| form.version == Version::Http11);
        let options = Options {
            length,
            is_chunked,
            closes: false,
            keeps_alive: false,
            upgrade,
        };
        self.output
            .write(|out| write::request(out, head, form, options));
        self.begin(method, upgrade.map(Box::from));
        self.persists = form.version == Version::Http11;
        self.begin_writing(framing, then);
        Ok(self.stream)
    }

    /// A server's: sends an answer, interim ones before it. 101 needs `:protocol`, as it was asked
    /// for, and makes a tunnel, as 2xx to CONNECT does. Without a length the body of an answer
    /// goes in chunks, or to HTTP/1.0 until the end of the connection. Ignored when an answer has
    /// been sent.
    pub fn send_head(&mut self, stream: StreamId, head: &Head, then: Then) {
        if !self.is_current(stream) || self.writing != Writing::Head {
            return;
        }
        // Whatever is none is nobody's success.
        let status = head
            .get(Token::Status)
            .and_then(|status| parse_length(status).ok());
        let status = status.and_then(|status| u16::try_from(status).ok());
        let status = status
            .filter(|status| (100..1000).contains(status))
            .unwrap_or(502);
        match status {
            101 => self.switch(head),
            100..=199 => self.send_interim(head, status),
            _ => self.send_answer(head, status, then),
        }
    }

    /// Sends a piece of a body, and returns how much of it counts as gone; of the rest
    /// [`Self::next_written`] tells. All of it is for an exchange that is over.
    pub fn send_data(&mut self, stream: StreamId, data: Payload<'_>, then: Then) -> u32 {
        let bytes = u32::try_from(data.len()).expect("no piece is larger than a window");
        if !self.is_current(stream) {
            return bytes;
        }
        match self.writing {
            Writing::Length(left) => match left.checked_sub(u64::from(bytes)) {
                Some(left) => {
                    self.output.push(data);
                    self.writing = Writing::Length(left);
                }
                // More than the head said is the beginning of something else.
                None => self.abort(),
            },
            Writing::Chunked => self.send_chunk(data),
            Writing::UntilClose | Writing::Raw => self.output.push(data),
            Writing::Nothing
            | Writing::Idle
            | Writing::Head
            | Writing::Done
            | Writing::RawEnded => return bytes,
        }
        if then == Then::End {
            self.end_writing(b"0\r\n\r\n");
        }
        if self.output.len() <= self.limits.output_bytes {
            return bytes;
        }
        self.waiting = self.waiting.saturating_add(bytes);
        0
    }

    /// Ends a body with trailers. They are dropped where there are no chunks to carry them
    /// (RFC 9110 section 6.5.1), and so are fields that may not be in trailers.
    pub fn send_trailers(&mut self, stream: StreamId, head: &Head) {
        if !self.is_current(stream) {
            return;
        }
        if self.writing == Writing::Chunked {
            self.output.write(|out| {
                out.extend_from_slice(b"0\r\n");
                write::trailers(out, head);
            });
        }
        self.end_writing(b"");
    }

    /// Nothing more of the exchange is wanted. HTTP/1.1 has no word for it: unless both messages
    /// are whole the connection ends, but for a server whose answer is whole, which reads and
    /// drops the rest of the request, if that is short.
    pub fn reset(&mut self, stream: StreamId) {
        if !self.is_current(stream) {
            return;
        }
        if self.role == Role::Server && self.writing == Writing::Nothing {
            self.sent();
        }
        if self.writing == Writing::Idle {
            return;
        }
        if self.role == Role::Server && self.writing == Writing::Done {
            if self.is_worth_discarding() {
                self.discards = Some(self.limits.discard_bytes_max);
            } else {
                self.finish();
            }
        } else if self.role == Role::Client {
            self.abort();
        } else {
            self.give_up();
        }
    }

    /// Counts what waited as gone, if the output holds less than `room` bytes: it was in the output
    /// already.
    pub fn fill(&mut self, room: usize) {
        if self.output.len() < room {
            self.written = self
                .written
                .saturating_add(std::mem::take(&mut self.waiting));
        }
        self.settle();
    }

    /// Tells how much has gone that waited.
    pub fn next_written(&mut self) -> Option<Event<'static>> {
        let sent = std::mem::take(&mut self.written);
        let stream = self.stream;
        self.settle();
        (sent > 0).then_some(Event::Writable { stream, sent })
    }

    fn switch(&mut self, head: &Head) {
        let protocol = head.get(Token::Protocol);
        let is_asked = match (protocol, &self.asked) {
            (Some(protocol), Some(asked)) => protocol.eq_ignore_ascii_case(asked),
            (Some(_) | None, _) => false,
        };
        // Behind a request that has not ended nothing else can begin.
        if !is_asked || self.reading != Reading::Done {
            self.abort();
            return;
        }
        let options = Options {
            upgrade: protocol,
            ..Options::default()
        };
        self.output
            .write(|out| write::answer(out, head, 101, options));
        self.begin_tunnel();
    }

    fn send_interim(&mut self, head: &Head, status: u16) {
        if self.hop.form.version == Version::Http10 {
            // RFC 9110 section 15.2.
            return;
        }
        self.is_awaited &= status != 100;
        let options = Options::default();
        self.output
            .write(|out| write::answer(out, head, status, options));
    }

    fn send_answer(&mut self, head: &Head, status: u16, then: Then) {
        let is_tunnel = self.method == Method::Connect && matches!(status, 200..=299);
        let said = write::length(head);
        let (framing, length) = match (said, then) {
            _ if is_tunnel || status == 204 => (Framing::Nothing, Length::Dropped),
            (Some(_), _) if self.method == Method::Head || status == 304 => {
                (Framing::Nothing, Length::Kept)
            }
            (None, _) if self.method == Method::Head || status == 304 => {
                (Framing::Nothing, Length::Dropped)
            }
            (Some(length), _) => (Framing::Length(length), Length::Kept),
            (None, Then::End) => (Framing::Length(0), Length::Zero),
            (None, Then::More) if self.hop.form.version == Version::Http10 => {
                (Framing::UntilClose, Length::Dropped)
            }
            (None, Then::More) => (Framing::Chunked, Length::Dropped),
        };
        let is_refused = then == Then::End && !self.is_request_near();
        let ends_by_closing = framing == Framing::UntilClose;
        // What a client says behind a CONNECT that is not granted is meant for somebody else.
        let is_refused = is_refused || (self.method == Method::Connect && !is_tunnel);
        self.persists &= !self.is_leaving && !self.is_awaited && !is_refused && !ends_by_closing;
        let options = Options {
            length,
            is_chunked: framing == Framing::Chunked,
            closes: !self.persists && !is_tunnel,
            keeps_alive: self.hop.form.version == Version::Http10,
            upgrade: None,
        };
        self.output
            .write(|out| write::answer(out, head, status, options));
        if is_tunnel {
            self.begin_tunnel();
        } else {
            self.begin_writing(framing, then);
        }
    }

    fn begin_writing(&mut self, framing: Framing, then: Then) {
        self.writing = match framing {
            Framing::Nothing => Writing::Nothing,
            Framing::Length(left) => Writing::Length(left),
            Framing::Chunked => Writing::Chunked,
            Framing::UntilClose => Writing::UntilClose,
        };
        // CONNECT is over, also when more follows if it is granted. The end of an answer is waited
        // for, so that no exchange begins before it is told.
        let is_whole = framing == Framing::Nothing && self.role == Role::Client;
        if then == Then::End || is_whole {
            self.end_writing(b"0\r\n\r\n");
        }
    }

    pub(super) fn begin_tunnel(&mut self) {
        self.persists = false;
        self.reading = Reading::Raw;
        self.writing = Writing::Raw;
    }

    fn send_chunk(&mut self, data: Payload<'_>) {
        // An empty chunk would be the last.
        if data.is_empty() {
            return;
        }
        self.output.write(|out| write::chunk_line(out, data.len()));
        self.output.push(data);
        self.output.copy(b"\r\n");
    }

    /// Nothing follows in our direction; `last_chunk` ends chunks.
    fn end_writing(&mut self, last_chunk: &[u8]) {
        match self.writing {
            Writing::Length(1..) => self.abort(),
            Writing::Chunked => {
                self.output.copy(last_chunk);
                self.sent();
            }
            Writing::Nothing | Writing::Length(0) | Writing::UntilClose => self.sent(),
            Writing::Raw => {
                self.writing = Writing::RawEnded;
                self.settle();
            }
            Writing::Idle | Writing::Head | Writing::Done | Writing::RawEnded => {}
        }
    }

    /// Whether what is left of the request may be short enough to be read and dropped, and something
    /// follows it.
    fn is_worth_discarding(&self) -> bool {
        self.persists && self.is_request_near()
    }

    /// Whether the end of the request is there or may be near.
    fn is_request_near(&self) -> bool {
        match self.reading {
            Reading::Length(left) => left <= u64::from(self.limits.discard_bytes_max),
            Reading::Head
            | Reading::Chunked(_)
            | Reading::Trailers
            | Reading::UntilClose
            | Reading::Done
            | Reading::Raw
            | Reading::Ended => true,
        }
    }
}
