//! Windows (RFC 9113 section 5.2 and 6.9): how much the peer may send, and how much we may.

use super::frame::MAX_31_BITS;

/// What the peer may send: of the connection or of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReceiveWindow {
    /// What it may still send. Negative after SETTINGS that made windows smaller.
    left: i32,
    /// What was taken from `left` and is free again, but not said yet.
    unsaid: u32,
}

/// What we may send: of the connection or of one stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct SendWindow(i32);

/// A window would be larger than 2^31 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

impl ReceiveWindow {
    pub(super) fn new(bytes: u32) -> Self {
        Self {
            left: signed(bytes),
            unsaid: 0,
        }
    }

    /// Takes a frame of `bytes`, if the window has room for it.
    pub(super) fn take(&mut self, bytes: u32) -> bool {
        let has_room = i64::from(self.left) >= i64::from(bytes);
        if has_room {
            self.left -= signed(bytes);
        }
        has_room
    }

    /// Gives back `bytes` of a window of `size`. The result is an increment to say now: they are
    /// collected up to half the window, so that a window costs two frames.
    pub(super) fn give(&mut self, bytes: u32, size: u32) -> Option<u32> {
        self.unsaid = self.unsaid.saturating_add(bytes).min(MAX_31_BITS);
        if self.unsaid == 0 || self.unsaid < size / 2 {
            return None;
        }
        let increment = self.unsaid;
        self.unsaid = 0;
        self.left = self.left.saturating_add(signed(increment));
        Some(increment)
    }

    /// What the peer may still send.
    pub(super) fn left(&self) -> u32 {
        u32::try_from(self.left).unwrap_or(0)
    }

    /// The size in SETTINGS changed from `before` to `after`.
    pub(super) fn resize(&mut self, before: u32, after: u32) {
        self.left = clamped(i64::from(self.left) + i64::from(after) - i64::from(before));
    }
}

impl SendWindow {
    pub(super) fn new(bytes: u32) -> Self {
        Self(signed(bytes))
    }

    /// How many bytes may be sent.
    pub(super) fn left(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }

    /// `bytes`, at most [`SendWindow::left`], are sent.
    pub(super) fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.left(), "nothing is sent over a window");
        self.0 = clamped(i64::from(self.0) - i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// What was taken has not been sent after all.
    pub(super) fn give_back(&mut self, bytes: u32) {
        self.0 = self.0.saturating_add(signed(bytes));
    }

    /// WINDOW_UPDATE.
    pub(super) fn grow(&mut self, increment: u32) -> Result<(), Overflow> {
        self.0 = self.0.checked_add(signed(increment)).ok_or(Overflow)?;
        Ok(())
    }

    /// The size in SETTINGS changed from `before` to `after`; the window may become negative
    /// (RFC 9113 section 6.9.2).
    pub(super) fn resize(&mut self, before: u32, after: u32) -> Result<(), Overflow> {
        let left = i64::from(self.0) + i64::from(after) - i64::from(before);
        self.0 = i32::try_from(left).or(Err(Overflow))?;
        Ok(())
    }
}

/// Windows and increments have 31 bits; a larger one of our own settings is the largest.
fn signed(bytes: u32) -> i32 {
    i32::try_from(bytes).unwrap_or(i32::MAX)
}

fn clamped(bytes: i64) -> i32 {
    i32::try_from(bytes.clamp(i64::from(i32::MIN), i64::from(i32::MAX))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receive_window_is_given_back_in_halves() {
        let mut window = ReceiveWindow::new(10);
        assert!(window.take(7));
        assert!(!window.take(4));
        assert_eq!(window.give(4, 10), None);
        assert_eq!(window.give(1, 10), Some(5));
        assert!(window.take(8));
        assert!(!window.take(1));
    }

    #[test]
    fn a_window_of_one_byte_is_given_back_at_once() {
        let mut window = ReceiveWindow::new(1);
        assert_eq!(window.give(0, 1), None);
        assert!(window.take(1));
        assert_eq!(window.give(1, 1), Some(1));
    }

    #[test]
    fn a_window_that_shrinks_becomes_negative_and_comes_back() {
        let mut window = ReceiveWindow::new(100);
        assert!(window.take(90));
        window.resize(100, 5);
        assert!(!window.take(0), "it is at -85");
        assert_eq!(window.give(90, 5), Some(90));
        assert!(window.take(5));

        let mut window = SendWindow::new(100);
        window.take(90);
        window.resize(100, 5).unwrap();
        assert_eq!(window.left(), 0);
        window.grow(85).unwrap();
        assert_eq!(window.left(), 0);
        window.grow(1).unwrap();
        assert_eq!(window.left(), 1);
    }

    #[test]
    fn a_send_window_has_31_bits() {
        let mut window = SendWindow::new(MAX_31_BITS);
        assert_eq!(window.grow(1), Err(Overflow));
        assert_eq!(window.resize(0, 1), Err(Overflow));
        window.take(1);
        assert_eq!(window.grow(1), Ok(()));
        assert_eq!(window.resize(MAX_31_BITS, 0), Ok(()));
        assert_eq!(window.left(), 0);
    }
}
