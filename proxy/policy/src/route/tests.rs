mod random;

use super::*;
use crate::snapshot::ClusterName;

const NO_HEADERS: &[(&str, &[u8])] = &[];

fn route(name: &str, path: PathMatch, headers: Vec<HeaderMatch>) -> Arc<Route> {
    Arc::new(Route {
        name: name.into(),
        matches: RouteMatch { path, headers },
        clusters: WeightedClusters::single(ClusterName(name.into())),
        timeout: None,
        retry: None,
    })
}

fn header(name: &str, value: ValueMatch) -> HeaderMatch {
    HeaderMatch {
        name: name.into(),
        value,
        is_inverted: false,
    }
}

fn head<'a>(authority: &'a str, path: &'a str, headers: &'a dyn Headers) -> RequestHead<'a> {
    RequestHead {
        method: "GET",
        scheme: "http",
        authority,
        path,
        headers,
    }
}

/// Which of the domains takes an authority.
#[track_caller]
fn check_domain(domains: &[&str], authority: &str, expected: Option<&str>) {
    let hosts = domains.iter().map(|domain| VirtualHost {
        domains: vec![(*domain).into()],
        routes: vec![route(domain, PathMatch::Any, vec![])],
    });
    let table = RouteTable::new("test", hosts.collect());
    let found = table.find(&head(authority, "/", &NO_HEADERS));
    assert_eq!(found.map(|route| &*route.name), expected, "{authority}");
}

#[test]
fn the_closest_domain_wins() {
    let domains = ["*", "a.*", "a.b.*", "*.c", "*.b.c", "a.b.c", "d:80"];
    check_domain(&domains, "a.b.c", Some("a.b.c"));
    check_domain(&domains, "x.b.c", Some("*.b.c"));
    check_domain(&domains, "a.c", Some("*.c"));
    check_domain(&domains, "a.b.x", Some("a.b.*"));
    check_domain(&domains, "a.x", Some("a.*"));
    check_domain(&domains, "x", Some("*"));
    check_domain(&domains, ".c", Some("*"));
    check_domain(&["a"], "b", None);
}

#[test]
fn a_port_is_looked_past_before_the_wildcard() {
    check_domain(&["*", "a"], "a:80", Some("a"));
    check_domain(&["*", "a", "a:80"], "a:80", Some("a:80"));
    check_domain(&["*", "*.b"], "a.b:80", Some("*.b"));
    check_domain(&["[::1]", "*"], "[::1]:80", Some("[::1]"));
    check_domain(&["[::1]", "*"], "[::1]", Some("[::1]"));
    check_domain(&["a:"], "a", None);
}

#[test]
fn the_first_matching_route_wins_and_no_other_host_is_tried() {
    let table = RouteTable::new(
        "test",
        vec![
            VirtualHost {
                domains: vec!["a".into()],
                routes: vec![
                    route("exact", PathMatch::Exact("/x".into()), vec![]),
                    route(
                        "regex",
                        PathMatch::Regex(Regex::new(r"\A/x[0-9]+\z").unwrap()),
                        vec![],
                    ),
                    route("prefix", PathMatch::Prefix("/x".into()), vec![]),
                ],
            },
            VirtualHost {
                domains: vec!["*".into()],
                routes: vec![route("any", PathMatch::Any, vec![])],
            },
        ],
    );
    for (path, expected) in [
        ("/x", Some("exact")),
        ("/x12", Some("regex")),
        ("/x/y", Some("prefix")),
        ("/X", None),
    ] {
        let found = table.find(&head("a", path, &NO_HEADERS));
        assert_eq!(found.map(|route| &*route.name), expected, "{path}");
    }
}

/// Whether a condition on `x` holds, and its opposite does not.
#[track_caller]
fn check_header(value: ValueMatch, headers: &[(&str, &[u8])], expected: bool) {
    let mut matches = header("x", value);
    let head = head("a", "/", &headers);
    assert_eq!(matches.fits(&head), expected);
    matches.is_inverted = true;
    assert_eq!(matches.fits(&head), !expected);
}

