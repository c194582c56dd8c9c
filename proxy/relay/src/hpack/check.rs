//! Which names and values HTTP/2 forbids (RFC 9113 section 8.2.1).

use crate::token::Token;

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Name,
    Value,
}

impl Fault {
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Name => "a name is empty or has a character that is not allowed",
            Self::Value => "a value has a character that is not allowed",
        }
    }
}

/// A token of RFC 9110 section 5.6.2 in lower case, of at least one character. A colon may
/// come before it, as in pseudo-headers. RFC 9113 forbids less and permits this much: whatever
/// passes stays one name when it is sent over HTTP/1.1.
pub(super) fn name(name: &[u8]) -> Result<(), Fault> {
    let rest = name.strip_prefix(b":").unwrap_or(name);
    let is_valid = !rest.is_empty() && rest.iter().all(|&byte| NAME[usize::from(byte)]);
    is_valid.then_some(()).ok_or(Fault::Name)
}

/// What RFC 9110 section 5.5 lets a value be: no control characters but tabs, above all no NUL,
/// CR and LF. White space at its ends is for [`is_padded`].
pub(super) fn value(token: Token, value: &[u8]) -> Result<(), Fault> {
    // Without an early end: so the compiler takes many bytes at once.
    let is_text = |is_text, &byte| is_text & ((byte >= b' ' && byte != 0x7f) | (byte == b'\t'));
    let is_valid = value.iter().fold(true, is_text) && !(token.is_pseudo() && is_padded(value));
    is_valid.then_some(()).ok_or(Fault::Value)
}

/// Whether `value` has white space at an end, which is not part of it (RFC 9110 section 5.5).
///
/// RFC 9113 section 8.2.1 calls it malformed. It is taken off all the same, as HTTP/1.1 does:
/// servers send a `grpc-message` that ends in a space, and a status that arrives is worth more
/// than a stream that is reset. Nobody behind us sees it, so that nobody can read it another way.
/// In a pseudo-header, where no honest peer has it, it stays a fault.
pub(super) fn is_padded(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.first()) || is_space(value.last())
}

/// The characters of tokens (RFC 9110 section 5.6.2) without upper case.
static NAME: [bool; 256] = {
    let mut allowed = [false; 256];
    let characters = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < characters.len() {
        allowed[characters[at] as usize] = true;
        at += 1;
    }
    allowed
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tokens_in_lower_case() {
        for valid in ["a", ":path", "x-1_.~", "!#$%&'*+-.^_`|~"] {
            assert_eq!(name(valid.as_bytes()), Ok(()), "{valid:?}");
        }
        for invalid in [
            "", ":", "::path", "a:b", "A", "x-É", "a b", "a\0", "a\x7f", "a\t", "(a)",
        ] {
            assert_eq!(name(invalid.as_bytes()), Err(Fault::Name), "{invalid:?}");
        }
    }

    #[test]
    fn values_are_text() {
        for valid in ["", "a", "a b\tc", "ä", "\u{ff}", "a: b;\"c\"", " a\t"] {
            assert_eq!(value(Token::Other, valid.as_bytes()), Ok(()), "{valid:?}");
        }
        for invalid in ["a\0b", "a\rb", "a\nb", "\x1f", "a\x7fb", "a\r", "\na"] {
            let judged = value(Token::Other, invalid.as_bytes());
            assert_eq!(judged, Err(Fault::Value), "{invalid:?}");
        }
    }

    #[test]
    fn white_space_at_an_end_is_no_part_of_a_value() {
        for padded in [" ", " a", "a ", "\ta", "a\t", "\t a \t"] {
            assert!(is_padded(padded.as_bytes()), "{padded:?}");
            let judged = value(Token::Path, padded.as_bytes());
            assert_eq!(judged, Err(Fault::Value), "{padded:?}");
        }
        for plain in ["", "a", "a b", "a\tb"] {
            assert!(!is_padded(plain.as_bytes()), "{plain:?}");
        }
    }
}
