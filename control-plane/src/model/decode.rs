//! From a tree to validated types, collecting every fault on the way.
//!
//! A type decodes itself by naming its fields; whatever it does not name is a fault of its own:
//!
//! ```text
//! let mut fields = decoder.fields(node)?;                 // a mapping, or a fault
//! let attempts = fields.required(decoder, "attempts");    // None: faulty, already reported
//! fields.close(decoder);                                  // everything else is unknown
//! Some(Retries { attempts: attempts? })
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
};

use heddle_policy::spiffe::SpiffeId;
use ipnet::IpNet;

use super::{
    Kind,
    misplaced::explain,
    yaml::{Field, Node, Position, Value},
};

/// A type that can be read from a tree. `None` means faulty, and that the decoder knows why.
pub(super) trait Decode: Sized {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self>;
}

/// One reason not to take a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What the user calls the text; empty when it is not about one.
    pub file: String,
    /// Where in it.
    pub at: Position,
    /// Such as `spec.http[0].route[1].weight`.
    pub path: String,
    /// Why.
    pub message: String,
}

/// Where decoding is, and what it found wrong.
#[derive(Debug)]
pub(super) struct Decoder<'a> {
    file: &'a str,
    faults: &'a mut Vec<Fault>,
    path: String,
    /// Namespace of the resource: short hosts belong to it.
    pub(super) namespace: String,
    /// Kind of the resource, for hints.
    pub(super) kind: Option<Kind>,
}

/// A mapping whose fields are being taken.
#[derive(Debug)]
pub(super) struct Fields<'n> {
    at: Position,
    entries: &'n [Field],
    known: Vec<&'static str>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(file: &'a str, namespace: &str, faults: &'a mut Vec<Fault>) -> Self {
        Self {
            file,
            faults,
            path: String::new(),
            namespace: namespace.to_owned(),
            kind: None,
        }
    }

    /// Reports a fault; the last ones of very many are dropped.
    pub(super) fn fault(&mut self, at: Position, message: impl Into<String>) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(Fault {
                file: self.file.to_owned(),
                at,
                path: self.path.clone(),
                message: message.into(),
            });
        }
    }

    /// Reports a fault, as the value of a decoder.
    pub(super) fn refuse<T>(&mut self, node: &Node, message: impl Into<String>) -> Option<T> {
        self.fault(node.at, message);
        None
    }

    /// The mapping that `node` must be.
    pub(super) fn fields<'n>(&mut self, node: &'n Node) -> Option<Fields<'n>> {
        match &node.value {
            Value::Map(entries) => Some(Fields {
                at: node.at,
                entries,
                known: Vec::new(),
            }),
            other => self.refuse(node, format!("must be a mapping, not {}", other.describe())),
        }
    }

    /// The text that `node` must be.
    pub(super) fn text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) => Some(text),
            Value::Bool(_) | Value::Integer(_) | Value::Float(_) => self.refuse(
                node,
                format!(
                    "must be a text, not {}; put it in quotes",
                    node.value.describe()
                ),
            ),
            other => self.refuse(node, format!("must be a text, not {}", other.describe())),
        }
    }

    /// The whole number between `min` and `max` that `node` must be.
    pub(super) fn number(&mut self, node: &Node, min: u32, max: u32) -> Option<u32> {
        let number = match &node.value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            other => {
                let message = format!("must be a whole number, not {}", other.describe());
                return self.refuse(node, message);
            }
        };
        match number.filter(|number| (min..=max).contains(number)) {
            Some(number) => Some(number),
            None if max == u32::MAX => self.refuse(node, format!("must be at least {min}")),
            None => self.refuse(node, format!("must be {min} to {max}")),
        }
    }

    /// The one of `words` that `node` must be.
    pub(super) fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(node)?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                let message = format!("`{}` must be one of {}", shown(text), known.join(", "));
                self.refuse(node, message)
            }
        }
    }

    /// Runs `inner` with one more segment on the path.
    pub(super) fn within<T>(
        &mut self,
        segment: fmt::Arguments<'_>,
        inner: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let length = self.path.len();
        let segment = segment.to_string();
        let segment = match segment.strip_prefix('.') {
            Some(bare) if length == 0 => bare,
            _ => &segment,
        };
        self.path.push_str(segment);
        let result = inner(self);
        self.path.truncate(length);
        result
    }

    /// Decodes every item, so that all of their faults are found.
    pub(super) fn items<T>(
        &mut self,
        node: &Node,
        mut item: impl FnMut(&Node, &mut Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = &node.value else {
            let message = format!("must be a list, not {}", node.value.describe());
            return self.refuse(node, message);
        };
        let decoded: Vec<_> = items
            .iter()
            .enumerate()
            .map(|(index, node)| {
                self.within(format_args!("[{index}]"), |decoder| item(node, decoder))
            })
            .collect();
        decoded.into_iter().collect()
    }

    /// Decodes every entry of a mapping whose keys are data.
    pub(super) fn entries<K: Ord, T>(
        &mut self,
        node: &Node,
        mut entry: impl FnMut(&Field, &mut Self) -> Option<(K, T)>,
    ) -> Option<BTreeMap<K, T>> {
        let fields = self.fields(node)?;
        let mut decoded = BTreeMap::new();
        let mut is_whole = true;
        for field in fields.entries {
            let quoted = field.name.contains(['.', '[', '/', ' ']);
            let segment = if quoted {
                format!("[{:?}]", field.name)
            } else {
                format!(".{}", field.name)
            };
            is_whole &= self.within(format_args!("{segment}"), |decoder| {
                let Some((key, value)) = entry(field, decoder) else {
                    return false;
                };
                let is_new = decoded.insert(key, value).is_none();
                if !is_new {
                    // Two spellings of one key: either could be the one that is meant.
                    decoder.fault(field.at, "says the same as an earlier key");
                }
                is_new
            });
        }
        is_whole.then_some(decoded)
    }
}

