//! What makes a message malformed (RFC 9113 sections 8.1 to 8.5, RFC 8441 section 4): rules about
//! its fields together. What each name and value may be by itself, HPACK has checked.

use super::{limits::Upgrade, streams::Asked};
use crate::{event::Then, head::Head, token::Token};

/// How much of a body is still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// It ends where it ends.
    Unknown,
    /// As `content-length` said.
    Left(u64),
}

/// What an answer's head says about what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 1xx.
    Interim,
    /// A message of that length.
    Final(Length),
    /// 2xx to CONNECT, or 101 to an upgrade.
    Tunnel,
}

/// Why a message is malformed, with the section of RFC 9113.
type Reason = &'static str;

/// Checks a request's head; what it asks for, and how long its body is.
pub(super) fn request(
    head: &Head,
    then: Then,
    upgrade: Upgrade,
) -> Result<(Asked, Length), Reason> {
    let fields = Fields::of(head)?;
    if upgrade == Upgrade::Refused && fields.get(Token::Protocol).is_some() {
        return Err(":protocol, and extended CONNECT is not announced (8.3, 8441: 3)");
    }
    if fields.get(Token::Status).is_some() {
        return Err("a request with :status (8.3)");
    }
    let method = fields
        .get(Token::Method)
        .ok_or("a request without :method (8.3.1)")?;
    if method.is_empty() || !method.iter().copied().all(is_token_byte) {
        return Err(":method is not a token (8.3.1)");
    }
    let length = length(&fields, then)?;
    if method == b"CONNECT" && fields.get(Token::Protocol).is_none() {
        if fields.get(Token::Scheme).is_some() || fields.get(Token::Path).is_some() {
            return Err("CONNECT with :scheme or :path (8.5)");
        }
        if fields.get(Token::Authority).is_none() {
            return Err("CONNECT without :authority (8.5)");
        }
        authority(&fields)?;
        return Ok((Asked::Connect, Length::Unknown));
    }
    scheme_and_path(method, &fields)?;
    authority(&fields)?;
    match (method, fields.get(Token::Protocol)) {
        (_, Some(protocol)) if upgrade == Upgrade::Http1 => {
            if matches!(method, b"CONNECT" | b"HEAD") || matches!(length, Length::Left(1..)) {
                return Err("an upgrade of CONNECT, of HEAD or behind a body");
            }
            is_protocol(protocol)?;
            Ok((Asked::Upgrade, Length::Left(0)))
        }
        (b"CONNECT", Some(protocol)) => {
            is_protocol(protocol)?;
            if fields.get(Token::Authority).is_none() {
                return Err("extended CONNECT without :authority (8441: 4)");
            }
            Ok((Asked::Connect, Length::Unknown))
        }
        (_, Some(_)) => Err(":protocol without CONNECT (8441: 4)"),
        (b"HEAD", None) => Ok((Asked::Head, length)),
        (_, None) => Ok((Asked::Any, length)),
    }
}

/// One name, perhaps with a version (RFC 9110 section 7.8).
fn is_protocol(protocol: &[u8]) -> Result<(), Reason> {
    let mut parts = protocol.splitn(2, |&byte| byte == b'/');
    let is_valid = parts.all(|part| !part.is_empty() && part.iter().copied().all(is_token_byte));
    is_valid
        .then_some(())
        .ok_or(":protocol is not one (8441: 4)")
}

/// Checks the head of an answer to what was `asked`.
pub(super) fn answer(head: &Head, then: Then, asked: Asked) -> Result<Answer, Reason> {
    let fields = Fields::of(head)?;
    let status = fields
        .get(Token::Status)
        .ok_or("an answer without :status (8.3.2)")?;
    let grants = asked == Asked::Upgrade && status == b"101";
    let of_request = [Token::Authority, Token::Method, Token::Path, Token::Scheme];
    let is_of_request = of_request.iter().any(|token| fields.get(*token).is_some());
    if is_of_request || fields.get(Token::Protocol).is_some() != grants {
        return Err("an answer with a request's pseudo-header (8.3), or 101 without :protocol");
    }
    let [class @ b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] = status else {
        return Err(":status is not three digits (8.3.2)");
    };
    match (class, status, asked) {
        (_, b"101", Asked::Upgrade) => Ok(Answer::Tunnel),
        (_, b"101", _) => Err("101 does not exist here (8.6)"),
        (b'1', _, _) => match then {
            Then::End => Err("an interim answer that ends the stream (8.1)"),
            Then::More => Ok(Answer::Interim),
        },
        (b'2', _, Asked::Connect) => Ok(Answer::Tunnel),
        // Their content-length is about another message's body (9110: 6.4.1, 8.6).
        (_, _, Asked::Head) | (_, b"304", _) => {
            number(&fields)?;
            Ok(Answer::Final(Length::Left(0)))
        }
        (_, b"204", _) => match length(&fields, then)? {
            Length::Left(1..) => Err("204 with a content-length (9110: 8.6)"),
            Length::Left(0) | Length::Unknown => Ok(Answer::Final(Length::Left(0))),
        },
        (_, _, Asked::Any | Asked::Connect | Asked::Upgrade) => {
            Ok(Answer::Final(length(&fields, then)?))
        }
    }
}

/// Checks trailers.
pub(super) fn trailers(head: &Head) -> Result<(), Reason> {
    for field in head.iter() {
        if field.name.starts_with(b":") {
            return Err("trailers with a pseudo-header (8.1)");
        }
        of_connection(field.token, field.value)?;
    }
    Ok(())
}

