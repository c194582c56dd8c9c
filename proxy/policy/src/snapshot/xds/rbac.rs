//! RBAC filters -> [`Rules`]. Everything here is security: what is not understood is a fault.

#![expect(deprecated, reason = "deprecated identifiers must be refused too")]

use std::sync::Arc;

use heddle_proto::xds::{
    envoy::{
        config::{
            core::v3::CidrRange,
            rbac::v3::{
                Permission, Policy, Principal, Rbac as WireRules, permission, principal,
                rbac::Action,
            },
            route::v3::HeaderMatcher,
        },
        extensions::filters::network::rbac::v3::Rbac as NetworkRbac,
        r#type::matcher::v3::{
            PathMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
        },
    },
    google::protobuf::Any,
    http_filters::rbac::v3::Rbac as HttpRbac,
};
use ipnet::IpNet;
use prost::Name;

use crate::{
    authz::{Condition, Rule, Rules},
    route::ValueMatch,
};

use super::{
    fault::{Faults, Path},
    route::{header_match, value_match},
    unpack,
};

/// The rules of a chain's RBAC filters: DENY filters, then at most one ALLOW filter.
pub(super) fn rules(filters: &[(usize, Any)], at: &Path<'_>, faults: &mut Faults) -> Rules {
    let mut deny = Vec::new();
    let mut allow: Option<Vec<Rule>> = None;
    for (i, any) in filters {
        let at = at.index(*i);
        let at = at.field("typed_config");
        let Some(wire) = filter_rules(any, &at, faults) else {
            continue;
        };
        let at = at.field("rules");
        if allow.is_some() {
            // Several ALLOW filters would all have to allow.
            faults.refuse(&at, "comes after an ALLOW filter");
        }
        match Action::try_from(wire.action) {
            Ok(Action::Deny) => deny.extend(policies(&wire, &at, faults)),
            Ok(Action::Allow) => allow = Some(policies(&wire, &at, faults)),
            Ok(Action::Log) | Err(_) => faults.refuse(&at.field("action"), "is not supported"),
        }
    }
    Rules::new(deny, allow)
}

fn filter_rules(any: &Any, at: &Path<'_>, faults: &mut Faults) -> Option<WireRules> {
    let rules = if any.type_url == HttpRbac::type_url() {
        let filter: HttpRbac = unpack(any, at, faults)?;
        faults.refuse_set(&filter.matcher, &at.field("matcher"));
        faults.refuse_set(&filter.shadow_rules, &at.field("shadow_rules"));
        faults.refuse_set(&filter.shadow_matcher, &at.field("shadow_matcher"));
        filter.rules
    } else {
        let filter: NetworkRbac = unpack(any, at, faults)?;
        faults.refuse_set(&filter.matcher, &at.field("matcher"));
        faults.refuse_set(&filter.shadow_rules, &at.field("shadow_rules"));
        faults.refuse_set(&filter.shadow_matcher, &at.field("shadow_matcher"));
        faults.refuse_set(&filter.enforcement_type, &at.field("enforcement_type"));
        faults.refuse_set(&filter.delay_deny, &at.field("delay_deny"));
        filter.rules
    };
    if rules.is_none() {
        // Envoy then enforces nothing.
        faults.refuse(&at.field("rules"), "is missing");
    }
    rules
}

/// In the order of their names.
fn policies(rules: &WireRules, at: &Path<'_>, faults: &mut Faults) -> Vec<Rule> {
    faults.refuse_set(
        &rules.audit_logging_options,
        &at.field("audit_logging_options"),
    );
    let mut names: Vec<_> = rules.policies.keys().collect();
    names.sort();
    let at = at.field("policies");
    names
        .into_iter()
        .filter_map(|name| {
            let when = policy(&rules.policies[name], &at.field(name), faults)?;
            Some(Rule::new(name.as_str(), when))
        })
        .collect()
}

