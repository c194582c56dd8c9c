//! `AuthorizationPolicy` -> RBAC filters: all DENY policies in one, then all ALLOW policies in one.
//!
//! On an opaque port a rule about HTTP cannot be judged. It fails closed: a DENY rule applies
//! whatever the request, an ALLOW rule never does.

use std::collections::BTreeMap;

use heddle_policy::spiffe::SCHEME;
use heddle_proto::xds::{
    envoy::{
        config::{
            core::v3::CidrRange,
            rbac::v3::{
                Permission, Policy, Principal, permission, principal, rbac::Action as WireAction,
            },
            route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
        },
        extensions::filters::{
            http::rbac::v3::Rbac as HttpRbac, network::rbac::v3::Rbac as NetworkRbac,
        },
        r#type::matcher::v3::{
            PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
        },
    },
    google::protobuf::Any,
};
use ipnet::IpNet;
use prost::{Message, Name};

use super::{route::expression, wire};
use crate::model::{
    Action, AuthorizationPolicy, Condition, Matches, Operation, Pattern, Rule, Source,
};

/// Rules in the order of their names.
type Policies = BTreeMap<String, Policy>;

/// `envoy.extensions.filters.http.rbac.v3.RBAC` with an ordered map: its bytes are the content.
#[derive(Clone, PartialEq, Message)]
struct OrderedHttp {
    #[prost(message, optional, tag = "1")]
    rules: Option<OrderedRules>,
}

/// `envoy.extensions.filters.network.rbac.v3.RBAC`, the same way.
#[derive(Clone, PartialEq, Message)]
struct OrderedNetwork {
    #[prost(message, optional, tag = "1")]
    rules: Option<OrderedRules>,
    #[prost(string, tag = "3")]
    stat_prefix: String,
}

/// `envoy.config.rbac.v3.RBAC`.
#[derive(Clone, PartialEq, Message)]
struct OrderedRules {
    #[prost(int32, tag = "1")]
    action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    policies: Policies,
}

/// For ports that carry HTTP.
pub(super) fn http(
    rules: &[(String, &AuthorizationPolicy)],
    authority: Authority,
) -> impl Iterator<Item = Any> {
    filters(rules, Port::Http(authority))
        .into_iter()
        .map(|rules| Any {
            type_url: HttpRbac::type_url(),
            value: OrderedHttp { rules: Some(rules) }.encode_to_vec(),
        })
}

/// For opaque ports.
pub(super) fn network(rules: &[(String, &AuthorizationPolicy)]) -> impl Iterator<Item = Any> {
    filters(rules, Port::Opaque).into_iter().map(|rules| Any {
        type_url: NetworkRbac::type_url(),
        value: OrderedNetwork {
            rules: Some(rules),
            stat_prefix: "rbac".to_owned(),
        }
        .encode_to_vec(),
    })
}

/// What a port carries.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Port {
    Http(Authority),
    Opaque,
}

/// How a client sees the authority. Policies have it in lower case.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Authority {
    /// It compares in lower case by itself.
    InLowerCase,
    /// As the request has it.
    AsSent,
}

fn filters(rules: &[(String, &AuthorizationPolicy)], port: Port) -> Vec<OrderedRules> {
    [
        (Action::Deny, WireAction::Deny),
        (Action::Allow, WireAction::Allow),
    ]
    .into_iter()
    .filter_map(|(action, wire_action)| {
        let of_action = || rules.iter().filter(|(_, policy)| policy.action == action);
        // An ALLOW filter without policies refuses everything, which is what an ALLOW policy
        // without rules says; a DENY filter without any says nothing.
        of_action().next()?;
        let policies: Policies = of_action()
            .flat_map(|(name, policy)| {
                let rules = policy.rules.iter().enumerate();
                rules.map(move |(i, rule)| (format!("{name}-rule[{i}]"), rule))
            })
            .filter(|(_, rule)| port != Port::Opaque || action == Action::Deny || !rule.is_http())
            .map(|(name, rule)| (name, policy(rule, port)))
            .collect();
        Some(OrderedRules {
            action: wire_action.into(),
            policies,
        })
    })
    .collect()
}

