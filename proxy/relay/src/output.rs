//! What a connection has to send, in order, until its driver could write it.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

use crate::input::{Payload, SHARED_MIN};

/// Bytes to write: small ones one after the other, large ones by reference between them.
///
/// It has no bound of its own: a connection puts into it what must go, and of bodies only as
/// much as it says it takes.
#[derive(Debug, Default)]
pub struct Output {
    /// All that was copied, of which `written` bytes have gone.
    small: Vec<u8>,
    written: usize,
    /// What comes before `small[at..]`, in order.
    large: VecDeque<Large>,
    len: usize,
}

#[derive(Debug)]
struct Large {
    at: usize,
    bytes: Bytes,
}

impl Output {
    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends what `write` appends to the buffer that it is given, and only that.
    pub fn write<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        let before = self.small.len();
        let result = write(&mut self.small);
        self.len += self.small.len() - before;
        result
    }

    /// Appends a copy of `bytes`.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.small.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends a piece of a body; a short one is copied, whatever it is.
    pub fn push(&mut self, payload: Payload<'_>) {
        match payload {
            Payload::Lent(bytes) => self.copy(bytes),
            Payload::Shared(bytes) if bytes.len() < SHARED_MIN => self.copy(&bytes),
            Payload::Shared(bytes) => {
                self.len += bytes.len();
                let at = self.small.len();
                self.large.push_back(Large { at, bytes });
            }
        }
    }

    /// The bytes to write first, in order, as many slices as there are places; how many they are.
    pub fn slices<'a>(&'a self, places: &mut [IoSlice<'a>]) -> usize {
        let mut at = self.written;
        let mut used = 0;
        let mut place = |bytes: &'a [u8]| {
            if bytes.is_empty() {
                return true;
            }
            let Some(place) = places.get_mut(used) else {
                return false;
            };
            *place = IoSlice::new(bytes);
            used += 1;
            true
        };
        for large in &self.large {
            if !place(&self.small[at..large.at]) || !place(&large.bytes) {
                return used;
            }
            at = large.at;
        }
        place(&self.small[at..]);
        used
    }

    /// All bytes in order, as they were put in.
    pub fn payloads(&self) -> impl Iterator<Item = Payload<'_>> {
        let mut at = self.written;
        let large = self.large.iter().flat_map(move |large| {
            let before = &self.small[std::mem::replace(&mut at, large.at)..large.at];
            [Payload::Lent(before), Payload::Shared(large.bytes.clone())]
        });
        let last = self.large.back().map_or(self.written, |large| large.at);
        let all = large.chain([Payload::Lent(&self.small[last..])]);
        all.filter(|payload| !payload.is_empty())
    }

    /// Forgets the first `n` bytes: they have been written.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn consume(&mut self, mut n: usize) {
        self.len = self.len.checked_sub(n).expect("so much was there");
        while let Some(large) = self.large.front_mut() {
            let before = large.at - self.written;
            if n < before {
                break;
            }
            n -= before;
            self.written = large.at;
            if n < large.bytes.len() {
                large.bytes.advance(n);
                n = 0;
                break;
            }
            n -= large.bytes.len();
            self.large.pop_front();
        }
        self.written += n;
        self.compact();
    }

    /// Gives back memory that nothing at rest needs; what is busy would only take it again. So much
    /// is kept until then: [`ROOM_MAX`], or twice what waits if that is more.
    pub fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        let large = self.len - (self.small.len() - self.written);
        self.small.capacity() + large + self.large.capacity() * size_of::<Large>()
    }

    /// What follows moves to the front when it is less than what has gone: each byte moves once on
    /// average.
    fn compact(&mut self) {
        if self.len == 0 {
            self.small.clear();
            self.small.shrink_to(ROOM_MAX);
            self.written = 0;
        } else if self.written >= WRITTEN_KEPT.max(self.small.len() / 2) {
            self.small.drain(..self.written);
            for large in &mut self.large {
                large.at -= self.written;
            }
            self.written = 0;
        }
    }
}

