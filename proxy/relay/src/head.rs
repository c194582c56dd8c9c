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
    /// Which tokens there are: most that are asked for are not.
    tokens: Tokens,
}

/// A set of tokens.
#[derive(Clone, Copy, Default)]
struct Tokens([u64; 2]);

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
    /// [`hash`] of the field, or 0 when nobody has needed it.
    pub(crate) hash: u32,
}

/// Whether a field may enter compression tables (RFC 7541 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Indexing {
    /// Its sender put it into its table.
    Indexed,
    /// Nobody said: it came in HTTP/1.1, or its sender did not put it into its table.
    Allowed,
    /// Nobody on the way may (RFC 7541 section 7.1.3).
    Never,
}

/// Where a field is in the bytes of its [`Head`]: its name, unless that is known, and its value
/// right behind it.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u32,
    /// 0 for a known name.
    name_bytes: u32,
    value_bytes: u32,
    hash: u32,
    token: Token,
    indexing: Indexing,
}

impl Head {
    /// An empty one; it takes no memory.
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            fields: Vec::new(),
            tokens: Tokens([0; 2]),
        }
    }

    /// Appends a field whose name, in lower case, may be a known one.
    pub fn push(&mut self, name: &[u8], value: &[u8], indexing: Indexing) {
        self.push_as(Token::of(name), name, value, indexing);
    }

    /// Appends a field whose name has been looked up: `token` is `Token::of(name)`.
    pub fn push_as(&mut self, token: Token, name: &[u8], value: &[u8], indexing: Indexing) {
        debug_assert_eq!(Token::of(name), token, "the name was looked up");
        let stored = if token == Token::Other { name } else { b"" };
        let start = self.bytes.len();
        self.bytes.extend_from_slice(stored);
        self.bytes.extend_from_slice(value);
        self.push_stored(token, start, stored.len(), indexing, 0);
    }

    /// For decoders: where they put names and values before they call [`Self::push_stored`].
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends the field whose bytes are all that was put into the buffer from `start` on: those
    /// of the name, 0 if it is known, and the value.
    #[inline]
    pub(crate) fn push_stored(
        &mut self,
        token: Token,
        start: usize,
        name_bytes: usize,
        indexing: Indexing,
        hash: u32,
    ) {
        self.tokens.add(token);
        self.fields.push(Entry {
            start: checked(start),
            name_bytes: checked(name_bytes),
            value_bytes: checked(self.bytes.len() - start - name_bytes),
            hash,
            token,
            indexing,
        });
    }

    /// Gives the field `token` the one value; a new pseudo-header comes first, another field
    /// last.
    ///
    /// # Panics
    /// When the name is not a known one.
    pub fn set(&mut self, token: Token, value: &[u8]) {
        assert_ne!(token, Token::Other, "it is known by its token");
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        let entry = Entry {
            start: checked(start),
            name_bytes: 0,
            value_bytes: checked(value.len()),
            hash: 0,
            token,
            indexing: Indexing::Allowed,
        };
        let has_one = self.tokens.has(token);
        self.tokens.add(token);
        let mut fields = self.fields.iter();
        let at = has_one.then(|| fields.position(|field| field.token == token));
        if let Some(at) = at.flatten() {
            // A secret stays one when it is changed; what its sender put into its table was not
            // this value.
            let indexing = match self.fields[at].indexing {
                Indexing::Never => Indexing::Never,
                Indexing::Indexed | Indexing::Allowed => Indexing::Allowed,
            };
            self.fields[at] = Entry { indexing, ..entry };
            let mut seen = 0;
            self.fields.retain(|field| {
                seen += usize::from(field.token == token);
                field.token != token || seen == 1
            });
            return;
        }
        match token.is_pseudo() {
            true => self.fields.insert(0, entry),
            false => self.fields.push(entry),
        }
    }

    /// Removes the fields for which `is_kept` is false.
    pub fn retain(&mut self, mut is_kept: impl FnMut(Field<'_>) -> bool) {
        let bytes = &self.bytes;
        let mut tokens = Tokens::default();
        self.fields.retain(|entry| {
            let is_kept = is_kept(entry.field(bytes));
            if is_kept {
                tokens.add(entry.token);
            }
            is_kept
        });
        self.tokens = tokens;
    }

    /// Forgets all fields; keeps the room.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.tokens = Tokens::default();
    }

    /// Makes it equal to `other`, in the room that it has.
    pub fn copy_from(&mut self, other: &Self) {
        self.clear();
        self.bytes.extend_from_slice(&other.bytes);
        self.fields.extend_from_slice(&other.fields);
        self.tokens = other.tokens;
    }

    /// The fields in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Field<'_>> {
        self.fields.iter().map(|entry| entry.field(&self.bytes))
    }

    /// As [`Self::iter`], for encoders: a field is not moved once it is made. An iterator's is,
    /// and what was written in pieces is read back whole, for which the processor waits (twice
    /// the time of `encode/call` in `benches/micro/hpack.rs`).
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Field<'_>)) {
        for entry in &self.fields {
            visit(&entry.field(&self.bytes));
        }
    }

    /// The first value of a known name.
    pub fn get(&self, token: Token) -> Option<&[u8]> {
        match self.has(token) {
            true => self.all(token).next(),
            false => None,
        }
    }

    /// Whether there is a field of this name, or one whose name is not known.
    pub fn has(&self, token: Token) -> bool {
        self.tokens.has(token)
    }

    /// The one value of `token`, to be overwritten in its length. What its sender put into its
    /// table was not what comes of it.
    pub(crate) fn value_mut(&mut self, token: Token) -> Option<&mut [u8]> {
        let entry = self.fields.iter_mut().find(|entry| entry.token == token)?;
        entry.hash = 0;
        if entry.indexing == Indexing::Indexed {
            entry.indexing = Indexing::Allowed;
        }
        let start = (entry.start + entry.name_bytes) as usize;
        self.bytes
            .get_mut(start..start + entry.value_bytes as usize)
    }

    /// The values of a known name, in order.
    pub fn all(&self, token: Token) -> impl Iterator<Item = &[u8]> {
        let found = self.fields.iter().filter(move |entry| entry.token == token);
        found.map(|entry| entry.field(&self.bytes).value)
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

    /// Whether [`Self::list_bytes`] is above `max`. For what is far below it costs no look at the
    /// fields.
    pub fn is_list_over(&self, max: usize) -> bool {
        let at_most = self.bytes.len() + self.fields.len() * (Token::NAME_BYTES_MAX + 32);
        at_most > max && self.list_bytes() > max
    }

    /// Bytes of memory that it takes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.capacity() + self.fields.capacity() * size_of::<Entry>()
    }
}

