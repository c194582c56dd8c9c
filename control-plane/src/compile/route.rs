//! RDS: the same bytes for every client.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use heddle_policy::snapshot::xds::{ResourceName, ResourceType};
use heddle_proto::xds::envoy::{
    config::route::v3::{
        HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch,
        VirtualHost, WeightedCluster,
        header_matcher::HeaderMatchSpecifier,
        retry_policy,
        route::Action,
        route_action::{ClusterSpecifier, MaxStreamDuration},
        route_match::PathSpecifier,
        weighted_cluster::ClusterWeight,
    },
    r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern},
};
use prost::Message;

use super::{
    Draft,
    address::{Target, host_topic},
    wire,
};
use crate::{
    model::{
        Destination, HttpMatch, HttpRoute, Retries, RetryCondition, Seconds, StringMatch,
        WeightedDestination,
    },
    world::{Topic, World},
};

pub(super) fn compile(
    world: &World,
    name: &Arc<str>,
    topics: &mut BTreeSet<Topic>,
) -> Option<Draft> {
    let mut clusters = BTreeSet::new();
    let routes = match Target::parse(world, name, topics)? {
        Target::Instance { .. } => {
            clusters.insert(name.to_string());
            vec![everything(name)]
        }
        // A subset is chosen by a route; it has none of its own.
        Target::Service {
            subset: Some(_), ..
        } => return None,
        Target::Service { host, port, .. } => match world.catalog.routes(host.as_str()) {
            Some((_, written)) if !written.http.is_empty() => written
                .http
                .iter()
                .flat_map(|route| {
                    let split = split(world, &route.route, port.number.get(), topics);
                    clusters.extend(split.iter().map(|(cluster, _)| cluster.clone()));
                    http_route(route, &split)
                })
                .collect(),
            Some(_) | None => {
                clusters.insert(name.to_string());
                vec![everything(name)]
            }
        },
    };
    let message = RouteConfiguration {
        name: name.to_string(),
        virtual_hosts: vec![VirtualHost {
            name: name.to_string(),
            // The destination was chosen by address (or by xds:/// name): its authority is not
            // asked again.
            domains: vec!["*".to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    };
    Some(Draft {
        value: message.encode_to_vec(),
        dependents: clusters.iter().map(|name| cluster(name)).collect(),
    })
}

/// A dependent cluster.
pub(super) fn cluster(name: &str) -> ResourceName {
    ResourceName {
        kind: ResourceType::Cluster,
        name: name.into(),
    }
}

/// Cluster names with their share. What no port can be told for gets the dialled one: a cluster
/// that does not exist, so only its share is unroutable.
pub(super) fn split(
    world: &World,
    destinations: &[WeightedDestination],
    dialled: u16,
    topics: &mut BTreeSet<Topic>,
) -> Vec<(String, u32)> {
    destinations
        .iter()
        .map(|weighted| {
            let Destination { host, subset, port } = &weighted.destination;
            topics.insert(host_topic(host));
            let service = world
                .catalog
                .service(host.as_str())
                .map(|(_, service)| service);
            let port = match (port, service.map(|service| service.ports.as_slice())) {
                (Some(port), _) => port.get(),
                (None, Some([only])) => only.number.get(),
                (None, Some(_) | None) => dialled,
            };
            let name = Target::cluster_name(host, port, subset.as_deref());
            (name, weighted.weight)
        })
        .collect()
}

fn everything(cluster: &str) -> Route {
    Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        action: Some(Action::Route(RouteAction {
            timeout: wire::duration(Duration::ZERO),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..RouteAction::default()
        })),
        ..Route::default()
    }
}

/// One route per match, since Envoy has no "any of".
fn http_route(route: &HttpRoute, split: &[(String, u32)]) -> Vec<Route> {
    let any = [HttpMatch::default()];
    let matches = if route.matches.is_empty() {
        &any[..]
    } else {
        &route.matches
    };
    let timeout = route
        .timeout
        .map_or(Duration::ZERO, |Seconds(timeout)| timeout);
    let action = RouteAction {
        timeout: wire::duration(timeout),
        // The same deadline in gRPC's word (gRFC A31).
        max_stream_duration: (!timeout.is_zero()).then(|| MaxStreamDuration {
            max_stream_duration: wire::duration(timeout),
            ..MaxStreamDuration::default()
        }),
        retry_policy: route.retries.as_ref().and_then(retry_policy),
        cluster_specifier: Some(cluster_specifier(split)),
        ..RouteAction::default()
    };
    matches
        .iter()
        .map(|matches| Route {
            name: route.name.clone().unwrap_or_default(),
            r#match: Some(route_match(matches)),
            action: Some(Action::Route(action.clone())),
            ..Route::default()
        })
        .collect()
}

fn cluster_specifier(split: &[(String, u32)]) -> ClusterSpecifier {
    if let [(only, _)] = split {
        return ClusterSpecifier::Cluster(only.clone());
    }
    let clusters = split
        .iter()
        .map(|(name, weight)| ClusterWeight {
            name: name.clone(),
            weight: wire::u32_value(*weight),
            ..ClusterWeight::default()
        })
        .collect();
    ClusterSpecifier::WeightedClusters(WeightedCluster {
        clusters,
        ..WeightedCluster::default()
    })
}

fn route_match(matches: &HttpMatch) -> RouteMatch {
    let path = match &matches.uri {
        None | Some(StringMatch::Present) => PathSpecifier::Prefix("/".to_owned()),
        Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(StringMatch::Prefix(path)) => PathSpecifier::Prefix(path.clone()),
        Some(StringMatch::Regex(regex)) => PathSpecifier::SafeRegex(expression(regex)),
    };
    let pseudo = [
        (":method", &matches.method),
        (":authority", &matches.authority),
    ];
    let pseudo = pseudo
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_ref()?)));
    let headers = matches
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value));
    RouteMatch {
        path_specifier: Some(path),
        headers: pseudo
            .chain(headers)
            .map(|(name, value)| header(name, value))
            .collect(),
        ..RouteMatch::default()
    }
}

