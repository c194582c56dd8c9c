//! Field sections in compact form: decoded once, edited in place, encoded again.

use std::fmt;

use crate::token::Token;

/// A field section: the pseudo-headers and headers of a request or an answer, or trailers.
///
/// Names and values are in one buffer; a known name is its [`Token`] and takes no room there.
/// HTTP/1.1 and HTTP/2 have the same form of it, HTTP/2's: pseudo-headers first, names in lower
/// case.
#[derive(Default)]
pub struct Head {
    bytes: Vec<u8>,
    fields: Vec<Entry>,
}

/// A field of a [`Head`].
#[derive(Clone, Copy)]
pub struct Field<'a> {
    /// Which name, if it is a known one.
    pub token: Token,
    /// Lower case.
    pub name: &'a [u8],
    /// As it came.
    pub value: &'a [u8],
    /// Whether it may enter compression tables.
    pub indexing: Indexing,
}

/// Whether a field may enter compression tables (RFC 7541 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// It may.
    Allowed,
    /// Its sender thought that it would not come again: it did not put it into its table.
    Unlikely,
    /// Nobody on the way may (RFC 7541 section 7.1.3).
    Never,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    token: Token,
    indexing: Indexing,
    /// Of a name that is not known.
    name: Span,
    value: Span,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    end: u32,
}

impl Head {
    /// An empty one; it takes no memory.
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            fields: Vec::new(),
        }
    }

    /// Appends a field whose name, in lower case, may be a known one.
    pub fn push(&mut self, name: &[u8], value: &[u8], indexing: Indexing) {
        self.push_as(Token::of(name), name, value, indexing);
    }

    /// Appends a field whose name has been looked up: `token` is `Token::of(name)`.
    pub fn push_as(&mut self, token: Token, name: &[u8], value: &[u8], indexing: Indexing) {
        debug_assert_eq!(Token::of(name), token, "the name was looked up");
        let name = if token == Token::Other {
            self.store(name)
        } else {
            Span::EMPTY
        };
        let value = self.store(value);
        self.fields.push(Entry {
            token,
            indexing,
            name,
            value,
        });
    }

    /// Gives the field `token` the one value; a new pseudo-header comes first, another field
    /// last.
    ///
    /// # Panics
    /// When the name is not a known one.
    pub fn set(&mut self, token: Token, value: &[u8]) {
        assert_ne!(token, Token::Other, "it is known by its token");
        let value = self.store(value);
        let at = self.fields.iter().position(|field| field.token == token);
        if let Some(at) = at {
            self.fields[at].value = value;
            let mut seen = 0;
            self.fields.retain(|field| {
                seen += usize::from(field.token == token);
                field.token != token || seen == 1
            });
            return;
        }
        let entry = Entry {
            token,
            indexing: Indexing::Allowed,
            name: Span::EMPTY,
            value,
        };
        match token.is_pseudo() {
            true => self.fields.insert(0, entry),
            false => self.fields.push(entry),
        }
    }

    /// Removes the fields for which `is_kept` is false.
    pub fn retain(&mut self, mut is_kept: impl FnMut(Field<'_>) -> bool) {
        let bytes = &self.bytes;
        self.fields.retain(|entry| is_kept(entry.field(bytes)));
    }

    /// Forgets all fields; keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
    }

    /// Makes it equal to `other`, in the room that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.clear();
        self.bytes.extend_from_slice(&other.bytes);
        self.fields.extend_from_slice(&other.fields);
    }

    /// The fields in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Field<'_>> {
        self.fields.iter().map(|entry| entry.field(&self.bytes))
    }

    /// The first value of a known name.
    pub fn get(&self, token: Token) -> Option<&[u8]> {
        self.all(token).next()
    }

    /// The values of a known name, in order.
    pub fn all(&self, token: Token) -> impl Iterator<Item = &[u8]> {
        let found = self.fields.iter().filter(move |entry| entry.token == token);
        found.map(|entry| entry.value.of(&self.bytes))
    }

    /// Whether there are no fields.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Bytes as limits on header lists count them: names, values, and 32 for each field
    /// (RFC 9113 section 6.5.2).
    pub fn list_bytes(&self) -> usize {
        let fields = self.iter();
        fields
            .map(|field| field.name.len() + field.value.len() + 32)
            .sum()
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.fields.capacity() * size_of::<Entry>()
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Span::new(start, self.bytes.len())
    }
}

