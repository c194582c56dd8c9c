//! A request's head made ready to be judged and forwarded: checked, brought to its one form, with
//! its request id and trace context.
//!
//! What belongs to one hop is gone already: a connection consumes it.

use std::time::Duration;

use heddle_policy::{
    deadline::GrpcTimeout,
    head::{Headers, RequestHead},
    path::{Normal, Strictness},
    retry::is_idempotent,
};
use rand::{Rng, RngExt};

use crate::{
    error::ProxyError,
    head::{Field, Head},
    record::{Spoken, Trace},
    token::Token,
};

/// What is known of a request besides its head.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What it is.
    pub spoken: Spoken,
    /// The caller's own time, if it is gRPC.
    pub timeout: Option<Duration>,
    /// This hop's span.
    pub trace: Trace,
    /// Whether it may be repeated (RFC 9110 section 9.2.2).
    pub is_idempotent: bool,
    /// How much of `:path` is the path.
    path_bytes: usize,
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What a sidecar's settings say about requests.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What is let through of paths that servers disagree about.
    pub paths: Strictness,
    /// Share of traces that are sampled when this sidecar begins them.
    pub sampled_share: f64,
}

impl Request {
    /// Reads and readies a head.
    ///
    /// # Errors
    /// When the request may not be forwarded.
    pub fn ready(
        head: &mut Head,
        version: Version,
        terms: &Terms,
        rng: &mut impl Rng,
    ) -> Result<Self, ProxyError> {
        let method = text(head.get(Token::Method));
        if method == "CONNECT" {
            return Err(ProxyError::ConnectRefused);
        }
        let is_idempotent = is_idempotent(method);
        ready_authority(head, version)?;
        let path_bytes = ready_path(head, terms.paths)?;
        strip_ours(head);
        ready_request_id(head, rng);
        let trace = ready_trace(head, terms.sampled_share, rng);
        let spoken = spoken(head, version);
        let timeout = head
            .get(Token::GrpcTimeout)
            .filter(|_| spoken == Spoken::Grpc);
        let timeout = timeout.and_then(|value| GrpcTimeout::parse(value).ok());
        Ok(Self {
            spoken,
            timeout: timeout.map(|timeout| timeout.0),
            trace,
            is_idempotent,
            path_bytes,
        })
    }

    /// Takes note of what was changed in `head` since.
    ///
    /// # Errors
    /// When the request may not be forwarded so.
    pub fn read_again(
        &mut self,
        head: &mut Head,
        version: Version,
        paths: Strictness,
    ) -> Result<(), ProxyError> {
        ready_authority(head, version)?;
        self.path_bytes = ready_path(head, paths)?;
        Ok(())
    }

    /// For policies.
    pub fn judged<T>(&self, head: &Head, judge: impl FnOnce(&RequestHead<'_>) -> T) -> T {
        judge(&RequestHead {
            method: text(head.get(Token::Method)),
            scheme: "http",
            authority: text(head.get(Token::Authority)),
            path: self.path(head),
            headers: head,
        })
    }

    /// The normalised path, without query.
    pub fn path<'a>(&self, head: &'a Head) -> &'a str {
        text(head.get(Token::Path))
            .get(..self.path_bytes)
            .unwrap_or_default()
    }
}

/// A client of HTTP/1.0 that named no authority meant what it dialled.
pub fn name_if_nameless(head: &mut Head, name: &str) {
    if head.get(Token::Authority).is_none_or(<[u8]>::is_empty) {
        head.set(Token::Authority, name.as_bytes());
    }
}

/// Removes what peers say about their own or others' certificates (Envoy's and Istio's header).
/// The application may believe it from its sidecar, and ours says nothing.
pub fn strip_claims(head: &mut Head) {
    if head.has(Token::XForwardedClientCert) {
        head.retain(|field| field.token != Token::XForwardedClientCert);
    }
}

/// Nobody else sets `x-heddle-*`.
pub fn strip_ours(head: &mut Head) {
    let may_have = head.has(Token::XHeddleReason) || head.has(Token::Other);
    if may_have && head.iter().any(is_ours) {
        head.retain(|field| !is_ours(field));
    }
}

