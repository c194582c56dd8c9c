//! RDS.

#![expect(deprecated, reason = "deprecated forms of matches are still valid xDS")]

use std::time::Duration;

use heddle_proto::xds::{
    envoy::{
        config::route::v3::{
            HeaderMatcher, RetryPolicy as WireRetry, Route as WireRoute, RouteAction,
            RouteMatch as WireMatch, VirtualHost as WireHost, WeightedCluster,
            header_matcher::HeaderMatchSpecifier,
            retry_policy::RetryBackOff,
            route::Action,
            route_action::{ClusterSpecifier, MaxStreamDuration},
            route_match::PathSpecifier,
            weighted_cluster::{ClusterWeight, RandomValueSpecifier},
        },
        r#type::matcher::v3::RegexMatcher,
    },
    google::protobuf::Duration as WireDuration,
    http_filters::rbac::v3::RbacPerRoute,
};

use super::*;
use crate::{
    retry::{RetryOn, RetryPolicy},
    route::{PathMatch, Route},
};

fn good() -> RouteConfiguration {
    RouteConfiguration {
        name: "echo:80".to_owned(),
        virtual_hosts: vec![WireHost {
            name: "echo".to_owned(),
            domains: vec!["echo.shop".to_owned(), "*".to_owned()],
            routes: vec![route()],
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn route() -> WireRoute {
    WireRoute {
        name: "all".to_owned(),
        r#match: Some(WireMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            headers: vec![HeaderMatcher {
                name: "x".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        }),
        action: Some(Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters: vec![weight("v1", 1), weight("v2", 3)],
                ..Default::default()
            })),
            timeout: seconds(0),
            retry_policy: Some(WireRetry {
                retry_on: "unavailable".to_owned(),
                ..Default::default()
            }),
            // The same for gRPC.
            max_stream_duration: Some(MaxStreamDuration::default()),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn weight(name: &str, weight: u32) -> ClusterWeight {
    ClusterWeight {
        name: name.to_owned(),
        weight: u32_value(weight),
        ..Default::default()
    }
}

fn with_route(route: WireRoute) -> RouteConfiguration {
    let mut table = good();
    table.virtual_hosts[0].routes = vec![route];
    table
}

fn matches(route: &mut WireRoute) -> &mut WireMatch {
    route.r#match.as_mut().unwrap()
}

fn action(route: &mut WireRoute) -> &mut RouteAction {
    match &mut route.action {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

fn split(route: &mut WireRoute) -> &mut WeightedCluster {
    match &mut action(route).cluster_specifier {
        Some(ClusterSpecifier::WeightedClusters(split)) => split,
        other => panic!("{other:?}"),
    }
}

fn retry(route: &mut WireRoute) -> &mut WireRetry {
    action(route).retry_policy.as_mut().unwrap()
}

fn seconds(seconds: i64) -> Option<WireDuration> {
    Some(WireDuration { seconds, nanos: 0 })
}

fn regex(pattern: &str) -> Option<PathSpecifier> {
    Some(PathSpecifier::SafeRegex(RegexMatcher {
        regex: pattern.to_owned(),
        ..Default::default()
    }))
}

fn back_off(base: Option<WireDuration>, max: Option<WireDuration>) -> Option<RetryBackOff> {
    Some(RetryBackOff {
        base_interval: base,
        max_interval: max,
    })
}

fn read(change: impl FnOnce(&mut WireRoute)) -> Arc<Route> {
    let mut route = route();
    change(&mut route);
    let Piece::Routes(table) = accepted(&with_route(route)).piece else {
        panic!("they are routes");
    };
    Arc::clone(&table.hosts()[0].routes[0])
}

#[test]
fn a_table_that_would_send_requests_elsewhere_is_refused() {
    check_refused(
        &good(),
        |table| table,
        "",
        &[
            ("name", |t| t.name.clear()),
            ("vhds", |t| t.vhds = Some(Default::default())),
            ("typed_per_filter_config.rules", |t| {
                let any = pack(&RbacPerRoute::default());
                t.typed_per_filter_config.insert("rules".to_owned(), any);
            }),
        ],
    );
    check_refused(
        &good().virtual_hosts[0],
        |host| RouteConfiguration {
            virtual_hosts: vec![
                WireHost {
                    domains: vec!["a".to_owned()],
                    ..Default::default()
                },
                host,
            ],
            ..good()
        },
        "virtual_hosts[1]",
        &[
            ("require_tls", |h| h.require_tls = 1),
            ("matcher", |h| h.matcher = Some(Default::default())),
            ("typed_per_filter_config.rules", |h| {
                let any = pack(&RbacPerRoute::default());
                h.typed_per_filter_config.insert("rules".to_owned(), any);
            }),
            ("domains", |h| h.domains.clear()),
            ("domains[1]", |h| h.domains[1].clear()),
            ("domains[1]", |h| h.domains[1] = "Echo".to_owned()),
            ("domains[1]", |h| h.domains[1] = "a.*.b".to_owned()),
            ("domains[1]", |h| h.domains[1] = "*echo*".to_owned()),
            ("domains[1]", |h| h.domains[1] = "**".to_owned()),
            ("domains[1]", |h| h.domains[1] = "echo.shop".to_owned()),
            ("domains[1]", |h| h.domains[1] = "a".to_owned()),
        ],
    );
}

#[test]
fn a_match_that_is_not_understood_is_refused() {
    check_refused(
        &route(),
        with_route,
        "virtual_hosts[0].routes[0]",
        &[
            ("match", |r| r.r#match = None),
            ("match.case_sensitive", |r| {
                matches(r).case_sensitive = bool_value(false);
            }),
            ("match.runtime_fraction", |r| {
                matches(r).runtime_fraction = Some(Default::default());
            }),
            ("match.query_parameters", |r| {
                matches(r).query_parameters = vec![Default::default()];
            }),
            ("match.cookies", |r| {
                matches(r).cookies = vec![Default::default()];
            }),
            ("match.grpc", |r| matches(r).grpc = Some(Default::default())),
            ("match.tls_context", |r| {
                matches(r).tls_context = Some(Default::default());
            }),
            ("match.dynamic_metadata", |r| {
                matches(r).dynamic_metadata = vec![Default::default()];
            }),
            ("match.filter_state", |r| {
                matches(r).filter_state = vec![Default::default()];
            }),
            ("match.path_specifier", |r| matches(r).path_specifier = None),
            ("match.path_specifier", |r| {
                let connect = PathSpecifier::ConnectMatcher(Default::default());
                matches(r).path_specifier = Some(connect);
            }),
            ("match.path_specifier", |r| {
                let separated = PathSpecifier::PathSeparatedPrefix("/a".to_owned());
                matches(r).path_specifier = Some(separated);
            }),
            ("match.path_specifier", |r| {
                let policy = PathSpecifier::PathMatchPolicy(Default::default());
                matches(r).path_specifier = Some(policy);
            }),
            ("match.safe_regex.regex", |r| {
                matches(r).path_specifier = regex("(");
            }),
            ("match.safe_regex.regex", |r| {
                matches(r).path_specifier = regex("/a)|(/b");
            }),
            ("match.safe_regex.regex", |r| {
                matches(r).path_specifier = regex("(a{1000}){1000}");
            }),
            ("match.headers[0].name", |r| {
                matches(r).headers[0].name.clear();
            }),
            ("match.headers[0].name", |r| {
                matches(r).headers[0].name = "X".to_owned();
            }),
            ("match.headers[0].treat_missing_header_as_empty", |r| {
                matches(r).headers[0].treat_missing_header_as_empty = true;
            }),
            ("match.headers[0].range_match", |r| {
                let range = HeaderMatchSpecifier::RangeMatch(Default::default());
                matches(r).headers[0].header_match_specifier = Some(range);
            }),
            ("typed_per_filter_config.rules", |r| {
                let any = pack(&RbacPerRoute::default());
                r.typed_per_filter_config.insert("rules".to_owned(), any);
            }),
        ],
    );
}

#[test]
fn an_action_that_is_not_understood_is_refused() {
    check_refused(
        &route(),
        with_route,
        "virtual_hosts[0].routes[0]",
        &[
            ("action", |r| r.action = None),
            ("action", |r| {
                r.action = Some(Action::Redirect(Default::default()));
            }),
            ("action", |r| {
                r.action = Some(Action::DirectResponse(Default::default()));
            }),
            ("action", |r| {
                r.action = Some(Action::NonForwardingAction(Default::default()));
            }),
            ("route.cluster", |r| action(r).cluster_specifier = None),
            ("route.cluster", |r| {
                action(r).cluster_specifier = Some(ClusterSpecifier::Cluster(String::new()));
            }),
            ("route.cluster", |r| {
                let header = ClusterSpecifier::ClusterHeader("x".to_owned());
                action(r).cluster_specifier = Some(header);
            }),
            ("route.cluster", |r| {
                let plugin = ClusterSpecifier::ClusterSpecifierPlugin("x".to_owned());
                action(r).cluster_specifier = Some(plugin);
            }),
            ("route.weighted_clusters", |r| split(r).clusters.clear()),
            ("route.weighted_clusters", |r| {
                split(r).clusters = vec![weight("v1", 0), weight("v2", 0)];
            }),
            ("route.weighted_clusters", |r| {
                split(r).clusters = vec![weight("v1", u32::MAX), weight("v2", 1)];
            }),
            ("route.weighted_clusters.clusters[1].name", |r| {
                split(r).clusters[1].name.clear();
            }),
            (
                "route.weighted_clusters.clusters[1].typed_per_filter_config.rules",
                |r| {
                    let any = pack(&RbacPerRoute::default());
                    let config = &mut split(r).clusters[1].typed_per_filter_config;
                    config.insert("rules".to_owned(), any);
                },
            ),
            ("route.timeout", |r| action(r).timeout = seconds(-1)),
            ("route.timeout", |r| action(r).timeout = seconds(i64::MAX)),
            ("route.retry_policy.retry_on", |r| {
                retry(r).retry_on = "unavailable,retriable-headers".to_owned();
            }),
            ("route.retry_policy.retriable_status_codes", |r| {
                retry(r).retry_on = "retriable-status-codes".to_owned();
                retry(r).retriable_status_codes = vec![503, 99];
            }),
            ("route.retry_policy.retriable_status_codes", |r| {
                retry(r).retry_on = "retriable-status-codes".to_owned();
                retry(r).retriable_status_codes = vec![65_536 + 503];
            }),
            ("route.retry_policy.per_try_timeout", |r| {
                retry(r).per_try_timeout = seconds(-1);
            }),
            ("route.retry_policy.retry_back_off.base_interval", |r| {
                retry(r).retry_back_off = back_off(seconds(-1), None);
            }),
            ("route.retry_policy.retry_back_off.max_interval", |r| {
                retry(r).retry_back_off = back_off(seconds(1), seconds(-1));
            }),
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one row per field")]
fn what_routes_have_beyond_the_subset_is_counted() {
    check_ignored(
        &good(),
        |table| table,
        &[
            ("request_headers_to_add", |t| {
                t.request_headers_to_add = vec![Default::default()];
            }),
            ("ignore_port_in_host_matching", |t| {
                t.ignore_port_in_host_matching = true;
            }),
            ("validate_clusters", |t| {
                t.validate_clusters = bool_value(true);
            }),
            ("settings of a filter we do not have", |t| {
                t.typed_per_filter_config
                    .insert("cors".to_owned(), Any::default());
            }),
            ("rate_limits", |t| {
                t.virtual_hosts[0].rate_limits = vec![Default::default()];
            }),
            ("cors", |t| {
                t.virtual_hosts[0].cors = Some(Default::default());
            }),
            ("retry_policy of a host", |t| {
                t.virtual_hosts[0].retry_policy = Some(Default::default());
            }),
        ],
    );
    check_ignored(
        &route(),
        with_route,
        &[
            ("decorator", |r| r.decorator = Some(Default::default())),
            ("metadata", |r| r.metadata = Some(Default::default())),
            ("request_headers_to_add", |r| {
                r.request_headers_to_add = vec![Default::default()];
            }),
            ("prefix_rewrite", |r| {
                action(r).prefix_rewrite = "/x".to_owned();
            }),
            ("idle_timeout", |r| action(r).idle_timeout = seconds(1)),
            ("request_mirror_policies", |r| {
                action(r).request_mirror_policies = vec![Default::default()];
            }),
            ("hash_policy", |r| {
                action(r).hash_policy = vec![Default::default()];
            }),
            ("total_weight", |r| split(r).total_weight = u32_value(4)),
            ("runtime_key_prefix", |r| {
                split(r).runtime_key_prefix = "x".to_owned();
            }),
            ("random_value_specifier", |r| {
                let header = RandomValueSpecifier::HeaderName("x".to_owned());
                split(r).random_value_specifier = Some(header);
            }),
            ("cluster_header", |r| {
                split(r).clusters[0].cluster_header = "x".to_owned();
            }),
            ("metadata_match", |r| {
                split(r).clusters[0].metadata_match = Some(Default::default());
            }),
            ("retry_priority", |r| {
                retry(r).retry_priority = Some(Default::default());
            }),
            ("retriable_headers", |r| {
                retry(r).retriable_headers = vec![Default::default()];
            }),
            ("host_selection_retry_max_attempts", |r| {
                retry(r).host_selection_retry_max_attempts = 1;
            }),
        ],
    );
    let mut bytes = good().encode_to_vec();
    bytes.extend(UNKNOWN);
    let decoded = decode(ResourceType::Route.type_url(), &bytes).unwrap();
    assert_eq!(decoded.ignored, 1);
}

#[test]
fn a_timeout_is_envoys_default_and_zero_is_none() {
    for (wire, timeout) in [
        (None, Some(Duration::from_secs(15))),
        (seconds(0), None),
        (seconds(1), Some(Duration::from_secs(1))),
    ] {
        assert_eq!(read(|r| action(r).timeout = wire).timeout, timeout);
    }
}

#[test]
fn retries_have_envoys_defaults() {
    let policy = |change: fn(&mut WireRetry)| -> Option<RetryPolicy> {
        read(|r| change(retry(r))).retry.clone()
    };
    let default = policy(|_| {}).unwrap();
    assert_eq!(default.retries_max.get(), 1);
    assert_eq!(default.attempt_timeout, None);
    assert_eq!(
        (default.backoff_base, default.backoff_max),
        (Duration::from_millis(25), Duration::from_millis(250))
    );
    assert!(policy(|p| p.num_retries = u32_value(0)).is_none());
    assert!(policy(|p| p.retry_on.clear()).is_none());
    let capped = policy(|p| p.retry_back_off = back_off(seconds(3), seconds(1))).unwrap();
    assert_eq!(capped.backoff_max, Duration::from_secs(3));
    let never = policy(|p| p.per_try_timeout = seconds(0)).unwrap();
    assert_eq!(never.attempt_timeout, None);
    for words in [
        "connect-failure",
        "refused-stream",
        "reset",
        "5xx",
        "gateway-error",
        "retriable-4xx",
        "cancelled, deadline-exceeded ,resource-exhausted,internal,unavailable",
    ] {
        let route = read(|r| retry(r).retry_on = words.to_owned());
        let (expected, unknown) = RetryOn::parse(words);
        assert!(unknown.is_empty());
        assert_eq!(route.retry.as_ref().unwrap().on, expected, "{words}");
    }
}

#[test]
fn a_path_is_matched_as_its_kind_says() {
    for (specifier, fits, fits_not) in [
        (PathSpecifier::Prefix(String::new()), "/a", None),
        (PathSpecifier::Prefix("/a".to_owned()), "/ab", Some("/b")),
        (PathSpecifier::Path("/a".to_owned()), "/a", Some("/a/")),
        (regex("/a|/ab").unwrap(), "/ab", Some("/abc")),
    ] {
        let route = read(|r| matches(r).path_specifier = Some(specifier));
        let path: &PathMatch = &route.matches.path;
        assert!(path.fits(fits), "{path:?}");
        assert!(fits_not.is_none_or(|other| !path.fits(other)), "{path:?}");
    }
}
