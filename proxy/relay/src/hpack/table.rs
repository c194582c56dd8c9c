//! The dynamic table (RFC 7541 sections 2.3.2 and 4), the same for both directions.

use std::{collections::VecDeque, ops::Range};

use super::{TABLE_BYTES_DEFAULT, Token, check::Fault};

/// Fields, first in, first out; the newest has position 0.
///
/// It takes no memory before the first field enters. A known name takes no room, though it
/// counts; so the memory taken is below the size as RFC 7541 section 4.1 counts it, but for room
/// that grows by half and the place of fields that have left.
#[derive(Debug)]
pub(super) struct Table {
    /// Names, unless they are known, and values, one behind the other, oldest first.
    bytes: Vec<u8>,
    /// Bytes at the front whose fields have left.
    dead: usize,
    /// Oldest first.
    entries: VecDeque<Entry>,
    /// As RFC 7541 section 4.1 counts.
    size: usize,
    size_max: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    start: usize,
    name_bytes: u32,
    value_bytes: u32,
    size: u32,
    /// As [`crate::head::hash`] computes it. A decoder has 0 for one that it did not pass on, or not
    /// as it is here.
    pub(super) hash: u32,
    pub(super) token: Token,
    /// Of a field that must not be passed on. It enters all the same: the other end has it.
    pub(super) fault: Option<Fault>,
}

/// A field that enters.
#[derive(Clone, Copy, Debug)]
pub(super) struct New<'a> {
    pub(super) token: Token,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) hash: u32,
    pub(super) fault: Option<Fault>,
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            dead: 0,
            entries: VecDeque::new(),
            size: 0,
            size_max: TABLE_BYTES_DEFAULT as usize,
        }
    }

    /// Adds a field, for which the oldest ones leave. If it is larger than the table, all leave
    /// and it does not enter (RFC 7541 section 4.4), which `false` says.
    pub(super) fn insert(&mut self, new: New<'_>) -> bool {
        let size = size_of_field(new.name, new.value);
        self.evict(self.size_max.saturating_sub(size));
        if size > self.size_max {
            return false;
        }
        let is_known = new.token != Token::Other;
        let stored = if is_known { b"" } else { new.name };
        self.make_room(stored.len() + new.value.len());
        let start = self.bytes.len();
        self.bytes.extend_from_slice(stored);
        self.bytes.extend_from_slice(new.value);
        let checked = |bytes| u32::try_from(bytes).expect("no more than `size_max`, a u32");
        self.entries.push_back(Entry {
            start,
            name_bytes: checked(stored.len()),
            value_bytes: checked(new.value.len()),
            size: checked(size),
            hash: new.hash,
            token: new.token,
            fault: new.fault,
        });
        self.size += size;
        true
    }

    /// Changes the size; the oldest fields that are too much leave.
    pub(super) fn resize(&mut self, size_max: u32) {
        self.size_max = size_max as usize;
        self.evict(self.size_max);
    }

    /// The field at `position`, if there is one.
    pub(super) fn get(&self, position: usize) -> Option<&Entry> {
        let newest = self.entries.len().checked_sub(1)?;
        self.entries.get(newest.checked_sub(position)?)
    }

    pub(super) fn name<'a>(&'a self, entry: &Entry) -> &'a [u8] {
        match entry.token.name() {
            Some(name) => name.as_bytes(),
            None => &self.stored(entry)[..entry.name_bytes()],
        }
    }

    pub(super) fn value<'a>(&'a self, entry: &Entry) -> &'a [u8] {
        &self.stored(entry)[entry.name_bytes()..]
    }

    /// The name, unless it is known, and the value.
    #[inline]
    pub(super) fn stored<'a>(&'a self, entry: &Entry) -> &'a [u8] {
        &self.bytes[entry.range()]
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Newest first.
    #[cfg(test)]
    pub(super) fn fields(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let newest_first = self.entries.iter().rev();
        newest_first
            .map(|entry| (self.name(entry).to_vec(), self.value(entry).to_vec()))
            .collect()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.entries.capacity() * size_of::<Entry>()
    }

    pub(super) fn size_max(&self) -> usize {
        self.size_max
    }

    fn evict(&mut self, size_max: usize) {
        while self.size > size_max {
            let oldest = self.entries.pop_front();
            let oldest = oldest.expect("the size is that of the entries");
            self.dead = oldest.range().end;
            self.size -= oldest.size();
        }
    }

    /// Each byte moves a bounded number of times on average: a move of `n` bytes comes after at
    /// least `n / 3` others have been dropped.
    fn make_room(&mut self, bytes: usize) {
        if self.bytes.len() + bytes <= self.bytes.capacity() {
            return;
        }
        if self.dead > self.bytes.len() / 4 {
            self.bytes.drain(..self.dead);
            for entry in &mut self.entries {
                entry.start -= self.dead;
            }
            self.dead = 0;
        }
        if self.bytes.len() + bytes > self.bytes.capacity() {
            self.bytes.reserve_exact(bytes.max(self.bytes.len() / 2));
        }
    }
}

impl Entry {
    /// Of the name, if it takes room.
    pub(super) fn name_bytes(&self) -> usize {
        self.name_bytes as usize
    }

    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.name_bytes() + self.value_bytes as usize
    }
}

/// What a field counts (RFC 7541 section 4.1, RFC 9113 section 6.5.2).
pub(super) fn size_of_field(name: &[u8], value: &[u8]) -> usize {
    name.len() + value.len() + FIELD_OVERHEAD
}

pub(super) const FIELD_OVERHEAD: usize = 32;
