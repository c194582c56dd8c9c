//! RDS: virtual hosts, routes, retries. A match condition or an action that is not in the subset
//! is a fault, since leaving it out would send requests elsewhere.

#![expect(deprecated, reason = "deprecated forms of matches are still valid xDS")]

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    sync::Arc,
    time::Duration,
};

use heddle_proto::xds::{
    envoy::{
        config::route::v3::{
            HeaderMatcher, RetryPolicy as WireRetry, Route as WireRoute, RouteAction,
            RouteConfiguration, RouteMatch as WireMatch, VirtualHost as WireHost, WeightedCluster,
            header_matcher::HeaderMatchSpecifier, route::Action, route_action::ClusterSpecifier,
            route_match::PathSpecifier,
        },
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Any, Duration as WireDuration},
};
use regex::{Regex, RegexBuilder};

use crate::{
    retry::{RetryOn, RetryPolicy},
    route::{HeaderMatch, PathMatch, Route, RouteMatch, RouteTable, ValueMatch, VirtualHost},
    snapshot::{ClusterName, WeightedClusters},
};

use super::{
    Known,
    fault::{Faults, Path},
};

pub(super) fn table(
    message: &RouteConfiguration,
    known: Known,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<RouteTable> {
    let rest = RouteConfiguration {
        name: String::new(),
        virtual_hosts: Vec::new(),
        typed_per_filter_config: HashMap::new(),
        ..message.clone()
    };
    faults.ignore_if(known == Known::Some || rest != RouteConfiguration::default());
    if message.name.is_empty() {
        faults.refuse(&at.field("name"), "is empty");
    }
    faults.refuse_set(&message.vhds, &at.field("vhds"));
    per_filter(&message.typed_per_filter_config, at, faults);
    let mut domains = HashSet::new();
    let at = at.field("virtual_hosts");
    let hosts = message
        .virtual_hosts
        .iter()
        .enumerate()
        .map(|(i, host)| virtual_host(host, &mut domains, &at.index(i), faults))
        .collect();
    Some(RouteTable::new(message.name.as_str(), hosts))
}

fn virtual_host<'a>(
    message: &'a WireHost,
    domains: &mut HashSet<&'a str>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> VirtualHost {
    let rest = WireHost {
        name: String::new(),
        domains: Vec::new(),
        routes: Vec::new(),
        typed_per_filter_config: HashMap::new(),
        ..message.clone()
    };
    faults.ignore_if(rest != WireHost::default());
    faults.refuse_set(&message.require_tls, &at.field("require_tls"));
    faults.refuse_set(&message.matcher, &at.field("matcher"));
    per_filter(&message.typed_per_filter_config, at, faults);
    if message.domains.is_empty() {
        faults.refuse(&at.field("domains"), "is empty");
    }
    for (i, domain) in message.domains.iter().enumerate() {
        let at = at.field("domains");
        if domain.is_empty() || domain.bytes().any(|b| b.is_ascii_uppercase()) {
            faults.refuse(&at.index(i), "is empty or has upper-case letters");
        }
        let inner = domain.strip_prefix('*').or(domain.strip_suffix('*'));
        if inner.unwrap_or(domain).contains('*') {
            faults.refuse(&at.index(i), "has `*` elsewhere than at one end");
        }
        if !domains.insert(domain) {
            faults.refuse(&at.index(i), "is there twice");
        }
    }
    let at = at.field("routes");
    let routes = message
        .routes
        .iter()
        .enumerate()
        .filter_map(|(i, one)| route(one, &at.index(i), faults))
        .map(Arc::new)
        .collect();
    VirtualHost {
        domains: message
            .domains
            .iter()
            .map(|domain| domain.as_str().into())
            .collect(),
        routes,
    }
}

/// Per-route settings of filters we do not have change nothing, but for authorization.
fn per_filter(config: &HashMap<String, Any>, at: &Path<'_>, faults: &mut Faults) {
    let at = at.field("typed_per_filter_config");
    let mut keys: Vec<_> = config.keys().collect();
    keys.sort();
    for key in keys {
        let is_security = ["rbac", "authz", "jwt"]
            .iter()
            .any(|word| config[key].type_url.contains(word));
        if is_security {
            faults.refuse(&at.field(key), "is not supported");
        } else {
            faults.ignore_if(true);
        }
    }
}