impl Length {
    /// `bytes` come, and perhaps the end.
    pub(super) fn take(&mut self, bytes: u32, then: Then) -> Result<(), Reason> {
        let Self::Left(left) = self else {
            return Ok(());
        };
        *left = left
            .checked_sub(u64::from(bytes))
            .ok_or("a body longer than its content-length (8.1.1)")?;
        match (then, *left) {
            (Then::End, 1..) => Err("a body shorter than its content-length (8.1.1)"),
            (Then::End, 0) | (Then::More, _) => Ok(()),
        }
    }
}

/// What the rules are about, each at most once.
struct Fields<'a> {
    /// In the order of their tokens.
    pseudo: [Option<&'a [u8]>; Token::Status as usize + 1],
    host: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    /// Finds them, and checks all fields on the way.
    fn of(head: &'a Head) -> Result<Self, Reason> {
        let mut fields = Self {
            pseudo: [None; _],
            host: None,
            content_length: None,
        };
        let mut is_past = false;
        for field in head.iter() {
            let place = match (fields.pseudo.get_mut(field.token as usize), field.token) {
                (Some(_), _) if is_past => return Err("a pseudo-header behind a field (8.3)"),
                (Some(place), _) => place,
                (None, Token::Other) if field.name.starts_with(b":") => {
                    return Err("a pseudo-header that is not defined (8.3)");
                }
                (None, Token::Host) => {
                    is_past = true;
                    &mut fields.host
                }
                (None, Token::ContentLength) => {
                    is_past = true;
                    &mut fields.content_length
                }
                (None, token) => {
                    is_past = true;
                    of_connection(token, field.value)?;
                    continue;
                }
            };
            if place.replace(field.value).is_some() {
                return Err("a field twice that may be once (8.3, 9110: 7.2, 8.6)");
            }
        }
        Ok(fields)
    }

    fn get(&self, token: Token) -> Option<&'a [u8]> {
        *self.pseudo.get(token as usize)?
    }
}

/// Section 8.2.2.
fn of_connection(token: Token, value: &[u8]) -> Result<(), Reason> {
    if token.is_of_connection() {
        return Err("a field of one connection (8.2.2)");
    }
    if token == Token::Te && !value.eq_ignore_ascii_case(b"trailers") {
        return Err("te says more than trailers (8.2.2)");
    }
    Ok(())
}

/// Section 8.3.1. White space in a path would be the end of it in HTTP/1.1 (section 10.3).
fn scheme_and_path(method: &[u8], fields: &Fields<'_>) -> Result<(), Reason> {
    let scheme = fields
        .get(Token::Scheme)
        .ok_or("a request without :scheme (8.3.1)")?;
    let path = fields
        .get(Token::Path)
        .ok_or("a request without :path (8.3.1)")?;
    let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let is_scheme = matches!(scheme, b"http" | b"https")
        || (scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme.iter().copied().all(is_scheme_byte));
    if !is_scheme {
        return Err(":scheme is none (9110: 4.2, 3986: 3.1)");
    }
    match path {
        [] => Err(":path is empty (8.3.1)"),
        b"*" if method == b"OPTIONS" => Ok(()),
        [b'/', ..] if none(path, |byte| !is_visible(byte)) => Ok(()),
        [b'/', ..] => Err(":path with white space or a control character (8.3.1)"),
        _ => Err(":path does not begin with a slash (8.3.1)"),
    }
}

/// Sections 8.3.1 and 8.5; what a `host` says otherwise would be believed by somebody behind us.
fn authority(fields: &Fields<'_>) -> Result<(), Reason> {
    let authority = fields.get(Token::Authority).or(fields.host);
    let authority = authority.ok_or("neither :authority nor host (8.3.1)")?;
    if authority.is_empty() {
        return Err("an empty authority (8.3.1)");
    }
    if !none(authority, |byte| !is_visible(byte) || byte == b'@') {
        return Err("an authority with user information or white space (8.3.1)");
    }
    if fields
        .host
        .is_some_and(|host| !host.eq_ignore_ascii_case(authority))
    {
        return Err("host is not :authority (8.3.1)");
    }
    Ok(())
}

/// Of a message's body, and whether it can be over already.
fn length(fields: &Fields<'_>, then: Then) -> Result<Length, Reason> {
    let Some(number) = number(fields)? else {
        return Ok(Length::Unknown);
    };
    let mut length = Length::Left(number);
    length.take(0, then)?;
    Ok(length)
}

/// The `content-length`. A list of equal ones could be taken for one (9110: 8.6); we do not.
fn number(fields: &Fields<'_>) -> Result<Option<u64>, Reason> {
    let Some(value) = fields.content_length else {
        return Ok(None);
    };
    let is_number = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    if !is_number {
        return Err("content-length is not a number (8.1.1)");
    }
    let digits = value.iter().map(|digit| u64::from(digit - b'0'));
    Ok(Some(digits.fold(0, |number, digit| number * 10 + digit)))
}

/// Whether no byte is wrong. It looks at all of them, which is many at a time.
fn none(bytes: &[u8], is_wrong: impl Fn(u8) -> bool) -> bool {
    !bytes
        .iter()
        .fold(false, |found, &byte| found | is_wrong(byte))
}

/// Of a method (RFC 9110 section 5.6.2).
fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Bytes above ASCII are judged where paths are normalised.
fn is_visible(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}
