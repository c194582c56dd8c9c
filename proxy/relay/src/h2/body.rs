//! Bodies, and how streams end: DATA, RST_STREAM, the windows that are given back, and frames of
//! streams that are over.

use std::time::Instant;

use super::{
    Connection,
    fault::Fault,
    frame::{self, FrameHeader, Kind, word},
    receive::{Body, Reading},
    streams::{Queue, Receiving, Sending, Slot},
};
use crate::{
    event::{By, Code, Event, StreamId, Then},
    input::Payload,
};

impl Connection {
    /// Section 6.1. `prefix` is the padding's length, if there is padding.
    pub(super) fn data(
        &mut self,
        header: FrameHeader,
        prefix: &[u8],
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let stream = StreamId(header.stream);
        self.not_idle(stream.0)?;
        let padding = prefix.first().map_or(0, |&padding| u32::from(padding));
        let around = padding + u32::from(!prefix.is_empty());
        let Some(len) = header.len.checked_sub(around) else {
            return Err(Fault::protocol("DATA shorter than its padding (6.1)"));
        };
        if !self.receive_window.take(header.len) {
            let why = "more than the connection's window (6.9)";
            return Err(Fault::connection(Code::FLOW_CONTROL_ERROR, why));
        }
        self.release_connection(header.len);
        let Some(slot) = self.streams.find(stream.0) else {
            return self.late_data(stream, header.len, len, now);
        };
        let then = header.then();
        let it = &mut self.streams[slot];
        match it.receiving {
            Receiving::Body => {}
            Receiving::Ended => return Err(closed(stream)),
            Receiving::Head => {
                return Err(Fault::malformed(stream.0, "DATA before an answer (8.1)"));
            }
        }
        if !it.receive_window.take(header.len) {
            let why = "more than the stream's window (6.9)";
            return Err(Fault::Stream(stream, Code::FLOW_CONTROL_ERROR, why));
        }
        let length = it.length.take(len, then);
        length.map_err(|why| Fault::malformed(stream.0, why))?;
        if around > 0 {
            self.release(stream, around);
        }
        match (len, then) {
            (1.., _) => {
                self.idle_frames.earn(EARNED_BY_DATA);
                self.reading = Reading::Body(Body {
                    stream: stream.0,
                    left: len,
                    padding,
                    then,
                });
                Ok(None)
            }
            (0, Then::More) => self.spend_idle(now).map(|()| None),
            (0, Then::End) if self.streams[slot].is_upgrade_due() => {
                // Its message was told as over before.
                self.receive_ended(slot);
                Ok(None)
            }
            (0, Then::End) => {
                self.receive_ended(slot);
                Ok(Some(Event::Data {
                    stream,
                    data: Payload::Lent(&[]),
                    credit: 0,
                    then,
                }))
            }
        }
    }

    /// Section 6.4.
    pub(super) fn rst_stream(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        self.spend_idle(now)?;
        let stream = StreamId(header.stream);
        self.not_idle(stream.0)?;
        let Some(slot) = self.streams.find(stream.0) else {
            return Ok(None);
        };
        self.spend_reset(now).map_err(Fault::Connection)?;
        self.drop_stream(slot);
        Ok(Some(Event::Reset {
            stream,
            code: Code(word(payload)),
            by: By::Peer,
        }))
    }

    /// Says that `credit` bytes of a stream have been passed on, so that the peer may send as
    /// many more. They are collected up to half of its window.
    pub fn release(&mut self, stream: StreamId, credit: u32) {
        let Some(slot) = self.streams.find(stream.0) else {
            return;
        };
        let it = &mut self.streams[slot];
        if it.receiving == Receiving::Ended {
            return;
        }
        if let Some(increment) = it.receive_window.give(credit, self.stream_window) {
            self.write_window_update(stream.0, increment);
        }
    }

    /// Fails for a stream that has not been opened (section 5.1, "idle"); as a client, for one
    /// whose HEADERS wait.
    pub(super) fn not_idle(&self, stream: u32) -> Result<(), Fault> {
        match stream > self.highest || stream.is_multiple_of(2) {
            true => Err(Fault::protocol("a frame of a stream that is idle (5.1)")),
            false => Ok(()),
        }
    }

    /// Forgets a stream that was reset, and what waits on it.
    pub(super) fn drop_stream(&mut self, slot: Slot) {
        let it = &self.streams[slot];
        if it.id > self.highest {
            self.send_window.give_back(it.framed);
        }
        self.pieces.clear(&mut self.streams[slot].line);
        self.streams.remove(slot);
    }

    /// The received half is over.
    pub(super) fn receive_ended(&mut self, slot: Slot) {
        self.streams[slot].receiving = Receiving::Ended;
        self.settle(slot);
    }

    /// Forgets a stream that has ended well in both directions, or in ours and nothing else is
    /// wanted of it, when all is told of it.
    pub(super) fn settle(&mut self, slot: Slot) {
        let it = &self.streams[slot];
        if it.sending != Sending::Ended || self.streams.is_in(Queue::Written, slot) {
            return;
        }
        if it.receiving == Receiving::Ended {
            if it.is_served {
                self.resets.earn(1);
            }
            self.streams.remove(slot);
        } else if it.is_unwanted {
            let id = it.id;
            self.write_reset(id, Code::NO_ERROR);
            self.drop_stream(slot);
        }
    }

    /// Calls `act` for each stream.
    pub(super) fn each_stream(
        &mut self,
        mut act: impl FnMut(&mut Self, Slot) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut position = 0;
        while let Some(slot) = self.streams.at(position) {
            position += 1;
            if let Some(slot) = slot {
                act(self, slot)?;
            }
        }
        Ok(())
    }

    /// Connection credit returns on receipt: a stream that nobody reads must not stop others.
    fn release_connection(&mut self, bytes: u32) {
        let window = self.limits.connection_window;
        if let Some(increment) = self.receive_window.give(bytes, window) {
            self.write_window_update(0, increment);
        }
    }

    fn write_window_update(&mut self, stream: u32, increment: u32) {
        self.control(|out| {
            frame::write_words(out, Kind::WindowUpdate, 0, stream, &[increment]);
        });
    }

    /// DATA of a stream that is not there: of `len` bytes, of `window` with its padding.
    fn late_data(
        &mut self,
        stream: StreamId,
        window: u32,
        len: u32,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        match self.recent.take(stream.0, window) {
            None => Err(closed(stream)),
            Some(true) if len > 0 => Ok(None),
            Some(true) => self.spend_idle(now).map(|()| None),
            Some(false) => {
                let why = "more than the window of a stream that was reset (6.9)";
                Err(Fault::connection(Code::FLOW_CONTROL_ERROR, why))
            }
        }
    }
}

pub(super) fn closed(stream: StreamId) -> Fault {
    let why = "a frame of a stream that was over (5.1)";
    Fault::Stream(stream, Code::STREAM_CLOSED, why)
}

/// A piece of a body explains a PING and updates of two windows, as clients send that measure
/// their bandwidth.
const EARNED_BY_DATA: u32 = 4;