impl<'n> Fields<'n> {
    /// The node of a field, if it is there.
    pub(super) fn node(&mut self, name: &'static str) -> Option<&'n Node> {
        self.known.push(name);
        self.entries
            .iter()
            .find(|field| field.name == name)
            .map(|field| &field.node)
    }

    /// A field that must be there.
    pub(super) fn required<T: Decode>(
        &mut self,
        decoder: &mut Decoder<'_>,
        name: &'static str,
    ) -> Option<T> {
        let value = self.optional(decoder, name)?;
        if value.is_none() {
            decoder.within(format_args!(".{name}"), |decoder| {
                decoder.fault(self.at, "is required");
            });
        }
        value
    }

    /// A field that may be absent: `Some(None)`.
    #[expect(
        clippy::option_option,
        reason = "faulty, absent, present: `?` strips the first"
    )]
    pub(super) fn optional<T: Decode>(
        &mut self,
        decoder: &mut Decoder<'_>,
        name: &'static str,
    ) -> Option<Option<T>> {
        let Some(node) = self.node(name) else {
            return Some(None);
        };
        decoder.within(format_args!(".{name}"), |decoder| {
            if node.value == Value::Null {
                return decoder.refuse(node, "has no value; remove it or give it one");
            }
            T::decode(node, decoder).map(Some)
        })
    }

    /// A field whose absence is `Default`.
    pub(super) fn or_default<T: Decode + Default>(
        &mut self,
        decoder: &mut Decoder<'_>,
        name: &'static str,
    ) -> Option<T> {
        Some(self.optional(decoder, name)?.unwrap_or_default())
    }

    /// Reports every field that nobody asked for.
    pub(super) fn close(self, decoder: &mut Decoder<'_>) {
        for field in self.entries {
            if !self.known.contains(&field.name.as_str()) {
                let message = explain(decoder.kind, &decoder.path, &field.name, &self.known);
                let name = shown(&field.name);
                decoder.within(format_args!(".{name}"), |decoder| {
                    decoder.fault(field.at, message);
                });
            }
        }
    }
}

/// A text of the user's, short enough to be repeated.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push_str("..");
    }
    shown
}

impl Decode for String {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        match decoder.text(node)? {
            "" => decoder.refuse(node, "must not be empty"),
            text => Some(text.to_owned()),
        }
    }
}

impl Decode for NonZeroU32 {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.number(node, 1, u32::MAX).and_then(Self::new)
    }
}

/// A port.
impl Decode for NonZeroU16 {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let number = decoder.number(node, 1, u16::MAX.into())?;
        u16::try_from(number).ok().and_then(Self::new)
    }
}

impl Decode for IpAddr {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        match text.parse::<Self>() {
            Ok(address) if address.is_unspecified() || address.is_multicast() => {
                decoder.refuse(node, format!("`{text}` cannot be dialled"))
            }
            Ok(address) => Some(address),
            Err(_) => decoder.refuse(
                node,
                format!("`{}` is not an IPv4 or IPv6 address", shown(text)),
            ),
        }
    }
}

impl Decode for IpNet {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        let net = text
            .parse::<Self>()
            .or_else(|_| text.parse::<IpAddr>().map(Self::from));
        match net {
            Ok(net) => Some(net.trunc()),
            Err(_) => decoder.refuse(
                node,
                format!("`{}` is not an address or CIDR block", shown(text)),
            ),
        }
    }
}

impl Decode for SpiffeId {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        match text.parse() {
            Ok(id) => Some(id),
            Err(error) => decoder.refuse(node, format!("`{}` {error}", shown(text))),
        }
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.items(node, T::decode)
    }
}

impl<T: Decode> Decode for BTreeMap<String, T> {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.entries(node, |field, decoder| {
            Some((field.name.clone(), T::decode(&field.node, decoder)?))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
        }
        if self.at.line > 0 {
            write!(f, "{}:{}:", self.at.line, self.at.column)?;
        }
        if !self.file.is_empty() || self.at.line > 0 {
            f.write_str(" ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Faults told of one request.
pub(super) const FAULTS_MAX: usize = 100;
/// Of a user's text in a message.
const SHOWN_CHARS_MAX: usize = 64;
