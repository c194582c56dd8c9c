//! What a condition says of a request or a connection: [`Condition`]s in the form in which they
//! are judged.
//!
//! It differs from what was written in that alternatives over one subject are together, so that
//! a thousand principals cost one walk along the peer's id; and in that addresses and ports are
//! texts of bits too, so that a block is the beginning of its addresses.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::Condition;
use crate::{
    head::RequestHead,
    patterns::Patterns,
    route::ValueMatch,
    spiffe::{Peer, SpiffeId},
};

/// In order: `min` is "and", `max` is "or".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Truth {
    No,
    Unknown,
    Yes,
}

/// What is judged.
pub(super) struct Facts<'a> {
    peer: &'a Peer,
    source: IpAddr,
    source_bits: OnceCell<Bits>,
    port: u16,
    port_bits: OnceCell<Bits>,
    head: Option<&'a RequestHead<'a>>,
}

/// What a text is looked for in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Subject {
    Principal,
    Namespace,
    Source,
    Port,
    Method,
    Path,
    Authority,
}

/// The text of a subject.
pub(super) enum Text<'a> {
    Known(&'a str),
    /// An anonymous peer's id. Nothing holds of it.
    Absent,
    /// No HTTP was parsed: it could be anything.
    Unread,
}

/// A condition as it is judged.
#[derive(Clone, Debug)]
pub(super) enum Test {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Text(Subject, OneOf),
    Header(Arc<str>, ValueMatch),
}

/// Alternatives for one text.
#[derive(Clone, Debug)]
pub(super) enum OneOf {
    /// So few that comparing them costs less than a walk.
    Few(Vec<ValueMatch>),
    Many(Box<Many>),
}

/// More than [`FEW_MAX`] alternatives.
#[derive(Clone, Debug)]
pub(super) struct Many {
    patterns: Patterns<()>,
    /// Those that are no pattern.
    others: Vec<ValueMatch>,
}

/// A number's bits as digits, behind one character for its kind.
struct Bits {
    digits: [u8; BITS_MAX],
    count: usize,
}

impl<'a> Facts<'a> {
    pub(super) fn new(
        peer: &'a Peer,
        source: IpAddr,
        port: u16,
        head: Option<&'a RequestHead<'a>>,
    ) -> Self {
        Self {
            peer,
            source: source.to_canonical(),
            source_bits: OnceCell::new(),
            port,
            port_bits: OnceCell::new(),
            head,
        }
    }

    pub(super) fn is_http(&self) -> bool {
        self.head.is_some()
    }

    pub(super) fn text(&self, subject: Subject) -> Text<'_> {
        let id = || self.peer.id();
        let of_peer = |text: Option<&'a str>| text.map_or(Text::Absent, Text::Known);
        let of_head = |part: fn(&RequestHead<'a>) -> &'a str| {
            self.head
                .map_or(Text::Unread, |head| Text::Known(part(head)))
        };
        match subject {
            Subject::Principal => of_peer(id().map(SpiffeId::as_str)),
            Subject::Namespace => of_peer(id().map(SpiffeId::namespace)),
            Subject::Source => {
                let bits = self
                    .source_bits
                    .get_or_init(|| Bits::of_address(self.source));
                Text::Known(bits.as_str())
            }
            Subject::Port => {
                let bits = self.port_bits.get_or_init(|| Bits::of_port(self.port));
                Text::Known(bits.as_str())
            }
            Subject::Method => of_head(|head| head.method),
            Subject::Path => of_head(|head| head.path),
            Subject::Authority => of_head(|head| head.authority),
        }
    }
}

impl Test {
    pub(super) fn new(condition: &Condition) -> Self {
        match condition {
            Condition::Always => Self::All(vec![]),
            Condition::All(all) => Self::All(all.iter().map(Self::new).collect()),
            Condition::Any(any) => Self::any(any),
            Condition::Not(other) => Self::Not(Box::new(Self::new(other))),
            Condition::Header(name, value) => Self::Header(Arc::clone(name), value.clone()),
            Condition::Principal(_)
            | Condition::Namespace(_)
            | Condition::SourceIp(_)
            | Condition::Port(_)
            | Condition::Method(_)
            | Condition::Path(_)
            | Condition::Authority(_) => {
                let (subject, value) = text(condition).expect("every other condition is above");
                Self::Text(subject, OneOf::new(vec![value]))
            }
        }
    }

    fn any(alternatives: &[Condition]) -> Self {
        let mut texts: BTreeMap<Subject, Vec<ValueMatch>> = BTreeMap::new();
        let mut tests = Vec::new();
        for condition in alternatives {
            match text(condition) {
                Some((subject, value)) => texts.entry(subject).or_default().push(value),
                None => tests.push(Self::new(condition)),
            }
        }
        let texts = texts.into_iter();
        tests.extend(texts.map(|(subject, values)| Self::Text(subject, OneOf::new(values))));
        match tests.len() {
            1 => tests.remove(0),
            _ => Self::Any(tests),
        }
    }

