//! What the user of the mesh has written: 100 routes with retries, 100 rules, ejection.

use serde_json::{Value, json};

use crate::scenario::{Pool, Scenario, Way};

pub(super) const NAMESPACE: &str = "bench";
pub(super) const HOST: &str = "echo.bench.svc.cluster.local";

const ROUTES: usize = 100;
const RULES: usize = 100;

/// The inbound port's, as the sidecar's settings name it.
pub(super) fn protocol(scenario: &Scenario) -> &'static str {
    if scenario.is_opaque() {
        "tcp"
    } else if scenario.is_http1() {
        "http1"
    } else {
        "http2"
    }
}

/// Of a next hop on `port`.
pub(super) fn all(scenario: &Scenario, port: u16) -> Vec<Value> {
    let mut all = vec![
        service(scenario, port),
        destination(scenario.pool.as_ref()),
        rules(scenario),
    ];
    if !scenario.is_opaque() {
        all.push(routes());
    }
    all
}

fn service(scenario: &Scenario, port: u16) -> Value {
    let protocol = if scenario.is_opaque() {
        "TCP"
    } else if scenario.is_http1() {
        "HTTP"
    } else {
        "GRPC"
    };
    let labels = match scenario.way {
        Way::Hop => json!({}),
        Way::Pair => json!({ "security.istio.io/tlsMode": "istio" }),
    };
    let endpoints = scenario.endpoints_at(port).into_iter().map(|endpoint| {
        json!({
            "address": endpoint.ip().to_string(),
            "ports": { "main": endpoint.port() },
            "labels": labels,
        })
    });
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": { "name": "echo", "namespace": NAMESPACE },
        "spec": {
            "hosts": [HOST],
            "ports": [{ "number": 80, "name": "main", "protocol": protocol }],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "endpoints": endpoints.collect::<Vec<_>>(),
            "subjectAltNames": [format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/server")],
        },
    })
}

/// The seeds' DestinationRule, its limits where the scenario has them.
fn destination(pool: Option<&Pool>) -> Value {
    let mut policy = json!({
        "loadBalancer": { "simple": "LEAST_CONN" },
        "outlierDetection": {
            "consecutiveGatewayErrors": 5,
            "interval": "30s",
            "baseEjectionTime": "30s",
            "maxEjectionPercent": 50,
            "minHealthPercent": 70,
        },
    });
    if let Some(pool) = pool {
        policy["connectionPool"] = json!({
            "tcp": { "maxConnections": pool.connections_max, "connectTimeout": "30s" },
            "http": {
                "http1MaxPendingRequests": pool.pending_max,
                "http2MaxRequests": pool.requests_max,
                "maxRequestsPerConnection": pool.requests_per_connection_max,
                "maxRetries": 3,
            },
        });
    }
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": "echo", "namespace": NAMESPACE },
        "spec": { "host": HOST, "trafficPolicy": policy },
    })
}

/// The last one fits.
fn routes() -> Value {
    let retries = json!({
        "attempts": 2,
        "perTryTimeout": "2s",
        "retryOn": "connect-failure,refused-stream,unavailable,cancelled",
    });
    let routes = (0..ROUTES).map(|i| {
        let mut route = json!({
            "name": format!("route-{i}"),
            "route": [{ "destination": { "host": HOST } }],
            "timeout": "10s",
            "retries": retries,
        });
        if i + 1 < ROUTES {
            route["match"] = json!([{ "uri": { "prefix": format!("/other.v1.Service{i}/") } }]);
        }
        route
    });
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": { "name": "echo", "namespace": NAMESPACE },
        "spec": { "hosts": [HOST], "http": routes.collect::<Vec<_>>() },
    })
}

/// The last one allows. Those of opaque bytes can name no path.
fn rules(scenario: &Scenario) -> Value {
    let rules = (0..RULES).map(|i| {
        let account = if i + 1 == RULES {
            "client".to_owned()
        } else {
            format!("other-{i}")
        };
        let principal = format!("cluster.local/ns/{NAMESPACE}/sa/{account}");
        let mut rule = json!({ "from": [{ "source": { "principals": [principal] } }] });
        if !scenario.is_opaque() {
            rule["to"] = json!([{ "operation": { "paths": ["/bench.v1.*"] } }]);
        }
        rule
    });
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "echo", "namespace": NAMESPACE },
        "spec": {
            "selector": { "matchLabels": { "app": "server" } },
            "action": "ALLOW",
            "rules": rules.collect::<Vec<_>>(),
        },
    })
}
