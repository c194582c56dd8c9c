//! Without interception the sidecar listens elsewhere than the application does: modes and rules
//! name the application's port.

use std::{collections::HashMap, sync::Arc};

use heddle_policy::{
    authz::{Condition, Rule, Rules},
    snapshot::{Inbound, InboundPort, MtlsMode, Protocol, Snapshot},
};
use heddle_tests::{
    call::{Caller, Feed, http1_request},
    echo::{App, Speaks},
    mesh::{Authority, ECHO, Pair, Plan, start_server},
};

fn plan() -> Plan {
    Plan {
        protocol: Protocol::Http1,
        ..Plan::default()
    }
}

fn port(mtls: MtlsMode, rules: Rules) -> Arc<InboundPort> {
    Arc::new(InboundPort {
        mtls,
        protocol: Protocol::Http1,
        authz: Arc::new(rules),
    })
}

fn inbound(ports: HashMap<u16, Arc<InboundPort>>, default: Arc<InboundPort>) -> Snapshot {
    Snapshot {
        inbound: Some(Arc::new(Inbound { ports, default })),
        ..Snapshot::default()
    }
}

#[tokio::test]
async fn a_rule_about_the_applications_port_holds_and_one_about_the_listeners_does_not() {
    let app = App::good(Speaks::Http1).await;
    let mut pair = Pair::start(app.address, &plan());
    let (own, listens) = (app.address.port(), pair.inbound.port());
    assert_ne!(own, listens);
    for (denied, status) in [(own, 403), (listens, 200)] {
        let rules = Rules::new(vec![Rule::new("a port", Condition::Port(denied))], None);
        let everywhere = port(MtlsMode::Strict, rules);
        pair.server.configure(inbound(HashMap::new(), everywhere));
        let mut caller = Caller::http1(pair.entry).await;
        let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
        assert_eq!(answer.status, status, "{denied} is denied");
        let reason = (status == 403).then_some("denied");
        assert_eq!(pair.server.record().await.reason, reason);
    }
    assert_eq!(app.script.calls(), 1);
}

#[tokio::test]
async fn the_mode_of_the_applications_port_holds_and_one_of_the_listeners_does_not() {
    let app = App::good(Speaks::Http1).await;
    let credentials = Authority::new().credentials(ECHO);
    let server = start_server(credentials, app.address, &plan());
    let at = server.plane.bound.inbound_ports[0];
    for (named, status) in [(app.address.port(), 200), (at.port(), 403)] {
        let ports = HashMap::from([(named, port(MtlsMode::Permissive, Rules::default()))]);
        server.configure(inbound(ports, port(MtlsMode::Strict, Rules::default())));
        let mut caller = Caller::http1(at).await;
        let answer = caller.call(http1_request("GET", "/", Feed::empty())).await;
        assert_eq!(answer.status, status, "{named} is permissive");
    }
}
