//! Heads into header blocks.

use super::{
    TABLE_BYTES_DEFAULT, Token, huffman, integer,
    memory::Memory,
    static_table,
    table::{New, Table, size_of_field},
};
use crate::head::{self, Field, Head, Indexing};

/// Encodes the heads of a connection, in the order in which they are sent.
///
/// Many callers share an upstream connection and so its table. A field enters it when it is seen
/// for the second time within a while, so that values that do not come again (a trace, a path
/// with an id) do not push out those that do. If its name is in no table, the second sight of
/// that is enough: the next ones can refer to it.
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
        head.for_each(|field| self.field(field, out));
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
            let memory = self.memory.get_or_insert_default();
            let (name, _) = memory.name(&self.table, field);
            literal(Literal::NeverIndexed, name, field, out);
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
        if let Some(index) = memory.field(&self.table, hash, field) {
            integer::write(0x80, 7, index, out);
            return;
        }
        let (name, name_hash) = memory.name(&self.table, field);
        let is_due =
            memory.is_second_sight(hash) || (name.is_none() && memory.is_second_sight(name_hash));
        if !is_due || size_of_field(field.name, field.value) > self.table.size_max() / 2 {
            literal(Literal::NotIndexed, name, field, out);
            return;
        }
        literal(Literal::Indexed, name, field, out);
        let has_entered = self.table.insert(New {
            token: field.token,
            name: field.name,
            value: field.value,
            hash,
            fault: None,
        });
        debug_assert!(has_entered, "it takes half of the table at most");
        memory.entered(&self.table, [hash, name_hash]);
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

/// `name`: the index of its name, if a table has it.
fn literal(literal: Literal, name: Option<usize>, field: &Field<'_>, out: &mut Vec<u8>) {
    let (flags, prefix_bits) = match literal {
        Literal::Indexed => (0x40, 6),
        Literal::NotIndexed => (0x00, 4),
        Literal::NeverIndexed => (0x10, 4),
    };
    match name {
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

/// Below it a cookie could be guessed.
const GUESSABLE_BYTES: usize = 20;
