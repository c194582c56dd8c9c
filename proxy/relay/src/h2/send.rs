//! What is sent: at once when nothing waits, else when `fill` finds that its turn has come.

use super::{
    Connection,
    fields::Length,
    frame::{self, END_STREAM, HEADER_BYTES, Kind},
    limits::Upgrade,
    pieces::First,
    streams::{Asked, Queue, Sending, Slot},
};
use crate::{
    event::{Code, Event, StreamId, Then},
    head::{Head, Heads},
    input::Payload,
    token::Token,
};

/// Why a stream was not opened. Nothing has been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// See [`Connection::can_open`].
    #[error("the connection takes no more requests now")]
    Busy,
    /// The header list is larger than the peer's SETTINGS_MAX_HEADER_LIST_SIZE. To send it would be
    /// allowed (RFC 9113 section 10.5.1), but there are peers that end the connection for it, which
    /// others share.
    #[error("the header list is larger than the endpoint takes")]
    HeadTooLarge,
}

impl Connection {
    /// As a client: sends a request.
    ///
    /// It is written by [`Connection::fill`]: until then [`Connection::reset`] makes it vanish without
    /// a byte. Otherwise a client that begins and cancels requests would have us say as much to an
    /// endpoint, which counts that as an attack of all who share the connection.
    ///
    /// Heads are sent as they are: what HTTP/2 forbids in them (RFC 9113 section 8.2.2) is to be
    /// out of them.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn open(
        &mut self,
        head: &Head,
        then: Then,
        heads: &mut Heads,
    ) -> Result<StreamId, Refusal> {
        if !self.can_open() {
            return Err(Refusal::Busy);
        }
        if head.is_list_over(self.peer.list_bytes_max as usize) {
            return Err(Refusal::HeadTooLarge);
        }
        let carries_http1 = self.limits.upgrade == Upgrade::Http1;
        let (asked, then) = match head.get(Token::Method) {
            _ if carries_http1 && head.get(Token::Protocol).is_some() => {
                (Asked::Upgrade, Then::More)
            }
            Some(b"HEAD") => (Asked::Head, then),
            Some(b"CONNECT") => (Asked::Connect, then),
            Some(_) | None => (Asked::Any, then),
        };
        let mut stream = self.stream(self.next_id, asked);
        stream.sending = Sending::Body;
        let id = StreamId(stream.id);
        self.next_id += 2;
        let slot = self.streams.insert(stream);
        self.push_head(slot, head, then, heads);
        Ok(id)
    }

    /// As a server: sends an answer, once, or an interim one before it. Nothing happens when the
    /// stream is over.
    ///
    /// An answer that is larger than the client's SETTINGS_MAX_HEADER_LIST_SIZE is sent all the same:
    /// that is advice (RFC 9113 section 6.5.2), clients take more than they say or reset the stream,
    /// and whatever they do harms nobody else, unlike a request. Envoy and the `h2` crate do the same.
    pub fn send_head(&mut self, stream: StreamId, head: &Head, then: Then, heads: &mut Heads) {
        let Some(slot) = self.sending(stream, Sending::Head) else {
            return;
        };
        let status = head.get(Token::Status).unwrap_or_default();
        let it = &mut self.streams[slot];
        let grants = status == b"101" && it.is_upgrade_due();
        if grants {
            it.is_tunnel = true;
            it.length = Length::Unknown;
        }
        if grants || !status.starts_with(b"1") {
            it.sending = Sending::Body;
        } else if self.pieces.head_bytes() > self.limits.heads_bytes_max() {
            // The client does not read.
            return;
        }
        self.queue_head(slot, head, then, heads);
    }

    /// As a client: the upgrade was not granted, and so the request is over.
    pub(super) fn end_upgrade(&mut self, slot: Slot) {
        let it = &mut self.streams[slot];
        it.asked = Asked::Any;
        if it.sending == Sending::Body {
            it.sending = Sending::Ending;
            self.write_data_header(slot, 0);
        }
    }

    /// Sends a piece of a body. The result is how many bytes of it went into the output at once;
    /// the rest waits within, and [`Connection::next_written`] tells when it has gone. Of a
    /// stream that is over all are gone at once.
    pub fn send_data(&mut self, stream: StreamId, data: Payload<'_>, then: Then) -> u32 {
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let Some(slot) = self.sending(stream, Sending::Body) else {
            return len;
        };
        if then == Then::End {
            self.streams[slot].sending = Sending::Ending;
        }
        let mut data = data;
        let line = &self.streams[slot].line;
        let is_first = self.pieces.first(line) == First::Nothing;
        if is_first && data.is_empty() {
            if then == Then::End {
                self.write_data_header(slot, 0);
                self.settle(slot);
            }
            return 0;
        }
        if is_first && self.streams.is_empty(Queue::Data) && self.streams.is_empty(Queue::Heads) {
            data = self.write_at_once(slot, data);
        } else if let Payload::Lent(bytes) = data
            && self.streams[slot].id > self.highest
        {
            data = Payload::Lent(self.frame_early(slot, bytes));
        }
        let waiting = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.pieces.push_data(&mut self.streams[slot].line, data);
        self.schedule(slot);
        self.settle(slot);
        len - waiting
    }

    /// Ends a body with trailers, which go behind what waits of it.
    pub fn send_trailers(&mut self, stream: StreamId, head: &Head, heads: &mut Heads) {
        if let Some(slot) = self.sending(stream, Sending::Body) {
            self.queue_head(slot, head, Then::End, heads);
        }
    }

    /// As a server: the answer is whole, so nothing more of the request is wanted. When all of the
    /// answer has gone the client is asked to stop (RST_STREAM with NO_ERROR, RFC 9113 section
    /// 8.1), unless it has ended by then.
    pub fn stop(&mut self, stream: StreamId) {
        if let Some(slot) = self.streams.find(stream.0) {
            self.streams[slot].is_unwanted = true;
            self.settle(slot);
        }
    }

    /// As a server: the stream's answer is that of an endpoint. Such a stream, when it ends well, pays
    /// for one that is reset; answers of our own cost a client nothing, and would pay for a flood.
    pub fn served(&mut self, stream: StreamId) {
        if let Some(slot) = self.streams.find(stream.0) {
            self.streams[slot].is_served = true;
        }
    }

    /// Ends a stream before its time; what waits of it is dropped.
    pub fn reset(&mut self, stream: StreamId, code: Code) {
        let Some(slot) = self.streams.find(stream.0) else {
            return;
        };
        if stream.0 <= self.highest {
            self.write_reset(stream.0, code);
        }
        self.drop_stream(slot);
    }

    /// Moves what may go into the output, while that holds less than `room` bytes, of which
    /// `Limits::output_bytes` count. It may end up to a head, or 16 KiB of a body, above.
    pub fn fill(&mut self, room: usize, heads: &mut Heads) {
        let room = room.min(self.limits.output_bytes);
        while self.broken.is_none() && self.output.len() < room {
            if let Some(slot) = self.streams.pop(Queue::Heads) {
                self.fill_head(slot, heads);
            } else if self.send_window.left() == 0 {
                return;
            } else if let Some(slot) = self.streams.pop(Queue::Data) {
                self.fill_data(slot);
            } else {
                return;
            }
        }
    }

    /// The next stream of which something that waited has gone, as [`Event::Writable`]. Call it
    /// after [`Connection::fill`] until it is `None`: a stream that has ended stays until all is
    /// told of it.
    pub fn next_written(&mut self) -> Option<Event<'static>> {
        let slot = self.streams.pop(Queue::Written)?;
        let it = &mut self.streams[slot];
        let stream = StreamId(it.id);
        let sent = std::mem::take(&mut it.written);
        self.settle(slot);
        Some(Event::Writable { stream, sent })
    }

    /// Puts a stream into the queue where what is first in its line belongs.
    pub(super) fn schedule(&mut self, slot: Slot) {
        let it = &self.streams[slot];
        match self.pieces.first(&it.line) {
            // Frames without their head are of a stream that is refused.
            First::Nothing | First::Framed => {}
            First::Head => self.streams.push(Queue::Heads, slot),
            First::Data if it.send_window.left() == 0 => {}
            First::Data => self.streams.push(Queue::Data, slot),
        }
    }

    /// Appends a header block, in one piece: nothing comes between its frames.
    pub(super) fn write_head(&mut self, stream: u32, head: &Head, then: Then) {
        if self.broken.is_some() {
            return;
        }
        let frame_bytes_max = self.peer.frame_bytes_max as usize;
        let encoder = &mut self.encoder;
        self.output.write(|out| {
            frame::write_block(out, stream, then, frame_bytes_max, |out| {
                encoder.encode(head, out);
            });
        });
    }

    /// The stream, if it is not over and is where what is sent belongs: heads, then data, then
    /// trailers, which pieces in line rely on.
    fn sending(&self, stream: StreamId, expected: Sending) -> Option<Slot> {
        let slot = self
            .streams
            .find(stream.0)
            .filter(|_| self.broken.is_none())?;
        let sending = self.streams[slot].sending;
        debug_assert_eq!(sending, expected, "a head, a body, an end");
        (sending == expected).then_some(slot)
    }

    /// Sends a head at once, or has it wait for its turn.
    fn queue_head(&mut self, slot: Slot, head: &Head, then: Then, heads: &mut Heads) {
        let line = &self.streams[slot].line;
        let is_first = self.pieces.first(line) == First::Nothing;
        let is_turn = self.output.len() < self.limits.output_bytes;
        if is_first && is_turn && self.streams.is_empty(Queue::Heads) {
            if then == Then::End {
                self.streams[slot].sending = Sending::Ending;
            }
            self.send_first_head(slot, head);
            return;
        }
        self.push_head(slot, head, then, heads);
    }

    fn push_head(&mut self, slot: Slot, head: &Head, then: Then, heads: &mut Heads) {
        let it = &mut self.streams[slot];
        if then == Then::End {
            it.sending = Sending::Ending;
        }
        self.pieces.push_head(&mut it.line, heads.copy(head));
        self.schedule(slot);
    }

    /// Writes all heads that wait, whatever room there is.
    pub(super) fn fill_heads(&mut self, heads: &mut Heads) {
        while let Some(slot) = self.streams.pop(Queue::Heads) {
            self.fill_head(slot, heads);
        }
    }

    fn fill_head(&mut self, slot: Slot, heads: &mut Heads) {
        let line = &mut self.streams[slot].line;
        let Some(head) = self.pieces.take_head(line) else {
            return;
        };
        // What is told as refused next must not have been begun: it may be tried elsewhere.
        if self.streams[slot].id <= self.refused_above {
            self.send_first_head(slot, &head);
        }
        heads.give(head);
    }

    /// Writes a head that was first in its line and is taken out of it.
    fn send_first_head(&mut self, slot: Slot, head: &Head) {
        let it = &mut self.streams[slot];
        let stream = it.id;
        // As a client: heads go in the order of their streams.
        self.highest = self.highest.max(stream);
        let is_last = it.sending == Sending::Ending && it.line.is_empty();
        let then = if is_last {
            it.sending = Sending::Ended;
            Then::End
        } else {
            Then::More
        };
        self.write_head(stream, head, then);
        let it = &mut self.streams[slot];
        self.pieces.move_framed(&mut it.line, &mut self.output);
        if it.sending == Sending::Ending && it.line.is_empty() {
            self.write_data_header(slot, 0);
        }
        self.schedule(slot);
        self.settle(slot);
    }

    /// Deficit round robin in quanta of 16 KiB. A frame can be cut anywhere, so that each turn is
    /// used up and no deficit is left to remember; and every MAX_FRAME_SIZE allows a quantum.
    fn fill_data(&mut self, slot: Slot) {
        let it = &self.streams[slot];
        let n = self.quantum(slot, it.line.bytes);
        if n == 0 {
            // A window has shrunk since it was queued.
            return;
        }
        self.write_data_header(slot, n);
        let it = &mut self.streams[slot];
        self.pieces.move_data(&mut it.line, n, &mut self.output);
        it.written = it
            .written
            .saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        self.streams.push(Queue::Written, slot);
        self.schedule(slot);
    }

    /// The fast path; what is left of `data` has to wait.
    fn write_at_once<'a>(&mut self, slot: Slot, mut data: Payload<'a>) -> Payload<'a> {
        while self.output.len() < self.limits.output_bytes {
            let n = self.quantum(slot, data.len());
            if n == 0 {
                break;
            }
            let is_all = n == data.len();
            let header = self.data_header(slot, n, is_all);
            self.output.copy(&header);
            if is_all {
                self.output.push(data);
                return Payload::Lent(&[]);
            }
            self.output.push(data.split_to(n));
        }
        data
    }

    /// Makes frames of the first of a body whose head waits, so that they go with it: small requests
    /// need no turn of their own. They count as gone, as what is in the output does, and up to the
    /// same bound; what is left has to wait.
    fn frame_early<'a>(&mut self, slot: Slot, mut data: &'a [u8]) -> &'a [u8] {
        while self.streams[slot].line.bytes == 0
            && self.output.len() + self.pieces.framed_bytes() < self.limits.output_bytes
        {
            let n = self.quantum(slot, data.len());
            if n == 0 {
                break;
            }
            let (framed, rest) = data.split_at(n);
            let header = self.data_header(slot, n, rest.is_empty());
            let it = &mut self.streams[slot];
            it.framed += u32::try_from(n).unwrap_or(u32::MAX);
            self.pieces.push_framed(&mut it.line, &header, framed);
            data = rest;
        }
        data
    }

    /// How much of `len` bytes may go in one frame now.
    fn quantum(&self, slot: Slot, len: usize) -> usize {
        let windows = self.send_window.left();
        let windows = windows.min(self.streams[slot].send_window.left());
        len.min(QUANTUM_BYTES).min(windows)
    }

    /// Begins a frame with the first `n` bytes that wait; it has the end when they are the last.
    fn write_data_header(&mut self, slot: Slot, n: usize) {
        let is_last = self.streams[slot].line.is_last_data(n);
        let header = self.data_header(slot, n, is_last);
        self.output.copy(&header);
    }

    /// The header of a frame with `n` bytes of a body, which are taken from the windows.
    fn data_header(&mut self, slot: Slot, n: usize, is_last: bool) -> [u8; HEADER_BYTES] {
        let it = &mut self.streams[slot];
        let flags = if is_last && it.sending == Sending::Ending {
            it.sending = Sending::Ended;
            END_STREAM
        } else {
            0
        };
        it.send_window.take(n);
        self.send_window.take(n);
        // Nothing for what a window cut: whoever opens it by single bytes would be paid for that.
        if is_last || (it.send_window.left() > 0 && self.send_window.left() > 0) {
            self.idle_frames.earn(EARNED_BY_SENDING);
        }
        frame::header(Kind::Data, flags, it.id, n)
    }
}

/// What a stream sends of a body in one turn.
const QUANTUM_BYTES: usize = 16 * 1024;

/// A piece of a body is answered with updates of two windows, and perhaps a PING.
const EARNED_BY_SENDING: u32 = 4;
