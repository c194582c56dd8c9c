//! YAML and JSON text into a tree that knows where each of its nodes stood. The only file that
//! names the YAML crate.
//!
//! The tree is schemaless on purpose: the decoder above it goes on after a fault, so that all
//! faults of a document are told at once, which a `Deserialize` implementation cannot do.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Location, MergeKeyPolicy, Spanned, budget, options};

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it begins.
    pub at: Position,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing: `key:` or `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// Any other number.
    Float(f64),
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping, in the order of the text; keys are unique.
    Map(Vec<Field>),
}

/// One entry of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Where the name begins.
    pub at: Position,
    /// Its value.
    pub node: Node,
}

/// 1-based; zero is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// Why a text is not YAML that we read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Where.
    pub at: Position,
    /// Why.
    pub message: String,
}

/// The documents of a text; empty ones are left out.
///
/// # Errors
/// [`Malformed`] when it is not YAML, repeats a key, or goes beyond the limits below.
pub fn parse(text: &str) -> Result<Vec<Node>, Malformed> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(Malformed {
            at: Position::default(),
            message: format!("is larger than {TEXT_BYTES_MAX} bytes"),
        });
    }
    let options = options! {
        budget: budget! {
            max_depth: DEPTH_MAX,
            flow_nesting_limit: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_recorded_anchor_events: REPEATED_MAX,
            max_documents: DOCUMENTS_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPEATED_MAX,
            max_replay_stack_depth: 8,
        },
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let documents: Vec<Spanned<Value>> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Malformed {
            at: error
                .location()
                .map_or_else(Position::default, Position::from),
            message: first_line(&error),
        })?;
    Ok(documents.into_iter().map(Node::from).collect())
}

/// The tree of a text that we wrote ourselves: JSON, without the limits on what users write and
/// without positions.
///
/// # Errors
/// Why it is not JSON.
pub fn read_back(json: &str) -> Result<Node, serde_json::Error> {
    serde_json::from_str(json).map(Node::unplaced)
}

/// The crate's words without its snippet, its position and its advice to programmers.
fn first_line(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    let message = line.rsplit_once(" at line ").map_or(line, |(head, _)| head);
    let advice = message.find(", set DuplicateKeyPolicy");
    let message = &message[..advice.unwrap_or(message.len())];
    format!("is not valid YAML: {message}")
}

impl Node {
    fn unplaced(json: serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(value),
            Json::Number(number) => number
                .as_i128()
                .map(Value::Integer)
                .or_else(|| number.as_f64().map(Value::Float))
                .unwrap_or(Value::Null),
            Json::String(text) => Value::Text(text),
            Json::Array(items) => Value::List(items.into_iter().map(Self::unplaced).collect()),
            Json::Object(fields) => {
                let fields = fields.into_iter().map(|(name, json)| Field {
                    name,
                    at: Position::default(),
                    node: Self::unplaced(json),
                });
                Value::Map(fields.collect())
            }
        };
        Self {
            value,
            at: Position::default(),
        }
    }

    /// The node at a path such as `spec.http[0].route`, or the deepest one on the way there.
    pub fn nearest(&self, path: &str) -> &Self {
        let mut node = self;
        let segments = path.split(['.', '[']).filter(|segment| !segment.is_empty());
        for segment in segments {
            let segment = segment.trim_end_matches(']');
            let next = match &node.value {
                Value::Map(fields) => fields
                    .iter()
                    .find(|field| field.name == segment)
                    .map(|field| &field.node),
                Value::List(items) => segment.parse().ok().and_then(|i: usize| items.get(i)),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => return node,
            }
        }
        node
    }
}

impl Value {
    /// What to call it in a fault.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Integer(_) => "a number",
            Self::Float(_) => "a fraction",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        Self {
            line: u32::try_from(location.line()).unwrap_or(0),
            column: u32::try_from(location.column()).unwrap_or(0),
        }
    }
}

impl From<Spanned<Value>> for Node {
    fn from(spanned: Spanned<Value>) -> Self {
        Self {
            value: spanned.value,
            at: spanned.referenced.into(),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Value>>()? {
            list.push(item.into());
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(name) = entries.next_key::<Spanned<String>>()? {
            fields.push(Field {
                at: name.referenced.into(),
                name: name.value,
                node: entries.next_value::<Spanned<Value>>()?.into(),
            });
        }
        Ok(Value::Map(fields))
    }
}

/// Largest text of one `Document`.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting; the deepest field of any kind is at 12.
const DEPTH_MAX: usize = 32;
/// Nodes of one text.
const NODES_MAX: usize = 200_000;
/// Nodes that anchors keep and aliases repeat.
const REPEATED_MAX: usize = 10_000;
/// Aliases, and anchors, of one text.
const ALIASES_MAX: usize = 1_000;
/// Documents of one text.
const DOCUMENTS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        let malformed = parse(text).expect_err("must be refused");
        let Position { line, column } = malformed.at;
        format!("{line}:{column}: {}", malformed.message)
    }

    #[test]
    fn positions_are_those_of_the_whole_text() {
        let documents = parse("a: 1\n---\n\n---\n# note\nb:\n  - c: \"1\"\n").unwrap();
        assert_eq!(documents.len(), 2);
        let node = documents[1].nearest("b[0].c");
        assert_eq!(node.value, Value::Text("1".into()));
        assert_eq!(node.at, Position { line: 7, column: 8 });
    }

    #[test]
    fn json_is_read_as_it_is() {
        let documents = parse("{\n\t\"a\": [1, \"\\ud83d\\ude00\\/\"]}").unwrap();
        assert_eq!(
            documents[0].nearest("a[1]").value,
            Value::Text("\u{1f600}/".into())
        );
    }

    #[test]
    fn texts_that_are_not_yaml_say_where() {
        for (text, why) in [
            (
                "a: 1\na: 2\n",
                "2:1: is not valid YAML: duplicate mapping key: a",
            ),
            ("a: [1, 2\n", "1:4: is not valid YAML: unclosed bracket '['"),
            (
                "a: !foo 1",
                "1:9: is not valid YAML: unsupported tag `!foo`",
            ),
            ("[a]: 1", "1:1: is not valid YAML: expected string scalar"),
        ] {
            assert_eq!(refusal(text), why);
        }
    }

    #[test]
    fn what_grows_without_end_is_refused() {
        assert!(refusal(&"[".repeat(5000)).contains("recursion limit"));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
        for i in 1..9 {
            let parts = vec![format!("*a{}", i - 1); 9].join(",");
            bomb.push_str(&format!("a{i}: &a{i} [{parts}]\n"));
        }
        assert!(refusal(&bomb).contains("budget breached"));
        assert_eq!(
            refusal(&" ".repeat(TEXT_BYTES_MAX + 1)),
            "0:0: is larger than 1048576 bytes"
        );
    }
}
