//! RBAC filters of inbound chains.

#![expect(deprecated, reason = "deprecated identifiers must be refused too")]

use heddle_proto::xds::{
    envoy::{
        config::{
            core::v3::CidrRange,
            rbac::v3::{
                Permission, Policy, Principal, Rbac, permission,
                principal::{self, Authenticated},
                rbac::Action,
            },
            route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
        },
        extensions::filters::network::rbac::v3::Rbac as NetworkRbac,
        r#type::matcher::v3::{
            PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
        },
    },
    http_filters::rbac::v3::Rbac as HttpRbac,
};

use super::*;
use crate::{
    authz::{Condition, Rule, Rules},
    route::ValueMatch,
};

pub(super) fn http(rules: Rbac) -> HttpRbac {
    HttpRbac {
        rules: Some(rules),
        ..Default::default()
    }
}

pub(super) fn network(rules: Rbac) -> NetworkRbac {
    NetworkRbac {
        rules: Some(rules),
        ..Default::default()
    }
}

fn rules(action: Action) -> Rbac {
    Rbac {
        action: action.into(),
        policies: [("no".to_owned(), policy())].into(),
        ..Default::default()
    }
}

fn policy() -> Policy {
    Policy {
        permissions: vec![permission(permission::Rule::Any(true))],
        principals: vec![principal(principal::Identifier::Any(true))],
        ..Default::default()
    }
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: principal::Identifier) -> Principal {
    Principal {
        identifier: Some(identifier),
    }
}

/// The inbound listener whose port for everything else has these filters.
fn with_http(filters: Vec<Any>) -> listener::Wire {
    let mut listener = listener::inbound();
    listener.filter_chains[2].filters = listener::http(filters);
    listener
}

fn with_network(filters: Vec<Any>) -> listener::Wire {
    let mut listener = listener::inbound();
    listener.filter_chains[2].filters = listener::tcp(filters);
    listener
}

fn with_policy(policy: Policy) -> listener::Wire {
    let mut rules = rules(Action::Deny);
    rules.policies.insert("no".to_owned(), policy);
    with_http(vec![pack(&http(rules))])
}

fn string(pattern: MatchPattern) -> StringMatcher {
    StringMatcher {
        match_pattern: Some(pattern),
        ignore_case: false,
    }
}

fn header(name: &str, specifier: HeaderMatchSpecifier) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    }
}

fn path(matcher: StringMatcher) -> PathMatcher {
    PathMatcher {
        rule: Some(path_matcher::Rule::Path(matcher)),
    }
}

fn regex(pattern: &str) -> RegexMatcher {
    RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }
}

fn cidr(prefix: &str, length: u32) -> CidrRange {
    CidrRange {
        address_prefix: prefix.to_owned(),
        prefix_len: u32_value(length),
    }
}

const HTTP: &str = "filter_chains[2].filters[0].typed_config.http_filters[0].typed_config";
const NETWORK: &str = "filter_chains[2].filters[0].typed_config";

#[test]
fn what_a_filter_of_rules_does_not_support_is_refused() {
    check_refused(
        &http(rules(Action::Deny)),
        |filter| with_http(vec![pack(&filter)]),
        HTTP,
        &[
            ("rules", |f| f.rules = None),
            ("matcher", |f| f.matcher = Some(Default::default())),
            ("shadow_rules", |f| {
                f.shadow_rules = Some(Default::default());
            }),
            ("shadow_matcher", |f| {
                f.shadow_matcher = Some(Default::default());
            }),
        ],
    );
    check_refused(
        &network(rules(Action::Deny)),
        |filter| with_network(vec![pack(&filter)]),
        NETWORK,
        &[
            ("rules", |f| f.rules = None),
            ("matcher", |f| f.matcher = Some(Default::default())),
            ("shadow_rules", |f| {
                f.shadow_rules = Some(Default::default());
            }),
            ("shadow_matcher", |f| {
                f.shadow_matcher = Some(Default::default());
            }),
            ("enforcement_type", |f| f.enforcement_type = 1),
            ("delay_deny", |f| f.delay_deny = Some(Default::default())),
        ],
    );
    let unknown = with_unknown(pack(&http(rules(Action::Deny))));
    assert_eq!(faults(&with_http(vec![unknown])), [HTTP]);
    let unknown = with_unknown(pack(&network(rules(Action::Deny))));
    assert_eq!(faults(&with_network(vec![unknown])), [NETWORK]);
}

