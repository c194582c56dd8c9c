//! Heads that go: fields into bytes. What the head says about the connection is not written (it is
//! not this one's); what this connection needs is added.

use super::{
    fields::{is_token, parse_length},
    hop::{Form, Version},
    parse::{digits, is_trailer},
    target::check_authority,
};
use crate::{
    head::{Field, Head},
    token::Token,
};

/// What is said about the connection and the body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options<'a> {
    /// What becomes of the head's `content-length`.
    pub length: Length,
    /// Chunks follow.
    pub is_chunked: bool,
    /// No other exchange follows.
    pub closes: bool,
    /// To a client of HTTP/1.0: another may follow.
    pub keeps_alive: bool,
    /// What is asked for or switched to.
    pub upgrade: Option<&'a [u8]>,
}

/// See [`Options::length`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Length {
    /// It stays where it is.
    Kept,
    /// It is not written.
    #[default]
    Dropped,
    /// None is there; this one is said.
    Zero,
}

/// What makes a head one that HTTP/1.1 cannot say, in words; nothing has been written then.
pub(super) fn check_request(head: &Head) -> Result<(), &'static str> {
    let method = head.get(Token::Method).unwrap_or_default();
    if !is_token(method) {
        return Err("the method is not a token");
    }
    if check_authority(authority(head)).is_err() {
        return Err("the authority is not a host and a port");
    }
    if !is_token(head.get(Token::Scheme).unwrap_or(b"http")) {
        return Err("the scheme is not a name");
    }
    let path = head.get(Token::Path).unwrap_or_default();
    let is_whole = match path {
        b"*" => method == b"OPTIONS",
        [b'/', ..] => true,
        _ => method == b"CONNECT",
    };
    let is_visible = path
        .iter()
        .fold(true, |is, byte| is & (*byte > b' ') & (*byte != 0x7f));
    if !is_visible || !is_whole {
        return Err("the path has a space or a control character, or does not begin with a slash");
    }
    Ok(())
}

/// A request that [`check_request`] lets through.
pub(super) fn request(out: &mut Vec<u8>, head: &Head, form: Form, options: Options<'_>) {
    let authority = authority(head);
    let method = head.get(Token::Method).unwrap_or_default();
    let path = head.get(Token::Path).unwrap_or_default();
    put(out, &[method, b" "]);
    match method {
        b"CONNECT" => put(out, &[authority]),
        _ if form.is_absolute && !authority.is_empty() => {
            let scheme = head.get(Token::Scheme).unwrap_or(b"http");
            let path = if path == b"*" { b"" } else { path };
            put(out, &[scheme, b"://", authority, path]);
        }
        _ => put(out, &[path]),
    }
    match form.version {
        Version::Http10 => put(out, &[b" HTTP/1.0\r\n"]),
        Version::Http11 => put(out, &[b" HTTP/1.1\r\n"]),
    }
    // First, as RFC 9110 section 7.2 advises.
    if form.version == Version::Http11 || !authority.is_empty() {
        put_field(out, b"host", authority);
    }
    let mut has_te = false;
    let mut has_cookie = false;
    for field in head.iter() {
        match Place::of(field, options.length) {
            Place::Here if field.token == Token::Host => {}
            Place::Here if field.token == Token::Expect && form.version == Version::Http10 => {}
            Place::Here if field.token == Token::Cookie => {
                if !std::mem::replace(&mut has_cookie, true) {
                    put_cookies(out, head);
                }
            }
            Place::Here => put_field(out, field.name, field.value),
            Place::Te => has_te = field.value == b"trailers",
            Place::Elsewhere => {}
        }
    }
    if has_te {
        put(out, &[b"te: trailers\r\n"]);
    }
    put_connection(out, options, has_te);
}

/// An answer, also an interim one.
pub(super) fn answer(out: &mut Vec<u8>, head: &Head, status: u16, options: Options<'_>) {
    let digits = digits(status);
    // The words of whoever answered are not passed on: they mean nothing (RFC 9112 section 4), and
    // HTTP/2 cannot carry them.
    put(out, &[b"HTTP/1.1 ", &digits, b" ", phrase(status), b"\r\n"]);
    for field in head.iter() {
        match Place::of(field, options.length) {
            Place::Here => put_field(out, field.name, field.value),
            Place::Te | Place::Elsewhere => {}
        }
    }
    put_connection(out, options, false);
}

/// Trailers, behind the last chunk, with their empty line.
pub(super) fn trailers(out: &mut Vec<u8>, head: &Head) {
    for field in head.iter().filter(|field| is_trailer(field.token)) {
        put_field(out, field.name, field.value);
    }
    put(out, &[b"\r\n"]);
}

/// The one length that the head says, if it says one that can be believed.
pub(super) fn length(head: &Head) -> Option<u64> {
    let mut lengths = head.all(Token::ContentLength);
    match (lengths.next(), lengths.next()) {
        (Some(length), None) => parse_length(length).ok(),
        (Some(_) | None, _) => None,
    }
}

/// The line before a chunk.
pub(super) fn chunk_line(out: &mut Vec<u8>, size: usize) {
    let digits_max = size_of::<usize>() * 2;
    let digits = (0..digits_max).rev().map(|at| size >> (4 * at) & 0xf);
    let digits = digits.skip_while(|digit| *digit == 0);
    out.extend(digits.map(|digit| b"0123456789abcdef"[digit]));
    put(out, &[b"\r\n"]);
}

/// Where a field is written.
enum Place {
    /// Where it is.
    Here,
    /// With what is said about the connection, if it says what may pass.
    Te,
    /// With the first line, with what is said about the connection, or not at all.
    Elsewhere,
}

