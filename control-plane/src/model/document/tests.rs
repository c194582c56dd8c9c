//! Bad documents with the exact words users read, and the canonical form.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::*;

/// Every fault of a text, as users read them.
#[track_caller]
fn check(text: &str, faults: &[&str]) {
    let mut found = Vec::new();
    parse("f.yaml", text, "shop", &mut found);
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, faults);
}

/// A document of a kind with this body, indented by two; the body begins at line 4.
fn document(kind: &str, spec: &str) -> String {
    let group = Kind::parse(kind).unwrap().group();
    let spec = spec.trim_matches('\n').replace('\n', "\n  ");
    format!("apiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: x}}\nspec:\n  {spec}\n")
}

fn resource(text: &str) -> Resource {
    let mut faults = Vec::new();
    let mut documents = parse("f.yaml", text, "shop", &mut faults);
    assert_eq!(faults, []);
    documents.remove(0).resource
}

#[test]
fn a_misplaced_field_is_told_where_it_belongs() {
    // The trap in the users' own documents: ejection inside the connection pool.
    let text = document(
        "DestinationRule",
        "
host: user-service
trafficPolicy:
  connectionPool:
    http:
      http1MaxPendingRequests: 50
      consecutiveGatewayErrors: 5
      interval: 30s
  outlierDetection:
    consecutiveGatewayErrors: 5
    simple: RANDOM",
    );
    let home = "does not belong here; it belongs in spec.trafficPolicy";
    check(
        &text,
        &[
            &format!(
                "f.yaml:10:9: spec.trafficPolicy.connectionPool.http.consecutiveGatewayErrors: {home}.outlierDetection"
            ),
            &format!(
                "f.yaml:11:9: spec.trafficPolicy.connectionPool.http.interval: {home}.outlierDetection"
            ),
            &format!(
                "f.yaml:14:7: spec.trafficPolicy.outlierDetection.simple: {home}.loadBalancer"
            ),
        ],
    );
}

