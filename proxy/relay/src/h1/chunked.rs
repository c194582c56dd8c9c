//! The chunked transfer coding (RFC 9112 section 7.1) of what comes.
//!
//! ```text
//!  ┌─► Size ──► Extension ──► SizeLf ──► Data ──► DataCr ──► DataLf ─┐
//!  │                             │ last                              │
//!  │                             └────► the trailer section          │
//!  └─────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Stricter than the grammar: no white space around the size. Extensions are dropped (section
//! 7.1.1), whatever they say.

use super::{fault::Fault, limits::Limits};

/// Where in a chunked body we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunked {
    state: State,
    /// Of the chunk; then what is left of it.
    size: u64,
    /// Bytes of the line so far.
    line_bytes: u32,
    /// Bytes of extensions in the body so far.
    extension_bytes: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
}

/// What follows in the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More framing, when more bytes come.
    Framing,
    /// So many bytes of data, which [`Chunked::took`] takes.
    Data(u64),
    /// The trailer section: the last chunk was there.
    Trailers,
}

impl Chunked {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Size,
            size: 0,
            line_bytes: 0,
            extension_bytes: 0,
        }
    }

    /// Reads framing from `bytes`: how many it used, and what follows.
    pub(super) fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<(usize, Next), Fault> {
        for (at, &byte) in bytes.iter().enumerate() {
            match self.state {
                State::Data => return Ok((at, Next::Data(self.size))),
                State::DataCr => self.state = expect(byte, b'\r', State::DataLf)?,
                State::DataLf => {
                    expect(byte, b'\n', State::Size)?;
                    *self = Self {
                        extension_bytes: self.extension_bytes,
                        ..Self::new()
                    };
                }
                State::SizeLf => {
                    self.state = expect(byte, b'\n', State::Data)?;
                    if self.size == 0 {
                        return Ok((at + 1, Next::Trailers));
                    }
                }
                State::Size | State::Extension => self.read_line(byte, limits)?,
            }
        }
        let is_data = self.state == State::Data;
        let next = if is_data {
            Next::Data(self.size)
        } else {
            Next::Framing
        };
        Ok((bytes.len(), next))
    }

    /// `n` bytes of data were taken, at most as many as there were.
    pub(super) fn took(&mut self, n: u64) {
        debug_assert!(self.state == State::Data && n <= self.size);
        self.size -= n;
        if self.size == 0 {
            self.state = State::DataCr;
        }
    }

    /// Whether the data of a chunk has just ended.
    pub(super) fn is_behind_data(&self) -> bool {
        self.state == State::DataCr
    }

    fn read_line(&mut self, byte: u8, limits: &Limits) -> Result<(), Fault> {
        self.line_bytes += 1;
        if self.line_bytes > limits.chunk_line_bytes_max {
            return Err(Fault::bad("the line of a chunk is too long"));
        }
        match (self.state, byte) {
            (State::Size, b';') if self.line_bytes > 1 => self.state = State::Extension,
            (_, b'\r') if self.line_bytes > 1 => self.state = State::SizeLf,
            (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension_bytes += 1;
                if self.extension_bytes > limits.extension_bytes_max {
                    return Err(Fault::bad("the chunks have too many extensions"));
                }
            }
            (State::Size, _) => self.read_digit(byte)?,
            _ => return Err(Fault::bad("a chunk extension has a control character")),
        }
        Ok(())
    }

    fn read_digit(&mut self, byte: u8) -> Result<(), Fault> {
        const NO_SIZE: Fault = Fault::bad("the size of a chunk is not a hexadecimal number");
        let digit = char::from(byte).to_digit(16).ok_or(NO_SIZE)?;
        if self.line_bytes > SIZE_DIGITS_MAX {
            return Err(Fault::bad("the size of a chunk is too large"));
        }
        self.size = self.size << 4 | u64::from(digit);
        Ok(())
    }
}

