//! Frames of the connection itself, and what is done about faults.

use std::time::Instant;

use super::{
    Connection, Role, Unacknowledged,
    fault::Fault,
    flow::Overflow,
    frame::{self, ACK, FrameHeader, Kind, MAX_31_BITS, word},
    settings,
};
use crate::{
    event::{Broken, By, Code, Event, StreamId},
    head::Heads,
};

impl Connection {
    /// Asks for a sign of life; the answer is [`Event::Pong`].
    pub fn ping(&mut self) {
        self.pings = self.pings.saturating_add(1);
        let payload = &OUR_PING;
        self.control(|out| frame::write_words(out, Kind::Ping, 0, 0, payload));
    }

    /// Lets streams have windows of `bytes`, at most 2^31 - 1, from when the peer has heard of it.
    /// Those of streams that are open change by the difference (RFC 9113 section 6.9.2).
    pub fn set_stream_window(&mut self, bytes: u32) {
        self.stream_window_wanted = bytes.min(MAX_31_BITS);
        self.say_stream_window();
    }

    /// As a server: asks the client to open no more streams; those that are on their way are
    /// still served (RFC 9113 section 6.8). Whoever waits for the answer to a [`Connection::ping`]
    /// sent behind it has seen all of them.
    pub fn goodbye_soon(&mut self) {
        self.write_goodbye(MAX_31_BITS, Code::NO_ERROR);
    }

    /// Says that no more streams are taken: what the peer opens from now on is ignored.
    pub fn goodbye(&mut self, code: Code) {
        let last = self.last_processed();
        self.our_last = Some(last);
        self.write_goodbye(last, code);
    }

    pub(super) fn settings(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        heads: &mut Heads,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        if header.has(ACK) {
            return self.settings_taken(now).map(|()| None);
        }
        let before = self.peer;
        let after = before.after(payload, self.role)?;
        // A window that changes is changed in each stream, and one that opens by a few bytes may
        // have each stream send a frame of them.
        let opened = after.stream_window.wrapping_sub(before.stream_window);
        let per_frame = if (1..UPDATE_MIN).contains(&opened) {
            8
        } else {
            64
        };
        self.spend_idle_of(1 + self.streams.len() / per_frame, now)?;
        if after.stream_window < before.stream_window {
            // What is in frames was taken from larger windows, and goes before we acknowledge.
            self.fill_heads(heads);
        }
        self.peer = after;
        self.has_settings = true;
        for size in [self.peer.table_bytes_lowest, self.peer.table_bytes_max] {
            self.encoder.set_table_bytes_max(size);
        }
        if self.peer.stream_window != before.stream_window {
            self.resize_send_windows(before.stream_window, self.peer.stream_window)?;
        }
        self.control(|out| frame::write_words(out, Kind::Settings, ACK, 0, &[]));
        let is_new = self.peer.streams_max != before.streams_max;
        Ok((self.role == Role::Client && is_new)
            .then_some(Event::StreamsMax(self.peer.streams_max)))
    }

    pub(super) fn ping_frame(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let words = [word(payload), word(&payload[4..])];
        if header.has(ACK) && words == OUR_PING && self.pings > 0 {
            self.pings -= 1;
            return Ok(Some(Event::Pong));
        }
        self.spend_idle(now)?;
        if !header.has(ACK) {
            self.control(|out| frame::write_words(out, Kind::Ping, ACK, 0, &words));
        }
        Ok(None)
    }

    pub(super) fn goaway(
        &mut self,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        self.spend_idle(now)?;
        let last = word(payload) & MAX_31_BITS;
        let code = Code(word(&payload[4..]));
        if self.peer_last.is_some_and(|before| last > before) {
            return Err(Fault::protocol("a GOAWAY that takes another back (6.8)"));
        }
        self.peer_last = Some(last);
        if self.role == Role::Client {
            self.refused_above = last.min(self.highest);
        }
        Ok(Some(Event::Goodbye {
            last: StreamId(last),
            code,
        }))
    }

    /// WINDOW_UPDATE of the connection or of a stream.
    pub(super) fn window_update(
        &mut self,
        header: FrameHeader,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Event<'static>>, Fault> {
        let increment = word(payload) & MAX_31_BITS;
        let is_over = header.stream != 0 && self.streams.find(header.stream).is_none();
        // A reader that takes its time in pieces of 4 KiB says so for each, twice. Windows grow
        // to 2^31 - 1 at most, so that what is free here is bounded by what was sent.
        if is_over || increment < UPDATE_MIN {
            self.spend_idle(now)?;
        }
        if header.stream == 0 {
            if increment == 0 {
                return Err(Fault::protocol("WINDOW_UPDATE of zero (6.9)"));
            }
            return match self.send_window.grow(increment) {
                Ok(()) => Ok(None),
                Err(Overflow) => Err(window_overflow()),
            };
        }
        let stream = StreamId(header.stream);
        self.not_idle(stream.0)?;
        let Some(slot) = self.streams.find(stream.0) else {
            return Ok(None);
        };
        if increment == 0 {
            let why = "WINDOW_UPDATE of zero (6.9)";
            return Err(Fault::Stream(stream, Code::PROTOCOL_ERROR, why));
        }
        if self.streams[slot].send_window.grow(increment) == Err(Overflow) {
            let why = "a window above 2^31 - 1 (6.9.1)";
            return Err(Fault::Stream(stream, Code::FLOW_CONTROL_ERROR, why));
        }
        self.schedule(slot);
        Ok(None)
    }