/// Room that is kept between one batch and the next: heads and short messages of a hundred requests.
/// Nobody counts it, so what a long body took is given back.
const ROOM_MAX: usize = 32 * 1024;
/// Bytes that have gone and are not worth a move.
const WRITTEN_KEPT: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(output: &Output) -> Vec<u8> {
        let mut places = [IoSlice::new(&[]); 64];
        let used = output.slices(&mut places);
        let places: Vec<&[u8]> = places[..used].iter().map(|place| &**place).collect();
        places.concat()
    }

    fn mixed() -> (Output, Vec<u8>) {
        let mut output = Output::default();
        let mut all = Vec::new();
        for n in 0..20_u8 {
            let piece = vec![n; usize::from(n) * 60];
            all.extend_from_slice(&piece);
            match n % 3 {
                0 => output.copy(&piece),
                1 => output.push(Payload::Shared(piece.into())),
                _ => output.write(|buffer| buffer.extend_from_slice(&piece)),
            }
        }
        (output, all)
    }

    #[test]
    fn what_goes_in_comes_out_in_order_whatever_was_written_at_once() {
        for step in [1, 7, 700, 4096, 5000, 200_000] {
            let (mut output, all) = mixed();
            let mut written = 0;
            while written < all.len() {
                assert_eq!(output.len(), all.len() - written);
                assert_eq!(contents(&output), &all[written..], "{step}");
                let n = step.min(output.len());
                output.consume(n);
                written += n;
            }
            assert!(output.is_empty());
            assert_eq!(contents(&output), b"");
        }
    }

    #[test]
    fn few_places_take_the_first_bytes() {
        let (output, all) = mixed();
        let mut places = [IoSlice::new(&[]); 2];
        assert_eq!(output.slices(&mut places), 2);
        let first = [&*places[0], &*places[1]].concat();
        assert_eq!(first, &all[..first.len()]);
        assert!(!first.is_empty());
    }

    /// As a busy connection is used: batches, each of which is written whole.
    #[test]
    fn room_is_kept_while_it_is_used_and_given_back_at_rest() {
        let mut output = Output::default();
        let batch = |output: &mut Output, bytes: usize| {
            output.copy(&vec![0; bytes]);
            output.consume(bytes);
            output.memory_bytes()
        };
        assert!(batch(&mut output, 32 * 1024) >= 32 * 1024);
        assert!(batch(&mut output, 1) >= 32 * 1024);
        assert!(batch(&mut output, 1 << 20) <= ROOM_MAX);
        output.copy(b"a");
        output.shrink();
        assert_eq!(contents(&output), b"a");
        output.consume(1);
        output.shrink();
        assert_eq!(output.memory_bytes(), 0);
    }

    /// As a connection is used that sends a large body and is never quite empty: what is written ends
    /// within a large piece each time.
    #[test]
    fn what_has_gone_is_forgotten_also_when_it_is_never_empty() {
        let mut output = Output::default();
        let body = Bytes::from(vec![7; 16 * 1024]);
        let frame = 9 + body.len();
        for n in 0..20_000 {
            output.copy(&[7; 9]);
            output.push(Payload::Shared(body.clone()));
            output.consume(if n == 0 { frame - 1 } else { frame });
        }
        assert_eq!(output.len(), 1);
        assert!(output.memory_bytes() <= 4 * WRITTEN_KEPT);
    }

    #[test]
    fn what_waits_moves_as_often_as_it_is_long() {
        let mut output = Output::default();
        output.copy(&[1; 1 << 20]);
        let mut moves = 0;
        while !output.is_empty() {
            let written = output.written;
            output.consume(1 << 10);
            moves += usize::from(output.written < written);
        }
        assert!((1..=10).contains(&moves), "{moves}");
    }
}