fn route(message: &WireRoute, at: &Path<'_>, faults: &mut Faults) -> Option<Route> {
    let rest = WireRoute {
        name: String::new(),
        r#match: None,
        action: None,
        typed_per_filter_config: HashMap::new(),
        ..message.clone()
    };
    faults.ignore_if(rest != WireRoute::default());
    per_filter(&message.typed_per_filter_config, at, faults);
    let matches = match &message.r#match {
        Some(matches) => route_match(matches, &at.field("match"), faults),
        None => {
            faults.refuse(&at.field("match"), "is missing");
            None
        }
    };
    let Some(Action::Route(action)) = &message.action else {
        faults.refuse(&at.field("action"), "is not route");
        return None;
    };
    let at = at.field("route");
    let rest = RouteAction {
        cluster_specifier: None,
        timeout: None,
        retry_policy: None,
        // gRPC's word for the same deadline (gRFC A31); we emit both with one value.
        max_stream_duration: None,
        ..action.clone()
    };
    faults.ignore_if(rest != RouteAction::default());
    let clusters = clusters(action.cluster_specifier.as_ref(), &at, faults);
    // Envoy: 15 s when unset, 0 is none.
    let timeout = duration(action.timeout.as_ref(), &at.field("timeout"), faults)
        .unwrap_or(Duration::from_secs(15));
    let retry = action
        .retry_policy
        .as_ref()
        .and_then(|policy| retry_policy(policy, &at.field("retry_policy"), faults));
    Some(Route {
        name: message.name.as_str().into(),
        matches: matches?,
        clusters: clusters?,
        timeout: (!timeout.is_zero()).then_some(timeout),
        retry,
    })
}