impl Headers for Head {
    fn visit(&self, name: &str, visit: &mut dyn FnMut(&[u8]) -> bool) {
        // One field in HTTP/2, and both names for it (RFC 9113 section 8.3.1).
        let name = match name {
            "host" => ":authority",
            name => name,
        };
        let name = name.as_bytes();
        let token = Token::of(name);
        let named = self
            .iter()
            .filter(|field| field.token == token && field.name == name);
        _ = named.map(|field| field.value).all(visit);
    }
}

/// Lower case, without user information; `:authority` and `Host` are one.
fn ready_authority(head: &mut Head, version: Version) -> Result<(), ProxyError> {
    let bad = |why| Err(ProxyError::BadRequest(why));
    let (host, has_second) = first(head, Token::Host);
    if has_second {
        return bad("there is more than one Host");
    }
    let authority = head.get(Token::Authority).or(host).unwrap_or_default();
    if authority.is_empty() && version == Version::Http2 {
        return bad("there is no authority");
    }
    let seen = authority
        .iter()
        .fold(0, |seen, byte| seen | AUTHORITY[usize::from(*byte)]);
    if seen & USER_INFORMATION != 0 {
        return bad("the authority has user information");
    }
    if seen & INVALID != 0 {
        return bad("the authority is not valid");
    }
    if seen & UPPER_CASE != 0 || !head.has(Token::Authority) {
        let lower = authority.to_ascii_lowercase();
        head.set(Token::Authority, &lower);
    }
    if head.has(Token::Host) {
        head.retain(|field| field.token != Token::Host);
    }
    Ok(())
}

/// Says how much of the target is the path.
fn ready_path(head: &mut Head, strictness: Strictness) -> Result<usize, ProxyError> {
    let raw = std::str::from_utf8(head.get(Token::Path).unwrap_or(b"/"));
    let raw = raw.map_err(|_invalid| ProxyError::BadRequest("the path is not valid"))?;
    let normal = Normal::parse(raw, strictness)
        .map_err(|_unsafe| ProxyError::BadRequest("the path has no safe normal form"))?;
    let query = normal.query.unwrap_or_default();
    if !query.bytes().all(|byte| byte > b' ' && byte != 0x7f) {
        return Err(ProxyError::BadRequest("the path is not valid"));
    }
    let path_bytes = normal.path.len();
    let target = normal.target();
    if *target != *raw {
        let target = target.into_owned();
        head.set(Token::Path, target.as_bytes());
    }
    Ok(path_bytes)
}

fn ready_request_id(head: &mut Head, rng: &mut impl Rng) {
    let id = head.get(Token::XRequestId);
    if id.is_some_and(|id| (1..=REQUEST_ID_BYTES_MAX).contains(&id.len())) {
        return;
    }
    let mut id = [0; 32];
    write_hex_128(rng.random(), &mut id);
    head.set(Token::XRequestId, &id);
}

/// Continues the caller's trace, or begins one, and puts this hop's span into the head.
fn ready_trace(head: &mut Head, sampled_share: f64, rng: &mut impl Rng) -> Trace {
    let (caller, has_second) = first(head, Token::Traceparent);
    let caller = caller.filter(|_| !has_second).and_then(parse_traceparent);
    let span_id = rng.random_range(1..=u64::MAX);
    let trace = match caller {
        Some((trace_id, parent_id, is_sampled)) => Trace {
            trace_id,
            span_id,
            parent_id: Some(parent_id),
            is_sampled,
        },
        None => Trace {
            trace_id: rng.random_range(1..=u128::MAX),
            span_id,
            parent_id: None,
            is_sampled: rng.random::<f64>() < sampled_share,
        },
    };
    if caller.is_none() && head.has(Token::Tracestate) {
        // The state of a trace that is not continued means nothing.
        head.retain(|field| field.token != Token::Tracestate);
    }
    let continued = head
        .value_mut(Token::Traceparent)
        .filter(|text| caller.is_some() && text.len() == TRACEPARENT_BYTES);
    // The one version that has this length, in its normal form but for flags that later levels
    // may know.
    if let Some(text) = continued {
        text[..2].copy_from_slice(b"00");
        write_hex(span_id, &mut text[36..52]);
        text[53..].copy_from_slice(&[b'0', b'0' + u8::from(trace.is_sampled)]);
        return trace;
    }
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    write_hex_128(trace.trace_id, &mut text[3..35]);
    write_hex(span_id, &mut text[36..52]);
    text[54] += u8::from(trace.is_sampled);
    head.set(Token::Traceparent, &text);
    trace
}