    /// Acts on a fault: ends the connection, or resets the stream and tells of it when it was
    /// known.
    pub(super) fn found(
        &mut self,
        fault: Fault,
        now: Instant,
    ) -> Result<Option<Event<'static>>, Broken> {
        let (stream, code, reason) = match fault {
            Fault::Connection(broken) => return Err(broken),
            Fault::Stream(stream, code, reason) => (stream, code, reason),
        };
        self.last_fault = Some(reason);
        if self.not_idle(stream.0).is_err() {
            // A stream that is idle cannot be reset (section 6.4).
            return Err(Broken { code, reason });
        }
        self.spend_reset(now)?;
        let Some(slot) = self.streams.find(stream.0) else {
            // An endpoint can send frames of streams that are over without end, too.
            if self.role == Role::Client && !self.idle_frames.spend(1, now) {
                return Err(TOO_IDLE);
            }
            self.write_reset(stream.0, code);
            return Ok(None);
        };
        self.write_reset(stream.0, code);
        self.drop_stream(slot);
        Ok(Some(Event::Reset {
            stream,
            code,
            by: By::Us,
        }))
    }

    /// After the peer's GOAWAY: the next stream that it did not process, or has not heard of.
    pub(super) fn next_refused(&mut self) -> Option<Event<'static>> {
        if self.refused_above == u32::MAX {
            return None;
        }
        let slot = self.streams.last_above(self.refused_above)?;
        let stream = StreamId(self.streams[slot].id);
        self.ignore(stream.0);
        self.drop_stream(slot);
        Some(Event::Reset {
            stream,
            code: Code::REFUSED_STREAM,
            by: By::Peer,
        })
    }

    /// A frame that brought nothing.
    pub(super) fn spend_idle(&mut self, now: Instant) -> Result<(), Fault> {
        self.spend_idle_of(1, now)
    }

    fn spend_idle_of(&mut self, frames: u32, now: Instant) -> Result<(), Fault> {
        match self.idle_frames.spend(frames, now) {
            true => Ok(()),
            false => Err(Fault::Connection(TOO_IDLE)),
        }
    }

    /// A stream that ends before its time at the peer's cost. A server's resets cost us no more
    /// than the streams that we opened.
    pub(super) fn spend_reset(&mut self, now: Instant) -> Result<(), Broken> {
        if self.role == Role::Client || self.resets.spend(1, now) {
            return Ok(());
        }
        Err(Broken {
            code: Code::ENHANCE_YOUR_CALM,
            reason: "too many streams that are reset (10.5)",
        })
    }

    /// Appends a control frame. What a peer makes us say and does not read ends the connection
    /// at its next frame (`Limits::output_bytes_max`).
    pub(super) fn control(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        if self.broken.is_none() {
            self.output.write(write);
        }
    }

    pub(super) fn write_goodbye(&mut self, last: u32, code: Code) {
        let words = [last, code.0];
        self.control(|out| frame::write_words(out, Kind::GoAway, 0, 0, &words));
    }

    /// Resets a stream that the peer knows of; what is on its way of it will be ignored.
    pub(super) fn write_reset(&mut self, stream: u32, code: Code) {
        self.ignore(stream);
        self.resets_sent.spend_what_is_left();
        self.control(|out| frame::write_words(out, Kind::RstStream, 0, stream, &[code.0]));
    }

    /// What is on its way of a stream that is ended here, or is not taken, is no error.
    pub(super) fn ignore(&mut self, stream: u32) {
        let window = match self.streams.find(stream) {
            Some(slot) => self.streams[slot].receive_window.left(),
            None => self.stream_window,
        };
        self.recent.add(stream, window);
    }

    /// The peer knows our settings: from here on its windows are as large as we said.
    fn settings_taken(&mut self, now: Instant) -> Result<(), Fault> {
        if self.unacknowledged == Unacknowledged::None {
            return self.spend_idle(now);
        }
        self.unacknowledged = Unacknowledged::None;
        self.decoder
            .set_table_bytes_max(self.limits.table_bytes_max);
        let (before, after) = (self.stream_window, self.stream_window_said);
        self.stream_window = after;
        self.recent.grow(after.saturating_sub(before));
        self.each_stream(|connection, slot| {
            let it = &mut connection.streams[slot];
            it.receive_window.resize(before, after);
            // What was collected of a larger window may be all of a smaller one.
            let stream = StreamId(it.id);
            connection.release(stream, 0);
            Ok(())
        })?;
        self.say_stream_window();
        Ok(())
    }

    /// One SETTINGS at a time is on its way, so that the peer makes us remember no more.
    fn say_stream_window(&mut self) {
        let bytes = self.stream_window_wanted;
        if self.unacknowledged != Unacknowledged::None || bytes == self.stream_window_said {
            return;
        }
        self.stream_window_said = bytes;
        self.unacknowledged = Unacknowledged::Later;
        self.control(|out| settings::write_stream_window(out, bytes));
    }

    /// Section 6.9.2.
    fn resize_send_windows(&mut self, before: u32, after: u32) -> Result<(), Fault> {
        self.each_stream(|connection, slot| {
            let window = &mut connection.streams[slot].send_window;
            if window.resize(before, after) == Err(Overflow) {
                return Err(window_overflow());
            }
            connection.schedule(slot);
            Ok(())
        })
    }
}

fn window_overflow() -> Fault {
    let why = "a window above 2^31 - 1 (6.9.1)";
    Fault::connection(Code::FLOW_CONTROL_ERROR, why)
}

const TOO_IDLE: Broken = Broken {
    code: Code::ENHANCE_YOUR_CALM,
    reason: "too many frames that do nothing (10.5)",
};

/// So that an answer to nothing is not taken for one.
const OUR_PING: [u32; 2] = [0x6865_6464, 0x6c65_2121];

/// Of a window's increment, below which it is one of the frames that bring nothing.
const UPDATE_MIN: u32 = 1024;
