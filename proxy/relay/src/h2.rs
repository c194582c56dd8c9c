//! A connection of HTTP/2 (RFC 9113), with extended CONNECT (RFC 8441), in either role.
//!
//! It does not move bytes, and does not know what its streams are for. Push is refused, and
//! priorities are ignored.
//!
//! ```text
//!          receive                                  open, send_head, send_data, send_trailers
//!  Input ─► frame ─► hpack ─► fields ─► Event               │ at once            │ else
//!             │                                             ▼                    ▼
//!             ├─ DATA: flow, length ─► Event              Output ◄── fill ◄── streams (queues)
//!             └─ control: settings, flow ─► Output          │                  └─ pieces
//!                                                           ▼         what waits, of all streams
//!                                                         driver
//!
//!  a stream:  receiving  Head ─► Body ─► Ended         (a server begins at Body)
//!             sending    Head ─► Body ─► Ending ─► Ended      (a client begins at Body;
//!                                          Ending: the end waits within)
//!             both Ended, or RST_STREAM: it is over, and its place is free
//! ```
//!
//! With [`Upgrade::Http1`] it carries HTTP/1.1 between two sidecars, upgrades too, which look as in
//! [`crate::h1`]: `:protocol` stands beside the request's own method, and the request, which has no
//! body, is told and sent as over (`Then::End`) though its stream stays open. 101 with `:protocol` is
//! no interim answer but the final one, and from then on there are bytes in both directions until
//! each has ended. With any other answer the codecs end the request's half by themselves. Whoever
//! relays leaves `:protocol` out of a request by HEAD, by CONNECT, or with a body, which HTTP/1.1
//! allows (RFC 9110 section 7.8).
//!
//! Output is written in the order control frames, heads, DATA: the first go straight to the
//! output, heads pass what waits of bodies, and bodies take turns of 16 KiB. When nothing waits
//! and the output is short, heads and bodies go straight to the output too.
//!
//! Memory is bounded by [`Limits`] and by the window that a relay gives to whoever sends what is
//! sent here:
//!
//! * an incomplete frame: one, of `frame_bytes_max` bytes, and never of DATA;
//! * a header block that is not whole: one, of twice `list_bytes_max` bytes;
//! * output: `output_bytes`, one head or 16 KiB, and answers to control frames up to
//!   [`Broken`] with ENHANCE_YOUR_CALM;
//! * heads that wait: `Limits::heads_bytes_max`, above which a client opens no stream, and a server
//!   drops interim answers and takes no more frames;
//! * per stream (`streams_max` of them): what its source was given credit for.
//!
//! Files: `receive` turns bytes into frames; `control` takes those of the connection, `message` heads
//! and trailers, `body` what else streams have; `send` is the other direction. The rest are their
//! parts.

mod body;
mod control;
mod fault;
mod fields;
mod flow;
mod frame;
mod limits;
mod message;
mod pieces;
mod receive;
mod recent;
mod send;
mod settings;
mod streams;
#[cfg(test)]
mod tests;

use std::{fmt, time::Instant};

use self::{
    flow::{ReceiveWindow, SendWindow},
    frame::MAX_31_BITS,
    limits::Budget,
    pieces::Pieces,
    receive::{Assembling, Reading},
    recent::Recent,
    settings::{INITIAL_WINDOW, Settings},
    streams::{Queue, Streams},
};
pub use self::{
    limits::{ADDED_BYTES_MAX, ADDED_FIELDS_MAX, Limits, Rate, Upgrade},
    send::Refusal,
};
use crate::{
    event::{Broken, Code, StreamId},
    hpack::{Decoder, Encoder},
    output::Output,
};

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Accepts streams.
    Server,
    /// Opens streams.
    Client,
}

/// SETTINGS of ours that are on their way: one at a time.
///
/// A peer that does not acknowledge the first ones speaks no HTTP/2, or is not there. The later ones
/// only tell of windows, and what the peer has not heard of is not held against it: it may be slow,
/// which is no reason to end what it does (RFC 9113 section 6.5.3 says MAY).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unacknowledged {
    None,
    First { due: Instant },
    Later,
}

impl Unacknowledged {
    fn due(self) -> Option<Instant> {
        match self {
            Self::First { due } => Some(due),
            Self::None | Self::Later => None,
        }
    }
}

/// A connection.
pub struct Connection {
    role: Role,
    limits: Limits,
    /// Set once; then nothing is received or sent any more.
    broken: Option<Broken>,
    /// Why the last stream was reset by us, for people.
    last_fault: Option<&'static str>,