fn expect(byte: u8, expected: u8, then: State) -> Result<State, Fault> {
    let is_expected = byte == expected;
    is_expected
        .then_some(then)
        .ok_or(Fault::bad("a chunk does not end where it says"))
}

/// 2^60 - 1 bytes; leading zeros count.
const SIZE_DIGITS_MAX: u32 = 15;

#[cfg(test)]
mod tests {
    use super::*;

    /// In pieces of every length: the body, and the bytes behind the last chunk.
    #[track_caller]
    fn check(text: &[u8], expected: Result<(&str, &str), &str>) {
        for step in 1..=text.len() {
            assert_eq!(
                read(text, step),
                expected.map(|(body, rest)| (body.into(), rest.into())),
                "{} by {step}",
                text.escape_ascii()
            );
        }
    }

    fn read(text: &[u8], step: usize) -> Result<(String, String), &'static str> {
        let limits = Limits {
            chunk_line_bytes_max: 20,
            extension_bytes_max: 30,
            ..Limits::default()
        };
        let mut chunked = Chunked::new();
        let mut body = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let piece = &text[at..text.len().min(at + step)];
            let (used, next) = chunked.read(piece, &limits).map_err(|fault| fault.reason)?;
            at += used;
            match next {
                Next::Framing => {}
                Next::Data(n) => {
                    let n = piece[used..].len().min(usize::try_from(n).unwrap());
                    body.extend_from_slice(&text[at..at + n]);
                    if n > 0 {
                        chunked.took(n as u64);
                    }
                    at += n;
                }
                Next::Trailers => {
                    let texts = [&body, &text[at..]].map(|text| String::from_utf8(text.to_vec()));
                    return Ok(texts.map(Result::unwrap).into());
                }
            }
        }
        Err("more")
    }

    #[test]
    fn chunks_are_joined() {
        check(
            b"3\r\nabc\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\n\r\n",
            Ok(("abc0123456789", "\r\n")),
        );
        check(b"000\r\nrest", Ok(("", "rest")));
        check(b"0;last\r\n", Ok(("", "")));
        check(b"5\r\nabc", Err("more"));
    }

    #[test]
    fn a_size_is_a_hexadecimal_number_and_nothing_else() {
        let no_size = Err("the size of a chunk is not a hexadecimal number");
        for text in [
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            "1 \r\n",
            " 1\r\n",
            "1 1\r\n",
            "g\r\n",
            "\r\n0\r\n",
            ";x\r\n",
            "1\n",
            "1\t;x\r\n",
            "\u{e4}\r\n",
            "1,1\r\n",
            "1_0\r\n",
        ] {
            check(text.as_bytes(), no_size);
        }
        check(b"fffffffffffffff\r\na", Err("more"));
        check(
            b"1000000000000000\r\n",
            Err("the size of a chunk is too large"),
        );
        check(
            b"ffffffffffffffff1\r\n",
            Err("the size of a chunk is too large"),
        );
        check(
            b"0000000000000001\r\n",
            Err("the size of a chunk is too large"),
        );
    }

    #[test]
    fn a_chunk_ends_where_it_says() {
        let no_end = Err("a chunk does not end where it says");
        for text in [
            "1\r\nab\r\n",
            "1\r\na\n",
            "1\r\na\r\r\n",
            "1\rx",
            "1;a\rb\r\n",
            "1\r\r\n",
        ] {
            check(text.as_bytes(), no_end);
        }
    }

    #[test]
    fn extensions_are_dropped_within_bounds() {
        check(b"1;\x80\t \r\na\r\n0\r\n", Ok(("a", "")));
        check(
            b"1;\x00\r\n",
            Err("a chunk extension has a control character"),
        );
        check(
            b"1;a\nb\r\n",
            Err("a chunk extension has a control character"),
        );
        check(
            b"1;aaaaaaaaaaaaaaaaaaaa\r\n",
            Err("the line of a chunk is too long"),
        );
        let many = b"1;aaaaaaaaaa\r\na\r\n".repeat(4);
        check(&many, Err("the chunks have too many extensions"));
    }
}
