//! The fields of a head that comes: what says something about the connection or the body's length
//! is taken here, the rest goes on.

use httparse::Header;

use super::{
    fault::Fault,
    hop::{Framing, Version},
    target::alphanumerics_and,
};
use crate::{
    head::{Head, Indexing},
    token::Token,
};

/// What was taken from the fields of a head.
#[derive(Debug, Default)]
pub(super) struct Fields<'b> {
    /// `Content-Length`, unless [`Self::is_chunked`] overrules it.
    pub length: Option<u64>,
    pub is_chunked: bool,
    /// There was a length beside the coding: the connection ends after this message (RFC 9112
    /// section 6.1).
    pub is_ambiguous: bool,
    /// `Connection: close`.
    pub closes: bool,
    /// `Connection: keep-alive`.
    pub keeps_alive: bool,
    /// The one protocol of the one `Upgrade`, when `Connection` names it.
    pub upgrade: Option<&'b [u8]>,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    is_upgrade_named: bool,
    upgrades: usize,
    welcomes_trailers: bool,
    /// Other fields that `Connection` names, of which there are `named`.
    names: [&'b [u8]; NAMES_MAX],
    named: usize,
}

/// Whose fields they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    Request,
    Answer,
}

impl<'b> Fields<'b> {
    /// Takes its own of `fields` and appends the others to `head`.
    pub(super) fn read(
        fields: &[Header<'b>],
        version: Version,
        of: Of,
        head: &mut Head,
    ) -> Result<Self, Fault> {
        let mut this = Self::default();
        for field in fields {
            push(field, head, |token| {
                this.take(token, field.value, version, of)
            })?;
        }
        this.finish(version, of, head)?;
        Ok(this)
    }

    /// How the body's end is told, if there is one.
    pub(super) fn framing(&self) -> Option<Framing> {
        match (self.is_chunked, self.length) {
            (true, _) => Some(Framing::Chunked),
            (false, Some(length)) => Some(Framing::Length(length)),
            (false, None) => None,
        }
    }

    /// Whether the connection may be used again (RFC 9112 section 9.3).
    pub(super) fn persists(&self, version: Version) -> bool {
        let keeps = match version {
            Version::Http10 => self.keeps_alive,
            Version::Http11 => true,
        };
        keeps && !self.closes && !self.is_ambiguous
    }

    /// Looks at a field; whether it goes on.
    fn take(
        &mut self,
        token: Token,
        value: &'b [u8],
        version: Version,
        of: Of,
    ) -> Result<bool, Fault> {
        if token == Token::ContentLength {
            if self.length.is_some() {
                return Err(Fault::bad("there is more than one Content-Length"));
            }
            self.length = Some(parse_length(value)?);
        } else if token == Token::TransferEncoding {
            self.take_coding(value, version)?;
            return Ok(false);
        } else if token == Token::Connection {
            self.take_options(value)?;
            return Ok(false);
        } else if token == Token::Upgrade {
            self.upgrades += 1;
            self.upgrade = is_one_protocol(value).then_some(value);
            return Ok(false);
        } else if token == Token::Te && of == Of::Request {
            let mut members = members(value);
            self.welcomes_trailers |= members.any(|one| one.eq_ignore_ascii_case(b"trailers"));
            return Ok(false);
        } else if token == Token::Expect && of == Of::Request {
            // RFC 9110 section 10.1.1: in HTTP/1.0 it is to be ignored.
            let mut members = members(value);
            let expects = members.any(|one| one.eq_ignore_ascii_case(b"100-continue"));
            self.expects_continue |= expects && version == Version::Http11;
            return Ok(version == Version::Http11);
        } else if token == Token::Host && of == Of::Request {
            return Ok(false);
        }
        Ok(!token.is_of_connection() && token != Token::Te)
    }

    /// Nothing but one `chunked` (RFC 9112 sections 6.1, 6.3 and 7).
    fn take_coding(&mut self, value: &[u8], version: Version) -> Result<(), Fault> {
        if version == Version::Http10 {
            return Err(Fault::bad("HTTP/1.0 has no transfer codings"));
        }
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let mut all = members(value);
        let chunked = all.clone().filter(|coding| is_chunked(coding)).count();
        if !all.clone().last().is_some_and(is_chunked) {
            return Err(Fault::bad("chunked is not the last transfer coding"));
        }
        if chunked > 1 || self.is_chunked {
            return Err(Fault::bad("chunked is there more than once"));
        }
        if !all.all(is_chunked) || value.len() > b"chunked".len() {
            return Err(Fault::CODING_UNKNOWN);
        }
        self.is_chunked = true;
        Ok(())
    }

    fn take_options(&mut self, value: &'b [u8]) -> Result<(), Fault> {
        for option in members(value) {
            if option.eq_ignore_ascii_case(b"close") {
                self.closes = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keeps_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.is_upgrade_named = true;
            } else if !option.eq_ignore_ascii_case(b"te") {
                // Each costs a look at every field.
                let Some(place) = self.names.get_mut(self.named) else {
                    return Err(Fault::bad("Connection has too many options"));
                };
                *place = option;
                self.named += 1;
            }
        }
        Ok(())
    }

    /// What needs all fields.
    fn finish(&mut self, version: Version, of: Of, head: &mut Head) -> Result<(), Fault> {
        let is_asked = self.is_upgrade_named && self.upgrades == 1 && version == Version::Http11;
        if !is_asked {
            self.upgrade = None;
        }
        if self.is_chunked && self.length.take().is_some() {
            // RFC 9112 section 6.3: the coding overrules it, and it does not go on.
            self.is_ambiguous = true;
            head.retain(|field| field.token != Token::ContentLength);
        }
        let names = &self.names[..self.named];
        if !names.is_empty() {
            let is_any = |name: &[u8]| names.iter().any(|one| one.eq_ignore_ascii_case(name));
            if is_any(b"host") || is_any(b"content-length") {
                return Err(Fault::bad(
                    "Connection names a field that is not the connection's",
                ));
            }
            head.retain(|field| !is_removable(field.token) || !is_any(field.name));
        }
        if self.welcomes_trailers && of == Of::Request {
            head.push_as(Token::Te, b"te", b"trailers", Indexing::Allowed);
        }
        Ok(())
    }
}

/// Appends `field`, its name in lower case, unless `passes` wants it to be left out.
pub(super) fn push(
    field: &Header<'_>,
    head: &mut Head,
    passes: impl FnOnce(Token) -> Result<bool, Fault>,
) -> Result<(), Fault> {
    let buffer = head.buffer();
    let start = buffer.len();
    buffer.extend_from_slice(field.name.as_bytes());
    buffer[start..].make_ascii_lowercase();
    let token = Token::of(&buffer[start..]);
    let passes = passes(token)?;
    let stored = if passes && token == Token::Other {
        field.name.len()
    } else {
        0
    };
    head.buffer().truncate(start + stored);
    if passes {
        head.buffer().extend_from_slice(field.value);
        head.push_stored(token, start, stored, Indexing::Allowed, 0);
    }
    Ok(())
}

/// Whether `Connection` can make a field one of the connection (RFC 9110 section 7.6.1). What
/// proxies before us said is not a client's to remove.
fn is_removable(token: Token) -> bool {
    let is_of_proxies = matches!(
        token,
        Token::Forwarded
            | Token::Via
            | Token::XForwardedClientCert
            | Token::XForwardedFor
            | Token::XForwardedHost
            | Token::XForwardedProto
    );
    !token.is_pseudo() && !is_of_proxies
}

/// The members of a list (RFC 9110 section 5.6.1), without empty ones.
pub(super) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    let members = value.split(|byte| *byte == b',').map(trim);
    members.filter(|member| !member.is_empty())
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Digits and nothing else (RFC 9110 section 8.6).
pub(super) fn parse_length(value: &[u8]) -> Result<u64, Fault> {
    const NO_LENGTH: Fault = Fault::bad("Content-Length is not a number of bytes");
    if value.is_empty() {
        return Err(NO_LENGTH);
    }
    value
        .iter()
        .try_fold(0_u64, |length, byte| {
            let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
            let more = length.checked_mul(10)?.checked_add(digit?);
            more.filter(|length| *length <= LENGTH_MAX)
        })
        .ok_or(NO_LENGTH)
}

/// A protocol's name, with or without a version (RFC 9110 section 7.8): not HTTP again, in clear
/// or behind TLS (`h2c`, RFC 7540; `TLS/1.0`, RFC 2817), which would carry requests that nobody
/// judges.
fn is_one_protocol(value: &[u8]) -> bool {
    let slash = value.iter().position(|byte| *byte == b'/');
    let (name, version) = value.split_at(slash.unwrap_or(value.len()));
    let is_http = [&b"h2c"[..], b"h2", b"http", b"tls"]
        .iter()
        .any(|other| name.eq_ignore_ascii_case(other));
    let is_named = is_token(name) && (version.is_empty() || is_token(&version[1..]));
    is_named && !is_http
}

/// RFC 9110 section 5.6.2.
pub(super) fn is_token(text: &[u8]) -> bool {
    static TOKEN: [bool; 256] = alphanumerics_and(b"!#$%&'*+-.^_`|~");
    !text.is_empty() && text.iter().all(|byte| TOKEN[usize::from(*byte)])
}

/// As signed numbers of 64 bits hold, which is what most programs read it into.
const LENGTH_MAX: u64 = i64::MAX as u64;
/// Fields that `Connection` may name besides its own options.
const NAMES_MAX: usize = 16;
