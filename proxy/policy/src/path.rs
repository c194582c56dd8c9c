//! The one form of a path: judged, routed and forwarded exactly so.
//!
//! Two texts that a server may take for the same resource must not be judged differently, so a
//! path is brought to one form before any policy sees it (RFC 3986 section 6.2.2, and Envoy's
//! `normalize_path` and `merge_slashes`, which its edge guide recommends):
//!
//! - percent-encoded unreserved characters are decoded, other escapes are written in upper case;
//! - what RFC 3986 does not allow raw in a path (`"<>^`{|}` and non-ASCII) is percent-encoded;
//! - `.` and `..` segments are removed, never above the root, also when they were encoded;
//! - `//` becomes `/`. RFC 3986 tells them apart, but most servers do not, and a DENY rule for
//!   `/admin` must hold for `//admin`. A setting (`paths.merge_slashes`) keeps them.
//!
//! Refused, because servers disagree about them: `%2f`, `%5c`, `%00`, a raw `\`, control
//! characters, a fragment, escapes that are cut short or decode to invalid UTF-8. A setting
//! (`paths.encoded_slash`) allows `%2f` and `%5c`, which then stay as they are.
//!
//! Not touched: the query; letter case; path parameters (`/a;v=1` is not `/a`: a server that
//! ignores them needs rules on prefixes); escapes of reserved characters (`%40` is not `@`).
//!
//! ```
//! use heddle_policy::path::{Normal, Strictness};
//!
//! let normal = Normal::parse("/a/%2e%2e/%7euser//b?x=%2f", Strictness::default()).unwrap();
//! assert_eq!(normal.path, "/~user/b");
//! assert_eq!(normal.query, Some("x=%2f"));
//! assert_eq!(normal.target(), "/~user/b?x=%2f");
//! assert!(Normal::parse("/a%2fb", Strictness::default()).is_err());
//! ```

use std::borrow::Cow;

use thiserror::Error;

/// A request target in its normal form. Borrowed from the input when that was normal already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Normal<'a> {
    /// The path.
    pub path: Cow<'a, str>,
    /// What follows the `?`, as it came.
    pub query: Option<&'a str>,
    /// The whole input.
    raw: &'a str,
}

/// What is let through although servers disagree about it. The default lets through nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strictness {
    /// What happens to `%2f` and `%5c`.
    pub escaped_slashes: EscapedSlashes,
    /// What happens to `//`.
    pub empty_segments: EmptySegments,
}

/// See [`Strictness::escaped_slashes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EscapedSlashes {
    /// The request is refused.
    #[default]
    Refuse,
    /// They stay as they are, in upper case, and do not separate segments.
    Keep,
}

/// See [`Strictness::empty_segments`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmptySegments {
    /// `//` becomes `/`.
    #[default]
    Merge,
    /// They stay.
    Keep,
}

/// Why a path has no safe normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unsafe {
    /// It does not begin with `/`, and is not `*`.
    #[error("path does not begin with a slash")]
    NotAbsolute,
    /// `%2f`, `%5c`, or a raw `\`.
    #[error("path has an escaped slash or a backslash")]
    Slash,
    /// A control character, raw or `%00`.
    #[error("path has a control character")]
    Control,
    /// `%` without two hexadecimal digits.
    #[error("path has an incomplete escape")]
    Escape,
    /// Escapes that decode to invalid UTF-8.
    #[error("path is not UTF-8")]
    NotUtf8,
    /// `#`: a client never sends it (RFC 9112 section 3.2).
    #[error("path has a fragment")]
    Fragment,
}

impl<'a> Normal<'a> {
    /// Normalises the path and query of a request target. The empty path of an absolute-form
    /// target is `/`; `*` (OPTIONS) is itself.
    ///
    /// # Errors
    /// [`Unsafe`] when there is no safe normal form: the answer is 400.
    pub fn parse(raw: &'a str, strictness: Strictness) -> Result<Self, Unsafe> {
        if raw.bytes().any(|b| b == b'#') {
            return Err(Unsafe::Fragment);
        }
        let (path, query) = match raw.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (raw, None),
        };
        let path = match path {
            "" => Cow::Borrowed("/"),
            "*" => Cow::Borrowed(path),
            _ if !path.starts_with('/') => return Err(Unsafe::NotAbsolute),
            _ => normalise(path, strictness)?,
        };
        Ok(Self { path, query, raw })
    }

    /// The request target to forward.
    pub fn target(&self) -> Cow<'a, str> {
        match (&self.path, self.query) {
            (Cow::Borrowed(path), _) if self.raw.starts_with(path) => Cow::Borrowed(self.raw),
            (path, Some(query)) => Cow::Owned(format!("{path}?{query}")),
            (path, None) => path.clone(),
        }
    }
}

