//! Streams that we ended before their time: what the peer had sent before it knew is no error
//! (RFC 9113 section 5.1, "closed"), as far as its window reached.

use std::collections::VecDeque;

/// The last [`KEPT`] of them.
#[derive(Debug, Default)]
pub(super) struct Recent {
    entries: VecDeque<Entry>,
}

#[derive(Debug)]
struct Entry {
    id: u32,
    /// What the peer may still have sent of it.
    window: u32,
}

impl Recent {
    pub(super) fn add(&mut self, id: u32, window: u32) {
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { id, window });
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.entries.iter().any(|entry| entry.id == id)
    }

    /// A DATA frame of `bytes` came: whether it was within the window. `None`: it is not of any.
    pub(super) fn take(&mut self, id: u32, bytes: u32) -> Option<bool> {
        let entry = self.entries.iter_mut().find(|entry| entry.id == id)?;
        let left = entry.window.checked_sub(bytes);
        entry.window = left.unwrap_or(0);
        Some(left.is_some())
    }

    /// Windows have become larger by `bytes` before the peer knew that these were over.
    pub(super) fn grow(&mut self, bytes: u32) {
        for entry in &mut self.entries {
            entry.window = entry.window.saturating_add(bytes);
        }
    }

    /// Gives back memory: a connection at rest has heard all that was on its way.
    pub(super) fn shrink(&mut self) {
        self.entries = VecDeque::new();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }
}

/// As many as a connection has streams by default, so that all may be cancelled at once.
const KEPT: usize = 1_024;