/// Any of `from`, any of `to`, all of `when`.
fn policy(rule: &Rule, port: Port) -> Policy {
    let mut permissions = vec![any_of_permissions(
        rule.to
            .iter()
            .map(|to| operation(&to.operation, port))
            .collect(),
    )];
    let mut principals = vec![any_of_principals(
        rule.from.iter().map(|from| source(&from.source)).collect(),
    )];
    for condition in &rule.when {
        match condition {
            Condition::Header(..) if port == Port::Opaque => {}
            Condition::Header(name, values) => {
                permissions.extend(permission(values, |pattern| {
                    header(name, text(pattern, ""))
                }));
            }
            Condition::DestinationPort(values) => {
                permissions.extend(permission(values, |port| destination_port(port.get())));
            }
            Condition::Principal(values) => principals.extend(principal(values, principal_name)),
            Condition::Namespace(values) => principals.extend(principal(values, namespace)),
            Condition::SourceIp(values) => principals.extend(principal(values, source_ip)),
        }
    }
    Policy {
        permissions: vec![all_of_permissions(permissions)],
        principals: vec![all_of_principals(principals)],
        ..Policy::default()
    }
}

fn operation(operation: &Operation, port: Port) -> Permission {
    let mut all: Vec<Permission> =
        permission(&operation.ports, |port| destination_port(port.get())).collect();
    if let Port::Http(authority) = port {
        all.extend(permission(&operation.hosts, |host| {
            let matcher = StringMatcher {
                ignore_case: authority == Authority::AsSent && *host != Pattern::Present,
                ..text(host, "")
            };
            header(":authority", matcher)
        }));
        all.extend(permission(&operation.methods, |method| {
            header(":method", text(method, ""))
        }));
        all.extend(permission(&operation.paths, path));
    }
    all_of_permissions(all)
}

fn source(source: &Source) -> Principal {
    let names = principal(&source.principals, principal_name);
    let namespaces = principal(&source.namespaces, namespace);
    let addresses = principal(&source.ip_blocks, source_ip);
    all_of_principals(names.chain(namespaces).chain(addresses).collect())
}

/// Any of `values`, none of `not_values`.
fn permission<T>(
    matches: &Matches<T>,
    one: impl Fn(&T) -> permission::Rule,
) -> impl Iterator<Item = Permission> {
    let any_of = |list: &[T]| {
        let list: Vec<_> = list
            .iter()
            .map(|value| Permission {
                rule: Some(one(value)),
            })
            .collect();
        (!list.is_empty()).then(|| any_of_permissions(list))
    };
    let wanted = any_of(&matches.values);
    let unwanted = any_of(&matches.not_values).map(|any| Permission {
        rule: Some(permission::Rule::NotRule(Box::new(any))),
    });
    [wanted, unwanted].into_iter().flatten()
}

/// Any of `values`, none of `not_values`.
fn principal<T>(
    matches: &Matches<T>,
    one: impl Fn(&T) -> principal::Identifier,
) -> impl Iterator<Item = Principal> {
    let any_of = |list: &[T]| {
        let list: Vec<_> = list
            .iter()
            .map(|value| Principal {
                identifier: Some(one(value)),
            })
            .collect();
        (!list.is_empty()).then(|| any_of_principals(list))
    };
    let wanted = any_of(&matches.values);
    let unwanted = any_of(&matches.not_values).map(|any| Principal {
        identifier: Some(principal::Identifier::NotId(Box::new(any))),
    });
    [wanted, unwanted].into_iter().flatten()
}

/// An empty list asks for nothing.
fn any_of_permissions(mut list: Vec<Permission>) -> Permission {
    match list.len() {
        0 => Permission {
            rule: Some(permission::Rule::Any(true)),
        },
        1 => list.remove(0),
        _ => Permission {
            rule: Some(permission::Rule::OrRules(permission::Set { rules: list })),
        },
    }
}

