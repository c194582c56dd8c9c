//! What Istio's control plane adds to an Envoy, as far as the plain program has it: statistics of
//! gRPC, fault and CORS filters, 100 routes with retries, 100 rules inbound, ejection and the
//! access log. Its own filters (peer metadata, labelled statistics, ALPN) are only in its build.

use serde_json::{Value, json};

use super::{Pair, Side};

/// As many as Heddle has.
const ROUTES: usize = 100;
const RULES: usize = 100;

pub(super) fn filters(side: Side) -> Vec<Value> {
    let filter = |name: &str, kind: &str| {
        json!({
            "name": name,
            "typed_config": {
                "@type": format!("type.googleapis.com/envoy.extensions.filters.http.{kind}"),
            },
        })
    };
    let mut grpc_stats = filter("grpc_stats", "grpc_stats.v3.FilterConfig");
    grpc_stats["typed_config"]["emit_filter_state"] = json!(true);
    grpc_stats["typed_config"]["stats_for_all_methods"] = json!(false);
    let mut filters = vec![
        grpc_stats,
        filter("fault", "fault.v3.HTTPFault"),
        filter("cors", "cors.v3.Cors"),
    ];
    if side == Side::Inbound {
        filters.insert(0, rules());
    }
    filters
}

/// The last one allows.
fn rules() -> Value {
    let rule = |i: usize| {
        let name = if i + 1 == RULES {
            Pair::CLIENT.to_owned()
        } else {
            format!("spiffe://cluster.local/ns/bench/sa/other-{i}")
        };
        let rule = json!({
            "permissions": [{ "url_path": { "path": { "prefix": "/bench.v1." } } }],
            "principals": [{ "authenticated": { "principal_name": { "exact": name } } }],
        });
        // Policies are looked through in the order of their names.
        (format!("rule-{i:03}"), rule)
    };
    let policies: serde_json::Map<_, _> = (0..RULES).map(rule).collect();
    json!({
        "name": "rbac",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "action": "ALLOW", "policies": policies },
        },
    })
}

/// `any` behind those that do not match.
pub(super) fn routes(any: &Value) -> Vec<Value> {
    let other = |i: usize| {
        let mut route = any.clone();
        route["match"] = json!({ "prefix": format!("/other.v1.Service{i}/") });
        route
    };
    let mut routes: Vec<_> = (1..ROUTES).map(other).chain([any.clone()]).collect();
    for route in &mut routes {
        route["route"]["retry_policy"] = json!({
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
            "num_retries": 2,
        });
    }
    routes
}

pub(super) fn ejection() -> Value {
    json!({
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "interval": "10s",
        "base_ejection_time": "30s",
        "max_ejection_percent": 50,
    })
}

/// Formatted as Istio does, written to nowhere.
pub(super) fn access_log() -> Value {
    let format = "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" \
        %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% \
        %CONNECTION_TERMINATION_DETAILS% \"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" \
        %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \
        \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" \"%REQ(X-REQUEST-ID)%\" \
        \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER% %UPSTREAM_LOCAL_ADDRESS% \
        %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% \
        %ROUTE_NAME%\n";
    json!({
        "name": "file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": "/dev/null",
            "log_format": { "text_format_source": { "inline_string": format } },
        },
    })
}