    /// Where in the input we are.
    reading: Reading,
    /// The beginning of a frame whose rest has not come. At most 9 bytes and `frame_bytes_max`.
    partial: Vec<u8>,
    /// Until when its rest is to come.
    partial_due: Option<Instant>,
    /// The beginning of a header block, at most [`Limits::block_bytes_max`].
    block: Vec<u8>,
    /// Whose block that is; until its end no other frame may come.
    assembling: Option<Assembling>,
    decoder: Decoder,
    receive_window: ReceiveWindow,
    resets: Budget,
    resets_sent: Budget,
    idle_frames: Budget,

    /// The peer's, once its first SETTINGS have come.
    peer: Settings,
    has_settings: bool,
    /// Which SETTINGS of ours have not been acknowledged.
    unacknowledged: Unacknowledged,
    /// What new streams may receive, as the peer knows it.
    stream_window: u32,
    /// The same, from the acknowledgement on that is due.
    stream_window_said: u32,
    /// The same, as [`Connection::set_stream_window`] wants it.
    stream_window_wanted: u32,
    /// Pings of ours that are not answered yet.
    pings: u32,

    streams: Streams,
    recent: Recent,
    /// The highest stream that both sides know of; those above are idle.
    highest: u32,
    /// Whether no number below `highest` was left out, so that all of them have been streams.
    is_dense: bool,
    /// Of the next stream that we open.
    next_id: u32,
    /// The peer's GOAWAY: streams above are not processed.
    peer_last: Option<u32>,
    /// As a client, after it: streams above are to be told as refused. None may be begun either.
    refused_above: u32,
    /// Our final GOAWAY: streams above are ignored.
    our_last: Option<u32>,

    encoder: Encoder,
    send_window: SendWindow,
    pieces: Pieces,
    output: Output,
}

impl Connection {
    /// A new one: what it has to say first is in its output at once.
    pub fn new(role: Role, limits: &Limits, now: Instant) -> Self {
        let mut output = Output::default();
        output.write(|out| settings::write_first(out, role, limits));
        Self {
            role,
            broken: None,
            last_fault: None,
            reading: match role {
                Role::Server => Reading::Preface { seen: 0 },
                Role::Client => Reading::Frame,
            },
            partial: Vec::new(),
            partial_due: None,
            block: Vec::new(),
            assembling: None,
            decoder: Decoder::new(limits.table_bytes_max),
            receive_window: ReceiveWindow::new(limits.connection_window.max(INITIAL_WINDOW)),
            resets: Budget::new(limits.resets, now),
            resets_sent: Budget::new(limits.resets_sent, now),
            idle_frames: Budget::new(limits.idle_frames, now),
            peer: Settings::default(),
            has_settings: false,
            unacknowledged: Unacknowledged::First {
                due: now + limits.settings_timeout,
            },
            stream_window: INITIAL_WINDOW,
            stream_window_said: limits.stream_window,
            stream_window_wanted: limits.stream_window,
            pings: 0,
            streams: Streams::new(),
            recent: Recent::default(),
            highest: 0,
            is_dense: true,
            next_id: 1,
            peer_last: None,
            refused_above: u32::MAX,
            our_last: None,
            encoder: Encoder::new(),
            send_window: SendWindow::new(INITIAL_WINDOW),
            pieces: Pieces::default(),
            output,
            limits: limits.clone(),
        }
    }

    /// Ends the connection when something is overdue at `now`, see [`Connection::deadline`].
    ///
    /// # Errors
    /// SETTINGS_TIMEOUT when our first SETTINGS were not acknowledged, ENHANCE_YOUR_CALM when a frame
    /// or a header block did not come to its end.
    pub fn expire(&mut self, now: Instant) -> Result<(), Broken> {
        if let Some(broken) = self.broken {
            return Err(broken);
        }
        let overdue = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let (code, reason) = if overdue(self.unacknowledged.due()) {
            let reason = "our SETTINGS were not acknowledged in time (6.5.3)";
            (Code::SETTINGS_TIMEOUT, reason)
        } else if overdue(self.partial_due) {
            let reason = "a frame was not ended in time (10.5)";
            (Code::ENHANCE_YOUR_CALM, reason)
        } else if overdue(self.assembling.map(|block| block.due)) {
            let reason = "a header block was not ended in time (10.5)";
            (Code::ENHANCE_YOUR_CALM, reason)
        } else {
            return Ok(());
        };
        Err(self.break_off(Broken { code, reason }))
    }