fn clusters(
    specifier: Option<&ClusterSpecifier>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<WeightedClusters> {
    match specifier {
        Some(ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            Some(WeightedClusters::single(ClusterName(name.as_str().into())))
        }
        Some(ClusterSpecifier::WeightedClusters(split)) => {
            weighted(split, &at.field("weighted_clusters"), faults)
        }
        Some(
            ClusterSpecifier::Cluster(_)
            | ClusterSpecifier::ClusterHeader(_)
            | ClusterSpecifier::ClusterSpecifierPlugin(_)
            | ClusterSpecifier::InlineClusterSpecifierPlugin(_),
        )
        | None => {
            faults.refuse(
                &at.field("cluster"),
                "is missing, or chosen in an unsupported way",
            );
            None
        }
    }
}

fn weighted(
    split: &WeightedCluster,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<WeightedClusters> {
    faults.ignore_if(
        split.total_weight.is_some()
            || !split.runtime_key_prefix.is_empty()
            || split.random_value_specifier.is_some()
            || split.clusters.iter().any(|c| {
                !c.cluster_header.is_empty()
                    || !c.request_headers_to_add.is_empty()
                    || !c.request_headers_to_remove.is_empty()
                    || !c.response_headers_to_add.is_empty()
                    || !c.response_headers_to_remove.is_empty()
                    || c.metadata_match.is_some()
                    || c.host_rewrite_specifier.is_some()
            }),
    );
    let mut list = Vec::with_capacity(split.clusters.len());
    for (i, cluster) in split.clusters.iter().enumerate() {
        let at = at.field("clusters");
        let at = at.index(i);
        per_filter(&cluster.typed_per_filter_config, &at, faults);
        if cluster.name.is_empty() {
            faults.refuse(&at.field("name"), "is empty");
        }
        let weight = cluster.weight.map_or(0, |weight| weight.value);
        list.push((ClusterName(cluster.name.as_str().into()), weight));
    }
    let split = WeightedClusters::new(list);
    if split.is_none() {
        faults.refuse(at, "has weights that sum to 0 or to more than 32 bits hold");
    }
    split
}

fn route_match(message: &WireMatch, at: &Path<'_>, faults: &mut Faults) -> Option<RouteMatch> {
    let WireMatch {
        case_sensitive,
        runtime_fraction,
        headers,
        query_parameters,
        cookies,
        grpc,
        tls_context,
        dynamic_metadata,
        filter_state,
        path_specifier,
    } = message;
    if case_sensitive.is_some_and(|sensitive| !sensitive.value) {
        faults.refuse(
            &at.field("case_sensitive"),
            "other than true is not supported",
        );
    }
    faults.refuse_set(runtime_fraction, &at.field("runtime_fraction"));
    faults.refuse_set(query_parameters, &at.field("query_parameters"));
    faults.refuse_set(cookies, &at.field("cookies"));
    faults.refuse_set(grpc, &at.field("grpc"));
    faults.refuse_set(tls_context, &at.field("tls_context"));
    faults.refuse_set(dynamic_metadata, &at.field("dynamic_metadata"));
    faults.refuse_set(filter_state, &at.field("filter_state"));
    let path = match path_specifier {
        Some(PathSpecifier::Prefix(prefix)) if prefix.is_empty() || prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.as_str().into()),
        Some(PathSpecifier::Path(path)) => PathMatch::Exact(path.as_str().into()),
        Some(PathSpecifier::SafeRegex(regex)) => {
            PathMatch::Regex(whole(&regex.regex, &at.field("safe_regex"), faults)?)
        }
        Some(
            PathSpecifier::ConnectMatcher(_)
            | PathSpecifier::PathSeparatedPrefix(_)
            | PathSpecifier::PathMatchPolicy(_),
        )
        | None => {
            faults.refuse(&at.field("path_specifier"), "is missing or not supported");
            return None;
        }
    };
    let at = at.field("headers");
    let headers: Vec<_> = headers
        .iter()
        .enumerate()
        .map(|(i, header)| header_match(header, &at.index(i), faults))
        .collect();
    Some(RouteMatch {
        path,
        headers: headers.into_iter().collect::<Option<_>>()?,
    })
}

/// A condition on one header.
pub(super) fn header_match(
    message: &HeaderMatcher,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<HeaderMatch> {
    if message.name.is_empty() || message.name.bytes().any(|b| b.is_ascii_uppercase()) {
        faults.refuse(&at.field("name"), "is empty or has upper-case letters");
    }
    if message.treat_missing_header_as_empty {
        faults.refuse(
            &at.field("treat_missing_header_as_empty"),
            "is not supported",
        );
    }
    let mut is_inverted = message.invert_match;
    let value = match &message.header_match_specifier {
        // Envoy: without a specifier the header must be present.
        None => ValueMatch::Present,
        Some(HeaderMatchSpecifier::PresentMatch(present)) => {
            is_inverted ^= !present;
            ValueMatch::Present
        }
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => {
            value_match(matcher, &at.field("string_match"), faults)?
        }
        Some(HeaderMatchSpecifier::ExactMatch(text)) => ValueMatch::Exact(text.as_str().into()),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => ValueMatch::Prefix(text.as_str().into()),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => ValueMatch::Suffix(text.as_str().into()),
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            ValueMatch::Contains(text.as_str().into())
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(regex)) => {
            ValueMatch::Regex(whole(&regex.regex, &at.field("safe_regex_match"), faults)?)
        }
        Some(HeaderMatchSpecifier::RangeMatch(_)) => {
            faults.refuse(&at.field("range_match"), "is not supported");
            return None;
        }
    };
    Some(HeaderMatch {
        name: message.name.as_str().into(),
        value,
        is_inverted,
    })
}

/// A condition on a text.
pub(super) fn value_match(
    message: &StringMatcher,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<ValueMatch> {
    if message.ignore_case {
        faults.refuse(&at.field("ignore_case"), "is not supported");
    }
    match &message.match_pattern {
        Some(MatchPattern::Exact(text)) => Some(ValueMatch::Exact(text.as_str().into())),
        Some(MatchPattern::Prefix(text)) => Some(ValueMatch::Prefix(text.as_str().into())),
        Some(MatchPattern::Suffix(text)) => Some(ValueMatch::Suffix(text.as_str().into())),
        Some(MatchPattern::Contains(text)) => Some(ValueMatch::Contains(text.as_str().into())),
        Some(MatchPattern::SafeRegex(regex)) => Some(ValueMatch::Regex(whole(
            &regex.regex,
            &at.field("safe_regex"),
            faults,
        )?)),
        Some(MatchPattern::Custom(_)) | None => {
            faults.refuse(at, "is missing or not supported");
            None
        }
    }
}

/// An expression that matches whole texts, as Envoy's `safe_regex` does. It must be one by
/// itself too: `a)|(b` would become one only inside of the other.
fn whole(pattern: &str, at: &Path<'_>, faults: &mut Faults) -> Option<Regex> {
    let build = |pattern: &str| {
        let mut builder = RegexBuilder::new(pattern);
        builder.size_limit(REGEX_BYTES_MAX).build()
    };
    build(pattern)
        .and_then(|_| build(&format!(r"\A(?:{pattern})\z")))
        .map_err(|error| faults.refuse(&at.field("regex"), format!("is not usable: {error}")))
        .ok()
}

fn retry_policy(message: &WireRetry, at: &Path<'_>, faults: &mut Faults) -> Option<RetryPolicy> {
    let rest = WireRetry {
        retry_on: String::new(),
        num_retries: None,
        per_try_timeout: None,
        retry_back_off: None,
        retriable_status_codes: Vec::new(),
        ..message.clone()
    };
    faults.ignore_if(rest != WireRetry::default());
    // Envoy: 1 when unset, 0 is none.
    let retries_max = NonZeroU32::new(message.num_retries.map_or(1, |n| n.value))?;
    let on = retry_on(message, at, faults)?;
    let back_off = message.retry_back_off.as_ref();
    let at_back_off = at.field("retry_back_off");
    let base = back_off.and_then(|b| b.base_interval.as_ref());
    let base = duration(base, &at_back_off.field("base_interval"), faults);
    let max = back_off.and_then(|b| b.max_interval.as_ref());
    let max = duration(max, &at_back_off.field("max_interval"), faults);
    let backoff_base = base.unwrap_or(Duration::from_millis(25));
    Some(RetryPolicy {
        retries_max,
        attempt_timeout: duration(
            message.per_try_timeout.as_ref(),
            &at.field("per_try_timeout"),
            faults,
        )
        .filter(|timeout| !timeout.is_zero()),
        on,
        backoff_base,
        backoff_max: max
            .unwrap_or(backoff_base.saturating_mul(10))
            .max(backoff_base),
    })
}

/// `None` when nothing is retried.
fn retry_on(message: &WireRetry, at: &Path<'_>, faults: &mut Faults) -> Option<RetryOn> {
    let mut on = RetryOn::default();
    let words = message.retry_on.split(',').map(str::trim);
    for word in words.filter(|word| !word.is_empty()) {
        match word {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset" | "reset-before-request" => on.reset = true,
            "5xx" => on.server_error = true,
            "gateway-error" => on.gateway_error = true,
            "retriable-4xx" => on.retriable_4xx = true,
            "cancelled" => on.grpc |= 1 << 1,
            "deadline-exceeded" => on.grpc |= 1 << 4,
            "resource-exhausted" => on.grpc |= 1 << 8,
            "internal" => on.grpc |= 1 << 13,
            "unavailable" => on.grpc |= 1 << 14,
            "retriable-status-codes" => {
                for status in &message.retriable_status_codes {
                    let status = u16::try_from(*status).unwrap_or(0);
                    if !on.statuses.insert(status) {
                        faults.refuse(&at.field("retriable_status_codes"), "has no HTTP status");
                    }
                }
            }
            _ => faults.refuse(
                &at.field("retry_on"),
                format!("has the unsupported word `{word}`"),
            ),
        }
        // These two prove that nothing was processed.
        on.any_method |= !matches!(word, "connect-failure" | "refused-stream");
    }
    (on != RetryOn::default()).then_some(on)
}

/// A duration that is not negative and not absurd.
pub(super) fn duration(
    message: Option<&WireDuration>,
    at: &Path<'_>,
    faults: &mut Faults,
) -> Option<Duration> {
    let message = message?;
    let seconds = u64::try_from(message.seconds)
        .ok()
        .filter(|s| *s <= DURATION_SECS_MAX);
    let nanos = u32::try_from(message.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000);
    if let (Some(seconds), Some(nanos)) = (seconds, nanos) {
        return Some(Duration::new(seconds, nanos));
    }
    faults.refuse(at, "is negative or out of range");
    None
}

/// Compiled size of one expression.
const REGEX_BYTES_MAX: usize = 1 << 20;
/// Ten years, so that sums with instants cannot overflow.
const DURATION_SECS_MAX: u64 = 10 * 366 * 86_400;
