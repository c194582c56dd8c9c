//! Values that several kinds share.

use std::{borrow::Borrow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer};

use super::{
    decode::{Decode, Decoder, shown},
    yaml::{Field, Node, Value},
};

/// Labels of a workload, or those a selector asks for.
pub type Labels = BTreeMap<String, String>;

/// A host: fully qualified, lower case, without a final dot. A name written without a dot
/// stands for `<name>.<namespace>.svc.cluster.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

/// Which workloads a security policy is about. None at all: those of its namespace, or of the
/// mesh in the root namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// All of them must be there. Not empty.
    pub match_labels: Labels,
}

/// Which workloads of its namespace serve a `ServiceEntry`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadSelector {
    /// All of them must be there. Not empty.
    pub labels: Labels,
}

/// A duration as users write it, such as `1.5s` or `100ms`; whole milliseconds, at most 24 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub Duration);

impl Host {
    /// The host that `text` means in `namespace`, if it is a DNS name.
    pub fn qualified(text: &str, namespace: &str) -> Option<Self> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let name = if name.contains('.') {
            name
        } else {
            format!("{name}.{namespace}.svc.cluster.local")
        };
        is_name(&name).then(|| Self(name.into()))
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shared name.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            millis if millis % 1000 == 0 => write!(f, "{}s", millis / 1000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Whether `labels` has all that `wanted` asks for.
fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted
        .iter()
        .all(|(name, value)| labels.get(name) == Some(value))
}

impl Selector {
    /// Whether a workload with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.match_labels, labels)
    }
}

impl WorkloadSelector {
    /// Whether a workload with these labels is meant.
    pub fn selects(&self, labels: &Labels) -> bool {
        selects(&self.labels, labels)
    }
}

impl Decode for Host {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        match Self::qualified(text, &decoder.namespace) {
            Some(host) => Some(host),
            None if text.contains('*') => decoder.refuse(
                node,
                "wildcard hosts are not implemented by this version of Heddle",
            ),
            None => {
                let message = format!("`{}` is not a DNS name", shown(text));
                decoder.refuse(node, message)
            }
        }
    }
}

impl Decode for Selector {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let match_labels = fields.required::<Wanted>(decoder, "matchLabels");
        fields.close(decoder);
        Some(Self {
            match_labels: match_labels?.0,
        })
    }
}

impl Decode for WorkloadSelector {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let mut fields = decoder.fields(node)?;
        let labels = fields.required::<Wanted>(decoder, "labels");
        fields.close(decoder);
        Some(Self { labels: labels?.0 })
    }
}

/// Labels of a selector: an empty set would select everything by accident.
struct Wanted(Labels);

impl Decode for Wanted {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let wanted = decode_labels(node, decoder)?;
        if wanted.is_empty() {
            return decoder.refuse(
                node,
                "selects everything; leave the selector out to mean that",
            );
        }
        Some(Self(wanted))
    }
}

/// Labels: values may be empty.
pub(super) fn decode_labels(node: &Node, decoder: &mut Decoder<'_>) -> Option<Labels> {
    decoder.entries(node, |Field { name, node, .. }, decoder| {
        Some((name.clone(), decoder.text(node)?.to_owned()))
    })
}

impl Decode for Seconds {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let Value::Text(text) = &node.value else {
            return decoder.refuse(node, "must be a duration such as 10s or 100ms");
        };
        match duration(text) {
            Some(time) if time > DURATION_MAX => decoder.refuse(node, "must be at most 576h"),
            Some(time) if !time.subsec_nanos().is_multiple_of(1_000_000) => {
                decoder.refuse(node, "must be whole milliseconds")
            }
            Some(time) => Some(Self(time)),
            None => {
                let message = format!("`{}` is not a duration such as 10s or 100ms", shown(text));
                decoder.refuse(node, message)
            }
        }
    }
}

/// A duration that zero would make senseless.
pub(super) struct Positive(pub(super) Seconds);

impl Decode for Positive {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        match Seconds::decode(node, decoder)? {
            Seconds(Duration::ZERO) => decoder.refuse(node, "must be at least 1ms"),
            seconds => Some(Self(seconds)),
        }
    }
}

/// Go's notation: numbers with a unit, one after the other, such as `1m30s` or `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let unit = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        nanos = nanos.checked_add(scaled(number, unit)?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(())?;
    Some(Duration::from_nanos(u64::try_from(nanos).ok()?))
}

/// A decimal number of units, in nanoseconds.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.len() > 12 || fraction.len() > 9 {
        return None;
    }
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(whole.parse::<u128>().ok()? * unit + fraction.parse::<u128>().ok()? * unit / scale)
}

/// The name of something without a place of its own in the DNS: a namespace, a port, a subset.
pub(super) struct DnsLabel(pub(super) String);

impl Decode for DnsLabel {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        let text = decoder.text(node)?;
        if is_label(text) {
            Some(Self(text.to_owned()))
        } else {
            decoder.refuse(
                node,
                "must be lower-case letters, digits and inner dashes, at most 63",
            )
        }
    }
}

/// 0 to 100.
pub(super) struct Percent(pub(super) u32);

impl Decode for Percent {
    fn decode(node: &Node, decoder: &mut Decoder<'_>) -> Option<Self> {
        decoder.number(node, 0, 100).map(Self)
    }
}

/// Whether a text is a DNS label (RFC 1123).
fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether a text is a DNS name of at least one label, in lower case.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

/// Longest duration: what a timer wheel and a `grpc-timeout` both hold.
const DURATION_MAX: Duration = Duration::from_secs(576 * 3600);
