//! Header blocks into heads.
//!
//! A block is read to its end whatever is wrong with its fields, as the table must follow; only
//! what cannot be decoded ends it. What is read behind a fault or a limit is not kept.

use super::{
    Error, Limits, TABLE_BYTES_DEFAULT, Token, check,
    check::Fault,
    huffman, integer, static_table,
    table::{Entry, New, Table, size_of_field},
};
use crate::head::{self, Head, Indexing};

/// Decodes the header blocks of a connection, in the order in which they come.
#[derive(Debug)]
pub struct Decoder {
    table: Table,
    /// What size updates may ask for.
    size_allowed: u32,
    /// The lowest size that was allowed since the last block: if the table is larger, the next
    /// block has to begin by making it no larger than that (RFC 7541 section 4.2).
    size_lowest: u32,
}

impl Decoder {
    /// `table_bytes_max`: what our SETTINGS_HEADER_TABLE_SIZE allows.
    ///
    /// The table takes at most the larger of it and 4,096, which is what the peer may use until
    /// it knows our SETTINGS. If they allow less, [`Self::set_table_bytes_max`] tells when they
    /// are acknowledged.
    pub fn new(table_bytes_max: u32) -> Self {
        let size_allowed = table_bytes_max.max(TABLE_BYTES_DEFAULT);
        Self {
            table: Table::new(),
            size_allowed,
            size_lowest: size_allowed,
        }
    }

    /// The peer has acknowledged SETTINGS with this SETTINGS_HEADER_TABLE_SIZE. If its table is
    /// larger, its next block must begin by making it smaller.
    pub fn set_table_bytes_max(&mut self, table_bytes_max: u32) {
        self.size_allowed = table_bytes_max;
        self.size_lowest = self.size_lowest.min(table_bytes_max);
    }

    /// Decodes one whole header block (HEADERS and its CONTINUATIONs joined) and appends to
    /// `head`.
    ///
    /// It takes time linear in the bytes of the block and the limits. `head` takes as much memory
    /// as the limits allow and, for a while, 8/5 of the block.
    ///
    /// # Errors
    /// [`Error::Compression`] ends the connection; also when a block has 256 KiB of names copied
    /// within the table behind a fault. The table is right after the other errors, so that the
    /// next block can be decoded; `head` then has the fields before the one at fault.
    pub fn decode(&mut self, block: &[u8], limits: Limits, head: &mut Head) -> Result<(), Error> {
        let mut block = block;
        let mut list = List {
            head,
            bytes_left: limits.list_bytes_max as usize,
            fields_left: limits.fields_max,
            refusal: None,
            names_left: REFUSED_NAMES_BYTES_MAX,
        };
        self.size_updates(&mut block)?;
        while let Some((&first, rest)) = block.split_first() {
            block = rest;
            let (prefix_bits, keep) = match first {
                0x80.. => {
                    let index = integer::read(first, 7, &mut block)?;
                    self.indexed(index, &mut list)?;
                    continue;
                }
                0x40..0x80 => (6, Keep::Yes),
                0x20..0x40 => return Err(Error::Compression("table size changes amid a block")),
                0x10..0x20 => (4, Keep::Never),
                0x00..0x10 => (4, Keep::No),
            };
            let name = integer::read(first, prefix_bits, &mut block)?;
            self.literal(name, keep, &mut block, &mut list)?;
        }
        list.refusal.map_or(Ok(()), Err)
    }

    /// Bytes of memory that it takes beside itself: at most three times the size of a table of 4,096
    /// bytes, four times that of any other.
    pub fn memory_bytes(&self) -> usize {
        self.table.memory_bytes()
    }

    #[cfg(test)]
    pub(super) fn table(&self) -> &Table {
        &self.table
    }

    /// Size updates, which come only at the beginning of a block (RFC 7541 section 4.2).
    fn size_updates(&mut self, block: &mut &[u8]) -> Result<(), Error> {
        let mut is_due = self.table.size_max() > self.size_lowest as usize;
        while let Some((&first @ 0x20..0x40, rest)) = block.split_first() {
            *block = rest;
            let size = integer::read(first, 5, block)?;
            if size > self.size_allowed {
                return Err(Error::Compression("table is made larger than allowed"));
            }
            is_due &= size > self.size_lowest;
            self.table.resize(size);
        }
        self.size_lowest = self.size_allowed;
        match is_due {
            true => Err(Error::Compression("table was not made smaller")),
            false => Ok(()),
        }
    }

    fn indexed(&self, index: u32, list: &mut List<'_>) -> Result<(), Error> {
        match self.field(index)? {
            Found::Static(token, value) => {
                let name = token.name().unwrap_or_default();
                if list.takes(size_of_field(name.as_bytes(), value.as_bytes()), None) {
                    let start = list.append(value.as_bytes());
                    let head = &mut *list.head;
                    head.push_stored(token, start, 0, Indexing::Indexed, 0);
                }
            }
            Found::Dynamic(entry) => {
                if list.takes(entry.size(), entry.fault) {
                    let start = list.append(self.table.stored(entry));
                    let name_bytes = entry.name_bytes();
                    // What was hashed when it entered has nothing at its ends.
                    if entry.hash == 0 {
                        trim(list.head.buffer(), start + name_bytes);
                    }
                    let (token, hash) = (entry.token, entry.hash);
                    let head = &mut *list.head;
                    head.push_stored(token, start, name_bytes, Indexing::Indexed, hash);
                }
            }
        }
        Ok(())
    }