fn all_of_permissions(mut list: Vec<Permission>) -> Permission {
    match list.len() {
        0 => Permission {
            rule: Some(permission::Rule::Any(true)),
        },
        1 => list.remove(0),
        _ => Permission {
            rule: Some(permission::Rule::AndRules(permission::Set { rules: list })),
        },
    }
}

fn any_of_principals(mut list: Vec<Principal>) -> Principal {
    match list.len() {
        0 => Principal {
            identifier: Some(principal::Identifier::Any(true)),
        },
        1 => list.remove(0),
        _ => Principal {
            identifier: Some(principal::Identifier::OrIds(principal::Set { ids: list })),
        },
    }
}

fn all_of_principals(mut list: Vec<Principal>) -> Principal {
    match list.len() {
        0 => Principal {
            identifier: Some(principal::Identifier::Any(true)),
        },
        1 => list.remove(0),
        _ => Principal {
            identifier: Some(principal::Identifier::AndIds(principal::Set { ids: list })),
        },
    }
}

fn header(name: &str, matcher: StringMatcher) -> permission::Rule {
    permission::Rule::Header(HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(matcher)),
        ..HeaderMatcher::default()
    })
}

fn path(pattern: &Pattern) -> permission::Rule {
    permission::Rule::UrlPath(PathMatcher {
        rule: Some(path_matcher::Rule::Path(text(pattern, ""))),
    })
}

fn destination_port(port: u16) -> permission::Rule {
    permission::Rule::DestinationPort(port.into())
}

/// `<trust-domain>/ns/<namespace>/sa/<service-account>`, as Istio writes it.
fn principal_name(pattern: &Pattern) -> principal::Identifier {
    authenticated(match pattern {
        // A suffix begins anywhere, so the scheme is not in front of it.
        Pattern::Suffix(_) | Pattern::Present => text(pattern, ""),
        Pattern::Exact(_) | Pattern::Prefix(_) => text(pattern, SCHEME),
    })
}

/// By the id's path, which has one form.
fn namespace(pattern: &Pattern) -> principal::Identifier {
    let namespace = match pattern {
        Pattern::Exact(text) => regex::escape(text),
        Pattern::Prefix(text) => format!("{}[^/]*", regex::escape(text)),
        Pattern::Suffix(text) => format!("[^/]*{}", regex::escape(text)),
        Pattern::Present => "[^/]+".to_owned(),
    };
    authenticated(StringMatcher {
        match_pattern: Some(MatchPattern::SafeRegex(expression(&format!(
            "{SCHEME}[^/]+/ns/{namespace}/sa/[^/]+"
        )))),
        ..StringMatcher::default()
    })
}

fn authenticated(name: StringMatcher) -> principal::Identifier {
    principal::Identifier::Authenticated(principal::Authenticated {
        principal_name: Some(name),
    })
}

/// The address the connection comes from; a header cannot change it.
fn source_ip(range: &IpNet) -> principal::Identifier {
    principal::Identifier::DirectRemoteIp(CidrRange {
        address_prefix: range.network().to_string(),
        prefix_len: wire::u32_value(range.prefix_len().into()),
    })
}

fn text(pattern: &Pattern, scheme: &str) -> StringMatcher {
    let pattern = match pattern {
        Pattern::Exact(text) => MatchPattern::Exact(format!("{scheme}{text}")),
        Pattern::Prefix(text) => MatchPattern::Prefix(format!("{scheme}{text}")),
        Pattern::Suffix(text) => MatchPattern::Suffix(text.clone()),
        // There, and not empty.
        Pattern::Present => MatchPattern::SafeRegex(expression(".+")),
    };
    StringMatcher {
        match_pattern: Some(pattern),
        ..StringMatcher::default()
    }
}
