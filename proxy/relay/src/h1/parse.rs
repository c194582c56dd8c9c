//! Heads that come: bytes into fields (RFC 9112 sections 2 to 6). `httparse` takes them apart;
//! what it lets through and we do not is refused here.

use std::mem::MaybeUninit;

use httparse::Status;

use super::{
    fault::Fault,
    fields::{Fields, Of, push},
    hop::{Form, Framing, Hop, Method, Version},
    limits::{FIELDS_MAX, Limits},
    target::{Target, check_authority},
};
use crate::{
    head::{Head, Indexing},
    token::Token,
};

/// A request that came.
#[derive(Debug)]
pub(super) struct Request {
    pub hop: Hop,
    pub method: Method,
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub persists: bool,
    /// What the client asks to switch to.
    pub upgrade: Option<Box<[u8]>>,
}

/// An answer that came.
#[derive(Debug)]
pub(super) struct Answer {
    pub hop: Hop,
    pub status: u16,
    /// As the fields say; the request's method and the status may say otherwise.
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub persists: bool,
    /// It switches to what was asked for.
    pub switches: bool,
}

/// The request's head at the beginning of `bytes`, appended to `head`, and its length; `None`
/// when it is not whole.
pub(super) fn request(
    bytes: &[u8],
    limits: &Limits,
    head: &mut Head,
) -> Result<Option<(usize, Request)>, Fault> {
    let mut places = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let places = &mut places[..fields_max(limits)];
    let mut parsed = httparse::Request::new(&mut []);
    let used = match parsed.parse_with_uninit_headers(bytes, places) {
        Ok(Status::Complete(used)) => used,
        Ok(Status::Partial) => return check_part(bytes, limits).map(|()| None),
        Err(httparse::Error::Version) => return Err(version_fault(bytes)),
        Err(error) => return Err(fault_of(error)),
    };
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else {
        return Err(Fault::bad("the first line is not one of a request"));
    };
    check_whole(&bytes[..used], limits)?;
    let (method, target) = (method.as_bytes(), target.as_bytes());
    let version = version(parsed.version);
    let hosts = parsed.headers.iter();
    let host = host(
        hosts.filter(|field| field.name.eq_ignore_ascii_case("host")),
        version,
    )?;
    let is_absolute = push_target(method, target, host, head)?;
    let fields = Fields::read(parsed.headers, version, Of::Request, head)?;
    if let Some(protocol) = fields.upgrade {
        head.set(Token::Protocol, protocol);
    }
    check_list(head, limits)?;
    let method = Method::of(method);
    let framing = fields.framing().unwrap_or(Framing::Nothing);
    if method == Method::Connect && !matches!(framing, Framing::Nothing | Framing::Length(0)) {
        // RFC 9110 section 9.3.6: what follows it is the tunnel's.
        return Err(Fault::bad("CONNECT has a body"));
    }
    let persists = fields.persists(version);
    let request = Request {
        hop: Hop {
            form: Form {
                version,
                is_absolute,
            },
            expects_continue: fields.expects_continue,
            ends_by_closing: false,
            closes: !persists,
        },
        method,
        framing,
        persists,
        upgrade: fields.upgrade.map(Box::from),
    };
    Ok(Some((used, request)))
}

