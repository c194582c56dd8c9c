//! What to say of a field that does not belong where it stands.

use super::Kind;

/// Why a field is refused, and where it belongs when that is known.
pub(super) fn explain(kind: Option<Kind>, path: &str, field: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|name| (distance(name, field), *name))
        .filter(|(distance, _)| *distance <= 2)
        .min();
    if let Some((0 | 1, name)) = near {
        return format!("is unknown; did you mean `{name}`?");
    }
    let home = HOMES
        .iter()
        .find(|(of, name, home)| Some(*of) == kind && *name == field && *home != path);
    if let Some((_, _, home)) = home {
        return format!("does not belong here; it belongs in {home}");
    }
    if NOT_IMPLEMENTED.contains(&field) {
        return "is not implemented by this version of Heddle".to_owned();
    }
    match near {
        Some((_, name)) => format!("is unknown; did you mean `{name}`?"),
        None if known.is_empty() => "is unknown; nothing may stand here".to_owned(),
        None => format!("is unknown; known here: {}", known.join(", ")),
    }
}

/// Levenshtein distance without regard to case, of texts short enough to be field names.
fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|text| text.to_ascii_lowercase().into_bytes());
    if a.len().max(b.len()) > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

const POOL_TCP: &str = "spec.trafficPolicy.connectionPool.tcp";
const POOL_HTTP: &str = "spec.trafficPolicy.connectionPool.http";
const OUTLIER: &str = "spec.trafficPolicy.outlierDetection";

/// Fields that are often put in a wrong place, and the right one.
const HOMES: &[(Kind, &str, &str)] = &[
    (Kind::DestinationRule, "maxConnections", POOL_TCP),
    (Kind::DestinationRule, "connectTimeout", POOL_TCP),
    (Kind::DestinationRule, "http1MaxPendingRequests", POOL_HTTP),
    (Kind::DestinationRule, "http2MaxRequests", POOL_HTTP),
    (Kind::DestinationRule, "maxRequestsPerConnection", POOL_HTTP),
    (Kind::DestinationRule, "maxRetries", POOL_HTTP),
    (Kind::DestinationRule, "consecutiveGatewayErrors", OUTLIER),
    (Kind::DestinationRule, "consecutive5xxErrors", OUTLIER),
    (Kind::DestinationRule, "interval", OUTLIER),
    (Kind::DestinationRule, "baseEjectionTime", OUTLIER),
    (Kind::DestinationRule, "maxEjectionPercent", OUTLIER),
    (Kind::DestinationRule, "minHealthPercent", OUTLIER),
    (
        Kind::DestinationRule,
        "simple",
        "spec.trafficPolicy.loadBalancer",
    ),
    (Kind::DestinationRule, "loadBalancer", "spec.trafficPolicy"),
    (
        Kind::DestinationRule,
        "connectionPool",
        "spec.trafficPolicy",
    ),
    (
        Kind::DestinationRule,
        "outlierDetection",
        "spec.trafficPolicy",
    ),
    (Kind::DestinationRule, "subsets", "spec"),
    (Kind::VirtualService, "timeout", "spec.http[]"),
    (Kind::VirtualService, "retries", "spec.http[]"),
    (Kind::VirtualService, "match", "spec.http[]"),
    (Kind::VirtualService, "perTryTimeout", "spec.http[].retries"),
    (Kind::VirtualService, "attempts", "spec.http[].retries"),
    (Kind::VirtualService, "retryOn", "spec.http[].retries"),
    (Kind::VirtualService, "weight", "spec.http[].route[]"),
    (Kind::VirtualService, "destination", "spec.http[].route[]"),
    (
        Kind::VirtualService,
        "subset",
        "spec.http[].route[].destination",
    ),
    (
        Kind::VirtualService,
        "host",
        "spec.http[].route[].destination",
    ),
    (Kind::PeerAuthentication, "mode", "spec.mtls"),
    (Kind::PeerAuthentication, "matchLabels", "spec.selector"),
    (Kind::AuthorizationPolicy, "matchLabels", "spec.selector"),
    (
        Kind::AuthorizationPolicy,
        "principals",
        "spec.rules[].from[].source",
    ),
    (
        Kind::AuthorizationPolicy,
        "namespaces",
        "spec.rules[].from[].source",
    ),
    (
        Kind::AuthorizationPolicy,
        "methods",
        "spec.rules[].to[].operation",
    ),
    (
        Kind::AuthorizationPolicy,
        "paths",
        "spec.rules[].to[].operation",
    ),
    (Kind::AuthorizationPolicy, "action", "spec"),
];

/// Istio's fields that Heddle does not have (yet): a user should not look for a typing error.
const NOT_IMPLEMENTED: &[&str] = &[
    "caCertificates",
    "consistentHash",
    "corsPolicy",
    "credentialName",
    "delegate",
    "directResponse",
    "exportTo",
    "fault",
    "gateways",
    "h2UpgradePolicy",
    "idleTimeout",
    "ignoreUriCase",
    "localityLbSetting",
    "maxConnectionDuration",
    "mirror",
    "mirrorPercentage",
    "mirrors",
    "network",
    "portLevelSettings",
    "provider",
    "queryParams",
    "redirect",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
    "requestPrincipals",
    "notRequestPrincipals",
    "retryRemoteLocalities",
    "rewrite",
    "scheme",
    "sourceLabels",
    "sourceNamespace",
    "targetRef",
    "targetRefs",
    "tcpKeepalive",
    "tunnel",
    "warmup",
    "warmupDurationSecs",
    "withoutHeaders",
    "workloadSelector",
];