    fn literal(
        &mut self,
        name: u32,
        keep: Keep,
        block: &mut &[u8],
        list: &mut List<'_>,
    ) -> Result<(), Error> {
        let start = list.head.buffer().len();
        let (token, name_fault) = self.name(name, block, list)?;
        let buffer = list.head.buffer();
        if token != Token::Other {
            buffer.truncate(start);
        }
        let name_end = buffer.len();
        string(block, buffer)?;
        let known = token.name().map(str::as_bytes);
        let size = size_of_field(known.unwrap_or_default(), &buffer[start..]);
        let value = &buffer[name_end..];
        let fault = name_fault.or_else(|| check::value(token, value).err());
        let is_padded = check::is_padded(value);
        let is_taken = list.takes(size, fault);
        let (name, value) = list.head.buffer()[start..].split_at(name_end - start);
        let name = known.unwrap_or(name);
        // It takes as long as the name is, which the table may have.
        let hash = match (keep, is_taken && !is_padded) {
            (Keep::Yes, true) => head::hash(token, name, value),
            (Keep::Yes, false) | (Keep::No | Keep::Never, _) => 0,
        };
        let indexing = match keep {
            Keep::Yes => {
                self.table.insert(New {
                    token,
                    name,
                    value,
                    hash,
                    fault,
                });
                Indexing::Indexed
            }
            Keep::No => Indexing::Allowed,
            Keep::Never => Indexing::Never,
        };
        let head = &mut *list.head;
        if !is_taken {
            head.buffer().truncate(start);
            return Ok(());
        }
        if is_padded {
            trim(head.buffer(), name_end);
        }
        head.push_stored(token, start, name_end - start, indexing, hash);
        Ok(())
    }

    /// Puts a name that is given by its index or, for 0, follows into the buffer of `list`, which
    /// may be spared if it is known.
    fn name(
        &self,
        index: u32,
        block: &mut &[u8],
        list: &mut List<'_>,
    ) -> Result<(Token, Option<Fault>), Error> {
        if index == 0 {
            let buffer = list.head.buffer();
            let start = buffer.len();
            string(block, buffer)?;
            let name = &buffer[start..];
            return Ok((Token::of(name), check::name(name).err()));
        }
        let entry = match self.field(index)? {
            Found::Static(token, _) => return Ok((token, None)),
            Found::Dynamic(entry) => entry,
        };
        if entry.token != Token::Other {
            return Ok((entry.token, None));
        }
        let name = self.table.name(entry);
        list.copy_name(name)?;
        // Of a malformed field either may be at fault.
        let fault = entry.fault.and_then(|_| check::name(name).err());
        Ok((entry.token, fault))
    }

    fn field(&self, index: u32) -> Result<Found<'_>, Error> {
        let index = index as usize;
        if let Some((token, value)) = static_table::get(index) {
            return Ok(Found::Static(token, value));
        }
        let position = index.checked_sub(static_table::LEN + 1);
        let entry = position.and_then(|position| self.table.get(position));
        entry
            .map(Found::Dynamic)
            .ok_or(Error::Compression("index of no field"))
    }
}

/// Whether a literal enters the table.
#[derive(Clone, Copy)]
enum Keep {
    Yes,
    No,
    Never,
}

enum Found<'a> {
    Static(Token, &'static str),
    Dynamic(&'a Entry),
}

/// The head that is decoded to, and what it may still take.
struct List<'a> {
    head: &'a mut Head,
    bytes_left: usize,
    fields_left: u32,
    /// The first fault. Nothing is taken behind it.
    refusal: Option<Error>,
    /// Bytes of names that the table may be asked for behind a fault.
    names_left: usize,
}

impl List<'_> {
    /// Whether a field of that size is to be appended.
    fn takes(&mut self, size: usize, fault: Option<Fault>) -> bool {
        if self.refusal.is_some() {
            return false;
        }
        if size > self.bytes_left || self.fields_left == 0 {
            self.refusal = Some(Error::TooLarge);
            return false;
        }
        if let Some(fault) = fault {
            self.refusal = Some(Error::Malformed(fault.why()));
            return false;
        }
        self.bytes_left -= size;
        self.fields_left -= 1;
        true
    }

    /// Appends a name of the table to the buffer. Behind a fault it is for the table only, which
    /// a sender could have do this for every two bytes.
    fn copy_name(&mut self, name: &[u8]) -> Result<(), Error> {
        if self.refusal.is_some() {
            let left = self.names_left.checked_sub(name.len());
            self.names_left = left.ok_or(Error::Compression("too many names behind a limit"))?;
        }
        self.head.buffer().extend_from_slice(name);
        Ok(())
    }

    /// Puts `stored` into the buffer; where it begins there.
    fn append(&mut self, stored: &[u8]) -> usize {
        let buffer = self.head.buffer();
        let start = buffer.len();
        buffer.extend_from_slice(stored);
        start
    }
}

/// Takes white space off both ends of the value that begins at `start`, see [`check::is_padded`].
/// Of what counts as white space here, only spaces and tabs have passed [`check::value`].
fn trim(buffer: &mut Vec<u8>, start: usize) {
    let kept = buffer[start..].trim_ascii_end().len();
    buffer.truncate(start + kept);
    let spaces = kept - buffer[start..].trim_ascii_start().len();
    buffer.drain(start..start + spaces);
}

/// Cuts a string literal (RFC 7541 section 5.2) off `block` and appends it to `out`.
fn string(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let cut = Error::Compression("block ends within a string");
    let (&first, rest) = block.split_first().ok_or(cut)?;
    *block = rest;
    let bytes = integer::read(first, 7, block)? as usize;
    let (string, rest) = block.split_at_checked(bytes).ok_or(cut)?;
    *block = rest;
    match first & 0x80 {
        0 => out.extend_from_slice(string),
        _ => huffman::decode(string, out)?,
    }
    Ok(())
}

/// More than a sender uses that is not told of its fault yet.
const REFUSED_NAMES_BYTES_MAX: usize = 256 * 1024;
