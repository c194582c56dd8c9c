//! Heads and trailers: header blocks, and which message of which stream they are.

use std::time::Instant;

use super::{
    Connection, Role, Unacknowledged,
    body::closed,
    fault::Fault,
    fields::{self, Answer, Length},
    flow::{ReceiveWindow, SendWindow},
    frame::{END_HEADERS, FrameHeader, PADDED, PRIORITY},
    receive::{Assembling, BUFFER_KEPT_BYTES},
    streams::{Asked, Receiving, Slot, Stream},
};
use crate::{
    event::{Code, Event, StreamId, Then},
    head::{Head, Heads},
    hpack,
};

impl Connection {
    /// Section 6.2. A priority is left out.
    pub(super) fn headers(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let (padding, payload) = match payload {
            [padding, rest @ ..] if header.has(PADDED) => (usize::from(*padding), rest),
            _ => (0, payload),
        };
        let priority = if header.has(PRIORITY) { 5 } else { 0 };
        let Some(len) = payload.len().checked_sub(priority + padding) else {
            return Err(Fault::protocol("HEADERS shorter than its padding (6.2)"));
        };
        let fragment = &payload[priority..priority + len];
        if header.stream.is_multiple_of(2) {
            return Err(Fault::protocol("a stream that only a server opens (5.1.1)"));
        }
        if self.role == Role::Client {
            self.not_idle(header.stream)?;
        }
        if header.has(END_HEADERS) {
            return self.header_block(header.stream, header.then(), fragment, heads, now);
        }
        self.block.extend_from_slice(fragment);
        self.assembling = Some(Assembling {
            stream: header.stream,
            then: header.then(),
            due: now + self.limits.block_timeout,
        });
        Ok(None)
    }

    /// Section 6.10; whose block it goes on has been checked.
    pub(super) fn continuation(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let Some(assembling) = self.assembling else {
            return Ok(None);
        };
        self.block.extend_from_slice(payload);
        if !header.has(END_HEADERS) {
            // Whoever has much to say fills its frames (CVE-2024-27316 and others).
            return match payload.len() {
                0..CONTINUATION_BYTES_MIN => self.spend_idle(now).map(|()| None),
                _ => Ok(None),
            };
        }
        self.assembling = None;
        let mut block = std::mem::take(&mut self.block);
        let Assembling { stream, then, .. } = assembling;
        let event = self.header_block(stream, then, &block, heads, now);
        block.clear();
        block.shrink_to(BUFFER_KEPT_BYTES);
        self.block = block;
        event
    }

    /// A whole header block. It is always decoded: it changes the table (section 4.3).
    fn header_block(
        &mut self,
        stream: u32,
        then: Then,
        block: &[u8],
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let limits = hpack::Limits {
            list_bytes_max: self.limits.list_bytes_max,
            fields_max: self.limits.fields_max,
        };
        let mut head = heads.take();
        let decoded = match self.decoder.decode(block, limits, &mut head) {
            Err(hpack::Error::Compression(why)) => {
                return Err(Fault::connection(Code::COMPRESSION_ERROR, why));
            }
            Err(hpack::Error::TooLarge) => Err(Unusable::TooLarge),
            Err(hpack::Error::Malformed(why)) => Err(Unusable::Malformed(why)),
            Ok(()) => Ok(()),
        };
        let taken = if self.role == Role::Server && stream > self.highest {
            self.new_stream(stream, then, decoded, &head, now)
        } else if let Some(slot) = self.streams.find(stream) {
            self.head_of_stream(slot, then, decoded, &head)
        } else {
            self.late_head(stream, now)
        };
        let stream = StreamId(stream);
        match taken {
            Ok(Taken::Head) => Ok(Some(Event::Head { stream, head, then })),
            Ok(Taken::Upgrade) => Ok(Some(Event::Head {
                stream,
                head,
                then: Then::End,
            })),
            Ok(Taken::TooLarge) => Ok(Some(Event::TooLarge { stream, head, then })),
            Ok(Taken::Interim) => Ok(Some(Event::Interim { stream, head })),
            Ok(Taken::Trailers) => Ok(Some(Event::Trailers { stream, head })),
            Ok(Taken::Not) => {
                heads.give(head);
                Ok(None)
            }
            Err(fault) => {
                heads.give(head);
                Err(fault)
            }
        }
    }

    /// As a server: a request.
    fn new_stream(
        &mut self,
        stream: u32,
        then: Then,
        decoded: Result<(), Unusable>,
        head: &Head,
        now: Instant,
    ) -> Result<Taken, Fault> {
        self.is_dense &= stream - self.highest == if self.highest == 0 { 1 } else { 2 };
        self.highest = stream;
        if self.our_last.is_some() {
            self.spend_idle(now)?;
            self.ignore(stream);
            return Ok(Taken::Not);
        }
        if self.streams.len() >= self.limits.streams_max {
            return self.refuse(stream, now);
        }
        let (taken, checked) = match decoded {
            Ok(()) => (
                Taken::Head,
                fields::request(head, then, self.limits.upgrade),
            ),
            Err(Unusable::TooLarge) => {
                self.last_fault = Some(LIST_TOO_LARGE);
                self.spend_reset(now).map_err(Fault::Connection)?;
                (Taken::TooLarge, Ok((Asked::Any, Length::Unknown)))
            }
            Err(Unusable::Malformed(why)) => (Taken::Not, Err(why)),
        };
        let (asked, length) = checked.map_err(|why| Fault::malformed(stream, why))?;
        let mut new = self.stream(stream, asked);
        new.length = length;
        new.is_tunnel = asked == Asked::Connect;
        new.receiving = match then {
            Then::More => Receiving::Body,
            Then::End => Receiving::Ended,
        };
        self.streams.insert(new);
        self.idle_frames.earn(EARNED_BY_HEAD);
        match asked {
            Asked::Upgrade => Ok(Taken::Upgrade),
            Asked::Any | Asked::Head | Asked::Connect => Ok(taken),
        }
    }

