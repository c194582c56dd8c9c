//! What was found wrong, with the status that answers it.

use crate::event::{Broken, Code, StreamId};

/// What came is not HTTP/1.1 that may be passed on, and nothing after it can be understood: the
/// connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Malformed {
    /// Of the answer: to a request, what RFC 9112 and RFC 9110 name; for an endpoint's answer 502,
    /// which its client gets.
    pub status: u16,
    /// In words.
    pub reason: &'static str,
    /// On this stream an answer can still be sent; the connection ends behind it, and without one
    /// at once. `None` for a client, and when an answer has begun.
    pub answer: Option<StreamId>,
}

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self {
            code: Code::PROTOCOL_ERROR,
            reason: malformed.reason,
        }
    }
}

/// As [`Malformed`], before it is known what it is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// For a request.
    pub status: u16,
    /// In words.
    pub reason: &'static str,
}

impl Fault {
    /// 400 (RFC 9112 section 2.2 and others).
    pub(super) const fn bad(reason: &'static str) -> Self {
        Self {
            status: 400,
            reason,
        }
    }

    /// 431 (RFC 6585 section 5).
    pub(super) const fn too_large(reason: &'static str) -> Self {
        Self {
            status: 431,
            reason,
        }
    }

    /// 408 (RFC 9110 section 15.5.9).
    pub(super) const LATE: Self = Self {
        status: 408,
        reason: "the head did not arrive in time",
    };

    /// 414 (RFC 9112 section 3).
    pub(super) const LINE_TOO_LONG: Self = Self {
        status: 414,
        reason: "the first line is too long",
    };

    /// 501 (RFC 9112 section 6.1).
    pub(super) const CODING_UNKNOWN: Self = Self {
        status: 501,
        reason: "no transfer coding but chunked is understood",
    };

    /// 505 (RFC 9110 section 15.6.6).
    pub(super) const VERSION_UNKNOWN: Self = Self {
        status: 505,
        reason: "neither HTTP/1.0 nor HTTP/1.1",
    };
}