impl Tokens {
    fn add(&mut self, token: Token) {
        let at = token as usize;
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn has(self, token: Token) -> bool {
        let at = token as usize;
        self.0[at / 64] >> (at % 64) & 1 == 1
    }
}

const _: () = assert!((Token::Other as u8) < 128, "the set has room for all");

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
        let (start, name_bytes) = (self.start as usize, self.name_bytes as usize);
        let stored = &bytes[start..start + name_bytes + self.value_bytes as usize];
        let (name, value) = stored.split_at(name_bytes);
        Field {
            token: self.token,
            name: self.token.name().map_or(name, str::as_bytes),
            value,
            indexing: self.indexing,
            hash: self.hash,
        }
    }
}

/// A hash of a field, never 0. Whoever chooses fields can make them collide; what relies on it
/// compares them.
pub(crate) fn hash(token: Token, name: &[u8], value: &[u8]) -> u32 {
    let is_known = token != Token::Other;
    let seed = if is_known {
        token as u64
    } else {
        absorb(0, name)
    };
    let hash = absorb(seed, value);
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is in it")]
    let folded = (hash ^ (hash >> 32)) as u32;
    folded.max(1)
}

fn absorb(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    for &word in words {
        hash = mix(hash ^ u64::from_le_bytes(word));
    }
    let n = bytes.len();
    let last = match (bytes.last_chunk(), rest.first_chunk(), rest.last_chunk()) {
        (Some(&last), _, _) => u64::from_le_bytes(last),
        (None, Some(&first), Some(&last)) => {
            u64::from(u32::from_le_bytes(first)) << 32 | u64::from(u32::from_le_bytes(last))
        }
        _ if n == 0 => 0,
        _ => u64::from_le_bytes([bytes[0], bytes[n / 2], bytes[n - 1], 0, 0, 0, 0, 0]),
    };
    mix(hash ^ last ^ (n as u64) << 56)
}

/// All bits of `word` have a part in all bits: both halves of the product of 128 bits.
fn mix(word: u64) -> u64 {
    let product = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
    #[expect(clippy::cast_possible_truncation, reason = "the upper half is in it")]
    let folded = (product ^ (product >> 64)) as u64;
    folded
}

fn checked(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the decoders' limits are far below 4 GiB")
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
        for max in [
            0,
            head.list_bytes() - 1,
            head.list_bytes(),
            1_000,
            usize::MAX,
        ] {
            assert_eq!(head.is_list_over(max), head.list_bytes() > max, "{max}");
        }
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
