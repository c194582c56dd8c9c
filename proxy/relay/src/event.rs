//! What a connection tells whoever relays it, whatever protocol it speaks.

use crate::{head::Head, input::Payload};

/// A stream of a connection. HTTP/1.1 numbers its exchanges as HTTP/2 numbers its streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// Whether more of a stream follows in the same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// More follows.
    More,
    /// It was the last.
    End,
}

/// What came.
#[derive(Debug)]
pub enum Event<'a> {
    /// From a client: a request, which begins the stream. From an endpoint: its final answer.
    Head {
        /// Of which stream.
        stream: StreamId,
        /// Well-formed: pseudo-headers first, each at most once, names and values valid.
        head: Head,
        /// Whether a body or trailers follow.
        then: Then,
    },
    /// From a client: a request whose header list is over its limit. It begins a stream that has no
    /// [`Event::Head`]; what of it comes is to be left, and it is to be answered (431).
    TooLarge {
        /// Of which stream.
        stream: StreamId,
        /// The fields before the one that was too much; nobody has looked at them together. For
        /// records, and for the form of the answer; no policy can judge it.
        head: Head,
        /// Whether a body or trailers follow.
        then: Then,
    },
    /// From an endpoint: an interim answer (1xx), before the final one.
    Interim {
        /// Of which stream.
        stream: StreamId,
        /// With `:status`.
        head: Head,
    },
    /// A piece of a body, in order. May be empty at the end.
    Data {
        /// Of which stream.
        stream: StreamId,
        /// The bytes.
        data: Payload<'a>,
        /// How much of the stream's window is given back with `release` when the piece has been
        /// passed on: its length. What padding took has been given back already.
        credit: u32,
        /// Whether more follows.
        then: Then,
    },
    /// Ends a body; without pseudo-headers.
    Trailers {
        /// Of which stream.
        stream: StreamId,
        /// The fields.
        head: Head,
    },
    /// The stream is over in both directions: nothing more comes, and nothing can be sent.
    Reset {
        /// Of which stream.
        stream: StreamId,
        /// Why.
        code: Code,
        /// Who ended it.
        by: By,
    },
    /// The stream takes more: what waited on it has gone out.
    Writable {
        /// Of which stream.
        stream: StreamId,
        /// Bytes of its body that have gone since they were taken.
        sent: u32,
    },
    /// The other side takes no new streams (GOAWAY; `Connection: close`).
    Goodbye {
        /// Streams above it were not processed, and are reset with [`Code::REFUSED_STREAM`].
        last: StreamId,
        /// Why.
        code: Code,
    },
    /// The answer to a ping of ours.
    Pong,
    /// The other side allows another number of streams at a time.
    StreamsMax(u32),
}

/// Who ended a stream before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The other side.
    Peer,
    /// The connection, which found something malformed.
    Us,
}

/// An error code of RFC 9113 section 7. Unknown ones are kept as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Code(pub u32);

impl Code {
    /// Not an error.
    pub const NO_ERROR: Self = Self(0x0);
    /// Something that no other code says better.
    pub const PROTOCOL_ERROR: Self = Self(0x1);
    /// Our own fault.
    pub const INTERNAL_ERROR: Self = Self(0x2);
    /// More than a window allows.
    pub const FLOW_CONTROL_ERROR: Self = Self(0x3);
    /// Settings were not acknowledged.
    pub const SETTINGS_TIMEOUT: Self = Self(0x4);
    /// A frame for a stream that is closed in that direction.
    pub const STREAM_CLOSED: Self = Self(0x5);
    /// A frame of a size that it cannot have.
    pub const FRAME_SIZE_ERROR: Self = Self(0x6);
    /// Nothing of the stream was processed.
    pub const REFUSED_STREAM: Self = Self(0x7);
    /// Not needed any more.
    pub const CANCEL: Self = Self(0x8);
    /// The header compression's state is lost.
    pub const COMPRESSION_ERROR: Self = Self(0x9);
    /// The connection that CONNECT made is lost.
    pub const CONNECT_ERROR: Self = Self(0xa);
    /// Work without end.
    pub const ENHANCE_YOUR_CALM: Self = Self(0xb);
    /// TLS below what is required.
    pub const INADEQUATE_SECURITY: Self = Self(0xc);
    /// Not over HTTP/2.
    pub const HTTP_1_1_REQUIRED: Self = Self(0xd);
}

/// Why a connection cannot go on. What it has to say about it is in its output already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Broken {
    /// As in its last GOAWAY.
    pub code: Code,
    /// In words, with the section of the RFC.
    pub reason: &'static str,
}
