//! The index and the compiled conditions against the definition: every rule judged in order,
//! by its condition as it was written.

use std::sync::LazyLock;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use regex::Regex;

use super::*;
use crate::authz::judge::judge_header;

struct Request<'a> {
    peer: &'a Peer,
    source: IpAddr,
    port: u16,
    head: Option<&'a RequestHead<'a>>,
}

impl Request<'_> {
    fn judge(&self, when: &Condition) -> Truth {
        let id = self.peer.id();
        let of_peer = |fits: Option<bool>| fits.unwrap_or(false).into();
        let http =
            |judge: &dyn Fn(&RequestHead<'_>) -> Truth| self.head.map_or(Truth::Unknown, judge);
        match when {
            Condition::Always => Truth::Yes,
            Condition::All(all) => {
                let all = all.iter().map(|one| self.judge(one));
                all.min().unwrap_or(Truth::Yes)
            }
            Condition::Any(any) => {
                let any = any.iter().map(|one| self.judge(one));
                any.max().unwrap_or(Truth::No)
            }
            Condition::Not(other) => self.judge(other).not(),
            Condition::Principal(text) => of_peer(id.map(|id| text.fits_text(id.as_str()))),
            Condition::Namespace(text) => of_peer(id.map(|id| text.fits_text(id.namespace()))),
            Condition::SourceIp(block) => block.contains(&self.source.to_canonical()).into(),
            Condition::Port(port) => (*port == self.port).into(),
            Condition::Method(text) => http(&|head| text.fits_text(head.method).into()),
            Condition::Path(text) => http(&|head| text.fits_text(head.path).into()),
            Condition::Authority(text) => http(&|head| text.fits_text(head.authority).into()),
            Condition::Header(name, value) => http(&|head| judge_header(head, name, value)),
        }
    }

    /// The definition: whether it is allowed, and by which rule.
    fn scan<'r>(&self, deny: &'r [Rule], allow: Option<&'r [Rule]>) -> (bool, Option<&'r str>) {
        let denies = |rule: &&Rule| self.judge(&rule.when) != Truth::No;
        if let Some(rule) = deny.iter().find(denies) {
            return (false, Some(rule.name()));
        }
        let Some(allow) = allow else {
            return (true, None);
        };
        let allows = |rule: &&Rule| {
            let is_judged = self.head.is_some() || !rule.when.needs_http();
            is_judged && self.judge(&rule.when) == Truth::Yes
        };
        let allowing = allow.iter().find(allows);
        (allowing.is_some(), allowing.map(Rule::name))
    }
}

#[test]
fn whatever_the_rules_the_index_decides_what_a_scan_decides() {
    let (mut by_rule, mut by_none) = ([0; 2], [0; 2]);
    for seed in 0..2_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let deny = rules(&mut rng, "deny");
        let allow = rng.random_ratio(3, 4).then(|| rules(&mut rng, "allow"));
        let indexed = Rules::new(deny.clone(), allow.clone());
        for _ in 0..20 {
            let (peer, source) = (peer(&mut rng), source(&mut rng));
            let (path, value) = (path(&mut rng), text(&mut rng));
            let mut headers: Vec<(&str, &[u8])> = vec![("x", value.as_bytes())];
            headers.extend(rng.random::<bool>().then_some(("x", b"a".as_slice())));
            headers.extend(rng.random_ratio(1, 8).then_some(("x", b"\xff".as_slice())));
            let headers = &*headers;
            let head = RequestHead {
                method: ["GET", "PUT"][rng.random_range(0..2)],
                scheme: "http",
                authority: ["a", "b:80"][rng.random_range(0..2)],
                path: &path,
                headers: &headers,
            };
            let head = rng.random_ratio(3, 4).then_some(&head);
            let port = rng.random_range(80..83);
            let request = Request {
                peer: &peer,
                source,
                port,
                head,
            };
            let decision = indexed.decide(&peer, source, port, head);
            let decision = (decision.is_allowed(), decision.rule());
            let expected = request.scan(&deny, allow.as_deref());
            assert_eq!(
                decision, expected,
                "seed {seed}: {peer:?} from {source} to {port}: {head:?} {headers:?} by {indexed:?}"
            );
            let counts = if expected.1.is_some() {
                &mut by_rule
            } else {
                &mut by_none
            };
            counts[usize::from(expected.0)] += 1;
        }
    }
    // Else most rules would say nothing.
    let fewest = by_rule.iter().chain(&by_none).min();
    assert!(fewest > Some(&2_000), "{by_rule:?} and {by_none:?}");
}