#[test]
fn what_rules_do_not_support_is_refused() {
    check_refused(
        &rules(Action::Deny),
        |rules| with_http(vec![pack(&http(rules))]),
        &format!("{HTTP}.rules"),
        &[
            ("action", |r| r.action = Action::Log.into()),
            ("action", |r| r.action = 99),
            ("audit_logging_options", |r| {
                r.audit_logging_options = Some(Default::default());
            }),
        ],
    );
    check_refused(
        &policy(),
        with_policy,
        &format!("{HTTP}.rules.policies.no"),
        &[
            ("condition", |p| p.condition = Some(Default::default())),
            ("checked_condition", |p| {
                p.checked_condition = Some(Default::default());
            }),
            ("cel_config", |p| p.cel_config = Some(Default::default())),
            ("permissions", |p| p.permissions.clear()),
            ("principals", |p| p.principals.clear()),
        ],
    );
}

#[test]
fn deny_comes_before_one_allow() {
    let filter = |action| pack(&http(rules(action)));
    let (deny, allow) = (filter(Action::Deny), filter(Action::Allow));
    let second = "filter_chains[2].filters[0].typed_config.http_filters[1].typed_config.rules";
    for (filters, fault) in [
        ([&deny, &deny], None),
        ([&deny, &allow], None),
        ([&allow, &deny], Some(second)),
        ([&allow, &allow], Some(second)),
    ] {
        let filters = filters.map(Any::clone).to_vec();
        assert_eq!(faults(&with_http(filters)), Vec::from_iter(fault));
    }
}

/// The one permission of a policy.
fn check_permission(rows: &[(&str, permission::Rule)]) {
    for (field, rule) in rows {
        let mut policy = policy();
        policy.permissions.push(permission(rule.clone()));
        let expected = format!("{HTTP}.rules.policies.no.permissions[1].{field}");
        assert_eq!(faults(&with_policy(policy)), [expected], "{rule:?}");
    }
}

fn check_principal(rows: &[(&str, principal::Identifier)]) {
    for (field, identifier) in rows {
        let mut policy = policy();
        policy.principals.push(principal(identifier.clone()));
        let expected = format!("{HTTP}.rules.policies.no.principals[1].{field}");
        assert_eq!(faults(&with_policy(policy)), [expected], "{identifier:?}");
    }
}

#[test]
fn a_permission_that_is_not_understood_is_refused() {
    use permission::Rule as Wire;
    let set = |rules: Vec<Permission>| permission::Set { rules };
    let unsupported = || permission(Wire::DestinationIp(Default::default()));
    check_permission(&[
        ("rule", Wire::Any(false)),
        ("rule", Wire::DestinationIp(Default::default())),
        ("rule", Wire::DestinationPortRange(Default::default())),
        ("rule", Wire::Metadata(Default::default())),
        ("rule", Wire::RequestedServerName(Default::default())),
        ("rule", Wire::Matcher(Default::default())),
        ("rule", Wire::UriTemplate(Default::default())),
        ("rule", Wire::SourcedMetadata(Default::default())),
        ("and_rules.rules", Wire::AndRules(set(vec![]))),
        ("or_rules.rules", Wire::OrRules(set(vec![]))),
        (
            "and_rules.rules[0].rule",
            Wire::AndRules(set(vec![unsupported()])),
        ),
        (
            "or_rules.rules[0].rule",
            Wire::OrRules(set(vec![unsupported()])),
        ),
        ("not_rule.rule", Wire::NotRule(Box::new(unsupported()))),
        ("not_rule.rule", Wire::NotRule(Default::default())),
        ("destination_port", Wire::DestinationPort(65_536)),
        ("url_path", Wire::UrlPath(Default::default())),
        ("url_path.path", Wire::UrlPath(path(Default::default()))),
    ]);
    let empty = Permission { rule: None };
    let mut policy = policy();
    policy.permissions = vec![empty];
    assert_eq!(
        faults(&with_policy(policy)),
        [format!("{HTTP}.rules.policies.no.permissions[0].rule")]
    );
}