fn normalise(path: &str, strictness: Strictness) -> Result<Cow<'_, str>, Unsafe> {
    if is_normal(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let spelled = spell(path, strictness)?;
    let normal = segments(&spelled, strictness.empty_segments);
    // Not in the cheap class, but already what it should be.
    if normal == path {
        return Ok(Cow::Borrowed(path));
    }
    Ok(Cow::Owned(normal))
}

/// One pass over the common case: only characters that stand for themselves, no empty and no
/// dot segment.
fn is_normal(path: &[u8]) -> bool {
    let (mut is_normal, mut follows_slash) = (true, false);
    for byte in path {
        let is_segment_end = matches!(byte, b'/' | b'.');
        is_normal &= PATH_CHARS[usize::from(*byte)] && !(follows_slash && is_segment_end);
        follows_slash = *byte == b'/';
    }
    is_normal
}

/// [`is_path_char`], looked up.
static PATH_CHARS: [bool; 256] = {
    let mut chars = [false; 256];
    let mut byte = 0;
    while byte < chars.len() {
        #[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
        let char = byte as u8;
        chars[byte] = is_path_char(char);
        byte += 1;
    }
    chars
};

/// Every character in its one spelling.
fn spell(path: &str, strictness: Strictness) -> Result<String, Unsafe> {
    let mut spelled = String::with_capacity(path.len() + 8);
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let escaped = escape(bytes.next(), bytes.next())?;
                match escaped {
                    0 => return Err(Unsafe::Control),
                    b'/' | b'\\' if strictness.escaped_slashes == EscapedSlashes::Refuse => {
                        return Err(Unsafe::Slash);
                    }
                    _ if is_unreserved(escaped) => spelled.push(char::from(escaped)),
                    _ => push_escaped(&mut spelled, escaped),
                }
            }
            b'\\' => return Err(Unsafe::Slash),
            0..=b' ' | 0x7f => return Err(Unsafe::Control),
            _ if is_path_char(byte) => spelled.push(char::from(byte)),
            _ => push_escaped(&mut spelled, byte),
        }
    }
    let decoded = percent_encoding::percent_decode_str(&spelled).decode_utf8();
    decoded.map_err(|_invalid| Unsafe::NotUtf8)?;
    Ok(spelled)
}

/// Removes dot segments (RFC 3986 section 5.2.4) and empty ones.
fn segments(path: &str, empty: EmptySegments) -> String {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        let is_last = rest.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    normal.truncate(normal.rfind('/').unwrap_or(0));
                }
                // `/a/..` is a folder: it keeps its final slash.
                if is_last {
                    normal.push('/');
                }
            }
            "" if !is_last && empty == EmptySegments::Merge => {}
            _ => {
                normal.push('/');
                normal.push_str(segment);
            }
        }
    }
    normal
}

fn escape(high: Option<u8>, low: Option<u8>) -> Result<u8, Unsafe> {
    let digit = |byte: Option<u8>| {
        let value = byte.and_then(|b| char::from(b).to_digit(16));
        value.and_then(|v| u8::try_from(v).ok())
    };
    match (digit(high), digit(low)) {
        (Some(high), Some(low)) => Ok(high << 4 | low),
        _ => Err(Unsafe::Escape),
    }
}

fn push_escaped(spelled: &mut String, byte: u8) {
    spelled.push_str(percent_encoding::percent_encode_byte(byte));
}

/// RFC 3986 section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What may stand raw in a path: `pchar` without escapes, and `/` (RFC 3986 section 3.3).
const fn is_path_char(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'/' | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
        )
}

#[cfg(test)]
mod tests;