/// The answer's head at the beginning of `bytes`, appended to `head`, and its length; `None`
/// when it is not whole. `asked` is what the request asked to switch to.
pub(super) fn answer(
    bytes: &[u8],
    limits: &Limits,
    asked: Option<&[u8]>,
    head: &mut Head,
) -> Result<Option<(usize, Answer)>, Fault> {
    let mut places = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let places = &mut places[..fields_max(limits)];
    if matches!(bytes, [b'\r' | b'\n', ..]) {
        return Err(Fault::bad("there is an empty line before the answer"));
    }
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let used = match config.parse_response_with_uninit_headers(&mut parsed, bytes, places) {
        Ok(Status::Complete(used)) => used,
        Ok(Status::Partial) => return check_part(bytes, limits).map(|()| None),
        Err(error) => return Err(fault_of(error)),
    };
    let status = parsed.code.filter(|status| *status >= 100);
    let status = status.ok_or(Fault::bad("the status is not one"))?;
    check_whole(&bytes[..used], limits)?;
    let version = version(parsed.version);
    head.push_as(
        Token::Status,
        b":status",
        &digits(status),
        Indexing::Allowed,
    );
    let fields = Fields::read(parsed.headers, version, Of::Answer, head)?;
    let switches = match (status, fields.upgrade, asked) {
        (101, Some(protocol), Some(asked)) => protocol.eq_ignore_ascii_case(asked),
        _ => false,
    };
    if let Some(asked) = asked.filter(|_| switches) {
        head.set(Token::Protocol, asked);
    }
    check_list(head, limits)?;
    let framing = fields.framing().unwrap_or(Framing::UntilClose);
    let persists = fields.persists(version);
    let answer = Answer {
        hop: Hop {
            form: Form {
                version,
                is_absolute: false,
            },
            ends_by_closing: framing == Framing::UntilClose,
            closes: !persists,
            ..Hop::default()
        },
        status,
        framing,
        persists,
        switches,
    };
    Ok(Some((used, answer)))
}

/// The fields of a trailer section, appended to `head`. Those that say how the message is
/// delimited or where it goes may not come so late (RFC 9110 section 6.5.1).
pub(super) fn trailers(bytes: &[u8], limits: &Limits, head: &mut Head) -> Result<(), Fault> {
    let mut places = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let places = &mut places[..fields_max(limits)];
    let fields = match httparse::parse_headers(bytes, places) {
        Ok(Status::Complete((used, fields))) if used == bytes.len() => fields,
        Ok(_) => return Err(Fault::bad("the trailers are not fields")),
        Err(error) => return Err(fault_of(error)),
    };
    check_lines(bytes)?;
    for field in fields {
        push(field, head, |token| {
            let fault = Fault::bad("the trailers have a field that may not be there");
            is_trailer(token).then_some(true).ok_or(fault)
        })?;
    }
    check_list(head, limits)
}

/// Whether a field may be in trailers.
pub(super) fn is_trailer(token: Token) -> bool {
    let is_of_the_head = matches!(
        token,
        Token::ContentLength | Token::Expect | Token::Host | Token::Te | Token::Trailer
    );
    !token.is_of_connection() && !token.is_pseudo() && !is_of_the_head
}

fn fields_max(limits: &Limits) -> usize {
    FIELDS_MAX.min(limits.fields_max as usize)
}

/// One `Host`, which HTTP/1.0 may lack (RFC 9112 section 3.2).
fn host<'b>(
    mut hosts: impl Iterator<Item = &'b httparse::Header<'b>>,
    version: Version,
) -> Result<&'b [u8], Fault> {
    match (hosts.next(), hosts.next(), version) {
        (Some(host), None, _) => check_authority(host.value).map(|()| host.value),
        (None, _, Version::Http10) => Ok(b""),
        (None, _, Version::Http11) => Err(Fault::bad("there is no Host")),
        (Some(_), Some(_), _) => Err(Fault::bad("there is more than one Host")),
    }
}

/// The pseudo-headers of a request; whether its target was in absolute-form.
fn push_target(method: &[u8], target: &[u8], host: &[u8], head: &mut Head) -> Result<bool, Fault> {
    let target = Target::parse(method, target)?;
    let mut push = |token: Token, name: &[u8], value: &[u8]| {
        head.push_as(token, name, value, Indexing::Allowed);
    };
    push(Token::Method, b":method", method);
    let (scheme, authority, path) = match target {
        Target::Authority(authority) => {
            push(Token::Authority, b":authority", authority);
            return Ok(false);
        }
        Target::Origin(path) => (&b"http"[..], host, path),
        Target::Absolute {
            scheme,
            authority,
            path,
        } => (scheme, authority, path),
    };
    push(Token::Scheme, b":scheme", scheme);
    push(Token::Authority, b":authority", authority);
    match path {
        // RFC 9112 section 3.2.4.
        [] if method == b"OPTIONS" => push(Token::Path, b":path", b"*"),
        [] => push(Token::Path, b":path", b"/"),
        [b'?', ..] => push(Token::Path, b":path", &[b"/", path].concat()),
        _ => push(Token::Path, b":path", path),
    }
    Ok(matches!(target, Target::Absolute { .. }))
}

fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(0) => Version::Http10,
        // The parser knows no other.
        Some(_) | None => Version::Http11,
    }
}

/// A status in three digits.
pub(super) fn digits(status: u16) -> [u8; 3] {
    let digit = |n: u16| b'0' + u8::try_from(n % 10).expect("one digit");
    [digit(status / 100), digit(status / 10), digit(status)]
}

/// A head that is not whole must still be able to become one.
fn check_part(bytes: &[u8], limits: &Limits) -> Result<(), Fault> {
    let line_max = limits.line_bytes_max as usize;
    if bytes.len() > line_max && !bytes[..line_max].contains(&b'\n') {
        return Err(Fault::LINE_TOO_LONG);
    }
    if bytes.len() >= limits.head_bytes_max as usize {
        return Err(Fault::too_large("the head is too long"));
    }
    Ok(())
}

fn check_whole(bytes: &[u8], limits: &Limits) -> Result<(), Fault> {
    let line_max = limits.line_bytes_max as usize;
    if bytes.len() > line_max && !bytes[..line_max].contains(&b'\n') {
        return Err(Fault::LINE_TOO_LONG);
    }
    if bytes.len() > limits.head_bytes_max as usize {
        return Err(Fault::too_large("the head is too long"));
    }
    check_lines(bytes)
}

/// The parser lets lines end with a bare LF, which others on the way may not take for an end.
fn check_lines(bytes: &[u8]) -> Result<(), Fault> {
    let rest = bytes.get(1..).unwrap_or_default();
    // Without an early end, so that the compiler takes many bytes at once.
    let is_bare = bytes
        .iter()
        .zip(rest)
        .fold(bytes.starts_with(b"\n"), |is, (before, byte)| {
            is | ((*byte == b'\n') & (*before != b'\r'))
        });
    (!is_bare)
        .then_some(())
        .ok_or(Fault::bad("a line ends without CR"))
}

fn check_list(head: &Head, limits: &Limits) -> Result<(), Fault> {
    let is_over = head.list_bytes() > limits.head_bytes_max as usize;
    let fault = Fault::too_large("the fields are too long");
    (!is_over).then_some(()).ok_or(fault)
}

/// A line that would be one of HTTP but for its version has another answer. It may not be whole
/// yet.
fn version_fault(bytes: &[u8]) -> Fault {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next();
    let mut words = line.unwrap_or_default().splitn(3, |byte| *byte == b' ');
    let version = words.nth(2).and_then(|word| word.strip_prefix(b"HTTP/"));
    let is_version = |number: &[u8]| {
        matches!(
            number,
            [b'0'..=b'9'] | [b'0'..=b'9', b'.'] | [b'0'..=b'9', b'.', b'0'..=b'9']
        )
    };
    if version.is_some_and(is_version) {
        Fault::VERSION_UNKNOWN
    } else {
        Fault::bad("the first line is not one of HTTP")
    }
}

fn fault_of(error: httparse::Error) -> Fault {
    match error {
        httparse::Error::TooManyHeaders => Fault::too_large("there are too many fields"),
        httparse::Error::HeaderName => Fault::bad("a field's name is not a token"),
        httparse::Error::HeaderValue => Fault::bad("a field's value has a control character"),
        httparse::Error::NewLine => Fault::bad("a line ends without LF"),
        httparse::Error::Status | httparse::Error::Token | httparse::Error::Version => {
            Fault::bad("the first line is not one of HTTP")
        }
    }
}
