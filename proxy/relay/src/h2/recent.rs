//! Streams that we ended before their time: what the peer had sent before it knew is no error
//! (RFC 9113 section 5.1, "closed").

use std::collections::VecDeque;

/// The last [`KEPT`] of them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    ids: VecDeque<u32>,
}

impl Recent {
    pub(super) fn add(&mut self, id: u32) {
        if self.ids.len() == KEPT {
            self.ids.pop_front();
        }
        self.ids.push_back(id);
    }

    /// Only asked for frames of streams that are over; the steps are bounded, and fast.
    pub(super) fn has(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// Gives back memory: a connection at rest has heard all that was on its way.
    pub(super) fn shrink(&mut self) {
        self.ids = VecDeque::new();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.ids.capacity() * size_of::<u32>()
    }
}

/// As many as a connection has streams by default, so that all may be cancelled at once.
const KEPT: usize = 1_024;