impl fmt::Debug for Head {
    /// Without values: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self
            .iter()
            .map(|field| String::from_utf8_lossy(field.name).into_owned());
        f.debug_list().entries(names).finish()
    }
}

impl fmt::Debug for Field<'_> {
    /// Without the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(self.name))
    }
}

impl Entry {
    fn field<'a>(&self, bytes: &'a [u8]) -> Field<'a> {
        let name = match self.token.name() {
            Some(name) => name.as_bytes(),
            None => self.name.of(bytes),
        };
        Field {
            token: self.token,
            name,
            value: self.value.of(bytes),
            indexing: self.indexing,
        }
    }
}

impl Span {
    const EMPTY: Self = Self { start: 0, end: 0 };

    fn new(start: usize, end: usize) -> Self {
        let checked = |at| u32::try_from(at).expect("the decoders' limits are far below 4 GiB");
        Self {
            start: checked(start),
            end: checked(end),
        }
    }

    fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }
}

/// Heads that are not in use, with the room that they have.
#[derive(Debug, Default)]
pub struct Heads {
    free: Vec<Head>,
}

impl Heads {
    /// An empty head.
    pub fn take(&mut self) -> Head {
        self.free.pop().unwrap_or_default()
    }

    /// A copy of `head`.
    pub fn copy(&mut self, head: &Head) -> Head {
        let mut copy = self.take();
        copy.copy_from(head);
        copy
    }

    /// Keeps `head` for later, unless it or the pool has grown large.
    pub fn give(&mut self, mut head: Head) {
        if self.free.len() < HEADS_KEPT && head.memory_bytes() <= HEAD_KEPT_BYTES {
            head.clear();
            self.free.push(head);
        }
    }
}

/// At most 1 MiB per worker, with [`HEAD_KEPT_BYTES`].
const HEADS_KEPT: usize = 256;
const HEAD_KEPT_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Head {
        let mut head = Head::new();
        for (name, value) in fields {
            head.push(name.as_bytes(), value.as_bytes(), Indexing::Allowed);
        }
        head
    }

    #[track_caller]
    fn check(head: &Head, expected: &[(&str, &str)]) {
        let fields = head.iter().map(|field| {
            assert_eq!(field.token, Token::of(field.name));
            [field.name, field.value].map(|part| std::str::from_utf8(part).unwrap())
        });
        let fields: Vec<_> = fields.map(|[name, value]| (name, value)).collect();
        assert_eq!(fields, expected);
    }

    const FIELDS: [(&str, &str); 5] = [
        (":method", "GET"),
        ("te", "trailers"),
        ("x-a", "1"),
        ("te", "gzip"),
        ("x-a", "2"),
    ];

    #[test]
    fn fields_keep_their_order() {
        let head = head(&FIELDS);
        check(&head, &FIELDS);
        assert_eq!(head.get(Token::Te), Some(&b"trailers"[..]));
        assert_eq!(head.all(Token::Te).count(), 2);
        assert_eq!(head.get(Token::Path), None);
        let names_and_values: usize = FIELDS.iter().map(|(n, v)| n.len() + v.len()).sum();
        assert_eq!(head.list_bytes(), names_and_values + 32 * 5);
    }

    #[test]
    fn a_field_is_set_once_where_it_was() {
        let mut head = head(&FIELDS);
        head.set(Token::Te, b"none");
        head.set(Token::Path, b"/");
        head.set(Token::Via, b"us");
        check(
            &head,
            &[
                (":path", "/"),
                (":method", "GET"),
                ("te", "none"),
                ("x-a", "1"),
                ("x-a", "2"),
                ("via", "us"),
            ],
        );
        head.retain(|field| field.name != b"x-a");
        check(
            &head,
            &[
                (":path", "/"),
                (":method", "GET"),
                ("te", "none"),
                ("via", "us"),
            ],
        );
    }

    #[test]
    fn a_copy_is_equal_and_what_was_given_back_is_empty() {
        let mut heads = Heads::default();
        let copy = heads.copy(&head(&FIELDS));
        check(&copy, &FIELDS);
        heads.give(copy);
        assert!(heads.take().is_empty());
    }

    #[test]
    fn values_are_not_shown() {
        let shown = format!("{:?}", head(&[("authorization", "secret")]));
        assert_eq!(shown, r#"["authorization"]"#);
    }
}
