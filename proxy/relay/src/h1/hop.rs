//! What a head of HTTP/1 says that HTTP/2 has no words for.

use crate::{
    head::{Head, Indexing},
    token::Token,
};

/// How a request is written. With it, beside the fields of its [`crate::head::Head`], a request that
/// went through HTTP/2 is rebuilt as it was. An upgrade is in the head, as `:protocol` (RFC 8441
/// section 4) beside the request's own method; an expectation and `te: trailers` are fields as in
/// HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Form {
    /// Its sender's version; of an answer too.
    pub version: Version,
    /// Its target is a whole URI.
    pub is_absolute: bool,
}

impl Form {
    /// Says it in a head that goes to another sidecar over HTTP/2, unless it is the ordinary one.
    pub fn mark(self, head: &mut Head) {
        let text: &[u8] = match (self.version, self.is_absolute) {
            (Version::Http11, false) => return,
            (Version::Http11, true) => ABSOLUTE,
            (Version::Http10, false) => HTTP_10,
            (Version::Http10, true) => HTTP_10_ABSOLUTE,
        };
        head.push(MARK, text, Indexing::Allowed);
    }

    /// What another sidecar has said of it; no more in `head` after that.
    pub fn unmark(head: &mut Head) -> Self {
        if !head.has(Token::Other) {
            return Self::default();
        }
        let mut form = None;
        head.retain(|field| {
            let is_mark = field.name == MARK;
            if is_mark {
                form.get_or_insert(Self {
                    version: match field.value {
                        HTTP_10 | HTTP_10_ABSOLUTE => Version::Http10,
                        _ => Version::Http11,
                    },
                    is_absolute: matches!(field.value, ABSOLUTE | HTTP_10_ABSOLUTE),
                });
            }
            !is_mark
        });
        form.unwrap_or_default()
    }
}

const MARK: &[u8] = b"x-heddle-form";
const ABSOLUTE: &[u8] = b"absolute";
const HTTP_10: &[u8] = b"1.0";
const HTTP_10_ABSOLUTE: &[u8] = b"1.0 absolute";

/// What a head says for this hop, and what follows from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// How it was written.
    pub form: Form,
    /// The client waits for a 100 before it sends its body.
    pub expects_continue: bool,
    /// The body of an answer ends with the connection: where the connection breaks nobody can
    /// tell that it was not whole.
    pub ends_by_closing: bool,
    /// Its sender uses the connection for no other exchange.
    pub closes: bool,
}

/// A version of HTTP/1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// What matters of a method for how messages are delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    /// Its answer has no body.
    Head,
    /// Its answer of 2xx makes a tunnel.
    Connect,
    /// One whose request anticipates a body (RFC 9110 section 8.6).
    Sending,
    Other,
}

impl Method {
    pub(super) fn of(method: &[u8]) -> Self {
        match method {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            b"POST" | b"PUT" | b"PATCH" => Self::Sending,
            _ => Self::Other,
        }
    }
}

/// How the end of a body is told (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    Nothing,
    /// By so many bytes, or so many that are left.
    Length(u64),
    /// By a last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}