    /// A stream of ours or of the peer's, with the windows that new ones have.
    pub(super) fn stream(&self, id: u32, asked: Asked) -> Stream {
        let mut stream = Stream::new(id, Receiving::Head, asked);
        stream.receive_window = ReceiveWindow::new(self.stream_window);
        stream.send_window = SendWindow::new(self.peer.stream_window);
        stream
    }

    /// Section 5.1.2. A client that does not know the limit yet made no mistake, but does not
    /// open so many.
    fn refuse(&mut self, stream: u32, now: Instant) -> Result<Taken, Fault> {
        match self.unacknowledged {
            Unacknowledged::None | Unacknowledged::Later => {
                self.spend_reset(now).map_err(Fault::Connection)?;
            }
            Unacknowledged::First { .. } => self.spend_idle(now)?,
        }
        self.write_reset(stream, Code::REFUSED_STREAM);
        Ok(Taken::Not)
    }

    /// A second head of a request, or any of an answer.
    fn head_of_stream(
        &mut self,
        slot: Slot,
        then: Then,
        decoded: Result<(), Unusable>,
        head: &Head,
    ) -> Result<Taken, Fault> {
        let it = &mut self.streams[slot];
        let stream = StreamId(it.id);
        let malformed = |why| Fault::malformed(stream.0, why);
        if it.receiving == Receiving::Ended {
            return Err(closed(stream));
        }
        match decoded {
            Ok(()) => {}
            Err(Unusable::Malformed(why)) => return Err(malformed(why)),
            Err(Unusable::TooLarge) => {
                return Err(Fault::Stream(
                    stream,
                    Code::ENHANCE_YOUR_CALM,
                    LIST_TOO_LARGE,
                ));
            }
        }
        if it.receiving == Receiving::Head {
            return self.answer(slot, then, head);
        }
        if it.is_tunnel || it.is_upgrade_due() {
            return Err(malformed("HEADERS in a tunnel (8.5), or before it"));
        }
        if then == Then::More {
            return Err(malformed("trailers that do not end the stream (8.1)"));
        }
        fields::trailers(head).map_err(malformed)?;
        it.length.take(0, then).map_err(malformed)?;
        self.receive_ended(slot);
        Ok(Taken::Trailers)
    }

    /// As a client: an answer.
    fn answer(&mut self, slot: Slot, then: Then, head: &Head) -> Result<Taken, Fault> {
        let interims_max = self.limits.interims_max;
        let it = &mut self.streams[slot];
        let stream = StreamId(it.id);
        let answer = fields::answer(head, then, it.asked);
        match answer.map_err(|why| Fault::malformed(stream.0, why))? {
            Answer::Interim if it.interims == interims_max => {
                let why = "too many interim answers (10.5)";
                return Err(Fault::Stream(stream, Code::ENHANCE_YOUR_CALM, why));
            }
            Answer::Interim => {
                it.interims += 1;
                return Ok(Taken::Interim);
            }
            Answer::Final(length) => it.length = length,
            Answer::Tunnel => it.is_tunnel = true,
        }
        it.receiving = Receiving::Body;
        if it.is_upgrade_due() {
            self.end_upgrade(slot);
        }
        self.idle_frames.earn(EARNED_BY_HEAD);
        if then == Then::End {
            self.receive_ended(slot);
        }
        Ok(Taken::Head)
    }

    /// A head of a stream that is over (section 5.1), or below those before (section 5.1.1).
    fn late_head(&mut self, stream: u32, now: Instant) -> Result<Taken, Fault> {
        if self.recent.has(stream) {
            self.spend_idle(now)?;
            return Ok(Taken::Not);
        }
        if self.role == Role::Client {
            // We opened it, so it was there; others on the connection are not to suffer.
            return Err(closed(StreamId(stream)));
        }
        if self.is_dense {
            let why = "HEADERS of a stream that is over (5.1)";
            return Err(Fault::connection(Code::STREAM_CLOSED, why));
        }
        Err(Fault::protocol("a stream below another (5.1.1)"))
    }
}

/// Why a header block is not a message's.
enum Unusable {
    TooLarge,
    Malformed(&'static str),
}

/// What became of a header block.
enum Taken {
    Head,
    /// A request that is over, of a stream that is not: it asks for an upgrade.
    Upgrade,
    TooLarge,
    Interim,
    Trailers,
    Not,
}

const LIST_TOO_LARGE: &str = "a header list over its limit (10.5.1)";

/// Shorter ones that do not end a block are frames that bring nothing.
const CONTINUATION_BYTES_MIN: usize = 1_024;

/// A message explains its PRIORITY, RST_STREAM and window updates.
const EARNED_BY_HEAD: u32 = 4;