fn header(name: &str, value: &StringMatch) -> HeaderMatcher {
    let pattern = match value {
        StringMatch::Exact(text) => Some(MatchPattern::Exact(text.clone())),
        StringMatch::Prefix(text) => Some(MatchPattern::Prefix(text.clone())),
        StringMatch::Regex(text) => Some(MatchPattern::SafeRegex(expression(text))),
        StringMatch::Present => None,
    };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(match pattern {
            None => HeaderMatchSpecifier::PresentMatch(true),
            Some(pattern) => HeaderMatchSpecifier::StringMatch(StringMatcher {
                match_pattern: Some(pattern),
                ..StringMatcher::default()
            }),
        }),
        ..HeaderMatcher::default()
    }
}

pub(super) fn expression(regex: &str) -> RegexMatcher {
    RegexMatcher {
        regex: regex.to_owned(),
        ..RegexMatcher::default()
    }
}

fn retry_policy(retries: &Retries) -> Option<RetryPolicy> {
    if retries.attempts == 0 {
        return None;
    }
    let words: Vec<_> = retries
        .conditions()
        .iter()
        .copied()
        .map(RetryCondition::as_str)
        .collect();
    Some(RetryPolicy {
        retry_on: words.join(","),
        num_retries: wire::u32_value(retries.attempts),
        per_try_timeout: retries
            .per_try_timeout
            .and_then(|Seconds(time)| wire::duration(time)),
        // Envoy's own defaults, said, so that every client waits alike.
        retry_back_off: Some(retry_policy::RetryBackOff {
            base_interval: wire::duration(BACKOFF_BASE),
            max_interval: wire::duration(BACKOFF_MAX),
        }),
        ..RetryPolicy::default()
    })
}

const BACKOFF_BASE: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(250);