#[test]
fn a_principal_that_is_not_understood_is_refused() {
    use principal::Identifier as Wire;
    let set = |ids: Vec<Principal>| principal::Set { ids };
    let unsupported = || principal(Wire::RemoteIp(Default::default()));
    check_principal(&[
        ("identifier", Wire::Any(false)),
        ("identifier", Wire::SourceIp(cidr("10.0.0.0", 8))),
        ("identifier", Wire::RemoteIp(cidr("10.0.0.0", 8))),
        ("identifier", Wire::Metadata(Default::default())),
        ("identifier", Wire::FilterState(Default::default())),
        ("identifier", Wire::SourcedMetadata(Default::default())),
        ("identifier", Wire::Custom(Default::default())),
        ("and_ids.ids", Wire::AndIds(set(vec![]))),
        ("or_ids.ids", Wire::OrIds(set(vec![]))),
        (
            "and_ids.ids[0].identifier",
            Wire::AndIds(set(vec![unsupported()])),
        ),
        (
            "or_ids.ids[0].identifier",
            Wire::OrIds(set(vec![unsupported()])),
        ),
        ("not_id.identifier", Wire::NotId(Box::new(unsupported()))),
        ("not_id.identifier", Wire::NotId(Default::default())),
        (
            "authenticated.principal_name",
            Wire::Authenticated(Authenticated {
                principal_name: Some(Default::default()),
            }),
        ),
        (
            "direct_remote_ip",
            Wire::DirectRemoteIp(cidr("10.0.0.0", 33)),
        ),
        (
            "direct_remote_ip",
            Wire::DirectRemoteIp(cidr("fd00::", 129)),
        ),
        (
            "direct_remote_ip",
            Wire::DirectRemoteIp(cidr("fd00::", 256)),
        ),
        ("direct_remote_ip", Wire::DirectRemoteIp(cidr("echo", 8))),
        ("url_path", Wire::UrlPath(Default::default())),
    ]);
}

/// One condition on a header, on both sides.
#[test]
fn a_condition_on_a_header_that_is_not_understood_is_refused() {
    use HeaderMatchSpecifier as Specifier;
    let exact = || Specifier::ExactMatch("x".to_owned());
    let missing_as_empty = HeaderMatcher {
        treat_missing_header_as_empty: true,
        ..header("x", exact())
    };
    let insensitive = StringMatcher {
        ignore_case: true,
        ..string(MatchPattern::Exact("x".to_owned()))
    };
    let large = "(a{1000}){1000}";
    for (field, matcher) in [
        ("name", header("", exact())),
        ("name", header("X-Upper", exact())),
        ("name", header(":path", exact())),
        ("name", header(":scheme", exact())),
        ("treat_missing_header_as_empty", missing_as_empty),
        (
            "range_match",
            header("x", Specifier::RangeMatch(Default::default())),
        ),
        (
            "string_match",
            header("x", Specifier::StringMatch(Default::default())),
        ),
        (
            "string_match",
            header(
                "x",
                Specifier::StringMatch(string(MatchPattern::Custom(Default::default()))),
            ),
        ),
        (
            "string_match.ignore_case",
            header("x", Specifier::StringMatch(insensitive)),
        ),
        (
            "safe_regex_match.regex",
            header("x", Specifier::SafeRegexMatch(regex("("))),
        ),
        (
            "safe_regex_match.regex",
            header("x", Specifier::SafeRegexMatch(regex(large))),
        ),
        // Two halves that only become an expression inside of another.
        (
            "safe_regex_match.regex",
            header("x", Specifier::SafeRegexMatch(regex("a)|(b"))),
        ),
        (
            "safe_regex_match.regex",
            header("x", Specifier::SafeRegexMatch(regex(r"(?=a)"))),
        ),
        (
            "string_match.safe_regex.regex",
            header(
                "x",
                Specifier::StringMatch(string(MatchPattern::SafeRegex(regex("[")))),
            ),
        ),
    ] {
        let field = format!("header.{field}");
        check_permission(&[(&*field, permission::Rule::Header(matcher.clone()))]);
        check_principal(&[(&*field, principal::Identifier::Header(matcher))]);
    }
}

fn conditions(listener: &listener::Wire) -> Arc<Rules> {
    let Piece::Listener(Listener::Inbound(inbound)) = accepted(listener).piece else {
        panic!("it is the inbound listener");
    };
    Arc::clone(&inbound.default.authz)
}

/// The condition of the one rule of a policy with this permission, in words.
fn read(rule: permission::Rule) -> String {
    let mut policy = policy();
    policy.permissions = vec![permission(rule)];
    format!("{:?}", conditions(&with_policy(policy)))
}

