use super::*;

const WEB: &str = "shop/web/web-1";
const USER: &str = "user-service.shop.svc.cluster.local:8080";
const OTHER: &str = "other.shop.svc.cluster.local:80";

fn route(name: &str) -> ResourceName {
    ResourceName {
        kind: ResourceType::Route,
        name: name.into(),
    }
}

/// Proxies, of which the store knows these.
fn known(node_ids: &[&str]) -> Proxies {
    let proxies = Proxies::default();
    let node_ids = node_ids.iter().map(|node_id| Arc::from(*node_id));
    proxies.know(Arc::new(node_ids.collect()));
    proxies
}

/// A sidecar's stream that was sent routes, and accepted them.
fn holds(proxies: &Proxies, routes: &[&str]) -> StreamId {
    let id = proxies.connect(Introduction {
        node_id: WEB.into(),
        identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
        flavour: HEDDLE,
        build: String::new(),
    });
    let sent = routes.iter();
    let sent: Vec<_> = sent
        .map(|name| ((*name).into(), Some("1".into())))
        .collect();
    proxies.sent(id, ResourceType::Route, &sent);
    proxies.accepted(id, ResourceType::Route, &sent);
    id
}

fn reports(proxies: &Proxies, active: &[(&str, &str)]) -> ReportId {
    let active = active.iter();
    let active = active.map(|(name, version)| (route(name), Arc::from(*version)));
    let report = Reported {
        active: active.collect(),
        ..Reported::default()
    };
    proxies.report_first(WEB, report)
}

/// Where sidecars are with version 2 of the user service's routes.
#[track_caller]
fn check(proxies: &Proxies, expected: Option<Standing>) {
    let routes = HashMap::from([(route(USER), Some(Arc::from("2")))]);
    let standings = proxies.standings(&routes, []);
    let found: Vec<_> = standings
        .iter()
        .map(|(node_id, standing)| (&**node_id, *standing))
        .collect();
    let expected: Vec<_> = expected
        .map(|standing| (WEB, standing))
        .into_iter()
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_a_sidecar_reports_decides() {
    let proxies = known(&[WEB]);
    holds(&proxies, &[USER]);
    check(&proxies, Some(Standing::Behind));
    reports(&proxies, &[(USER, "1")]);
    check(&proxies, Some(Standing::Behind));
    reports(&proxies, &[(USER, "2")]);
    check(&proxies, Some(Standing::Active));
    // It holds them and has not made them active: the report is complete.
    reports(&proxies, &[]);
    check(&proxies, Some(Standing::Behind));
}

#[test]
fn of_an_unheard_sidecar_anything_is_possible_until_it_reports() {
    let proxies = known(&[WEB]);
    check(&proxies, Some(Standing::Away));
    // Its stream is back; what it subscribes to has not come yet.
    let stream = holds(&proxies, &[]);
    check(&proxies, Some(Standing::Behind));
    reports(&proxies, &[(OTHER, "1")]);
    check(&proxies, None);
    // A report alone is enough, also of what is not subscribed any more.
    proxies.disconnect(stream);
    reports(&proxies, &[(USER, "1")]);
    check(&proxies, Some(Standing::Behind));
}

#[test]
fn one_that_went_may_go_by_what_it_had() {
    let proxies = known(&[WEB]);
    let stream = holds(&proxies, &[OTHER]);
    let report = reports(&proxies, &[(OTHER, "1")]);
    proxies.forget_report(&report);
    proxies.disconnect(stream);
    check(&proxies, None);
    // Sent, and never reported as active: it may be by now.
    let stream = holds(&proxies, &[USER]);
    proxies.disconnect(stream);
    check(&proxies, Some(Standing::Away));
    // Reported, from a stream before.
    let report = reports(&proxies, &[(OTHER, "1"), (USER, "1")]);
    proxies.forget_report(&report);
    check(&proxies, Some(Standing::Away));
    // The store gives it up.
    proxies.know(Arc::default());
    check(&proxies, None);
    assert!(proxies.state.lock().departed.is_empty());
}

#[test]
fn who_drains_is_leaving_until_its_last_stream_has_gone() {
    let proxies = known(&[WEB]);
    let (first, second) = (holds(&proxies, &[]), holds(&proxies, &[]));
    assert!(!proxies.is_leaving(WEB));
    proxies.drains(WEB.into(), true);
    proxies.registration_ended(WEB);
    proxies.disconnect(first);
    assert!(proxies.is_leaving(WEB));
    proxies.disconnect(second);
    assert!(!proxies.is_leaving(WEB));
    proxies.drains(WEB.into(), true);
    proxies.drains(WEB.into(), false);
    assert!(!proxies.is_leaving(WEB));
    // Without an xDS stream there is nobody to be remembered for.
    proxies.drains(WEB.into(), true);
    proxies.registration_ended(WEB);
    assert!(!proxies.is_leaving(WEB));
}

#[test]
fn who_holds_a_name_is_known_by_it_until_it_is_let_go() {
    let proxies = Proxies::default();
    let connect = |node: &str| {
        proxies.connect(Introduction {
            node_id: node.into(),
            identity: "spiffe://td/ns/shop/sa/web".parse().unwrap(),
            flavour: "envoy",
            build: String::new(),
        })
    };
    let (a, b) = (connect("n/s/a"), connect("n/s/b"));
    let version = Some("1".into());
    for (id, names) in [(a, ["x", "y"]), (b, ["y", "z"])] {
        let what = names.map(|name| (name.into(), version.clone()));
        proxies.sent(id, ResourceType::Route, &what);
        proxies.accepted(id, ResourceType::Route, &what);
    }
    let holders = |name: &str| {
        let held = proxies.held(|held| *held == route(name));
        assert!(held.iter().all(|held| held.in_force == version));
        let mut nodes: Vec<_> = held.iter().map(|held| held.node_id.to_string()).collect();
        nodes.sort();
        nodes
    };
    assert_eq!(holders("x"), ["n/s/a"]);
    assert_eq!(holders("y"), ["n/s/a", "n/s/b"]);
    assert_eq!(proxies.held(|name| *name.name != *"y").len(), 2);
    proxies.retain(a, |name| *name.name == *"x");
    assert_eq!(holders("y"), ["n/s/b"]);
    proxies.disconnect(b);
    assert_eq!(holders("y").len() + holders("z").len(), 0);
    assert_eq!(holders("x"), ["n/s/a"]);
    assert_eq!(proxies.state.lock().by_name.len(), 1);
}
