//! What a driver has read, on its way into a connection.

use bytes::Bytes;

/// Bytes that came, and how many of them are still to be looked at.
///
/// A driver reads into a buffer of its own. A small read is lent ([`Input::lent`]); a large one
/// is shared ([`Input::shared`]), so that what a connection passes on of it is not copied.
#[derive(Debug)]
pub struct Input<'a> {
    rest: &'a [u8],
    owner: Option<&'a Bytes>,
}

/// A piece of a body.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// Whoever keeps it copies it.
    Lent(&'a [u8]),
    /// It keeps the whole read alive: at most four times its length.
    Shared(Bytes),
}

impl<'a> Input<'a> {
    /// Bytes of a buffer that the driver uses again.
    pub fn lent(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            owner: None,
        }
    }

    /// Bytes of a buffer that lives as long as anything of it does.
    pub fn shared(bytes: &'a Bytes) -> Self {
        Self {
            rest: bytes,
            owner: Some(bytes),
        }
    }

    /// What is left, without taking it.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes `n` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(n);
        self.rest = rest;
        taken
    }

    /// Takes `n` bytes of a body: by reference when that is worth its price.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn payload(&mut self, n: usize) -> Payload<'a> {
        let taken = self.take(n);
        match self.owner {
            Some(owner) if n >= SHARED_MIN.max(owner.len() / 4) => {
                Payload::Shared(owner.slice_ref(taken))
            }
            _ => Payload::Lent(taken),
        }
    }
}

impl Payload<'_> {
    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Self::Lent(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// Cuts off the first `n` bytes and returns them.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        match self {
            Self::Lent(bytes) => {
                let (first, rest) = bytes.split_at(n);
                *bytes = rest;
                Self::Lent(first)
            }
            Self::Shared(bytes) => Self::Shared(bytes.split_to(n)),
        }
    }

    /// For whoever keeps it: copied when it was lent.
    pub fn into_bytes(self) -> Bytes {
        match self {
            Self::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Self::Shared(bytes) => bytes,
        }
    }
}

/// Below it a copy costs less than two changes of a reference count and a piece of output of its
/// own.
pub(crate) const SHARED_MIN: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_piece_of_a_shared_read_is_not_copied() {
        let read = Bytes::from(vec![7; 4 * SHARED_MIN]);
        let mut input = Input::shared(&read);
        assert_eq!(input.take(10), &[7; 10]);
        assert!(matches!(input.payload(SHARED_MIN - 1), Payload::Lent(_)));
        let Payload::Shared(piece) = input.payload(SHARED_MIN) else {
            panic!("it was lent");
        };
        assert_eq!(piece.as_ptr(), read[10 + SHARED_MIN - 1..].as_ptr());
    }

    /// So that a slow reader of small pieces does not hold the reads that they came in.
    #[test]
    fn a_small_part_of_a_read_is_copied() {
        let read = Bytes::from(vec![7; 16 * SHARED_MIN]);
        let mut input = Input::shared(&read);
        assert!(matches!(
            input.payload(4 * SHARED_MIN - 1),
            Payload::Lent(_)
        ));
        assert!(matches!(input.payload(4 * SHARED_MIN), Payload::Shared(_)));
    }

    #[test]
    fn a_piece_is_cut_in_two() {
        let read = Bytes::from_static(b"abcdef");
        for mut payload in [Payload::Lent(&read), Payload::Shared(read.clone())] {
            assert_eq!(payload.split_to(2).into_bytes(), "ab");
            assert_eq!(payload.as_slice(), b"cdef");
        }
    }
}