/// The same of a policy with this principal.
fn read_principal(name: StringMatcher) -> String {
    let mut policy = policy();
    policy.principals = vec![principal(principal::Identifier::Authenticated(
        Authenticated {
            principal_name: Some(name),
        },
    ))];
    format!("{:?}", conditions(&with_policy(policy)))
}

fn expected(condition: Condition) -> String {
    let rules = Rules::new(vec![Rule::new("no", condition)], None);
    format!("{rules:?}")
}

#[test]
fn what_is_understood_means_what_it_says() {
    use permission::Rule as Wire;
    let exact = |text: &str| HeaderMatchSpecifier::ExactMatch(text.to_owned());
    let value = |text: &str| ValueMatch::Exact(text.into());
    let inverted = HeaderMatcher {
        invert_match: true,
        ..header("x", exact("1"))
    };
    for (wire, condition) in [
        (Wire::Any(true), Condition::Always),
        (Wire::DestinationPort(0xffff), Condition::Port(0xffff)),
        (
            Wire::Header(header(":method", exact("GET"))),
            Condition::Method(value("GET")),
        ),
        (
            Wire::Header(header(":authority", exact("a"))),
            Condition::Authority(value("a")),
        ),
        (
            Wire::Header(header("host", exact("a"))),
            Condition::Authority(value("a")),
        ),
        (
            Wire::Header(header("x", exact("1"))),
            Condition::Header("x".into(), value("1")),
        ),
        (
            Wire::Header(inverted),
            Condition::Not(Box::new(Condition::Header("x".into(), value("1")))),
        ),
        (
            Wire::UrlPath(path(string(MatchPattern::Prefix("/a".to_owned())))),
            Condition::Path(ValueMatch::Prefix("/a".into())),
        ),
        (
            Wire::NotRule(Box::new(permission(Wire::DestinationPort(1)))),
            Condition::Not(Box::new(Condition::Port(1))),
        ),
        (
            Wire::OrRules(permission::Set {
                rules: [1, 2]
                    .map(|port| permission(Wire::DestinationPort(port)))
                    .into(),
            }),
            Condition::Any(vec![Condition::Port(1), Condition::Port(2)]),
        ),
        (
            Wire::AndRules(permission::Set {
                rules: [1, 2]
                    .map(|port| permission(Wire::DestinationPort(port)))
                    .into(),
            }),
            Condition::All(vec![Condition::Port(1), Condition::Port(2)]),
        ),
    ] {
        let text = format!("{wire:?}");
        assert_eq!(read(wire), expected(condition), "{text}");
    }
    // An ALLOW filter without policies allows nothing.
    let mut allow = rules(Action::Allow);
    allow.policies.clear();
    let read = conditions(&with_http(vec![pack(&http(allow))]));
    assert_eq!(
        format!("{read:?}"),
        format!("{:?}", Rules::new(vec![], Some(vec![])))
    );
}

/// What the control plane makes of namespaces is taken back, and nothing else is taken for it.
#[test]
fn an_expression_for_a_namespace_is_a_namespace() {
    let expression = |namespace: &str| {
        let regex = format!("spiffe://[^/]+/ns/{namespace}/sa/[^/]+");
        string(MatchPattern::SafeRegex(RegexMatcher {
            regex,
            ..Default::default()
        }))
    };
    let exact = |text: &str| ValueMatch::Exact(text.into());
    for (namespace, value) in [
        ("[^/]+", ValueMatch::Present),
        ("shop", exact("shop")),
        (r"my\-shop", exact("my-shop")),
        ("my-shop", exact("my-shop")),
        (r"a\.b", exact("a.b")),
        (r"my\-[^/]*", ValueMatch::Prefix("my-".into())),
        ("[^/]*-a", ValueMatch::Suffix("-a".into())),
    ] {
        let read = read_principal(expression(namespace));
        assert_eq!(read, expected(Condition::Namespace(value)), "{namespace}");
    }
    for namespace in [
        ".+",
        "a.b",
        "a|b",
        "[^/]*a[^/]*",
        r"\w",
        r"\<a",
        "a/sa/b",
        "a{2}",
        "(a)",
    ] {
        let read = read_principal(expression(namespace));
        let regex = format!(r"\A(?:spiffe://[^/]+/ns/{namespace}/sa/[^/]+)\z");
        let value = ValueMatch::Regex(regex::Regex::new(&regex).unwrap());
        let condition = Condition::Principal(value);
        assert_eq!(read, expected(condition), "{namespace}");
    }
}
