//! Where an encoder finds a field in its table, and which fields it saw of late.

use super::{
    TABLE_BYTES_DEFAULT, Token, static_table,
    table::{Entry, FIELD_OVERHEAD, Table},
};
use crate::head::{self, Field};

/// Found by hash, and compared before it is trusted. Whoever makes hashes collide gets longer
/// blocks, which anyone has who sends what does not come again.
#[derive(Debug)]
pub(super) struct Memory {
    /// The last 8 bits of the numbers of entries, by the hashes of whole fields and by those of
    /// names. One that has left the table may stay until its place is needed.
    places: [[u8; WAYS]; SETS],
    /// Some bits of hashes, by others of their bits: the last ones seen.
    seen: [u16; SEEN],
    /// The number of the entry that comes next.
    next: u8,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            places: [[0; WAYS]; SETS],
            seen: [0; SEEN],
            next: 0,
        }
    }
}

impl Memory {
    /// The index of a field in the dynamic table.
    pub(super) fn field(&self, table: &Table, hash: u32, field: &Field<'_>) -> Option<usize> {
        self.find(table, hash, |entry| {
            entry.hash == hash && table.value(entry) == field.value && has_name(table, entry, field)
        })
    }

    /// The index of a field's name in either table, and the hash of the name if it is not in the
    /// static one.
    pub(super) fn name(&self, table: &Table, field: &Field<'_>) -> (Option<usize>, u32) {
        let index = static_table::name(field.token);
        if index.is_some() {
            return (index, 0);
        }
        let hash = head::hash(field.token, field.name, b"");
        let index = self.find(table, hash, |entry| has_name(table, entry, field));
        (index, hash)
    }

    /// Whether something of that hash came before, not long ago. Now it did.
    pub(super) fn is_second_sight(&mut self, hash: u32) -> bool {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the other bits are the place"
        )]
        let tag = hash as u16 | 1;
        let seen = &mut self.seen[(hash >> 16) as usize % SEEN];
        let is_second = *seen == tag;
        *seen = tag;
        is_second
    }

    /// The newest of the table can be found by these hashes, 0 being none. For each it takes the
    /// place of one that has left the table, or of the oldest.
    pub(super) fn entered(&mut self, table: &Table, hashes: [u32; 2]) {
        let number = self.next;
        self.next = number.wrapping_add(1);
        for hash in hashes.into_iter().filter(|&hash| hash != 0) {
            let age = |&way: &usize| {
                let position = self.position(self.places[set(hash)][way]);
                let is_live = position < table.len();
                if is_live { position } else { usize::MAX }
            };
            // Of several that have left the first, where it is found at once.
            let ways = (0..WAYS).rev();
            let oldest = ways.max_by_key(age).expect("a set has ways");
            self.places[set(hash)][oldest] = number;
        }
    }

    fn find(&self, table: &Table, hash: u32, is_it: impl Fn(&Entry) -> bool) -> Option<usize> {
        let positions = self.places[set(hash)].iter();
        let mut positions = positions.map(|&number| self.position(number));
        let found = positions.find(|&position| table.get(position).is_some_and(&is_it));
        found.map(|position| static_table::LEN + 1 + position)
    }

    fn position(&self, number: u8) -> usize {
        usize::from(self.next.wrapping_sub(number).wrapping_sub(1))
    }
}

fn has_name(table: &Table, entry: &Entry, field: &Field<'_>) -> bool {
    let is_known = entry.token != Token::Other;
    entry.token == field.token && (is_known || table.name(entry) == field.name)
}

fn set(hash: u32) -> usize {
    (hash >> 8) as usize % SETS
}

/// 256 places for two hashes of each of at most 128 entries.
const SETS: usize = 64;
const WAYS: usize = 4;
const SEEN: usize = 128;

/// No more entries than numbers of 8 bits.
const _: () = assert!(TABLE_BYTES_DEFAULT as usize / FIELD_OVERHEAD < 256);
