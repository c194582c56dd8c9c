//! Frames as they are on the wire (RFC 9113 sections 4 and 6): their header, the rules that a
//! header alone can break, and the small frames that a connection writes by itself.

use super::fault::Fault;
use crate::event::{Code, StreamId, Then};

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 9;

/// What a client sends first (RFC 9113 section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The largest stream number and the largest window (31 bits).
pub(super) const MAX_31_BITS: u32 = 0x7fff_ffff;

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Of the payload; 24 bits.
    pub(super) len: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    /// Zero for the connection; 31 bits.
    pub(super) stream: u32,
}

/// A frame's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Data,
    Headers,
    Priority,
    RstStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// Any other: it is ignored (RFC 9113 section 4.1).
    Unknown,
}

/// Of SETTINGS and PING.
pub(super) const ACK: u8 = 0x1;
/// Of DATA and HEADERS.
pub(super) const END_STREAM: u8 = 0x1;
/// Of HEADERS and CONTINUATION.
pub(super) const END_HEADERS: u8 = 0x4;
/// Of DATA and HEADERS.
pub(super) const PADDED: u8 = 0x8;
/// Of HEADERS.
pub(super) const PRIORITY: u8 = 0x20;

impl FrameHeader {
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Self {
        let [l1, l2, l3, kind, flags, s1, s2, s3, s4] = bytes;
        Self {
            len: u32::from_be_bytes([0, l1, l2, l3]),
            kind: Kind::of(kind),
            flags,
            stream: u32::from_be_bytes([s1, s2, s3, s4]) & MAX_31_BITS,
        }
    }

    pub(super) fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether END_STREAM is set; only DATA and HEADERS have it.
    pub(super) fn then(self) -> Then {
        match self.has(END_STREAM) {
            true => Then::End,
            false => Then::More,
        }
    }

    /// The rules of section 6 about stream numbers and lengths. A length that is wrong is an
    /// error of the connection also where the RFC would let it be one of the stream (section
    /// 5.4.1 allows it), but for PRIORITY, which has nothing to do with the connection.
    pub(super) fn check(self, frame_bytes_max: u32) -> Result<(), Fault> {
        if self.len > frame_bytes_max {
            return Err(Fault::size("a frame above our MAX_FRAME_SIZE (4.2)"));
        }
        let of_stream = |is_right_len, why| match (self.stream, is_right_len) {
            (0, _) => Err(Fault::protocol("a frame of a stream on stream 0 (6)")),
            (_, false) => Err(Fault::size(why)),
            (_, true) => Ok(()),
        };
        let of_connection = |is_right_len, why| match (self.stream, is_right_len) {
            (0, true) => Ok(()),
            (0, false) => Err(Fault::size(why)),
            (_, _) => Err(Fault::protocol("a connection's frame on a stream (6)")),
        };
        let prefix = u32::from(self.has(PADDED));
        match self.kind {
            Kind::Data => of_stream(self.len >= prefix, "DATA without its padding length (6.1)"),
            Kind::Headers => {
                let prefix = prefix + if self.has(PRIORITY) { 5 } else { 0 };
                of_stream(
                    self.len >= prefix,
                    "HEADERS without what its flags say (6.2)",
                )
            }
            Kind::Priority if self.stream != 0 && self.len != 5 => Err(Fault::Stream(
                StreamId(self.stream),
                Code::FRAME_SIZE_ERROR,
                "PRIORITY has 5 bytes (6.3)",
            )),
            Kind::Priority => of_stream(true, ""),
            Kind::RstStream => of_stream(self.len == 4, "RST_STREAM has 4 bytes (6.4)"),
            Kind::Settings if self.has(ACK) => of_connection(
                self.len == 0,
                "an acknowledgement of SETTINGS is empty (6.5)",
            ),
            Kind::Settings => of_connection(
                self.len.is_multiple_of(6),
                "SETTINGS has 6 bytes for each (6.5)",
            ),
            // ENABLE_PUSH is 0, and clients never push (6.6, 8.4).
            Kind::PushPromise => Err(Fault::protocol("PUSH_PROMISE, and push is off (6.6)")),
            Kind::Ping => of_connection(self.len == 8, "PING has 8 bytes (6.7)"),
            Kind::GoAway => of_connection(self.len >= 8, "GOAWAY has at least 8 bytes (6.8)"),
            Kind::WindowUpdate if self.len != 4 => {
                Err(Fault::size("WINDOW_UPDATE has 4 bytes (6.9)"))
            }
            Kind::WindowUpdate | Kind::Unknown => Ok(()),
            Kind::Continuation => of_stream(true, ""),
        }
    }