/// Version 00, and what later versions keep of it (W3C trace context section 3.2): trace, parent,
/// and whether it is sampled.
fn parse_traceparent(text: &[u8]) -> Option<(u128, u64, bool)> {
    let (version, rest) = text.split_at_checked(2)?;
    let (fixed, more) = rest.split_at_checked(53)?;
    let is_00 = version == b"00";
    if parse_hex(version)? == 0xff || (is_00 && !more.is_empty()) {
        return None;
    }
    if !matches!(more.first(), None | Some(b'-')) {
        return None;
    }
    if [fixed[0], fixed[33], fixed[50]] != *b"---" {
        return None;
    }
    let (high, low) = (parse_hex(&fixed[1..17])?, parse_hex(&fixed[17..33])?);
    let trace = u128::from(high) << 64 | u128::from(low);
    let parent = parse_hex(&fixed[34..50])?;
    if trace == 0 || parent == 0 {
        return None;
    }
    let flags = parse_hex(&fixed[51..53])?;
    Some((trace, parent, flags & 1 == 1))
}

/// At most 16 digits, in lower case.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    let (mut sum, mut seen) = (0, 0);
    for digit in digits {
        let value = HEX[usize::from(*digit)];
        seen |= value;
        sum = sum << 4 | u64::from(value);
    }
    (seen < 16).then_some(sum)
}

/// As many digits as there is room, the last ones.
fn write_hex(mut number: u64, digits: &mut [u8]) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

/// As [`write_hex`], 32 digits.
fn write_hex_128(number: u128, digits: &mut [u8]) {
    #[expect(clippy::cast_possible_truncation, reason = "both halves are written")]
    let halves = [(number >> 64) as u64, number as u64];
    for (half, digits) in halves.into_iter().zip(digits.chunks_exact_mut(16)) {
        write_hex(half, digits);
    }
}

/// What a request speaks, whatever else is wrong with it.
pub fn spoken(head: &Head, version: Version) -> Spoken {
    let content_type = head.get(Token::ContentType).unwrap_or_default();
    match version {
        Version::Http1 => Spoken::Http1,
        Version::Http2 if is_grpc(content_type) => Spoken::Grpc,
        Version::Http2 => Spoken::Http2,
    }
}

fn is_grpc(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

const UPPER_CASE: u8 = 1;
const USER_INFORMATION: u8 = 2;
const INVALID: u8 = 4;

/// What a byte of an authority says (RFC 3986 section 3.2).
static AUTHORITY: [u8; 256] = {
    let mut says = [INVALID; 256];
    let mut byte = 0;
    while byte < 128_u8 {
        if byte.is_ascii_uppercase() {
            says[byte as usize] = UPPER_CASE;
        } else if byte.is_ascii_alphanumeric() {
            says[byte as usize] = 0;
        }
        byte += 1;
    }
    let marks = b"-._~!$&'()*+,;=:[]%";
    let mut mark = 0;
    while mark < marks.len() {
        says[marks[mark] as usize] = 0;
        mark += 1;
    }
    says[b'@' as usize] = USER_INFORMATION;
    says
};

/// Values of digits in lower case; of anything else one above 15.
static HEX: [u8; 256] = {
    let mut values = [0x80; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16_u8 {
        values[digits[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// Of version 00 (W3C trace context section 3.2).
const TRACEPARENT_BYTES: usize = 55;

fn is_ours(field: Field<'_>) -> bool {
    field.token == Token::XHeddleReason
        || (field.token == Token::Other && field.name.starts_with(b"x-heddle-"))
}

/// The first value, and whether there is a second.
fn first(head: &Head, token: Token) -> (Option<&[u8]>, bool) {
    if !head.has(token) {
        return (None, false);
    }
    let mut values = head.all(token);
    (values.next(), values.next().is_some())
}

/// What was checked to be ASCII or UTF-8.
fn text(value: Option<&[u8]>) -> &str {
    std::str::from_utf8(value.unwrap_or_default()).unwrap_or_default()
}

const REQUEST_ID_BYTES_MAX: usize = 128;

#[cfg(test)]
mod tests;