/// Up to a dozen; those without a text to ask for are few, else they would decide everything.
fn rules(rng: &mut StdRng, action: &str) -> Vec<Rule> {
    let count = rng.random_range(0..12);
    (0..count)
        .map(|i| Rule::new(format!("{action}-{i}"), condition(rng, 3)))
        .collect()
}

fn condition(rng: &mut StdRng, depth: u32) -> Condition {
    match rng.random_range(0..40) {
        0 => Condition::Always,
        1 | 2 if depth > 0 => not(condition(rng, depth - 1)),
        3..25 if depth > 0 => Condition::All(conditions(rng, 1..4, depth - 1)),
        25..32 if depth > 0 => Condition::Any(conditions(rng, 0..3, depth - 1)),
        32 | 33 => Condition::Any(conditions(rng, 5..9, 0)),
        _ => leaf(rng),
    }
}

fn conditions(rng: &mut StdRng, count: std::ops::Range<u32>, depth: u32) -> Vec<Condition> {
    let count = rng.random_range(count);
    (0..count).map(|_| condition(rng, depth)).collect()
}

fn leaf(rng: &mut StdRng) -> Condition {
    match rng.random_range(0..16) {
        0..4 => Condition::Principal(value(rng, id)),
        4 | 5 => Condition::Namespace(value(rng, text)),
        6 => {
            let block = [
                "10.1.2.3/8",
                "10.1.0.0/31",
                "0.0.0.0/0",
                "fd00::/127",
                "::/0",
            ];
            Condition::SourceIp(block[rng.random_range(0..5)].parse().unwrap())
        }
        7 => Condition::Port(rng.random_range(80..83)),
        8 => Condition::Method(exact(["GET", "PUT"][rng.random_range(0..2)])),
        9..13 => Condition::Path(value(rng, path)),
        13 => Condition::Authority(exact(["a", "b:80"][rng.random_range(0..2)])),
        14 => Condition::Header("x".into(), value(rng, text)),
        _ => Condition::Header(":path".into(), value(rng, path)),
    }
}

/// A condition on texts of a kind, as a rule one that a few of them fulfil.
fn value(rng: &mut StdRng, kind: fn(&mut StdRng) -> String) -> ValueMatch {
    let text = kind(rng);
    let cut = rng.random_range(0..=text.len());
    match rng.random_range(0..16) {
        0 => ValueMatch::Present,
        1..7 => ValueMatch::Exact(text.into()),
        7..10 => ValueMatch::Prefix(text[..cut].into()),
        10..13 => ValueMatch::Suffix(text[cut..].into()),
        13 | 14 => ValueMatch::Contains(text[cut..].into()),
        _ => ValueMatch::Regex(EXPRESSION.clone()),
    }
}

/// Short and of few letters, so that texts are often alike.
fn text(rng: &mut StdRng) -> String {
    let length = rng.random_range(1..3);
    (0..length).map(|_| rng.random_range('a'..='b')).collect()
}

fn path(rng: &mut StdRng) -> String {
    format!("/{}", text(rng))
}

fn id(rng: &mut StdRng) -> String {
    format!("spiffe://td/ns/{}/sa/{}", text(rng), text(rng))
}

fn peer(rng: &mut StdRng) -> Peer {
    if rng.random_ratio(1, 5) {
        return Peer::Anonymous;
    }
    Peer::Meshed(id(rng).parse().unwrap())
}

fn source(rng: &mut StdRng) -> IpAddr {
    let source = [
        "10.1.0.0",
        "10.1.0.2",
        "::ffff:10.1.0.1",
        "fd00::1",
        "11.0.0.1",
    ];
    source[rng.random_range(0..5)].parse().unwrap()
}

static EXPRESSION: LazyLock<Regex> = LazyLock::new(|| Regex::new(".*ba?").unwrap());