#[test]
fn every_fault_of_every_document_is_told() {
    let text = format!(
        "{}---\n{}---\nkind: Gateway\napiVersion: networking.istio.io/v1\nmetadata: {{name: g}}\n",
        document(
            "VirtualService",
            "hosts: [web]\nhttp:\n- route:\n  - destination: {host: a}\n    weight: 60\n  - destination: {host: b}\n    weight: 30\n  timeout: soon\n  fault: {}"
        ),
        document(
            "PeerAuthentication",
            "mtls: {mode: strict}\nportLevelMtls: {99999: {mode: DISABLE}}"
        ),
    );
    check(
        &text,
        &[
            "f.yaml:8:7: spec.http[0].route: weights sum to 90, not to 100",
            "f.yaml:12:14: spec.http[0].timeout: `soon` is not a duration such as 10s or 100ms",
            "f.yaml:13:5: spec.http[0].fault: is not implemented by this version of Heddle",
            "f.yaml:19:16: spec.mtls.mode: `strict` must be one of UNSET, STRICT, PERMISSIVE, DISABLE",
            "f.yaml:20:19: spec.portLevelMtls.99999: is not a port: must be 1 to 65535, without a leading zero or sign",
            "f.yaml:22:7: kind: `Gateway` must be one of AuthorizationPolicy, DestinationRule, PeerAuthentication, ServiceEntry, VirtualService, WorkloadEntry",
        ],
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, one row for each rule")]
fn each_bad_value_says_what_is_right() {
    const SERVICE: &str = "hosts: [web]\nresolution: STATIC\nports:\n- {number: 80, name: http}\n";
    let service = |rest: &str| document("ServiceEntry", &format!("{SERVICE}{rest}"));
    let mut wrong = Vec::new();
    for (text, fault) in [
        (
            "5".to_owned(),
            "f.yaml:1:1: must be a mapping, not a number",
        ),
        (
            "kind: VirtualService\n".to_owned(),
            "f.yaml:1:1: apiVersion: is required",
        ),
        (
            document("VirtualService", "hosts: [web]").replace("networking", "security"),
            "f.yaml:1:13: apiVersion: VirtualService belongs to networking.istio.io/v1",
        ),
        (
            document("VirtualService", "hosts: [web]").replace("name: x", "name: X_y"),
            "f.yaml:3:18: metadata.name: `X_y` is not a DNS name in lower case",
        ),
        (
            document("VirtualService", "hosts: [web]"),
            "f.yaml:5:3: spec: needs http or tcp routes",
        ),
        (
            document(
                "VirtualService",
                "hosts: ['*']\nhttp: [{route: [{destination: {host: a}}]}]",
            ),
            "f.yaml:5:11: spec.hosts[0]: wildcard hosts are not implemented by this version of Heddle",
        ),
        (
            document(
                "VirtualService",
                "hosts: [w]\nhttp: [{route: [{destination: {host: a}}], match: [{uri: {regex: '['}}]}]",
            ),
            "f.yaml:6:68: spec.http[0].match[0].uri.regex: `[` is not an expression of RE2",
        ),
        (
            document(
                "VirtualService",
                "hosts: [w]\nhttp: [{route: [{destination: {host: a}}], retries: {attempts: 1, retryOn: 'reset,503'}}]",
            ),
            "f.yaml:6:78: spec.http[0].retries.retryOn: `503` must be one of 5xx, gateway-error, reset, connect-failure, refused-stream, retriable-4xx, cancelled, deadline-exceeded, internal, resource-exhausted, unavailable",
        ),
        (
            document(
                "VirtualService",
                "hosts: [w]\nhttp: [{rout: [{destination: {host: a}}], route: [{destination: {host: a}}]}]",
            ),
            "f.yaml:6:11: spec.http[0].rout: is unknown; did you mean `route`?",
        ),
        (
            document(
                "DestinationRule",
                "host: w\nsubsets: [{name: a}, {name: a}]",
            ),
            "f.yaml:6:31: spec.subsets[1].name: is the name of an earlier subset",
        ),
        (
            document(
                "DestinationRule",
                "host: w\nsubsets: [{name: a, labels: {version: 1.10}}]",
            ),
            "f.yaml:6:41: spec.subsets[0].labels.version: must be a text, not a fraction; put it in quotes",
        ),
        (
            document(
                "DestinationRule",
                "host: w\ntrafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
            ),
            "f.yaml:6:58: spec.trafficPolicy.outlierDetection.maxEjectionPercent: must be 0 to 100",
        ),
        (
            service("location: OUTSIDE"),
            "f.yaml:9:13: spec.location: `OUTSIDE` must be one of MESH_EXTERNAL, MESH_INTERNAL",
        ),
        (
            service("addresses: [10.0.0.300]"),
            "f.yaml:9:15: spec.addresses[0]: `10.0.0.300` is not an IPv4 or IPv6 address",
        ),
        (
            service("addresses: [240.240.0.9]"),
            "f.yaml:9:14: spec.addresses: lies in the range that Heddle allots addresses from",
        ),
        (
            service("subjectAltNames: [web]"),
            "f.yaml:9:21: spec.subjectAltNames[0]: `web` does not start with spiffe://",
        ),
        (
            service("endpoints: [{address: 10.0.0.1, ports: {grpc: 1}}]"),
            "f.yaml:9:42: spec.endpoints[0].ports: names a port that the service does not have",
        ),
        (
            service("").replace("STATIC", "DNS"),
            "f.yaml:6:15: spec.resolution: DNS is not implemented by this version of Heddle; list the endpoints with STATIC",
        ),
        (
            service("").replace("80", "70000"),
            "f.yaml:8:14: spec.ports[0].number: must be 1 to 65535",
        ),
        (
            document(
                "AuthorizationPolicy",
                "selector:\n  matchLabels:\nrules: [{}]",
            ),
            "f.yaml:6:16: spec.selector.matchLabels: has no value; remove it or give it one",
        ),
        (
            document(
                "AuthorizationPolicy",
                "rules: [{from: [{source: {principals: [spiffe://a/ns/b/sa/c]}}]}]",
            ),
            "f.yaml:5:42: spec.rules[0].from[0].source.principals[0]: `spiffe://a/ns/b/sa/c` must be <trust-domain>/ns/<namespace>/sa/<service-account>",
        ),
        (
            document(
                "AuthorizationPolicy",
                "rules: [{to: [{operation: {paths: ['/a/*/b']}}]}]",
            ),
            "f.yaml:5:38: spec.rules[0].to[0].operation.paths[0]: `/a/*/b` may have one `*`, at its beginning or end",
        ),
        (
            document(
                "AuthorizationPolicy",
                "rules: [{when: [{key: request.auth.claims, values: [a]}]}]",
            ),
            "f.yaml:5:25: spec.rules[0].when[0].key: `request.auth.claims` must be one of request.headers[<name>], source.principal, source.namespace, source.ip, destination.port",
        ),
        (
            document("AuthorizationPolicy", "rules: [{from: [{source: {}}]}]"),
            "f.yaml:5:28: spec.rules[0].from[0].source: must say something; an empty source matches nobody",
        ),
        (
            document("PeerAuthentication", "portLevelMtls: {80: {mode: DISABLE}}"),
            "f.yaml:5:18: spec.portLevelMtls: needs a selector: ports belong to a workload",
        ),
        (
            document("AuthorizationPolicy", "rules: [{from: []}]"),
            "f.yaml:5:18: spec.rules[0].from: is empty; leave it out",
        ),
        (
            document("AuthorizationPolicy", "rules: [{to: []}]"),
            "f.yaml:5:16: spec.rules[0].to: is empty; leave it out",
        ),
        (
            document("AuthorizationPolicy", "rules: [{when: []}]"),
            "f.yaml:5:18: spec.rules[0].when: is empty; leave it out",
        ),
        (
            document(
                "AuthorizationPolicy",
                "rules: [{to: [{operation: {paths: [//a]}}]}]",
            ),
            "f.yaml:5:38: spec.rules[0].to[0].operation.paths[0]: `//a` matches nothing: paths are compared in their normal form, such as `/a`",
        ),
        (
            document(
                "PeerAuthentication",
                "selector: {matchLabels: {app: a}}\nportLevelMtls: {8080: {mode: STRICT}, '08080': {mode: DISABLE}}",
            ),
            "f.yaml:6:41: spec.portLevelMtls.08080: is not a port: must be 1 to 65535, without a leading zero or sign",
        ),
        (
            document(
                "VirtualService",
                "hosts: [w]\nhttp: [{match: [{headers: {X-A: {exact: b}, x-a: {exact: c}}}], route: [{destination: {host: a}}]}]",
            ),
            "f.yaml:6:47: spec.http[0].match[0].headers.x-a: says the same as an earlier key",
        ),
        (
            document("WorkloadEntry", "address: 10.0.0.1\nweight: 0"),
            "f.yaml:6:11: spec.weight: must be 1 to 1000",
        ),
    ] {
        let mut found = Vec::new();
        parse("f.yaml", &text, "shop", &mut found);
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        if !found.iter().any(|found| found == fault) {
            wrong.push(format!("{text}\nwanted {fault}\nfound {found:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// One document of each kind with every field.
fn full() -> Vec<String> {
    vec![
        document(
            "ServiceEntry",
            "hosts: [Web, other.example.COM.]\naddresses: [10.9.9.9, 'fd00::1']\nlocation: MESH_INTERNAL\nresolution: STATIC\nports:\n- {number: 80, name: http, protocol: HTTP, targetPort: 8080}\n- {number: 90, name: any}\nendpoints:\n- {address: 10.0.0.1, ports: {http: 81}, labels: {version: v1}, serviceAccount: web, weight: 3}\nsubjectAltNames: [spiffe://cluster.local/ns/shop/sa/web]",
        ),
        document(
            "ServiceEntry",
            "hosts: [web]\nresolution: STATIC\nports: [{number: 80, name: http}]\nworkloadSelector: {labels: {app: web}}",
        ),
        document("WorkloadEntry", "address: 10.0.0.1\nlabels: {app: web}"),
        document(
            "VirtualService",
            "hosts: [web]\nhttp:\n- name: main\n  match:\n  - {name: m, uri: {prefix: /a}, headers: {X-Canary: {exact: 'true'}, x-any: {}}, method: {exact: GET}, authority: {regex: '.*'}}\n  route:\n  - {destination: {host: web, subset: v1, port: {number: 80}}, weight: 95}\n  - {destination: {host: web, subset: v2}, weight: 5}\n  timeout: 1m30.5s\n  retries: {attempts: 3, perTryTimeout: 2000ms, retryOn: 'reset, 5xx'}\ntcp:\n- route: [{destination: {host: web}}]",
        ),
        document(
            "DestinationRule",
            "host: web\ntrafficPolicy:\n  loadBalancer: {simple: LEAST_CONN}\n  connectionPool: {tcp: {maxConnections: 100, connectTimeout: 30s}, http: {http1MaxPendingRequests: 50, http2MaxRequests: 100, maxRequestsPerConnection: 10, maxRetries: 3}}\n  outlierDetection: {consecutive5xxErrors: 5, interval: 30s, baseEjectionTime: 3s, maxEjectionPercent: 50, minHealthPercent: 70}\n  tls: {mode: ISTIO_MUTUAL}\nsubsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]",
        ),
        document(
            "PeerAuthentication",
            "selector: {matchLabels: {app: web}}\nmtls: {mode: STRICT}\nportLevelMtls: {8080: {mode: PERMISSIVE}}",
        ),
        document(
            "AuthorizationPolicy",
            "selector: {matchLabels: {app: web}}\naction: DENY\nrules:\n- from: [{source: {principals: [cluster.local/ns/shop/sa/a], notPrincipals: ['*b'], namespaces: [shop], notNamespaces: ['x*'], ipBlocks: [10.1.2.3/8], notIpBlocks: [10.0.0.1]}}]\n  to: [{operation: {hosts: ['*'], ports: ['80', 81], notPorts: [82], methods: [GET], notMethods: [POST], paths: [/a*], notPaths: ['*/b']}}]\n  when:\n  - {key: 'request.headers[X-Team]', values: [a], notValues: [b]}\n  - {key: source.principal, values: ['*']}\n  - {key: source.namespace, values: [shop]}\n  - {key: source.ip, notValues: [10.0.0.0/8]}\n  - {key: destination.port, values: ['80']}",
        ),
    ]
}

#[test]
fn the_canonical_form_says_the_same_and_is_stable() {
    for text in full() {
        let resource = resource(&text);
        let json = resource.to_json();
        let again = Resource::from_json(&json).unwrap();
        assert_eq!(again, resource, "{json}");
        assert_eq!(again.to_json(), json);
    }
}

#[test]
fn every_character_comes_back_from_the_store() {
    let mut resource = resource(&document("WorkloadEntry", "address: 10.0.0.1"));
    let all: Vec<char> = ('\0'..=char::MAX).collect();
    for some in all.chunks(1000) {
        let text: String = some.iter().collect();
        resource.annotations = Labels::from([(text.clone(), text)]);
        let again = Resource::from_json(&resource.to_json());
        assert_eq!(again.as_ref(), Ok(&resource));
    }
    // The reader of users' texts takes this one as an escape only, and we write it as it is.
    resource.annotations = Labels::from([("note".to_owned(), "\x7f".to_owned())]);
    let mut faults = Vec::new();
    parse("", &resource.to_json(), "shop", &mut faults);
    assert_ne!(faults, []);
}

#[test]
fn limits_of_what_users_write_are_not_limits_of_what_is_stored() {
    let mut resource = resource(&full()[0]);
    // Each was once more than the reader of users' texts takes: a long key, many nodes, many bytes.
    resource.labels.insert("k".repeat(2000), "v".repeat(5));
    for number in 0..120_000 {
        resource.annotations.insert(number.to_string(), "v".into());
    }
    let json = resource.to_json();
    assert!(json.len() > yaml::TEXT_BYTES_MAX, "{}", json.len());
    assert_eq!(Resource::from_json(&json), Ok(resource));
}

#[test]
fn the_canonical_form_is_this() {
    let text = document(
        "VirtualService",
        "hosts: [Web]\nhttp: [{timeout: 0.5s, retries: {attempts: 2}, route: [{destination: {host: web, port: {number: 80}}}]}]",
    )
    .replace("/v1", "/v1alpha3");
    assert_eq!(
        resource(&text).to_json(),
        r#"{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"x","namespace":"shop"},"spec":{"hosts":["web.shop.svc.cluster.local"],"http":[{"route":[{"destination":{"host":"web.shop.svc.cluster.local","port":{"number":80}},"weight":100}],"timeout":"500ms","retries":{"attempts":2}}]}}"#
    );
}

#[test]
fn random_damage_never_panics_and_never_passes_silently() {
    let seed = std::env::var("HEDDLE_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("HEDDLE_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let texts = full();
    for _ in 0..2_000 {
        let mut bytes = texts[rng.random_range(0..texts.len())].clone().into_bytes();
        for _ in 0..rng.random_range(1..8) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[at] = rng.random(),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, b"{}[]:,-#&*!|>'\"%@`\n\t 0"[rng.random_range(0..22)]),
                _ => {
                    let end = rng.random_range(at..bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let mut faults = Vec::new();
        for document in parse("f", &text, "shop", &mut faults) {
            let json = document.resource.to_json();
            assert_eq!(
                Resource::from_json(&json).as_ref(),
                Ok(&document.resource),
                "{text}"
            );
        }
    }
    for _ in 0..500 {
        let mut bytes = vec![0; rng.random_range(0..300)];
        rng.fill_bytes(&mut bytes);
        parse(
            "f",
            &String::from_utf8_lossy(&bytes),
            "shop",
            &mut Vec::new(),
        );
    }
}

/// Whether a path of a policy is taken.
fn takes_path(path: &str) -> bool {
    let spec = format!("rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]");
    let text = document("AuthorizationPolicy", &spec);
    let mut faults = Vec::new();
    parse("f", &text, "shop", &mut faults);
    faults.is_empty()
}

#[test]
fn a_path_that_no_request_has_is_refused() {
    for path in [
        "/", "/a", "/a/", "/.a", "/a..", "/a/*", "/a/.*", "/a/..*", "/%20", "/a%*", "/a%2*", "*/b",
        "*b", "*.", "*/.b", "*%20", "*",
    ] {
        assert!(takes_path(path), "{path}");
    }
    for path in [
        "//a", "/a//b", "/a/../b", "/a/./b", "/a/..", "/a?x=1", "/a#b", "/%41", "/%2f", "/a b",
        "//*", "/a//*", "/a/../*", "/a?*", "*//b", "*/../b", "*?x", "*%41",
    ] {
        assert!(!takes_path(path), "{path}");
    }
}

#[test]
fn hosts_are_compared_in_lower_case() {
    let text = document(
        "AuthorizationPolicy",
        "rules: [{to: [{operation: {hosts: [Admin.Shop, 'A*'], notHosts: ['*B']}}]}]",
    );
    let json = resource(&text).to_json();
    let operation = r#"{"hosts":["admin.shop","a*"],"notHosts":["*b"]}"#;
    assert!(json.contains(operation), "{json}");
    let text = document(
        "VirtualService",
        "hosts: [w]\nhttp: [{match: [{authority: {exact: Admin.Shop}}, {authority: {prefix: A}}], route: [{destination: {host: a}}]}]",
    );
    let json = resource(&text).to_json();
    assert!(
        json.contains(r#""authority":{"exact":"admin.shop"}"#),
        "{json}"
    );
    assert!(json.contains(r#""authority":{"prefix":"a"}"#), "{json}");
}
