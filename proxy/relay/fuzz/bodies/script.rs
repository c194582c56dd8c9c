//! An input as a series of steps: numbers and pieces of bytes, cut off its front.

/// What is left of an input. At its end there are zeros and empty pieces.
pub(crate) struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub(crate) fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.rest.split_first() {
            Some((&first, rest)) => {
                self.rest = rest;
                first
            }
            None => 0,
        }
    }

    /// Of two bytes.
    pub(crate) fn number(&mut self) -> u32 {
        u32::from(self.byte()) << 8 | u32::from(self.byte())
    }

    /// As many bytes as the next one says; the largest takes all that is left.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let bytes = match self.byte() {
            u8::MAX => self.rest.len(),
            bytes => self.rest.len().min(bytes.into()),
        };
        let (piece, rest) = self.rest.split_at(bytes);
        self.rest = rest;
        piece
    }
}