impl Place {
    fn of(field: Field<'_>, length: Length) -> Self {
        let token = field.token;
        if token == Token::Te {
            return Self::Te;
        }
        let is_dropped = token == Token::ContentLength && length != Length::Kept;
        if token.is_pseudo() || token.is_of_connection() || is_dropped {
            return Self::Elsewhere;
        }
        Self::Here
    }
}

/// HTTP/2 may say it in `host` only (RFC 9113 section 8.3.1).
fn authority(head: &Head) -> &[u8] {
    let authority = head.get(Token::Authority);
    authority
        .or_else(|| head.get(Token::Host))
        .unwrap_or_default()
}

/// In one field, however many crumbs HTTP/2 made of it (RFC 9113 section 8.2.3).
fn put_cookies(out: &mut Vec<u8>, head: &Head) {
    put(out, &[b"cookie: "]);
    for (n, cookie) in head.all(Token::Cookie).enumerate() {
        if n > 0 {
            put(out, &[b"; "]);
        }
        put_value(out, cookie);
    }
    put(out, &[b"\r\n"]);
}

/// What this connection adds, and the empty line.
fn put_connection(out: &mut Vec<u8>, options: Options<'_>, has_te: bool) {
    if options.length == Length::Zero {
        put(out, &[b"content-length: 0\r\n"]);
    }
    if options.is_chunked {
        put(out, &[b"transfer-encoding: chunked\r\n"]);
    }
    if let Some(protocol) = options.upgrade {
        put_field(out, b"upgrade", protocol);
    }
    let words = [
        (options.closes, &b"close"[..]),
        (options.keeps_alive && !options.closes, b"keep-alive"),
        (options.upgrade.is_some(), b"upgrade"),
        // RFC 9110 section 10.1.4.
        (has_te, b"te"),
    ];
    let mut words = words.iter().filter(|(is_said, _)| *is_said);
    if let Some((_, first)) = words.next() {
        put(out, &[b"connection: ", first]);
        for (_, word) in words {
            put(out, &[b", ", word]);
        }
        put(out, &[b"\r\n"]);
    }
    put(out, &[b"\r\n"]);
}

fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, &[name, b": "]);
    put_value(out, value);
    put(out, &[b"\r\n"]);
}

/// Decoders let no line end into a value, and neither does this (RFC 9110 section 5.5 has it become
/// a space): a second lock on the door of answers that nobody gave.
fn put_value(out: &mut Vec<u8>, value: &[u8]) {
    let start = out.len();
    out.extend_from_slice(value);
    for byte in &mut out[start..] {
        let is_end = matches!(*byte, b'\r' | b'\n' | 0);
        *byte = if is_end { b' ' } else { *byte };
    }
}

fn put(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The reason phrase of a status (RFC 9110 section 15 and the registry); empty where there is
/// none.
fn phrase(status: u16) -> &'static [u8] {
    let found = PHRASES.binary_search_by_key(&status, |(status, _)| *status);
    found.map_or(&b""[..], |at| PHRASES[at].1.as_bytes())
}

const PHRASES: &[(u16, &str)] = &[
    (100, "Continue"),
    (101, "Switching Protocols"),
    (102, "Processing"),
    (103, "Early Hints"),
    (200, "OK"),
    (201, "Created"),
    (202, "Accepted"),
    (203, "Non-Authoritative Information"),
    (204, "No Content"),
    (205, "Reset Content"),
    (206, "Partial Content"),
    (207, "Multi-Status"),
    (208, "Already Reported"),
    (226, "IM Used"),
    (300, "Multiple Choices"),
    (301, "Moved Permanently"),
    (302, "Found"),
    (303, "See Other"),
    (304, "Not Modified"),
    (305, "Use Proxy"),
    (307, "Temporary Redirect"),
    (308, "Permanent Redirect"),
    (400, "Bad Request"),
    (401, "Unauthorized"),
    (402, "Payment Required"),
    (403, "Forbidden"),
    (404, "Not Found"),
    (405, "Method Not Allowed"),
    (406, "Not Acceptable"),
    (407, "Proxy Authentication Required"),
    (408, "Request Timeout"),
    (409, "Conflict"),
    (410, "Gone"),
    (411, "Length Required"),
    (412, "Precondition Failed"),
    (413, "Content Too Large"),
    (414, "URI Too Long"),
    (415, "Unsupported Media Type"),
    (416, "Range Not Satisfiable"),
    (417, "Expectation Failed"),
    (421, "Misdirected Request"),
    (422, "Unprocessable Content"),
    (423, "Locked"),
    (424, "Failed Dependency"),
    (425, "Too Early"),
    (426, "Upgrade Required"),
    (428, "Precondition Required"),
    (429, "Too Many Requests"),
    (431, "Request Header Fields Too Large"),
    (451, "Unavailable For Legal Reasons"),
    (500, "Internal Server Error"),
    (501, "Not Implemented"),
    (502, "Bad Gateway"),
    (503, "Service Unavailable"),
    (504, "Gateway Timeout"),
    (505, "HTTP Version Not Supported"),
    (506, "Variant Also Negotiates"),
    (507, "Insufficient Storage"),
    (508, "Loop Detected"),
    (511, "Network Authentication Required"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_written_in_hexadecimal() {
        for size in [1, 9, 10, 15, 16, 255, 1 << 32, usize::MAX] {
            let mut line = Vec::new();
            chunk_line(&mut line, size);
            assert_eq!(line, format!("{size:x}\r\n").into_bytes());
        }
    }

    #[test]
    fn phrases_are_found() {
        assert!(PHRASES.is_sorted_by_key(|(status, _)| *status));
        assert_eq!(phrase(404), b"Not Found");
        assert_eq!(phrase(299), b"");
    }
}