fn policy(policy: &Policy, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    faults.refuse_set(&policy.condition, &at.field("condition"));
    faults.refuse_set(&policy.checked_condition, &at.field("checked_condition"));
    faults.refuse_set(&policy.cel_config, &at.field("cel_config"));
    let permissions = each(
        &policy.permissions,
        &at.field("permissions"),
        faults,
        permission,
    );
    let principals = each(
        &policy.principals,
        &at.field("principals"),
        faults,
        principal,
    );
    Some(all_of(vec![any_of(permissions?), any_of(principals?)]))
}

fn each<T>(
    list: &[T],
    at: &Path<'_>,
    faults: &mut Faults,
    read: fn(&T, &Path<'_>, &mut Faults) -> Option<Condition>,
) -> Option<Vec<Condition>> {
    if list.is_empty() {
        faults.refuse(at, "is empty");
        return None;
    }
    // Not short-circuiting: every fault is reported.
    let conditions: Vec<_> = list
        .iter()
        .enumerate()
        .map(|(i, one)| read(one, &at.index(i), faults))
        .collect();
    conditions.into_iter().collect()
}

fn permission(message: &Permission, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    use permission::Rule as Wire;
    let condition = match &message.rule {
        Some(Wire::AndRules(set)) => all_of(each(
            &set.rules,
            &at.field("and_rules.rules"),
            faults,
            permission,
        )?),
        Some(Wire::OrRules(set)) => any_of(each(
            &set.rules,
            &at.field("or_rules.rules"),
            faults,
            permission,
        )?),
        Some(Wire::NotRule(rule)) => {
            Condition::Not(Box::new(permission(rule, &at.field("not_rule"), faults)?))
        }
        Some(Wire::Any(true)) => Condition::Always,
        Some(Wire::Header(message)) => header(message, &at.field("header"), faults)?,
        Some(Wire::UrlPath(message)) => url_path(message, &at.field("url_path"), faults)?,
        Some(Wire::DestinationPort(port)) => match u16::try_from(*port) {
            Ok(port) => Condition::Port(port),
            Err(_) => {
                faults.refuse(&at.field("destination_port"), "is above 65535");
                return None;
            }
        },
        Some(
            Wire::Any(false)
            | Wire::DestinationIp(_)
            | Wire::DestinationPortRange(_)
            | Wire::Metadata(_)
            | Wire::RequestedServerName(_)
            | Wire::Matcher(_)
            | Wire::UriTemplate(_)
            | Wire::SourcedMetadata(_),
        )
        | None => {
            faults.refuse(&at.field("rule"), "is missing or not supported");
            return None;
        }
    };
    Some(condition)
}

fn principal(message: &Principal, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    use principal::Identifier as Wire;
    let condition = match &message.identifier {
        Some(Wire::AndIds(set)) => {
            all_of(each(&set.ids, &at.field("and_ids.ids"), faults, principal)?)
        }
        Some(Wire::OrIds(set)) => {
            any_of(each(&set.ids, &at.field("or_ids.ids"), faults, principal)?)
        }
        Some(Wire::NotId(id)) => {
            Condition::Not(Box::new(principal(id, &at.field("not_id"), faults)?))
        }
        Some(Wire::Any(true)) => Condition::Always,
        Some(Wire::Authenticated(message)) => match &message.principal_name {
            // Envoy: any peer with a verified certificate.
            None => Condition::Principal(ValueMatch::Present),
            Some(name) => peer(name, &at.field("authenticated.principal_name"), faults)?,
        },
        Some(Wire::DirectRemoteIp(range)) => cidr(range, &at.field("direct_remote_ip"), faults)?,
        Some(Wire::Header(message)) => header(message, &at.field("header"), faults)?,
        Some(Wire::UrlPath(message)) => url_path(message, &at.field("url_path"), faults)?,
        // `remote_ip` believes headers; the others have no counterpart.
        Some(
            Wire::Any(false)
            | Wire::SourceIp(_)
            | Wire::RemoteIp(_)
            | Wire::Metadata(_)
            | Wire::FilterState(_)
            | Wire::SourcedMetadata(_)
            | Wire::Custom(_),
        )
        | None => {
            faults.refuse(&at.field("identifier"), "is missing or not supported");
            return None;
        }
    };
    Some(condition)
}

/// Envoy knows no namespaces, so they come as expressions over the whole id. What is known to be
/// one is taken as what it means, since an index can hold it: rules with expressions have to be
/// judged one after the other ([`crate::authz`]).
fn peer(name: &StringMatcher, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    if let Some(MatchPattern::SafeRegex(regex)) = &name.match_pattern
        && !name.ignore_case
        && let Some(namespace) = namespace(&regex.regex)
    {
        return Some(Condition::Namespace(namespace));
    }
    value_match(name, at, faults).map(Condition::Principal)
}

/// No part of an id has a slash ([`crate::spiffe`]).
fn namespace(expression: &str) -> Option<ValueMatch> {
    let rest = expression.strip_prefix("spiffe://[^/]+/ns/")?;
    let namespace = rest.strip_suffix("/sa/[^/]+")?;
    if namespace == "[^/]+" {
        return Some(ValueMatch::Present);
    }
    if let Some(begin) = namespace.strip_suffix("[^/]*") {
        return literal(begin).map(ValueMatch::Prefix);
    }
    match namespace.strip_prefix("[^/]*") {
        Some(end) => literal(end).map(ValueMatch::Suffix),
        None => literal(namespace).map(ValueMatch::Exact),
    }
}

/// The only text that an expression covers, if it is spelt with nothing but what a namespace
/// may have.
fn literal(expression: &str) -> Option<Arc<str>> {
    let mut text = String::with_capacity(expression.len());
    let mut rest = expression.chars();
    while let Some(next) = rest.next() {
        match next {
            '\\' => text.push(rest.next().filter(|mark| matches!(mark, '.' | '-'))?),
            '-' | '_' => text.push(next),
            _ if next.is_ascii_alphanumeric() => text.push(next),
            _ => return None,
        }
    }
    Some(text.into())
}

fn header(message: &HeaderMatcher, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    let header = header_match(message, at, faults)?;
    let condition = match &*header.name {
        ":method" => Condition::Method(header.value),
        ":authority" | "host" => Condition::Authority(header.value),
        name if name.starts_with(':') => {
            faults.refuse(
                &at.field("name"),
                "is a pseudo-header that is not supported",
            );
            return None;
        }
        _ => Condition::Header(header.name, header.value),
    };
    Some(if header.is_inverted {
        Condition::Not(Box::new(condition))
    } else {
        condition
    })
}

fn url_path(message: &PathMatcher, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    let Some(path_matcher::Rule::Path(text)) = &message.rule else {
        faults.refuse(at, "is empty");
        return None;
    };
    Some(Condition::Path(value_match(
        text,
        &at.field("path"),
        faults,
    )?))
}

fn cidr(range: &CidrRange, at: &Path<'_>, faults: &mut Faults) -> Option<Condition> {
    let prefix_len = range.prefix_len.map_or(0, |len| len.value);
    let block = range
        .address_prefix
        .parse()
        .ok()
        .zip(u8::try_from(prefix_len).ok())
        .and_then(|(address, len)| IpNet::new(address, len).ok());
    if block.is_none() {
        faults.refuse(at, "is not a CIDR");
    }
    Some(Condition::SourceIp(block?))
}

fn all_of(mut all: Vec<Condition>) -> Condition {
    all.retain(|condition| !matches!(condition, Condition::Always));
    match all.len() {
        0 => Condition::Always,
        1 => all.remove(0),
        _ => Condition::All(all),
    }
}

/// Of at least one.
fn any_of(mut any: Vec<Condition>) -> Condition {
    if any.len() == 1 {
        any.remove(0)
    } else {
        Condition::Any(any)
    }
}
