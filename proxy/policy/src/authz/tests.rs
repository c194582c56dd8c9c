mod random;

use super::*;
use crate::head::Headers;

fn exact(text: &str) -> ValueMatch {
    ValueMatch::Exact(text.into())
}

fn header(value: &str) -> Condition {
    Condition::Header("x".into(), exact(value))
}

fn not(condition: Condition) -> Condition {
    Condition::Not(Box::new(condition))
}

fn rule(name: &str, when: Condition) -> Rule {
    Rule::new(name, when)
}

fn web() -> Peer {
    Peer::Meshed("spiffe://td/ns/shop/sa/web".parse().unwrap())
}

fn source() -> IpAddr {
    "10.1.2.3".parse().unwrap()
}

fn decide(rules: &Rules, peer: &Peer, headers: Option<&[(&str, &[u8])]>) -> bool {
    let none: &[(&str, &[u8])] = &[];
    let values = headers.unwrap_or(none);
    let head = RequestHead {
        method: "GET",
        scheme: "https",
        authority: "shop:80",
        path: "/admin/x",
        headers: &values as &dyn Headers,
    };
    let head = headers.map(|_| &head);
    rules.decide(peer, source(), 80, head).is_allowed()
}

/// Whether a condition denies as a DENY rule and allows as an ALLOW rule, for the peer `web`.
#[track_caller]
fn check(when: &Condition, headers: Option<&[(&str, &[u8])]>, denies: bool, allows: bool) {
    let deny = Rules::new(vec![rule("d", when.clone())], None);
    assert_eq!(!decide(&deny, &web(), headers), denies, "deny if {when:?}");
    let allow = Rules::new(vec![], Some(vec![rule("a", when.clone())]));
    assert_eq!(decide(&allow, &web(), headers), allows, "allow if {when:?}");
}

const HTTP: Option<&[(&str, &[u8])]> = Some(&[]);
const TCP: Option<&[(&str, &[u8])]> = None;

#[test]
fn without_an_allow_policy_all_is_allowed_and_an_empty_one_allows_nothing() {
    assert!(decide(&Rules::default(), &Peer::Anonymous, HTTP));
    let nothing = Rules::new(vec![], Some(vec![]));
    assert!(!decide(&nothing, &web(), HTTP));
    assert!(!decide(&nothing, &web(), TCP));
}

#[test]
fn deny_is_judged_before_allow_and_the_decision_names_its_rule() {
    let rules = Rules::new(
        vec![rule("deny-80", Condition::Port(80))],
        Some(vec![rule("allow-all", Condition::Always)]),
    );
    let named = |port| {
        let decision = rules.decide(&web(), source(), port, None);
        (decision.is_allowed(), decision.rule())
    };
    assert_eq!(named(80), (false, Some("deny-80")));
    assert_eq!(named(81), (true, Some("allow-all")));
}

#[test]
fn a_peer_is_judged_by_its_proven_identity() {
    for (text, holds) in [
        (exact("spiffe://td/ns/shop/sa/web"), true),
        (exact("spiffe://td/ns/shop/sa/we"), false),
        (ValueMatch::Prefix("spiffe://td/ns/shop/".into()), true),
        (ValueMatch::Suffix("/sa/web".into()), true),
        (ValueMatch::Present, true),
    ] {
        let when = Condition::Principal(text);
        check(&when, TCP, holds, holds);
        check(&not(when), TCP, !holds, !holds);
    }
    let shop = Condition::Namespace(exact("shop"));
    check(&shop, TCP, true, true);
    check(&Condition::Namespace(exact("sho")), TCP, false, false);
    let allow = Rules::new(
        vec![],
        Some(vec![rule("a", Condition::Principal(ValueMatch::Present))]),
    );
    assert!(!decide(&allow, &Peer::Anonymous, TCP));
}

#[test]
fn an_address_is_judged_by_its_block_also_when_mapped() {
    let rules = |block: &str| {
        let when = Condition::SourceIp(block.parse().unwrap());
        Rules::new(vec![], Some(vec![rule("a", when)]))
    };
    let allows = |block, from: &str| {
        let from = from.parse().unwrap();
        rules(block).decide(&web(), from, 80, None).is_allowed()
    };
    assert!(allows("10.0.0.0/8", "10.1.2.3"));
    assert!(allows("10.0.0.0/8", "::ffff:10.1.2.3"));
    assert!(!allows("10.0.0.0/8", "11.1.2.3"));
    assert!(allows("fd00::/8", "fd00::1"));
}

#[test]
fn http_conditions_are_judged_over_http() {
    for (when, holds) in [
        (Condition::Method(exact("GET")), true),
        (Condition::Method(exact("get")), false),
        (Condition::Path(exact("/admin/x")), true),
        (Condition::Path(ValueMatch::Prefix("/admin/".into())), true),
        (Condition::Path(ValueMatch::Suffix("/y".into())), false),
        (Condition::Authority(exact("shop:80")), true),
        (Condition::Header(":method".into(), exact("GET")), true),
    ] {
        check(&when, HTTP, holds, holds);
    }
}

#[test]
fn on_tcp_a_condition_on_http_denies_and_never_allows() {
    let method = Condition::Method(exact("GET"));
    check(&method, TCP, true, false);
    check(&not(method.clone()), TCP, true, false);
    let port = |port| Condition::All(vec![Condition::Port(port), method.clone()]);
    check(&port(80), TCP, true, false);
    check(&port(81), TCP, false, false);
    let either = Condition::Any(vec![Condition::Port(80), method]);
    check(&either, TCP, true, false);
}

#[test]
fn any_value_of_a_header_denies_and_all_of_them_must_allow() {
    let both: &[(&str, &[u8])] = &[("x", b"a"), ("x", b"b")];
    let same: &[(&str, &[u8])] = &[("x", b"a"), ("x", b"a")];
    check(&header("a"), Some(both), true, false);
    check(&not(header("a")), Some(both), true, false);
    check(&header("a"), Some(same), true, true);
    check(&not(header("a")), Some(same), false, false);
    check(&header("c"), Some(both), false, false);
}

#[test]
fn a_value_that_is_no_text_denies_and_never_allows() {
    let odd: &[(&str, &[u8])] = &[("x", b"\xff")];
    check(&header("a"), Some(odd), true, false);
    check(&not(header("a")), Some(odd), true, false);
    let present = Condition::Header("x".into(), ValueMatch::Present);
    check(&present, Some(odd), true, true);
}

#[test]
fn a_missing_header_fulfils_nothing() {
    check(&header(""), HTTP, false, false);
    check(&not(header("a")), HTTP, true, true);
}

#[test]
fn rules_know_whether_they_look_at_http() {
    let rules = |when| Rules::new(vec![rule("d", when)], None);
    assert!(!Rules::default().needs_http());
    assert!(!rules(Condition::Port(80)).needs_http());
    let nested = Condition::All(vec![
        Condition::Always,
        not(Condition::Any(vec![header("a")])),
    ]);
    assert!(rules(nested).needs_http());
}
