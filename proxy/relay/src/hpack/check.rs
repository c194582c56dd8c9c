//! Which names and values HTTP/2 forbids (RFC 9113 section 8.2.1).

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
            Self::Value => "a value has a character that is not allowed, or a space at an end",
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
/// CR and LF, and neither a space nor a tab at its ends.
pub(super) fn value(value: &[u8]) -> Result<(), Fault> {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    // Without an early end: so the compiler takes many bytes at once.
    let is_text = |is_text, &byte| is_text & ((byte >= b' ' && byte != 0x7f) | (byte == b'\t'));
    let is_valid =
        value.iter().fold(true, is_text) && !is_space(value.first()) && !is_space(value.last());
    is_valid.then_some(()).ok_or(Fault::Value)
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
    fn values_are_text_without_spaces_at_their_ends() {
        for valid in ["", "a", "a b\tc", "ä", "\u{ff}", "a: b;\"c\""] {
            assert_eq!(value(valid.as_bytes()), Ok(()), "{valid:?}");
        }
        for invalid in [
            " ", " a", "a ", "\ta", "a\t", "a\0b", "a\rb", "a\nb", "\x1f", "a\x7fb",
        ] {
            assert_eq!(value(invalid.as_bytes()), Err(Fault::Value), "{invalid:?}");
        }
    }
}
