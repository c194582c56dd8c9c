//! Heads into header blocks.

use super::{
    TABLE_BYTES_DEFAULT, Token, huffman, integer, static_table,
    table::{New, Table, size_of_field},
};
use crate::head::{self, Field, Head, Indexing};

/// Encodes the heads of a connection, in the order in which they are sent.
///
/// Many callers share an upstream connection and so its table. A field enters it when it is seen
/// for the second time within a while, so that values that do not come again (a trace, a path
/// with an id) do not push out those that do.
#[derive(Debug)]
pub struct Encoder {
    table: Table,
    /// How large the table is to be.
    size_wanted: u32,
    /// The smallest that it was to be since the last block.
    size_lowest: u32,
    /// From the first field that is not in the static table.
    memory: Option<Box<Memory>>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// One whose peer has the table that it has until its SETTINGS say something else.
    pub fn new() -> Self {
        Self {
            table: Table::new(),
            size_wanted: TABLE_BYTES_DEFAULT,
            size_lowest: TABLE_BYTES_DEFAULT,
            memory: None,
        }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE, of which at most 4,096 bytes are used. The next
    /// block begins with the size updates that RFC 7541 section 4.2 wants.
    pub fn set_table_bytes_max(&mut self, peer: u32) {
        self.size_wanted = peer.min(TABLE_BYTES_DEFAULT);
        self.size_lowest = self.size_lowest.min(self.size_wanted);
    }

    /// Appends `head` as one header block.
    pub fn encode(&mut self, head: &Head, out: &mut Vec<u8>) {
        self.size_updates(out);
        for field in head.iter() {
            self.field(&field, out);
        }
    }

    /// Bytes of memory that it takes beside itself: at most 13 KiB.
    pub fn memory_bytes(&self) -> usize {
        let memory = self.memory.as_ref().map_or(0, |_| size_of::<Memory>());
        self.table.memory_bytes() + memory
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    fn size_updates(&mut self, out: &mut Vec<u8>) {
        for size in [self.size_lowest, self.size_wanted] {
            if self.table.size_max() != size as usize {
                integer::write(0x20, 5, size as usize, out);
                self.table.resize(size);
            }
        }
        self.size_lowest = self.size_wanted;
    }

    fn field(&mut self, field: &Field<'_>, out: &mut Vec<u8>) {
        if field.indexing == Indexing::Never || is_secret(field) {
            literal(Literal::NeverIndexed, field, out);
            return;
        }
        if let Some(index) = static_table::find(field.token, field.value) {
            integer::write(0x80, 7, index, out);
            return;
        }
        let hash = match field.hash {
            0 => head::hash(field.token, field.name, field.value),
            hash => hash,
        };
        let memory = self.memory.get_or_insert_default();
        if let Some(position) = memory.find(&self.table, hash, field) {
            integer::write(0x80, 7, static_table::LEN + 1 + position, out);
            return;
        }
        let size = size_of_field(field.name, field.value);
        if size > self.table.size_max() / 2 || !memory.is_second_sight(hash) {
            literal(Literal::NotIndexed, field, out);
            return;
        }
        literal(Literal::Indexed, field, out);
        let has_entered = self.table.insert(New {
            token: field.token,
            name: field.name,
            value: field.value,
            hash,
            fault: None,
        });
        debug_assert!(has_entered, "it takes half of the table at most");
        memory.entered(&self.table, hash);
    }
}

/// What may be guessed by whoever can send on the same connection and see how long blocks are
/// (RFC 7541 section 7.1): other clients of ours, as they share it. A sender that put such a
/// field into its own table took that risk; if it did not, or if it could not say, as in
/// HTTP/1.1, we do not take it for it, nor does anyone behind us. Long cookies are no target:
/// only a guess of all of a value can be told from others (section 7.1.3).
fn is_secret(field: &Field<'_>) -> bool {
    let is_credential = matches!(
        field.token,
        Token::Authorization | Token::ProxyAuthorization | Token::SetCookie
    );
    let is_short_cookie = field.token == Token::Cookie && field.value.len() < GUESSABLE_BYTES;
    (is_credential || is_short_cookie) && field.indexing != Indexing::Indexed
}

/// The representations with a literal value (RFC 7541 section 6.2).
#[derive(Clone, Copy)]
enum Literal {
    /// It enters the table.
    Indexed,
    NotIndexed,
    NeverIndexed,
}

fn literal(literal: Literal, field: &Field<'_>, out: &mut Vec<u8>) {
    let (flags, prefix_bits) = match literal {
        Literal::Indexed => (0x40, 6),
        Literal::NotIndexed => (0x00, 4),
        Literal::NeverIndexed => (0x10, 4),
    };
    match static_table::name(field.token) {
        Some(index) => integer::write(flags, prefix_bits, index, out),
        None => {
            out.push(flags);
            string(literal, field.name, out);
        }
    }
    string(literal, field.value, out);
}

/// In the Huffman code only where that is paid once. For a `traceparent` it would save 19 bytes
/// and take 70 ns here and 125 ns at the other end (`benches/micro/hpack.rs` both ways).
fn string(literal: Literal, plain: &[u8], out: &mut Vec<u8>) {
    if matches!(literal, Literal::Indexed) {
        let encoded_bytes = huffman::encoded_len(plain);
        if encoded_bytes < plain.len() {
            integer::write(0x80, 7, encoded_bytes, out);
            huffman::encode(plain, out);
            return;
        }
    }
    integer::write(0, 7, plain.len(), out);
    out.extend_from_slice(plain);
}

/// Where fields are in the table, and which were seen of late.
#[derive(Debug)]
struct Memory {
    /// The last 8 bits of the numbers of entries, by hash in sets. What is found there is
    /// compared with the entry; one that has left may stay until its place is needed.
    places: [[u8; WAYS]; SETS],
    /// Some bits of hashes, by others of their bits.
    seen: [u16; SEEN],
    /// Of the entry that comes next.
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
    /// The position of the field in the table.
    fn find(&self, table: &Table, hash: u32, field: &Field<'_>) -> Option<usize> {
        let positions = self.places[set(hash)].iter();
        let mut positions = positions.map(|&number| self.position(number));
        positions.find(|&position| {
            table.get(position).is_some_and(|entry| {
                entry.hash == hash
                    && entry.token == field.token
                    && table.value(entry) == field.value
                    && (entry.token != Token::Other || table.name(entry) == field.name)
            })
        })
    }

    /// Whether a field of that hash came before, not long ago. Now it did.
    fn is_second_sight(&mut self, hash: u32) -> bool {
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

    /// A field with that hash is the newest of the table. It takes the place of one that has
    /// left, or of the oldest.
    fn entered(&mut self, table: &Table, hash: u32) {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        let age = |number: u8| usize::from(self.next.wrapping_sub(number).wrapping_sub(1));
        let set = &mut self.places[set(hash)];
        let is_gone = |number: u8| age(number) == 0 || age(number) >= table.len();
        let oldest = (0..WAYS).max_by_key(|&way| match is_gone(set[way]) {
            true => usize::MAX,
            false => age(set[way]),
        });
        if let Some(way) = oldest {
            set[way] = number;
        }
    }

    fn position(&self, number: u8) -> usize {
        usize::from(self.next.wrapping_sub(number).wrapping_sub(1))
    }
}

fn set(hash: u32) -> usize {
    (hash >> 8) as usize % SETS
}

/// Below it a cookie could be guessed.
const GUESSABLE_BYTES: usize = 20;

const SETS: usize = 64;
const WAYS: usize = 4;
const SEEN: usize = 128;

/// No more entries than numbers of 8 bits.
const _: () = assert!(TABLE_BYTES_DEFAULT as usize / super::table::FIELD_OVERHEAD < 256);
