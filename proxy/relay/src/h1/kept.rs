//! Bytes that came and cannot be used yet: a head or trailers that are not whole, the next request,
//! a body whose window is used up.

use std::fmt;

use crate::input::Input;

/// Bytes in order of arrival. They come before those of the [`Input`].
#[derive(Default)]
pub(super) struct Kept {
    bytes: Vec<u8>,
    /// What has been used of `bytes`.
    used: usize,
    /// What has been searched of the rest, for the line that ends a head.
    searched: usize,
    /// What the search has seen last.
    seen: Seen,
    /// From how many bytes on a part of a head is worth another look. It doubles, so that a head
    /// that comes byte by byte costs linear time.
    looked_at: usize,
}

/// What the bytes before a place end with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Line,
    LineEnd,
    LineEndCr,
}

impl Kept {
    /// What has not been used.
    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.used..]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.used == self.bytes.len()
    }

    /// Whether there are bytes in which [`Self::section`] has not searched.
    pub(super) fn is_news(&self) -> bool {
        self.searched < self.rest().len()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives back the room that is not in use.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
    }

    /// Takes from `input` as much as there is room for.
    pub(super) fn fill(&mut self, input: &mut Input<'_>, bytes_max: usize) {
        let room = bytes_max.saturating_sub(self.rest().len());
        let taken = input.take(input.rest().len().min(room));
        self.append(taken);
    }

    /// Uses the first `n` bytes; the search for a section begins anew behind them.
    pub(super) fn advance(&mut self, n: usize) {
        self.used += n;
        self.searched = 0;
        self.seen = Seen::Line;
        self.looked_at = 0;
        if self.is_empty() {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(IDLE_BYTES);
        self.used = 0;
        self.searched = 0;
        self.seen = Seen::Line;
    }

    /// What is searched follows the end of a line: an empty line is a section.
    pub(super) fn begin_section_of_lines(&mut self) {
        self.seen = Seen::LineEnd;
    }

    /// The length of a section, up to and with its empty line, once it is here; else all of
    /// `input`, up to `bytes_max`, is taken. Of `input` nothing behind the section is taken.
    pub(super) fn section(&mut self, input: &mut Input<'_>, bytes_max: usize) -> Option<usize> {
        let rest = &self.bytes[self.used + self.searched..];
        let (searched, is_whole) = search(&mut self.seen, rest);
        self.searched += searched;
        if is_whole {
            return Some(self.searched);
        }
        let room = bytes_max.saturating_sub(self.rest().len());
        let more = &input.rest()[..input.rest().len().min(room)];
        let (searched, is_whole) = search(&mut self.seen, more);
        self.searched += searched;
        let taken = input.take(searched);
        self.append(taken);
        is_whole.then_some(self.searched)
    }

    /// Whether a part of a section has grown enough to be looked at again.
    pub(super) fn is_worth_a_look(&mut self) -> bool {
        let len = self.rest().len();
        let is_worth = len >= 2 * self.looked_at;
        if is_worth {
            self.looked_at = len;
        }
        is_worth
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.used > 0 && self.used >= self.bytes.len() / 2 {
            // At most as much moves as was used since the last time.
            self.bytes.drain(..self.used);
            self.used = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }
}

impl fmt::Debug for Kept {
    /// Without the bytes: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kept({})", self.rest().len())
    }
}

/// How many bytes were looked at, and whether they end with an empty line. It is found with bare
/// line feeds too: what ends so is refused as a whole.
fn search(seen: &mut Seen, bytes: &[u8]) -> (usize, bool) {
    for (at, byte) in bytes.iter().enumerate() {
        *seen = match (byte, *seen) {
            (b'\n', Seen::LineEnd | Seen::LineEndCr) => return (at + 1, true),
            (b'\n', Seen::Line) => Seen::LineEnd,
            (b'\r', Seen::LineEnd) => Seen::LineEndCr,
            _ => Seen::Line,
        };
    }
    (bytes.len(), false)
}

/// Room that stays when nothing is kept: connections that got one head in two pieces mostly get
/// the next so, too.
const IDLE_BYTES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    /// In pieces of every length: the section's length, and what is left of the input behind it.
    #[track_caller]
    fn check(text: &str, lines: bool, section: Option<usize>) {
        for step in 1..=text.len() {
            let mut kept = Kept::default();
            if lines {
                kept.begin_section_of_lines();
            }
            let mut found = None;
            let mut taken = 0;
            for piece in text.as_bytes().chunks(step) {
                let mut input = Input::lent(piece);
                found = kept.section(&mut input, 100);
                taken += piece.len() - input.rest().len();
                if found.is_some() {
                    break;
                }
            }
            assert_eq!(found, section, "{text:?} by {step}");
            assert_eq!(taken, section.unwrap_or(text.len()), "{text:?} by {step}");
            assert_eq!(kept.rest(), &text.as_bytes()[..taken]);
        }
    }

    #[test]
    fn a_section_ends_with_its_empty_line() {
        check("a\r\nb\r\n\r\nrest", false, Some(8));
        check("a\n\nrest", false, Some(3));
        check("a\n\r\nrest", false, Some(4));
        check("a\r\n\r", false, None);
        check("a\r\n\rb\r\n", false, None);
        check("\r\nrest", true, Some(2));
        check("\r\nrest", false, None);
        check("a: b\r\n\r\n", true, Some(8));
    }

    #[test]
    fn a_part_that_grows_by_bytes_is_looked_at_seldom() {
        let mut kept = Kept::default();
        let mut looks = 0;
        for _ in 0..1 << 16 {
            kept.section(&mut Input::lent(b"x"), 1 << 16);
            looks += usize::from(kept.is_worth_a_look());
        }
        assert_eq!(looks, 17, "at each power of two");
    }

    #[test]
    fn no_more_is_taken_than_there_is_room_for() {
        let mut kept = Kept::default();
        let mut input = Input::lent(b"0123456789");
        assert_eq!(kept.section(&mut input, 4), None);
        kept.fill(&mut input, 6);
        assert_eq!((kept.rest(), input.rest()), (&b"012345"[..], &b"6789"[..]));
        kept.advance(4);
        kept.fill(&mut input, 6);
        assert_eq!((kept.rest(), input.rest()), (&b"456789"[..], &b""[..]));
        kept.advance(6);
        assert!(kept.is_empty());
        assert!(kept.memory_bytes() <= IDLE_BYTES);
    }
}