#[test]
fn a_missing_header_fulfils_nothing_and_every_opposite() {
    check_header(ValueMatch::Present, &[("y", b"1")], false);
    check_header(ValueMatch::Exact("".into()), &[], false);
    check_header(ValueMatch::Prefix("".into()), &[], false);
}

#[test]
fn a_header_is_judged_by_its_value() {
    let one: &[(&str, &[u8])] = &[("X", b"abc")];
    check_header(ValueMatch::Present, one, true);
    check_header(ValueMatch::Exact("abc".into()), one, true);
    check_header(ValueMatch::Exact("ABC".into()), one, false);
    check_header(ValueMatch::Prefix("ab".into()), one, true);
    check_header(ValueMatch::Suffix("bc".into()), one, true);
    check_header(ValueMatch::Contains("b".into()), one, true);
    check_header(ValueMatch::Regex(Regex::new("b").unwrap()), one, false);
    check_header(ValueMatch::Regex(Regex::new("a.c").unwrap()), one, true);
}

#[test]
fn several_values_are_one_text_joined_by_commas() {
    let two: &[(&str, &[u8])] = &[("x", b"a"), ("y", b"z"), ("x", b"b")];
    check_header(ValueMatch::Exact("a,b".into()), two, true);
    check_header(ValueMatch::Exact("a".into()), two, false);
    check_header(ValueMatch::Present, two, true);
}

#[test]
fn a_value_that_is_no_text_is_only_present() {
    let odd: &[(&str, &[u8])] = &[("x", b"a\xff")];
    check_header(ValueMatch::Present, odd, true);
    check_header(ValueMatch::Prefix("a".into()), odd, false);
}

#[test]
fn pseudo_headers_are_parts_of_the_head() {
    let head = head("a:80", "/p", &NO_HEADERS);
    for (name, value) in [
        (":method", "GET"),
        (":authority", "a:80"),
        (":scheme", "http"),
        (":path", "/p"),
    ] {
        assert!(
            header(name, ValueMatch::Exact(value.into())).fits(&head),
            "{name}"
        );
        assert!(
            !header(name, ValueMatch::Exact("no".into())).fits(&head),
            "{name}"
        );
    }
}

/// Nothing but what the control plane makes when nobody wrote a route.
#[test]
fn a_written_route_is_told_from_none() {
    let own = || WeightedClusters::single(ClusterName("a:1".into()));
    let unwritten = Route {
        clusters: own(),
        ..Arc::unwrap_or_clone(route("", PathMatch::Any, vec![]))
    };
    let table = |domains: &[&str], routes: &[&Route]| {
        let routes = routes.iter().map(|route| Arc::new((*route).clone()));
        let host = VirtualHost {
            domains: domains.iter().map(|domain| (*domain).into()).collect(),
            routes: routes.collect(),
        };
        RouteTable::new("a:1", vec![host])
    };
    assert_eq!(table(&["*"], &[&unwritten]).unwritten(), Some(&own()));
    let name = |text: &str| ClusterName(text.into());
    let subset = WeightedClusters::single(name("a:1#v1"));
    let split = WeightedClusters::new(vec![(name("a:1"), 1), (name("b:1"), 0)]).unwrap();
    let present = header("x", ValueMatch::Present);
    let matches = |path, headers| RouteMatch { path, headers };
    let base = || unwritten.clone();
    for written in [
        Route {
            name: "all".into(),
            ..base()
        },
        Route {
            timeout: Some(Duration::from_secs(1)),
            ..base()
        },
        Route {
            clusters: subset,
            ..base()
        },
        Route {
            clusters: split,
            ..base()
        },
        Route {
            matches: matches(PathMatch::Prefix("/a".into()), vec![]),
            ..base()
        },
        Route {
            matches: matches(PathMatch::Any, vec![present]),
            ..base()
        },
    ] {
        assert_eq!(table(&["*"], &[&written]).unwritten(), None, "{written:?}");
    }
    assert_eq!(table(&["*"], &[]).unwritten(), None);
    assert_eq!(table(&["*"], &[&unwritten, &unwritten]).unwritten(), None);
    assert_eq!(table(&["a"], &[&unwritten]).unwritten(), None);
}