    pub(super) fn judge(&self, facts: &Facts<'_>) -> Truth {
        match self {
            Self::All(all) => all_of(all, facts),
            Self::Any(any) => any_of(any, facts),
            Self::Not(other) => other.judge(facts).not(),
            Self::Text(subject, one_of) => match facts.text(*subject) {
                Text::Known(text) => one_of.fits(text).into(),
                Text::Absent => Truth::No,
                Text::Unread => Truth::Unknown,
            },
            Self::Header(name, value) => {
                let judge = |head| judge_header(head, name, value);
                facts.head.map_or(Truth::Unknown, judge)
            }
        }
    }
}

/// The subject of a condition on a text, and what it must be.
pub(super) fn text(condition: &Condition) -> Option<(Subject, ValueMatch)> {
    match condition {
        Condition::Principal(value) => Some((Subject::Principal, value.clone())),
        Condition::Namespace(value) => Some((Subject::Namespace, value.clone())),
        Condition::SourceIp(block) => {
            let begin = Bits::of_block(*block);
            Some((Subject::Source, ValueMatch::Prefix(begin.as_str().into())))
        }
        Condition::Port(port) => {
            let port = Bits::of_port(*port);
            Some((Subject::Port, ValueMatch::Exact(port.as_str().into())))
        }
        Condition::Method(value) => Some((Subject::Method, value.clone())),
        Condition::Path(value) => Some((Subject::Path, value.clone())),
        Condition::Authority(value) => Some((Subject::Authority, value.clone())),
        Condition::Always
        | Condition::All(_)
        | Condition::Any(_)
        | Condition::Not(_)
        | Condition::Header(..) => None,
    }
}

fn all_of(tests: &[Test], facts: &Facts<'_>) -> Truth {
    let mut truth = Truth::Yes;
    for test in tests {
        truth = truth.min(test.judge(facts));
        if truth == Truth::No {
            break;
        }
    }
    truth
}

fn any_of(tests: &[Test], facts: &Facts<'_>) -> Truth {
    let mut truth = Truth::No;
    for test in tests {
        truth = truth.max(test.judge(facts));
        if truth == Truth::Yes {
            break;
        }
    }
    truth
}

/// A missing header fulfils nothing. Values that disagree leave it open.
pub(super) fn judge_header(head: &RequestHead<'_>, name: &str, matches: &ValueMatch) -> Truth {
    if let Some(text) = head.pseudo(name) {
        return matches.fits_text(text).into();
    }
    let mut truth = None;
    head.headers.visit(name, &mut |value| {
        let this = match std::str::from_utf8(value) {
            Ok(text) => matches.fits_text(text).into(),
            Err(_) if matches!(matches, ValueMatch::Present) => Truth::Yes,
            Err(_) => Truth::Unknown,
        };
        let all = truth.map_or(
            this,
            |before| {
                if before == this { this } else { Truth::Unknown }
            },
        );
        truth = Some(all);
        all != Truth::Unknown
    });
    truth.unwrap_or(Truth::No)
}

impl OneOf {
    fn new(values: Vec<ValueMatch>) -> Self {
        if values.len() <= FEW_MAX {
            return Self::Few(values);
        }
        let patterns = values.iter().filter_map(ValueMatch::pattern);
        let patterns = Patterns::new(patterns.map(|pattern| (pattern, ())));
        let mut others = values;
        others.retain(|value| value.pattern().is_none());
        Self::Many(Box::new(Many { patterns, others }))
    }

    fn fits(&self, text: &str) -> bool {
        match self {
            Self::Few(few) => few.iter().any(|value| value.fits_text(text)),
            Self::Many(many) => {
                let mut fits = false;
                many.patterns.visit(text, |()| fits = true);
                fits || many.others.iter().any(|value| value.fits_text(text))
            }
        }
    }
}

impl Truth {
    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }
}

impl From<bool> for Truth {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

impl Bits {
    fn of_address(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    /// What the addresses of a block begin with.
    fn of_block(block: IpNet) -> Self {
        let mut bits = Self::of_address(block.network());
        bits.count = 1 + usize::from(block.prefix_len());
        bits
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        Self::new(b'4', &address.octets())
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        Self::new(b'6', &address.octets())
    }

    fn of_port(port: u16) -> Self {
        Self::new(b'p', &port.to_be_bytes())
    }

    /// Of a number of up to 128 bits.
    fn new(kind: u8, octets: &[u8]) -> Self {
        let mut digits = [kind; BITS_MAX];
        let (_kind, places) = digits.split_at_mut(1);
        for (places, octet) in places.chunks_exact_mut(8).zip(octets) {
            for (place, shift) in places.iter_mut().zip((0..8).rev()) {
                *place = b'0' + (octet >> shift & 1);
            }
        }
        Self {
            digits,
            count: 1 + 8 * octets.len(),
        }
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.digits[..self.count]).expect("they are ASCII digits")
    }
}

/// An address of IP version 6.
const BITS_MAX: usize = 1 + 128;

/// Comparing one text costs about a quarter of a walk (`benches/micro`, `decide`).
const FEW_MAX: usize = 4;
