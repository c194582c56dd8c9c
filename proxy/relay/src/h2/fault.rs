//! What was found wrong: with the whole connection, or with one stream of it.

use crate::event::{Broken, Code, StreamId};

/// An error of RFC 9113 section 5.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The connection ends with a GOAWAY.
    Connection(Broken),
    /// The stream ends with a RST_STREAM; why is for people.
    Stream(StreamId, Code, &'static str),
}

impl Fault {
    pub(super) fn connection(code: Code, reason: &'static str) -> Self {
        Self::Connection(Broken { code, reason })
    }

    /// The connection's PROTOCOL_ERROR.
    pub(super) fn protocol(reason: &'static str) -> Self {
        Self::connection(Code::PROTOCOL_ERROR, reason)
    }

    /// The connection's FRAME_SIZE_ERROR.
    pub(super) fn size(reason: &'static str) -> Self {
        Self::connection(Code::FRAME_SIZE_ERROR, reason)
    }

    /// The connection's ENHANCE_YOUR_CALM.
    pub(super) fn calm(reason: &'static str) -> Self {
        Self::connection(Code::ENHANCE_YOUR_CALM, reason)
    }

    /// A malformed message (RFC 9113 section 8.1.1).
    pub(super) fn malformed(stream: u32, reason: &'static str) -> Self {
        Self::Stream(StreamId(stream), Code::PROTOCOL_ERROR, reason)
    }
}