    /// How much of the payload is looked at in one piece. DATA is passed on as it comes, and
    /// what is not looked at is not kept.
    pub(super) fn wanted(self) -> usize {
        let bytes = match self.kind {
            Kind::Data => u32::from(self.has(PADDED)),
            Kind::GoAway => 8,
            Kind::Unknown | Kind::Priority => 0,
            Kind::Headers
            | Kind::RstStream
            | Kind::Settings
            | Kind::PushPromise
            | Kind::Ping
            | Kind::WindowUpdate
            | Kind::Continuation => self.len,
        };
        bytes as usize
    }
}

impl Kind {
    fn of(byte: u8) -> Self {
        match byte {
            0x0 => Self::Data,
            0x1 => Self::Headers,
            0x2 => Self::Priority,
            0x3 => Self::RstStream,
            0x4 => Self::Settings,
            0x5 => Self::PushPromise,
            0x6 => Self::Ping,
            0x7 => Self::GoAway,
            0x8 => Self::WindowUpdate,
            0x9 => Self::Continuation,
            _ => Self::Unknown,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Data => 0x0,
            Self::Headers => 0x1,
            Self::Priority => 0x2,
            Self::RstStream => 0x3,
            Self::Settings => 0x4,
            Self::PushPromise => 0x5,
            Self::Ping => 0x6,
            Self::GoAway => 0x7,
            Self::WindowUpdate => 0x8,
            Self::Continuation => 0x9,
            Self::Unknown => 0xff,
        }
    }
}

/// Four bytes of a payload whose length has been checked.
pub(super) fn word(payload: &[u8]) -> u32 {
    let bytes = payload.first_chunk().expect("`check` looked at the length");
    u32::from_be_bytes(*bytes)
}

/// The header of a frame of `len` bytes, which is at most the peer's MAX_FRAME_SIZE (24 bits).
pub(super) fn header(kind: Kind, flags: u8, stream: u32, len: usize) -> [u8; HEADER_BYTES] {
    let len = u32::try_from(len).expect("frames are cut at MAX_FRAME_SIZE");
    let [_, l1, l2, l3] = len.to_be_bytes();
    let [s1, s2, s3, s4] = stream.to_be_bytes();
    [l1, l2, l3, kind.byte(), flags, s1, s2, s3, s4]
}

/// A frame whose payload is a few words.
pub(super) fn write_words(out: &mut Vec<u8>, kind: Kind, flags: u8, stream: u32, words: &[u32]) {
    out.extend_from_slice(&header(kind, flags, stream, 4 * words.len()));
    for word in words {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Writes HEADERS with what `encode` appends as its block, cut into CONTINUATIONs where it is
/// longer than `frame_bytes_max`.
pub(super) fn write_block(
    out: &mut Vec<u8>,
    stream: u32,
    then: Then,
    frame_bytes_max: usize,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let flags = match then {
        Then::End => END_STREAM,
        Then::More => 0,
    };
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    encode(out);
    let block = start + HEADER_BYTES;
    let len = out.len() - block;
    if len <= frame_bytes_max {
        let header = header(Kind::Headers, flags | END_HEADERS, stream, len);
        out[start..block].copy_from_slice(&header);
        return;
    }
    // Rare, so it may copy what follows the first frame.
    let rest = out.split_off(block + frame_bytes_max);
    let first = header(Kind::Headers, flags, stream, frame_bytes_max);
    out[start..block].copy_from_slice(&first);
    let mut pieces = rest.chunks(frame_bytes_max).peekable();
    while let Some(piece) = pieces.next() {
        let flags = if pieces.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        out.extend_from_slice(&header(Kind::Continuation, flags, stream, piece.len()));
        out.extend_from_slice(piece);
    }
}
