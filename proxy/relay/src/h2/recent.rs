//! Streams that we ended before their time: what the peer had sent before it knew is no error
//! (RFC 9113 section 5.1, "closed"), as far as its window reached.

/// Those among the last [`IDS_KEPT`] numbers, in a table with one place for each number that it
/// is large enough for: a look-up is one step, and streams that follow each other never share a
/// place.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// None, or a power of two of them.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Zero: the place is free.
    id: u32,
    /// What the peer may still have sent of it.
    window: u32,
}

impl Recent {
    pub(super) fn add(&mut self, id: u32, window: u32) {
        if self.entries.is_empty() {
            self.entries = vec![Entry::FREE; IDS_MIN];
        }
        while self.is_taken_from(id) && self.entries.len() < IDS_KEPT {
            let larger = vec![Entry::FREE; 2 * self.entries.len()];
            let entries = std::mem::replace(&mut self.entries, larger);
            for entry in entries.into_iter().filter(|entry| entry.id != 0) {
                *self.place(entry.id) = entry;
            }
        }
        *self.place(id) = Entry { id, window };
    }

    pub(super) fn has(&mut self, id: u32) -> bool {
        !self.entries.is_empty() && self.place(id).id == id
    }

    /// A DATA frame of `bytes` came: whether it was within the window. `None`: it is not of any.
    pub(super) fn take(&mut self, id: u32, bytes: u32) -> Option<bool> {
        if !self.has(id) {
            return None;
        }
        let entry = self.place(id);
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
        self.entries = Vec::new();
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<Entry>()
    }

    /// Whether the place of `id` is that of another that is not long ago.
    fn is_taken_from(&mut self, id: u32) -> bool {
        let other = self.place(id).id;
        other != 0 && other != id && id.abs_diff(other) / 2 < IDS_MAX
    }

    /// Numbers of a client's streams are odd.
    fn place(&mut self, id: u32) -> &mut Entry {
        let mask = self.entries.len() - 1;
        &mut self.entries[(id / 2) as usize & mask]
    }
}

impl Entry {
    const FREE: Self = Self { id: 0, window: 0 };
}

/// At most 32 KiB, and four times as many as a connection has streams by default, so that all may
/// be cancelled at once, and those that take their place too.
const IDS_KEPT: usize = IDS_MAX as usize;
const IDS_MAX: u32 = 4_096;
const IDS_MIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_follow_each_other_are_all_there() {
        let mut recent = Recent::default();
        assert!(!recent.has(1));
        for n in 0..20_000 {
            recent.add(2 * n + 1, n);
            let first = n.saturating_sub(IDS_MAX - 1);
            for kept in [first, n / 2 + first / 2, n] {
                assert!(recent.has(2 * kept + 1), "{kept} of {n}");
            }
            assert!(first == 0 || !recent.has(2 * first - 1));
        }
        assert_eq!(recent.memory_bytes(), 32 * 1024);
    }

    #[test]
    fn two_of_the_same_place_both_get_one() {
        for apart in [16, 32, 1_024, 2_048, 4_095] {
            let mut recent = Recent::default();
            for id in [1, 7, 2 * apart + 1, 2 * apart + 7] {
                recent.add(id, id);
            }
            for id in [1, 7, 2 * apart + 1, 2 * apart + 7] {
                assert_eq!(recent.take(id, id), Some(true), "{id}, {apart}");
            }
        }
    }

    #[test]
    fn a_few_now_and_then_take_little_room() {
        let mut recent = Recent::default();
        for n in 0..10_000 {
            recent.add(10_000 * n + 1, 0);
            assert!(recent.has(10_000 * n + 1));
        }
        assert_eq!(recent.memory_bytes(), IDS_MIN * size_of::<Entry>());
    }

    #[test]
    fn what_may_come_is_the_window() {
        let mut recent = Recent::default();
        recent.add(1, 10);
        assert_eq!(recent.take(1, 8), Some(true));
        recent.grow(1);
        assert_eq!(recent.take(1, 3), Some(true));
        assert_eq!(recent.take(1, 1), Some(false));
        assert_eq!(recent.take(3, 0), None);
        recent.add(1, 5);
        assert_eq!(recent.take(1, 5), Some(true));
    }
}