    /// Gives back memory that a connection at rest does not need. What it does is slow for a busy
    /// one, so call it when nothing has come for a while.
    pub fn shrink(&mut self) {
        self.streams.shrink();
        if self.is_idle() {
            self.pieces.clear_all();
        }
        self.recent.shrink();
        self.partial.shrink_to_fit();
        self.block.shrink_to_fit();
        self.output.shrink();
    }

    /// As a client: whether so many streams were reset of late that more could make the peer end the
    /// connection (it counts them against a flood, as [`Limits::resets`] does here): requests had
    /// better go over another one.
    pub fn is_worn(&mut self, now: Instant) -> bool {
        self.role == Role::Client && self.resets_sent.is_used_up(now)
    }

    /// What is to be written. It may be taken from at any time.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Until when [`Connection::expire`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        let block = self.assembling.map(|block| block.due);
        let due = [self.unacknowledged.due(), self.partial_due, block];
        due.into_iter().flatten().min()
    }

    /// Streams that are not over.
    pub fn streams_active(&self) -> u32 {
        self.streams.len()
    }

    /// Whether there is no stream.
    pub fn is_idle(&self) -> bool {
        self.streams.len() == 0
    }

    /// Whether the stream is not over.
    pub fn has_stream(&self, stream: StreamId) -> bool {
        self.streams.find(stream.0).is_some()
    }

    /// As a client: whether [`Connection::open`] would open one.
    pub fn can_open(&self) -> bool {
        // Until its SETTINGS have come, what they recommend at least (section 6.5.2).
        let allowed = match self.has_settings {
            true => self.peer.streams_max,
            false => 100,
        };
        let streams_max = self.limits.streams_max.min(allowed);
        self.role == Role::Client
            && self.broken.is_none()
            && self.peer_last.is_none()
            && self.next_id <= MAX_31_BITS
            && self.streams.len() < streams_max
            && self.pieces.head_bytes() < self.limits.heads_bytes_max()
    }

    /// As a client: whether extended CONNECT may be sent (RFC 8441 section 3).
    pub fn allows_connect_protocol(&self) -> bool {
        self.peer.has_connect_protocol
    }

    /// Whether the peer's SETTINGS have come.
    pub fn is_settled(&self) -> bool {
        self.has_settings
    }

    /// Whether [`Connection::fill`] has something to move when the output has room.
    pub fn can_fill(&self) -> bool {
        let has_data = !self.streams.is_empty(Queue::Data) && self.send_window.left() > 0;
        self.broken.is_none() && (has_data || !self.streams.is_empty(Queue::Heads))
    }

    /// Bytes of bodies that wait for their turn or for a window, beside the output.
    pub fn waiting_bytes(&self) -> usize {
        self.pieces.waiting_bytes()
    }

    /// As a client: whether the head of the request has gone into the output. What has not, the
    /// peer cannot know of.
    pub fn has_begun(&self, stream: StreamId) -> bool {
        stream.0 <= self.highest
    }

    /// Bytes that it keeps for its streams, and because of its peer: what waits of bodies and heads,
    /// the output, what is not whole of a frame or a header block. For a budget over all connections;
    /// beside it are HPACK's tables and the places of streams, which their limits bound. A piece kept
    /// by reference counts its own length, see [`crate::input::Payload`].
    pub fn kept_bytes(&self) -> usize {
        self.pieces.waiting_bytes()
            + self.pieces.head_bytes()
            + self.pieces.framed_bytes()
            + self.output.len()
            + self.partial.len()
            + self.block.len()
    }

    /// What the whole connection may still send: at zero, its streams wait for the peer.
    pub fn send_window(&self) -> usize {
        self.send_window.left()
    }

    /// Bytes of memory that it takes, its output and HPACK's tables included.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>()
            + self.decoder.memory_bytes()
            + self.encoder.memory_bytes()
            + self.partial.capacity()
            + self.block.capacity()
            + self.streams.memory_bytes()
            + self.recent.memory_bytes()
            + self.pieces.memory_bytes()
            + self.output.memory_bytes()
    }

    /// Why the last stream that we found malformed was reset, with the section of RFC 9113.
    pub fn last_fault(&self) -> Option<&'static str> {
        self.last_fault
    }

    /// Says GOAWAY and stops.
    fn break_off(&mut self, broken: Broken) -> Broken {
        self.write_goodbye(self.last_processed(), broken.code);
        self.broken = Some(broken);
        broken
    }

    /// The peer's last stream that may have been processed.
    fn last_processed(&self) -> u32 {
        match self.role {
            Role::Server => self.our_last.unwrap_or(self.highest),
            Role::Client => 0,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("role", &self.role)
            .field("streams", &self.streams.len())
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}
